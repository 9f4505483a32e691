"""The exercise of notebook 00."""

import torch
from torch import Tensor

from ..exercise import Exercise, Misconception, register
from . import softmax_with_temperature


def _inputs(trial: int) -> tuple[Tensor, float]:
    return torch.randn(2, 7) * 3, (0.5, 2.0, 0.25, 4.0)[trial % 4]


def _multiplied(logits: Tensor, temperature: float) -> Tensor:
    return (logits * temperature).softmax(dim=-1)


def _ignored(logits: Tensor, temperature: float) -> Tensor:
    return logits.softmax(dim=-1)


def _too_late(logits: Tensor, temperature: float) -> Tensor:
    return logits.softmax(dim=-1) / temperature


def _wrong_axis(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(dim=0)


register(
    Exercise(
        id="start_here/temperature",
        title="Softmax with a temperature",
        reference=softmax_with_temperature,
        inputs=_inputs,
        difficulty=1,
        minutes=3,
        hints=(
            "Change the logits first, then make probabilities of them.",
            "Dividing by a small temperature makes differences between logits larger, so the choice becomes surer.",
            "One line: `(logits / temperature).softmax(dim=-1)`.",
        ),
        misconceptions=(
            Misconception(_multiplied, "You multiply by the temperature. Then a *high* temperature makes the choice surer; it must be the other way round: divide."),
            Misconception(_ignored, "The temperature has no effect: your result is the plain softmax. Divide the logits by it first."),
            Misconception(_too_late, "You divide the probabilities, so they no longer sum to 1. Divide the logits, before the softmax."),
            Misconception(_wrong_axis, "You normalise over the first axis (the batch). Each row must sum to 1: use the last axis, `dim=-1`."),
        ),
    )
)
