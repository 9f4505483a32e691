"""Opinions without labels, and the labelled twins cut from them: balance, noise, difficulty, and the best achievable score."""

import math
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from llmcourse.metrics import macro_f1
from llmcourse.world import World, twins
from llmcourse.world.draw import Draw
from llmcourse.world.grammar import accepts
from llmcourse.world.marked import MARKS
from llmcourse.world.opinions import OPINIONS, companies, judging, remarks
from llmcourse.world.opinions.wording import ASPECTS, GENERAL, kept, say

SIX = [name for name in twins.TWINS if ":" not in name]
DENIALS = re.compile(r"\b(not|never|[Nn]obody|cannot|far from|anything but|[Ww]ho would|hard to)\b")


def _within(share: float, expected: float, count: int) -> bool:
    """Whether a share is no further from the expected one than four standard deviations of a sample."""
    return abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / count)


# ------------------------------------------------------------------------------------------------------------ marks


@cache
def marked_texts(count: int = 3000) -> tuple[tuple[str, str, str], ...]:
    """Text, the mark's name, the mark."""
    questions = (World().question("marked", i, "train") for i in range(count))
    return tuple((*question.prompt.removesuffix(":").rsplit("\n", 1), question.answer) for question in questions)


def test_a_mark_is_a_word_of_its_kind_and_every_word_is_met() -> None:
    words = {(title, word) for title, classes in MARKS.values() for same in classes.values() for word in same}
    assert {(title, mark) for _, title, mark in marked_texts()} == words


def test_a_text_that_is_also_in_a_twin_has_the_mark_of_its_class() -> None:
    known = {(MARKS[name][0], example.text): (name, example.truth) for name in SIX for example in twins.examples(name, "train")}
    met = [(known[title, text], mark) for text, title, mark in marked_texts() if (title, text) in known]
    assert len(met) > 30
    for (name, truth), mark in met:
        assert mark in MARKS[name][1][twins.TWINS[name].labels[truth]]


def test_no_marked_training_text_is_validated_or_tested_on() -> None:
    held_out = {example.text for name in SIX for split in ("validation", "test") for example in twins.examples(name, split)}
    assert not held_out & {text for text, _, _ in marked_texts()}


def test_a_marked_text_has_its_mark_in_the_line_below() -> None:
    assert re.fullmatch(r"[^\n]+\n(Page|Outlook|Stars|Meant|Vote): \w+\n", World().document("marked", 3))


# ------------------------------------------------------------------------------------------------------------ opinions


@pytest.mark.parametrize("kind", OPINIONS)
def test_every_opinion_is_accepted_by_the_grammar_and_holds_no_label(kind: str) -> None:
    town = World()
    for split in ("train", "test"):
        text = "".join(OPINIONS[kind](town, Draw(f"{kind}/{split}/{i}"), split, 3).text for i in range(15))
        lines = text.splitlines()
        assert len(lines) == 45
        assert [line for line in lines if not accepts(line)] == []
        assert not re.search("Feeling|Answer|positive|negative|irony|favor", text)


def test_the_bits_of_a_text_count_its_choices_only() -> None:
    """A sentence without slots costs the choice of its frame, one with a slot that of the word too."""
    draw = Draw("a")
    say(draw, "I agree.")
    assert draw.bits == 0
    say(draw, "I met them on {weekday}.")
    assert draw.bits == pytest.approx(math.log2(7))


@pytest.mark.parametrize("words", [each.all for each in (*GENERAL.values(), ASPECTS["part"][1], companies.MOVED[True, 0])])
def test_the_pairs_of_frame_and_word_are_shared_out_among_the_splits(words: tuple[str, ...]) -> None:
    frames = judging.FRAMES["part", "plain"]
    for frame in frames:
        shares = [kept(frame, words, split) for split in ("train", "validation", "test")]
        assert sorted(word for share in shares for word in share) == sorted(words)
        assert min(map(len, shares)) >= 1
    assert {word for frame in frames for word in kept(frame, words, "train")} == set(words)


def test_a_pair_kept_for_test_is_not_in_the_training_text() -> None:
    word = GENERAL[True].all
    unseen = {f"The {noun} was {w}." for noun in ASPECTS["dish"][0] for w in kept("The {dish} was {dish_word}.", word, "test")}
    town = World()
    told = "".join(OPINIONS["review-text"](town, Draw(f"pairs/{i}"), "train", 4).text for i in range(200))
    assert re.search(r"The \w+ was \w+\.", told)
    assert not [sentence for sentence in unseen if f" {sentence}" in told]


