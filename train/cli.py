"""The command `python -m train` and its subcommands."""

import argparse
import dataclasses
import importlib.metadata
import sys
from pathlib import Path

from train import sweep
from train.command import run_command
from train.config import Config
from train.distributed import processes
from train.errors import UserError
from train.options import did_you_mean, value_type
from train.runs import summary
from train.runs.folder import RunFolder, read_config, read_json
from train.runs.progress import Bar, Lines
from train.runs.session import complete

PROG = "python -m train"
HEADINGS = {
    "data": "data",
    "model": "model",
    "solver": "solver of the implicit layers",
    "training": "training",
    "run": "run",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    It is 0; 1 after an error; 2 for wrong options; 128 + the signal that stopped it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["experiments"]:
        return _experiments(arguments[1:])
    first = arguments[0] if arguments else "--"
    if first.startswith("-") and first not in ("-h", "--help", "--version"):
        arguments = ["train", *arguments]
    command_line = parser()
    options, unknown = command_line.parse_known_args(arguments)
    if unknown:
        fields = dataclasses.fields(Config) if options.command == "train" else ()
        known = [_flag(field) for field in fields]
        near = did_you_mean(unknown[0].partition("=")[0], known)
        command_line.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
    return options.function(options)


def parser() -> argparse.ArgumentParser:
    """The command line: an option for every field of Config, and the subcommands."""
    top = argparse.ArgumentParser(
        prog=PROG,
        allow_abbrev=False,
        description="Train ensembles of IBNN networks and of standard networks, and "
        "look at what was trained. Options without a subcommand are those of train.",
    )
    top.add_argument("--version", action="version", version=f"ibnn_jax {_version()}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_train(commands)
    _add_shows(commands)
    _add_predict(commands)
    commands.add_parser(
        "experiments", help="run an experiment of the paper", add_help=False
    )
    return top


def _command(commands, name: str, function, help: str) -> argparse.ArgumentParser:
    """A subcommand, which function(its options) runs."""
    description = f"{help[0].upper()}{help[1:]}."
    command = commands.add_parser(
        name, help=help, description=description, allow_abbrev=False
    )
    command.set_defaults(function=function, parser=command)
    return command


def _add_train(commands) -> None:
    command = _command(
        commands,
        "train",
        _train,
        "train, resume, or show the results of a finished run",
    )
    command.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of options, or config.json of an earlier run; options given "
        "here come first. Lists in it make the product of runs",
    )
    command.add_argument(
        "--part", metavar="I/N", help="of such a product, every N-th run from the I-th"
    )
    groups = {name: command.add_argument_group(text) for name, text in HEADINGS.items()}
    for field in dataclasses.fields(Config):
        kind, _ = value_type(field)
        choices = field.metadata["choices"]
        shown = "" if field.default is None else f" (default: {field.default})"
        extra = {"help": (field.metadata["help"] + shown).replace("%", "%%")}
        if kind is bool:
            extra["action"] = argparse.BooleanOptionalAction
        else:
            extra |= {"type": kind, "choices": choices}
            extra["metavar"] = None if choices else kind.__name__.upper()
        groups[field.metadata["group"]].add_argument(
            _flag(field), default=argparse.SUPPRESS, **extra
        )


def _flag(field: dataclasses.Field) -> str:
    """The option of a field of Config."""
    return "--" + field.name.replace("_", "-")


def _add_shows(commands) -> None:
    table = _command(
        commands, "records", _records, "print the table of finished or unfinished runs"
    )
    run = "folder of a run, or of a sweep's runs"
    table.add_argument("runs", nargs="+", metavar="RUN", help=run)
    curves = _command(commands, "plots", _plots, "draw the curves of runs")
    curves.add_argument("runs", nargs="+", metavar="RUN", help=run)
    curves.add_argument(
        "--out", help="picture to write; default: curves.png in the first run"
    )


def _add_predict(commands) -> None:
    command = _command(
        commands, "predict", _predict, "classify images by the networks of a run"
    )
    command.add_argument("run", metavar="RUN", help="folder of a run")
    command.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="pictures, or .npz files with an array `images` [N, H, W, C]",
    )
    command.add_argument(
        "--model",
        choices=("sm", "ibnn", "nemon"),
        help="which networks; default: ibnn where the run has them",
    )
    command.add_argument("--out", help=".csv file to write the whole table to")


