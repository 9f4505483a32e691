"""Learning-rate schedules: each gives the factor on the peak learning rate at a step.

    linear ╱╲__    cosine ╱⁀╲_    inverse-sqrt ╱╲⁓__    wsd ╱‾‾‾╲

Does:     constant, linear, cosine, inverse square root, warm-up–stable–decay, after a linear warm-up.
Leaves out: restarts; schedules that watch the loss.
Source:   Loshchilov & Hutter 2017, eq. 5; Vaswani et al. 2017, eq. 3; Hu et al. 2024 §4 (warm-up–stable–decay);
          Hägele et al. 2024 §3 (1 - √ as its decay).
"""

from __future__ import annotations

import math

from llmcourse.train.settings import TrainConfig

__all__ = ["constant", "cosine", "inverse_sqrt", "linear", "lr_multiplier", "warmup_cosine", "wsd"]


def constant(step: int, config: TrainConfig) -> float:
    """The peak learning rate, all the way."""
    return 1.0


def linear(step: int, config: TrainConfig) -> float:
    """A straight line from 1 after the warm-up to `final_lr_ratio` at the end."""
    return 1 - (1 - config.final_lr_ratio) * _progress(step, config)


def cosine(step: int, config: TrainConfig) -> float:
    """Half a cosine from 1 after the warm-up to `final_lr_ratio` at the end (Loshchilov & Hutter 2017)."""
    return warmup_cosine(step, config.steps, config.warmup, config.final_lr_ratio)


def warmup_cosine(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    """The factor at `step` (from 0): it rises to 1 at step `warmup` - 1, then falls along half a cosine to `final` at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def inverse_sqrt(step: int, config: TrainConfig) -> float:
    """√(warmup / step), never below `final_lr_ratio` (Vaswani et al. 2017, eq. 3)."""
    start = max(1, config.warmup)
    return max(config.final_lr_ratio, math.sqrt(start / max(step, start)))


def wsd(step: int, config: TrainConfig) -> float:
    """1 until the last `decay_share` of the run, then 1 - √ down to `final_lr_ratio`: a run can be prolonged from its plateau."""
    begin = max(config.warmup, config.steps - round(config.decay_share * config.steps))
    fallen = math.sqrt(max(0, step - begin) / max(1, config.steps - begin))
    return 1 - (1 - config.final_lr_ratio) * fallen


def _progress(step: int, config: TrainConfig) -> float:
    return (step - config.warmup) / max(1, config.steps - config.warmup)


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine, "inverse-sqrt": inverse_sqrt, "wsd": wsd}


def lr_multiplier(step: int, config: TrainConfig) -> float:
    """The factor on every learning rate at `step` (from 0). The warm-up starts above zero, so that no step is wasted."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return SCHEDULES[config.schedule](step, config)
