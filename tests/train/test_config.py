"""Options: their limits, what they change, the command line made from them."""

import dataclasses

import pytest

from train import cli
from train.config import Config


def test_sizes_of_the_paper():
    sizes = {
        "fashion_mnist": (1, 3),
        "svhn_cropped": (2, 3),
        "cifar10": (3, 8),
        "digits": (1, 3),
        "mnist": (1, 3),
    }
    for name, size in sizes.items():
        resolved = Config(dataset=name).resolved()
        assert (resolved.layers, resolved.channels) == size
    assert Config(dataset="cifar10", channels=16).resolved().channels == 16


def test_folder_follows_the_options_that_change_results():
    one, other = Config().resolved().out, Config(epochs=3).resolved().out
    assert one == Config(quiet=True, devices=1).resolved().out != other


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = Config(dataset="~/my.npz", out="~/runs/a").resolved()
    assert config.dataset == "/home/me/my.npz" and config.out == "/home/me/runs/a"


WRONG = [
    ({"model": "mlp"}, "sm, ibnn, both"),
    ({"model": "ibn"}, "did you mean ibnn"),
    ({"dataset": "imagenet"}, "fashion_mnist"),
    ({"dataset": "fashion"}, "did you mean fashion_mnist"),
    ({"dataset": "arrows"}, "train.data.arrows"),
    ({"dataset": 3}, "type str"),
    ({"data_dir": ""}, "not empty"),
    ({"out": ""}, "not empty"),
    ({"out": "  "}, "not empty"),
    ({"compile_cache": ""}, "not empty"),
    ({"epochs": 0}, "at least 1"),
    ({"epochs": 2.5}, "type int"),
    ({"epochs": True}, "type int"),
    ({"epochs": "3"}, "type int"),
    ({"seeds": -1}, "at least 1"),
    ({"seeds": 0}, "at least 1"),
    ({"seed": -1}, r"0..2\^32 - 1"),
    ({"seed": 2**32}, r"0..2\^32 - 1"),
    ({"first_seed": -1}, "at least 0"),
    ({"first_seed": 2**32 - 1, "seeds": 2}, r"at most 2\^32"),
    ({"warmup_epochs": -1}, "at least 0"),
    ({"batch_size": 0}, "at least 1"),
    ({"eval_batch_size": 0}, "at least 1"),
    ({"layers": 0}, "at least 1"),
    ({"channels": 0}, "at least 1"),
    ({"p": 0.0}, "positive"),
    ({"p": float("inf")}, "finite"),
    ({"lam": float("nan")}, "finite"),
    ({"tol": 0.0}, "positive"),
    ({"max_steps": 0}, "at least 1"),
    ({"give_up": 0.0}, "positive"),
    ({"lr_min": 0.0}, "positive"),
    ({"lr_max": 1e-4}, "at least lr_min"),
    ({"schedule": "step"}, "triangular, constant, cosine"),
    ({"momentum": 1.0}, r"\[0, 1\)"),
    ({"momentum": -0.1}, r"\[0, 1\)"),
    ({"clip_norm": -1.0}, "at least 0"),
    ({"train_fraction": 0.0}, r"\(0, 1\]"),
    ({"test_fraction": 1.5}, r"\(0, 1\]"),
    ({"val_fraction": 1.0}, r"\[0, 1\)"),
    ({"val_fraction": -0.1}, r"\[0, 1\)"),
    ({"label_noise": 2.0}, r"\[0, 1\]"),
    ({"coupling": "5x0"}, "window"),
    ({"coupling": "5x5x5"}, "window"),
    ({"coupling": "row"}, "window"),
    ({"coupling": "9x3"}, "no larger than the images, 8x8"),
    ({"coupling": "29x29", "dataset": "mnist"}, "no larger than the images, 28x28"),
    ({"coupling": "5x5", "solver": "meanfield"}, "auto and newton take it"),
    ({"adjoint": "unrolled", "solver": "meanfield"}, "use solver newton"),
    ({"model": "nemon", "solver": "meanfield"}, "not for model nemon"),
    ({"model": "nemon", "lam": -0.5}, "lam is for implicit bias, not nemon"),
    ({"model": "nemon", "coupling": "5x5"}, "coupling is for implicit bias"),
    ({"optimizer": "adam", "momentum": 0.5}, "momentum is for optimizer sgd, not adam"),
    ({"model": "ibnn", "gamma": 0.5}, "gamma is for model nemon, not ibnn"),
    ({"model": "nemon", "schedule": "cosine"}, "leaves the rate constant"),
    ({"adjoint": "exact"}, "implicit, unrolled, phantom"),
    ({"solver": "brent"}, "newton"),
    ({"solver": "newtn"}, "did you mean newton"),
    ({"constraint": "positive"}, "unique, nonpositive, none"),
    ({"precision": "float16"}, "float32, tensorfloat32"),
    ({"tracker": "neptune"}, "tensorboard, mlflow"),
    ({"x64": True, "precision": "bfloat16"}, "precision"),
    ({"train_lam": 1}, "type bool"),
    ({"checkpoint_seconds": -1.0}, "at least 0"),
    ({"devices": 0}, "at least 1"),
    ({"data_devices": 0}, "at least 1"),
    ({"processes": 2}, "all three, and with distributed"),
    ({"coordinator": "a:1", "processes": 2, "process": 0}, "distributed is off"),
    ({"distributed": True, "coordinator": "a:1", "processes": 2}, "all three"),
    (
        {"distributed": True, "coordinator": "a", "processes": 2, "process": 0},
        "HOST:PORT",
    ),
    (
        {"distributed": True, "coordinator": "a:1", "processes": 2, "process": 2},
        "from 0 to processes - 1, 1",
    ),
]


