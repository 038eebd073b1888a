"""Run a function as a program: signals, exit statuses, errors in one line."""

import os
import signal
import sys

from train.distributed import processes
from train.errors import Stopped, UserError


def run_command(body, team=processes.ALONE):
    """Call body(caught) as a program; returns the exit status.

    caught collects the numbers of SIGTERM and SIGINT: whoever trains looks at it, saves and raises Stopped.
    """
    caught = []
    handlers = {
        s: signal.signal(s, lambda number, _: caught.append(number))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        body(caught)
        return 0
    except UserError as error:
        if team.first:
            print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        if team.first:
            print(
                f"\nstopped by {signal.Signals(caught[0]).name}: {stop}. The same command goes on from there.",
                file=sys.stderr,
            )
        team.shutdown()
        _leave(128 + caught[0])
    except Exception:
        team.abandon()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(status):
    """End now: a normal exit would wait for the epoch that the device is still working on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
