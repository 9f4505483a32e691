"""The data pipeline: each rule by name, duplicates by MinHash and LSH, mixtures by tokens, and what it finds in dirty text."""

from __future__ import annotations

import math
from collections import Counter
from itertools import count, islice, repeat
from random import Random

import jaxtyping
import numpy as np
import pytest

from llmcourse.pretraining import pipeline as p

GOOD = (
    "The old baker of the town was known to all. She got up at four, and by six the first loaves were ready.\n"
    "People came with baskets and went home with bread that was still warm. It is said that nobody ever saw her rest. "
    "When the tower bell rang at noon, she closed the door and sat down to read for an hour."
)
QUALITY = p.Quality(min_words=20)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time type checker, which would speak before our own message."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def stories(seed: int = 0):
    """Endless sound texts of about 50 words, no two alike."""
    rng = Random(seed)
    people, things = (
        ["Ada", "Emil", "the baker", "my aunt", "the miller", "Olga"],
        ["lamp", "boat", "hat", "cart", "drum", "kite"],
    )
    places, ends = (
        ["the mill", "the tower", "the old bridge", "the square"],
        ["and was glad", "and said nothing", "but lost it again"],
    )
    for i in count():
        yield f"Story {i}. " + " ".join(
            f"{rng.choice(people).capitalize()} took the {rng.choice(things)} number {rng.randrange(1000)} "
            f"to {rng.choice(places)} {rng.choice(ends)}."
            for _ in range(6)
        )


# ---------------------------------------------------------------------------------------------------------------- quality


def test_a_sound_text_breaks_no_rule():
    assert p.QualityFilter(QUALITY)(GOOD) is None
    assert [name for name, rule in p.RULES.items() if rule(GOOD, QUALITY)] == []


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("broken bytes", GOOD.replace("a", "�")),
        ("broken bytes", GOOD + "\0\x07"),
        ("too short or long", "The end of the story."),
        ("too short or long", GOOD * 3000),
        ("word length", " ".join("a b of to it is"[i % 15] or "x" for i in range(200)) + "."),
        ("word length", GOOD.replace(" ", "")[:300] + " the and. " * 10),
        ("few letters", GOOD + " 12345 67890" * 12 + "."),
        ("not English", "Der alte Bäcker kannte jeden Menschen hier. " * 5),
        ("symbols", GOOD.replace(" ", " #", 9)),
        ("symbols", GOOD.replace(".", "...") + " and so on..." * 5),
        ("only bullets", "\n".join(f"- the bread and the lamp and the boat and the kite number {i}." for i in range(6))),
        ("repeated lines", "The bell rang and they went home.\n" * 4 + GOOD),
        ("boilerplate", GOOD + " This page uses cookies."),
        ("boilerplate", "function f() { return the_and_of; } " + GOOD),
        ("unfinished", GOOD[:-20]),
    ],
)
def test_each_rule_is_the_reason_for_what_it_is_made_for(reason, text):
    assert p.QualityFilter(QUALITY)(text) == reason


@pytest.mark.parametrize("length", [19, 20, 40, 41])
def test_the_number_of_words_may_lie_anywhere_within_its_limits(length):
    quality = p.Quality(min_words=20, max_words=40)
    text = " ".join((["the", "bread", "and", "lamp"] * 20)[:length]) + "."
    assert (p.QualityFilter(quality)(text) is None) == (20 <= length <= 40)


def test_only_the_rules_asked_for_are_applied_and_unknown_ones_refused():
    assert p.QualityFilter(QUALITY, rules=["unfinished"])("cut") == "unfinished"
    assert p.QualityFilter(QUALITY, rules=["symbols"])("cut") is None
    with pytest.raises(ValueError, match="no quality rule 'symbol'; choose from broken bytes"):
        p.QualityFilter(rules=["symbol"])


def test_an_empty_text_is_too_short():
    assert p.QualityFilter()("") == "too short or long"


# ---------------------------------------------------------------------------------------------------------------- stream


def test_the_stream_is_read_one_document_at_a_time_and_every_verdict_is_counted():
    counts = Counter()
    endless = (text for pair in zip(stories(), stories(1), strict=False) for text in (*pair, "short"))
    kept = list(islice(p.clean(endless, [p.QualityFilter(QUALITY)], counts=counts), 5))
    assert len(kept) == 5
    assert counts == {"kept": 5, "too short or long": 2}


