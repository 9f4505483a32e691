"""What notebook 14 draws with controls: the memory of a rank, strategy by strategy, and a pipeline's timeline.

    memory      size, GPUs, precision, checkpointing … ─► plan ─► one bar a strategy, cut by cause, and the line of what there is
    timeline    stages, micro-batches, schedule ─► pipeline.play ─► who does what when, and the idle share
    measured    the timeline that a real run reports ─► the same picture, in milliseconds

Does:     figures, their alt text, and the controls for `show.play`.
Leaves out: the numbers (see plan and pipeline).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import show
from . import pipeline, plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MEMORY", "TIMELINE", "measured", "memory", "memory_alt", "ring", "timeline", "timeline_alt"]

MEMORY: dict[str, Any] = {
    "size": ["7B", "1B", "8B", "13B", "70B", "405B", "1T"],
    "gpus": {str(n): n for n in (8, 1, 2, 4, 16, 64, 256, 1024, 4096)},
    "gb": {str(n): n for n in (80, 16, 24, 40, 141)},
    "precision": list(plan.PRECISIONS),
    "micro_batches": (1, 32, 1, 8),
    "seq": {str(n): n for n in (4096, 512, 2048, 8192, 32768)},
    "checkpointing": False,
}
TIMELINE: dict[str, Any] = {"stages": (1, 8, 1, 4), "batches": (1, 16, 1, 4), "schedule": list(plan.SCHEDULES)}

SCHEDULES = {"gpipe": pipeline.gpipe, "1f1b": pipeline.one_f_one_b}
PARTS = {"parameters": "blue", "gradients": "orange", "optimizer": "green", "activations": "purple", "gathered": "sky"}


def _plans(
    size: str, gpus: int, gb: float, precision: str, micro_batches: int, seq: int, checkpointing: bool
) -> dict[str, plan.Plan]:
    model, device = plan.Model.of(size), plan.Device(gb=gb)
    job = plan.Job(micro_batches=micro_batches, seq=seq, precision=precision, checkpointing=checkpointing)
    layouts = {name: plan.layout(name, gpus, model) for name in plan.STRATEGIES}
    return {name: plan.plan(model, layout, job, device) for name, layout in layouts.items()}


def memory(
    size: str = "7B", gpus: int = 8, gb: float = 80, precision: str = "mixed", micro_batches: int = 8, seq: int = 4096,
    checkpointing: bool = False,
) -> "Figure":  # fmt: skip
    """A bar a strategy, made of what a rank holds; beside it bytes sent, idle share and tokens a second."""
    from matplotlib.figure import Figure

    plans = _plans(size, gpus, gb, precision, micro_batches, seq, checkpointing)
    fig = Figure(figsize=(9.6, 4.0), layout="constrained")
    ax = fig.subplots()
    for place, found in enumerate(plans.values()):
        _bar(ax, place, found)
    ax.axvline(gb, color="black", ls="--", lw=1.5)
    ax.set(xlim=(0, 1.5 * gb), xlabel="GB on one rank (dashed: what it has)")
    ax.set_yticks(range(len(plans)), list(plans))
    ax.invert_yaxis()
    fits = [name for name, found in plans.items() if found.fits]
    ax.set_title(f"{size} on {gpus} × {gb:g} GB: {len(fits)} of {len(plans)} strategies fit", loc="left")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), frameon=False)
    return fig


def _bar(ax: "Axes", place: int, found: plan.Plan) -> None:
    """The parts of one plan behind one another, and its numbers beside the axes."""
    start = 0.0
    for part, colour in PARTS.items():
        width = found.memory[part] / 1e9
        ax.barh(place, width, left=start, color=show.COLOURS[colour], label=part if place == 0 else None)
        start += width
    speed = found.tokens / sum(found.seconds.values())
    sent = f"{start:,.3g} GB · sends {sum(found.sent.values()) / 1e9:,.3g} GB · idle {found.bubble:.0%} · {speed:,.0f} tokens/s"
    ax.text(1.02, place, sent, va="center", fontsize=8.5, transform=ax.get_yaxis_transform())


def memory_alt(**values: Any) -> str:
    """What `memory` shows, in words."""
    from inspect import signature

    values = {name: parameter.default for name, parameter in signature(memory).parameters.items()} | values
    plans = _plans(**values)
    read = ", ".join(f"{name} {found.total / 1e9:.3g}{'' if found.fits else ' (too much)'}" for name, found in plans.items())
    return f"Bars of memory in GB on one of {values['gpus']} GPUs for a model of {values['size']}, by strategy: {read}"


def timeline(stages: int = 4, batches: int = 4, schedule: str = "gpipe") -> "Figure":
    """What every stage does when, a forward pass one step long and a backward pass two."""
    spans = pipeline.play(_orders(stages, batches, schedule))
    most = max(pipeline.in_flight(order) for order in _orders(stages, batches, schedule))
    title = f"{schedule}: {pipeline.bubble(spans):.0%} of the time idle, at most {most} micro-batches kept"
    return _drawn(spans, title, "steps (forward 1, backward 2)")


def timeline_alt(stages: int = 4, batches: int = 4, schedule: str = "gpipe") -> str:
    """What `timeline` shows, in words."""
    idle = pipeline.bubble(pipeline.play(_orders(stages, batches, schedule)))
    return f"Timeline of {stages} pipeline stages and {batches} micro-batches under {schedule}; {idle:.0%} of the time is idle"


def measured(spans: Sequence[Sequence[Any]]) -> "Figure":
    """The timeline of a real run, as `train` reports it (`result["1f1b"]["timeline"]`), in milliseconds."""
    found = [[pipeline.Span(pipeline.Action(*action), 1e3 * start, 1e3 * end) for action, start, end in row] for row in spans]
    return _drawn(found, f"measured: {pipeline.bubble(found):.0%} of the time idle", "milliseconds")


def _orders(stages: int, batches: int, schedule: str) -> list[list[pipeline.Action]]:
    return [SCHEDULES[schedule](stages, batches, stage) for stage in range(stages)]


def _drawn(spans: Sequence[Sequence[pipeline.Span]], title: str, xlabel: str) -> "Figure":
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8.6, 1.1 + 0.42 * len(spans)), layout="constrained")
    ax = fig.subplots()
    for stage, row in enumerate(spans):
        for (kind, batch), start, end in row:
            colour = show.COLOURS["sky" if kind == "F" else "orange"]
            ax.barh(stage, end - start, left=start, height=0.85, color=colour, edgecolor="white")
            ax.text((start + end) / 2, stage, f"{kind}{batch}", ha="center", va="center", fontsize=8, clip_on=True)
    ax.set_yticks(range(len(spans)), [f"stage {stage}" for stage in range(len(spans))])
    ax.invert_yaxis()
    ax.set(xlabel=xlabel)
    ax.set_title(title, loc="left")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return fig


def ring(held: Any, title: str = "") -> "Figure":
    """Who holds the sum of how much: [states, ranks, chunks], how many ranks' numbers are in each chunk, one panel a state."""
    from matplotlib.figure import Figure

    (states, ranks, chunks), values = held.shape, held.tolist()
    fig = Figure(figsize=(1.25 * states + 0.8, 2.3), layout="constrained")
    for step, ax in enumerate(fig.subplots(1, states, sharey=True, squeeze=False)[0]):
        ax.imshow(values[step], cmap="Blues", vmin=0, vmax=ranks * 1.4)
        for rank in range(ranks):
            for chunk in range(chunks):
                known = int(values[step][rank][chunk])
                ax.text(chunk, rank, str(known), ha="center", va="center", color="white" if 2 * known > ranks else "black")
        ax.set(xticks=range(chunks), yticks=range(ranks), title="start" if step == 0 else f"step {step}")
        ax.set_xlabel("chunk")
    fig.axes[0].set_ylabel("rank")
    fig.suptitle(title or "How many ranks' numbers each chunk holds", x=0.01, ha="left", fontsize=11)
    return fig
