"""What a run is (`TrainConfig`) and what became of it (`History`). Knows nothing of models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

__all__ = ["History", "TrainConfig"]

Schedule = Literal["constant", "linear", "cosine", "inverse-sqrt"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run is: change any field above the blank line and a checkpoint of the old run is refused.

    steps: optimizer updates. lr: peak learning rate. warmup: steps of linear rise. final_lr_ratio: the schedule ends here.
    clip: largest gradient norm, None for no clipping. accumulate: micro-batches per update. precision: of the autocast; the
    parameters keep their own dtype. evaluate_every, checkpoint_every: in updates; None means only at the end.
    keep: checkpoints kept. device: None trains where the model already is. bar: show a text progress bar.
    """

    steps: int
    lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: int = 0
    final_lr_ratio: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    accumulate: int = 1
    precision: Precision = "float32"
    seed: int = 0

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
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; choose a value above 0")


def _choice(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(allowed)}")


@dataclass
class History:
    """What happened: `losses` and `lrs` hold one number per update, `evaluations` one dict per evaluation, with its "step".

    seconds: wall time over all sittings of the run. tokens: `input_ids` seen, padding included.
    """

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    evaluations: list[dict[str, int | float]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return len(self.losses)
