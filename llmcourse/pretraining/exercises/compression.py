"""Exercises on compression and scaling: one step of the arithmetic coder, bits per byte, a line in log-log axes."""

import math
from random import Random

import torch
from torch import Tensor

from llmcourse.exercise import Exercise, Misconception, register
from llmcourse.pretraining.arithmetic import narrow
from llmcourse.pretraining.compress import bits_per_byte
from llmcourse.pretraining.scaling import straight_line

# --- one step of the arithmetic coder ----------------------------------------------------------------------------------


def _narrow_inputs(trial: int) -> tuple[int, int, int, int, int]:
    rng = Random(trial)
    low, total = (0, 1000, rng.randrange(2**30))[trial % 3], (100, 1 << 24, 999)[trial % 3]
    start = rng.randrange(1, total // 2)
    return low, low + (99, 2**31, 2**30 + 7)[trial % 3], start, start + rng.randrange(total // 10, total // 3), total


def _narrow_one_short(low: int, high: int, start: int, stop: int, total: int) -> tuple[int, int]:
    width = high - low
    return low + width * start // total, low + width * stop // total - 1


def _narrow_overlapping(low: int, high: int, start: int, stop: int, total: int) -> tuple[int, int]:
    width = high - low + 1
    return low + width * start // total, low + width * stop // total


def _narrow_moved_low(low: int, high: int, start: int, stop: int, total: int) -> tuple[int, int]:
    width = high - low + 1
    low = low + width * start // total
    return low, low + width * stop // total - 1


def _narrow_from_zero(low: int, high: int, start: int, stop: int, total: int) -> tuple[int, int]:
    width = high - low + 1
    return width * start // total, width * stop // total - 1


def _narrow_divided_first(low: int, high: int, start: int, stop: int, total: int) -> tuple[int, int]:
    unit = (high - low + 1) // total
    return low + unit * start, low + unit * stop - 1


register(
    Exercise(
        id="pretraining/narrow",
        title="One step of the arithmetic coder",
        reference=narrow,
        inputs=_narrow_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "How many whole numbers are in the interval from `low` to `high` when both belong to it? Call that `width`.",
            "The token owns the shares from `start / total` to `stop / total` of it. Multiply before you divide, and divide with `//`: no fraction may be lost.",
            "`low + width * start // total` is the new low. The next token begins at `low + width * stop // total`, so the new high is one less.",
        ),
        misconceptions=(
            Misconception(
                _narrow_one_short,
                "Your width is one short: both ends belong to the interval, so it holds `high - low + 1` numbers.",
            ),
            Misconception(
                _narrow_overlapping,
                "Your high is the first number of the *next* token: two tokens share it, and the decoder cannot tell them apart. Subtract 1.",
            ),
            Misconception(
                _narrow_moved_low,
                "You compute the new high from the new low. Both ends are measured from the old `low`: keep it until both are known.",
            ),
            Misconception(
                _narrow_from_zero,
                "You forgot to add `low`: right on the first step, where it is 0, and outside the interval on every later one.",
            ),
            Misconception(
                _narrow_divided_first,
                "You divide before you multiply: the remainder of `width // total` is lost, the interval shrinks more than it must, and every token costs more.",
            ),
        ),
    )
)

# --- bits per byte -----------------------------------------------------------------------------------------------------


def _bits_inputs(trial: int) -> tuple[Tensor, str]:
    text = ("Zoë keeps a canary.", "漢字 and naïve words", "Ünlü 🙂", "Four légs")[trial % 4]
    return torch.rand(len(text) // 3 + trial) * 3, text


def _bits_in_nats(losses: Tensor, text: str) -> float:
    return losses.sum().item() / len(text.encode("utf-8"))


def _bits_multiplied(losses: Tensor, text: str) -> float:
    return losses.sum().item() * math.log(2) / len(text.encode("utf-8"))


def _bits_per_token(losses: Tensor, text: str) -> float:
    return losses.sum().item() / math.log(2) / len(losses)


def _bits_per_character(losses: Tensor, text: str) -> float:
    return losses.sum().item() / math.log(2) / len(text)


def _bits_of_mean(losses: Tensor, text: str) -> float:
    return losses.mean().item() / math.log(2) / len(text.encode("utf-8"))


register(
    Exercise(
        id="pretraining/bits_per_byte",
        title="Bits per byte",
        reference=bits_per_byte,
        inputs=_bits_inputs,
        difficulty=1,
        minutes=5,
        hints=(
            "The loss of a token, -ln p, counts nats. One bit is ln 2 ≈ 0.693 nats. The whole text costs the sum over its tokens.",
            "A byte is not a character: `text.encode('utf-8')` gives the bytes.",
            "`losses.sum().item() / math.log(2) / len(text.encode('utf-8'))`.",
        ),
        misconceptions=(
            Misconception(_bits_in_nats, "These are nats per byte. A bit is ln 2 nats: divide by `math.log(2)`."),
            Misconception(
                _bits_multiplied,
                "You multiply by ln 2. A nat is more than a bit (1 / ln 2 ≈ 1.44 of them), so the number must grow: divide.",
            ),
            Misconception(
                _bits_per_token,
                "These are bits per *token*. A tokenizer with longer tokens would look worse for it; divide by the bytes of the text.",
            ),
            Misconception(
                _bits_per_character,
                "You divide by characters. ë has two bytes, 漢 three, 🙂 four: encode the text and count those.",
            ),
            Misconception(
                _bits_of_mean, "You average over tokens and then divide by bytes, too. The text costs the *sum* over its tokens."
            ),
        ),
    )
)

# --- a power law -------------------------------------------------------------------------------------------------------


def _line_inputs(trial: int) -> tuple[list[float], list[float]]:
    rng = Random(trial)
    a, alpha = (20.0, 3.0, 8.0)[trial % 3], (0.2, 0.05, 0.4)[trial % 3]
    x = [10 ** (4 + i / 2 + rng.random() / 4) for i in range(5)]
    return x, [a * each**-alpha * math.exp(rng.gauss(0, 0.03)) for each in x]


def _fitted(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    return slope, mean_y - slope * mean_x


def _logs(values: list[float]) -> list[float]:
    return [math.log(value) for value in values]


def _line_rising(x: list[float], loss: list[float]) -> tuple[float, float]:
    slope, intercept = _fitted(_logs(x), _logs(loss))
    return math.exp(intercept), slope


def _line_log_of_a(x: list[float], loss: list[float]) -> tuple[float, float]:
    slope, intercept = _fitted(_logs(x), _logs(loss))
    return intercept, -slope


def _line_loss_not_logged(x: list[float], loss: list[float]) -> tuple[float, float]:
    slope, intercept = _fitted(_logs(x), list(loss))
    return intercept, -slope


def _line_x_not_logged(x: list[float], loss: list[float]) -> tuple[float, float]:
    slope, intercept = _fitted(list(x), _logs(loss))
    return math.exp(intercept), -slope


def _line_through_two_points(x: list[float], loss: list[float]) -> tuple[float, float]:
    alpha = -(math.log(loss[-1]) - math.log(loss[0])) / (math.log(x[-1]) - math.log(x[0]))
    return loss[0] * x[0] ** alpha, alpha


register(
    Exercise(
        id="pretraining/power_law",
        title="A power law is a line",
        reference=straight_line,
        inputs=_line_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "Take logarithms of L = A · x^-α: log L = log A - α · log x. That is a straight line in log x.",
            "`slope, intercept = np.polyfit(np.log(x), np.log(loss), 1)` fits it. Which of the two numbers is which of A and α?",
            "Return `np.exp(intercept), -slope`, as plain floats: `float(…)`.",
        ),
        misconceptions=(
            Misconception(_line_rising, "Your α is negative: the law says x^-α, so α is *minus* the slope of the line."),
            Misconception(_line_log_of_a, "Your first number is log A. Undo the logarithm: `np.exp(intercept)`."),
            Misconception(
                _line_loss_not_logged, "The loss itself is not a line in log x; its logarithm is. Take `np.log(loss)`, too."
            ),
            Misconception(
                _line_x_not_logged, "You fit against x itself: that is an exponential, e^(-αx). A power law needs `np.log(x)`."
            ),
            Misconception(
                _line_through_two_points,
                "You draw the line through the first and the last point. Each carries its own noise: fit all of them by least squares.",
            ),
        ),
    )
)
