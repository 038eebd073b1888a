"""The compiled functions of a run, each over all seeds at once."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, UInt8

import ibnn_jax
from train.config import Config
from train.distributed.sharding import DataAxis, over_seeds
from train.engine.model import build_model
from train.engine.objective import Pace, cross_entropy, objective
from train.engine.optimizer import build_optimizer

Images = UInt8[Array, "N H W C"] | Float[Array, "N H W C"]
Labels = Int[Array, " N"]
Evaluated = tuple[Images, Labels, Bool[Array, " N"]]  # the last: of the test images
Network = ibnn_jax.UCN | ibnn_jax.EquilibriumClassifier


class State(NamedTuple):
    """What training changes, each array with a leading axis of seeds."""

    params: nnx.State  # what the gradient is taken of
    rest: nnx.State  # batch-norm statistics; lam when it is not trained
    momentum: optax.OptState


@functools.lru_cache(maxsize=32)
def _build(config, image_shape, classes, implicit, mesh):
    return EnsembleProgram(config, image_shape, classes, implicit, mesh)


def build(
    config: Config,
    image_shape: tuple[int, int, int],
    classes: int,
    implicit: bool,
    mesh: Mesh | None = None,
) -> "EnsembleProgram":
    """The program of a resolved config.

    Runs that differ in their inputs only share one, and its compiled code.

    Args:
        implicit: of networks with implicit bias, or of their standard twins.
        mesh: from `sharding.make_mesh`; seeds, and each batch, are spread over it.
    """
    return _build(config.compiled_part(), tuple(image_shape), classes, implicit, mesh)


class EnsembleProgram:
    """Networks of one structure: their start, epochs of training, their evaluation.

    The jitted functions take and return arrays with a leading axis of S seeds, and
    compile once per shape of their arguments:

        init(keys [S]) -> State
        adopt(state, twin) -> state with the weights and statistics of the standard
            twin's state, and its own momentum
        epoch(state, pace, keys [S], (images, labels), evaluated) -> state, losses
            [S, steps], correct [S], out of steps * batch images, and what `evaluate`
            finds after it
        evaluate(state, evaluated) -> dict, see `_evaluate`

    The evaluated are (images, labels, is_test [N]). An epoch and its evaluation are one
    program, because XLA compiles equal kernels of one program once, and a solver has
    hundreds.

    The methods they are made of work on a single seed.
    """

    def __init__(
        self,
        config: Config,
        image_shape: tuple[int, int, int],
        classes: int,
        implicit: bool,
        mesh: Mesh | None = None,
    ):
        self.config, self.implicit, self.mesh = config, implicit, mesh
        self.image_shape, self.classes = image_shape, classes
        self.dtype = jnp.float64 if config.x64 else jnp.float32
        self.optimizer = build_optimizer(config)
        self.data_axis = DataAxis.of(mesh)
        kinds = {implicit} if config.model == "nemon" else {implicit, False}
        self._graphs = {kind: self._graph(kind) for kind in kinds}

        self.init = self._compiled(self._init, (0,), **_unoptimised())
        self.adopt = self._compiled(self._adopt, (0, 0))
        self.epoch = self._compiled(self._epoch, (0, None, 0, None, None))
        self.evaluate = self._compiled(self._evaluate, (0, None))

    @functools.cached_property
    def parameters(self) -> int:
        """Trained numbers in one network."""
        shapes = jax.eval_shape(self._init, jax.random.key(0)).params
        return sum(x.size for x in jax.tree.leaves(shapes))

    def network(self, params: nnx.State, rest: nnx.State) -> Network:
        """The model of one seed in evaluation mode; to be called inside vmap or jit."""
        model = self._merge(params, rest)
        model.eval()
        return model

    # The structure of a network, and its state.

    def _model(self, key, implicit: bool) -> Network:
        return build_model(
            self.config,
            self.image_shape,
            self.classes,
            key,
            implicit,
            self.data_axis.name,
        )

    def _graph(self, implicit: bool):
        abstract = nnx.eval_shape(lambda: self._model(jax.random.key(0), implicit))
        return nnx.split(abstract, nnx.Param, ...)[0]

    def _merge(self, params, rest, implicit: bool | None = None) -> Network:
        kind = self.implicit if implicit is None else implicit
        return nnx.merge(self._graphs[kind], params, rest, copy=True)

    @staticmethod
    def _split(model: Network) -> tuple[nnx.State, nnx.State]:
        _, params, rest = nnx.split(model, nnx.Param, ...)
        return params, rest

    # The functions of one seed.

    def _init(self, key: Array) -> State:
        model = self._model(key, self.implicit)
        # An initial lam outside its bound would do harm before the first update.
        ibnn_jax.project(model)
        params, rest = jax.tree.map(self._floating, self._split(model))
        return State(params, rest, self.optimizer.init(params))

    def _adopt(self, state: State, twin: State) -> State:
        model = self._merge(state.params, state.rest)
        ibnn_jax.transfer(self._merge(twin.params, twin.rest, implicit=False), model)
        return State(*self._split(model), state.momentum)

    def _epoch(self, state: State, pace: Pace, key: Array, trained, evaluated):
        """One epoch in the order that the key gives, and the evaluation after it.

        The last batch is filled up from the front of the order: every image is seen,
        and every batch has one shape.
        """
        images, labels = trained
        size = len(labels)
        batch = min(self.config.batch_size, size)
        steps = -(-size // batch)
        order = jax.random.permutation(key, size)
        rows = order[jnp.arange(steps * batch) % size].reshape(steps, batch)

        def step(state, rows):
            return self._step(state, pace, images[rows], labels[rows])

        mine = self.data_axis.my_share(rows)
        state, (losses, correct) = jax.lax.scan(step, state, mine)
        return state, losses, correct.sum(), self._evaluate(state, evaluated)

    def _step(self, state: State, pace: Pace, images: Images, labels: Labels):
        """One update: x - rate * direction, then lam back into its bound."""

        def loss(params):
            model = self._merge(params, state.rest)
            model.train()
            pixels = self._pixels(images)
            value, logits = objective(self.config, model, pixels, labels, pace)
            correct = (logits.argmax(-1) == labels).sum(dtype=jnp.int32)
            return value, (correct, self._split(model)[1])

        differentiated = jax.value_and_grad(loss, has_aux=True)
        params = self.data_axis.each_its_own(state.params)
        (value, (correct, rest)), gradient = differentiated(params)
        value, gradient = self.data_axis.mean((value, gradient))
        correct = self.data_axis.sum(correct)
        direction, momentum = self.optimizer.update(
            gradient, state.momentum, state.params
        )
        params = jax.tree.map(
            lambda x, d: x - pace.rate.astype(x.dtype) * d, state.params, direction
        )
        model = self._merge(params, rest)
        ibnn_jax.project(model)
        return State(*self._split(model), momentum), (value, correct)

    def _evaluate(self, state: State, evaluated: Evaluated) -> dict[str, Array]:
        """Evaluate one network on test and validation images, all in one pass.

        Returns:
            test_loss, val_loss: means over the images of each part; NaN without any. Of
                certified training it is the loss of the worst logits, at certified_eps.
            test_correct, val_correct: numbers of images.
            test_certified: share of the images whose class no change of certified_eps
                alters, if that is asked for.
            lam [n], and for implicit layers, over the test images, solver_steps,
            solver_steps_max, solver_residual_max, solver_converged [layers].
        """
        model = self.network(state.params, state.rest)
        images, labels, is_test = evaluated
        size = len(labels)
        batch = min(self.config.eval_batch_size or self.config.batch_size, size)
        count = -(-size // (batch * self.data_axis.parts))  # batches of each device
        everyone = jnp.arange(self.data_axis.parts * count * batch)
        rows = self.data_axis.my_share(everyone).reshape(count, batch)

        def one_batch(rows):
            # The last batch is padded with the first image, which then does not count.
            real = rows < size
            rows = jnp.where(real, rows, 0)
            pixels, mine = self._pixels(images[rows]), labels[rows]
            logits, stats = model(pixels, return_stats=True)
            correct = logits.argmax(-1) == mine
            test, val = real & is_test[rows], real & ~is_test[rows]
            found = {}
            if self.config.certified_eps:
                margins = model.margins(pixels, mine, self.config.certified_eps)
                held = ibnn_jax.nemon.certified(margins, mine)
                found["certified"] = (held & test).sum(dtype=jnp.int32)
                logits = -margins
            losses = cross_entropy(logits.astype(self.dtype), mine)
            found["test"] = _scores(losses, correct, test)
            found["val"] = _scores(losses, correct, val)
            return found, [_solver_sums(each, test) for each in stats]

        found, stats = jax.lax.map(one_batch, rows)
        found = self.data_axis.sum(jax.tree.map(lambda x: x.sum(0), found))
        totals = {
            "test_loss": found["test"]["loss"] / is_test.sum(),
            "val_loss": found["val"]["loss"] / (~is_test).sum(),
            "test_correct": found["test"]["correct"],
            "val_correct": found["val"]["correct"],
        }
        if self.config.certified_eps:
            totals["test_certified"] = found["certified"] / is_test.sum()
        if stats:
            totals |= self._solver_totals(stats)
        lams = model.lams()
        if lams:
            totals["lam"] = jnp.concatenate([jnp.ravel(lam) for lam in lams])
        return totals

    def _solver_totals(self, stats: list[dict[str, Array]]) -> dict[str, Array]:
        """The statistics of each layer over all batches: [layers]."""
        layers = jax.tree.map(lambda *each: jnp.stack(each, -1), *stats)
        sums = {
            name: self.data_axis.sum(layers[name].sum(0))
            for name in ("groups", "steps", "converged")
        }
        largest = {
            name: self.data_axis.max(layers[name].max(0))
            for name in ("steps_max", "residual_max")
        }
        return {
            "solver_steps": sums["steps"].astype(self.dtype) / sums["groups"],
            "solver_converged": sums["converged"].astype(self.dtype) / sums["groups"],
            "solver_steps_max": largest["steps_max"],
            "solver_residual_max": largest["residual_max"],
        }

    # Small things.

    def _pixels(self, images: Images) -> Float[Array, "N H W C"]:
        """Images as the networks take them, bytes in [0, 1]."""
        floats = images.astype(self.dtype)
        return floats / 255 if images.dtype == jnp.uint8 else floats

    def _floating(self, x: Array) -> Array:
        """In this run's precision, if it is floating point."""
        return x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def _compiled(self, function: Callable, in_axes: tuple, **options):
        """Jitted over the seeds; in_axes says which arguments have them."""
        precision = self.config.precision
        # Products in TF32 and the like are chosen when the function is traced.
        products = None if precision == "bfloat16" else precision

        def traced(*args):
            with jax.default_matmul_precision(products):
                return over_seeds(function, in_axes, self.mesh)(*args)

        traced.__name__ = function.__name__.lstrip("_")
        return jax.jit(traced, compiler_options=options)


def _scores(losses, correct, counted: Bool[Array, " N"]) -> dict[str, Array]:
    """The losses and right answers among the counted images, summed."""
    return {
        "loss": jnp.where(counted, losses, 0).sum(),
        "correct": (counted & correct).sum(dtype=jnp.int32),
    }


def _solver_sums(stats, counted: Bool[Array, " N"]) -> dict[str, Array]:
    """The statistics of one implicit layer over the counted images of a batch."""
    batch = len(counted)

    def per_image(field):
        return jnp.where(counted[:, None], field.reshape(batch, -1), 0)

    steps = per_image(stats.steps)
    return {
        "groups": counted.sum() * (stats.steps.size // batch),
        "steps": steps.sum(dtype=jnp.int32),
        "converged": per_image(stats.converged).sum(dtype=jnp.int32),
        "steps_max": steps.max(),
        "residual_max": per_image(stats.residual).max(),
    }


def _unoptimised() -> dict[str, int]:
    """Compiler options for code that runs once, which a CPU optimises for seconds."""
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_backend_optimization_level": 0}
