"""What the site needs beyond Markdown: formulas as MathML, notebooks as pages.

MathML is drawn by the browser itself, so the pages load nothing from elsewhere.
"""

import contextlib
import html
import io
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL
)
NOTEBOOKS = Path(__file__).parent / "notebooks"
EXECUTE = os.environ.get("NOTEBOOKS") != "off"  # off: a quick look at the other pages


def on_page_content(text, **_):
    """Formulas of a page as MathML."""

    def mathml(match):
        tag, opening, latex = match.groups()
        display = "block" if opening == "[" else "inline"
        return f"<{tag}>{convert(html.unescape(latex), display=display)}</{tag}>"

    return FORMULA.sub(mathml, text)


def on_files(files, config, **_):
    """Each notebook as a page that shows its code, its output and its pictures."""
    for path in sorted(NOTEBOOKS.glob("*.py")):
        page, pictures = executed(path)
        name = f"notebooks/{path.stem}"
        files.append(File.generated(config, f"{name}.md", content=page))
        for number, png in enumerate(pictures):
            files.append(File.generated(config, f"{name}-{number}.png", content=png))
    return files


def executed(path: Path) -> tuple[str, list[bytes]]:
    """(Markdown, pictures) of a notebook in the percent format."""
    namespace = {"__name__": "__main__"}
    page, pictures = [], []
    for kind, source in cells(path.read_text()):
        if kind == "markdown":
            page.append(source)
            continue
        page.append(f"```python\n{source}\n```")
        if not EXECUTE:
            continue
        printed, drawn = run_cell(source, namespace, path)
        if printed:
            page.append(f"```text\n{printed}\n```")
        for png in drawn:
            page.append(f"![Picture {len(pictures)}]({path.stem}-{len(pictures)}.png)")
            pictures.append(png)
    return "\n\n".join(page) + "\n", pictures


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, source) of every cell of a notebook in the percent format."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
            found.append(("markdown", body.strip()))
        elif body.strip():
            found.append(("code", body.strip()))
    return found


def run_cell(source: str, namespace: dict, path: Path) -> tuple[str, list[bytes]]:
    """(what a cell prints, the figures it leaves open)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    printed, pictures = io.StringIO(), []
    with contextlib.redirect_stdout(printed):
        exec(compile(source, str(path), "exec"), namespace)
    for number in plt.get_fignums():
        buffer = io.BytesIO()
        plt.figure(number).savefig(buffer, format="png", dpi=100)
        pictures.append(buffer.getvalue())
    plt.close("all")
    return printed.getvalue().rstrip(), pictures
