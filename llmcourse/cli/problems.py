"""What keeps a notebook from being committed: `problems` lists it, one line each; an empty list is a clean notebook.

Does:     reads the stored file only: order and freshness of outputs, alt text as the page renders it, size, address, lints.
Leaves out: whether the cells run (nbval executes them in CI) and whether claims still hold (compared there).
"""

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from llmcourse.cli.address import badge, is_install_cell
from llmcourse.cli.fingerprint import PACKAGE, source_hash
from llmcourse.cli.lints import gpu_names, hub_names

__all__ = ["is_skipped", "problems"]

MAX_BYTES = 1_000_000
MAX_LINES = 25
IMAGE = re.compile(r"image/(png|jpe?g|gif|svg\+xml|webp)")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
FOLDERS = r"(?<![\w.])/(?:home|Users|root|tmp|var/folders)/[\w.-]+|[A-Za-z]:\\\\?Users\\|site-packages|dist-packages"
MACHINE_PATH = re.compile(FOLDERS + "|" + re.escape(str(PACKAGE.parent)))
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\(")


def problems(path: str | Path) -> list[str]:
    """Everything that keeps the notebook at `path` from being committed, as sentences; none when it is clean."""
    path = Path(path)
    nb = nbformat.read(path, as_version=4)
    size = path.stat().st_size
    found = [f"the file has {size:,} bytes; the limit is {MAX_BYTES:,}"] if size > MAX_BYTES else []
    for check in (_order, _markers, _errors, _images, _widgets, _long_cells, _machine_paths, hub_names, gpu_names, _hash):
        found.extend(check(nb))
    found.extend(_address(nb, path.stem))
    return found


def _code_cells(nb: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Code cells with the name a message gives them, counted from 1 as a reader counts."""
    cells = (cell for cell in nb.cells if cell.cell_type == "code")
    for number, cell in enumerate(cells, start=1):
        yield f"code cell {number}", cell


def _marked(cell: NotebookNode, marker: str) -> bool:
    """Whether nbval would see `marker` ("nbval-skip"), as a tag or as a comment."""
    comment = marker.upper().replace("-", "_")
    lines = (line.strip() for line in cell.source.splitlines())
    in_comment = any(line.startswith("#") and line.lstrip("#").strip() == comment for line in lines)
    return marker in cell.metadata.get("tags", []) or in_comment


def is_skipped(cell: NotebookNode) -> bool:
    """Whether the cell declares that no unattended run executes it."""
    return _marked(cell, "nbval-skip")


def _order(nb: NotebookNode) -> Iterator[str]:
    ran = [(name, cell) for name, cell in _code_cells(nb) if cell.source.strip() and not is_skipped(cell)]
    for expected, (name, cell) in enumerate(ran, start=1):
        if cell.execution_count is None:
            yield f"{name} was not executed"
        elif cell.execution_count != expected:
            yield f"{name} ran out of order: [{cell.execution_count}] where a fresh Run All gives [{expected}]"
            return  # every later count is off too


def _markers(nb: NotebookNode) -> Iterator[str]:
    for name, cell in _code_cells(nb):
        if is_skipped(cell) and not str(cell.metadata.get("reason", "")).strip():
            yield f'{name} is skipped without a "reason" in its metadata'
        if _marked(cell, "nbval-check-output") and not cell.outputs:
            yield f"{name} asks for its output to be checked, but none is stored"
        if _marked(cell, "nbval-raises-exception") or "raises-exception" in cell.metadata.get("tags", []):
            yield f"{name} may raise anything unseen; catch the exception it is meant to show"


def _errors(nb: NotebookNode) -> Iterator[str]:
    for name, cell in _code_cells(nb):
        yield from (f"{name} stores an error: {o.ename}: {o.evalue}" for o in cell.outputs if o.output_type == "error")


def _bundles(nb: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    for name, cell in _code_cells(nb):
        yield from ((name, output.data) for output in cell.outputs if "data" in output)


class _Pictures(HTMLParser):
    """Counts <img> and <svg>, and those a screen reader could not describe."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.described, self.nameless = 0, 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self._count(values.get("alt"))
        elif tag == "svg" and values.get("aria-hidden") != "true":
            self._count(values.get("aria-label"))

    def _count(self, description: str | None) -> None:
        if (description or "").strip():
            self.described += 1
        else:
            self.nameless += 1


def _images(nb: NotebookNode) -> Iterator[str]:
    for name, data in _bundles(nb):
        pictures = _Pictures(data.get("text/html", ""))
        bare = any(IMAGE.fullmatch(mime) for mime in data) and not pictures.described
        if pictures.nameless or bare:
            yield f"{name} shows an image without alt text in the page; use show.figure(fig, alt=…)"
    for number, cell in enumerate(nb.cells, start=1):
        if cell.cell_type == "markdown":
            empty = [alt for alt in MARKDOWN_IMAGE.findall(cell.source) if not alt.strip()]
            if empty or _Pictures(cell.source).nameless:
                yield f"cell {number} (markdown) has an image without alt text"


def _widgets(nb: NotebookNode) -> Iterator[str]:
    if "widgets" in nb.metadata:
        yield "the notebook's metadata holds widget state"
    for name, data in _bundles(nb):
        if WIDGET_VIEW in data:
            yield f"{name} stores a widget view, which hides the static picture"


def _long_cells(nb: NotebookNode) -> Iterator[str]:
    for name, cell in _code_cells(nb):
        lines = len(cell.source.strip().splitlines())
        if lines > MAX_LINES:
            yield f"{name} has {lines} lines; at most {MAX_LINES}: long code belongs to the package"


def _texts(nb: NotebookNode) -> Iterator[tuple[str, str]]:
    for name, cell in _code_cells(nb):
        yield name, cell.source
        for output in cell.outputs:
            texts = [output.text] if output.output_type == "stream" else _readable(output.get("data", {}))
            yield from ((name, text) for text in texts)


def _readable(data: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a mime bundle without embedded pictures, whose base64 spells anything by chance."""
    for mime, text in data.items():
        if mime.startswith("text/"):
            yield re.sub(r"data:[^\"')\s]+", "", text)


def _machine_paths(nb: NotebookNode) -> Iterator[str]:
    for name, text in _texts(nb):
        if match := MACHINE_PATH.search(text):
            yield f"{name} holds a path of one machine: {match.group()}"


def _hash(nb: NotebookNode) -> Iterator[str]:
    if nb.metadata.get("llmcourse", {}).get("hash") != source_hash(nb):
        yield "the outputs are stale: the cells or the modules they use changed since; run `make notebooks`"


def _address(nb: NotebookNode, stem: str) -> Iterator[str]:
    title = nb.cells[0].source if nb.cells else ""
    if badge(stem) not in title:
        yield f"the title cell lacks the Colab badge of this very notebook: {badge(stem)}"
    first = next((cell for _, cell in _code_cells(nb)), None)
    if first is None or "install" not in first.metadata.get("tags", []) or not is_install_cell(first.source):
        yield "the first code cell is not the tagged install cell that `llmcourse.cli.address` gives"
