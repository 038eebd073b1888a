"""A training session: everything between the options and a finished run folder."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import time

from train.distributed import processes
from train.errors import Stopped, UserError
from train.runs import folder as folders
from train.runs import summary as summaries


def complete(config, caught, say, already=lambda path: None, team=processes.ALONE):
    """Train what a resolved config describes, or what is missing of it; returns its RunFolder, finished.

    say(text) is told of the progress, already(path) that there was nothing to do. Raises UserError, Stopped.
    """
    folder = folders.RunFolder(config)
    with contextlib.ExitStack() as stack:

        def finished():
            stack.enter_context(folder.held())
            return folder.finished()

        _same_options(team.gather(config))
        if not team.broadcast_from_first(finished):
            _run(config, folder, team, caught, say)
        elif team.first:
            already(folder.path)
    return folder


def _same_options(configs):
    """Processes of one run must be started alike."""
    for index, config in enumerate(configs):
        names = configs[0].differences(config, but=config.OWN)
        if names:
            differ = "; ".join(
                f"{n} is {getattr(configs[0], n)!r} and {getattr(config, n)!r}"
                for n in names
            )
            raise UserError(
                f"processes 0 and {index} were started with different options: {differ}"
            )


def _run(config, folder, team, caught, say):
    import jax  # late: an error in the options, or a finished run, needs no JAX

    if config.x64:
        jax.config.update("jax_enable_x64", True)
    from train.distributed import sharding
    from train.engine import loop
    from train.runs import plots

    models = ("sm", "ibnn") if config.model == "both" else (config.model,)

    def prepare():
        sharding.make_mesh(
            config.seeds, config.devices, config.data_devices
        )  # refused before the data is read
        dataset = loop.prepare(config)
        return dataset, {
            model: loop.parameters(config, dataset, model) for model in models
        }

    dataset, counts = team.together(prepare)
    if len(set(team.gather(dataset.fingerprint()))) > 1:
        raise UserError(
            f"the processes do not all find the same images in {config.dataset}"
        )
    team.broadcast_from_first(lambda: folder.check_setup(_setup(dataset, counts)))
    say(
        f"{dataset.name}: {len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images "
        f"{'x'.join(map(str, dataset.image_shape))}; UCN({config.layers},{config.channels}), {config.seeds} seeds, on "
        f"{jax.devices()[0].device_kind}{f', {team.count} processes' * (team.count > 1)}; results in {folder.path}"
    )

    snapshots = {}
    for model in models:
        snapshots[model] = _train(
            dataclasses.replace(config, model=model),
            dataset,
            folder,
            team,
            snapshots,
            caught,
            say,
        )

    if team.first:
        folder.rewrite(snapshots)
        picture = plots.curves([folder.path], folder / "curves.png")
        summary = {
            "results": summaries.summarize(folders.read(folder.path)),
            "picture": picture.name,
        }
        folders.write_json(
            folder / "summary.json", summary | folders.read_json(folder / "setup.json")
        )


def _train(config, dataset, folder, team, before, caught, say):
    """Train one model, from its checkpoint if there is one; before: {model: Snapshot} of those that are finished."""
    from train.engine import loop
    from train.runs import checkpoint

    model, last, saved_at = config.model, None, time.monotonic()
    with contextlib.ExitStack() as stack:
        saved = (
            stack.enter_context(checkpoint.Checkpoints(folder / "checkpoints" / model))
            if team.first
            else None
        )

        def resume(template):
            nonlocal last
            arrays = team.broadcast_from_first(lambda: saved.arrays())
            last = checkpoint.restored(arrays, template) if arrays else None
            if team.first:
                folder.rewrite(
                    before | ({model: last} if last else {})
                )  # drops lines of epochs that no checkpoint holds
            if last:
                say(f"{model}: going on after epoch {last.epoch} of {config.epochs}")
            return last

        def on_epoch(snapshot):
            nonlocal last, saved_at
            last = snapshot
            if team.first:
                folder.append(model, snapshot)
                say(_progress(config, model, snapshot))
                if time.monotonic() - saved_at >= config.checkpoint_seconds:
                    saved.save(snapshot)
                    saved_at = time.monotonic()
            stop_if_asked()

        def stop_if_asked():
            number = max(team.gather(caught[0] if caught else 0))
            if number:
                if team.first and last is not None:
                    saved.save(last)
                caught[:] = [number]  # also where it did not arrive
                raise Stopped(
                    f"{model}, {last.epoch if last else 0} of {config.epochs} epochs are saved in {folder.path}"
                )

        # Several processes must agree to stop, which they do between epochs only.
        poll = stop_if_asked if team.count == 1 else None
        try:
            snapshot = loop.train(
                config, dataset, resume=resume, on_epoch=on_epoch, poll=poll
            )
        except loop.NonFiniteLoss as error:
            raise UserError(error) from error
        if team.first:
            saved.save(snapshot)
    return snapshot


def _setup(dataset, parameters):
    return {
        "data": {
            "name": dataset.name,
            "classes": dataset.classes,
            "image_shape": list(dataset.image_shape),
            "train_images": len(dataset.train_labels),
            "test_images": len(dataset.test_labels),
            "fingerprint": dataset.fingerprint(),
        },
        "parameters": parameters,
    } | environment()


def environment():
    """Versions of what a result depends on, and the devices."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def _progress(config, model, snapshot):
    """One line: where the run is, medians over the seeds, and the time left for this model."""
    done = snapshot.epoch
    now = {name: values[:, done - 1] for name, values in snapshot.history.items()}
    middle, low, high = (100 * v for v in summaries.spread(now["test_accuracy"]))
    # The first epoch also compiles; later ones tell better how long the rest takes.
    known = snapshot.seconds[:done][-5:] if done < 2 else snapshot.seconds[1:done][-5:]
    parts = [
        f"{model:<4} epoch {done:>{len(str(config.epochs))}}/{config.epochs}",
        f"train loss {summaries.spread(now['train_loss'])[0]:.4f}",
        f"test loss {summaries.spread(now['test_loss'])[0]:.4f} accuracy {middle:.2f}% [{low:.2f}, {high:.2f}]",
    ]
    if "lam" in now:
        parts += [
            "lam "
            + " ".join(
                f"{summaries.spread(now['lam'][:, i])[0]:+.4f}"
                for i in range(now["lam"].shape[1])
            ),
            f"solver {now['solver_steps'].mean():.1f} steps, {100 * now['solver_converged'].mean():.1f}% converged",
        ]
    return "  ".join(
        [
            *parts,
            f"{snapshot.seconds[done - 1]:.2f} s",
            f"left {_clock(known.mean() * (config.epochs - done))}",
        ]
    )


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min {seconds:02} s"
        if minutes
        else f"{seconds} s"
    )


