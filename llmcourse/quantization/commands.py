"""The commands of this topic: `llmcourse measure qlora`.

Does:     trains LoRA and QLoRA in pairs with the same seeds.
Leaves out: the work, which is imported when a command is called.
"""

import sys
from collections.abc import Callable

import typer

__all__ = ["MEASUREMENTS", "qlora", "register"]


def register(app: typer.Typer) -> None:
    """This topic adds measurements only."""


def qlora() -> None:
    """Train LoRA and QLoRA with the same seeds (about 5 minutes on a quiet machine); finished runs are kept."""
    from llmcourse.quantization import par

    try:
        measured = par.measure()
    except KeyboardInterrupt:
        print("finished runs are kept; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"{len(measured.runs)} runs in {measured.provenance['minutes']} minutes are in {par.FILE}")


MEASUREMENTS: dict[str, Callable[..., None]] = {"qlora": qlora}
