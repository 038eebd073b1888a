"""The house: imports run one way, the README's quick start works, heavy packages stay out of the core."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = [  # each may import from those above it only
    ["sigmas"], ["operators"], ["couplings"], ["problem", "solution"],
    ["iterate", "linear", "cells", "kernels", "convolution", "solvers.memory"],
    ["adjoint"],
    ["solvers.picard", "solvers.newton", "solvers.gradient_descent"], ["solvers.anderson", "solvers.broyden", "solvers.jaxopt"],
    ["solvers.points"], ["solvers.meanfield"], ["solve"], ["layers", "robustness.curvature", "robustness.margin", "robustness.spectrum"], ["models"], ["attacks.attacked"],
    ["attacks.pgd", "attacks.pixle"],
]  # fmt: skip
LEVEL = {
    f"ibnn_jax.{name}": level for level, names in enumerate(ORDER) for name in names
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from [node.module] + [
                f"{node.module}.{alias.name}" for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_module_has_a_place_and_imports_from_above():
    modules = [p for p in (ROOT / "ibnn_jax").rglob("*.py") if p.name != "__init__.py"]
    assert {module_name(p) for p in modules} == set(LEVEL)
    for path in modules:
        for name in imports(path):
            if name in LEVEL:
                assert LEVEL[name] < LEVEL[module_name(path)], (
                    f"{module_name(path)} imports {name}"
                )
            assert not name.startswith("train"), f"{path} imports {name}"


def test_the_core_imports_neither_jaxopt_nor_tensorflow():
    code = "import sys, ibnn_jax, ibnn_jax.solvers; print([m for m in ('jaxopt', 'tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


def test_the_quick_start_runs_as_printed():
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    assert len(block.strip().splitlines()) <= 15
    subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", block], cwd=ROOT, check=True
    )
