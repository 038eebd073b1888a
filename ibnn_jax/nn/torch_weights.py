"""A UCN from the weights of the authors' PyTorch program, without torch.

What differs there, and is turned around here:

    convolutions   [out, in, rows, columns]; here [rows, columns, in, out]
    y = M x - b    b is subtracted; nnx.Conv adds its bias, which is -b
    head           [classes, C H W] on activations flattened as (C, H, W); here
                   [H W C, classes] on (H, W, C)
    batch norm     weight and running_var; here scale and var

Kernels of even size are padded by less on the left and at the top in both.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ibnn_jax.core.options import real_array
from ibnn_jax.nn.implicit_bias import ImplicitBias
from ibnn_jax.nn.ucn import UCN


class _Layers(NamedTuple):
    """The arrays of a state dict by what they are, each list in order of the layers."""

    kernels: list[np.ndarray]  # [out, in, rows, columns]
    biases: list[np.ndarray]  # b
    lams: list[float]  # none in a standard network
    norms: list[dict[str, np.ndarray]]  # weight, bias, running_mean, running_var
    head: np.ndarray  # [classes, C H W]
    head_bias: np.ndarray


def from_torch_state_dict(
    state_dict: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    neuron: Callable[..., nnx.Module] = ImplicitBias,
    subtract_bias: bool = True,
) -> UCN:
    """The UCN(L, C) of a PyTorch state dict, in evaluation mode.

    Arrays are told apart by shape and by the names that torch gives those of batch
    norm, not by the names of layers: four axes are a convolution and the vector next to
    it its b, two axes are the head, a scalar is lam, and the four arrays beside a
    running_mean are a batch norm. Layers are in the order of the numbers in their
    names, else of the dict.

    Args:
        state_dict: names -> torch tensors or numpy arrays.
        image_shape: (H, W, channels) of the images.
        neuron: as in `UCN`; with it p and the coupling, which are not in the dict, e.g.
            `partial(ImplicitBias, p=10.0)`. A dict without lam is a standard network.
        subtract_bias: True for the authors' y = M x - b; False for torch.nn.Conv2d,
            which adds its bias.

    Raises:
        ValueError: a whole checkpoint, or what else is no state dict; arrays that are
            missing, do not fit each other or image_shape, or are of no known kind.

    Example:
        state = torch.load("ucn.pt", weights_only=True)
        model = ibnn_jax.from_torch_state_dict(state, (28, 28, 1))
    """
    _check_names(state_dict)
    # By the numbers in their names: safetensors keeps no order of its own.
    named = sorted(state_dict.items(), key=lambda item: _numbers(item[0]))
    layers = _sort({name: _array(name, value) for name, value in named})
    _check(layers, image_shape)
    height, width, _ = image_shape
    channels, _, side, _ = layers.kernels[0].shape
    model = UCN(
        image_shape,
        len(layers.head),
        layers=len(layers.kernels),
        channels=channels,
        neuron=partial(neuron, lam=0.0) if layers.lams else None,
        kernel_size=side,
        rngs=nnx.Rngs(0),
    )
    sign = -1 if subtract_bias else 1
    for i, block in enumerate(model.blocks):
        _set(block.conv.kernel, layers.kernels[i].transpose(2, 3, 1, 0))
        _set(block.conv.bias, sign * layers.biases[i])
        _set(block.norm.scale, layers.norms[i]["weight"])
        _set(block.norm.bias, layers.norms[i]["bias"])
        _set(block.norm.mean, layers.norms[i]["running_mean"])
        _set(block.norm.var, layers.norms[i]["running_var"])
    for variable, lam in zip(_lam_variables(model), layers.lams):
        variable[...] = jnp.full_like(variable[...], lam)
    head = layers.head.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
    _set(model.head.kernel, head.reshape(-1, len(layers.head)))
    _set(model.head.bias, layers.head_bias)
    model.eval()
    return model


def _lam_variables(model: Any) -> list[nnx.Variable]:
    return [block.implicit.lam for block in model.blocks if block.implicit is not None]


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _check_names(state_dict: Any) -> None:
    """Raise ValueError, with the wrong keys, where it is no dict of named arrays."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            "state_dict must be a dict of names and arrays, as model.state_dict() of "
            f"torch; got {type(state_dict).__name__}"
        )
    wrong = [
        f"{name!r} ({type(value).__name__})"
        for name, value in state_dict.items()
        if not (isinstance(name, str) and hasattr(value, "__array__"))
    ]
    if wrong:
        raise ValueError(
            "state_dict must lead from names to arrays; got other things at "
            f"{', '.join(wrong[:5])}. Of a whole checkpoint pass the state dict, e.g. "
            'checkpoint["state_dict"]'
        )


