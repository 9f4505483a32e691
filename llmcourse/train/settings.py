"""What a run is (`TrainConfig`, `Recovery`) and what became of it (`History`). Knows nothing of models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = ["History", "Recovery", "TrainConfig"]

Schedule = Literal["constant", "linear", "cosine", "inverse-sqrt", "wsd"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What a loss spike is, and how a run gets past it (see `spikes`).

    window: how many of the last losses are the normal; until half as many exist, only a loss that is not finite is a spike.
    threshold: a loss this many robust standard deviations (1.4826 · MAD) above their median is a spike.
    skip: batches left out: the spike's own and those just before it. limit: spikes after which the run gives up.
    """

    window: int = 64
    threshold: float = 10.0
    skip: int = 4
    limit: int = 10

    def __post_init__(self) -> None:
        for name, least in (("window", 4), ("skip", 1), ("limit", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"recover.{name} is {getattr(self, name)}; choose {least} or more")
        if self.threshold <= 0:
            raise ValueError(f"recover.threshold is {self.threshold}; choose a value above 0 (10 rarely fires without a reason)")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run is: change any field above the blank line and a checkpoint of the old run is refused.

    steps: optimizer updates. lr: peak learning rate. warmup: steps of linear rise. final_lr_ratio: the schedule ends here.
    decay_share: the last part of the run, in which "wsd" falls. clip: largest gradient norm, None for no clipping. accumulate:
    micro-batches per update. precision: of the autocast; the parameters keep their own dtype.

    recover: how to get past loss spikes, None to take them as they come; it can be set when a run has already spiked.
    evaluate_every, checkpoint_every: in updates; None means only at the end. keep: checkpoints kept. device: None trains where
    the model already is. bar: show a text progress bar.
    """

    steps: int
    lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: int = 0
    final_lr_ratio: float = 0.0
    decay_share: float = 0.2
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    accumulate: int = 1
    precision: Precision = "float32"
    seed: int = 0

    recover: Recovery | None = None
    device: str | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    bar: bool = True

    def __post_init__(self) -> None:
        _choice("schedule", self.schedule, get_args(Schedule))
        _choice("precision", self.precision, get_args(Precision))
        for name in ("steps", "accumulate", "keep", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; choose 1 or more")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup is {self.warmup} steps of {self.steps}; choose 0–{self.steps}")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}; choose a value above 0, at most 1")
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; choose a value above 0")
        self._check_reach()

    def _check_reach(self) -> None:
        """The oldest checkpoint kept must come before the first batch that a recovery leaves out."""
        if self.recover and self.checkpoint_every and (self.keep - 1) * self.checkpoint_every < self.recover.skip - 1:
            raise ValueError(
                f"keep={self.keep} checkpoints, one every {self.checkpoint_every} steps, do not reach back over recover.skip="
                f"{self.recover.skip} batches; raise keep or checkpoint_every until (keep - 1) · checkpoint_every ≥ skip - 1"
            )


def _choice(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(allowed)}")


@dataclass
class History:
    """What happened: `losses` and `lrs` hold one number per update, `evaluations` one dict per evaluation, with its "step".

    seconds: wall time over all sittings of the run, undone updates included. tokens: `input_ids` seen, padding included.
    recoveries: one dict per loss spike: the `step` and `loss` where it was seen, the step the run went `back_to`, and the numbers
    of the batches `skipped` from then on (in units of `accumulate` micro-batches).
    """

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    evaluations: list[dict[str, int | float]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    recoveries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return len(self.losses)
