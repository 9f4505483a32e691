"""Scores, their uncertainty, and the paired test: written once, for every notebook.

                     guessed                       hits = the diagonal
                   a    b    c
        true a   [ 8    1    0 ]                   precision = hits / column sum     of those called c, how many are c
             b   [ 2    5    1 ]                   recall    = hits / row sum        of those that are c, how many were found
             c   [ 0    0    9 ]                   F1        = 2 · hits / (row sum + column sum)

    macro: the mean over classes      weighted: the mean by row sum      micro: all counts pooled; here it equals accuracy

A class that is neither true nor guessed has no F1, one that is never guessed no precision, one that never occurs no recall. Each
then takes the value `zero_division`, as in scikit-learn: 0 (the default: a class nobody could score on counts as failed), 1, or
NaN, which leaves the class out of the mean. `f1` with NaN is what scikit-learn computes when it is not told the `labels`.

Does:     the confusion matrix and everything from it, also for a batch of matrices; ROUGE-1, -2 and -L against one or several
          references; 95 % intervals over examples and over seeds; the difference of two methods, paired, with the sign-flip test.
Leaves out: stemming (ROUGE) and languages other than those of a–z; a guess outside the classes, which is refused; verdicts (see
          `claims`, whose effects are the `Interval`s made here).
Source:   Lin 2004 (ROUGE; tokens as in the `rouge-score` package); Efron 1979 (bootstrap); Fisher 1935 (sign flips); Hyyrö 2004
          (longest common subsequence in bit vectors).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "Interval",
    "Rouge",
    "accuracy",
    "bootstrap",
    "confusion",
    "f1",
    "macro_f1",
    "over_examples",
    "paired",
    "paired_over_examples",
    "precision",
    "prediction_interval",
    "recall",
    "rouge",
    "sign_flip",
    "student",
]

Labels = Sequence[int] | np.ndarray | Tensor
Values = Sequence[float] | np.ndarray | Tensor
Matrix = Int[np.ndarray, "*batch classes classes"]
Scores = float | Float[np.ndarray, "*scores"]
Average = Literal["macro", "micro", "weighted"] | None
Score = Callable[[np.ndarray], "Scores"]

EXACT = 14  # up to so many pairs every pattern of signs is tried, beyond it 20,000 random ones


class Interval(NamedTuple):
    """An estimate with its 95 % interval: the (mean, low, high) that a claim's rule takes."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


class Rouge(NamedTuple):
    """precision: the share of the guess's units that are in the reference. recall: the other way round. f1: of both."""

    precision: float
    recall: float
    f1: float


# ---- from the confusion matrix ----------------------------------------------------------------------------------------


def confusion(truth: Labels, guesses: Labels, classes: int) -> Int[np.ndarray, "classes classes"]:
    """How often each true class (row) was guessed as each class (column).

    Raises: ValueError for no examples, different lengths, or a label outside 0 … classes - 1.
    """
    true, guessed = (_labels(given, name, classes) for given, name in ((truth, "truth"), (guesses, "guesses")))
    if len(true) != len(guessed):
        raise ValueError(f"{len(true)} true labels but {len(guessed)} guesses; give one guess for each")
    return np.bincount(true * classes + guessed, minlength=classes**2).reshape(classes, classes)


def accuracy(matrix: Matrix) -> Scores:
    """The share of right guesses."""
    return _plain(_hits(matrix).sum(-1) / matrix.sum((-2, -1)))


def precision(matrix: Matrix, average: Average = "macro", zero_division: float = 0.0) -> Scores:
    """Of those called a class, the share that are it; `average=None` gives one number a class (on the last axis)."""
    return _averaged(_hits(matrix), matrix.sum(-2), matrix.sum(-1), average, zero_division)


def recall(matrix: Matrix, average: Average = "macro", zero_division: float = 0.0) -> Scores:
    """Of those that are of a class, the share that were found; `average=None` gives one number a class."""
    return _averaged(_hits(matrix), matrix.sum(-1), matrix.sum(-1), average, zero_division)


def f1(matrix: Matrix, average: Average = "macro", zero_division: float = 0.0) -> Scores:
    """The harmonic mean of precision and recall of each class; `average=None` gives one number a class.

    The macro average is the mean of the classes' F1, not the F1 of the mean precision and recall.
    """
    return _averaged(2 * _hits(matrix), matrix.sum(-1) + matrix.sum(-2), matrix.sum(-1), average, zero_division)


