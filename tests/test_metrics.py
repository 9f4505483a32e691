"""Metrics: equal to scikit-learn and rouge-score (golden values), to slow definitions, and honest about uncertainty."""

from __future__ import annotations

import itertools
import math
import random

import jaxtyping
import numpy as np
import pytest
import torch

from llmcourse import metrics
from llmcourse.claims.rules import rises, within_margin

NAN = math.nan


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time type checker, which would speak before our own message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def drawn(size: int, classes: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(classes, size=size).tolist()


# ---- the confusion matrix ---------------------------------------------------------------------------------------------


def test_rows_of_the_confusion_matrix_are_the_true_classes_and_columns_the_guesses():
    """Two of class 0 were called 2; nobody was called the other way round."""
    matrix = metrics.confusion([0, 0, 0, 1, 2], [2, 2, 0, 1, 2], 4)
    assert matrix.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, tuple])
def test_labels_may_be_a_list_an_array_or_a_tensor(kind):
    """The same counts whatever holds the labels."""
    truth, guesses = drawn(17, 3, 0), drawn(17, 3, 1)
    assert (metrics.confusion(kind(truth), kind(guesses), 3) == metrics.confusion(truth, guesses, 3)).all()


def by_definition(truth: list[int], guesses: list[int], classes: int, undefined: float) -> list[list[float]]:
    """Precision, recall, F1 of each class, counted example by example."""
    found = []
    for label in range(classes):
        hits = sum(t == g == label for t, g in zip(truth, guesses, strict=True))
        wrong = sum(g == label != t for t, g in zip(truth, guesses, strict=True))
        missed = sum(t == label != g for t, g in zip(truth, guesses, strict=True))
        pairs = ((hits, hits + wrong), (hits, hits + missed), (2 * hits, 2 * hits + wrong + missed))
        found.append([above / below if below else undefined for above, below in pairs])
    return found


@pytest.mark.parametrize(("size", "classes", "seed"), [(40, 3, 0), (7, 6, 1), (3, 5, 2), (101, 2, 3)])
@pytest.mark.parametrize("undefined", [0.0, 1.0, NAN])
def test_each_class_scores_as_defined(size, classes, seed, undefined):
    """Per class, against a slow count, classes that nobody names among them."""
    truth, guesses = drawn(size, classes, seed), drawn(size, classes, seed + 50)
    matrix = metrics.confusion(truth, guesses, classes)
    ours = [score(matrix, None, undefined) for score in (metrics.precision, metrics.recall, metrics.f1)]
    np.testing.assert_allclose(np.stack(ours, 1), by_definition(truth, guesses, classes, undefined), rtol=1e-12)


PLAIN = (
    [2, 1, 1, 0, 0, 0, 0, 0, 0, 2, 1, 2, 1, 1, 2, 2, 1, 1, 1, 2, 0, 2, 2, 0, 1, 2, 1, 0, 2, 2],
    [2, 0, 0, 2, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 2, 1, 1, 0, 1, 2, 1, 1, 2, 2, 2, 1, 2, 2, 1],
    3,
)
UNGUESSED = [0, 0, 1, 2, 2, 1], [0, 1, 1, 1, 0, 0], 3
UNTRUE = [0, 0, 1, 1, 0], [0, 2, 1, 2, 0], 3
UNNAMED = [0, 1, 0, 3, 3], [0, 1, 1, 3, 0], 4
WRONG = [0, 0, 0], [1, 1, 1], 2

