"""Byte-pair encoding: count pairs, merge one, spell a word by rank."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

from llmcourse.exercise import Exercise, Misconception, register
from llmcourse.pretraining.bpe_steps import apply_merges, count_pairs, merge_pair

Pair = tuple[str, str]

# --- count pairs -----------------------------------------------------------------------------------------------------


def _count_inputs(trial: int) -> tuple[dict[tuple[str, ...], int]]:
    if trial == 0:
        return ({tuple("low"): 5, tuple("lower"): 2, tuple("newest"): 6, tuple("widest"): 3},)
    letters = "abn" if trial % 2 else "an"  # few letters: pairs come again, within a word as well as in the next one
    drawn = ["".join(random.choices(letters, k=random.randint(2, 7))) for _ in range(6)]
    return ({tuple("banana"): 4, **{tuple(word): random.randint(2, 9) for word in drawn}},)


def _count_unweighted(words: Mapping[tuple[str, ...], int]) -> dict[Pair, int]:
    return count_pairs(dict.fromkeys(words, 1))


def _count_overwritten(words: Mapping[tuple[str, ...], int]) -> dict[Pair, int]:
    return {pair: number for word, number in words.items() for pair in pairwise(word)}


def _count_once_a_word(words: Mapping[tuple[str, ...], int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for word, number in words.items():
        for pair in set(pairwise(word)):
            counts[pair] = counts.get(pair, 0) + number
    return counts


def _count_by_length(words: Mapping[tuple[str, ...], int]) -> dict[Pair, int]:
    return count_pairs({word: number * len(word) for word, number in words.items()})


register(
    Exercise(
        id="pretraining/count_pairs",
        title="Count the pairs of neighbours",
        reference=count_pairs,
        inputs=_count_inputs,
        difficulty=1,
        minutes=5,
        hints=(
            "Two loops: over the words and their numbers, and over the neighbours in each word.",
            "`zip(word, word[1:])` gives the neighbours of a word, first and second, second and third, and so on.",
            "Every time a pair is met, add the word's number: `counts[pair] = counts.get(pair, 0) + number`.",
        ),
        misconceptions=(
            Misconception(
                _count_unweighted,
                "You count each word once. A word that occurs 6 times in the text gives each of its pairs 6 times: add `number`, not 1.",
            ),
            Misconception(
                _count_overwritten,
                "Your later words overwrite the earlier ones: `=` where `+=` is meant. Add to what the pair has already.",
            ),
            Misconception(
                _count_once_a_word,
                "A pair that stands twice in a word counts twice: banana has *a n* at two places. Do not make a set of the pairs.",
            ),
            Misconception(
                _count_by_length,
                "You weight a word by its length as well. Each occurrence of a pair adds the word's number, nothing else.",
            ),
        ),
    )
)

# --- merge a pair ----------------------------------------------------------------------------------------------------


def _merge_inputs(trial: int) -> tuple[list[str], Pair]:
    if trial == 0:
        return list("newestest"), ("e", "s")
    if trial == 1:
        return list("baaaaabaaa"), ("a", "a")
    word = random.choices(["a", "b", "ab"], k=12)
    return ["a", *word, "a", "b", "b", "a", "b"], ("a", "b")


def _merge_first_only(word: Sequence[str], pair: Pair) -> list[str]:
    for i, found in enumerate(pairwise(word)):
        if found == pair:
            return [*word[:i], "".join(pair), *word[i + 2 :]]
    return list(word)


def _merge_overlapping(word: Sequence[str], pair: Pair) -> list[str]:
    merged, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append("".join(pair))
            i += 1 if tuple(word[i + 1 : i + 3]) == pair else 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def _merge_keeping_the_right(word: Sequence[str], pair: Pair) -> list[str]:
    return ["".join(pair) if tuple(word[i : i + 2]) == pair else token for i, token in enumerate(word)]


def _merge_from_the_right(word: Sequence[str], pair: Pair) -> list[str]:
    merged = merge_pair([token[::-1] for token in reversed(word)], (pair[1][::-1], pair[0][::-1]))
    return [token[::-1] for token in reversed(merged)]


def _merge_last_lost(word: Sequence[str], pair: Pair) -> list[str]:
    merged = merge_pair(word, pair)
    return merged if tuple(word[-2:]) == pair else merged[:-1]


register(
    Exercise(
        id="pretraining/merge_pair",
        title="Join a pair wherever it stands",
        reference=merge_pair,
        inputs=_merge_inputs,
        difficulty=1,
        minutes=8,
        hints=(
            "Walk through the word with an index `i` in a `while` loop; at each place look at two tokens.",
            "`tuple(word[i : i + 2]) == pair` is False at the last token by itself: the slice is too short.",
            "Found: append `word[i] + word[i + 1]` and go on at `i + 2`. Not found: append `word[i]` and go on at `i + 1`.",
        ),
        misconceptions=(
            Misconception(_merge_first_only, "Only the first occurrence is joined. Go on behind it: the pair may come again."),
            Misconception(
                _merge_overlapping,
                "A token is used twice: in *a a a* the middle a belongs to the first pair. After a merge go on *two* places further.",
            ),
            Misconception(
                _merge_keeping_the_right,
                "The right half of a joined pair is still there as a token of its own. After a merge go on two places further.",
            ),
            Misconception(
                _merge_from_the_right,
                "You join from right to left. It matters where a letter repeats: *a a a* becomes aa a, not a aa.",
            ),
            Misconception(
                _merge_last_lost,
                "The last token gets lost when it belongs to no pair. The loop must reach it: `while i < len(word)`.",
            ),
        ),
    )
)

# --- spell by rank ---------------------------------------------------------------------------------------------------

_LEARNT: dict[Pair, int] = {
    pair: rank
    for rank, pair in enumerate(
        [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w"), ("w", "e"), ("low", "e"), ("n", "e"), ("s", "t")]
    )
}


def _apply_inputs(trial: int) -> tuple[list[str], dict[Pair, int]]:
    if trial == 0:
        return list("lowest"), dict(_LEARNT)
    if trial == 1:
        return list("newerlowestwe"), dict(_LEARNT)
    pairs = [("b", "c"), ("a", "b"), ("bc", "d"), ("c", "d"), ("ab", "cd"), ("a", "bc"), ("d", "a")]
    random.shuffle(pairs)
    return [*random.choices("abcd", k=6), *"abcdabcd"], {pair: rank for rank, pair in enumerate(pairs)}


def _apply_greedy(word: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    known = {left + right for left, right in ranks} | set(word)
    text, spelt = "".join(word), []
    while text:
        token = next(text[:end] for end in range(len(text), 0, -1) if text[:end] in known)
        spelt.append(token)
        text = text[len(token) :]
    return spelt


def _apply_chosen(word: Sequence[str], ranks: Mapping[Pair, int], choose) -> list[str]:
    spelt = list(word)
    while known := [pair for pair in pairwise(spelt) if pair in ranks]:
        spelt = merge_pair(spelt, choose(known))
    return spelt


def _apply_leftmost(word: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    return _apply_chosen(word, ranks, lambda known: known[0])


def _apply_last_learnt(word: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    return _apply_chosen(word, ranks, lambda known: max(known, key=ranks.__getitem__))


def _apply_once(word: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    known = [pair for pair in pairwise(word) if pair in ranks]
    return merge_pair(word, min(known, key=ranks.__getitem__)) if known else list(word)


register(
    Exercise(
        id="pretraining/apply_merges",
        title="Spell a new word with the merges learnt",
        reference=apply_merges,
        inputs=_apply_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "Spelling repeats the training: whatever was joined first there is joined first here.",
            "In a loop: list the pairs of neighbours that are in `ranks`; stop when there is none; choose the one with the smallest rank.",
            "`min(known, key=ranks.__getitem__)` chooses, `merge_pair` joins. A join makes new neighbours, so list the pairs again.",
        ),
        misconceptions=(
            Misconception(
                _apply_greedy,
                "You take the longest known token from the left. BPE does not look for long tokens: it repeats the merges in the order they were learnt.",
            ),
            Misconception(
                _apply_leftmost,
                "You join the leftmost known pair. The one learnt *first* comes first, wherever it stands: use the smallest rank.",
            ),
            Misconception(
                _apply_last_learnt, "You join the pair learnt last. Rank 0 was learnt first and comes first: `min`, not `max`."
            ),
            Misconception(
                _apply_once, "You stop after one merge. The new token has neighbours, too: go on until no pair is known."
            ),
        ),
    )
)
