"""A run of several processes: how they find each other, and what they exchange.

A run of one process needs no JAX for it.
"""

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from train.config import Config
from train.errors import UserError

T = TypeVar("T")


def start(config: Config) -> "Alone":
    """The processes of this run: `Several` if config.distributed, else `Alone`.

    Must come before anything that uses JAX.

    Raises:
        UserError: the processes cannot be found.
    """
    if not config.distributed:
        return ALONE
    import jax

    try:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes did not come together: {error} Outside Slurm, Open MPI and "
            "TPU pods, --distributed needs --coordinator HOST:PORT, --processes N and "
            "--process I in 0 ... N - 1"
        ) from error
    return Several()


class Alone:
    """The only process of a run.

    Its methods are those that a run is written in, whatever the number of processes.
    """

    count = 1
    first = True  # the one process that decides, prints and writes

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order, in every process."""
        return [value]

    def broadcast_from_first(self, function: Callable[[], T]) -> T:
        """What function() returns in the first process, in every process.

        Raises:
            UserError: it failed; in every process.
        """
        return self.together(function)

    def together(self, function: Callable[[], T]) -> T:
        """What function() returns here, if it succeeds in every process.

        Raises:
            UserError: it failed in one; in every process.
        """
        result, error = _outcome(function)
        if error:
            raise UserError(error)
        return result

    def shutdown(self) -> None:
        """Wait until every process is here; then each may end when it likes."""

    def abandon(self) -> None:
        """For a process that failed by itself."""


ALONE = Alone()


class Several(Alone):
    """One of the processes that jax.distributed brought together.

    All of them call the same methods in the same order.
    """

    def __init__(self):
        import jax

        self.count, self.first = jax.process_count(), jax.process_index() == 0

    def gather(self, value: T) -> list[T]:
        from jax.experimental import multihost_utils

        sent = _to_bytes(value)
        lengths = multihost_utils.process_allgather(_length(sent)).ravel()
        rows = multihost_utils.process_allgather(_padded(sent, lengths.max()))
        return [
            _from_bytes(row[:length]) for row, length in zip(rows, lengths, strict=True)
        ]

    def broadcast_from_first(self, function: Callable[[], T]) -> T:
        from jax.experimental import multihost_utils

        sent = _to_bytes(_outcome(function) if self.first else None)
        length = multihost_utils.broadcast_one_to_all(_length(sent))
        sent = sent if self.first else _padded(sent[:0], length)
        result, error = _from_bytes(multihost_utils.broadcast_one_to_all(sent))
        if error:
            raise UserError(error)
        return result

    def together(self, function: Callable[[], T]) -> T:
        result, error = _outcome(function)
        for index, other in enumerate(self.gather(error)):
            if other:
                raise UserError(f"process {index} of {self.count}: {other}")
        return result

    def shutdown(self) -> None:
        import jax

        jax.distributed.shutdown()

    def abandon(self) -> None:
        """End now.

        A normal exit would wait for the others, and these, in the middle of an
        exchange, for this one.
        """
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _outcome(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """(what it returns, None), or (None, the text of an error the user can correct)."""
    try:
        return function(), None
    except (UserError, ValueError, OSError, ImportError) as error:
        return None, str(error) or type(error).__name__


# Values travel as pickled bytes: as arrays, JAX would make float32 of their float64.
def _to_bytes(value) -> np.ndarray:
    return np.frombuffer(pickle.dumps(value), np.uint8)


def _from_bytes(array) -> Any:
    return pickle.loads(np.asarray(array).tobytes())


def _length(array: np.ndarray) -> np.int32:
    return np.int32(len(array))


def _padded(array: np.ndarray, length) -> np.ndarray:
    return np.pad(array, (0, int(length) - len(array)))