def runs_of(options: dict) -> list[Config]:
    """The resolved runs that the options of `train` ask for.

    Raises:
        ValueError: they are wrong, or there is no such --config file.
    """
    values = dict(options)
    file, part = values.pop("config", None), values.pop("part", None)
    try:
        from_file = sweep.read_options(file) if file else {}
        runs = sweep.expand(from_file | values)
    except OSError as error:
        raise ValueError(str(error)) from error
    return sweep.take_part(runs, part) if part else runs


def parse(arguments: list[str]) -> list[Config]:
    """The resolved runs of a command line of `train`.

    A wrong option ends the program with a message that says what would be right.
    """
    options = parser().parse_args(["train", *arguments])
    return _parsed(options)


def _parsed(options: argparse.Namespace) -> list[Config]:
    values = vars(options).copy()
    for name in ("function", "parser", "command"):
        values.pop(name, None)
    try:
        return runs_of(values)
    except ValueError as error:
        options.parser.error(str(error))


def _train(options: argparse.Namespace) -> int:
    runs = _parsed(options)
    if not runs:
        print("this part of the sweep has no run")
        return 0
    try:
        team = processes.start(runs[0])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if len(runs) == 1:
        return run_command(lambda caught: _train_one(runs[0], caught, team), team)
    return run_command(lambda caught: _train_all(runs, caught, team), team)


def _train_one(config: Config, caught: list[int], team: processes.Alone) -> None:
    folder = complete(config, caught, progress=_progress(config), team=team)
    if team.first:
        print(results(folder))


def _train_all(runs: list[Config], caught: list[int], team: processes.Alone) -> None:
    """Train the runs of a sweep one after the other, then print a table of all.

    A run that fails does not keep the others from being trained.
    """
    from train.engine import compile_cache

    failed = []
    for number, config in enumerate(runs, 1):
        if team.first:
            print(f"run {number} of {len(runs)}: {config.out}", flush=True)
        try:
            complete(config, caught, progress=_progress(config), team=team)
        except UserError as error:
            failed.append(f"{config.out}: {error}")
        compile_cache.release()
    begun = [run.out for run in runs if Path(run.out, "metrics.jsonl").exists()]
    if team.first and begun:
        print(processes.ALONE.together(lambda: summary.show(begun)))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}"
        )


def _progress(config: Config) -> Lines:
    if config.quiet:
        return Lines(lambda text: None)
    if sys.stdout.isatty() and sys.stderr.isatty():
        return Bar()
    return Lines(lambda text: print(text, flush=True))


def results(folder: RunFolder) -> str:
    """What is printed at the end of a run: the table, and where everything is."""
    text = processes.ALONE.together(lambda: summary.show([folder.path]))
    names = [path.name for path in folder.path.iterdir()]
    kept = ", ".join(sorted(name for name in names if not name.startswith(".")))
    return f"{text}\nin {folder.path}: {kept}"


def _records(options: argparse.Namespace) -> int:
    together = processes.ALONE.together
    return run_command(
        lambda caught: print(together(lambda: summary.show(options.runs)))
    )


def _plots(options: argparse.Namespace) -> int:
    def draw() -> Path:
        from train.runs.plots import curves

        return curves(options.runs, options.out or Path(options.runs[0], "curves.png"))

    return run_command(lambda caught: print(processes.ALONE.together(draw)))


def _predict(options: argparse.Namespace) -> int:
    def classify() -> str:
        from train.runs import load, predict

        config = read_config(options.run)
        model = options.model or ("ibnn" if config.model == "both" else None)
        ensemble = load(options.run, model)
        shape = read_json(Path(options.run, "setup.json"))["data"]["image_shape"]
        names, images = predict.read_images(options.images, tuple(shape))
        probabilities = predict.predict(ensemble, images)
        table = predict.rows(names, probabilities, config.first_seed)
        if options.out:
            predict.write_csv(options.out, table)
        return predict.as_text(table)

    return run_command(lambda caught: print(processes.ALONE.together(classify)))


def _experiments(arguments: list[str]) -> int:
    try:
        from train.experiments.harness.main import main as experiments
    except ImportError as error:
        print(
            f"error: experiments need {error.name}: pip install -e '.[train]'",
            file=sys.stderr,
        )
        return 1
    return experiments(arguments)


def _version() -> str:
    try:
        return importlib.metadata.version("ibnn_jax")
    except importlib.metadata.PackageNotFoundError:
        return "(from a checkout)"
