"""The commands of this topic: `llmcourse measure peft`.

Does:     trains every method on two twins and several models, with a learning rate of its own.
Leaves out: the work, which is imported when a command is called.
"""

import sys
from collections.abc import Callable

import typer

__all__ = ["MEASUREMENTS", "peft", "register"]


def register(app: typer.Typer) -> None:
    """This topic adds measurements only."""


def peft() -> None:
    """Compare all methods, sixteen in number, and their sweeps (about 25 minutes); finished runs are kept."""
    from llmcourse.peft import grid

    try:
        measured = grid.measure()
    except KeyboardInterrupt:
        print("finished runs are kept; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"{len(measured.runs)} runs in {measured.provenance['minutes']} minutes are in {grid.FILE}")


MEASUREMENTS: dict[str, Callable[..., None]] = {"peft": peft}