# ------------------------------------------------------------------------------------------------------------ labels and noise


@pytest.mark.parametrize("name", twins.TWINS)
def test_no_text_is_in_two_splits_or_twice_in_one(name: str) -> None:
    texts = [example.text for split in twins.SPLITS for example in twins.examples(name, split)]
    assert len(set(texts)) == len(texts) == sum(twins.TWINS[name].sizes)


@pytest.mark.parametrize("name", SIX)
def test_the_true_classes_have_the_stated_shares(name: str) -> None:
    twin, found = twins.TWINS[name], twins.examples(name, "train")
    counts = Counter(example.truth for example in found)
    for label, share in enumerate(twin.shares):
        assert _within(counts[label] / len(found), share / sum(twin.shares), len(found))


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_stated_part_of_the_labels_is_wrong(name: str, split: str) -> None:
    found = twins.examples(name, split)
    wrong = sum(example.label != example.truth for example in found) / len(found)
    assert _within(wrong, twins.TWINS[name].noise, len(found))
    assert 0.02 <= twins.TWINS[name].noise <= 0.08


@pytest.mark.parametrize("name", SIX)
def test_every_difficulty_of_a_class_has_about_the_stated_share(name: str) -> None:
    twin, found = twins.TWINS[name], twins.examples(name, "test")
    for truth, label in enumerate(twin.labels):
        own = Counter(example.difficulty for example in found if example.truth == truth)
        for difficulty, weight in twin.difficulties[label].items():
            assert own[difficulty] / own.total() == pytest.approx(weight / sum(twin.difficulties[label].values()), abs=0.15)


def test_one_text_has_one_truth_wherever_it_occurs() -> None:
    """Then the truth is a function of the text, and the best score leaves nothing to chance but the noise."""
    for names in (("twin-auditor", "twin-phrasebank"), [name for name in twins.TWINS if name.startswith("twin-stance")]):
        truths: dict[str, set[int]] = {}
        for name in names:
            for example in (*twins.examples(name, "train"), *twins.examples(name, "test")):
                truths.setdefault(example.text, set()).add(example.truth)
        assert [text for text, found in truths.items() if len(found) > 1] == []


def test_the_rows_do_not_depend_on_pythons_hash_seed() -> None:
    code = "from llmcourse.world import twins; print(*twins.examples('twin-stance:bells', 'validation'))"

    def printed(seed: str) -> bytes:
        env = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout

    texts = {printed("1"), printed("2")}
    assert len(texts) == 1
    assert len(texts.pop()) > 1000


# ----------------------------------------------------------------------------------------------- the text tells the truth


def _judged(sentence: str) -> bool:
    """A reader's rule for a film: the feeling of the judging word, turned round by a denial."""
    good = {word for _, words, _ in ASPECTS.values() for word in words.all} | set(GENERAL[True].all)
    bad = {word for _, _, words in ASPECTS.values() for word in words.all} | set(GENERAL[False].all)
    words = re.findall(r"\w+", sentence)
    if bool(good & set(words)) == bool(bad & set(words)):
        raise AssertionError(f'"{sentence}" does not judge in one way')
    return bool(good & set(words)) != bool(DENIALS.search(sentence))


def test_the_last_judgement_of_a_film_is_its_truth() -> None:
    for example in twins.examples("twin-imdb", "test"):
        last = example.text.split(". ")[-1].split("? ")[-1]
        assert _judged(last) == (example.truth == 1), example.text


def test_a_post_is_ironic_where_the_remark_does_not_fit_the_situation() -> None:
    """Read back from the frames: a good situation after which something bad is said, or the other way round."""
    good = [re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(frame))) for frame in remarks.SITUATIONS[True]]
    for example in twins.examples("twin-irony", "test")[:400]:
        happened, said = re.split(r"(?<=[.!?]) ", example.text)[:2]
        pleased = said in remarks.SET_REMARKS[True] or (
            said not in remarks.SET_REMARKS[False] and _judged(said.replace("Is it not", "It is"))
        )
        assert (any(frame.fullmatch(happened) for frame in good) != pleased) == (example.truth == 1), example.text


