"""Text files, written whole or not at all, and read with errors that name them."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Errors of writing, such as a full disk, name the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"cannot write {path}: {reason}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write beside and rename: whoever reads finds the old text or the new one."""
    beside = Path(f"{path}.new")
    with writing(path):
        try:
            with open(beside, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise


def append_text(path: str | Path, text: str) -> None:
    """Add the text to the end of a file."""
    with writing(path), open(path, "a") as file:
        file.write(text)


def write_json(path: str | Path, value) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path):
    """The value in a .json file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it, or delete it and train again"
        ) from error


def read_lines(path: str | Path) -> list[dict]:
    """The values in a .jsonl file, none where there is no file.

    A last line that was cut off while it was written is left out.

    Raises:
        ValueError: another line is damaged.
    """
    if not Path(path).exists():
        return []
    values = []
    with open(path, errors="replace") as file:
        lines = file.read().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            values.append(_object(line))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged in line {number} ({error}); the same training "
                "command writes it again from the run's checkpoints"
            ) from error
    return values


def _object(line: str) -> dict:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value
