"""Train ensembles of UCN networks, IBNN and standard: ``python -m train --help``.

Data goes one way: config -> data, schedule -> step -> loop -> checkpoint, records -> plots -> main.
``config``, ``runs.folder``, ``runs.summary`` and ``runs.plots`` do not import JAX.
"""