def test_a_text_dropped_by_an_early_stage_is_not_remembered_by_a_later_one():
    """Else a broken original would take its sound copy with it."""
    stages = [lambda text: "loud" if text.isupper() else None, p.ExactDuplicates()]
    assert [reason for _, reason in p.verdicts([GOOD.upper(), GOOD, GOOD], stages)] == ["loud", None, "exact duplicate"]


def test_bytes_are_read_as_utf8_and_what_is_none_is_marked():
    assert p.decode("é".encode()) == p.decode("é") == "é"
    assert p.decode(b"a\xff\xfeb") == "a��b"
    ((_, reason),) = p.verdicts([GOOD.encode("utf-16")], [p.QualityFilter(QUALITY)])
    assert reason == "broken bytes"


def test_the_bar_counts_documents(capsys):
    assert len(list(p.clean([GOOD] * 3, [], bar=True, total=3))) == 3
    assert "3/3" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize(
    "change", [str.upper, lambda t: t.replace(" ", "\n"), lambda t: t.replace(",", ";"), lambda t: t.replace("o", "ｏ")]
)
def test_texts_of_the_same_words_are_exact_duplicates(change):
    assert change(GOOD) != GOOD
    stage = p.ExactDuplicates()
    assert stage(GOOD) is None
    assert stage(change(GOOD)) == "exact duplicate"
    assert stage(GOOD + " More.") is None


def test_shingles_are_the_distinct_runs_of_words():
    a = p.shingles("One two, three one TWO three four", 3)
    assert len(a) == 4  # "three one two", "two three one", "two three four", and "one two three" twice
    assert np.array_equal(a, p.shingles("one two three one two three four.", 3))
    assert len(p.shingles("one two", 3)) == len(p.shingles("", 3)) == 1


def test_shingles_are_below_the_prime():
    assert p.shingles(" ".join(map(str, range(500))), 1).max() < p.PRIME


def test_the_signature_holds_the_smallest_value_of_each_hash_function():
    """By hand over {4, 5, -1}: 2x + 1 gives 9, 11, -1 (which wraps round to PRIME - 1); 3x + 5 gives 17, 20, 2."""
    assert p.minhash(np.array([4, 5, p.PRIME - 1]), np.array([2, 3]), np.array([1, 0])).tolist() == [9, 12]
    assert p.minhash(np.array([4, 5, p.PRIME - 1]), np.array([2, 3]), np.array([3, 5])).tolist() == [1, 2]


def test_jaccard_is_common_over_all():
    assert p.jaccard(np.array([1, 2, 3, 4]), np.array([3, 4, 5])) == pytest.approx(2 / 5)


def hashes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(1, p.PRIME, n), draw.integers(0, p.PRIME, n)


@pytest.mark.parametrize("common", [0, 20, 60, 100, 120])
def test_the_estimate_is_jaccard_within_its_standard_error(common):
    members = np.random.default_rng(1).integers(0, p.PRIME, 240 - common)
    a, b = np.sort(members[:120]), np.sort(members[120 - common :])
    truth, n = p.jaccard(a, b), 4096
    assert truth == pytest.approx(common / (240 - common))
    got = p.estimated_jaccard(p.minhash(a, *hashes(n)), p.minhash(b, *hashes(n)))
    assert abs(got - truth) <= 4 * math.sqrt(truth * (1 - truth) / n)


def test_the_error_of_the_estimate_is_the_one_foretold():
    """Over many independent sets of 64 hash functions the spread is √(J (1 - J) / 64), within a quarter."""
    members = np.random.default_rng(2).integers(0, p.PRIME, 150)
    a, b = members[:100], members[50:]
    got = [p.estimated_jaccard(p.minhash(a, *hashes(64, seed)), p.minhash(b, *hashes(64, seed))) for seed in range(300)]
    spread = math.sqrt(1 / 3 * 2 / 3 / 64)
    assert np.mean(got) == pytest.approx(1 / 3, abs=4 * spread / math.sqrt(300))
    assert np.std(got) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8])
