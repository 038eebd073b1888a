"""Every option of a training run, its default and what it means; the command line is made from it."""

import argparse
import dataclasses
import hashlib
import json
import math
import types
import typing
from pathlib import Path

# The size the paper gives each data set, UCN(layers, channels); anything else gets UCN(1, 3).
PAPER_SIZES = {"fashion_mnist": (1, 3), "svhn_cropped": (2, 3), "cifar10": (3, 8)}
DATASETS = ("digits", *PAPER_SIZES)
MODELS = ("sm", "ibnn", "both")
SOLVERS = (
    "auto",
    "meanfield",
    "newton",
    "picard",
    "gradient_descent",
    "anderson",
    "broyden",
)
ADJOINTS = ("implicit", "unrolled", "phantom")
CONSTRAINTS = ("unique", "nonpositive", "none")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


def option(default, help, choices=None):
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices}
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. Every value is checked here; a wrong one is a ValueError that says what would be right."""

    dataset: str = option(
        "digits",
        f"data set: {', '.join(DATASETS)} or the path of an .npz file (see train/README.md)",
    )
    data_dir: str | None = option(
        None,
        "where TFDS data sets lie; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    train_fraction: float = option(
        1.0, "share of the training images to use, a random subset; in (0, 1]"
    )
    test_fraction: float = option(
        1.0, "share of the test images to use, a random subset; in (0, 1]"
    )
    label_noise: float = option(
        0.0, "share of the training labels replaced by a wrong one; in [0, 1]"
    )

    model: str = option(
        "both",
        "standard model, implicit-bias network, or first one and then the other",
        MODELS,
    )
    layers: int | None = option(
        None, "blocks L of UCN(L, C); default: the paper's for the data set, else 1"
    )
    channels: int | None = option(
        None, "channels C of UCN(L, C); default: the paper's for the data set, else 3"
    )
    p: float = option(10.0, "steepness of the coupling's tanh(p t)")
    lam: float | None = option(
        None, "initial lam of every layer; default: drawn from N(0, 1e-3)"
    )
    train_lam: bool = option(True, "train lam, or keep it at its initial value")
    constraint: str = option(
        "unique",
        "bound on a trained lam, applied at the start and after every update: at most 0.95 of the bound "
        "under which the solution is unique; at most 0; or none",
        CONSTRAINTS,
    )
    coupling: str = option(
        "channel",
        "who is coupled: 'channel' (each map by itself, as in the paper), 'layer' (all maps of an "
        "image), 'pixel' (the channels at one pixel), or a local window such as '5x5'",
    )
    solver: str = option(
        "auto",
        "solver of the implicit layers; auto: the library's choice, on CPUs with one attempt more where lam is "
        "trained to its bound",
        SOLVERS,
    )
    adjoint: str = option(
        "implicit", "how the implicit layers are differentiated", ADJOINTS
    )
    retry: bool = option(
        True,
        "solve groups of neurons again, ever more exactly, where the mean-field solver misses its tolerance; else "
        "they stay as they are and count as not converged, which keeps a lam past its bound affordable",
    )
    give_up: float = option(
        0.01,
        "relative residual of an adjoint solve past which its gradient is declared lost, and is NaN; a large "
        "value goes on with what was found, as a free lam past the bound may need",
    )
    tol: float | None = option(None, "tolerance of the solver; default: the library's")
    max_steps: int | None = option(
        None, "most steps of the solver; default: the library's"
    )

    seeds: int = option(
        5,
        "networks trained side by side, each with its own initial weights and data order",
    )
    first_seed: int = option(
        0,
        "number of the first of them; a seed gives the same result alone or among others",
    )
    seed: int = option(0, "base seed: seed number i draws from fold_in(key(seed), i)")
    epochs: int = option(80, "passes over the training images, warm-up not counted")
    warmup_epochs: int = option(
        2,
        "epochs run before on the standard twin, with its own optimiser and schedule; its weights are "
        "then handed over, to either model",
    )
    batch_size: int = option(
        128,
        "images per step; the last batch of an epoch is filled up with images of that epoch",
    )
    eval_batch_size: int = option(
        500, "test images evaluated at once; does not change the results"
    )
    lr_min: float = option(0.001, "learning rate of the first and the last epoch")
    lr_max: float = option(
        0.01, "learning rate in the middle; linear in between, constant within an epoch"
    )
    momentum: float = option(0.9, "momentum of SGD")
    clip_norm: float = option(
        1.0, "largest norm of the whole gradient of a network; 0: no clipping"
    )
    precision: str = option(
        "float32",
        "arithmetic outside the solver: full float32 products; products in TF32 where the GPU has "
        "it (a CPU has not); or everything but solver, loss and weights in bfloat16",
        PRECISIONS,
    )
    devices: int | None = option(
        None,
        "devices to use; default: as many of those there are as the seeds divide over evenly",
    )
    data_devices: int = option(
        1,
        "how many of these share every batch; the seeds are spread over devices / data_devices",
    )
    distributed: bool = option(
        False,
        "one run of several processes; Slurm, Open MPI and TPU pods are found, elsewhere the next three "
        "options are needed",
    )
    coordinator: str | None = option(
        None, "HOST:PORT at which process 0 can be reached, with --distributed"
    )
    processes: int | None = option(
        None, "how many processes there are, with --distributed"
    )
    process: int | None = option(None, "number of this one, from 0, with --distributed")
    x64: bool = option(False, "weights and arithmetic in float64")

    out: str | None = option(
        None, "folder of the run; default: runs/ and a name made from the options"
    )
    checkpoint_seconds: float = option(
        60.0, "least time between two checkpoints; 0: after every epoch"
    )
    quiet: bool = option(False, "print the final table only")

    # Fields that do not change the numbers, so a run may be resumed with others.
    FREE: typing.ClassVar[tuple] = (
        "out",
        "data_dir",
        "checkpoint_seconds",
        "quiet",
        "eval_batch_size",
        "devices",
        "data_devices",
        "distributed",
        "coordinator",
        "processes",
        "process",
    )
    # Fields that reach no compiled function, only its inputs (or nothing at all).
    UNCOMPILED: typing.ClassVar[tuple] = (
        "dataset",
        "data_dir",
        "train_fraction",
        "test_fraction",
        "label_noise",
        "seeds",
        "first_seed",
        "seed",
        "epochs",
        "warmup_epochs",
        "lr_min",
        "lr_max",
        "out",
        "checkpoint_seconds",
        "quiet",
        "devices",
        "data_devices",
        "distributed",
        "coordinator",
        "processes",
        "process",
    )
    # Fields that each process of one run may have its own value of.
    OWN: typing.ClassVar[tuple] = ("process", "data_dir")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), _types(self)[field.name])
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                raise ValueError(
                    f"{field.name} must be one of {', '.join(choices)}, not {getattr(self, field.name)!r}"
                )
        if self.dataset == "arrows":
            raise ValueError(
                "dataset must be a set of images, and 'arrows' are points in the plane; train.data.arrows() makes them"
            )
        if self.dataset not in DATASETS and not self.dataset.endswith(".npz"):
            raise ValueError(
                f"dataset must be one of {', '.join(DATASETS)} or the path of an .npz file, not {self.dataset!r}"
            )
        window = self.coupling.split("x")
        if self.coupling not in ("channel", "layer", "pixel") and not (
            len(window) == 2 and all(w.isdecimal() and int(w) for w in window)
        ):
            raise ValueError(
                f"coupling must be channel, layer, pixel or a window such as 5x5, not {self.coupling!r}"
            )
        for name in ("train_fraction", "test_fraction"):
            self._check(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        self._check("label_noise", 0 <= self.label_noise <= 1, "in [0, 1]")
        for name in ("layers", "channels", "max_steps", "devices"):
            self._check(
                name,
                getattr(self, name) is None or getattr(self, name) >= 1,
                "at least 1",
            )
        for name in (
            "seeds",
            "epochs",
            "batch_size",
            "eval_batch_size",
            "data_devices",
        ):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "warmup_epochs",
            "first_seed",
            "seed",
            "clip_norm",
            "checkpoint_seconds",
        ):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        addresses = [
            name
            for name in ("coordinator", "processes", "process")
            if getattr(self, name) is not None
        ]
        if addresses and not (self.distributed and len(addresses) == 3):
            raise ValueError(
                "coordinator, processes and process must be given all three, and with distributed; distributed is "
                f"{'on' if self.distributed else 'off'}, and there is {', '.join(addresses)}"
            )
        if addresses:
            host, _, port = self.coordinator.rpartition(":")
            self._check(
                "coordinator",
                host and port.isdecimal() and 0 < int(port) < 65536,
                "HOST:PORT, such as node1:12345",
            )
            self._check("processes", self.processes >= 1, "at least 1")
            self._check(
                "process",
                0 <= self.process < self.processes,
                f"from 0 to processes - 1, {self.processes - 1}",
            )
        self._check("p", self.p > 0, "positive")
        self._check("tol", self.tol is None or self.tol > 0, "positive")
        self._check("give_up", self.give_up > 0, "positive")
        self._check("lr_min", self.lr_min > 0, "positive")
        self._check(
            "lr_max", self.lr_max >= self.lr_min, f"at least lr_min, {self.lr_min}"
        )
        self._check(
            "x64",
            not self.x64 or self.precision == "float32",
            f"off with precision {self.precision}",
        )
        self._check("momentum", 0 <= self.momentum < 1, "in [0, 1)")

    def _check(self, name, good, right):
        if not good:
            raise ValueError(f"{name} must be {right}, not {getattr(self, name)}")

    def resolved(self):
        """The same run with every default that depends on the data set, and the folder, filled in."""
        layers, channels = PAPER_SIZES.get(self.dataset, (1, 3))
        config = dataclasses.replace(
            self, layers=self.layers or layers, channels=self.channels or channels
        )
        if config.out is None:
            same = {
                k: v
                for k, v in dataclasses.asdict(config).items()
                if k not in self.FREE
            }
            digest = hashlib.sha256(
                json.dumps(same, sort_keys=True).encode()
            ).hexdigest()[:8]
            name = f"{Path(self.dataset).stem}-{self.model}-{config.layers}x{config.channels}-{digest}"
            config = dataclasses.replace(config, out=str(Path("runs") / name))
        return config

    def differences(self, other, but=FREE):
        """Names of the fields in which two runs are not the same, but for these: by default, those that do not change the numbers."""
        names = (f.name for f in dataclasses.fields(self))
        return [
            n for n in names if n not in but and getattr(self, n) != getattr(other, n)
        ]

    def compiled_part(self):
        """This config with every field at its default that no compiled function depends on: the key of their cache."""
        defaults = {
            f.name: f.default
            for f in dataclasses.fields(self)
            if f.name in self.UNCOMPILED
        }
        return dataclasses.replace(self, **defaults)

    @classmethod
    def from_dict(cls, values):
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown options: {', '.join(unknown)}")
        return cls(**values)


def _types(cls):
    """Field name -> (type, may it be None)."""
    hints = typing.get_type_hints(type(cls) if isinstance(cls, Config) else cls)
    split = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        args = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        split[field.name] = (
            next(a for a in args if a is not type(None)),
            type(None) in args,
        )
    return split


def _check_type(name, value, wanted):
    kind, optional = wanted
    if value is None and optional:
        return
    good = isinstance(value, (int, float) if kind is float else kind)
    if not good or (isinstance(value, bool) and kind is not bool):
        raise ValueError(
            f"{name} must be of type {kind.__name__}{' or None' if optional else ''}, not {value!r}"
        )
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")


def parser():
    """The command line: one option for every field of Config, nothing else."""
    made = argparse.ArgumentParser(
        prog="python -m train",
        allow_abbrev=False,
        description="Train an ensemble of IBNN networks, of standard networks, or of both.",
    )
    for field in dataclasses.fields(Config):
        kind, _ = _types(Config)[field.name]
        shown = "" if field.default is None else f" (default: {field.default})"
        extra = {
            "help": (field.metadata["help"] + shown).replace("%", "%%"),
            "default": field.default,
        }
        if kind is bool:
            extra["action"] = argparse.BooleanOptionalAction
        else:
            choices = field.metadata["choices"]
            extra |= {
                "type": kind,
                "choices": choices,
                "metavar": None if choices else kind.__name__.upper(),
            }
        made.add_argument("--" + field.name.replace("_", "-"), **extra)
    return made


def parse(arguments=None):
    """Command-line arguments -> Config; a bad one ends the program with a message that says what would be right."""
    made = parser()
    values = vars(made.parse_args(arguments))
    try:
        return Config(**values)
    except ValueError as error:
        made.error(str(error))