def macro_f1(truth: Labels, guesses: Labels, classes: int, zero_division: float = 0.0) -> float:
    """`f1` of the `confusion` matrix. Raises as `confusion` does."""
    return float(f1(confusion(truth, guesses, classes), "macro", zero_division))


def _labels(given: Labels, name: str, classes: int) -> Int[np.ndarray, " examples"]:
    labels = np.asarray(given)
    if labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be a row of class numbers; got shape {labels.shape} of {labels.dtype}")
    if labels.min() < 0 or labels.max() >= classes:
        outside = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"{name} holds the label {outside}, outside 0–{classes - 1}; classes={classes}")
    return labels.astype(np.int64)


def _hits(matrix: Matrix) -> Int[np.ndarray, "*batch classes"]:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _averaged(numerator: np.ndarray, denominator: np.ndarray, true: np.ndarray, average: Average, undefined: float) -> Scores:
    """numerator / denominator of every class, brought together; `true` is how often each class occurs."""
    if average == "micro":
        numerator, denominator = numerator.sum(-1), denominator.sum(-1)
    shares = np.divide(numerator, denominator, out=np.full(numerator.shape, undefined, float), where=denominator != 0)
    if average in (None, "micro"):
        return _plain(shares)
    if average not in ("macro", "weighted"):
        raise ValueError(f"average {average!r} is unknown; choose macro, micro, weighted or None")
    return _plain(_mean(shares, true if average == "weighted" else np.ones_like(true)))


def _mean(shares: np.ndarray, weights: np.ndarray) -> np.ndarray | float:
    """The weighted mean over the last axis, NaN left out; plain where no weight is left, NaN where no number is."""
    known = ~np.isnan(shares)
    weights = np.where(known, weights, 0)
    weights = np.where(weights.sum(-1, keepdims=True) == 0, known, weights)
    with np.errstate(invalid="ignore"):
        return (np.nan_to_num(shares) * weights).sum(-1) / weights.sum(-1)


def _plain(values: np.ndarray | float) -> Scores:
    return float(values) if np.ndim(values) == 0 else values


# ---- summaries --------------------------------------------------------------------------------------------------------


def rouge(guess: str, references: str | Sequence[str]) -> dict[str, Rouge]:
    """ROUGE-1, -2 and -L of a text: "rouge1", "rouge2", "rougeL". Of several references each takes the one with the best F1.

    Raises: ValueError without a reference.
    """
    targets = [_tokens(text) for text in ([references] if isinstance(references, str) else references)]
    if not targets:
        raise ValueError("no reference; give at least one text to compare with")
    own = _tokens(guess)
    kinds = {"rouge1": lambda target: _ngrams(own, target, 1), "rouge2": lambda target: _ngrams(own, target, 2),
             "rougeL": lambda target: _rouge(_common(own, target), len(own), len(target))}  # fmt: skip
    return {name: max(map(score, targets), key=lambda found: found.f1) for name, score in kinds.items()}


