"""Train ensembles of UCN networks, IBNN and standard: ``python -m train --help``.

Data goes one way: config -> data -> engine -> runs -> cli. ``config``, ``runs.folder``,
``runs.summary`` and ``runs.plots`` do not import JAX.
"""
