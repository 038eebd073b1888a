"""How a module is built, as JSON: the name of its class and the arguments it was given.

A class marked by `saveable` keeps this recipe as a string, which is static and equal
for modules that are built alike. Arrays among the arguments are initial values: their
shape is written, and what they have become is a matter of the weights. An array that is
one number is written with it.
"""

import copyreg
import dataclasses
import inspect
import json
import sys
import warnings
from functools import partial, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from ibnn_jax.ibnn.couplings import Dense

T = TypeVar("T")
PLAIN = bool | int | float | str | None  # what JSON says as it is
FUNCTIONS = {"jax.nn": jax.nn, "jax.numpy": jnp, "jax.lax": jax.lax}
ON_FILES = ("save", "savez", "load", "fromfile")  # no recipe may call these
_named: dict[str, Any] = {}  # what a recipe may name, beside `FUNCTIONS`


class NotSaveable(ValueError):
    """An argument that JSON cannot say."""


def _by_name(function):
    """How pickle finds it: by its name where that leads to it, as with functions."""
    name = function.__qualname__
    if getattr(sys.modules.get(function.__module__), name, None) is function:
        return name
    return function.__reduce_ex__(4)


# So that layers pickle which hold jax.nn.relu (a custom_jvp) or jax.numpy.tanh (a jit).
for kind in (jax.custom_jvp, type(jnp.tanh)):
    copyreg.pickle(kind, _by_name)  # type: ignore


def saveable(thing: T, name: str | None = None) -> T:
    """Let `ibnn_jax.save` and `load` know a class or function by its name.

    Of an `nnx.Module` it also keeps the arguments of each instance. They may be
    numbers, strings, dtypes, lists, tuples, dicts, arrays, functions of jax.nn,
    couplings, solvers, adjoints, `functools.partial`, saveable modules, and whatever
    else is saveable: functions, and dataclasses, which are written field by field.

    Args:
        thing: the class or function; the decorated object is itself.
        name: in the file, by default the thing's own; to be unique in a program.

    Raises:
        ValueError: the name belongs to something else.

    Example:
        @ibnn_jax.saveable
        class Classifier(nnx.Module):
            def __init__(self, features: int, *, rngs: nnx.Rngs):
                self.hidden = ibnn_jax.IBNNLinear(784, features, rngs=rngs)
                self.head = nnx.Linear(features, 10, rngs=rngs)
    """
    name = str(name or getattr(thing, "__qualname__", ""))
    known = _named.get(name, thing)
    if not name or (known is not thing and not _same_source(known, thing)):
        raise ValueError(
            f"saveable: the name {name!r} belongs to {known!r}; give another, "
            'e.g. saveable(MyClass, "my.Class")'
        )
    _named[name] = thing
    if _is_module(thing):
        _keep_arguments(thing, name)
    return thing


def _is_module(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, nnx.Module)


def _same_source(a, b) -> bool:
    """Whether b is a, defined again, as by a cell of a notebook."""
    origins = [
        (getattr(x, "__module__", x), getattr(x, "__qualname__", x)) for x in (a, b)
    ]
    return origins[0] == origins[1]