def _tokens(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _ngrams(guess: list[str], target: list[str], n: int) -> Rouge:
    ours, theirs = (Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (guess, target))
    return _rouge((ours & theirs).total(), ours.total(), theirs.total())


def _rouge(common: int, guessed: int, true: int) -> Rouge:
    p, r = common / max(guessed, 1), common / max(true, 1)
    return Rouge(p, r, 2 * p * r / (p + r) if common else 0.0)


def _common(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence. Bit i of `row` is 0 where a[i] makes it longer: one addition a token of b."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    everywhere = row = (1 << len(a)) - 1
    for token in b:
        matches = row & places.get(token, 0)
        row = (row + matches) | (row - matches)
    return len(a) - (row & everywhere).bit_count()


# ---- uncertainty ------------------------------------------------------------------------------------------------------


def over_examples(
    matrix: Int[np.ndarray, "classes classes"], score: Score = f1, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """`score` of a confusion matrix with its percentile bootstrap interval: what another test set of this size would give.

    Drawing examples with replacement is drawing cells of the matrix, so a whole draw is one multinomial. The interval knows
    nothing of other training runs: see `student` for those.
    """
    drawn = _resampled(matrix, draws, seed)
    return _percentiles(float(score(matrix)), np.asarray(score(drawn)), level)


def paired_over_examples(
    truth: Labels, treatment: Labels, baseline: Labels, classes: int, score: Score = f1, *,
    draws: int = 2000, level: float = 0.95, seed: int = 0,
) -> Interval:  # fmt: skip
    """score(treatment) - score(baseline) on the same examples; both are judged on the same draws. Raises as `confusion` does."""
    pairs = confusion(treatment, baseline, classes)  # checks lengths and labels of both
    true = _labels(truth, "truth", classes)
    if len(true) != pairs.sum():
        raise ValueError(f"{len(true)} true labels but {pairs.sum()} guesses of each method; give as many")
    cells = (true * classes + np.asarray(treatment)) * classes + np.asarray(baseline)
    cube = np.bincount(cells, minlength=classes**3).reshape(classes, classes, classes)
    difference = [score(counts.sum(-1)) - score(counts.sum(-2)) for counts in (cube, _resampled(cube, draws, seed))]
    return _percentiles(float(difference[0]), np.asarray(difference[1]), level)


def bootstrap(values: Values, *, draws: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of one number an example (a ROUGE score, a log-probability) with its percentile bootstrap interval.

    Of seeds there are too few: with 5 values, such a "95 %" interval holds the truth 83 times in 100 (normal values). Take
    `student`. Raises: ValueError for fewer than 2 values, or one that is not finite.
    """
    given = _values(values, "values")
    chosen = np.random.default_rng(seed).integers(len(given), size=(draws, len(given)))
    return _percentiles(float(given.mean()), given[chosen].mean(-1), level)


def student(values: Values, *, level: float = 0.95) -> Interval:
    """The mean of one number a seed with Student's interval, mean ± t · s / √n: right from 2 normal values on.

    Raises: ValueError for fewer than 2 values, or one that is not finite.
    """
    given = _values(values, "values")
    mean, error = float(given.mean()), float(given.std(ddof=1)) / len(given) ** 0.5
    reach = _quantile(len(given) - 1, level) * error
    return Interval(mean, mean - reach, mean + reach)


def prediction_interval(values: Values, *, level: float = 0.95) -> Interval:
    """The mean, and where one more value like these should fall: mean ± t · s · √(1 + 1/n). A run once more is held against it.

    Raises: ValueError as `student`.
    """
    mean, low, _ = student(values, level=level)
    reach = (mean - low) * (len(values) + 1) ** 0.5
    return Interval(mean, mean - reach, mean + reach)


def paired(treatment: Values, baseline: Values, interval: Callable[[np.ndarray], Interval] = student) -> Interval:
    """treatment - baseline with its interval, item i of both being made with the same seed (or example): what claims judge.

    `interval` is `student` (seeds) or `bootstrap` (many examples). Raises: ValueError for different lengths, or as `student`.
    """
    return interval(_differences(treatment, baseline))


def sign_flip(treatment: Values, baseline: Values, *, seed: int = 0) -> float:
    """The p-value (two-sided) of "no difference": how often the paired differences, each with a random sign, add up to as much.

    Nothing is assumed but that a difference is as likely as its opposite. n pairs cannot give less than 2 / 2ⁿ: five seeds
    0.0625, six 0.03125. Raises: ValueError as `paired` does.
    """
    differences = _differences(treatment, baseline)
    count = len(differences)
    if count <= EXACT:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(20_000, count))
        signs[0] = 1  # what was seen is one of the patterns: no p-value is 0
    sums = np.abs(signs @ differences)
    return float((sums >= abs(differences.sum()) - 1e-12 * np.abs(differences).sum()).mean())


def _differences(treatment: Values, baseline: Values) -> Float[np.ndarray, " pairs"]:
    ours, theirs = _values(treatment, "treatment"), _values(baseline, "baseline")
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values of treatment but {len(theirs)} of baseline; pairs share a seed, so give as many")
    return ours - theirs


def _values(given: Values, name: str) -> Float[np.ndarray, " values"]:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name} must be a row of 2 numbers or more (one alone has no spread); got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {values[~np.isfinite(values)][0]}; find out why that measurement failed")
    return values


def _resampled(counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts.ravel() / counts.sum(), size=draws)
    return drawn.reshape(draws, *counts.shape)


def _percentiles(estimate: float, drawn: Float[np.ndarray, " draws"], level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    # Rounding, or the bias of a score such as F1 on few examples, may push the estimate outside: the interval is then widened.
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))


def _quantile(freedom: int, level: float) -> float:
    """The t for which P(|T| ≤ t) = level. With T = √freedom · tan θ the density of θ is ∝ cos^(freedom - 1) θ: sum it up."""
    theta = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos((theta[1:] + theta[:-1]) / 2) ** (freedom - 1)
    below = np.concatenate(([0.0], np.cumsum(density))) / density.sum()
    return float(freedom**0.5 * np.tan(np.interp(level, below, theta)))
