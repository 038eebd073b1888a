"""The attacked network as a value: its operations, and apart from them its arrays.

A compiled attack can then be used again: for the same network, for one with other
weights, and for a function written anew that does the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax.errors import TraceContextError
from jax import Array
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from ibnn_jax.core.batching import select


class Program:
    """The operations of a traced function; equal to every program that does the same.

    Programs are compared by their printed form and by the arrays that inner jitted
    functions hold. A program that calls back to Python equals only itself, because
    the function that it calls is not printed. So does one traced under a
    transformation, because rules of differentiation are not printed either.
    """

    def __init__(self, closed: ClosedJaxpr):
        self.jaxpr = closed.jaxpr
        # Kept, so that no other array can get the id of one of these.
        self._held = tuple(_held_arrays(closed.jaxpr))
        arrays = (*closed.consts, *self._held)
        self.transformed = any(isinstance(array, Tracer) for array in arrays)
        text = "" if self.transformed else str(closed.jaxpr)
        itself = id(self.jaxpr) if self.transformed or "callback" in text else None
        self._key = (text, tuple(map(id, self._held)), itself)

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return isinstance(other, Program) and self._key == other._key


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["constants"],
    meta_fields=["program"],
)
@dataclass(frozen=True)
class Network:
    """A traced function of arrays with one result; a pytree of the arrays it reads."""

    constants: list[Array]
    program: Program

    def __call__(self, *arguments: Array) -> Array:
        closed = ClosedJaxpr(self.program.jaxpr, self.constants)
        return jaxpr_as_fun(closed)(*arguments)[0]


def trace(function: Callable[..., Array], *arguments: Array) -> Network:
    """The function as a Network, for arguments of these shapes and dtypes.

    Raises:
        ValueError: the function changes the state of a Flax module.
    """
    with evaluation_mode():
        # A new lambda each time: JAX would remember the arrays of a known function.
        closed = jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments)
    return Network(closed.consts, Program(closed))


@contextmanager
def evaluation_mode() -> Iterator[None]:
    """Say what to do where a traced Flax module is in training mode.

    Raises:
        ValueError: the module changes its state in here.
    """
    try:
        yield
    except TraceContextError as error:
        raise ValueError(
            "the network changes its own state when it is called, as batch norm and "
            "dropout do in training mode: call model.eval() first"
        ) from error


def check_evaluation_mode(network: Callable[[Array], Array], images: Array) -> None:
    """Refuse a network that changes its own state when it is called.

    Raises:
        ValueError: it is in training mode.
    """
    with evaluation_mode():
        # A new lambda each time: JAX would remember the shapes of a known function.
        jax.eval_shape(lambda images: network(images), images)


def trace_scores(
    name: str, logits: Callable[[Array], Array], images: Array
) -> tuple[Network, Array]:
    """The network images -> logits, with a check of what it returns, and the images.

    Where weights differ by device (shard_map) images that do not are told to: JAX adds
    up over the devices any gradient with respect to what they share.

    Raises:
        ValueError: logits is not callable, or does not return one floating array
            [N, classes]; as `trace`.
    """
    if not callable(logits):
        raise ValueError(
            f"{name} must be a function images -> logits; got {type(logits).__name__}"
        )
    scores = trace(logits, images)
    results = [variable.aval for variable in scores.program.jaxpr.outvars]
    if not (
        len(results) == 1
        and len(results[0].shape) == 2
        and results[0].shape[0] == len(images)
        and jnp.issubdtype(results[0].dtype, jnp.floating)
    ):
        given = ", ".join(f"{r.dtype}{list(r.shape)}" for r in results)
        raise ValueError(
            f"{name} must return one floating array [{len(images)}, classes] for "
            f"{len(images)} images; got {given or 'no array'}"
        )
    if not scores.program.transformed:
        return scores, images
    images = select(scores(images)[:, 0] == 0, images, images)
    return trace(logits, images), images


def classes(scores: Network) -> int:
    """The number of classes of a network from `trace_scores`."""
    return scores.program.jaxpr.outvars[0].aval.shape[1]


def _held_arrays(jaxpr: Jaxpr) -> Iterator[Array]:
    """The arrays that functions inside of this one hold."""
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(tuple(equation.params.values())):
            if isinstance(leaf, ClosedJaxpr):
                yield from leaf.consts
                yield from _held_arrays(leaf.jaxpr)
            elif isinstance(leaf, Jaxpr):
                yield from _held_arrays(leaf)