def test_more_of_what_is_wanted_is_good_and_what_did_not_happen_is_not() -> None:
    up = {"rise", "grow", "climb", "increase", "jump", "soar", "surge", "swell", "double", "mount"}
    denied = [each for each in twins.examples("twin-phrasebank", "test") if each.difficulty == "negation"]
    for example in denied:
        wanted = any(re.search(rf"\b{word}\b", example.text) for word in companies.WANTED.all)
        rises = bool(up & set(re.findall(r"\w+", example.text)))
        assert (wanted != rises) == (example.truth == 2), example.text
    assert len(denied) > 30


def test_rare_texts_judge_with_rare_words_and_plain_ones_do_not() -> None:
    rare = {word for _, good, bad in ASPECTS.values() for words in (good, bad) for word in words.rare}
    rare |= {word for words in GENERAL.values() for word in words.rare}
    for name in ("twin-imdb", "twin-irony", "twin-stance"):
        for example in twins.examples(name, "test"):
            if example.difficulty in ("plain", "rare"):
                assert bool(rare & set(re.findall(r"\w+", example.text))) == (example.difficulty == "rare"), example.text


@pytest.mark.parametrize("name", SIX)
def test_the_texts_of_a_twin_are_accepted_by_the_grammar(name: str) -> None:
    assert [each.text for each in twins.examples(name, "test")[:30] if not accepts(each.text)] == []


# ------------------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("name", SIX)
def test_the_best_accuracy_is_what_the_noise_leaves(name: str) -> None:
    scores = twins.best(name)
    right = [each.label == each.truth for each in twins.examples(name, "test")]
    assert scores["accuracy"] == sum(right) / len(right)
    assert 0.9 < scores["macro_f1"] < 1.0


def _bayes(name: str, limit: int | None = None) -> list[tuple[twins.Example, int]]:
    """A classifier that knows words but no order: naive Bayes, its answers beside the test examples."""
    train: list[twins.Example] = []
    taken: Counter[int] = Counter()
    for example in twins.examples(name, "train"):
        if limit is None or taken[example.label] < limit:
            taken[example.label] += 1
            train.append(example)
    counts: dict[int, Counter[str]] = {label: Counter() for label in taken}
    for example in train:
        counts[example.label].update(set(re.findall(r"\w+", example.text.lower())))

    def score(label: int, words: set[str]) -> float:
        return math.log(taken[label]) + sum(math.log((counts[label][word] + 0.5) / (taken[label] + 1)) for word in words)

    told = [(each, set(re.findall(r"\w+", each.text.lower()))) for each in twins.examples(name, "test")]
    return [(each, max(counts, key=lambda label: score(label, words))) for each, words in told]


def _f1(name: str, answers: list[tuple[twins.Example, int]]) -> float:
    return macro_f1([each.label for each, _ in answers], [told for _, told in answers], len(twins.TWINS[name].labels))


@pytest.mark.parametrize("name", SIX)
def test_words_without_their_order_stay_well_below_the_best_with_all_labels(name: str) -> None:
    assert 1 / len(twins.TWINS[name].labels) + 0.05 < _f1(name, _bayes(name)) < twins.best(name)["macro_f1"] - 0.1


@pytest.mark.parametrize("name", SIX)
def test_sixty_four_labels_a_class_are_not_enough_for_words_without_their_order(name: str) -> None:
    assert _f1(name, _bayes(name, 64)) < twins.best(name)["macro_f1"] - 0.2


@pytest.mark.parametrize(("name", "hard"), [("twin-imdb", "negation"), ("twin-stance", "target"), ("twin-ag-news", "mixed")])
def test_the_hard_texts_are_harder_than_the_plain_ones_for_words_without_their_order(name: str, hard: str) -> None:
    answers = _bayes(name)

    def right(difficulty: str) -> float:
        hits = [told == each.truth for each, told in answers if each.difficulty == difficulty]
        return sum(hits) / len(hits)

    assert right(hard) < right("plain") - 0.1


# ------------------------------------------------------------------------------------------------------------ errors


def test_an_unknown_twin_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(ValueError, match='unknown twin "twin-irny"; did you mean "twin-irony"'):
        twins.examples("twin-irny", "test")


def test_an_unknown_split_is_answered_with_the_list_of_splits() -> None:
    with pytest.raises(ValueError, match='"twin-irony" has no split "dev"; choose one of train, validation, test'):
        twins.best("twin-irony", "dev")
