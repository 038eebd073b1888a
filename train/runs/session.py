"""A training session: everything between the options and a finished run folder."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from train.config import Config
from train.distributed import processes
from train.errors import UserError
from train.runs import summary as summaries
from train.runs.folder import RunFolder, read, read_json, write_json
from train.runs.progress import Lines
from train.runs.trackers import TRACKERS, Guarded

if TYPE_CHECKING:
    from train.data import Dataset
    from train.engine.loop import Snapshot
    from train.runs.checkpoint import Checkpoints

# What training imports beside ibnn_jax's own dependencies.
PACKAGES = ("matplotlib", "orbax.checkpoint", "scipy")
DATA_PACKAGES = {"digits": "sklearn", "npz": "numpy"}  # others: tensorflow_datasets


def complete(
    config: Config,
    caught: list[int] | None = None,
    say: Callable[[str], None] | None = None,
    *,
    progress: Lines | None = None,
    team: processes.Alone = processes.ALONE,
) -> RunFolder:
    """Train what a resolved config describes, or what is missing of it.

    Args:
        caught: numbers of the signals that ask to stop, filled from outside.
        say: gets a line for every epoch; or progress, which shows them otherwise.

    Returns:
        The finished folder.

    Raises:
        UserError: it cannot be trained.
        Stopped: a signal asked to stop.
    """
    progress = progress or Lines(say or (lambda text: None))
    return Session(config, [] if caught is None else caught, progress, team).complete()


class Session:
    """One run, its folder, the processes that share it, and what is told of it."""

    def __init__(
        self,
        config: Config,
        caught: list[int],
        progress: Lines,
        team: processes.Alone = processes.ALONE,
    ):
        self.config, self.caught, self.team = config, caught, team
        # The first process speaks for all.
        self.progress = progress if team.first else Lines(lambda text: None)
        self.folder = RunFolder(config)
        self.tracker = Guarded(TRACKERS[config.tracker](), self.progress.note)

    def complete(self) -> RunFolder:
        """Train, resume, or do nothing if it is all there; the finished folder."""
        self._check_options()
        if self.team.broadcast_from_first(self.folder.finished):
            self.progress.note(
                f"This run is finished already; delete {self.folder.path} to train it "
                "again.\n"
            )
            return self.folder
        begun = self.team.broadcast_from_first((self.folder / "config.json").exists)
        # Data that is missing leaves no folder behind, nor does a network that fails.
        dataset = None if begun else self._load_data()
        with contextlib.ExitStack() as stack:

            def hold() -> None:
                stack.enter_context(self.folder.held())

            self.team.broadcast_from_first(hold)
            self._train(dataset or self._load_data())
        return self.folder

    def _check_options(self) -> None:
        """Processes of one run must be started alike."""
        configs = self.team.gather(self.config)
        for index, config in enumerate(configs):
            names = configs[0].differences(config, between="processes")
            if names:
                differ = "; ".join(
                    f"{n} is {getattr(configs[0], n)!r} and {getattr(config, n)!r}"
                    for n in names
                )
                raise UserError(
                    f"processes 0 and {index} were started with different options: "
                    f"{differ}"
                )

    def _check_packages(self) -> None:
        """ImportError with the remedy if a package is missing that training needs."""
        kind = "npz" if self.config.dataset.endswith(".npz") else self.config.dataset
        check_packages(*PACKAGES, DATA_PACKAGES.get(kind, "tensorflow_datasets"))

    def _load_data(self) -> "Dataset":
        """The data set, the same in every process; the devices can take the seeds."""
        self.team.together(self._check_packages)
        import jax  # late: an error in the options, or a finished run, needs no JAX

        from train.data import prepare
        from train.distributed.sharding import make_mesh
        from train.engine import compile_cache
        from train.engine.loop import batch_size, parameters

        compile_cache.enable(self.config.compile_cache)
        if self.config.x64:
            jax.config.update("jax_enable_x64", True)

        def load() -> "Dataset":
            config = self.config
            # Refused before the data is read.
            make_mesh(config.seeds, config.devices, config.data_devices)
            dataset = prepare(config)
            config.check_window(dataset.image_shape[:2])
            batch_size(config, dataset)
            for model in self.config.models:
                parameters(config, dataset, model)  # builds the network
            return dataset

        dataset = self.team.together(load)
        if len(set(self.team.gather(dataset.fingerprint()))) > 1:
            raise UserError(
                "the processes do not all find the same images in "
                f"{self.config.dataset}"
            )
        return dataset

    def _train(self, dataset: "Dataset") -> None:
        """Train every model that is not finished, then write the results."""
        setup = self._set_up(dataset)
        with contextlib.ExitStack() as stack:
            saved = self.team.together(lambda: self._open_checkpoints(stack))
            snapshots = self._restore(dataset, saved)
            self.team.broadcast_from_first(lambda: self._begin(setup, snapshots))
            if self.team.first:  # it alone has started the tracker
                stack.callback(self.tracker.finish)
            for model in self.config.models:
                snapshot = self._train_model(
                    model, dataset, snapshots.get(model), saved.get(model)
                )
                snapshots[model] = snapshot
        self.team.broadcast_from_first(lambda: self._write_results(snapshots))

    def _set_up(self, dataset: "Dataset") -> dict:
        """What setup.json holds; checks that the data is still what it was."""
        import jax

        from train.engine.loop import parameters

        counts = {m: parameters(self.config, dataset, m) for m in self.config.models}
        setup = {"data": describe_data(dataset), "parameters": counts} | environment()
        self.team.broadcast_from_first(lambda: self.folder.check_data(setup))
        count = self.team.count
        parts = [f"{len(dataset.train_labels):,} training"]
        if dataset.has_validation:
            parts.append(f"{len(dataset.val_labels):,} validation")
        shape = "x".join(map(str, dataset.image_shape))
        self.progress.note(
            f"{dataset.name}: {', '.join(parts)} and {len(dataset.test_labels):,} test "
            f"images {shape}; {self.config.network}, "
            f"{self.config.seeds} seeds, on {jax.devices()[0].device_kind}"
            f"{f', {count} processes' if count > 1 else ''}; "
            f"results in {self.folder.path}"
        )
        return setup

    def _open_checkpoints(
        self, stack: contextlib.ExitStack
    ) -> "dict[str, Checkpoints]":
        """The checkpoints of each model, in the first process."""
        from train.runs.checkpoint import Checkpoints

        if not self.team.first:
            return {}
        return {
            model: stack.enter_context(Checkpoints(self.folder / "checkpoints" / model))
            for model in self.config.models
        }

    def _restore(
        self, dataset: "Dataset", saved: "dict[str, Checkpoints]"
    ) -> "dict[str, Snapshot]":
        """The snapshots on disk, every one read before anything is written."""
        from train.distributed.sharding import make_mesh
        from train.engine.loop import blank
        from train.engine.program import build
        from train.runs.checkpoint import restored

        mesh = make_mesh(
            self.config.seeds, self.config.devices, self.config.data_devices
        )
        snapshots = {}
        for model in self.config.models:
            arrays = self.team.broadcast_from_first(lambda m=model: saved[m].arrays())
            if arrays is None:
                break  # what comes after a model that has not begun is begun again
            shape, classes = dataset.image_shape, dataset.classes
            program = build(self.config, shape, classes, model != "sm", mesh)
            config = dataclasses.replace(self.config, model=model)
            template = blank(config, program, dataset.has_validation)
            snapshots[model] = self.team.together(
                lambda a=arrays, t=template: restored(a, t)
            )
        return snapshots

    def _begin(self, setup: dict, snapshots: "dict[str, Snapshot]") -> None:
        self.folder.begin(setup, snapshots)
        self.tracker.start(self.folder.path, dataclasses.asdict(self.config))

    def _train_model(
        self,
        model: str,
        dataset: "Dataset",
        last: "Snapshot | None",
        saved: "Checkpoints | None",
    ) -> "Snapshot":
        from train.engine import loop
        from train.engine.program import build
        from train.runs.model_run import ModelRun, Services
        from train.runs.networks import save_networks

        config = dataclasses.replace(self.config, model=model)
        services = Services(
            self.team, self.folder, self.tracker, self.progress, self.caught
        )
        run = ModelRun(services, config, last, saved)
        try:
            snapshot = loop.train(config, dataset, run)
        except (loop.NonFiniteLoss, ValueError) as error:
            raise UserError(error) from error
        finally:
            self.progress.finish()
        run.finish()
        shape, classes = dataset.image_shape, dataset.classes
        program = build(config, shape, classes, model != "sm")
        self.team.broadcast_from_first(lambda: save_networks(config, program, snapshot))
        return snapshot

    def _write_results(self, snapshots: "dict[str, Snapshot]") -> None:
        from train.runs import plots
        from train.runs.report import write_report

        self.folder.rewrite(snapshots)
        picture = plots.curves([self.folder.path], self.folder / "curves.png")
        write_report(self.folder.path, picture.name)
        runs = read(self.folder.path)
        results = {"results": summaries.summarize(runs), "picture": picture.name}
        differences = {
            model: summaries.paired_difference(runs[model], runs["sm"])
            for model in runs
            if model != "sm" and "sm" in runs
        }
        if differences:
            results["differences_to_sm"] = differences
        setup = read_json(self.folder / "setup.json")
        write_json(self.folder / "summary.json", results | setup)


def describe_data(dataset: "Dataset") -> dict:
    return {
        "name": dataset.name,
        "classes": dataset.classes,
        "image_shape": list(dataset.image_shape),
        "train_images": len(dataset.train_labels),
        "test_images": len(dataset.test_labels),
        "val_images": len(dataset.val_labels),
        "fingerprint": dataset.fingerprint(),
    }


def environment() -> dict:
    """Versions of what a result depends on, and the devices."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "versions": {"python": platform.python_version()} | versions,
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def check_packages(*names: str) -> None:
    """Raise ImportError with the remedy if one of these packages is missing."""
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise ImportError(
            f"training needs {', '.join(missing)}, not installed here: "
            "pip install -e '.[train]' in the checkout of ibnn_jax"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
