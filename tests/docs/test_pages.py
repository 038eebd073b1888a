"""The code on the pages runs as printed, and the README stays one page."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(path: Path) -> list[str]:
    return BLOCK.findall(path.read_text())


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(page):
    with jax.enable_x64(False):
        exec("\n".join(blocks(page)), {"__name__": "page"})


def test_the_readme_is_a_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1000
    (block,) = blocks(ROOT / "README.md")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize(
    "page", PAGES + [ROOT / "CONTRIBUTING.md"], ids=lambda p: p.stem
)
def test_what_a_page_links_to_exists(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    generated = {"notebooks/first_steps.md", "notebooks/train_and_attack.md"}
    for target in set(targets) - generated:
        assert (page.parent / target).exists(), target


def test_what_the_code_says_of_the_compiler_is_in_the_notes():
    notes = (ROOT / "docs/notes/xla.md").read_text()
    anchors = set(re.findall(r"\{#([\w-]+)\}", notes))
    for room in ("ibnn_jax", "benchmarks", "train", "docs"):
        for path in (ROOT / room).rglob("*.[pm][yd]"):
            cited = set(re.findall(r"xla\.md#([\w-]+)", path.read_text()))
            assert cited <= anchors, path
