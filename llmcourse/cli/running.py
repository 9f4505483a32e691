"""Notebooks run without a browser, with a bar per notebook and an honest end: what failed, where, and what it said.

Does:     `llmcourse run`: executes one notebook after another, prints the failing cell and the end of its traceback.
Leaves out: how a kernel is run and stopped (`notebooks`); checks of what a notebook prints (the tests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from .notebooks import NotebookError, Run

__all__ = ["report_failure", "run_all"]

TRACEBACK_LINES = 20


def run_all(paths: Iterable[Path], console: Console, execute: Callable[..., Run], **options: bool) -> list[Path]:
    """Execute each notebook with `execute` (see `notebooks.execute`), report on `console`, and return those that failed."""
    from .notebooks import NotebookError

    failed = []
    for path in paths:
        try:
            run = _run(path, console, execute, options)
            console.print(f"[green]✓[/] {path.name}: {run.seconds:.0f} s, peak {run.peak_bytes / 2**30:.2f} GiB")
        except NotebookError as error:
            failed.append(path)
            report_failure(error, console)
    return failed


def _run(path: Path, console: Console, execute: Callable[..., Run], options: dict[str, bool]) -> Run:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(path.stem, total=None)
        return execute(path, on_cell=lambda done, total: progress.update(task, completed=done, total=total), **options)


def report_failure(error: NotebookError, console: Console) -> None:
    """Print which cell failed, its source, and the last lines of its traceback."""
    from rich.padding import Padding
    from rich.syntax import Syntax
    from rich.text import Text

    where = f"code cell {error.cell}" if error.cell else "the kernel's start"
    console.print(Text(f"✗ {error.path.name}, {where}: {error.ename}: {error.evalue}", style="red"))
    if error.source:
        console.print(Padding(Syntax(error.source.strip(), "python", background_color="default"), (0, 0, 0, 4)))
    lines = error.traceback.splitlines()
    if len(lines) > TRACEBACK_LINES:
        console.print(f"    … {len(lines) - TRACEBACK_LINES} lines above", style="dim")
    console.print(Padding(Text.from_ansi("\n".join(lines[-TRACEBACK_LINES:])), (0, 0, 0, 4)))
