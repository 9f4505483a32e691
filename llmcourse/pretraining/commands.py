"""The commands of this topic: `llmcourse pretrain NAME`, and `llmcourse measure skills` or `scaling`.

Does:     remakes an embedded model; prints what it can do; trains the grid of small models behind the scaling laws.
Leaves out: the work, which is imported when a command is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["MEASUREMENTS", "pretrain", "register", "scaling", "skills"]


def register(app: typer.Typer) -> None:
    """Add this topic's commands to the application."""
    app.command()(pretrain)


def pretrain(
    name: Annotated[str, typer.Argument(help="The model to make, e.g. tiny-gpt.")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; default: in place of the shipped one.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on where the last call stopped, or start anew.")] = True,
    steps: Annotated[int | None, typer.Option(help="Train for so many steps instead (written beside the checkpoints).")] = None,
    threads: Annotated[int, typer.Option(help="Threads; the shipped weights were made with 1.", min=1)] = 1,
) -> None:
    """Make an embedded model again from its seed. Ctrl-C saves the place; the same command goes on."""
    from llmcourse.pretraining.making import make

    try:
        folder = make(name, out=out, resume=resume, steps=steps, threads=threads)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (ValueError, OSError, RuntimeError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{name} is ready in {folder}")


def skills(name: str = "tiny-gpt") -> None:
    """Measure what an embedded model can do, and print it: `llmcourse measure skills NAME`."""
    from rich.console import Console
    from rich.table import Table

    from llmcourse import zoo
    from llmcourse.pretraining.making import measured
    from llmcourse.world import World

    for title, rows in measured(*zoo.load(name), World()).items():
        table = Table(*rows[0], title=f"{name}: {title}")
        for row in rows:
            table.add_row(*row.values())
        Console().print(table)


def scaling() -> None:
    """Train the grid of small models behind the scaling laws (about 6 minutes); finished runs are kept."""
    from llmcourse.pretraining import scaling_grid

    try:
        measured = scaling_grid.run_grid()
    except KeyboardInterrupt:
        print("finished runs are kept; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"{len(measured.runs)} runs in {measured.provenance['minutes']} minutes are in {scaling_grid.FILE}")


MEASUREMENTS: dict[str, Callable[..., None]] = {"skills": skills, "scaling": scaling}