def test_bands_meet_as_often_as_the_s_curve_says(similarity):
    bands, rows = 8, 3
    common = round(300 * 2 * similarity / (1 + similarity))
    members = np.random.default_rng(3).integers(0, p.PRIME, 600 - common)
    a, b = members[:300], members[300 - common :]
    truth, trials = p.jaccard(np.unique(a), np.unique(b)), 400
    met = 0
    for seed in range(trials):
        same = (p.minhash(a, *hashes(bands * rows, seed)) == p.minhash(b, *hashes(bands * rows, seed))).reshape(bands, rows)
        met += bool(same.all(axis=1).any())
    expected = p.meeting_probability(truth, bands, rows)
    assert abs(met / trials - expected) < 4 * math.sqrt(expected * (1 - expected) / trials)


def test_the_s_curve_runs_from_0_to_1_and_is_steep_at_its_threshold():
    assert (p.meeting_probability(0, 16, 8), p.meeting_probability(1, 16, 8)) == (0, 1)
    threshold = (1 / 16) ** (1 / 8)
    assert p.meeting_probability(threshold, 16, 8) == pytest.approx(1 - math.exp(-1), abs=0.02)
    assert p.meeting_probability(threshold - 0.2, 16, 8) < 0.15 < 0.95 < p.meeting_probability(threshold + 0.15, 16, 8)


def test_near_duplicates_are_dropped_and_others_kept():
    stage = p.NearDuplicates()
    words = GOOD.split()
    assert stage(GOOD) is None
    assert stage(" ".join([*words[:40], *words[41:]])) == "near duplicate"
    assert stage(" ".join(word for i, word in enumerate(words) if i % 3)) is None
    assert all(stage(text) is None for text in islice(stories(), 50))


def test_the_threshold_decides_among_those_that_meet():
    words = GOOD.split()
    edited = " ".join([*words[:20], *words[22:50], "away", *words[51:]])
    similarity = p.jaccard(p.shingles(GOOD), p.shingles(edited))
    assert 0.75 < similarity < 0.9
    for threshold, reason in ((0.6, "near duplicate"), (0.95, None)):
        stage = p.NearDuplicates(p.MinHash(threshold=threshold))
        stage(GOOD)
        assert stage(edited) == reason


def test_signatures_depend_on_the_seed_alone():
    one, again, other = (p.NearDuplicates(p.MinHash(seed=seed)).signature(GOOD) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


# ---------------------------------------------------------------------------------------------------------------- mixture

SIZES = {"web": 8000, "books": 1000, "town": 1000}


def test_shares_are_proportional_capped_or_evened_out():
    assert p.mixture_shares(SIZES) == pytest.approx({"web": 0.8, "books": 0.1, "town": 0.1})
    assert p.mixture_shares(SIZES, cap=2000) == pytest.approx({"web": 0.5, "books": 0.25, "town": 0.25})
    assert p.mixture_shares(SIZES, alpha=0.0) == pytest.approx(dict.fromkeys(SIZES, 1 / 3))
    evened = p.mixture_shares(SIZES, alpha=0.5)
    assert evened["web"] / evened["books"] == pytest.approx(math.sqrt(8))


def test_impossible_mixtures_are_refused(unchecked):
    with pytest.raises(ValueError, match="sources without tokens: town; leave them out"):
        p.mixture_shares({"web": 5, "town": 0})
    with pytest.raises(ValueError, match=r"alpha is 2\.0"):
        p.mixture_shares(SIZES, alpha=2.0)


def test_epochs_say_how_often_each_source_is_read():
    assert p.epochs({"web": 0.5, "town": 0.5}, {"web": 8000, "town": 1000}, 4000) == {"web": 0.25, "town": 2.0}


def test_drawing_by_weight_gives_the_tokens_their_shares():
    lengths = {"web": 100, "town": 10}
    sources = {name: repeat([name] * length) for name, length in lengths.items()}
    weights = p.draw_weights({"web": 0.5, "town": 0.5}, lengths)
    tokens = Counter()
    for name, document in islice(p.mix(sources, weights, Random(0)), 8000):
        assert document[0] == name
        tokens[name] += len(document)
    assert tokens["web"] / tokens.total() == pytest.approx(0.5, abs=0.03)


def test_the_mixture_ends_with_the_first_source_that_runs_out():
    drawn = list(p.mix({"a": [1, 2, 3], "b": count()}, {"a": 0.5, "b": 0.5}, Random(0)))
    assert [item for name, item in drawn if name == "a"] == [1, 2, 3]
    assert [item for name, item in drawn if name == "b"] == list(range(len(drawn) - 3))


def test_packed_rows_join_the_documents_without_a_gap():
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    assert list(p.pack(documents, 4, eos_id=0)) == [[1, 2, 3, 0], [4, 0, 5, 6], [7, 8, 9, 10]]
    assert list(p.pack(iter(documents), 100, eos_id=0)) == []


def test_whole_packing_begins_every_row_with_a_document():
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11], [12, 13]]
    assert list(p.pack(documents, 4, eos_id=0, whole=True)) == [[1, 2, 3, 0], [4, 0, 5, 6], [11, 0, 12, 13]]


