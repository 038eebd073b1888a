"""Training as a library, on tiny pictures with tiny networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src import test_util as jtu

import ibnn_jax
from train.config import Config
from train.engine import loop
from train.engine import model as models
from train.engine import program as programs
from train.engine.objective import Pace

MODELS = ("sm", "ibnn")


def tiny(model, **changed):
    return Config(
        **{
            "model": model,
            "epochs": 3,
            "seeds": 3,
            "batch_size": 16,
            "warmup_epochs": 1,
            "channels": 2,
        }
        | changed
    )


@pytest.fixture(scope="module")
def runs(tiny_data):
    """One run of each model, for the tests that only look at it."""
    return {model: loop.train(tiny(model), tiny_data()) for model in MODELS}


@pytest.mark.parametrize("model", MODELS)
def test_shapes_types_and_learning(runs, model):
    run = runs[model]
    assert run.epoch == 3 and run.seconds.shape == (3,)
    for name, values in run.history.items():
        assert values.shape[:2] == (3, 3) and np.isfinite(values).all(), name
    assert (run.history["train_loss"][:, -1] < run.history["train_loss"][:, 0]).all()
    floats = [
        x
        for x in jax.tree.leaves((run.state.params, run.state.rest, run.best))
        if np.issubdtype(x.dtype, np.floating)
    ]
    assert floats and all(
        x.dtype == np.float32 and len(x) == 3 for x in floats
    )  # whatever jax_enable_x64 says
    assert ("lam" in run.history) == (model == "ibnn")
    np.testing.assert_allclose(run.best_loss, run.history["test_loss"].min(1))


@pytest.mark.parametrize("model", MODELS)
def test_a_seed_alone_is_the_seed_in_the_ensemble(runs, model, tiny_data):
    alone = loop.train(tiny(model, seeds=1, first_seed=2), tiny_data())
    for name, values in runs[model].history.items():
        np.testing.assert_allclose(
            alone.history[name][0], values[2], rtol=2e-4, atol=2e-5, err_msg=name
        )
    assert not np.allclose(
        runs[model].history["train_loss"][0], runs[model].history["train_loss"][1]
    )
    other = loop.train(tiny(model, seeds=1, first_seed=2, seed=1), tiny_data())
    assert not np.allclose(other.history["train_loss"], alone.history["train_loss"])


@pytest.mark.parametrize("model", MODELS)
def test_repeating_a_run_repeats_every_bit(runs, model, tiny_data):
    again = loop.train(tiny(model), tiny_data())
    for name, values in runs[model].history.items():
        np.testing.assert_array_equal(again.history[name], values, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_one_compilation_per_shape(runs, model, tiny_data):
    """More epochs, other seeds and rates compile nothing; more images do."""
    config = tiny(model)
    program = programs.build(config.resolved(), (8, 8, 1), 4, model == "ibnn")
    functions = (program.init, program.epoch, program.evaluate)
    before = [f._cache_size() for f in functions]
    with jtu.count_jit_compilation_cache_miss() as compiled:
        loop.train(
            dataclasses.replace(config, epochs=6, lr_max=0.02, seed=5), tiny_data()
        )
    assert compiled() == 0 and [f._cache_size() for f in functions] == before
    loop.train(
        dataclasses.replace(config, epochs=1, warmup_epochs=0), tiny_data(train=30)
    )
    assert [f._cache_size() for f in functions] == [before[0], before[1] + 1, before[2]]


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_exact(runs, model, tiny_data):
    """23 images in batches of 10, the last one padded, count as each by itself."""
    tests = tiny_data()
    run = runs[model]
    config = tiny(model, eval_batch_size=10).resolved()
    program = programs.build(config, tests.image_shape, tests.classes, model == "ibnn")
    found = program.evaluate(
        jax.tree.map(jnp.asarray, run.state), loop.evaluation_data(tests)
    )
    reference = models.build_model(
        config, tests.image_shape, tests.classes, jax.random.key(0), model == "ibnn"
    )
    for row in range(3):
        nnx.update(
            reference,
            *jax.tree.map(
                lambda x, row=row: x[row], (run.state.params, run.state.rest)
            ),
        )
        reference.eval()
        logits, stats = reference(
            jnp.asarray(tests.test_images, jnp.float32) / 255, return_stats=True
        )
        logits = np.asarray(logits, np.float64)
        log_likelihood = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss = -log_likelihood[np.arange(23), tests.test_labels].mean()
        np.testing.assert_allclose(found["test_loss"][row], loss, rtol=1e-5)
        np.testing.assert_allclose(run.history["test_loss"][row, -1], loss, rtol=1e-5)
        assert (
            found["test_correct"][row] == (logits.argmax(1) == tests.test_labels).sum()
        )
        for layer, each in enumerate(stats):
            np.testing.assert_allclose(
                found["solver_steps"][row, layer], np.mean(each.steps), rtol=0.05
            )
            np.testing.assert_allclose(
                found["solver_converged"][row, layer], np.mean(each.converged)
            )


def test_sm_and_ibnn_start_from_the_same_weights(tiny_data):
    tests = tiny_data()
    states = {
        m: loop.train(tiny(m, epochs=1, lr_min=1e-30, lr_max=1e-30), tests).state
        for m in MODELS
    }
    sm, ibnn = (dict(nnx.to_flat_state(states[m].params)) for m in MODELS)
    assert set(sm) < set(ibnn) and len(ibnn) == len(sm) + 1  # lam
    for path, value in sm.items():
        np.testing.assert_array_equal(value[...], ibnn[path][...], err_msg=str(path))


def data_of(tests):
    """The images that are trained on, and those that are evaluated."""
    return tests.part("train"), loop.evaluation_data(tests)


def test_warm_up_is_training_of_the_twin(tiny_data):
    """A warm-up equals a standard run over the same data order and rates."""
    tests, config = tiny_data(), tiny("sm", warmup_epochs=2)
    program = programs.build(config.resolved(), tests.image_shape, tests.classes, False)
    init_keys, warm_keys, _ = loop.seed_keys(config)
    state = program.init(init_keys)
    for epoch, rate in enumerate((0.001, 0.01)):  # the first two of three
        order = jax.vmap(jax.random.fold_in, (0, None))(warm_keys, epoch)
        pace = Pace(np.float32(rate))
        state, *_ = program.epoch(state, pace, order, *data_of(tests))
    training = loop.Training(config.resolved(), tests, loop.Observer())
    warm = training.warmed_up()
    for ours, theirs in zip(
        jax.tree.leaves((warm.params, warm.rest)),
        jax.tree.leaves((state.params, state.rest)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(warm.momentum))


def test_one_step_is_sgd_with_momentum_and_clipping(tiny_data):
    """Two full-batch epochs are v = 0.9 v + g clipped, x = x - rate v."""
    tests, config = tiny_data(train=16), tiny("sm", seeds=1, clip_norm=0.05)
    program = programs.build(config.resolved(), tests.image_shape, tests.classes, False)
    keys = jax.random.split(jax.random.key(3), 1)
    images, labels = jnp.asarray(tests.train_images), jnp.asarray(tests.train_labels)
    state = program.init(keys)

    graph, params, rest = nnx.split(
        models.build_model(config.resolved(), tests.image_shape, 4, keys[0], False),
        nnx.Param,
        ...,
    )
    velocity = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def update(params, velocity, rate):
        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)
            model.train()
            logits = model(images.astype(jnp.float32) / 255)
            return -jnp.take_along_axis(
                jax.nn.log_softmax(logits), labels[:, None], 1
            ).mean()

        gradient = jax.grad(loss)(params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
        velocity = jax.tree.map(
            lambda v, g: 0.9 * v + g * 0.05 / norm, velocity, gradient
        )
        return jax.tree.map(lambda x, v: x - rate * v, params, velocity), velocity, norm

    for rate in map(jnp.float32, (0.1, 0.2)):
        state, *_ = program.epoch(state, Pace(rate), keys, *data_of(tests))
        params, velocity, norm = update(params, velocity, rate)
        assert norm > 0.05
    for ours, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-6)


def test_every_image_is_seen_once_and_the_last_batch_is_filled(tiny_data):
    """With 50 images and batches of 16 there are 4 steps; 10 images make one batch."""
    for size, steps in ((50, 4), (10, 1)):
        tests = tiny_data(train=size)
        config = tiny("sm", seeds=1).resolved()
        program = programs.build(config, tests.image_shape, tests.classes, False)
        keys = jax.random.split(jax.random.key(0), 1)
        state, pace = program.init(keys), Pace(jnp.float32(0))
        _, losses, correct, _ = program.epoch(state, pace, keys, *data_of(tests))
        assert losses.shape == (1, steps) and 0 <= correct[0] <= steps * min(size, 16)


@pytest.mark.parametrize(
    "constraint, start, limit", [("nonpositive", 0.002, 0.0), ("unique", 0.3, 0.0951)]
)
def test_lam_is_kept_in_bounds(constraint, start, limit, tiny_data):
    config = tiny(
        "ibnn",
        epochs=1,
        warmup_epochs=0,
        lam=start,
        constraint=constraint,
        solver="picard",
    )  # quick to compile
    assert (loop.train(config, tiny_data()).history["lam"] <= limit).all()
    free = models.build_model(
        tiny("ibnn", constraint="none").resolved(),
        (8, 8, 1),
        4,
        jax.random.key(0),
        True,
    )
    assert free.blocks[0].implicit.constraint is None


def test_frozen_lam_stays(tiny_data):
    tests = tiny_data()
    run = loop.train(
        tiny(
            "ibnn",
            epochs=1,
            warmup_epochs=0,
            lam=-0.02,
            train_lam=False,
            solver="picard",
        ),
        tests,
    )
    assert (run.history["lam"] == np.float32(-0.02)).all()
    counts = {m: loop.parameters(tiny(m), tests, m) for m in MODELS}
    assert counts["ibnn"] == counts["sm"] + 1
    assert loop.parameters(tiny("ibnn", train_lam=False), tests, "ibnn") == counts["sm"]


def test_uint8_and_float_images_are_the_same(runs, tiny_data):
    floats = loop.train(tiny("sm"), tiny_data(dtype=np.float32))
    np.testing.assert_allclose(
        floats.history["test_loss"], runs["sm"].history["test_loss"], rtol=1e-4
    )


def test_non_finite_loss_names_seed_and_step(tiny_data):
    tests = tiny_data(dtype=np.float32)
    config = tiny(
        "sm", lr_min=1e36, lr_max=1e36, clip_norm=0.0, first_seed=4, warmup_epochs=0
    )
    with pytest.raises(
        loop.NonFiniteLoss,
        match=r"loss in epoch 1, step \d of 4 is (nan|inf) for seed [456] \(sm\)",
    ):
        loop.train(config, tests)


def test_x64(tiny_data):
    if not jax.config.jax_enable_x64:
        with pytest.raises(ValueError, match="jax_enable_x64"):
            loop.train(tiny("sm", x64=True), tiny_data())
        return
    run = loop.train(
        tiny("ibnn", x64=True, seeds=1, epochs=1, warmup_epochs=0, solver="picard"),
        tiny_data(),
    )
    assert {x.dtype for x in jax.tree.leaves(run.state.params)} == {np.dtype("float64")}
    assert run.history["test_loss"][0, 0] != np.float32(run.history["test_loss"][0, 0])


@pytest.mark.parametrize("precision", ["tensorfloat32", "bfloat16"])
def test_precision(runs, precision, tiny_data):
    """Weights stay float32; results change a little, on a CPU with TF32 not at all."""
    config = tiny("ibnn", precision=precision).resolved()
    tests, run = tiny_data(), runs["ibnn"]
    evaluate = programs.build(config, tests.image_shape, tests.classes, True).evaluate
    found = evaluate(jax.tree.map(jnp.asarray, run.state), loop.evaluation_data(tests))
    assert found["test_loss"].dtype == np.float32
    np.testing.assert_allclose(
        found["test_loss"], run.history["test_loss"][:, -1], rtol=0.03
    )
    assert (
        precision != "bfloat16"
        or (found["test_loss"] != run.history["test_loss"][:, -1]).all()
    )
    model = models.build_model(
        config, tests.image_shape, tests.classes, jax.random.key(0), True
    )
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        np.dtype("float32")
    }


@pytest.mark.parametrize(
    "coupling, kind", [("layer", "Uniform"), ("pixel", "Uniform"), ("3x3", "Window")]
)
def test_couplings(coupling, kind):
    model = models.build_model(
        tiny("ibnn", coupling=coupling).resolved(),
        (8, 8, 1),
        4,
        jax.random.key(0),
        True,
    )
    assert type(model.blocks[0].implicit.coupling).__name__ == kind
    assert isinstance(model, ibnn_jax.UCN)


def test_both_is_two_runs(tiny_data):
    with pytest.raises(ValueError, match="one model"):
        loop.train(tiny("both"), tiny_data())


MEAN_FIELD = ibnn_jax.MeanField()
WITHOUT_KERNELS = ibnn_jax.MeanField(kernels=False)
NEWTON = ibnn_jax.Newton()


@pytest.mark.parametrize(
    "changed, shape, solver",
    [
        ({}, (28, 28, 1), MEAN_FIELD),
        ({"coupling": "layer"}, (8, 9, 1), MEAN_FIELD),  # 144 neurons
        ({"solver": "meanfield"}, (28, 28, 1), MEAN_FIELD),
        ({"retry": False}, (28, 28, 1), ibnn_jax.MeanField((15,), pairwise_max_size=0)),
        ({"solver": "meanfield", "kernels": False}, (28, 28, 1), WITHOUT_KERNELS),
        ({"train_lam": False, "lam": -0.1}, (28, 28, 1), MEAN_FIELD),
        ({"constraint": "nonpositive"}, (28, 28, 1), MEAN_FIELD),
        ({}, (8, 8, 1), MEAN_FIELD),  # 64 neurons
        ({}, (5, 6, 1), NEWTON),
        ({"coupling": "pixel"}, (28, 28, 1), NEWTON),
        ({"coupling": "5x5"}, (28, 28, 1), NEWTON),
        ({"adjoint": "unrolled"}, (28, 28, 1), "auto"),
    ],
)
def test_the_solver_fits_coupling_and_constraint(changed, shape, solver):
    config = tiny("ibnn", **changed).resolved()
    model = models.build_model(config, shape, 4, jax.random.key(0), True)
    assert model.blocks[0].implicit.solver == solver


def test_an_unrolled_solver_trains(tiny_data):
    config = tiny("ibnn", adjoint="unrolled", max_steps=3, seeds=1, epochs=1)
    run = loop.train(config, tiny_data(size=10))
    assert np.isfinite(run.history["test_loss"]).all()


def test_validation_images_choose_the_weights(tiny_data):
    """val_loss is the loss on them; the best weights are those of its lowest."""
    tests = tiny_data(val=17)
    config = tiny("sm", eval_batch_size=10)
    run = loop.train(config, tests)
    assert run.history["val_loss"].shape == (3, 3)
    np.testing.assert_allclose(run.best_loss, run.history["val_loss"].min(1))
    swapped = dataclasses.replace(
        tests,
        test_images=tests.val_images,
        test_labels=tests.val_labels,
        val_images=tests.test_images,
        val_labels=tests.test_labels,
    )
    other = loop.train(config, swapped)
    for kind in ("loss", "accuracy"):
        np.testing.assert_allclose(
            run.history[f"val_{kind}"], other.history[f"test_{kind}"], rtol=1e-5
        )


def test_an_observer_is_told_what_happens(tiny_data):
    class Listener(loop.Observer):
        stages, epochs, polls = [], [], 0

        def stage(self, text):
            self.stages.append(text)

        def epoch_done(self, snapshot):
            self.epochs.append(snapshot.epoch)

        def poll(self):
            self.polls += 1

    told = Listener()
    loop.train(tiny("sm"), tiny_data(), told)
    assert told.epochs == [1, 2, 3] and told.polls > 9
    assert told.stages == ["compiling warm-up epoch 1"]


def test_a_window_larger_than_the_images_is_refused(tiny_data):
    with pytest.raises(ValueError, match="no larger than the images, 8x8, not 9x9"):
        loop.train(tiny("ibnn", coupling="9x9", dataset="my.npz"), tiny_data())
