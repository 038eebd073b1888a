"""Uniform coupling in O(n): a group's neurons reduced to a few points.

solver.py      MeanField: its options, what it states
forward.py     the attempts, the pairwise finish
pullback.py    the adjoint
reduced.py     the points: solve them, read the neurons off
quadrature.py  many neurons as few weighted points
pallas.py      work on the points as one kernel on NVIDIA GPUs
"""
