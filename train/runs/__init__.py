"""Runs on disk: their folder, checkpoints, summary and pictures, and the session that makes them."""
