"""Every experiment of the paper as one command: ``python -m train.experiments NAME``.

An experiment is a module with

    TITLE, PAPER                       what it shows, and what the paper says of it
    points(study) -> list of dicts     what is measured; a dict's values name a point
    measure(study, point) -> rows      dicts, one or more for every seed
    draw(figure, rows)                 the figure, from the rows alone
    verdict(rows) -> str               one paragraph, from the rows alone

Data goes one way: options -> study (trains networks, or finds them trained) -> the
experiment -> results -> figure and verdict. Only what measures imports JAX. What the
experiments share is in `train.experiments.harness`.
"""
