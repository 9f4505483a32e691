"""pytest plugin: nbval plus what it lets pass.

Adds to each notebook: an item `clean` (`problems` finds nothing), an item `claims` (fresh claims agree with the stored ones),
an item `budget` (peak memory). Makes a cell that runs out of time fail even when it swallows the interrupt, and a dead kernel
fail at once instead of after the time-out.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty

import nbval.plugin as nbval
import pytest

from llmcourse.claims import differences, read
from llmcourse.cli.notebooks import PeakMemory
from llmcourse.cli.problems import problems

MAX_BYTES = 3 * 2**30
_cost: dict[str, tuple[float, int]] = {}


class NotebookFailure(Exception):
    """A failure told by its message alone; the traceback through pytest says nothing."""


class Item(pytest.Item):
    """An item that belongs to the notebook as a whole."""

    def repr_failure(self, excinfo: pytest.ExceptionInfo) -> str:
        return str(excinfo.value) if excinfo.errisinstance(NotebookFailure) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}::{self.name}"


class Clean(Item):
    def runtest(self) -> None:
        if found := problems(self.path):
            raise NotebookFailure("\n".join(found))


class CleanFile(pytest.File):
    """A collector apart from nbval's, so that looking at a file starts no kernel."""

    def collect(self) -> Iterator[Clean]:
        yield Clean.from_parent(self, name="clean")


class Cell(nbval.IPyNbCell):
    def runtest(self) -> None:
        already = self.parent.timed_out
        super().runtest()
        if self.parent.timed_out and not already:  # the cell caught the KeyboardInterrupt
            self.raise_cell_error(f"Timeout of {self.config.option.nbval_cell_timeout:g} seconds exceeded while executing cell.")


class Claims(Item):
    """Fresh claims and expectations of ordinary cells against the stored ones: GPU cells are idle when a notebook is stored."""

    def runtest(self) -> None:
        cells = [cell for cell in self.parent.cells if not cell.cell.source.startswith("%%gpu")]
        stored = read({"cells": [{"outputs": cell.cell.outputs} for cell in cells]})
        fresh = read({"cells": [{"outputs": cell.test_outputs or []} for cell in cells]})
        if found := differences(stored, fresh):
            raise NotebookFailure("\n".join(found))


class Budget(Item):
    def runtest(self) -> None:
        seconds, peak = time.monotonic() - self.parent.started, self.parent.memory.stop()
        self.user_properties.append(("notebook_cost", (self.path.name, seconds, peak)))
        if peak > MAX_BYTES:
            raise NotebookFailure(f"{self.path.name} held {peak / 2**30:.2f} GB; a notebook may hold {MAX_BYTES / 2**30:.0f} GB")


class Notebook(nbval.IPyNbFile):
    def collect(self) -> Iterator[pytest.Item]:
        fields = ("name", "cell_num", "cell", "options")
        self.cells = [Cell.from_parent(self, **{name: getattr(cell, name) for name in fields}) for cell in super().collect()]
        yield from self.cells
        yield Claims.from_parent(self, name="claims")
        yield Budget.from_parent(self, name="budget")

    def setup(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="llmcourse-home-", ignore_cleanup_errors=True)
        os.environ["LLMCOURSE_HOME"] = self._home.name
        self.started = time.monotonic()
        super().setup()
        self.kernel.await_reply = _Watchful(self.kernel)
        self.memory = PeakMemory(self.kernel.km.provisioner.pid)

    def teardown(self) -> None:
        super().teardown()
        self._home.cleanup()


class _Watchful:
    """nbval's `await_reply`, which otherwise waits for a dead kernel until the cell's time is out."""

    def __init__(self, kernel: object) -> None:
        self.kernel, self.wait = kernel, kernel.await_reply

    def __call__(self, msg_id: str, timeout: float | None = None) -> None:
        deadline = time.monotonic() + (timeout or 1e9)
        while True:
            try:
                return self.wait(msg_id, timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            except Empty:
                if not self.kernel.is_alive():
                    raise NotebookFailure("the kernel died (out of memory?)") from None
                if time.monotonic() >= deadline:
                    raise


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Iterator[None]:
    """Put ours in the place of nbval's collector."""
    collectors = yield
    if not any(isinstance(collector, nbval.IPyNbFile) for collector in collectors):
        return collectors
    return [CleanFile.from_parent(parent, path=file_path), Notebook.from_parent(parent, path=file_path)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "notebook_cost" and report.when == "call":
            notebook, seconds, peak = value
            _cost[notebook] = (seconds, peak)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for notebook, (seconds, peak) in sorted(_cost.items()):
        terminalreporter.write_line(f"{notebook}: {seconds:.0f} s, peak {peak / 2**30:.2f} GB")
