"""Every experiment of the paper as one command: ``python -m train.experiments NAME``.

An experiment is a module with

    TITLE, PAPER                       what it shows, and what the paper says of it
    points(study) -> list of dicts     what is to be measured; a dict's values name the point
    measure(study, point) -> rows      dicts, one for every seed (and more, where a seed gives more than one number)
    draw(figure, rows)                 the figure, from the rows alone
    verdict(rows) -> str               one paragraph, from the rows alone

Data goes one way: options -> study (trains, or finds trained, networks) -> the experiment -> results -> figure, verdict. JAX is
imported by what measures only.
"""
