"""Networks on disk: a folder of structure.json and weights.safetensors.

The structure says how the network is built (`ibnn_jax.nn.recipe`), the weights are all
its arrays, and a digest of both tells a damaged folder. Nothing is pickled, and nothing
is run but the constructors of classes that are known where the folder is loaded.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from ibnn_jax.core.adjoint import Implicit, Phantom, Unrolled
from ibnn_jax.ibnn.couplings import Dense, Uniform, Window
from ibnn_jax.ibnn.mean_field.solver import MeanField
from ibnn_jax.ibnn.sigmas import Sigma, hard_tanh, tanh
from ibnn_jax.nn.convolution import canonical_convolution
from ibnn_jax.nn.recipe import build, encode, recipe_of, saveable, NotSaveable
from ibnn_jax.solvers.anderson import Anderson
from ibnn_jax.solvers.broyden import Broyden
from ibnn_jax.solvers.gradient_descent import GradientDescent
from ibnn_jax.solvers.jaxopt import FromJaxopt
from ibnn_jax.solvers.newton import Newton
from ibnn_jax.solvers.picard import Picard

STRUCTURE, WEIGHTS = "structure.json", "weights.safetensors"
FORMAT = 1
MODE = ("use_running_average", "deterministic")  # train() and eval() set these

COUPLINGS = (Uniform, Window, Dense, Sigma)
ADJOINTS = (Implicit, Phantom, Unrolled)
SOLVERS = (MeanField, Newton, Anderson, Broyden, GradientDescent, Picard, FromJaxopt)
for options in (*COUPLINGS, *ADJOINTS, *SOLVERS):
    saveable(options)
saveable(canonical_convolution)
saveable(tanh, "tanh")
saveable(hard_tanh, "hard_tanh")


def save(model: nnx.Module, path: str | os.PathLike) -> None:
    """Write a network to a folder, from which `load` builds it again.

    A network that was saved there before is replaced. The states of random streams are
    not written.

    Args:
        model: of a class that is `saveable`, as those of ibnn_jax are.
        path: the folder.

    Raises:
        ValueError: the class or one of its arguments is not saveable; the network was
            changed since it was built, other than in its variables; there is something
            else at path.

    Example:
        ibnn_jax.save(model, "digits")
        model = ibnn_jax.load("digits")
    """
    recipe = recipe_of(model)
    abstract = jax.ShapeDtypeStruct
    if any(isinstance(x, abstract) for x in jax.tree.leaves(nnx.state(model))):
        raise ValueError("the network has shapes only, as nnx.eval_shape makes it")
    weights = {name: np.asarray(_value(leaf)) for name, leaf in _leaves(model).items()}
    _check_unchanged(model, recipe)
    path = Path(path).expanduser()
    _check_replaceable(path)
    data = safetensors.numpy.save(weights)
    structure = {"format": FORMAT, "library": _library(), "model": recipe}
    structure["digest"] = _digest(structure, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        fresh = Path(folder) / "fresh"
        fresh.mkdir()
        (fresh / WEIGHTS).write_bytes(data)
        (fresh / STRUCTURE).write_text(json.dumps(structure, indent=1) + "\n")
        if path.exists():
            path.rename(Path(folder) / "replaced")
        fresh.rename(path)


def load(path: str | os.PathLike) -> nnx.Module:
    """The network that `save` wrote to a folder, in evaluation mode.

    Its weights are as they were, dtypes too, on the default device; call model.train()
    to go on training. Random streams start from seed 0.

    Raises:
        FileNotFoundError: no folder, or not one of a saved network.
        ValueError: the folder is damaged, of a later version, or names a class that is
            not known here; it holds weights of 64 bits, and jax_enable_x64 is off.
    """
    path = Path(path).expanduser()
    structure, data = _read(path)
    model = build(structure["model"])
    weights = _arrays(data)
    leaves = _leaves(model)
    shapes = {name: np.shape(_value(leaf)) for name, leaf in leaves.items()}
    _compare_shapes({k: v.shape for k, v in weights.items()}, shapes, f"{path} has")
    state = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    pairs = [(keys, _replaced(leaf, weights[_join(keys)])) for keys, leaf in state]
    for keys, leaf in pairs:
        _check_dtype(path, _join(keys), _value(leaf).dtype, weights[_join(keys)].dtype)
    nnx.update(model, nnx.from_flat_state(pairs))
    model.eval()
    return model


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """What safetensors.numpy.load does, and bfloat16 and float8 as well."""
    kinds = {"F": "float", "I": "int", "U": "uint"}
    others = {
        "BOOL": "bool",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
    }
    arrays = {}
    for name, entry in safetensors.deserialize(data):
        code = entry["dtype"]
        dtype = jnp.dtype(others.get(code) or kinds[code[0]] + code[1:])
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays


def _leaves(model: nnx.Module) -> dict[str, Any]:
    """Every array but those of random streams, by its path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {_join(keys): leaf for keys, leaf in state}


