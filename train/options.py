"""What an option of a training run is: its default, meaning and limits."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable

# JAX makes a key of 32 bits; a larger seed would repeat a smaller one's numbers.
SEEDS = 2**32


@dataclasses.dataclass(frozen=True)
class Limit:
    """The values an option may take; ``text`` completes "must be ..."."""

    text: str
    holds: Callable[[typing.Any], bool]


POSITIVE = Limit("positive", lambda v: v > 0)
AT_LEAST_0 = Limit("at least 0", lambda v: v >= 0)
AT_LEAST_1 = Limit("at least 1", lambda v: v >= 1)
SHARE = Limit("in [0, 1]", lambda v: 0 <= v <= 1)
POSITIVE_SHARE = Limit("in (0, 1]", lambda v: 0 < v <= 1)
BELOW_1 = Limit("in [0, 1)", lambda v: 0 <= v < 1)
LESS_THAN_1 = Limit("below 1", lambda v: v < 1)
A_SEED = Limit("in 0..2^32 - 1", lambda v: 0 <= v < SEEDS)
NOT_EMPTY = Limit("a name, and not empty", lambda v: v.strip() != "")


def names_of(options: typing.Any, **metadata: typing.Any) -> list[str]:
    """The options of a dataclass whose metadata have these values."""
    return [
        field.name
        for field in dataclasses.fields(options)
        if all(field.metadata[key] == value for key, value in metadata.items())
    ]


def option(
    group: str,
    default,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    limit: Limit | None = None,
    changes_results: bool = True,
    compiled: bool = False,
    per_process: bool = False,
):
    """A field of `Config`.

    Args:
        group: heading under which --help shows it.
        choices, limit: the values it may have.
        changes_results: a run can be resumed only with the same value.
        compiled: compiled functions depend on its value.
        per_process: processes of one run may have different values.
    """
    metadata = {
        "group": group,
        "help": help,
        "choices": choices,
        "limit": limit,
        "changes_results": changes_results,
        "compiled": compiled,
        "per_process": per_process,
    }
    return dataclasses.field(default=default, metadata=metadata)


def value_type(field: dataclasses.Field) -> tuple[type, bool]:
    """The type of an option's value, and whether it may be None."""
    if isinstance(field.type, types.UnionType):
        kinds = typing.get_args(field.type)
        return next(k for k in kinds if k is not type(None)), True
    return typing.cast(type, field.type), False


def check_field(field: dataclasses.Field, value) -> None:
    """ValueError if the value of this one option is wrong, whatever the others are."""
    kind, optional = value_type(field)
    if value is None and optional:
        return
    good = isinstance(value, (int, float) if kind is float else kind)
    if not good or (isinstance(value, bool) and kind is not bool):
        raise ValueError(
            f"{field.name} must be of type {kind.__name__}"
            f"{' or None' if optional else ''}, not {value!r}"
        )
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{field.name} must be finite, not {value}")
    choices, limit = field.metadata["choices"], field.metadata["limit"]
    if choices and value not in choices:
        raise ValueError(
            f"{field.name} must be one of {', '.join(choices)}, not "
            f"{value!r}{did_you_mean(value, choices)}"
        )
    if limit and not limit.holds(value):
        raise ValueError(f"{field.name} must be {limit.text}, not {value!r}")


def did_you_mean(value: str, known) -> str:
    near = difflib.get_close_matches(value, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