# ---------------------------------------------------------------------------------------------------------------- dirt


def test_dirt_is_what_it_says_it_is():
    items = list(islice(p.dirty(stories(), rate=0.5, seed=3), 800))
    flaws = Counter(item.flaw for item in items)
    assert set(flaws) == {None, *p.FLAWS}
    assert all(25 < flaws[flaw] < 95 for flaw in p.FLAWS)
    sound = [item.document for item in items if item.flaw is None]
    assert len(sound) == len(set(sound))
    signature = {" ".join(p._words(text)) for text in sound}
    copies = [item.document for item in items if item.flaw == "exact duplicate"]
    assert all(" ".join(p._words(text)) in signature for text in copies)
    assert {type(item.document) for item in items if item.flaw == "broken bytes"} == {bytes}
    starts = {text[:30] for text in sound}
    assert not any(item.document[:30] in starts for item in items if item.flaw in ("gibberish", "other language", "boilerplate"))


def test_near_duplicates_are_near_and_no_copies():
    sound, edited = [], []
    for item in islice(p.dirty(stories(), rate=0.3, flaws=["near duplicate"]), 300):
        (edited if item.flaw else sound).append(p.shingles(item.document))
    best = [max(p.jaccard(each, other) for other in sound) for each in edited]
    assert len(edited) > 40
    assert sum(0.6 < similarity < 1 for similarity in best) >= 0.95 * len(best)


def test_no_dirt_at_rate_0_and_the_seed_decides():
    assert [item.document for item in islice(p.dirty(stories(), rate=0.0), 20)] == list(islice(stories(), 20))
    one, again, other = (list(islice(p.dirty(stories(), seed=seed), 60)) for seed in (0, 0, 1))
    assert one == again != other


def test_impossible_dirt_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"unknown flaws \['mud'\]; choose from exact duplicate"):
        p.dirty([], flaws=["mud"])
    with pytest.raises(ValueError, match=r"rate is 1\.5"):
        p.dirty([], rate=1.5)


def test_the_pipeline_finds_the_dirt_and_loses_little_of_the_rest():
    stages = [p.QualityFilter(QUALITY), p.ExactDuplicates(), p.NearDuplicates()]
    found = p.detection(p.dirty(stories(), rate=0.3), stages, limit=700)
    assert found.recall > 0.95
    assert found.precision > 0.97
    assert sum(total for _, total in found.by_flaw.values()) + found.sound == 700


def test_without_a_stage_its_flaws_pass():
    """Each stage earns its place: what it is made for passes without it."""
    items = list(islice(p.dirty(stories(), rate=0.6), 400))
    rules, exact = p.QualityFilter(QUALITY), p.ExactDuplicates()
    without = {
        "near duplicate": p.detection(items, [rules, exact]),
        "exact duplicate": p.detection(items, [rules]),
        "truncated": p.detection(items, [p.QualityFilter(QUALITY, [r for r in p.RULES if r != "unfinished"])]),
    }
    for flaw, found in without.items():
        caught, total = found.by_flaw[flaw]
        assert caught < 0.1 * total


def test_detection_counts_by_flaw_and_names_what_was_lost():
    items = [p.Dirty(document=text, flaw=flaw) for text, flaw in [("a", None), ("b", None), ("c", "x"), ("d", "x"), ("e", "y")]]
    found = p.detection(items, [lambda text: "rule" if text in "bce" else None])
    assert (found.by_flaw, found.lost, found.sound) == ({"x": (1, 2), "y": (1, 1)}, {"rule": 1}, 2)
    assert (found.recall, found.precision) == pytest.approx((2 / 3, 2 / 3))
    assert found.rows()[-1] == {"what": "sound", "documents": 2, "dropped": 1, "share": 0.5}
