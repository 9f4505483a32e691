"""Notebooks without a browser: execute one in a fresh kernel, clean it, store it.

    .ipynb ──► execute ──► clean ──► fingerprint ──► .ipynb       (save=True writes only after every cell succeeded)

Does:     runs each code cell in order under a guarded kernel (`kernel_guard`), measures seconds and peak memory, names the
          failing cell; `clean` removes what differs from run to run.
Leaves out: what a good committed notebook is (`problems`) and when it is stale (`fingerprint`); both are offered here too.
"""

import copy
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
from nbformat import NotebookNode

from llmcourse.cli.fingerprint import source_hash
from llmcourse.cli.kernel_guard import write_profile
from llmcourse.cli.lab import write_atomically
from llmcourse.cli.problems import is_skipped, problems

__all__ = ["NotebookError", "PeakMemory", "Run", "clean", "execute", "kernel_environment", "problems", "source_hash"]

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_CELL_METADATA = {"tags", "reason", "jupyter", "editable", "deletable"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_OVERWRITTEN = re.compile(r"^.*\r(?=[^\n])", re.MULTILINE)
_ADDRESS = re.compile(r"\bat 0x[0-9A-Fa-f]{6,16}\b")


@dataclass(frozen=True)
class Run:
    """One finished execution: the notebook as it now stands, its wall-clock seconds and its kernel's peak memory."""

    path: Path
    notebook: NotebookNode = field(repr=False)
    seconds: float
    peak_bytes: int


class NotebookError(RuntimeError):
    """A notebook stopped: at which code cell (counted from 1; 0 is the kernel's start), on what source, for which reason."""

    def __init__(self, path: Path, cell: int, source: str, ename: str, evalue: str, traceback: str = "") -> None:
        self.path, self.cell, self.source = path, cell, source
        self.ename, self.evalue, self.traceback = ename, evalue, traceback
        head = "\n".join(f"    {line}" for line in source.strip().splitlines()[:6])
        super().__init__(f"{path.name}, code cell {cell}: {ename}: {evalue}\n{head}".rstrip())


class PeakMemory:
    """The largest resident memory a process and its children held together, sampled every tenth of a second."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop sampling and return the peak in bytes."""
        self._done.set()
        self._thread.join()
        return self.bytes

    def _watch(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, self._now())
            self._done.wait(0.1)

    def _now(self) -> int:
        total = 0
        try:
            for process in [self._process, *self._process.children(recursive=True)]:
                total += process.memory_info().rss
        except psutil.Error:  # a child, or the kernel itself, ended while we looked
            pass
        return total


def kernel_environment(profile: Path, *, standin: bool = False, gpu: bool = False) -> dict[str, str]:
    """The environment variables of a checked kernel. `gpu` lets GPU cells run and reach the hub; `standin` runs them on CPU."""
    env = {**os.environ, "IPYTHONDIR": str(profile), "LLMCOURSE_STRICT": "1", "PYTHONIOENCODING": "utf-8"}
    env.setdefault("OMP_NUM_THREADS", str(max(1, min(2, os.cpu_count() or 1))))
    env.pop("LLMCOURSE_STANDIN", None)
    if standin:
        env["LLMCOURSE_STANDIN"] = "1"
    env["LLMCOURSE_GPU"] = "1" if gpu else "0"
    if not gpu:
        env["HF_HUB_OFFLINE"] = "1"
    return env


def execute(
    path: str | Path,
    *,
    standin: bool = False,
    gpu: bool = False,
    save: bool = False,
    timeout: int = 300,
    on_cell: Callable[[int, int], None] | None = None,
    python: str = sys.executable,
    env: dict[str, str] | None = None,
) -> Run:
    """Run every code cell of the notebook at `path` in a fresh kernel of `python`, in the notebook's own folder.

    `timeout` is in seconds per cell; `on_cell(done, total)` is called before the first cell and after each; `env` adds to
    the kernel's variables. With `save` the learner's progress is left out of it (an empty LLMCOURSE_HOME) and the cleaned,
    fingerprinted notebook replaces the file.
    Raises: NotebookError at the first failing cell, time-out or dead kernel; the file is then unchanged.
    """
    path = Path(path).resolve()
    nb = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="llmcourse-", ignore_cleanup_errors=True) as scratch:
        variables = kernel_environment(write_profile(Path(scratch, "ipython")), standin=standin, gpu=gpu)
        if save:
            variables["LLMCOURSE_HOME"] = str(Path(scratch, "home"))
        run = _run_cells(path, nb, variables | (env or {}), python, timeout, on_cell or (lambda done, total: None))
    return _save(run) if save else run


