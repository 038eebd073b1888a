"""Snapshots on disk, by orbax: written beside and then renamed, so that a killed run leaves a whole one or none."""

import dataclasses
import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

# It tells of every save; what matters is raised.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The latest Snapshot of one model of one run, in a folder of its own: array name -> numpy array.

    Use it in a with statement.
    """

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Among several processes the first one alone has this object: it must wait for no other.
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=alone,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    @property
    def epoch(self):
        """Epochs finished by the latest one; None without one."""
        return self._manager.latest_step()

    def save(self, snapshot):
        """Save, unless this epoch is saved already."""
        if self.epoch != snapshot.epoch:
            self._manager.save(
                snapshot.epoch, args=ocp.args.StandardSave(_named(snapshot))
            )

    def arrays(self):
        """The latest Snapshot as it is on disk: name -> numpy array; None without one."""
        if self.epoch is None:
            return None
        return self._manager.restore(self.epoch, args=ocp.args.StandardRestore())


def restored(arrays, template):
    """The Snapshot these arrays were, of the template's structure. ValueError if they are of another structure."""
    wanted = _named(template)
    kind = lambda array: (array.shape, array.dtype)
    wrong = sorted(set(arrays) ^ set(wanted)) or [
        n for n in wanted if kind(arrays[n]) != kind(wanted[n])
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint was not made by this program: {', '.join(wrong[:5])} differ; train into another folder "
            "(--out), or delete it"
        )
    tree = _tree(template)
    leaves = [np.asarray(arrays[name]) for name in _names(tree)]
    values = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    values["history"] = {
        name: values["history"][name] for name in template.history
    }  # jax.tree sorts dictionaries
    return dataclasses.replace(template, epoch=int(values.pop("epoch")), **values)


def _tree(snapshot):
    fields = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot)}
    return fields | {"epoch": np.asarray(snapshot.epoch)}


def _names(tree):
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _named(snapshot):
    tree = _tree(snapshot)
    return dict(zip(_names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
