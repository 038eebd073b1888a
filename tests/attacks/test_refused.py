"""Bad calls of the attacks, each refused in one line that says what would be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibnn_jax.attacks import pgd, pixle

IMAGES = jax.random.uniform(jax.random.key(2), (6, 4, 5, 1))
KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(jax.random.key(1), (20, 3))


def linear(x):
    return x.reshape(len(x), -1) @ WEIGHTS


LABELS = linear(IMAGES).argmax(-1)
GOOD = {"logits": linear, "images": IMAGES, "labels": LABELS, "key": KEY}

BOTH = {
    "a network that is a string": ({"logits": "linear"}, "function images -> logits"),
    "a network of pairs": (
        {"logits": lambda x: (linear(x), 1)},
        r"one floating array \[6, classes\]",
    ),
    "a network of one number per image": (
        {"logits": lambda x: linear(x)[:, 0]},
        r"one floating array \[6, classes\]",
    ),
    "a network that forgets images": (
        {"logits": lambda x: linear(x)[:2]},
        r"one floating array \[6, classes\]",
    ),
    "a network of classes": (
        {"logits": lambda x: linear(x).astype(int)},
        r"one floating array \[6, classes\]",
    ),
    "bytes": (
        {"images": (IMAGES * 255).astype(jnp.uint8)},
        r"got uint8: convert it, bytes by images.astype\(jnp.float32\) / 255",
    ),
    "a list of images": ({"images": [[0.5]]}, "got list: convert it by jnp.asarray"),
    "complex images": ({"images": IMAGES + 1j}, "must be floating; got complex"),
    "images without pixels": ({"images": IMAGES[:, :0]}, "none of them empty"),
    "a number": ({"images": jnp.float32(0.5)}, r"must be \[N, ...\]"),
    "too few labels": ({"labels": LABELS[:3]}, "6 integers, one per image"),
    "one-hot labels": ({"labels": jax.nn.one_hot(LABELS, 3)}, "6 integers"),
    "labels in a column": ({"labels": LABELS[:, None]}, "6 integers"),
    "floating labels": ({"labels": LABELS * 1.0}, "6 integers, one per image; got flo"),
    "logical labels": ({"labels": LABELS > 0}, "6 integers, one per image; got bool"),
    "a list of labels": ({"labels": [0] * 6}, "6 integers, one per image; got list"),
    "a label of -1": ({"labels": LABELS.at[2].set(-1)}, r"in 0\.\.2.*from -1 to"),
    "a label too large": ({"labels": LABELS.at[2].set(7)}, r"in 0\.\.2.*to 7"),
    "a label of 2^32 + 1": (
        {"labels": np.array([0, 1, 2, 0, 1, 2**32 + 1])},
        r"in 0\.\.2.*to 4294967297",
    ),
    "a seed for a key": ({"key": 0}, r"as jax\.random\.key\(0\); got int"),
    "two keys": ({"key": jax.random.split(KEY)}, r"one key.*got key<fry>\[2\]"),
    "no key": ({"key": None}, "one key.*got NoneType"),
    "no restart": ({"restarts": 0}, "restarts must be at least 1; got 0"),
    "restarts of 1.5": ({"restarts": 1.5}, "restarts must be a whole number; got 1.5"),
    "restarts of True": (
        {"restarts": True},
        "restarts must be a whole number; got True",
    ),
}

PGD = {
    "bytes as floats": (
        {"images": IMAGES * 255},
        "within bounds, 0 to 1; got values from .* to 25.*: rescale the images, or",
    ),
    "standardised images": ({"images": IMAGES - 0.5}, "within bounds, 0 to 1"),
    "NaN in an image": ({"images": IMAGES.at[0, 0, 0].set(jnp.nan)}, "from nan to nan"),
    "an infinite pixel": ({"images": IMAGES.at[0, 0, 0].set(jnp.inf)}, "to inf"),
    "negative eps": ({"eps": -1.0}, "eps must be a finite number, at least 0; got -1"),
    "eps of NaN": ({"eps": np.nan}, "eps must be a finite number, at least 0; got nan"),
    "infinite eps": ({"eps": jnp.inf}, "eps must be a finite number, at least 0"),
    "several eps": ({"eps": np.array([0.1, 0.2])}, "eps must be .* a scalar"),
    "eps in words": ({"eps": "8/255"}, "eps must be real numbers; got '8/255'"),
    "no eps": ({"eps": None}, "eps must be real numbers; got None"),
    "complex eps": ({"eps": 0.1j}, "eps must be real; got dtype complex"),
    "a step of 0": ({"step_size": 0.0}, "step_size must be .*, greater than 0; got 0"),
    "a negative step": ({"step_size": -0.1}, "step_size must be .*, greater than 0"),
    "a step of NaN": ({"step_size": np.nan}, "step_size must be a finite number"),
    "a step per image": ({"step_size": jnp.ones(6)}, "step_size must be .* a scalar"),
    "no steps": ({"steps": 0}, "steps must be at least 1; got 0"),
    "steps of 10.0": ({"steps": 10.0}, "steps must be a whole number; got 10"),
    "another norm": ({"norm": "l1"}, 'norm must be "linf" or "l2"; got \'l1\''),
    "a norm of 2": ({"norm": 2}, 'norm must be "linf" or "l2"; got 2'),
    "reversed bounds": ({"bounds": (1.0, 0.0)}, "the smallest value the first"),
    "equal bounds": ({"bounds": (1.0, 1.0)}, "the smallest value the first"),
    "infinite bounds": ({"bounds": (-np.inf, np.inf)}, "bounds must be finite"),
    "bounds of NaN": ({"bounds": (np.nan, 1.0)}, "bounds must be finite"),
    "one bound": ({"bounds": 1.0}, "the smallest and the largest pixel value"),
    "three bounds": ({"bounds": (0, 0.5, 1)}, "the smallest and the largest pixel"),
    "bounds in words": ({"bounds": "01"}, "the smallest and the largest pixel value"),
    "bounds of another shape": (
        {"bounds": (np.zeros(3), np.ones(3))},
        r"broadcast against one image \(4, 5, 1\)",
    ),
    "a target that is no function": ({"target": 3}, "target must be a function"),
    "a target of other classes": (
        {"target": lambda x: linear(x)[:, :2]},
        "the same classes; got 3 and 2",
    ),
}

PIXLE = {
    "one picture": ({"images": IMAGES[0], "labels": LABELS[:4]}, r"\[N, H, W, C\]"),
    "no iteration": ({"iterations": 0}, "iterations must be at least 1"),
    "iterations of 2.0": ({"iterations": 2.0}, "iterations must be a whole number"),
    "a patch of one side": ({"patch": 3}, r"patch must be \(height, width\); got 3"),
    "a patch in space": ({"patch": (1, 1, 1)}, r"patch must be \(height, width\)"),
    "an empty patch": ({"patch": (0, 3)}, "a side of the patch must be at least 1"),
    "a patch of 1.5": ({"patch": (1.5, 3)}, "a side of the patch must be a whole"),
    "too high a patch": ({"patch": (5, 3)}, "must not be larger than the images"),
    "too wide a patch": ({"patch": (3, 6)}, "must not be larger than the images"),
    "another mapping": ({"mapping": "distance"}, 'must be "similarity" or .*; got'),
    "transposed oblongs": ({"mapping": "similarity_transposed"}, "must be square"),
}


def cases(*tables):
    return [
        pytest.param(*case, id=name) for table in tables for name, case in table.items()
    ]


def assert_refused(attack, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        attack(**(GOOD | options))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("options, message", cases(BOTH, PGD))
def test_bad_calls_of_pgd(options, message):
    assert_refused(pgd, {"eps": 0.1} | options, message)


@pytest.mark.parametrize("options, message", cases(BOTH, PIXLE))
def test_bad_calls_of_pixle(options, message):
    assert_refused(pixle, options, message)


def test_the_good_call_is_not_refused():
    assert pgd(**GOOD, eps=0.1).images.shape == IMAGES.shape
    assert pixle(**GOOD).images.shape == IMAGES.shape
