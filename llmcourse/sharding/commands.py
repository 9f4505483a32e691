"""The commands of this topic: `llmcourse plan 7B --gpus 8 --gb 80`, and `llmcourse measure fsdp`.

Does:     prints what every strategy needs: bytes a rank, bytes it sends, idle time, and the largest model that fits; times FSDP
          against DDP.
Leaves out: the work, which is imported when the command is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

__all__ = ["MEASUREMENTS", "fsdp", "plan", "register"]


def register(app: typer.Typer) -> None:
    """Add this topic's command to the application."""
    app.command()(plan)


def plan(
    size: Annotated[str, typer.Argument(help="Parameters: 7B, 350M, 1.3T.")],
    gpus: Annotated[int, typer.Option(help="How many GPUs.")] = 8,
    gb: Annotated[float, typer.Option(help="Memory of each, in 10⁹ bytes.")] = 80.0,
    strategy: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences in a micro-batch.")] = 1,
    micro_batches: Annotated[int, typer.Option(help="Micro-batches a step, on each data-parallel rank.")] = 8,
    seq: Annotated[int, typer.Option(help="Tokens in a sequence.")] = 4096,
    precision: Annotated[str, typer.Option(help="mixed (bf16 with float32 masters), float32 or bfloat16.")] = "mixed",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations again.")] = False,
    trained: Annotated[float, typer.Option(help="Share of the weights that is trained; LoRA: 0.01.")] = 1.0,
    per_node: Annotated[int, typer.Option(help="GPUs in one machine.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a training run: memory, messages, idle time and the largest model that fits, for every strategy."""
    from . import plan as planner

    try:
        job = planner.Job(
            batch=batch, micro_batches=micro_batches, seq=seq, precision=precision, checkpointing=checkpointing, trained=trained
        )
        model, device = planner.Model.of(size), planner.Device(gb=gb, per_node=per_node)
        rows = planner.table(model, gpus, job, device, strategy or planner.STRATEGIES)
    except ValueError as error:
        print(f"plan: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    _show(rows, f"{model.parameters / 1e9:.3g} × 10⁹ parameters on {gpus} × {gb:g} GB", as_json)


def _show(rows: list[dict], title: str, as_json: bool) -> None:
    """JSON, or the table that notebooks show, as text: GB of a rank by cause, then the rest."""
    import json

    from llmcourse.show.tables import table_html

    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print(table_html(rows, caption=f"{title}; GB of one rank, by what they hold")[1])


def fsdp() -> None:
    """Time PyTorch's FSDP and DDP in turns on two ranks (about 6 minutes; the machine should have nothing else to do)."""
    from . import speed

    measured = speed.measure()
    print(f"{len(measured.runs)} launches in {measured.provenance['minutes']} minutes are in {speed.FILE}")


MEASUREMENTS: dict[str, Callable[..., None]] = {"fsdp": fsdp}
