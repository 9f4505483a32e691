"""`execute`, `clean` and the fingerprint, on small notebooks without torch."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from llmcourse.cli import fingerprint
from llmcourse.cli.notebooks import NotebookError, clean, execute, source_hash


def notebook(path: Path, *sources: str) -> Path:
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_a_run_reports_outputs_memory_and_progress(tmp_path: Path):
    seen = []
    run = execute(notebook(tmp_path / "a.ipynb", "x = 2", "print(x)"), on_cell=lambda done, total: seen.append((done, total)))
    assert run.notebook.cells[1].outputs[0].text == "2\n"
    assert run.peak_bytes > 10_000_000
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_the_error_names_the_cell_its_source_and_the_exception(tmp_path: Path):
    with pytest.raises(NotebookError, match=r"a\.ipynb, code cell 2: ZeroDivisionError: division by zero\n    1 / 0") as caught:
        execute(notebook(tmp_path / "a.ipynb", "x = 2", "1 / 0"))
    assert "Traceback" in caught.value.traceback


@pytest.mark.parametrize(
    ("source", "ename"),
    [("import os; os._exit(1)", "DeadKernelError"), ("while True: pass", "TimeoutError"), ("!exit 3", "Called")],
)
def test_other_ends_are_named_too(source: str, ename: str, tmp_path: Path):
    with pytest.raises(NotebookError, match=ename):
        execute(notebook(tmp_path / "a.ipynb", source), timeout=2)


def test_a_python_that_is_not_there_is_an_error_of_the_start(tmp_path: Path):
    with pytest.raises(NotebookError, match="code cell 0"):
        execute(notebook(tmp_path / "a.ipynb", "1"), python=str(tmp_path / "no-python"))


def test_a_failed_run_leaves_the_file_and_the_folder_as_they_were(tmp_path: Path):
    path = notebook(tmp_path / "a.ipynb", "print(1)", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(NotebookError):
        execute(path, save=True)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("*.ipynb")) == [path]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path):
    path = notebook(tmp_path / "a.ipynb", "print(object())")
    execute(path, save=True)
    first = path.read_bytes()
    execute(path, save=True)
    assert path.read_bytes() == first


def test_the_kernel_is_told_how_it_is_meant_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMCOURSE_STANDIN", "1")
    names = ["LLMCOURSE_STANDIN", "LLMCOURSE_STRICT", "LLMCOURSE_GPU", "HF_HUB_OFFLINE", "LLMCOURSE_HOME"]
    path = notebook(tmp_path / "a.ipynb", f"import os\n[os.environ.get(name) for name in {names}]")
    runs = [execute(path, save=True), execute(path, standin=True)]
    saved, standin = (ast.literal_eval(run.notebook.cells[0].outputs[0].data["text/plain"]) for run in runs)
    assert saved[:4] == [None, "1", "0", "1"]
    assert saved[4] != os.environ["LLMCOURSE_HOME"] == standin[4]
    assert standin[0] == "1"


def test_the_guard_leaves_no_name_in_the_notebook(tmp_path: Path):
    path = notebook(tmp_path / "a.ipynb", "[name for name in ('guard_network', 'guard', 'Path', 'socket') if name in globals()]")
    assert execute(path).notebook.cells[0].outputs[0].data["text/plain"] == "[]"


def test_commands_keep_their_variables_and_their_output(tmp_path: Path):
    source = "def say(word):\n    lines = !echo {word} $word\n    return lines\nsay('x')"
    path = notebook(tmp_path / "a.ipynb", source)
    assert "x x" in str(execute(path).notebook.cells[0].outputs[0].data["text/plain"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_the_kernel(tmp_path: Path):
    path = notebook(tmp_path / "a.ipynb", "open('started', 'w').close()\nimport time\ntime.sleep(60)")
    runner = subprocess.Popen([sys.executable, "-c", f"from llmcourse.cli.notebooks import execute; execute({str(path)!r})"])
    while not (tmp_path / "started").exists():
        time.sleep(0.1)
    kernels = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(signal.SIGINT)
    runner.wait(timeout=20)
    assert kernels and not psutil.wait_procs(kernels, timeout=5)[1]


def test_cleaning_keeps_the_static_picture_and_drops_the_rest():
    view = "application/vnd.jupyter.widget-view+json"
    outputs = [
        new_output("stream", name="stdout", text="10%\r50%"),
        new_output("stream", name="stdout", text="\r100%\n"),
        new_output("display_data", data={view: {"model_id": "1"}, "text/html": "<img alt='x'>"}),
        new_output("display_data", data={view: {"model_id": "2"}}),
        new_output("execute_result", data={"text/plain": "<object at 0x7f35c24b7920>"}, execution_count=1),
    ]
    cell = new_code_cell("x", outputs=outputs, metadata={"execution": {"iopub.status.busy": "now"}, "tags": ["keep"]})
    cleaned = clean(new_notebook(cells=[cell], metadata={"widgets": {}, "kernelspec": {"name": "mine", "display_name": "Mine"}}))
    shown = cleaned.cells[0].outputs
    assert [output.get("text") or dict(output.data) for output in shown] == [
        "100%\n",
        {"text/html": "<img alt='x'>"},
        {"text/plain": "<object at 0x…>"},
    ]
    assert cleaned.cells[0].metadata == {"tags": ["keep"]}
    assert set(cleaned.metadata) == {"kernelspec", "language_info"} and cleaned.metadata.kernelspec.name == "python3"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name with `a` importing `b`, an unrelated `c`, `zoo` with a model, a topic with exercises."""
    files = {
        "__init__.py": "",
        "a.py": "def f():\n    from . import b\n",
        "b.py": "DATA = 'pins.json'\n",
        "c.py": "",
        "zoo.py": "",
        "pins.json": "{}",
        "models/tiny/model.safetensors": "\r\n",
        "topic/__init__.py": "",
        "topic/exercises.py": "from llmcourse.topic.deep.x import y\n",
        "topic/deep/__init__.py": "from ..sibling import z\n",
        "topic/deep/x.py": "",
        "topic/sibling.py": "",
    }
    for name, text in files.items():
        file = tmp_path / "llmcourse" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path / "llmcourse")
    return tmp_path / "llmcourse"


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("import numpy", set()),
        ("import llmcourse.a", {"__init__.py", "a.py", "b.py", "pins.json"}),
        ("%matplotlib inline\nfrom llmcourse import a, c", {"__init__.py", "a.py", "b.py", "pins.json", "c.py"}),
        ("%%gpu minutes=1\nfrom llmcourse import zoo", {"__init__.py", "zoo.py", "model.safetensors"}),
        (
            "@exercise('topic/x')\ndef x(): ...",
            {"__init__.py", "topic/__init__.py", "exercises.py", "topic/deep/__init__.py", "x.py", "sibling.py"},
        ),
    ],
)
def test_the_fingerprint_follows_imports_ids_and_data(source: str, used: set[str], package: Path):
    found = fingerprint.used_files(new_notebook(cells=[new_code_cell(source)]))
    inits = {f"{file.parent.relative_to(package)}/{file.name}".removeprefix("./") for file in found if file.name == "__init__.py"}
    assert {file.name for file in found if file.name != "__init__.py"} | inits == used


@pytest.mark.parametrize("name", ["b.py", "pins.json"])
def test_a_used_file_that_changes_changes_the_hash(name: str, package: Path):
    nb = new_notebook(cells=[new_code_cell("import llmcourse.a")])
    before = source_hash(nb)
    (package / name).write_text("# changed")
    assert source_hash(nb) != before


@pytest.mark.parametrize(("before", "after"), [("a\nb", "a\r\nb"), ("x = 1", "x = 1")])
def test_line_endings_and_outputs_do_not_change_the_hash(before: str, after: str, package: Path):
    outputs = [new_output("stream", name="stdout", text="1")]
    one, other = (new_notebook(cells=[new_markdown_cell(text)]) for text in (before, after))
    other.cells.append(new_code_cell("x = 1", outputs=outputs))
    one.cells.append(new_code_cell("x = 1"))
    assert source_hash(one) == source_hash(other)


def test_the_address_does_not_change_the_hash(good: Path, broken: Callable, tmp_path: Path):
    nb = nbformat.read(good, as_version=4)
    before = source_hash(nb)
    nb.cells[0].source = nb.cells[0].source.replace("llmcourse/llmcourse", "fork/course")
    nb.cells[1].source = "another install cell"
    assert source_hash(nb) == before
