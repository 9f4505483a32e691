"""Learning-rate schedules: each gives the factor on the peak learning rate at a step.

Does:     constant, linear, cosine, inverse square root, after a linear warm-up.
Source:   Loshchilov & Hutter 2017, eq. 5; Vaswani et al. 2017, eq. 3.
"""

from __future__ import annotations

import math

from llmcourse.train.settings import TrainConfig

__all__ = ["constant", "cosine", "inverse_sqrt", "linear", "lr_multiplier"]


def constant(step: int, config: TrainConfig) -> float:
    """The peak learning rate, all the way."""
    return 1.0


def linear(step: int, config: TrainConfig) -> float:
    """A straight line from 1 after the warm-up to `final_lr_ratio` at the end."""
    return 1 - (1 - config.final_lr_ratio) * _progress(step, config)


def cosine(step: int, config: TrainConfig) -> float:
    """Half a cosine from 1 after the warm-up to `final_lr_ratio` at the end (Loshchilov & Hutter 2017)."""
    half_wave = (1 + math.cos(math.pi * _progress(step, config))) / 2
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * half_wave


def inverse_sqrt(step: int, config: TrainConfig) -> float:
    """√(warmup / step), never below `final_lr_ratio` (Vaswani et al. 2017, eq. 3)."""
    start = max(1, config.warmup)
    return max(config.final_lr_ratio, math.sqrt(start / max(step, start)))


def _progress(step: int, config: TrainConfig) -> float:
    return (step - config.warmup) / max(1, config.steps - config.warmup)


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine, "inverse-sqrt": inverse_sqrt}


def lr_multiplier(step: int, config: TrainConfig) -> float:
    """The factor on every learning rate at `step` (from 0). The warm-up starts above zero, so that no step is wasted."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return SCHEDULES[config.schedule](step, config)
