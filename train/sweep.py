"""Runs from a file of options: one, or the product of the options that are lists."""

import hashlib
import itertools
import json
import tomllib
from pathlib import Path

from train.config import GROUPS, Config
from train.options import names_of
from train.runs.files import read_json


def read_options(path: str | Path) -> dict:
    """The options in a TOML file, or in the config.json of an earlier run.

    A TOML file may put them under the headings of --help, and write - for _.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".json":
        values = read_json(path)
    else:
        try:
            values = tomllib.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no TOML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no options")
    flat = {}
    for name, value in values.items():
        options = {name: value}
        if name in GROUPS and isinstance(value, dict):
            options = value
        for name, value in options.items():
            name = name.replace("-", "_")
            if name in flat:
                raise ValueError(f"{path} gives {name} twice")
            flat[name] = value
    return flat


def expand(values: dict) -> list[Config]:
    """The resolved runs that these options describe.

    Options that are lists make every combination; each run has a folder named after
    its own within --out.

    Raises:
        ValueError: a combination is no run.
    """
    lists = {name: v for name, v in values.items() if isinstance(v, list)}
    if not lists:
        return [Config.from_dict(values).resolved()]
    for name, choices in lists.items():
        if not choices:
            raise ValueError(f"{name} is an empty list: there is no run")
    base = Path(values.get("out") or f"runs/sweep-{_digest(values)}")
    runs = []
    for combination in itertools.product(*lists.values()):
        chosen = dict(zip(lists, combination, strict=True))
        name = ",".join(f"{k}={v}" for k, v in chosen.items()).replace("/", "_")
        config = Config.from_dict(values | chosen | {"out": str(base / name)})
        runs.append(config.resolved())
    if len({run.out for run in runs}) < len(runs):
        raise ValueError("two runs of the sweep are the same: a value is listed twice")
    return runs


def _digest(values: dict) -> str:
    """Of the options that change results: the others find the same folder again."""
    ignored = names_of(Config, changes_results=False)
    kept = {name: value for name, value in values.items() if name not in ignored}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def take_part(runs: list[Config], part: str) -> list[Config]:
    """Every n-th run from the i-th on; part is "i/n", i from 1 to n.

    Raises:
        ValueError: it is not.
    """
    first, _, count = part.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise ValueError(f"part must be I/N with I from 1 to N, not {part!r}")
    return runs[int(first) - 1 :: int(count)]
