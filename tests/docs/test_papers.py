"""The papers of the house agree with each other and with the package."""

import re
import tomllib
from pathlib import Path

import pytest

import ibnn_jax

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_holds_ibnn_jax_alone():
    find_packages = pytest.importorskip("setuptools").find_packages
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = find_packages(str(ROOT), include=include)
    assert "ibnn_jax" in packages
    assert {name.split(".")[0] for name in packages} == {"ibnn_jax"}


def test_every_folder_of_the_library_is_a_package():
    folders = {path.parent for path in (ROOT / "ibnn_jax").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    documented = set(re.findall(r"^::: ibnn_jax\.(\w+)", pages, re.M))
    rooms = {"solvers"}  # its parts are documented one by one
    assert set(ibnn_jax.__all__) - documented <= rooms
    solvers = set(re.findall(r"^::: ibnn_jax\.(?:solvers\.)?(\w+)", pages, re.M))
    assert set(ibnn_jax.solvers.__all__) <= solvers


def test_the_licence_is_named_alike_everywhere():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()


def test_one_version():
    version = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert version and version[1] == ibnn_jax.__version__
    assert f"## {ibnn_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["project"]["dynamic"] == ["version"]
