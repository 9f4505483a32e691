"""Streams: a uniform memory, detectors whose false alarms are counted, and no post learnt from before it was tested."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmcourse import data
from llmcourse.fine_tuning import drift

# ---- memory ------------------------------------------------------------------------------------------------------------


def test_every_item_is_kept_with_the_same_probability():
    """20 items, 5 places, 4,000 memories: each item in a quarter of them, within four standard deviations."""
    counts = np.zeros(20)
    for seed in range(4000):
        memory = drift.Reservoir(5, seed)
        memory.add(range(20))
        counts[memory.items] += 1
    assert counts.sum() == 4000 * 5
    assert np.abs(counts - 1000).max() < 4 * (4000 * 0.25 * 0.75) ** 0.5


def test_the_memory_fills_in_order_and_never_grows():
    """All items while there is room, then always `capacity` different ones, whether they come at once or singly."""
    memory = drift.Reservoir(4)
    memory.add("abc")
    assert memory.items == list("abc")
    memory.add(range(50))
    assert len(memory.items) == len(set(memory.items)) == 4
    singly = drift.Reservoir(4)
    for item in [*"abc", *range(50)]:
        singly.add([item])
    assert singly.items == memory.items


def test_a_sample_has_different_items_and_clearing_starts_anew():
    """As many as asked for, or all there are."""
    memory = drift.Reservoir(6)
    memory.add(range(30))
    assert len(set(memory.sample(4))) == 4 and set(memory.sample(4)) <= set(memory.items)
    assert sorted(memory.sample(99)) == sorted(memory.items)
    memory.clear()
    assert memory.sample(3) == []
    memory.add("xy")
    assert memory.items == ["x", "y"]


@pytest.mark.parametrize(
    ("memory", "seen", "draw", "after"),
    [("", 1, 0.9, "x"), ("abc", 4, 0.0, "abcx"), ("abcd", 5, 0.0, "xbcd"), ("abcd", 5, 0.79, "abcx"), ("abcd", 5, 0.8, "abcd")],
)
def test_an_item_is_added_while_there_is_room_then_takes_a_random_place_of_all_seen(memory, seen, draw, after):
    """Four places; the fifth item draws among five, of which one does not exist."""
    assert "".join(drift.remembered(list(memory), "x", seen, 4, draw)) == after


# ---- detectors ---------------------------------------------------------------------------------------------------------


def heard(detector: drift.Detector, errors) -> list[int]:
    return [i for i, error in enumerate(errors) if detector.update(bool(error)) == "drift"]


def test_ddm_follows_its_equations():
    """Recomputed from the whole history after every post, on a random stream with a jump."""
    errors = np.random.default_rng(3).random(300) < np.r_[np.full(150, 0.15), np.full(150, 0.6)]
    detector, start, best = drift.DDM(), 0, (math.inf, math.inf)
    seen = set()
    for i, error in enumerate(errors):
        state = detector.update(bool(error))
        n = i + 1 - start
        p = errors[start : i + 1].mean()
        s = math.sqrt(p * (1 - p) / n)
        expected = "stable"
        if n >= 30 and p > 0:
            best = min(best, (p, s), key=sum)
            expected = "drift" if p + s >= best[0] + 3 * best[1] else "warning" if p + s >= best[0] + 2 * best[1] else "stable"
        assert state == expected
        seen.add(state)
        if state == "drift":
            start, best = i + 1, (math.inf, math.inf)
    assert seen == {"stable", "warning", "drift"}


def test_page_hinkley_follows_its_equations():
    """The sum of exceedances over its least value so far, recomputed from the history."""
    errors = np.random.default_rng(4).random(400) < np.r_[np.full(200, 0.1), np.full(200, 0.7)]
    detector, start, drifts = drift.PageHinkley(slack=0.05, threshold=10), 0, []
    for i, error in enumerate(errors):
        state = detector.update(bool(error))
        seen = errors[start : i + 1].astype(float)
        means = np.cumsum(seen) / np.arange(1, len(seen) + 1)
        total = np.cumsum(seen - means - 0.05)
        assert (state == "drift") == (len(seen) >= 30 and total[-1] - min(0, total.min()) > 10)
        if state == "drift":
            start = i + 1
            drifts.append(i)
    assert drifts and 200 < drifts[0] < 260


FALSE_ALARMS = [
    (drift.DDM, 0.1, 0.28, 0.56),
    (drift.DDM, 0.3, 0.10, 0.34),
    (drift.PageHinkley, 0.1, 0.0, 0.02),
    (drift.PageHinkley, 0.3, 0.0, 0.06),
]


@pytest.mark.parametrize(("detector", "rate", "low", "high"), FALSE_ALARMS)
def test_false_alarms_are_as_frequent_as_the_docstrings_say(detector, rate, low, high):
    """The share of streams of 2,000 errors of a constant rate with any alarm: 100 streams, ± 3 standard deviations."""
    rng = np.random.default_rng(0)
    share = np.mean([bool(heard(detector(), rng.random(2000) < rate)) for _ in range(100)])
    assert low <= share <= high


@pytest.mark.parametrize(("detector", "least", "most"), [(drift.DDM, 15, 45), (drift.PageHinkley, 30, 55)])
def test_a_jump_of_the_errors_is_heard_soon(detector, least, most):
    """From 0.1 to 0.5 after 500 posts: the median delay of 60 streams, and hardly a stream without."""
    rng, delays = np.random.default_rng(1), []
    for _ in range(60):
        found = heard(detector(), rng.random(1100) < np.r_[np.full(500, 0.1), np.full(600, 0.5)])
        delays += [i - 500 for i in found if i >= 500][:1]
    assert len(delays) >= 58
    assert least <= np.median(delays) <= most


@pytest.mark.parametrize("detector", [drift.DDM, drift.PageHinkley])
def test_falling_errors_and_perfection_are_no_drift(detector):
    """A model that gets better is no alarm; nor is the first error after many right guesses."""
    assert heard(detector(), np.random.default_rng(2).random(600) < np.linspace(0.6, 0.05, 600)) == []
    assert heard(detector(), [False] * 200 + [True] + [False] * 50) == []


# ---- the loop ----------------------------------------------------------------------------------------------------------


class Witness:
    """Remembers in which order texts were guessed and learnt."""

    def __init__(self) -> None:
        self.guessed: list[str] = []
        self.events: list[tuple[str, int]] = []
        self.trained: list[list[drift.Example]] = []

    def guess(self, texts):
        self.guessed += texts
        return [0] * len(texts)

    def train(self, examples):
        assert {text for text, _ in examples} <= set(self.guessed), "learnt before it was tested"
        self.trained.append(list(examples))


STREAM = [(f"post {i}", i % 3 % 2) for i in range(50)]


@pytest.mark.parametrize("chunk", [1, 7, 20, 64])
def test_no_post_is_learnt_from_before_it_was_tested(chunk):
    """Static, periodic and online, chunks that fit the stream and that do not; every post is tested once, in order."""
    for make in (
        lambda w: drift.Static(),
        lambda w: drift.Periodic(w.train, 12),
        lambda w: drift.Online(w.train, drift.Reservoir(10), 4, drift.DDM()),
    ):
        witness = Witness()
        found = drift.prequential(witness.guess, make(witness), STREAM, chunk=chunk)
        assert witness.guessed == [text for text, _ in STREAM]
        assert found.hits.tolist() == [label == 0 for _, label in STREAM]
        assert found.accuracy == pytest.approx(33 / 50)


def test_periodic_learning_uses_every_post_once():
    """Blocks of twelve in order; what does not fill a block waits."""
    witness = Witness()
    drift.prequential(witness.guess, drift.Periodic(witness.train, 12), STREAM, chunk=20)
    assert witness.trained == [STREAM[0:12], STREAM[12:24], STREAM[24:36], STREAM[36:48]]


def test_online_learning_trains_on_the_chunk_and_on_older_posts():
    """The new posts first, then as many remembered ones as asked for, none of this chunk."""
    witness = Witness()
    drift.prequential(witness.guess, drift.Online(witness.train, drift.Reservoir(15), 6), STREAM, chunk=10)
    assert [examples[:10] for examples in witness.trained] == [STREAM[i : i + 10] for i in range(0, 50, 10)]
    assert [len(examples) for examples in witness.trained] == [10, 16, 16, 16, 16]
    for i, examples in enumerate(witness.trained):
        assert set(examples[10:]) <= set(STREAM[: 10 * i])


def test_a_heard_drift_empties_the_memory_and_is_recorded_at_its_post():
    """Right for 100 posts, then wrong: what is replayed afterwards is younger than the alarm."""
    stream = [(f"post {i}", 0 if i < 100 or i % 2 else 1) for i in range(200)]
    stream[3] = (stream[3][0], 1)  # one early error, so that the best is not zero
    witness = Witness()
    online = drift.Online(witness.train, drift.Reservoir(50), 20, drift.DDM())
    drift.prequential(witness.guess, online, stream, chunk=10)
    assert len(online.drifts) >= 1 and 100 <= online.drifts[0] < 120
    first = online.drifts[0] // 10
    assert len(witness.trained[first]) == 10
    replayed = {int(text.split()[1]) for examples in witness.trained[first + 1 :] for text, _ in examples[10:]}
    assert min(replayed) >= first * 10


def test_the_windowed_accuracy_is_that_of_the_last_posts():
    """Against a plain loop, the short beginning included."""
    hits = np.random.default_rng(0).random(30) < 0.6
    expected = [hits[max(0, i - 6) : i + 1].mean() for i in range(30)]
    np.testing.assert_allclose(drift.windowed(hits, 7), expected)


def test_on_the_towns_stream_learning_online_beats_standing_still():
    """A counter of words in place of a model, on the embedded stream around its first change."""
    rows = data.load("town-drift").select(range(600, 1500))
    examples = list(zip(rows["text"], rows["label"], strict=True))

    def accuracy(make) -> float:
        counts: dict[str, list[float]] = {}

        def train(posts):
            for text, label in posts:
                for word in text.rstrip(".").split():
                    seen = counts.setdefault(word, [0.0, 0.0])
                    seen[:] = [0.9 * value for value in seen]
                    seen[label] += 1

        def guess(texts):
            words = ([counts.get(word, [0, 0]) for word in text.rstrip(".").split()] for text in texts)
            return [int(sum((b - a) * abs(b - a) / (a + b + 1) for a, b in found) > 0) for found in words]

        train(examples[:400])
        return drift.prequential(guess, make(train), examples[400:]).accuracy

    static = accuracy(lambda train: drift.Static())
    assert accuracy(lambda train: drift.Online(train, drift.Reservoir(40), 0)) > static + 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: drift.Reservoir(0), "capacity=0; choose 1"),
        (lambda: drift.Periodic(print, 0), "every=0; choose 1"),
        (lambda: drift.prequential(lambda texts: [0], drift.Static(), STREAM, chunk=0), "chunk=0"),
        (lambda: drift.prequential(lambda texts: [0], drift.Static(), STREAM, chunk=5), "1 guesses for 5 posts"),
        (lambda: drift.prequential(lambda texts: [0], drift.Static(), []), "the stream is empty"),
        (lambda: drift.windowed(np.array([True]), 0), "size=0"),
    ],
)
def test_impossible_streams_are_refused(call, message):
    """With the value and the limit."""
    with pytest.raises(ValueError, match=message):
        call()