def _run_cells(
    path: Path, nb: NotebookNode, env: dict[str, str], python: str, timeout: int, on_cell: Callable[[int, int], None]
) -> Run:
    cells = _executable(nb)
    start = time.monotonic()
    with _kernel(path, nb, env, python, timeout) as client:
        memory = PeakMemory(client.km.provisioner.pid)
        on_cell(0, len(cells))
        try:
            for number, index in enumerate(cells, start=1):
                _run_cell(client, path, number, index)
                on_cell(number, len(cells))
        finally:
            peak = memory.stop()
    return Run(path, nb, time.monotonic() - start, peak)


def _executable(nb: NotebookNode) -> list[int]:
    """Indices of the code cells that run; every other code cell loses its outputs."""
    indices = []
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if cell.source.strip() and not is_skipped(cell):
                indices.append(index)
    return indices


@contextmanager
def _kernel(path: Path, nb: NotebookNode, env: dict[str, str], python: str, timeout: int) -> Iterator:
    """A running kernel of exactly `python`, ended however the block is left (Ctrl-C included)."""
    from jupyter_client import AsyncKernelManager
    from nbclient import NotebookClient

    manager = AsyncKernelManager(kernel_spec_manager=_specs_for(python))
    # km is created here, so nbclient must be told that it owns it and may end it.
    client = NotebookClient(nb, manager, timeout=timeout, record_timing=False, shutdown_kernel="immediate")
    client.extra_arguments = ["--log-level=ERROR"]  # no warning about kernels talking over 127.0.0.1
    with ExitStack() as stack:
        try:
            stack.enter_context(client.setup_kernel(cleanup_kc=True, env=env, cwd=str(path.parent)))
        except (RuntimeError, OSError) as error:
            raise NotebookError(path, 0, "", type(error).__name__, str(error)) from error
        yield client


def _specs_for(python: str) -> object:
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    class ThisPython(KernelSpecManager):
        """Ignores the kernels installed for the user: their python3 may be another environment's."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            spec = get_kernel_dict()
            return KernelSpec(**{**spec, "argv": [python, *spec["argv"][1:]]})

    return ThisPython()


def _run_cell(client: object, path: Path, number: int, index: int) -> None:
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    cell = client.nb.cells[index]
    try:
        client.execute_cell(cell, index)
    except CellExecutionError as error:
        raise NotebookError(path, number, cell.source, error.ename, error.evalue, error.traceback) from None
    except CellTimeoutError:
        raise NotebookError(path, number, cell.source, "TimeoutError", f"still running after {client.timeout} s") from None
    except DeadKernelError:
        raise NotebookError(path, number, cell.source, "DeadKernelError", "the kernel died (out of memory?)") from None
    for output in cell.outputs:  # a magic may show an error and still report success
        if output.output_type == "error":
            raise NotebookError(path, number, cell.source, output.ename, output.evalue, "\n".join(output.traceback))


def _save(run: Run) -> Run:
    nb = clean(run.notebook)
    nb.metadata["llmcourse"] = {"hash": source_hash(nb)}
    write_atomically(run.path, nbformat.writes(nb) + "\n")
    return Run(run.path, nb, run.seconds, run.peak_bytes)


def clean(nb: NotebookNode) -> NotebookNode:
    """A copy of `nb` without what differs from run to run: widget views and state, timings, memory addresses, bars under way."""
    nb = copy.deepcopy(nb)
    kept = {"llmcourse": nb.metadata["llmcourse"]} if "llmcourse" in nb.metadata else {}
    nb.metadata = nbformat.from_dict(METADATA | kept)
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA})
        if cell.cell_type == "code":
            cell.outputs = _clean_outputs(cell.outputs)
    return nb


def _clean_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        elif output.output_type == "error" or _clean_bundle(output):
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = _ADDRESS.sub("at 0x…", _OVERWRITTEN.sub("", output.text.replace("\r\n", "\n")))
    return [output for output in kept if output.output_type != "stream" or output.text]


def _clean_bundle(output: NotebookNode) -> bool:
    """Clean a display's mime bundle in place; False when nothing is left to show."""
    output.data.pop(WIDGET_VIEW, None)
    output.metadata = nbformat.from_dict({})
    for mime in ("text/plain", "text/html"):
        if mime in output.data:
            output.data[mime] = _ADDRESS.sub("at 0x…", output.data[mime])
    return bool(output.data)


def main(paths: list[str]) -> None:
    """Re-execute and store the notebooks at `paths`, one after another, and print what each took."""
    for path in paths:
        run = execute(path, save=True)
        print(f"{run.path.name}: {run.seconds:.0f} s, {run.peak_bytes / 2**30:.2f} GB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