def _array(name: str, value: Any) -> np.ndarray:
    tensor = value.detach().cpu() if hasattr(value, "detach") else value
    return np.asarray(real_array(name, tensor))


def _set(variable: Any, value: np.ndarray) -> None:
    variable[...] = jnp.asarray(value, jnp.float32)


def _sort(arrays: dict[str, np.ndarray]) -> _Layers:
    """Arrays by what they are.

    Raises:
        ValueError: an array of no known kind, or no head or not one.
    """
    norms, rest = _split_norms(arrays)
    kernels, biases, lams, heads = [], [], [], {}
    # A head's weight before its bias, which is told by it.
    for name, value in sorted(rest.items(), key=lambda item: item[1].ndim != 2):
        owner = name.rpartition(".")[0]
        if value.size == 1 and (value.ndim == 0 or "lam" in name.lower()):
            lams.append(float(value.reshape(())))
        elif value.ndim == 4:
            kernels.append(value)
        elif value.ndim == 2:
            heads[owner] = [value]
        elif value.ndim == 1 and len(heads.get(owner, ())) == 1:
            heads[owner].append(value)
        elif value.ndim in (1, 3) and value.size == len(value):
            biases.append(value.reshape(-1))
        else:
            raise ValueError(
                f"{name} of shape {value.shape} is of no known kind: a UCN has kernels "
                "of 4 axes, vectors b, scalars lam, batch norms and a head of 2 axes"
            )
    if [len(head) for head in heads.values()] != [2]:
        raise ValueError(
            "a UCN has one head, a weight of 2 axes and its bias; got "
            f"{len(heads)} weights of 2 axes, named {list(heads)}"
        )
    (head,) = heads.values()
    return _Layers(kernels, biases, lams, norms, *head)


def _split_norms(arrays):
    """The batch norms, and all that belongs to none."""
    norms, rest = {}, {}
    owners = {
        n.removesuffix("running_mean") for n in arrays if n.endswith("running_mean")
    }
    for name, value in arrays.items():
        owner, _, own = name.rpartition(".")
        owner += "." if owner else ""
        if owner in owners:
            norms.setdefault(owner, {})[own] = value
        else:
            rest[name] = value
    return list(norms.values()), rest


def _check(layers: _Layers, image_shape: tuple[int, int, int]) -> None:
    """Whether the arrays make one UCN for images of this shape.

    Raises:
        ValueError: they do not; the message names the first thing that does not fit.
    """
    counts = {
        "kernels": len(layers.kernels),
        "vectors b": len(layers.biases),
        "batch norms": len(layers.norms),
        "lams": len(layers.lams) or len(layers.kernels),
    }
    if len(set(counts.values())) != 1 or not layers.kernels:
        raise ValueError(f"a UCN has as many of each for its L layers; got {counts}")
    height, width, inputs = image_shape
    channels, _, side, _ = layers.kernels[0].shape
    flat = (height * width * channels,)
    shapes: list[tuple[str, tuple, tuple | None]] = [  # name, wanted, given
        (f"the head, for images {image_shape}", flat, layers.head.shape[1:]),
        ("the bias of the head", layers.head.shape[:1], layers.head_bias.shape),
    ]
    for i, kernel in enumerate(layers.kernels):
        wanted = (channels, channels if i else inputs, side, side)
        shapes.append((f"kernel {i}", wanted, kernel.shape))
        shapes.append((f"b {i}", (channels,), layers.biases[i].shape))
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = layers.norms[i].get(name)
            given = None if value is None else value.shape
            shapes.append((f"{name} of batch norm {i}", (channels,), given))
    for name, wanted, given in shapes:
        if wanted != given:
            raise ValueError(f"{name} should have shape {wanted}; got {given}")
