"""Snapshots on disk, by orbax.

They are written beside and then renamed, so that a killed run leaves a whole one or
none. A digest of every array travels with them: a damaged one is never trained on.
"""

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import orbax.checkpoint as ocp

if TYPE_CHECKING:
    from train.engine.loop import Snapshot

# Orbax logs every save; what matters is raised.
logging.getLogger("absl").setLevel(logging.ERROR)

Arrays = dict[str, np.ndarray]


class Checkpoints:
    """The latest Snapshot of one model of one run, in a folder of its own.

    Use it in a with statement.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Among several processes the first one alone has this object: it must wait for
        # no other.
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=alone,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    @property
    def epoch(self) -> int | None:
        """Epochs finished by the latest one; None without one."""
        return self._manager.latest_step()

    def save(self, snapshot: "Snapshot") -> None:
        """Save, unless this epoch is saved already.

        Raises:
            OSError: it cannot be written; the checkpoint before it stays.
        """
        if self.epoch == snapshot.epoch:
            return
        arrays = named_arrays(snapshot)
        digests = {name: _digest(array) for name, array in arrays.items()}
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), digests=ocp.args.JsonSave(digests)
        )
        try:
            self._manager.save(snapshot.epoch, args=items)
        except Exception as error:  # tensorstore wraps the system's errors in its own
            raise OSError(
                f"cannot write a checkpoint into {self.folder}: {_first_line(error)}"
            ) from error

    def arrays(self) -> Arrays | None:
        """The latest Snapshot as it is on disk; None without one.

        Raises:
            ValueError: it is damaged.
        """
        if self.epoch is None:
            return None
        items = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(), digests=ocp.args.JsonRestore()
        )
        try:
            saved = self._manager.restore(self.epoch, args=items)
            arrays = {name: np.asarray(x) for name, x in saved["arrays"].items()}
            digests = saved["digests"]
            wrong = sorted(
                name
                for name in arrays.keys() | digests.keys()
                if name not in arrays or digests.get(name) != _digest(arrays[name])
            )
        except Exception as error:  # what is raised depends on which byte is damaged
            raise ValueError(self._damaged(_first_line(error))) from error
        if wrong:
            raise ValueError(self._damaged(f"digest of {wrong[0]}"))
        return arrays

    def _damaged(self, reason: str) -> str:
        return (
            f"the checkpoint in {self.folder} is damaged ({reason}); restore it from a "
            "copy, or delete that folder to train this model from the start"
        )


def restored(arrays: Arrays, template: "Snapshot") -> "Snapshot":
    """The Snapshot these arrays were, of the template's structure.

    A template of more epochs leaves those that the arrays lack to be trained.

    Raises:
        ValueError: the arrays are of another structure.
    """
    wanted = named_arrays(template)
    arrays = {
        name: _extended(name, array, wanted[name]) if name in wanted else array
        for name, array in arrays.items()
    }
    wrong = sorted(arrays.keys() ^ wanted.keys()) or [
        name
        for name, array in arrays.items()
        if (array.shape, array.dtype) != (wanted[name].shape, wanted[name].dtype)
    ]
    if wrong:
        raise ValueError(
            f"the checkpoint was not made by this program: {', '.join(wrong[:5])} "
            "differ; train into another folder (--out), or delete it"
        )
    tree = _tree(template)
    leaves = [arrays[name] for name in _names(tree)]
    values = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    # jax.tree sorts dictionaries.
    values["history"] = {name: values["history"][name] for name in template.history}
    return dataclasses.replace(template, epoch=int(values.pop("epoch")), **values)


def named_arrays(snapshot: "Snapshot") -> Arrays:
    """Every array of a Snapshot, by its path."""
    tree = _tree(snapshot)
    return dict(zip(_names(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def _extended(name: str, array: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The array filled up with NaN where it is over epochs and wanted has more."""
    if name != "seconds" and not name.startswith("history."):
        return array
    axis = 0 if name == "seconds" else 1
    missing = wanted.shape[axis] - array.shape[axis]
    if array.ndim != wanted.ndim or missing <= 0:
        return array
    pads = [(0, missing if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, pads, constant_values=np.nan)


def _digest(array: np.ndarray) -> str:
    kind = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(kind + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    if len(line) > 200:  # what happened stands first or last
        line = f"{line[:80]} ... {line[-120:]}"
    return f"{type(error).__name__}: {line}"


def _tree(snapshot: "Snapshot") -> dict:
    fields = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot)}
    return fields | {"epoch": np.asarray(snapshot.epoch)}


def _names(tree: dict) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
