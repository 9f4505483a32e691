"""Fixture notebooks: one good one, executed once, and copies of it each broken in one way."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from llmcourse.cli.address import badge, install_cell
from llmcourse.cli.notebooks import execute, source_hash

FIGURE = """\
import base64
from IPython.display import HTML, display
pixel = "R0lGODlhAQABAAAAACw="
display(HTML(f'<img src="data:image/gif;base64,{pixel}" alt="one grey pixel">'))"""


def code(source: str, *tags: str, **metadata: object) -> NotebookNode:
    return new_code_cell(source, metadata={**({"tags": list(tags)} if tags else {}), **metadata})


def good_cells(stem: str) -> list[NotebookNode]:
    return [
        new_markdown_cell(f"# A good notebook\n{badge(stem)}"),
        code(install_cell(stem), "install"),
        code("from llmcourse import gpu\nanswer = 6 * 7\nanswer", "nbval-check-output"),
        code(FIGURE),
        code("raise SystemError('needs a person')", "nbval-skip", reason="needs a person"),
        code("%%gpu minutes=1 vram=1 download=0\ninside = answer + 1\nassert inside == 43"),
        code("!python --version"),
    ]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed notebook as it should be."""
    path = tmp_path_factory.mktemp("good") / "good.ipynb"
    nbformat.write(new_notebook(cells=good_cells(path.stem)), path)
    execute(path, save=True)
    return path


@pytest.fixture(scope="session")
def broken(good: Path) -> Callable[..., Path]:
    """A copy of the good notebook in `folder`, changed by `change(nb)`; its hash is fresh again unless told otherwise."""

    def build(folder: Path, change: Callable[[NotebookNode], None], name: str = "good", fresh: bool = True) -> Path:
        nb = copy.deepcopy(nbformat.read(good, as_version=4))
        nb.cells[0].source = nb.cells[0].source.replace("good.ipynb", f"{name}.ipynb")
        change(nb)
        if fresh:
            nb.metadata["llmcourse"] = {"hash": source_hash(nb)}
        path = folder / f"{name}.ipynb"
        nbformat.write(nb, path)
        return path

    return build


@pytest.fixture(scope="session")
def add() -> Callable[..., Callable[[NotebookNode], None]]:
    """`add(source)` is a change: one more executed cell at the end."""

    def adding(source: str, *tags: str, outputs: Sequence[dict] = (), **metadata: object) -> Callable[[NotebookNode], None]:
        def change(nb: NotebookNode) -> None:
            cell = code(source, *tags, **metadata)
            cell.execution_count = 1 + max(cell.execution_count or 0 for cell in nb.cells if cell.cell_type == "code")
            cell.outputs = [nbformat.from_dict(output) for output in outputs]
            nb.cells.append(cell)

        return change

    return adding
