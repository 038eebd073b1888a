"""Data sets as plain arrays: where they come from, and what a run does to them."""

from train.data.arrows import ARROW, HOLE, TRAPEZOID, arrows, inside
from train.data.dataset import (
    Dataset,
    scramble_labels,
    split_validation,
    take_fraction,
)
from train.data.sources import digits, load, prepare
from train.data.tfds import NAMES as TFDS
