"""The command `python -m train`: train, resume or, if it is all there already, show the results of a run."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import signal
import sys
import time

from train import config as configs
from train import records


class Stopped(BaseException):
    """A signal asked the run to stop; what was finished is saved."""


class Refused(Exception):
    """The user's to mend: it is shown without a traceback."""


@contextlib.contextmanager
def refusing(*kinds):
    """Errors of these kinds are the user's to mend here."""
    try:
        yield
    except kinds as error:
        raise Refused(error) from error


def main(arguments=None):
    """Run the command line; returns the exit status: 0, 1 after an error, 128 + the signal when stopped by one."""
    config = configs.parse(arguments).resolved()

    def body(caught):
        say = (lambda *_: None) if config.quiet else (lambda text: print(text, flush=True))
        _show(complete(config, caught, say, lambda path: print(f"This run is finished already; delete {path} to train it again.\n")))

    return command(body)


def command(body):
    """Call body(caught) as a program; returns the exit status.

    caught collects the numbers of SIGTERM and SIGINT: whoever trains looks at it, saves and raises Stopped.
    """
    caught = []
    handlers = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        body(caught)
        return 0
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(f"\nstopped by {signal.Signals(caught[0]).name}: {stop}. The same command goes on from there.", file=sys.stderr)
        _leave(128 + caught[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def complete(config, caught, say, already=lambda path: None):
    """Train what a resolved config describes, or what is missing of it; returns its RunFolder, finished.

    say(text) is told of the progress, already(path) that there was nothing to do. Raises Refused, Stopped.
    """
    folder = records.RunFolder(config)
    with contextlib.ExitStack() as stack:
        with refusing(ValueError, OSError):
            stack.enter_context(folder.held())
        if folder.finished():
            already(folder.path)
        else:
            _run(config, folder, caught, say)
    return folder


def _leave(status):
    """End now: a normal exit would wait for the epoch that the device is still working on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(config, folder, caught, say):
    import jax  # late: an error in the options, or a finished run, needs no JAX

    if config.x64:
        jax.config.update("jax_enable_x64", True)
    from train import loop, plots

    models = ("sm", "ibnn") if config.model == "both" else (config.model,)
    with refusing(ValueError, OSError, ImportError):
        dataset = loop.prepare(config)
        counts = {model: loop.parameters(config, dataset, model) for model in models}
        folder.check_setup(_setup(config, dataset, counts))
    say(f"{dataset.name}: {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images "
        f"{'x'.join(map(str, dataset.image_shape))}; UCN({config.layers},{config.channels}), {config.seeds} seeds, on "
        f"{jax.devices()[0].device_kind}; results in {folder.path}")

    snapshots = {}
    for model in models:
        snapshots[model] = _train(dataclasses.replace(config, model=model), dataset, folder, snapshots, caught, say)

    folder.rewrite(snapshots)
    picture = plots.curves([folder.path], folder / "curves.png")
    results = records.summarize(records.read(folder.path))
    records.write_json(folder / "summary.json", {"results": results, "picture": picture.name} | records.read_json(folder / "setup.json"))


def _train(config, dataset, folder, before, caught, say):
    """Train one model, from its checkpoint if there is one; before: {model: Snapshot} of those that are finished."""
    from train import checkpoint, loop

    model, last, saved_at = config.model, None, time.monotonic()
    with checkpoint.Checkpoints(folder / "checkpoints" / model) as saved, refusing(loop.NonFiniteLoss):

        def resume(template):
            nonlocal last
            last = saved.restore(template)
            folder.rewrite(before | ({model: last} if last else {}))  # drops lines of epochs that no checkpoint holds
            if last:
                say(f"{model}: going on after epoch {last.epoch} of {config.epochs}")
            return last

        def on_epoch(snapshot):
            nonlocal last, saved_at
            last = snapshot
            folder.append(model, snapshot)
            say(_progress(config, model, snapshot))
            if time.monotonic() - saved_at >= config.checkpoint_seconds:
                saved.save(snapshot)
                saved_at = time.monotonic()
            poll()

        def poll():
            if caught:
                if last is not None:
                    saved.save(last)
                raise Stopped(f"{model}, {saved.epoch or 0} of {config.epochs} epochs are saved in {folder.path}")

        snapshot = loop.train(config, dataset, resume=resume, on_epoch=on_epoch, poll=poll)
        saved.save(snapshot)
    return snapshot


def _setup(config, dataset, parameters):
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "data": {
            "name": dataset.name, "classes": dataset.classes, "image_shape": list(dataset.image_shape),
            "train_images": len(dataset.train_labels), "test_images": len(dataset.test_labels), "fingerprint": dataset.fingerprint(),
        },
        "parameters": parameters,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages},
        "device": {"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind, "count": jax.device_count()},
    }


def _progress(config, model, snapshot):
    """One line: where the run is, medians over the seeds, and the time left for this model."""
    done = snapshot.epoch
    now = {name: values[:, done - 1] for name, values in snapshot.history.items()}
    middle, low, high = (100 * v for v in records.spread(now["test_accuracy"]))
    # The first epoch also compiles; later ones tell better how long the rest takes.
    known = snapshot.seconds[:done][-5:] if done < 2 else snapshot.seconds[1:done][-5:]
    parts = [f"{model:<4} epoch {done:>{len(str(config.epochs))}}/{config.epochs}",
             f"train loss {records.spread(now['train_loss'])[0]:.4f}",
             f"test loss {records.spread(now['test_loss'])[0]:.4f} accuracy {middle:.2f}% [{low:.2f}, {high:.2f}]"]
    if "lam" in now:
        parts += ["lam " + " ".join(f"{records.spread(now['lam'][:, i])[0]:+.4f}" for i in range(now["lam"].shape[1])),
                  f"solver {now['solver_steps'].mean():.1f} steps, {100 * now['solver_converged'].mean():.1f}% converged"]
    return "  ".join([*parts, f"{snapshot.seconds[done - 1]:.2f} s", f"left {_clock(known.mean() * (config.epochs - done))}"])


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _show(folder):
    summary = records.read_json(folder / "summary.json")
    print(records.table(summary["results"], summary["parameters"]))
    print(records.footnote(summary["results"]))
    print(f"in {folder.path}: summary.json, metrics.jsonl, seconds.jsonl, config.json, {summary['picture']}, checkpoints/")