# scikit-learn 1.9.1: precision_recall_fscore_support(truth, guesses, labels=range(classes), average=…, zero_division=…)[:3],
# for macro, then weighted.
SKLEARN = [
    (PLAIN, 0.0, (0.369360, 0.365657, 0.365581), (0.374175, 0.366667, 0.368388)),
    (UNGUESSED, 0.0, (0.222222, 0.333333, 0.266667), (0.222222, 0.333333, 0.266667)),
    (UNGUESSED, 1.0, (0.555556, 0.333333, 0.266667), (0.555556, 0.333333, 0.266667)),
    (UNGUESSED, NAN, (0.333333, 0.333333, 0.266667), (0.333333, 0.333333, 0.266667)),
    (UNTRUE, 0.0, (0.666667, 0.388889, 0.488889), (1.0, 0.6, 0.746667)),
    (UNTRUE, 1.0, (0.666667, 0.722222, 0.488889), (1.0, 0.6, 0.746667)),
    (UNTRUE, NAN, (0.666667, 0.583333, 0.488889), (1.0, 0.6, 0.746667)),
    (UNNAMED, 0.0, (0.5, 0.5, 0.458333), (0.7, 0.6, 0.6)),
    (UNNAMED, 1.0, (0.75, 0.75, 0.708333), (0.7, 0.6, 0.6)),
    (UNNAMED, NAN, (0.666667, 0.666667, 0.611111), (0.7, 0.6, 0.6)),
    (WRONG, 0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    (WRONG, 1.0, (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)),
    (WRONG, NAN, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
]


@pytest.mark.parametrize(("case", "undefined", "macro", "weighted"), SKLEARN)
def test_averages_equal_scikit_learns_for_every_rule_about_absent_classes(case, undefined, macro, weighted):
    """Macro and weighted precision, recall and F1, with zero_division 0, 1 and NaN."""
    matrix = metrics.confusion(*case)
    for average, expected in (("macro", macro), ("weighted", weighted)):
        ours = [score(matrix, average, undefined) for score in (metrics.precision, metrics.recall, metrics.f1)]
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_micro_averages_are_all_the_accuracy():
    """Every wrong guess is one class's false alarm and another's miss, so the pooled counts agree."""
    matrix = metrics.confusion(*PLAIN)
    for score in (metrics.precision, metrics.recall, metrics.f1):
        assert score(matrix, "micro") == metrics.accuracy(matrix) == pytest.approx(11 / 30)


def test_macro_f1_is_the_mean_of_f1_and_not_f1_of_the_means():
    """The two differ as soon as a class has unequal precision and recall."""
    p, r = (score(metrics.confusion(*UNTRUE)) for score in (metrics.precision, metrics.recall))
    assert metrics.macro_f1(*UNTRUE) == pytest.approx((4 / 5 + 2 / 3) / 3)
    assert abs(metrics.macro_f1(*UNTRUE) - 2 * p * r / (p + r)) > 1e-3
    assert metrics.macro_f1(*UNNAMED, zero_division=1) == pytest.approx(metrics.f1(metrics.confusion(*UNNAMED), "macro", 1.0))


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
def test_a_batch_of_matrices_scores_as_one_by_one(average):
    """Leading axes are a batch."""
    batch = np.random.default_rng(0).integers(0, 3, size=(2, 5, 4, 4))
    for score in (metrics.precision, metrics.recall, metrics.f1):
        whole = score(batch, average)
        single = [[score(matrix, average) for matrix in row] for row in batch]
        np.testing.assert_allclose(whole, single, rtol=1e-12)


@pytest.mark.parametrize(
    ("truth", "guesses", "message"),
    [
        ([0, 1], [0], "2 true labels but 1 guesses"),
        ([0, 3], [0, 1], "truth holds the label 3, outside 0–2"),
        ([0, 1], [0, -1], "guesses holds the label -1"),
        ([], [], "truth must be a row of class numbers"),
        ([0.5, 1.0], [0, 1], "float64"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused(truth, guesses, message, unchecked):
    """The message names which list, and what is wrong with it."""
    with pytest.raises(ValueError, match=message):
        metrics.confusion(truth, guesses, 3)


def test_an_unknown_average_is_refused_with_the_choices(unchecked):
    """Not silently the macro one."""
    with pytest.raises(ValueError, match="average 'mean' is unknown; choose macro"):
        metrics.f1(metrics.confusion(*PLAIN), "mean")


# ---- ROUGE ------------------------------------------------------------------------------------------------------------

# rouge-score 0.1.2: RougeScorer(["rouge1", "rouge2", "rougeL"]).score_multi(references, guess), without stemming
ROUGE = [
    ("The cat sat on the mat.", ["the cat lay on a mat"], (2 / 3,) * 3, (0.2,) * 3, (2 / 3,) * 3),
    (
        "Ada Vale lost a lamp; Ada found it!",
        ["Ada Vale lost a lamp at the mill and found it again.", "A lamp was lost, and found again."],
        (0.875, 0.583333, 0.7), (0.714286, 0.454545, 0.555556), (0.875, 0.583333, 0.7),
    ),
    ("café-noir 42 x", ["Cafe noir: 42"], (0.5, 0.666667, 0.571429), (0.333333, 0.5, 0.4), (0.5, 0.666667, 0.571429)),
    ("a b c d", ["d c b a", "a c b d", "x"], (1.0,) * 3, (0.0,) * 3, (0.75,) * 3),
    ("", ["something"], (0.0,) * 3, (0.0,) * 3, (0.0,) * 3),
    ("one", ["one"], (1.0,) * 3, (0.0,) * 3, (1.0,) * 3),
    ("no overlap here", ["entirely different words"], (0.0,) * 3, (0.0,) * 3, (0.0,) * 3),
    ("the the the the", ["the cat the dog"], (0.5,) * 3, (0.0,) * 3, (0.5,) * 3),
]  # fmt: skip


@pytest.mark.parametrize(("guess", "references", "one", "two", "longest"), ROUGE)
def test_rouge_equals_the_rouge_score_package(guess, references, one, two, longest):
    """Precision, recall and F of each, with case, marks, repeats, empty texts and several references."""
    found = metrics.rouge(guess, references)
    np.testing.assert_allclose([found["rouge1"], found["rouge2"], found["rougeL"]], [one, two, longest], atol=1e-6)


def test_each_rouge_takes_its_own_best_reference_and_a_text_is_one_reference():
    """ROUGE-1 may take one reference and ROUGE-L another; both are whole triples, not best values mixed."""
    found = metrics.rouge("a b c", ["c b a", "a b x y"])
    assert found["rouge1"] == metrics.rouge("a b c", "c b a")["rouge1"]
    assert found["rougeL"] == metrics.rouge("a b c", "a b x y")["rougeL"]
    precise, balanced = "a b c d e f g h i", "a b"  # the best F1 counts, not the best precision
    assert metrics.rouge("a b c", [precise, balanced])["rouge1"] == metrics.rouge("a b c", balanced)["rouge1"]


def test_rouge_l_finds_the_longest_common_subsequence():
    """Against trying every subsequence of random texts."""
    rng = random.Random(0)
    for _ in range(60):
        a, b = ([rng.choice("abcd") for _ in range(rng.randint(1, 8))] for _ in range(2))
        parts = [set(itertools.chain(*(itertools.combinations(x, n) for n in range(len(x) + 1)))) for x in (a, b)]
        longest = max(map(len, parts[0] & parts[1]))
        assert metrics.rouge(" ".join(a), " ".join(b))["rougeL"].precision == pytest.approx(longest / len(a))


def test_rouge_without_a_reference_is_refused():
    """Rather than a score of 0."""
    with pytest.raises(ValueError, match="no reference"):
        metrics.rouge("a", [])


# ---- uncertainty ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "t"), [(2, 12.7062), (3, 4.30265), (5, 2.77645), (6, 2.57058), (31, 2.04227), (1001, 1.96234)])
def test_students_interval_uses_the_table_of_t(count, t):
    """mean ± t · s / √n with t of n - 1 degrees of freedom, from the printed tables."""
    values = np.arange(count) * 0.5
    found = metrics.student(values)
    reach = t * values.std(ddof=1) / count**0.5
    np.testing.assert_allclose(found, (values.mean(), values.mean() - reach, values.mean() + reach), rtol=1e-4)


def test_of_five_normal_seeds_students_interval_covers_95_in_100_and_the_bootstrap_about_83():
    """Why seeds get Student's interval: measured on 2,000 samples of 5."""
    samples = np.random.default_rng(0).normal(size=(2000, 5))
    covered = {}
    for name, made in (("student", metrics.student), ("bootstrap", lambda row: metrics.bootstrap(row, draws=400))):
        intervals = [made(row) for row in samples]
        covered[name] = np.mean([each.low <= 0 <= each.high for each in intervals])
    assert covered["student"] == pytest.approx(0.95, abs=0.015)
    assert covered["bootstrap"] == pytest.approx(0.83, abs=0.03)


def test_a_sixth_normal_value_falls_into_the_prediction_of_five_95_times_in_100():
    """The interval is one for the next run, not for the mean: measured on 2,000 samples of 6."""
    samples = np.random.default_rng(0).normal(size=(2000, 6))
    intervals = [metrics.prediction_interval(row[:5]) for row in samples]
    held = [each.low <= row[5] <= each.high for each, row in zip(intervals, samples, strict=True)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_the_bootstrap_of_many_values_agrees_with_students():
    """With 400 values both are mean ± 1.96 standard errors."""
    values = np.random.default_rng(1).exponential(size=400)
    np.testing.assert_allclose(metrics.bootstrap(values), metrics.student(values), atol=0.015)


def test_an_interval_holds_its_own_estimate_even_without_spread():
    """Equal values: rounding must not push the mean out, or a claim would refuse it."""
    for made in (metrics.student, metrics.bootstrap):
        found = made([0.1] * 7)
        assert found.low <= found.mean <= found.high
        assert found.high - found.low < 1e-12


def test_an_interval_is_widened_to_its_estimate_where_the_score_is_biased():
    """A draw never fills more cells of the matrix than there are: every draw lies below the estimate."""
    found = metrics.over_examples(np.ones((6, 6), dtype=np.int64), lambda matrix: (matrix > 0).sum((-2, -1)).astype(float))
    assert found.low < 30 < found.mean == found.high == 36


def test_over_examples_is_the_bootstrap_over_examples():
    """Drawing cells of the matrix gives the interval that drawing examples gives."""
    truth, guesses = np.array(drawn(80, 3, 5)), np.array(drawn(80, 3, 6))
    guesses[:50] = truth[:50]
    rows = np.random.default_rng(2).integers(80, size=(3000, 80))
    slow = np.quantile([metrics.macro_f1(truth[row], guesses[row], 3) for row in rows], [0.025, 0.975])
    found = metrics.over_examples(metrics.confusion(truth, guesses, 3), draws=3000)
    assert found.mean == metrics.macro_f1(truth, guesses, 3)
    np.testing.assert_allclose(found[1:], slow, atol=0.012)


def test_over_examples_takes_any_score_and_level_and_repeats_itself():
    """The same seed gives the same interval; a lower level a narrower one; accuracy the binomial one."""
    matrix = np.array([[45, 5], [5, 45]])
    wide, narrow = (metrics.over_examples(matrix, metrics.accuracy, level=level, draws=4000) for level in (0.95, 0.5))
    assert wide == metrics.over_examples(matrix, metrics.accuracy, draws=4000)
    assert wide != metrics.over_examples(matrix, metrics.accuracy, draws=4000, seed=1)
    assert wide.low < narrow.low < 0.9 < narrow.high < wide.high
    assert (wide.high - wide.low) / 2 == pytest.approx(1.96 * (0.9 * 0.1 / 100) ** 0.5, rel=0.1)


def test_paired_over_examples_is_narrower_than_two_intervals_when_methods_agree():
    """The same draws judge both methods, so what they share cancels."""
    truth = np.array(drawn(200, 2, 0))
    baseline = np.where(np.random.default_rng(3).random(200) < 0.25, 1 - truth, truth)
    treatment = np.where(np.arange(200) < 150, baseline, truth)
    found = metrics.paired_over_examples(truth, treatment, baseline, 2, metrics.accuracy)
    each = metrics.over_examples(metrics.confusion(truth, baseline, 2), metrics.accuracy)
    assert found.mean == pytest.approx((treatment == truth).mean() - (baseline == truth).mean())
    assert found.low > 0
    assert found.high - found.low < 0.7 * (each.high - each.low)
    assert metrics.paired_over_examples(truth, baseline, baseline, 2) == (0, 0, 0)


def test_paired_over_examples_tells_treatment_from_baseline():
    """The sign is that of treatment - baseline."""
    found = metrics.paired_over_examples([0, 1] * 20, [0, 1] * 20, [0, 0] * 20, 2)
    assert found.mean == pytest.approx(1 - 1 / 3)


def test_paired_differences_are_what_claims_judge():
    """The interval goes into a rule as it is, and pairing removes what seeds have in common."""
    baseline = np.array([60.0, 70, 80, 90, 50])
    found = metrics.paired(baseline + np.array([1.0, 1.2, 0.9, 1.1, 0.8]), baseline)
    assert found.mean == pytest.approx(1.0)
    for rule in (rises("gain"), within_margin("gain", 2)):
        assert rule.judge(rule.validate({"gain": found})) == "holds at this scale"
    assert metrics.paired([1.0, 2, 3], [0.0, 0, 0], metrics.bootstrap) == metrics.bootstrap([1.0, 2, 3])
    assert str(metrics.Interval(0.5, 0.25, 0.75)) == "0.5 [0.25, 0.75]"


@pytest.mark.parametrize(
    ("gains", "p"),
    [([1, 1, 1, 1, 1], 2 / 32), ([3, 1, -1], 6 / 8), ([1, -1], 1.0), ([0, 0, 0], 1.0), ([5, 1, 1, 1, 1, -1], 12 / 64)],
)
def test_the_sign_flip_test_counts_patterns_of_signs(gains, p):
    """Small cases counted by hand, ties with what was seen included."""
    assert metrics.sign_flip(gains, [0] * len(gains)) == pytest.approx(p)
    assert metrics.sign_flip([0] * len(gains), gains) == pytest.approx(p)


def test_the_sign_flip_test_counts_ties_in_spite_of_rounding():
    """In floating point these tenths do not add up to what the same whole numbers do: patterns that tie must count."""
    tenths = [-0.6, -0.5, 0.3, 0.3, 0.1, 0.1]
    whole = [round(10 * tenth) for tenth in tenths]
    assert metrics.sign_flip(tenths, [0] * 6) == metrics.sign_flip(whole, [0] * 6) == 52 / 64


def test_under_no_difference_the_sign_flip_test_rejects_as_often_as_it_says():
    """3 of 100 at p ≤ 1/32 with 8 pairs; with 30 pairs the random patterns agree with the normal law."""
    rng = np.random.default_rng(0)
    found = [metrics.sign_flip(rng.normal(size=8), np.zeros(8)) for _ in range(3000)]
    assert np.mean(np.array(found) <= 1 / 32) == pytest.approx(1 / 32, abs=0.012)
    gains = rng.normal(size=30)
    z = abs(gains.sum()) / np.linalg.norm(gains)
    assert metrics.sign_flip(gains, np.zeros(30)) == pytest.approx(math.erfc(z / 2**0.5), abs=0.03)
    assert metrics.sign_flip(np.arange(1.0, 31), np.zeros(30)) > 0


@pytest.mark.parametrize(
    ("values", "message"), [([0.5], "one alone has no spread"), ([0.5, NAN], "holds nan"), ([[1.0, 2.0]], "shape \\(1, 2\\)")]
)
def test_values_without_spread_or_meaning_are_refused(values, message, unchecked):
    """One seed, a NaN or a table is an error, not an interval."""
    for made in (metrics.student, metrics.bootstrap):
        with pytest.raises(ValueError, match=message):
            made(values)


def test_unpaired_values_are_refused():
    """Five seeds of one method and four of the other are no pairs."""
    for use in (metrics.paired, metrics.sign_flip):
        with pytest.raises(ValueError, match="5 values of treatment but 4 of baseline"):
            use([1.0] * 5, [1.0] * 4)
    with pytest.raises(ValueError, match="3 true labels but 2 guesses of each"):
        metrics.paired_over_examples([0, 1, 1], [0, 1], [1, 1], 2)
