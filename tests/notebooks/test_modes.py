"""Every notebook with exercises reaches its end whatever the learner does: nothing, everything right, everything wrong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from llmcourse.cli.fingerprint import code_of
from llmcourse.cli.notebooks import execute
from llmcourse.exercise.progress import Progress

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ANSWERS = {"untouched": None, "solved": "reference", "wrong": "misconceptions[0].wrong"}


def exercises(cell: NotebookNode) -> Iterator[tuple[str, str, int, int]]:
    """Id, function name, first and last line of each exercise a cell asks for."""
    if cell.cell_type != "code" or "@exercise(" not in cell.source:
        return
    for node in ast.walk(ast.parse(cell.source)):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "exercise":
                yield decorator.args[0].value, node.name, decorator.lineno, node.end_lineno


def answer(nb: NotebookNode, attribute: str) -> None:
    """Put the registered answer in the place of each stub, through the decorator the learner uses."""
    for cell in nb.cells:
        lines = cell.source.splitlines()
        for id, name, first, last in sorted(exercises(cell), key=lambda found: -found[2]):
            given = f"__import__('llmcourse.exercise', fromlist=['get']).get({id!r}).{attribute}"
            lines[first - 1 : last] = [f"{name} = exercise({id!r})({given})"]
        cell.source = "\n".join(lines)


def with_exercises() -> list[Path]:
    return [path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if "@exercise(" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("state", ANSWERS)
@pytest.mark.parametrize("path", with_exercises(), ids=lambda path: path.stem)
def test_run_all_reaches_the_end(path: Path, state: str, tmp_path: Path, learner_home: Path):
    nb = nbformat.read(path, as_version=4)
    asked = {id for cell in nb.cells for id, *_ in exercises(cell)}
    if ANSWERS[state]:
        answer(nb, ANSWERS[state])
    nbformat.write(nb, tmp_path / path.name)
    execute(tmp_path / path.name)
    records = Progress().read()
    assert {id: records[id].state if id in records else "untouched" for id in asked} == dict.fromkeys(asked, state)


def test_every_exercise_is_found_where_a_learner_would_type(tmp_path: Path):
    """`exercises` misses none: the ids it finds are those the notebooks mention behind the decorator."""
    for path in with_exercises():
        nb = nbformat.read(path, as_version=4)
        mentioned = sum(code.text.count("@exercise(") for code in code_of(nb))
        assert mentioned == sum(len(list(exercises(cell))) for cell in nb.cells)
