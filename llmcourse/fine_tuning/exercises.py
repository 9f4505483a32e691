"""The exercises of notebook 03: each reference is the package's own function, each wrong answer one plausible edit away from it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from llmcourse import metrics

from ..exercise import Arguments, Exercise, Misconception, register
from .classify import pooled, sequence_log_probs
from .drift import remembered
from .forgetting import distance_penalty
from .formats import Marks, pair

# --- confusion matrix ------------------------------------------------------------------------------------------------


def _labels_inputs(trial: int) -> tuple[list[int], list[int], int]:
    """The last class occurs in neither list; one class is never guessed."""
    classes, size = (4, 5, 3)[trial % 3], (15, 30, 9)[trial % 3]
    truth, guesses = (torch.randint(classes - 1, (size,)).tolist() for _ in range(2))
    return [0, 0, 1, *truth], [0, 1, 1, *(max(0, guess - 1) for guess in guesses)], classes


def _confusion_transposed(truth: Sequence[int], guesses: Sequence[int], classes: int) -> np.ndarray:
    return metrics.confusion(guesses, truth, classes)


def _confusion_errors_only(truth: Sequence[int], guesses: Sequence[int], classes: int) -> np.ndarray:
    matrix = metrics.confusion(truth, guesses, classes)
    return matrix - np.diag(np.diagonal(matrix))


def _confusion_seen_once(truth: Sequence[int], guesses: Sequence[int], classes: int) -> np.ndarray:
    return np.minimum(metrics.confusion(truth, guesses, classes), 1)


register(
    Exercise(
        id="fine_tuning/confusion",
        title="The confusion matrix",
        reference=metrics.confusion,
        inputs=_labels_inputs,
        difficulty=1,
        minutes=5,
        hints=(
            "Start with zeros, `np.zeros((classes, classes), dtype=np.int64)`, and count one for every example.",
            "Row: the true class. Column: the guess. Loop over `zip(truth, guesses)`.",
            "`matrix[true, guess] += 1`. With arrays, `matrix[truth, guesses] += 1` counts a pair only once: use `np.add.at` or the loop.",
        ),
        misconceptions=(
            Misconception(
                _confusion_transposed,
                "Rows and columns are swapped: here row t holds the examples that *are* of class t, column g those *called* g.",
            ),
            Misconception(
                _confusion_errors_only, "Only the errors are counted. The diagonal, right guesses, belongs to the matrix too."
            ),
            Misconception(
                _confusion_seen_once,
                "Each pair is counted at most once: `matrix[truth, guesses] += 1` does that with repeated indices. Use a loop or `np.add.at`.",
            ),
        ),
    )
)

# --- macro-F1 --------------------------------------------------------------------------------------------------------


def _f1_micro(truth: Sequence[int], guesses: Sequence[int], classes: int, zero_division: float = 0.0) -> float:
    return metrics.f1(metrics.confusion(truth, guesses, classes), "micro")


def _f1_of_means(truth: Sequence[int], guesses: Sequence[int], classes: int, zero_division: float = 0.0) -> float:
    matrix = metrics.confusion(truth, guesses, classes)
    p, r = metrics.precision(matrix), metrics.recall(matrix)
    return 2 * p * r / (p + r)


def _f1_weighted(truth: Sequence[int], guesses: Sequence[int], classes: int, zero_division: float = 0.0) -> float:
    return metrics.f1(metrics.confusion(truth, guesses, classes), "weighted")


def _f1_absent_left_out(truth: Sequence[int], guesses: Sequence[int], classes: int, zero_division: float = 0.0) -> float:
    return metrics.macro_f1(truth, guesses, classes, zero_division=float("nan"))


def _f1_recall(truth: Sequence[int], guesses: Sequence[int], classes: int, zero_division: float = 0.0) -> float:
    return metrics.recall(metrics.confusion(truth, guesses, classes))


register(
    Exercise(
        id="fine_tuning/macro_f1",
        title="Macro-F1",
        reference=metrics.macro_f1,
        inputs=_labels_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "For each class: hits (true and guessed), how often it is true, how often it is guessed.",
            "F1 of a class is `2 * hits / (true + guessed)`, and `zero_division` for a class that is neither true nor guessed.",
            "The score is the plain mean over *all* `classes`, rare ones as much as common ones.",
        ),
        misconceptions=(
            Misconception(
                _f1_micro,
                "That is the accuracy: you pooled the counts of all classes (micro). Compute F1 class by class, then take the mean.",
            ),
            Misconception(
                _f1_of_means,
                "You averaged precision and recall first. Macro-F1 is the mean of the classes' F1, which is not the F1 of the means.",
            ),
            Misconception(
                _f1_weighted,
                "You weighted each class by how often it occurs, so a rare class hardly counts. Macro means that all count the same.",
            ),
            Misconception(
                _f1_absent_left_out,
                "You left out the class that nobody names. Here it counts `zero_division`: divide by `classes`.",
            ),
            Misconception(_f1_recall, "That is the mean recall: false alarms cost nothing. F1 divides by true + guessed."),
        ),
    )
)

# --- the pair format -------------------------------------------------------------------------------------------------


def _pair_inputs(trial: int) -> tuple[list[int], list[int], Marks]:
    first, second = (torch.randint(10, 80, (size + trial,)).tolist() for size in (4, 2))
    return first, second, Marks(start=90 + trial, delimiter=80, extract=99 - trial)


def _pair_undelimited(first: Sequence[int], second: Sequence[int], marks: Marks, longest: int | None = None) -> list[int]:
    return [marks.start, *first, *second, marks.extract]


def _pair_swapped(first: Sequence[int], second: Sequence[int], marks: Marks, longest: int | None = None) -> list[int]:
    return pair(second, first, marks)


def _pair_extract_first(first: Sequence[int], second: Sequence[int], marks: Marks, longest: int | None = None) -> list[int]:
    return [marks.extract, *first, marks.delimiter, *second, marks.start]


def _pair_delimited_twice(first: Sequence[int], second: Sequence[int], marks: Marks, longest: int | None = None) -> list[int]:
    return [marks.start, *first, marks.delimiter, *second, marks.delimiter, marks.extract]


register(
    Exercise(
        id="fine_tuning/pair",
        title="Two texts in one row",
        reference=pair,
        inputs=_pair_inputs,
        difficulty=1,
        minutes=4,
        hints=(
            "The model must know where the first text ends. And a decoder must have read both before it answers.",
            "start, first text, delimiter, second text, extract.",
            "`[marks.start, *first, marks.delimiter, *second, marks.extract]`.",
        ),
        misconceptions=(
            Misconception(_pair_undelimited, "Nothing tells where the first text ends. Put `marks.delimiter` between the two."),
            Misconception(
                _pair_swapped, "The two texts are in the wrong order. Premise first: for entailment the order is the meaning."
            ),
            Misconception(
                _pair_extract_first,
                "[extract] stands in front, as BERT's [CLS] does. A decoder looks to the left only: at the front it has read nothing yet.",
            ),
            Misconception(_pair_delimited_twice, "One delimiter too many: it stands between the texts, not behind the last."),
        ),
    )
)

# --- where a decoder's head looks ------------------------------------------------------------------------------------


def _pooled_inputs(trial: int) -> Arguments:
    lengths = torch.tensor([3, 6, 1, 5]).roll(trial)
    mask = (torch.arange(6) < lengths[:, None]).long()
    return Arguments(torch.randn(4, 6, 5), mask.flip(1) if trial % 3 == 1 else mask, "last")


def _pooled_last_column(states: Tensor, mask: Tensor, pool: str) -> Tensor:
    return states[:, -1]


def _pooled_first_column(states: Tensor, mask: Tensor, pool: str) -> Tensor:
    return states[:, 0]


def _pooled_by_count(states: Tensor, mask: Tensor, pool: str) -> Tensor:
    return states[torch.arange(len(states)), mask.sum(1) - 1]


def _pooled_mean(states: Tensor, mask: Tensor, pool: str) -> Tensor:
    return pooled(states, mask, "mean")


register(
    Exercise(
        id="fine_tuning/pooled",
        title="The place that has read everything",
        reference=pooled,
        inputs=_pooled_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            'Here `pool` is always "last": from each text take the state of its last token that is not padding. Padding may be on either side.',
            "Number the places with `torch.arange(mask.shape[1])`; where the mask is 0 put -1 instead.",
            "`place = torch.where(mask.bool(), places, -1).amax(1)`, then `states[torch.arange(len(states)), place]`.",
        ),
        misconceptions=(
            Misconception(
                _pooled_last_column,
                "You take the last column, which is padding for the shorter texts. Find each text's last token with the mask.",
            ),
            Misconception(
                _pooled_first_column,
                "The first place of a decoder has seen only itself. That is where an *encoder's* head looks.",
            ),
            Misconception(
                _pooled_by_count,
                "Right when the padding is on the right, wrong when it is on the left: the number of tokens is then not the place of the last.",
            ),
            Misconception(
                _pooled_mean,
                "That is the mean over the tokens. A fair choice, but not the one asked for: take the last token's state.",
            ),
        ),
    )
)

# --- label words -----------------------------------------------------------------------------------------------------


def _answer_inputs(trial: int) -> tuple[Tensor, Tensor]:
    answers = torch.randint(7, (3, 4))
    answers[1, 2:], answers[2, 1:] = -100, -100
    return torch.randn(3, 4, 7) * 2, answers


def _answer_logits(logits: Tensor, answers: Tensor) -> Tensor:
    return logits.gather(-1, answers.clamp_min(0)[..., None])[..., 0].masked_fill(answers < 0, 0).sum(1)


def _answer_mean(logits: Tensor, answers: Tensor) -> Tensor:
    return sequence_log_probs(logits, answers) / (answers >= 0).sum(1)


def _answer_padding(logits: Tensor, answers: Tensor) -> Tensor:
    return sequence_log_probs(logits, answers.clamp_min(0))


def _answer_first(logits: Tensor, answers: Tensor) -> Tensor:
    return sequence_log_probs(logits[:, :1], answers[:, :1])


def _answer_probability(logits: Tensor, answers: Tensor) -> Tensor:
    return sequence_log_probs(logits, answers).exp()


register(
    Exercise(
        id="fine_tuning/answer_score",
        title="How likely is a label word?",
        reference=sequence_log_probs,
        inputs=_answer_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            "The probability of a word is the product over its tokens, so its logarithm is a sum.",
            "`logits.log_softmax(-1)`, then `gather` the value of each answer's token. -100 is no valid index: clamp it first.",
            "`.masked_fill(answers < 0, 0).sum(1)` leaves out what is not a token.",
        ),
        misconceptions=(
            Misconception(
                _answer_logits, "You add up raw logits. They are log-probabilities only after `log_softmax` over the vocabulary."
            ),
            Misconception(
                _answer_mean,
                "You divide by the number of tokens. The log-probability of the word is the sum; a mean would favour long words.",
            ),
            Misconception(_answer_padding, "Places with -100 are counted as token 0. They are padding: they add nothing."),
            Misconception(_answer_first, "Only the first token is scored. Two words may begin alike: add the others."),
            Misconception(
                _answer_probability,
                "That is the probability; asked for is its logarithm, which does not vanish for long answers.",
            ),
        ),
    )
)

# --- EWC -------------------------------------------------------------------------------------------------------------

Weights = Mapping[str, Tensor]


def _penalty_inputs(trial: int) -> tuple[dict[str, Tensor], dict[str, Tensor], float, dict[str, Tensor]]:
    shapes = {"weight": (3, 4 + trial), "bias": (3,)}
    now, start = ({name: torch.randn(shape) for name, shape in shapes.items()} for _ in range(2))
    return now, start, (0.5, 3.0, 1.5)[trial % 3], {name: torch.rand(shape) * 2 for name, shape in shapes.items()}


def _penalty_doubled(now: Weights, start: Weights, strength: float, importance: Weights | None = None) -> Tensor:
    return distance_penalty(now, start, 2 * strength, importance)


def _penalty_alike(now: Weights, start: Weights, strength: float, importance: Weights | None = None) -> Tensor:
    return distance_penalty(now, start, strength)


def _penalty_to_zero(now: Weights, start: Weights, strength: float, importance: Weights | None = None) -> Tensor:
    return distance_penalty(now, {name: torch.zeros_like(weight) for name, weight in start.items()}, strength, importance)


def _penalty_unsquared(now: Weights, start: Weights, strength: float, importance: Weights | None = None) -> Tensor:
    return strength / 2 * sum((importance[name] * (now[name] - start[name]).abs()).sum() for name in start)


def _penalty_importance_inside(now: Weights, start: Weights, strength: float, importance: Weights | None = None) -> Tensor:
    return distance_penalty(now, start, strength, {name: value**2 for name, value in importance.items()})


def _penalty_mean(now: Weights, start: Weights, strength: float, importance: Weights | None = None) -> Tensor:
    return distance_penalty(now, start, strength, {name: value / value.numel() for name, value in importance.items()})


register(
    Exercise(
        id="fine_tuning/ewc_penalty",
        title="EWC: hold what the old task needs",
        reference=distance_penalty,
        inputs=_penalty_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            "Each weight has a spring to where it was; the Fisher value says how stiff the spring is.",
            "For every name: `importance[name] * (now[name] - start[name]) ** 2`, summed up.",
            "Add up over all names and multiply by `strength / 2`. (Without an importance all springs are alike: L2 to the start.)",
        ),
        misconceptions=(
            Misconception(
                _penalty_doubled, "Twice the expected value: the equation has λ/2, so that the gradient is λ F (θ - θ*)."
            ),
            Misconception(
                _penalty_alike,
                "All weights are held alike: that is L2 to the start. EWC multiplies each square by its Fisher value.",
            ),
            Misconception(
                _penalty_to_zero,
                "You pull the weights to zero, which is weight decay. EWC pulls them to where they *were*: subtract `start`.",
            ),
            Misconception(_penalty_unsquared, "You take the distance itself. The penalty is quadratic: square the difference."),
            Misconception(
                _penalty_importance_inside,
                "The Fisher value is squared with the distance. It stands outside the square: F · (θ - θ*)².",
            ),
            Misconception(
                _penalty_mean, "You take the mean over each tensor's weights. The equation sums: each weight has its own spring."
            ),
        ),
    )
)

# --- reservoir sampling ----------------------------------------------------------------------------------------------


Items = list[int]


def _memory_inputs(trial: int) -> tuple[Items, int, int, int, float]:
    """(seen, capacity, draw): while it fills, at the first item too many, and long after."""
    cases = ((3, 5, 0.3), (5, 5, 0.1), (6, 5, 0.83), (9, 5, 0.41), (20, 5, 0.22), (7, 3, 0.45), (40, 8, 0.9), (9, 4, 0.44))
    seen, capacity, draw = cases[trial % 8]
    return list(range(10, 10 + min(seen - 1, capacity))), 99, seen, capacity, draw


def _put(memory: Items, item: int, place: int) -> Items:
    return [*memory[:place], item, *memory[place + 1 :]]


def _memory_always(memory: Items, item: int, seen: int, capacity: int, draw: float) -> Items:
    return _put(memory, item, int(draw * capacity) if seen > capacity else len(memory))


def _memory_never(memory: Items, item: int, seen: int, capacity: int, draw: float) -> Items:
    return [*memory, item][:capacity]


def _memory_ring(memory: Items, item: int, seen: int, capacity: int, draw: float) -> Items:
    return [*memory, item][-capacity:]


def _memory_coin(memory: Items, item: int, seen: int, capacity: int, draw: float) -> Items:
    return remembered(memory, item, min(seen, 2 * capacity), capacity, draw)


def _memory_of_those_before(memory: Items, item: int, seen: int, capacity: int, draw: float) -> Items:
    return remembered(memory, item, seen if seen <= capacity else max(seen - 1, capacity + 1), capacity, draw)


register(
    Exercise(
        id="fine_tuning/reservoir",
        title="A fair memory of an endless stream",
        reference=remembered,
        inputs=_memory_inputs,
        trials=8,
        difficulty=2,
        minutes=8,
        hints=(
            "While there is room (`seen <= capacity`, the new item counted) the item is simply added.",
            "Afterwards it must enter with probability capacity / seen, in the place of any old one, all equally likely.",
            "`place = int(draw * seen)`. Below `capacity` the item takes that place; otherwise the memory stays as it is.",
        ),
        misconceptions=(
            Misconception(
                _memory_always,
                "Every new item replaces an old one, so old ones die out. It must enter with probability capacity / seen only.",
            ),
            Misconception(
                _memory_never, "Once full, your memory never changes: it holds the beginning of the stream, not a sample of all."
            ),
            Misconception(_memory_ring, "Yours holds the latest items. A reservoir holds a fair sample of *everything* seen."),
            Misconception(
                _memory_coin,
                "Every item enters with the same probability of one half, so the latest are favoured. It must fall with `seen`: draw among `seen` places.",
            ),
            Misconception(_memory_of_those_before, "Off by one: draw among all `seen` items, the new one included."),
        ),
    )
)
