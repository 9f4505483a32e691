"""Is FSDP as fast as DDP? Both PyTorch's own, on the same model, a step each in turns; the measured runs, which ship.

    launch ─► 2 ranks:   DDP step · FSDP2 step │ FSDP2 step · DDP step │ …     each step a pair     ─► the median of the ratios
    5 launches a size    ─► 5 medians ─► their geometric mean with Student's interval

Does:     models of three sizes; results with command, commit, versions and minutes.
Leaves out: GPUs, where wires and kernels are others, and a layer's messages hide behind its arithmetic; our own engines (the race
          in benchmarks/sharding.py).
Source:   Zhao et al. 2023, "PyTorch FSDP", figure 6 (there the models have 0.6 to 11 billion parameters, on 8 GPUs).
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import results
from ..metrics import Interval, student
from . import launch

__all__ = ["COMMAND", "FILE", "SIZES", "Measured", "Run", "load", "measure", "ratios"]

FILE = Path(__file__).with_name("speed.json")
COMMAND = "llmcourse measure fsdp"
SIZES: dict[str, dict[str, int]] = {  # options of scripts/train.py; the first are its own defaults
    "0.3 M": {"width": 64, "layers": 4, "heads": 4, "seq": 32, "batch": 12},
    "1.6 M": {"width": 128, "layers": 8, "heads": 4, "seq": 64, "batch": 8},
    "6.5 M": {"width": 256, "layers": 8, "heads": 8, "seq": 128, "batch": 8},
}
LAUNCHES, STEPS, WARMUP = 5, 24, 3


@dataclass(frozen=True, kw_only=True)
class Run:
    """One launch of one size: seconds of every step of each engine, as rank 0 saw them."""

    size: str
    launch: int
    ddp: tuple[float, ...]
    fsdp: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """FSDP's time over DDP's: the median over the steps, each of them a pair."""
        return statistics.median(ratios(self.ddp, self.fsdp))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All launches, and where they come from."""

    runs: tuple[Run, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def ratio(self, size: str) -> Interval:
        """The geometric mean over the launches."""
        logs = student([math.log(run.ratio) for run in self.runs if run.size == size])
        return Interval(*map(math.exp, logs))

    def seconds(self, size: str) -> tuple[float, float]:
        """DDP's and FSDP's median step."""
        runs = [run for run in self.runs if run.size == size]
        ddp, fsdp = ([t for run in runs for t in getattr(run, side)[WARMUP:]] for side in ("ddp", "fsdp"))
        return statistics.median(ddp), statistics.median(fsdp)


def ratios(ddp: Sequence[float], fsdp: Sequence[float]) -> list[float]:
    """Of every step behind the first ones, in which memory is taken and code is loaded."""
    return [theirs / ours for ours, theirs in list(zip(ddp, fsdp, strict=True))[WARMUP:]]


def measure(out: Path = FILE) -> Measured:
    """Run all launches, sizes in turns, and write the file when they are done."""
    began, runs = time.monotonic(), []
    for number in range(LAUNCHES):
        for size, options in SIZES.items():
            done = launch.run("train", ranks=2, patience=600, strategy=["torch-ddp", "fsdp2"], steps=STEPS, **options)
            first = done.results[0]
            times = {"ddp": tuple(first["torch-ddp"]["seconds"]), "fsdp": tuple(first["fsdp2"]["seconds"])}
            runs.append(Run(size=size, launch=number, **times))
    provenance = results.provenance(COMMAND, (time.monotonic() - began) / 60, "torch")
    listed = [asdict(run) | {side: [round(t, 5) for t in getattr(run, side)] for side in ("ddp", "fsdp")} for run in runs]
    results.write(out, results.lines(provenance, listed))
    return load(out)


def load(path: Path = FILE) -> Measured:
    """The measured runs.

    Raises: FileNotFoundError or ValueError, which name the command to measure them.
    """
    provenance, listed = results.read(path, COMMAND, "FSDP against DDP")
    with results.damaged(path, COMMAND):
        runs = tuple(Run(**run | {side: tuple(run[side]) for side in ("ddp", "fsdp")}) for run in listed)
    return Measured(runs=runs, provenance=provenance)
