"""Data sets as plain arrays: where they come from, and what is done to them."""

from train.data.arrows import ARROW, HOLE, TRAPEZOID, arrows, inside
from train.data.dataset import Dataset, scramble_labels, take_fraction
from train.data.sources import TFDS, digits, load
