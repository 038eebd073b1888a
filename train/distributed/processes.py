"""A run of several processes: how they find each other, and what they tell each other. One process needs no JAX for it."""

import os
import pickle
import sys
import traceback

import numpy as np

from train.errors import UserError


def start(config):
    """The processes of this run, as this one sees them: Several if config.distributed, else Alone.

    Must come before anything that uses JAX. UserError if the processes cannot be found.
    """
    if not config.distributed:
        return ALONE
    import jax

    try:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes did not come together: {error} Outside Slurm, Open MPI and TPU pods, --distributed needs "
            "--coordinator HOST:PORT, --processes N and --process I in 0 ... N - 1"
        ) from error
    return Several()


class Alone:
    """The only process of a run; and the methods that a run is written in, whatever the number of its processes."""

    count, first = 1, True  # first: the one process that decides, prints and writes

    def gather(self, value):
        """The values of all processes, in their order, in every process."""
        return [value]

    def broadcast_from_first(self, function):
        """What function() returns in the first process, in every process; it is called in no other. UserError if it fails."""
        return self.together(function)

    def together(self, function):
        """What function() returns here, if it succeeds in every process; else UserError in every process."""
        result, error = _outcome(function)
        if error:
            raise UserError(error)
        return result

    def shutdown(self):
        """Wait until every process is here; they are strangers then, and may end at different times."""

    def abandon(self):
        """For a process that failed by itself."""


ALONE = Alone()


class Several(Alone):
    """A process among those that jax.distributed brought together. All of them call the same methods in the same order."""

    def __init__(self):
        import jax

        self.count, self.first = jax.process_count(), jax.process_index() == 0

    def gather(self, value):
        from jax.experimental import multihost_utils

        sent = _bytes(value)
        lengths = multihost_utils.process_allgather(_length(sent)).ravel()
        rows = multihost_utils.process_allgather(_padded(sent, lengths.max()))
        return [_value(row[:length]) for row, length in zip(rows, lengths, strict=True)]

    def broadcast_from_first(self, function):
        from jax.experimental import multihost_utils

        sent = _bytes(_outcome(function) if self.first else None)
        length = multihost_utils.broadcast_one_to_all(_length(sent))
        sent = sent if self.first else _padded(sent[:0], length)
        result, error = _value(multihost_utils.broadcast_one_to_all(sent))
        if error:
            raise UserError(error)
        return result

    def together(self, function):
        result, error = _outcome(function)
        for index, other in enumerate(self.gather(error)):
            if other:
                raise UserError(f"process {index} of {self.count}: {other}")
        return result

    def shutdown(self):
        import jax

        jax.distributed.shutdown()

    def abandon(self):
        """End now: a normal exit would wait for the others, and these, in the middle of an exchange, for this one."""
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _outcome(function):
    """(what it returns, None) or (None, the text of an error that the user can mend)."""
    try:
        return function(), None
    except (ValueError, OSError, ImportError) as error:
        return None, str(error) or type(error).__name__


# Values travel as pickled bytes: as arrays, JAX would make float32 of their float64.
def _bytes(value):
    return np.frombuffer(pickle.dumps(value), np.uint8)


def _value(array):
    return pickle.loads(array.tobytes())


def _length(array):
    return np.int32(len(array))


def _padded(array, length):
    return np.pad(array, (0, int(length) - len(array)))
