"""The site: built with warnings as errors, and looked at in a browser."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or ""
pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")

# Loads every page in a frame and says which pictures are broken and what was thrown.
LOOK = """<!doctype html><title>look</title><body><script>
const found = {};
const look = page => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.width = 1200;
  frame.onload = async () => {
    const inside = frame.contentWindow, errors = [];
    inside.addEventListener("error", e => errors.push(String(e.message)));
    const pictures = [...inside.document.images];
    await Promise.all(pictures.map(picture => {
      picture.loading = "eager";
      return picture.decode().catch(() => errors.push("broken " + picture.src));
    }));
    found[page] = {
      errors: errors,
      pictures: pictures.length,
      links: [...inside.document.querySelectorAll("a[href]")].map(a => a.href),
      ids: [...inside.document.querySelectorAll("[id]")].map(e => e.id),
    };
    frame.remove();
    done();
  };
  frame.src = page;
  document.body.append(frame);
});
(async () => {
  for (const page of PAGES) await look(page);
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


BUDGET = {"STEPS": "3", "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, its notebooks executed with a tiny budget."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | BUDGET,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        page = path.read_text()
        assert not re.findall(r'src="(?:https?:)?//[^"]*', page), path
        assert not re.findall(r'<link[^>]+href="(?:https?:)?//[^"]*', page), path


def test_formulas_and_notebooks_are_on_their_pages(site):
    assert "<math" in (site / "theory.html").read_text()
    assert "arithmatex" not in (site / "theory.html").read_text()
    notebook = (site / "notebooks/first_steps.html").read_text()
    assert "lowest at" in notebook and "first_steps-0.png" in notebook


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_a_browser_finds_no_dead_link_no_error_and_no_missing_picture(site, tmp_path):
    pages = sorted(str(p.relative_to(site)) for p in site.rglob("*.html"))
    pages = [page for page in pages if page != "404.html"]
    (site / "look.html").write_text(LOOK.replace("PAGES", json.dumps(pages)))
    with Served(site) as server:
        console = browse(f"{server.address}/look.html", server.done, tmp_path)
    found = json.loads(server.found)
    assert set(found) == set(pages)
    assert not server.missing
    assert not console
    assert not {page: f["errors"] for page, f in found.items() if f["errors"]}
    assert sum(f["pictures"] for f in found.values()) >= 25
    ids = {page: set(f["ids"]) for page, f in found.items()}
    for page, f in found.items():
        for link in f["links"]:
            if link.startswith(server.address):
                path = link.removeprefix(server.address + "/")
                target, _, anchor = path.partition("#")
                assert (site / target).is_file(), f"{page} -> {link}"
                assert not anchor or anchor in ids[target], f"{page} -> {link}"


class Served:
    """A folder over HTTP: what was asked for in vain, and what the browser found."""

    def __init__(self, folder: Path):
        self.missing, self.found, self.done = [], "", threading.Event()
        owner = self

        class Handler(SimpleHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["Content-Length"])
                owner.found = self.rfile.read(length).decode()
                self.send_response(204)
                self.end_headers()
                owner.done.set()

            def log_request(self, code="-", size="-"):
                refused = str(getattr(code, "value", code)).startswith("4")
                if refused and self.path != "/favicon.ico":
                    owner.missing.append(self.path)

            def log_error(self, *_):
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()


def browse(address: str, done: threading.Event, profile: Path) -> list[str]:
    """What the pages write to the console, until the one at the address is done."""
    options = "--headless=new --no-sandbox --disable-gpu --enable-logging=stderr"
    with tempfile.TemporaryFile("w+") as log:
        browser = subprocess.Popen(
            [CHROMIUM, *options.split(), f"--user-data-dir={profile}", address],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            assert done.wait(600), "the browser does not finish"
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
        log.seek(0)
        return [line for line in log.read().splitlines() if "CONSOLE" in line]
