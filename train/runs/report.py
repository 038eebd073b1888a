"""report.html: a run on one self-contained page, made from its files alone."""

import base64
import html
from pathlib import Path

from train.runs import summary
from train.runs.files import read_json, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
pre { overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: 13px; }
img { max-width: 100%; }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
"""


def write_report(folder: str | Path, picture: str = "curves.png") -> Path:
    """Write report.html into the folder of a run that has setup.json; returns its path.

    It holds the table, the curves, the configuration, the data and the versions.
    """
    folder = Path(folder)
    setup = read_json(folder / "setup.json")
    image = base64.b64encode((folder / picture).read_bytes()).decode()
    title = html.escape(f"{setup['data']['name']}: {folder.name}")
    sections = [
        f"<h1>{title}</h1>",
        f"<pre>{html.escape(summary.show([folder]))}</pre>",
        f'<img alt="curves over the epochs" src="data:image/png;base64,{image}">',
        "<h2>Configuration</h2>",
        _table(read_json(folder / "config.json")),
        "<h2>Data</h2>",
        _table(setup["data"]),
        "<h2>Versions and device</h2>",
        _table(setup["versions"] | setup["device"]),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _table(values: dict) -> str:
    rows = "\n".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>\n{rows}\n</table>"
