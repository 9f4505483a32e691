"""What `problems` must find: each test breaks the good notebook in one way."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from llmcourse.cli.notebooks import problems

Change = Callable[[NotebookNode], None]
PNG = {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}, "metadata": {}}
WIDGET = {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}, "metadata": {}}


def html(text: str) -> dict:
    return {"output_type": "display_data", "data": {"text/html": text}, "metadata": {}}


def forget_execution(nb: NotebookNode) -> None:
    nb.cells[2].execution_count = None


def swap_two_cells(nb: NotebookNode) -> None:
    nb.cells[2].execution_count, nb.cells[3].execution_count = nb.cells[3].execution_count, nb.cells[2].execution_count


def drop_stored_output(nb: NotebookNode) -> None:
    nb.cells[2].outputs = []


def drop_reason(nb: NotebookNode) -> None:
    del nb.cells[4].metadata["reason"]


def keep_widget_state(nb: NotebookNode) -> None:
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def point_badge_elsewhere(nb: NotebookNode) -> None:
    nb.cells[0].source = nb.cells[0].source.replace("notebooks/", "elsewhere/")


def edit_install_cell(nb: NotebookNode) -> None:
    nb.cells[1].source += "\n!pip install surprise"


def store_error(nb: NotebookNode) -> None:
    nb.cells[2].outputs = [nbformat.from_dict({"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []})]


def undescribed_markdown(nb: NotebookNode) -> None:
    nb.cells[0].source += "\n![](figure.png)"


def test_the_good_notebook_has_no_problem(good: Path):
    assert problems(good) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget_execution, "not executed"),
        (swap_two_cells, "out of order"),
        (drop_stored_output, "none is stored"),
        (drop_reason, "skipped without"),
        (keep_widget_state, "widget state"),
        (point_badge_elsewhere, "badge"),
        (edit_install_cell, "install cell"),
        (store_error, "stores an error"),
        (undescribed_markdown, "alt text"),
    ],
)
def test_a_broken_notebook_is_named(change: Change, message: str, broken: Callable[..., Path], tmp_path: Path):
    assert message in one(problems(broken(tmp_path, change)))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([PNG], "alt text"),
        ([html("<img src='x'>")], "alt text"),
        ([html("<img src='x' alt=' '>")], "alt text"),
        ([html("<svg></svg>")], "alt text"),
        ([WIDGET], "widget view"),
        ([html("saved in /home/ada/runs")], "path of one machine"),
        ([html("x" * 1_000_001)], "the limit is"),
    ],
)
def test_a_bad_output_is_named(outputs: list, message: str, broken: Callable[..., Path], add: Callable, tmp_path: Path):
    assert message in one(problems(broken(tmp_path, add("pass", outputs=outputs))))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# NBVAL_SKIP\nx = 1", "skipped without"),
        ("# NBVAL_RAISES_EXCEPTION\nx = 1", "unseen"),
        ("\n".join(["x = 1"] * 26), "26 lines"),
        ("print(inside)", "`inside`"),
        ("def later():\n    return inside", "`inside`"),
        ("Model.from_pretrained('gpt2')", '"gpt2"'),
        ("%%gpu minutes=1 vram=1 download=0\nload_dataset('fancyzhx/ag_news')", '"fancyzhx/ag_news"'),
        ("name = 'Qwen/Qwen3-0.6B'\ntok = Tok(name)", '"Qwen/Qwen3-0.6B"'),
        ("for name in ['Qwen/Qwen3-0.6B']:\n    Trainer(model=name)", '"Qwen/Qwen3-0.6B"'),
    ],
)
def test_a_bad_cell_is_named(source: str, message: str, broken: Callable[..., Path], add: Callable, tmp_path: Path):
    assert any(message in problem for problem in problems(broken(tmp_path, add(source))))


@pytest.mark.parametrize(
    "source",
    [
        "model, tokenizer = zoo.load('Qwen/Qwen3-0.6B')",
        "name = 'Qwen/Qwen3-0.6B'\nmodel, tokenizer = zoo.load(name)",
        "ax.set_ylabel('nats/token')",
        "@exercise('transformer/causal-mask')\ndef mask(x): ...",
        "inside = 1\nprint(inside)",
        "Model.from_pretrained('./checkpoint')",
    ],
)
def test_a_fair_cell_is_let_through(source: str, broken: Callable[..., Path], add: Callable, tmp_path: Path):
    assert problems(broken(tmp_path, add(source))) == []


def test_a_changed_cell_makes_the_hash_stale(broken: Callable[..., Path], tmp_path: Path):
    def change(nb: NotebookNode) -> None:
        nb.cells[2].source = "answer = 42\nanswer"

    assert "stale" in one(problems(broken(tmp_path, change, fresh=False)))


def one(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]
