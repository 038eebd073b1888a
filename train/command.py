"""Run a function as a program: signals, exit statuses, errors in one line."""

import os
import signal
import sys
from collections.abc import Callable

from train.distributed import processes
from train.errors import Stopped, UserError


def run_command(
    body: Callable[[list[int]], object], team: processes.Alone = processes.ALONE
) -> int:
    """Call body(caught) as a program.

    caught collects the numbers of SIGTERM and SIGINT: whoever trains looks at it, saves
    and raises Stopped.

    Returns:
        The exit status: 0, or 1 after an error that the user can correct. A run stopped
        by a signal ends the process with 128 + its number.
    """
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        body(caught)
        return 0
    except UserError as error:
        if team.first:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read the output has enough of it; nothing more can be printed.
        sys.stdout = open(os.devnull, "w")
        return 1
    except Stopped as stop:
        if team.first:
            name = signal.Signals(caught[0]).name
            print(
                f"\nstopped by {name}: {stop}. The same command goes on from there.",
                file=sys.stderr,
            )
        team.shutdown()
        _end_now(128 + caught[0])
        raise
    except Exception:
        team.abandon()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_now(status: int) -> None:
    """A normal exit would wait for the epoch that the device is still working on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
