"""Every option of a training run: default, meaning, limits, and what it changes.

The command line is made from `Config`, so an option is written once, here.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from train.options import (
    A_SEED,
    AT_LEAST_0,
    AT_LEAST_1,
    BELOW_1,
    LESS_THAN_1,
    NOT_EMPTY,
    POSITIVE,
    POSITIVE_SHARE,
    SEEDS,
    SHARE,
    check_field,
    did_you_mean,
    names_of,
    option,
)

# The size the paper gives each data set, UCN(layers, channels); others get UCN(1, 3).
PAPER_SIZES = {"fashion_mnist": (1, 3), "svhn_cropped": (2, 3), "cifar10": (3, 8)}
# Height and width of the images of each data set.
IMAGE_SIZES = {
    "digits": (8, 8),
    "mnist": (28, 28),
    "fashion_mnist": (28, 28),
    "svhn_cropped": (32, 32),
    "cifar10": (32, 32),
}
DATASETS = tuple(IMAGE_SIZES)
MODELS = ("sm", "ibnn", "both", "nemon")
OF_IMPLICIT_BIAS = ("p", "lam", "train_lam", "constraint", "coupling")
OF_NEMON = ("features", "gamma", "front", "lipschitz_weight", "certified_eps")
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
SCHEDULES = ("triangular", "constant", "cosine", "steps")
OPTIMIZERS = ("sgd", "adam")
# What is left open, by the model: the papers' choices.
OPEN = {"optimizer": "sgd", "schedule": "triangular", "lr_max": 0.01}
OPEN_NEMON = {"optimizer": "adam", "schedule": "steps", "lr_max": 0.001}
FROM_LR_MIN = ("triangular", "cosine")  # the schedules that use it
TRACKERS = ("none", "tensorboard", "mlflow", "wandb")
GROUPS = ("data", "model", "solver", "training", "run")


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Raises:
        ValueError: a value is wrong, or two do not go together.
    """

    # A paragraph an option; the formatter would give each argument a line.
    # fmt: off
    dataset: str = option("data", "digits",
        f"data set: {', '.join(DATASETS)} or the path of an .npz file")
    data_dir: str | None = option("data", None,
        "where TFDS data sets lie; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets",
        limit=NOT_EMPTY, changes_results=False, per_process=True)
    train_fraction: float = option("data", 1.0,
        "share of the training images to use, a random subset; in (0, 1]",
        limit=POSITIVE_SHARE)
    test_fraction: float = option("data", 1.0,
        "share of the test images to use, a random subset; in (0, 1]",
        limit=POSITIVE_SHARE)
    val_fraction: float = option("data", 0.1,
        "share of these training images set aside: the loss on them chooses the "
        "epoch whose weights are kept; 0: the test set chooses", limit=BELOW_1)
    as_paper: bool = option("data", False,
        "as in the paper: train on all training images and let the test set choose the "
        "epoch; --val-fraction is ignored")
    label_noise: float = option("data", 0.0,
        "share of the training labels replaced by a wrong one; in [0, 1]", limit=SHARE)

    model: str = option("model", "both",
        "standard model, implicit-bias network, or first one and then the other; or a "
        "classifier z = relu(A z + B x + b)", choices=MODELS, compiled=True)
    layers: int | None = option("model", None,
        "blocks L of UCN(L, C); default: the paper's for the data set, else 1",
        limit=AT_LEAST_1, compiled=True)
    channels: int | None = option("model", None,
        "channels C of UCN(L, C); default: the paper's for the data set, else 3",
        limit=AT_LEAST_1, compiled=True)
    p: float = option("model", 10.0, "steepness of the coupling's tanh(p t)",
        limit=POSITIVE, compiled=True)
    lam: float | None = option("model", None,
        "initial lam of every layer; default: drawn from N(0, 1e-3)", compiled=True)
    train_lam: bool = option("model", True,
        "train lam, or keep it at its initial value", compiled=True)
    constraint: str = option("model", "unique",
        "bound on a trained lam, applied at the start and after every update: at most "
        "0.95 of the bound under which the solution is unique; at most 0; or none",
        choices=CONSTRAINTS, compiled=True)
    coupling: str = option("model", "channel",
        "who is coupled: 'channel' (each map by itself, as in the paper), 'layer' (all "
        "maps of an image), 'pixel' (the channels at one pixel), or a local window "
        "such as '5x5'", compiled=True)
    features: int = option("model", 100, "size of z in nemon",
        limit=AT_LEAST_1, compiled=True)
    gamma: float = option("model", 0.0, "bound on the matrix measure of A in nemon",
        limit=LESS_THAN_1, compiled=True)
    front: str | None = option("model", None,
        "channels of 4x4 convolutions of stride 2 before the layer of nemon, such as "
        "16,32; default: none", compiled=True)

    solver: str = option("solver", "auto",
        "solver of the implicit layers; auto: the library's choice", choices=SOLVERS,
        compiled=True)
    adjoint: str = option("solver", "implicit",
        "how the implicit layers are differentiated", choices=ADJOINTS, compiled=True)
    retry: bool = option("solver", True,
        "solve groups of neurons again, ever more exactly, where the mean-field solver "
        "misses its tolerance; else they stay as they are and count as not converged, "
        "which keeps a lam past its bound affordable", compiled=True)
    kernels: bool = option("solver", True,
        "on NVIDIA GPUs, the mean-field solver's own kernels; else, and on other "
        "devices, XLA's loops", compiled=True)
    give_up: float = option("solver", 0.01,
        "relative residual of an adjoint solve past which its gradient is declared "
        "lost, and is NaN; a large value goes on with what was found, as a free lam "
        "past the bound may need", limit=POSITIVE, compiled=True)
    tol: float | None = option("solver", None,
        "tolerance of the solver; default: the library's",
        limit=POSITIVE, compiled=True)
    max_steps: int | None = option("solver", None,
        "most steps of the solver; default: the library's",
        limit=AT_LEAST_1, compiled=True)

    seeds: int = option("training", 5,
        "networks trained side by side, each with its own initial weights and data "
        "order", limit=AT_LEAST_1)
    first_seed: int = option("training", 0,
        "number of the first of them; a seed gives the same result alone or among "
        "others", limit=AT_LEAST_0)
    seed: int = option("training", 0,
        "base seed: seed number i draws from fold_in(key(seed), i)", limit=A_SEED)
    epochs: int = option("training", 80,
        "passes over the training images, warm-up not counted", limit=AT_LEAST_1)
    warmup_epochs: int = option("training", 2,
        "epochs run before on the standard twin, with its own optimiser and schedule; "
        "its weights are then handed over, to either model", limit=AT_LEAST_0)
    batch_size: int = option("training", 128,
        "images per step; the last batch of an epoch is filled up with images of that "
        "epoch", limit=AT_LEAST_1, compiled=True)
    eval_batch_size: int | None = option("training", None,
        "images evaluated at once; default: batch_size, which compiles fastest; "
        "does not change the results",
        limit=AT_LEAST_1, changes_results=False, compiled=True)
    lipschitz_weight: float = option("training", 0.0,
        "weight in the loss of nemon of a bound on its Lipschitz constant",
        limit=AT_LEAST_0, compiled=True)
    certified_eps: float = option("training", 0.0,
        "certified training of nemon: largest change of a pixel, out of 1, under which "
        "its class shall hold", limit=AT_LEAST_0, compiled=True)
    train_eps: float | None = option("training", None,
        "the change that certified training itself allows, reached after half of the "
        "epochs; default: certified_eps. A larger one overfits less", limit=POSITIVE)
    optimizer: str | None = option("training", None,
        "default: sgd with momentum; adam for nemon", choices=OPTIMIZERS, compiled=True)
    schedule: str | None = option("training", None,
        "learning rate: up from lr_min to lr_max and down again (the paper's); lr_max "
        "throughout; down from lr_max to lr_min along a cosine; or lr_max divided by "
        "10 every 10 epochs. Default: triangular; steps for nemon", choices=SCHEDULES)
    lr_min: float = option("training", 0.001,
        "lowest learning rate", limit=POSITIVE)
    lr_max: float | None = option("training", None,
        "highest learning rate; rates are constant within an epoch. Default: 0.01; "
        "0.001 for nemon", limit=POSITIVE)
    momentum: float = option("training", 0.9, "momentum of SGD",
        limit=BELOW_1, compiled=True)
    clip_norm: float = option("training", 1.0,
        "largest norm of the whole gradient of a network; 0: no clipping",
        limit=AT_LEAST_0, compiled=True)
    precision: str = option("training", "float32",
        "arithmetic outside the solver: full float32 products; products in TF32 where "
        "the GPU has it (a CPU has not); or everything but solver, loss and weights in "
        "bfloat16", choices=PRECISIONS, compiled=True)
    x64: bool = option("training", False, "weights and arithmetic in float64",
        compiled=True)

    out: str | None = option("run", None,
        "folder of the run; default: runs/ and a name made from the options",
        limit=NOT_EMPTY, changes_results=False)
    checkpoint_seconds: float = option("run", 60.0,
        "least time between two checkpoints; 0: after every epoch",
        limit=AT_LEAST_0, changes_results=False)
    quiet: bool = option("run", False, "print the final table only",
        changes_results=False)
    tracker: str = option("run", "none",
        "where metrics are sent besides the run's folder: TensorBoard event files, "
        "MLflow, or Weights & Biases (offline unless WANDB_MODE says otherwise)",
        choices=TRACKERS, changes_results=False)
    compile_cache: str | None = option("run", None,
        "folder in which JAX keeps compiled programs for later runs, or 'off'; "
        "default: $JAX_COMPILATION_CACHE_DIR, else ibnn_jax in the user's cache folder",
        limit=NOT_EMPTY, changes_results=False, per_process=True)
    devices: int | None = option("run", None,
        "devices to use; default: as many as leave each of them the fewest seeds",
        limit=AT_LEAST_1, changes_results=False)
    data_devices: int = option("run", 1,
        "how many of these share every batch; the seeds are spread over devices / "
        "data_devices", limit=AT_LEAST_1, changes_results=False)
    distributed: bool = option("run", False,
        "one run of several processes; Slurm, Open MPI and TPU pods are found, "
        "elsewhere the next three options are needed", changes_results=False)
    coordinator: str | None = option("run", None,
        "HOST:PORT at which process 0 can be reached, with --distributed",
        changes_results=False)
    processes: int | None = option("run", None,
        "how many processes there are, with --distributed",
        limit=AT_LEAST_1, changes_results=False)
    process: int | None = option("run", None,
        "number of this one, from 0, with --distributed",
        limit=AT_LEAST_0, changes_results=False, per_process=True)
    # fmt: on

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        self._check_dataset()
        self._check_coupling()
        self._check_training()
        self._check_addresses()

    def _check_dataset(self) -> None:
        if self.dataset == "arrows":
            raise ValueError(
                "dataset must be a set of images, and 'arrows' are points in the "
                "plane; train.data.arrows() makes them"
            )
        if self.dataset not in DATASETS and not self.dataset.endswith(".npz"):
            raise ValueError(
                f"dataset must be one of {', '.join(DATASETS)} or the path of an .npz "
                f"file, not {self.dataset!r}{did_you_mean(self.dataset, DATASETS)}"
            )

    def _check_coupling(self) -> None:
        if self.window:
            self.check_window(IMAGE_SIZES.get(self.dataset))
            if self.solver == "meanfield":
                raise ValueError(
                    "solver meanfield takes couplings channel, layer and pixel, not "
                    f"the window {self.coupling}; auto and newton take it"
                )
        if self.model == "nemon" and self.solver == "meanfield":
            raise ValueError(
                "solver meanfield is for implicit bias, not for model nemon; auto and "
                "newton take it"
            )
        if self.adjoint == "unrolled" and self.solver == "meanfield":
            raise ValueError(
                "adjoint unrolled differentiates the steps of a solver of the exact "
                "equation, which meanfield is not; use solver newton or picard"
            )

    @property
    def front_channels(self) -> tuple[int, ...]:
        """Channels after each convolution before the layer of nemon; often none."""
        counts = self.front.split(",") if self.front else []
        if not all(count.isdecimal() and int(count) for count in counts):
            raise ValueError(
                f"front must be channels such as 16,32, not {self.front!r}"
            )
        return tuple(map(int, counts))

    @property
    def window(self) -> tuple[int, int] | None:
        """(height, width) of a local coupling; None if the coupling is not local."""
        if self.coupling in ("channel", "layer", "pixel"):
            return None
        sides = self.coupling.split("x")
        if len(sides) != 2 or not all(s.isdecimal() and int(s) for s in sides):
            raise ValueError(
                "coupling must be channel, layer, pixel or a window such as 5x5, not "
                f"{self.coupling!r}"
            )
        return int(sides[0]), int(sides[1])

    def check_window(self, image_size: tuple[int, int] | None) -> None:
        """Raise ValueError if a window coupling is larger than images of this size."""
        if self.window and image_size:
            if any(w > size for w, size in zip(self.window, image_size, strict=True)):
                raise ValueError(
                    f"coupling must be a window no larger than the images, "
                    f"{image_size[0]}x{image_size[1]}, not {self.coupling}"
                )

    def _check_training(self) -> None:
        highest = self.lr_max or self._open["lr_max"]
        if (self.schedule or self._open["schedule"]) in FROM_LR_MIN:
            # Two equal ones may be meant where both are given.
            flat = self.lr_max is None and highest == self.lr_min
            if flat or highest < self.lr_min:
                raise ValueError(
                    f"lr_max must be at least lr_min, {self.lr_min}, not {highest}"
                    f"{', which leaves the rate constant' if flat else ''}"
                )
        optimizer = self.optimizer or self._open["optimizer"]
        if optimizer != "sgd" and self.momentum != type(self).momentum:
            raise ValueError(f"momentum is for optimizer sgd, not {optimizer}")
        if self.first_seed + self.seeds > SEEDS:
            raise ValueError(
                f"first_seed + seeds must be at most 2^32, not "
                f"{self.first_seed + self.seeds}"
            )
        nemon = self.model == "nemon"
        owner = "implicit bias" if nemon else "model nemon"
        for name in OF_IMPLICIT_BIAS if nemon else OF_NEMON:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is for {owner}, not {self.model}")
        _ = self.front_channels  # raises where front is no list of channels
        if self.train_eps and not self.certified_eps:
            raise ValueError("train_eps needs certified_eps")
        if self.x64 and self.precision != "float32":
            raise ValueError(f"x64 must be off with precision {self.precision}")

    def _check_addresses(self) -> None:
        names = ("coordinator", "processes", "process")
        given = [name for name in names if getattr(self, name) is not None]
        if not given:
            return
        if not (self.distributed and len(given) == len(names)):
            raise ValueError(
                "coordinator, processes and process must be given all three, and with "
                f"distributed; distributed is {'on' if self.distributed else 'off'}, "
                f"and there is {', '.join(given)}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(
                f"coordinator must be HOST:PORT, such as node1:12345, not "
                f"{self.coordinator}"
            )
        if self.process >= self.processes:
            raise ValueError(
                f"process must be from 0 to processes - 1, {self.processes - 1}, not "
                f"{self.process}"
            )

    @property
    def _open(self) -> dict:
        """The values of the options that are left open, by the model."""
        return OPEN_NEMON if self.model == "nemon" else OPEN

    @property
    def validation_share(self) -> float:
        """Share of the training images that chooses the epoch; 0: the test set does."""
        return 0.0 if self.as_paper else self.val_fraction

    @property
    def network(self) -> str:
        """The network of a resolved run, in short."""
        if self.model == "nemon":
            front = f"convolutions of {self.front}, " if self.front else ""
            return f"{front}NEMON({self.features}), gamma {self.gamma:g}"
        return f"UCN({self.layers},{self.channels})"

    def resolved(self) -> "Config":
        """The same run with paths and all defaults that depend on others filled in."""
        layers, channels = PAPER_SIZES.get(self.dataset, (1, 3))
        dataset = self.dataset
        if dataset.endswith(".npz"):
            dataset = str(Path(dataset).expanduser())
        nemon = self.model == "nemon"
        chosen = {k: v for k, v in self._open.items() if getattr(self, k) is None}
        config = dataclasses.replace(
            self,
            dataset=dataset,
            layers=self.layers or layers,
            channels=self.channels or channels,
            # NEMON has no twin that could be warmed up.
            warmup_epochs=0 if nemon else self.warmup_epochs,
            **chosen,
        )
        out = Path(self.out).expanduser() if self.out else Path("runs", config.name())
        return dataclasses.replace(config, out=str(out))

    def name(self) -> str:
        """A name made from the options that change the results."""
        names = names_of(self, changes_results=True)
        values = {name: getattr(self, name) for name in names}
        text = json.dumps(values, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        size = f"{self.layers}x{self.channels}"
        if self.model == "nemon":
            size = str(self.features)
        return f"{Path(self.dataset).stem}-{self.model}-{size}-{digest}"

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are trained, in this order."""
        return ("sm", "ibnn") if self.model == "both" else (self.model,)

    def differences(self, other: "Config", between: str = "runs") -> list[str]:
        """Names of the options that must agree and do not.

        between: "runs", one of which resumes the other, or "processes" of one run.
        """
        agree = {"runs": {"changes_results": True}, "processes": {"per_process": False}}
        names = names_of(self, **agree[between])
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def compiled_part(self) -> "Config":
        """This config with its default in every field that compiled code ignores.

        Runs that agree in it share their compiled functions.
        """
        names = names_of(self, compiled=True)
        values = {name: getattr(self, name) for name in names}
        # A dataset on which every window fits; its name is not compiled.
        return dataclasses.replace(Config(dataset="any.npz"), **values)

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """The Config with these options; ValueError for one there is not."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            near = did_you_mean(unknown[0], known)
            raise ValueError(f"unknown options: {', '.join(unknown)}{near}")
        return cls(**values)
