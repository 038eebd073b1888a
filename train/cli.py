"""The command `python -m train`: train, resume, or show the results of a finished run."""

import sys

from train import config as configs
from train.command import run_command
from train.distributed import processes
from train.errors import UserError
from train.runs import summary
from train.runs.folder import read_json
from train.runs.session import complete


def main(arguments=None):
    """Run the command line; returns the exit status: 0, 1 after an error, 128 + the signal when stopped by one."""
    config = configs.parse(arguments).resolved()
    try:
        team = processes.start(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    def body(caught):
        say = (
            (lambda text: print(text, flush=True))
            if team.first and not config.quiet
            else (lambda _: None)
        )
        already = lambda path: print(
            f"This run is finished already; delete {path} to train it again.\n"
        )
        folder = complete(config, caught, say, already, team)
        if team.first:
            _show(folder)

    return run_command(body, team)


def _show(folder):
    found = read_json(folder / "summary.json")
    print(summary.table(found["results"], found["parameters"]))
    print(summary.footnote(found["results"]))
    print(
        f"in {folder.path}: summary.json, metrics.jsonl, seconds.jsonl, config.json, {found['picture']}, checkpoints/"
    )
