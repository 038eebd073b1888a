"""The house: floors, public names, short functions, light imports."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "ibnn_jax"
# A folder imports from itself and from the floors below it, in this order.
FLOORS = [
    {"core"},
    {"solvers"},
    {"ibnn", "nemon"},
    {"nn"},
    {"attacks"},
    {"robustness"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The one import upwards: `ibnn_jax.solvers.MeanField`, made when it is asked for.
LAZY = {(LIBRARY / "solvers/__init__.py", "ibnn_jax.ibnn.mean_field.solver")}
ROOMS = [LIBRARY, ROOT / "train", ROOT / "benchmarks", ROOT / "examples", ROOT / "docs"]
SOURCES = sorted(path for room in ROOMS for path in room.rglob("*.py"))
USERS = [path for path in SOURCES if LIBRARY not in path.parents]


def imports(path: Path):
    """(module, name or None) of every import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None


def test_every_folder_has_a_floor_and_imports_from_below():
    rooms = {p.name for p in LIBRARY.iterdir() if (p / "__init__.py").exists()}
    assert rooms <= set(FLOOR)
    for room in rooms:
        for path in (LIBRARY / room).rglob("*.py"):
            for module, _ in imports(path):
                assert module.split(".")[0] not in ("train", "benchmarks"), path
                if not module.startswith("ibnn_jax.") or (path, module) in LAZY:
                    continue
                other = module.split(".")[1]
                assert other == room or FLOOR[other] < FLOOR[room], (path, module)


@pytest.mark.parametrize("path", USERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_users_import_public_names_only(path):
    for module, name in imports(path):
        if module.split(".")[0] == "ibnn_jax":
            public = importlib.import_module(module)
            assert hasattr(public, "__all__"), f"{module} is not a public room"
            assert name is None or name in public.__all__, f"{module}.{name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 90, f"{node.name} has {length} lines"


def test_the_core_imports_neither_jaxopt_nor_tensorflow():
    heavy = ("jaxopt", "tensorflow", "tensorflow_datasets", "matplotlib")
    code = f"import sys, ibnn_jax; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