def _join(keys: tuple) -> str:
    return ".".join(map(str, keys))


def _value(leaf: Any) -> Any:
    value = leaf[...] if isinstance(leaf, nnx.Variable) else leaf
    is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(value) if is_key else value


def _replaced(leaf: Any, value: np.ndarray) -> Any:
    return leaf.replace(jnp.asarray(value)) if isinstance(leaf, nnx.Variable) else value


def _check_dtype(path: Path, name: str, dtype: np.dtype, saved: np.dtype) -> None:
    """Raise ValueError where the weight has another dtype here than it was saved in:
    jax makes 64 bits 32 without x64.
    """
    if dtype != saved:
        raise ValueError(
            f"{path} has {name} of dtype {saved}, which would become {dtype} here: "
            'jax.config.update("jax_enable_x64", True) before you load, or save the '
            "network in 32 bits"
        )


def _check_unchanged(model: nnx.Module, recipe: Any) -> None:
    """Whether building the model anew gives this model, but for its weights."""
    try:
        fresh = build(recipe)
    except Exception as error:  # whatever the constructor raises
        raise ValueError(
            f"{type(model).__name__} cannot be saved: load would build it with zeros "
            f"in arrays among its arguments, which fails: {error}. Give sizes as a "
            "tuple of numbers, not as an array"
        ) from error
    shapes = [
        {k: np.shape(_value(v)) for k, v in _leaves(m).items()} for m in (model, fresh)
    ]
    _compare_shapes(shapes[0], shapes[1], f"{type(model).__name__} has now")
    modules = dict(nnx.iter_modules(fresh))
    for path, module in nnx.iter_modules(model):
        now, then = _options(module), _options(modules.get(path))
        for name in now.keys() | then.keys():
            if now.get(name) != then.get(name):
                raise ValueError(
                    f"{_join((*path, name))} was changed after the network was built, "
                    f"to {getattr(module, name, None)!r}: give it to the constructor"
                )


def _options(module: Any) -> dict[str, str]:
    """What a module holds but arrays and modules, as far as JSON can say it."""
    encoded = {}
    for name, value in vars(module).items() if module is not None else ():
        if name.startswith("_pytree") or name in MODE:
            continue
        if isinstance(
            value, nnx.Module | nnx.Variable | nnx.Rngs | jax.Array | np.ndarray
        ):
            continue
        try:
            encoded[name] = json.dumps(encode(value))
        except NotSaveable:
            continue
    return encoded


def _compare_shapes(ours: dict, expected: dict, who: str) -> None:
    for name in sorted(ours.keys() | expected.keys()):
        if ours.get(name) != expected.get(name):
            raise ValueError(
                f"{who} {name} of shape {ours.get(name)}, where the arguments of the "
                f"constructor give {expected.get(name)}"
            )


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir() or {f.name for f in path.iterdir()} - {STRUCTURE, WEIGHTS}:
        raise ValueError(
            f"{path} exists and is not a saved network: choose another path, or remove "
            "what is there"
        )


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """The structure and the weights' bytes, both as they were written."""
    missing = [name for name in (STRUCTURE, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} is not a network saved by ibnn_jax.save: it has no {missing[0]}"
        )
    data = (path / WEIGHTS).read_bytes()
    try:
        structure = json.loads((path / STRUCTURE).read_bytes())
        form, digest = structure["format"], structure.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path / STRUCTURE} is damaged: save the network again"
        ) from None
    if isinstance(form, int) and form > FORMAT:
        raise ValueError(
            f"{path} was written by a later version, {structure.get('library')}: "
            "update ibnn_jax"
        )
    if digest != _digest(structure, data):
        raise ValueError(
            f"{path} is damaged: {STRUCTURE} and {WEIGHTS} are not as they were saved "
            "together"
        )
    return structure, data


def _digest(structure: dict[str, Any], data: bytes) -> str:
    text = json.dumps(structure, sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode() + b"\n" + data).hexdigest()


def _library() -> str:
    from ibnn_jax import __version__  # which is above us

    return f"ibnn_jax {__version__}"