@pytest.mark.parametrize("wrong, words", WRONG, ids=lambda x: str(x)[:40])
def test_wrong_values(wrong, words):
    with pytest.raises(ValueError, match=words) as error:
        Config(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, words",
    [
        # no abbreviations
        ("--epoch 3", "unrecognized arguments: --epoch 3; did you mean --epochs?"),
        ("--learn-lam=no", "unrecognized arguments: --learn-lam=no"),
        ("--epochs many", "invalid int"),
        ("--epochs 0", "at least 1"),
        ("--lam nan", "finite"),
        ("--out=", "not empty"),
        ("--seed 4294967296", "2^32"),
        ("--config none.toml", "no file none.toml"),
        ("--part 1", "I/N"),
        ("--part 3/2", "I/N"),
        ("--part 0/2", "I/N"),
        ("recrods a", "invalid choice"),
        ("records", "RUN"),
        ("plots", "RUN"),
        ("predict", "RUN"),
        ("predict a", "IMAGES"),
        ("predict a b.png --model mlp", "invalid choice"),
    ],
)
def test_wrong_command_lines(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    printed = capsys.readouterr()
    assert stop.value.code == 2 and words in printed.err
    assert "Traceback" not in printed.err and not printed.out


def test_unknown_options():
    with pytest.raises(ValueError, match="unknown options: epoch; did you mean epochs"):
        Config.from_dict({"epoch": 3})


def test_command_line():
    assert cli.parse([]) == [Config().resolved()]
    line = "--model ibnn --no-train-lam --lam -0.5 --constraint none --x64"
    assert cli.parse([*line.split(), "--coupling", "5x5", "--tol", "1e-6"]) == [
        Config(
            model="ibnn",
            train_lam=False,
            lam=-0.5,
            constraint="none",
            x64=True,
            coupling="5x5",
            tol=1e-6,
        ).resolved()
    ]


@pytest.mark.parametrize("command", ["train", "records", "plots", "predict"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    if command == "train":
        for field in dataclasses.fields(Config):
            assert field.metadata["help"]
            assert "--" + field.name.replace("_", "-") in text
        for heading in cli.HEADINGS.values():
            assert f"\n{heading}:\n" in text


def test_one_help_names_all_commands(capsys):
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit):
            cli.main([option])
    text = capsys.readouterr().out
    for word in ("train", "records", "plots", "predict", "experiments", "ibnn_jax"):
        assert word in text


def test_what_a_field_changes_stands_at_the_field():
    config = Config()
    other = Config(epochs=3, quiet=True, devices=2, process=None)
    assert config.differences(other) == ["epochs"]
    assert config.differences(other, between="processes") == [
        "epochs",
        "quiet",
        "devices",
    ]
    assert config.differences(Config(data_dir="a"), between="processes") == []
    assert Config(p=3.0, epochs=7, dataset="mnist").compiled_part() == (
        Config(p=3.0).compiled_part()
    )
    assert Config(p=3.0).compiled_part() != config.compiled_part()


def test_rates_below_lr_min_where_no_schedule_uses_it():
    assert Config(schedule="constant", lr_max=5e-4).lr_max == 5e-4
    assert Config(model="nemon", lr_max=5e-4).lr_max == 5e-4
    with pytest.raises(ValueError, match="at least lr_min"):
        Config(schedule="cosine", lr_max=5e-4)
