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


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_links_to_headings_work_on_github_too():
    """That they work on the site is checked where it is built."""
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "train/README.md",
    ]
    found = 0
    for page in pages:
        links = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text())
        for target, anchor in links:
            assert anchor in anchors((page.parent / target) if target else page), page
        found += len(links)
    assert found > 20


def test_what_the_code_says_of_the_compiler_is_in_the_notes():
    known = anchors(ROOT / "docs/notes/xla.md")
    for room in ("ibnn_jax", "benchmarks", "train", "docs"):
        for path in (ROOT / room).rglob("*.py"):
            cited = set(re.findall(r"xla\.md#([\w-]+)", path.read_text()))
            assert cited <= known, path
