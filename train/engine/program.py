"""The compiled functions of a run: initial state, one epoch, evaluation; every one over all seeds at once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ibnn_jax
from train.distributed.sharding import over_seeds
from train.engine.model import build_model
from train.engine.optimizer import build_optimizer


class State(NamedTuple):
    """What training changes, each array with a leading axis of seeds."""

    params: nnx.State  # what the gradient is taken of
    rest: nnx.State  # batch-norm statistics; lam when it is not trained
    momentum: optax.OptState


@dataclasses.dataclass(frozen=True)
class Program:
    """Jitted functions, S the number of seeds; each compiles once per shape of its arguments.

    init(keys [S]) -> State
    adopt(state, twin) -> state with the twin's weights and statistics, its momentum as it was; twin is of the SM twin
    epoch(state, rate [], keys [S], images, labels) -> state, losses [S, steps], correct [S] (of steps * batch images)
    evaluate(state, images, labels) -> dict of loss [S], correct [S], lam [S, n], and for implicit layers
        solver_steps, solver_steps_max, solver_residual_max, solver_converged [S, layers]
    network(params, rest) -> the model of one seed in evaluation mode, not jitted: to be called inside vmap or jit
    """

    init: Callable
    adopt: Callable
    epoch: Callable
    evaluate: Callable
    network: Callable
    parameters: int  # trained numbers in one network


def build(config, image_shape, classes, implicit, mesh=None):
    """The Program of a resolved config. Runs that differ in their inputs only share one, and its compiled code.

    mesh: `sharding.make_mesh`; the seeds, and each batch, are spread over it.
    """
    return _build(config.compiled_part(), tuple(image_shape), classes, implicit, mesh)


@functools.lru_cache(maxsize=32)
def _build(config, image_shape, classes, implicit, mesh):
    dtype = jnp.float64 if config.x64 else jnp.float32
    optimizer = build_optimizer(config)
    parts = mesh.shape["data"] if mesh else 1
    axis = "data" if parts > 1 else None

    def over_data(reduce, tree):
        return jax.tree.map(lambda x: reduce(x, axis), tree) if axis else tree

    def my_part(rows, size):
        """This device's `size` of the rows."""
        return (
            jax.lax.dynamic_slice_in_dim(
                rows, jax.lax.axis_index(axis) * size, size, -1
            )
            if axis
            else rows
        )

    def split(model):
        return nnx.split(model, nnx.Param, ...)

    def abstract(implicit):
        return nnx.eval_shape(
            lambda: build_model(
                config, image_shape, classes, jax.random.key(0), implicit, axis
            )
        )

    structure = {kind: split(abstract(kind))[0] for kind in {implicit, False}}

    def merge(params, rest, implicit=implicit):
        return nnx.merge(structure[implicit], params, rest, copy=True)

    def pixels(images):
        return (
            images.astype(dtype) / 255
            if images.dtype == jnp.uint8
            else images.astype(dtype)
        )

    def cross_entropy(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(dtype), labels
        )

    def init(key):
        model = build_model(config, image_shape, classes, key, implicit, axis)
        ibnn_jax.project(
            model
        )  # an initial lam outside its bound would do harm before the first update
        _, params, rest = split(model)
        floating = lambda x: (
            x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        )
        params, rest = jax.tree.map(floating, (params, rest))
        return State(params, rest, optimizer.init(params))

    def adopt(state, twin):
        model = merge(state.params, state.rest)
        ibnn_jax.transfer(merge(twin.params, twin.rest, implicit=False), model)
        return State(*split(model)[1:], state.momentum)

    def train_step(state, rate, images, labels):
        def loss(params):
            model = merge(params, state.rest)
            model.train()
            logits = model(pixels(images))
            correct = (logits.argmax(-1) == labels).sum(dtype=jnp.int32)
            return cross_entropy(logits, labels).mean(), (correct, split(model)[2])

        (value, (correct, rest)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params
        )
        (value, gradient), correct = (
            over_data(jax.lax.pmean, (value, gradient)),
            over_data(jax.lax.psum, correct),
        )
        direction, momentum = optimizer.update(gradient, state.momentum, state.params)
        params = jax.tree.map(
            lambda x, d: x - rate.astype(x.dtype) * d, state.params, direction
        )
        model = merge(params, rest)
        ibnn_jax.project(model)
        return State(*split(model)[1:], momentum), (value, correct)

    def epoch(state, rate, key, images, labels):
        size = len(labels)
        batch = min(config.batch_size, size)
        steps = -(-size // batch)
        order = jax.random.permutation(key, size)
        # The last batch is filled up from the front of the order: every image is seen, every batch has one shape.
        if batch % parts:
            raise ValueError(
                f"a batch of {batch} images does not divide evenly over data_devices={parts}"
            )
        batches = my_part(
            order[jnp.arange(steps * batch) % size].reshape(steps, batch),
            batch // parts,
        )
        state, (losses, correct) = jax.lax.scan(
            lambda s, rows: train_step(s, rate, images[rows], labels[rows]),
            state,
            batches,
        )
        return state, losses, correct.sum()

    def evaluate(state, images, labels):
        size = len(labels)
        batch = min(config.eval_batch_size, size)
        count = -(-size // (batch * parts))  # batches of each device
        batches = my_part(jnp.arange(parts * count * batch), count * batch).reshape(
            count, batch
        )
        model = network(state.params, state.rest)

        def one(rows):
            real = (
                rows < size
            )  # the last batch is padded with the first image, which then does not count
            rows = jnp.where(real, rows, 0)
            logits, stats = model(pixels(images[rows]), return_stats=True)
            found = {
                "loss": jnp.where(real, cross_entropy(logits, labels[rows]), 0).sum(),
                "correct": (real & (logits.argmax(-1) == labels[rows])).sum(
                    dtype=jnp.int32
                ),
            }
            over = lambda reduce, field: jnp.stack(
                [
                    reduce(
                        jnp.where(
                            real[:, None], getattr(s, field).reshape(batch, -1), 0
                        )
                    )
                    for s in stats
                ]
            )
            if stats:
                found["groups"] = jnp.stack(
                    [real.sum() * (s.steps.size // batch) for s in stats]
                )
                found["solver_steps"] = over(lambda x: x.sum(dtype=jnp.int32), "steps")
                found["solver_converged"] = over(
                    lambda x: x.sum(dtype=jnp.int32), "converged"
                )
                found["solver_steps_max"] = over(jnp.max, "steps")
                found["solver_residual_max"] = over(jnp.max, "residual")
            return found

        found = jax.lax.map(one, batches)
        total = {
            name: over_data(jax.lax.pmax, value.max(0))
            if name.endswith("max")
            else over_data(jax.lax.psum, value.sum(0))
            for name, value in found.items()
        }
        total["loss"] = total["loss"] / size
        if "groups" in total:
            groups = total.pop("groups")
            total |= {
                name: total[name].astype(dtype) / groups
                for name in ("solver_steps", "solver_converged")
            }
        lams = model.lams()
        if lams:
            total["lam"] = jnp.concatenate([jnp.ravel(lam) for lam in lams])
        return total

    def network(params, rest):
        model = merge(params, rest)
        model.eval()
        return model

    def compiled(function, seeds, **options):
        """Jitted over the seeds; seeds says which arguments have that axis. TF32 and the like are chosen at tracing."""

        def traced(*args):
            with jax.default_matmul_precision(
                None if config.precision == "bfloat16" else config.precision
            ):
                return over_seeds(function, seeds, mesh)(*args)

        traced.__name__ = function.__name__
        return jax.jit(traced, compiler_options=options)

    # Random numbers run once here and take seconds to optimise on a CPU.
    unoptimised = (
        {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    )
    shapes = jax.eval_shape(init, jax.random.key(0)).params
    return Program(
        init=compiled(init, (0,), **unoptimised),
        adopt=compiled(adopt, (0, 0)),
        epoch=compiled(epoch, (0, None, 0, None, None)),
        evaluate=compiled(evaluate, (0, None, None)),
        network=network,
        parameters=sum(x.size for x in jax.tree.leaves(shapes)),
    )