def _keep_arguments(cls: Any, name: str) -> None:
    initialise = cls.__init__
    signature = inspect.signature(initialise)

    @wraps(initialise)
    def __init__(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        if type(self) is not cls:
            return  # a subclass has other arguments
        given = signature.bind(self, *args, **kwargs)
        try:
            self._recipe = json.dumps({"build": name} | _encode_call(given))
        except NotSaveable as error:
            self._recipe = json.dumps({"not saveable": str(error)})

    cls.__init__ = __init__


def _encode_call(given: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments but self: "with" those that have a name, "places" the others."""
    kinds = {p.kind: key for key, p in given.signature.parameters.items()}
    options = kinds.get(inspect.Parameter.VAR_KEYWORD, "")
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        positional, keywords = list(given.args[1:]), dict(given.kwargs)
    else:
        positional, keywords = [], dict(list(given.arguments.items())[1:])
        keywords |= keywords.pop(options, {})
    encoded = {}
    for key, value in keywords.items():
        try:
            encoded[key] = encode(value)
        except NotSaveable as error:
            if not (callable(value) and key.endswith("_init")):
                raise NotSaveable(f"its {key}, {error}") from None
            # Initial values are of no use beside the weights.
    return {"places": encode(positional), "with": encoded}


def recipe_of(model: nnx.Module) -> dict[str, Any]:
    """How the module was built.

    Raises:
        ValueError: its class is not saveable, or one of its arguments.
    """
    cls = type(model).__name__
    if not isinstance(model, nnx.Module):
        raise ValueError(f"save takes an nnx.Module; got {cls}")
    text = vars(model).get("_recipe")
    if text is None:
        raise ValueError(
            f"{cls} cannot be saved: decorate its class by @ibnn_jax.saveable"
        )
    recipe = json.loads(text)
    if "not saveable" in recipe:
        raise ValueError(f"{cls} cannot be saved: {recipe['not saveable']}")
    return recipe


def build(recipe: Any) -> Any:
    """The module, with initial values drawn from seed 0.

    Raises:
        ValueError: the recipe names something that is not known here, or what it names
            cannot be built so.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode(recipe)


def encode(value: Any) -> Any:
    """A value as JSON.

    Raises:
        NotSaveable: JSON cannot say it.
    """
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        return encode(value.item()) if value.dtype.kind in "biuf" else _refuse(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, jax.Array | np.ndarray):
        return _encode_array(value)
    if isinstance(value, nnx.Rngs):
        return {"rngs": 0}  # any seed will do: the weights are set afterwards
    if isinstance(value, jax.lax.Precision):
        return value.name.lower()
    return _encode_object(value)


def _encode_array(value: jax.Array | np.ndarray) -> Any:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"keys": list(value.shape)}  # any will do, as for Rngs
    array = {"array": list(value.shape), "dtype": str(value.dtype)}
    if value.ndim == 0 and not isinstance(value, Tracer):
        return array | {"number": encode(value.item())}
    return array


def _encode_object(value: Any) -> Any:
    if name := _name(value):
        return {"name": name}
    if isinstance(value, partial):
        keywords = {k: encode(v) for k, v in value.keywords.items()}
        places = encode(list(value.args))
        return {"partial": encode(value.func), "places": places, "with": keywords}
    if isinstance(value, nnx.Module):
        return _encode_module(value)
    name = _name(type(value))
    if name and isinstance(value, Dense):
        fields = {"w": value.w, "sigma": value.sigma}
    elif name and dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        fields = {f: getattr(value, f) for f in names}
    elif isinstance(value, np.dtype | type):
        return _encode_dtype(value)
    else:
        return _refuse(value)
    return {
        "build": name,
        "places": [],
        "with": {k: encode(v) for k, v in fields.items()},
    }


def _encode_module(value: nnx.Module) -> Any:
    try:
        return recipe_of(value)
    except ValueError as error:
        raise NotSaveable(f"{type(value).__name__}: {error}") from None


def _encode_dtype(value: Any) -> Any:
    try:
        return {"dtype": jnp.dtype(value).name}
    except TypeError:
        return _refuse(value)


def _refuse(value):
    raise NotSaveable(
        f"{value!r}, has no name that load knows: mark it by ibnn_jax.saveable, or use "
        "a functools.partial of what is known"
    )


def _name(value: Any) -> str | None:
    """The name under which load finds the value."""
    is_options = dataclasses.is_dataclass(value) and not isinstance(value, type)
    for name, thing in _named.items():
        equal = is_options and type(thing) is type(value) and thing == value
        if thing is value or equal:
            return name
    own = getattr(value, "__name__", "")
    for module, functions in FUNCTIONS.items():
        known = own and getattr(functions, own, None) is value
        if known and not isinstance(value, type) and own not in ON_FILES:
            return f"{module}.{own}"
    return None


def decode(value: Any) -> Any:
    """The inverse of `encode`; arrays of axes are zeros.

    Raises:
        ValueError: a name that is not known here, or arguments that do not fit it.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "build" in value:
        return _build(value)
    if "partial" in value:
        return partial(
            decode(value["partial"]), *decode(value["places"]), **_with(value)
        )
    if "tuple" in value:
        return tuple(decode(v) for v in value["tuple"])
    if "dict" in value:
        return {decode(k): decode(v) for k, v in value["dict"]}
    if "keys" in value:
        key, shape = jax.random.key(0), tuple(value["keys"])
        return jax.random.split(key, shape) if shape else key
    if "rngs" in value:
        return nnx.Rngs(value["rngs"])
    if "array" in value:
        number = value.get("number", 0)
        return np.full(value["array"], number, jnp.dtype(value["dtype"]))
    if "dtype" in value:
        return jnp.dtype(value["dtype"])
    return _find(value["name"])


def _with(value: dict[str, Any]) -> dict[str, Any]:
    return {k: decode(v) for k, v in value["with"].items()}


def _find(name: str) -> Any:
    if name in _named:
        return _named[name]
    module, _, own = name.rpartition(".")
    public = module in FUNCTIONS and not own.startswith("_") and own not in ON_FILES
    function = getattr(FUNCTIONS[module], own, None) if public else None
    if function is None:
        raise ValueError(
            f"{name!r} is not known here: import the module that defines it and marks "
            "it by @ibnn_jax.saveable before you load"
        )
    return function


def _build(recipe: dict[str, Any]) -> Any:
    name = recipe["build"]
    cls = _find(name)
    if not isinstance(cls, type):
        raise ValueError(f"{name!r} is not a class, and cannot be built")
    try:
        return cls(*decode(recipe["places"]), **_with(recipe))
    except TypeError as error:
        raise ValueError(
            f"{name} does not take the arguments that it was saved with: {error}"
        ) from error
