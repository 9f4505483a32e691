"""What notebook 14 draws: the memory of a rank, strategy by strategy; timelines, planned and measured; who holds what.

    memory      size, GPUs, precision, checkpointing … ─► plan ─► one bar a strategy, cut by cause, and the line of what there is
    timeline    stages, micro-batches, schedule ─► pipeline.play ─► who does what when, and the idle share
    measured    the timeline that a real run reports ─► the same picture, in milliseconds
    overlap     when DDP's buckets are full, and when their sums are on the way, as a real run reports it
    held        what every strategy's rank really held ─► one bar each, cut by kind, and what the formula says
    vector      parameters in one flat vector, and where it is cut
    collectives  what every rank holds before and after each collective

Does:     figures, their alt text, and the controls for `show.play`.
Leaves out: the numbers (see plan and pipeline).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import show
from . import pipeline, plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MEMORY", "TIMELINE", "collectives", "held", "measured", "memory", "memory_alt", "overlap", "ring", "timeline",
    "timeline_alt", "vector",
]  # fmt: skip

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


def overlap(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> "Figure":
    """A panel a run of DDP, a row a bucket: a dot when its last gradient arrived, a bar while its sum was on the way."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 0.9 + 0.2 * max(map(len, runs.values()))), layout="constrained")
    for ax, (name, rows) in zip(fig.subplots(1, len(runs), sharey=True, squeeze=False)[0], runs.items(), strict=True):
        for bucket, row in enumerate(rows):
            took = 1e3 * (row["ends"] - row["begins"])
            bar = ax.barh(bucket, took, left=1e3 * row["begins"], color=show.COLOURS["sky"])
            dot = ax.plot(1e3 * row["full"], bucket, "o", ms=4, color=show.COLOURS["vermillion"])
        early = sum(row["begins"] < rows[-1]["full"] for row in rows)
        ax.set_title(f"{name}: {early} of {len(rows)} sent before the last was full", loc="left", fontsize=10.5)
        ax.set(xlabel="milliseconds of the backward pass")
    fig.axes[0].set(ylabel="bucket, as they fill up")
    fig.axes[0].yaxis.get_major_locator().set_params(integer=True)
    fig.axes[0].invert_yaxis()
    fig.legend([dot[0], bar], ["bucket full", "sum on the way"], loc="outside lower center", ncols=2, frameon=False)
    return fig


def held(reports: Mapping[str, Mapping[str, Any]], title: str = "") -> "Figure":
    """A bar a strategy of what a rank held of states (`report["bytes"]`); a line where the formula says that it ends."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7.6, 1.2 + 0.32 * len(reports)), layout="constrained")
    ax = fig.subplots()
    kinds = list(PARTS)[:3]
    for place, report in enumerate(reports.values()):
        start = 0.0
        for kind in kinds:
            width = report["bytes"][kind] / 1e6
            ax.barh(place, width, left=start, color=show.COLOURS[PARTS[kind]], label=None if place else kind)
            start += width
        end = sum(report["planned"][kind] for kind in kinds) / 1e6
        ax.plot([end, end], [place - 0.5, place + 0.5], color="black", lw=2, label=None if place else "formula")
    ax.set_yticks(range(len(reports)), list(reports))
    ax.invert_yaxis()
    ax.set(xlabel="MB on a rank, after the backward pass")
    ax.set_title(title, loc="left")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    fig.legend(loc="outside lower center", ncols=4, frameon=False)
    return fig


def vector(sizes: Mapping[str, int], ranks: int) -> "Figure":
    """Parameters behind one another, one colour each; dashed where the vector is cut for the ranks; what is added at its end."""
    from matplotlib.figure import Figure

    from .shards import padded_size

    fig = Figure(figsize=(9, 1.9), layout="constrained")
    ax, start, colours = fig.subplots(), 0, [colour for name, colour in show.COLOURS.items() if name != "black"]
    whole = padded_size(sum(sizes.values()), ranks)
    for i, (name, size) in enumerate(sizes.items()):
        ax.barh(0, size, left=start, color=colours[i % len(colours)], alpha=0.6)
        if size > 0.06 * whole:
            ax.text(start + size / 2, 0, name, ha="center", va="center", fontsize=8.5)
        start += size
    ax.barh(0, whole - start, left=start, color="white", edgecolor="black", hatch="////")
    for rank in range(ranks):
        ax.axvline(rank * whole / ranks, color="black", ls="--", lw=1.5)
        ax.text((rank + 0.5) * whole / ranks, 0.62, f"rank {rank}", ha="center", fontsize=9.5)
    ax.set(yticks=[], ylim=(-0.45, 0.85), xlim=(0, whole), xlabel=f"numbers ({whole - start} of padding at the end)")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    return fig


def collectives() -> "Figure":
    """Each collective on three ranks: rows are ranks, columns chunks; a1 is rank 1's chunk a, Σa the sum over the ranks."""
    from matplotlib.figure import Figure

    own, sums = [[f"{c}{r}" for c in "abc"] for r in range(3)], [f"Σ{c}" for c in "abc"]
    diagonal = [[name if r == c else "" for c, name in enumerate("abc")] for r in range(3)]
    changes = {
        "all-reduce": (own, [sums] * 3),
        "reduce-scatter": (own, [[name if r == c else "" for c, name in enumerate(sums)] for r in range(3)]),
        "all-gather": (diagonal, [list("abc")] * 3),
        "broadcast": ([list("abc"), [""] * 3, [""] * 3], [list("abc")] * 3),
        "all-to-all": (own, [list(column) for column in zip(*own, strict=True)]),
    }
    fig = Figure(figsize=(10.4, 1.9), layout="constrained")
    for ax, (name, sides) in zip(fig.subplots(1, len(changes)), changes.items(), strict=True):
        for left, rows in zip((0, 4), sides, strict=True):
            _grid(ax, left, rows)
        ax.annotate("", (3.9, 1.5), (3.1, 1.5), arrowprops={"arrowstyle": "->"})
        ax.set(xlim=(-0.1, 7.1), ylim=(3.1, -0.1), title=name, aspect="equal", xticks=[])
        ax.set_yticks([0.5, 1.5, 2.5], [f"rank {r}" for r in range(3)] if ax is fig.axes[0] else [""] * 3)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return fig


def _grid(ax: "Axes", left: float, rows: Sequence[Sequence[str]]) -> None:
    """Cells with their names, a colour for each letter; sums are darker."""
    colours = dict(zip("abc", ("sky", "orange", "green"), strict=True))
    for y, row in enumerate(rows):
        for x, name in enumerate(row):
            letter = name.strip("Σ012")
            colour, alpha = (show.COLOURS[colours[letter]], 1.0 if "Σ" in name else 0.45) if name else ("white", 1.0)
            ax.bar(left + x, 1, 1, y, align="edge", color=colour, alpha=alpha, edgecolor="grey")
            ax.text(left + x + 0.5, y + 0.5, name, ha="center", va="center", fontsize=9)
