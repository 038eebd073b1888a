"""Training of NEMON: what the loss adds, certified training, what a run records."""

import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from train.config import Config
from train.engine import loop, objective, program
from train.errors import UserError
from train.runs import plots, summary
from train.runs.session import complete


@pytest.fixture
def nemon(tiny_config):
    def make(**changes):
        options = {"model": "nemon", "features": 6, "epochs": 4, "lr_max": 0.02}
        return tiny_config(**options | changes)

    return make


def test_a_run_learns_records_and_resumes(nemon, tiny_data):
    tests = tiny_data()
    config = nemon(epochs=8)
    last = loop.train(config, tests)
    loss = last.history["train_loss"]
    assert (loss[:, -1] < 0.9 * loss[:, 0]).all()
    assert last.history["solver_converged"].shape == (2, 8, 1)
    assert (last.history["solver_converged"] == 1).all()
    assert "lam" not in last.history

    class Stop(loop.Observer):
        def epoch_done(self, snapshot):
            self.kept = snapshot
            if snapshot.epoch == 3:
                raise KeyboardInterrupt

        def resume(self, template):
            return getattr(self, "kept", None)

    observer = Stop()
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, tests, observer)
    again = loop.train(config, tests, observer)
    np.testing.assert_array_equal(again.history["train_loss"], loss)


def test_the_regulariser_lowers_the_lipschitz_bound(nemon, tiny_data):
    bounds = []
    for weight in (0.0, 0.1):
        config = nemon(epochs=8, lipschitz_weight=weight, seeds=1)
        last = loop.train(config, tiny_data())
        built = program.build(config, (8, 8, 1), 4, True)
        weights = (last.state.params, last.state.rest)
        model = built.network(*jax.tree.map(lambda x: x[0], weights))
        bounds.append(float(model.lipschitz()[0]))
    assert bounds[1] < 0.8 * bounds[0]


def test_certified_training_certifies(nemon, tiny_data):
    config = nemon(epochs=20, certified_eps=0.03, seeds=1)
    last = loop.train(config, tiny_data())
    certified = last.history["test_certified"][0]
    accuracy = last.history["test_accuracy"][0]
    assert certified[-1] > certified[0] and (certified <= accuracy).all()
    assert certified[-1] > 0.4
    # The epoch is chosen by the worst logits in the boxes, not by plain accuracy.
    loss = last.history["test_loss"][0]
    assert last.best_loss[0] == loss.min() and loss.argmin() > 10


def test_convolutions_before_the_layer(nemon, tiny_data):
    config = nemon(epochs=6, front="3", certified_eps=0.01)
    last = loop.train(config, tiny_data())
    loss = last.history["train_loss"]
    assert (loss[:, -1] < loss[:, 0]).all()
    assert last.state.params["front"]["convolutions"][0]["kernel"].shape == (2, 16, 3)
    assert "convolutions of 3, NEMON(6)" in config.network


def test_what_changes_from_epoch_to_epoch():
    config = Config(dataset="x.npz", model="nemon", certified_eps=0.2).resolved()
    assert config.optimizer == "adam" and config.warmup_epochs == 0
    paces = objective.paces(config, 30)
    rate, eps, share = (np.array(each) for each in zip(*paces, strict=True))
    np.testing.assert_allclose(rate[[0, 9, 10, 20]], [1e-3, 1e-3, 1e-4, 1e-5])
    assert eps[0] == 0 and (np.diff(eps) >= 0).all()
    np.testing.assert_allclose(eps[15:], 0.2, rtol=1e-6)
    np.testing.assert_allclose(share[-1], 0.5)
    wider = dataclasses.replace(config, train_eps=0.3)
    np.testing.assert_allclose(objective.paces(wider, 30)[-1].eps, 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "nemon", "gamma": 1.0}, "gamma must be below 1"),
        ({"model": "sm", "front": "16,32"}, "for model nemon, not sm"),
        ({"model": "nemon", "train_eps": 0.1}, "train_eps needs certified_eps"),
        ({"model": "nemon", "front": "16x32"}, "channels such as 16,32"),
        ({"model": "ibnn", "lipschitz_weight": 0.1}, "for model nemon, not ibnn"),
        ({"model": "nemon", "optimizer": "adams"}, "did you mean adam"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Config(dataset="x.npz", **options)


def test_the_table_says_what_is_certified(nemon, tiny_data):
    last = loop.train(nemon(epochs=2, certified_eps=0.01, seeds=2), tiny_data())
    results = summary.summarize({"nemon": last.history | {"seconds": np.ones(2)}})
    certified = last.history["test_certified"][:, -1]
    assert results["nemon"]["certified_last"][0] == np.median(certified)
    assert "certified, last" in summary.table(results)


def test_a_network_that_cannot_be_built_leaves_no_folder(tmp_path):
    out = tmp_path / "run"
    config = Config(dataset="digits", model="nemon", front="4,8", out=str(out))
    with pytest.raises(UserError, match="leave nothing of images"):
        complete(config)
    assert not out.exists()


def test_curves_show_the_steps_of_a_network_without_lam(nemon, tiny_data):
    axes = plt.subplots(1, 4)[1]
    history = loop.train(nemon(epochs=2, seeds=2), tiny_data()).history
    plots._draw_model(axes, "nemon", history, "C0")
    _, _, lam, steps = axes
    assert steps.has_data() and not lam.has_data()
    plt.close()
