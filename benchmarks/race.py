"""A fair race between two functions that do the same work.

Does:     both in one process, warmed up, in interleaved pairs whose order alternates, so that whatever else the machine does
          falls on both; the ratio ours / theirs of each pair, its median, and a bootstrap 95 % interval of that median.
          The goal "≤ g" is met when the interval's upper end is ≤ g + 0.05. Memory the same way: the most bytes that torch's
          allocator held at once during a call, beyond what it held before.
Leaves out: memory that does not come from torch's CPU allocator (scratch space of the matrix kernels, the interpreter);
          checking that the work is the same (each race asserts that before it starts).
Source:   Efron & Tibshirani 1993, ch. 13 (percentile interval).
"""

import json
import os
import platform
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from time import perf_counter

__all__ = ["Result", "machine", "memory_race", "peak_bytes", "race", "report"]

TOLERANCE = 0.05
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Median seconds (or another unit) of each side, and the ratio ours / theirs with its 95 % interval."""

    name: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    goal: float
    pairs: int
    unit: str = "s"

    @property
    def met(self) -> bool:
        """Whether even the interval's upper end is within the goal's tolerance."""
        return self.high <= self.goal + TOLERANCE


def race(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], *, goal: float, pairs: int = 15, warmup: int = 2
) -> Result:
    """Time `pairs` pairs of calls, ours first in every other one."""
    for _ in range(warmup):
        ours(), theirs()
    return _result(name, [_pair(ours, theirs, swap=bool(i % 2)) for i in range(pairs)], goal, "s")


def memory_race(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], *, goal: float, pairs: int = 3, warmup: int = 2
) -> Result:
    """Peak megabytes of `pairs` pairs of calls; the warm-up makes what lasts, such as an optimiser's state."""
    for _ in range(warmup):
        ours(), theirs()
    return _result(name, [(peak_bytes(ours) / 1e6, peak_bytes(theirs) / 1e6) for _ in range(pairs)], goal, "MB")


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes torch's CPU allocator held at once during the call, beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = run()  # so that a result counts as held
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = accumulate((event.nbytes() for event in events), initial=0)
    del kept
    return max(held)


def _result(name: str, measured: Sequence[tuple[float, float]], goal: float, unit: str) -> Result:
    ratios = [a / b for a, b in measured]
    low, high = interval(ratios)
    ours, theirs = (statistics.median(side) for side in zip(*measured, strict=True))
    sides = {"ours": ours, "theirs": theirs, "ratio": statistics.median(ratios), "low": low, "high": high}
    return Result(name=name, **sides, goal=goal, pairs=len(measured), unit=unit)


def _pair(ours: Callable[[], object], theirs: Callable[[], object], *, swap: bool) -> tuple[float, float]:
    if swap:
        return _pair(theirs, ours, swap=False)[::-1]
    start = perf_counter()
    ours()
    middle = perf_counter()
    theirs()
    return middle - start, perf_counter() - middle


def interval(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """Percentile-bootstrap 95 % interval of the median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples)]


def machine() -> dict[str, object]:
    """What the numbers depend on: processor, threads, versions."""
    import torch

    try:
        busy = round(os.getloadavg()[0], 1)
    except (AttributeError, OSError):  # Windows
        busy = None
    packages = {name: version(name) for name in ("torch", "transformers")}
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"system": system, "python": platform.python_version(), **packages, "threads": torch.get_num_threads(), "load": busy}


def report(file: str, results: Sequence[Result]) -> None:
    """Print a table, and write the results with the machine's description to `results/FILE.json`."""
    from rich.console import Console
    from rich.table import Table

    described = machine()
    title = f"{file}: " + ", ".join(f"{name} {value}" for name, value in described.items())
    table = Table("race", "ours", "theirs", "ratio", "95 % interval", "goal", "verdict", title=title)
    for r in results:
        verdict = "[green]met" if r.met else "[red]not met"
        row = (
            f"{r.ours:.4g} {r.unit}",
            f"{r.theirs:.4g} {r.unit}",
            f"{r.ratio:.3f}",
            f"{r.low:.3f}–{r.high:.3f}",
            f"≤ {r.goal}",
            verdict,
        )
        table.add_row(r.name, *row)
    Console().print(table)
    content = {"machine": described, "results": [asdict(r) | {"met": r.met} for r in results]}
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{file}.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(target)
