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
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
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
            self._manager.save(snapshot.epoch, args=ocp.args.StandardSave(_named(snapshot)))

    def arrays(self):
        """The latest Snapshot as it is on disk: name -> numpy array."""
        return self._manager.restore(self.epoch, args=ocp.args.StandardRestore())

    def restore(self, template):
        """The latest Snapshot, of the template's structure; None without one. ValueError if it is of another structure."""
        if self.epoch is None:
            return None
        found, wanted = self.arrays(), _named(template)
        kind = lambda array: (array.shape, array.dtype)
        wrong = sorted(set(found) ^ set(wanted)) or [n for n in wanted if kind(found[n]) != kind(wanted[n])]
        if wrong:
            raise ValueError(f"the checkpoint in {self.folder} was not made by this program: {', '.join(wrong[:5])} differ; "
                             "train into another folder (--out), or delete it")
        tree = _tree(template)
        leaves = [np.asarray(found[name]) for name in _names(tree)]
        values = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        values["history"] = {name: values["history"][name] for name in template.history}  # jax.tree sorts dictionaries
        return dataclasses.replace(template, epoch=int(values.pop("epoch")), **values)


def _tree(snapshot):
    fields = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot)}
    return fields | {"epoch": np.asarray(snapshot.epoch)}


def _names(tree):
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _named(snapshot):
    tree = _tree(snapshot)
    return dict(zip(_names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
