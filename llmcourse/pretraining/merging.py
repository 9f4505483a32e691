"""The two algorithms of byte-pair encoding on ids: learn merges fast, and apply them fast.

    pair → words it stands in     so a merge touches these words only
    heap of (count, pair)         so the commonest pair is on top; an entry whose count has changed since is put back
                                  when it comes up (a lazy heap)

To learn, a word is a Python string with one character per token, chr(id): finding a pair is `str.find`, and comparing pairs is
comparing strings, smallest ids first.

Does:     merges in the order of `tokenizers`, ties included.
Leaves out: text (bpe.py); more than one core.
Source:   Sennrich et al. 2016, algorithm 1; Kudo & Richardson 2018 §3.1 (a heap instead of counting again).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise
from typing import Any

__all__ = ["Pairs", "join_by_rank", "learn"]


# ---- learning ---------------------------------------------------------------------------------------------------------


class Pairs:
    """Words as strings of chr(id), the count of every pair of neighbours in them, and a heap with the commonest pair on top.

    Equal counts: the smallest ids first, which is the order of strings.
    """

    def __init__(self, words: Mapping[str, int]) -> None:
        self.words, self.numbers = list(words), list(words.values())
        self.counts: dict[str, int] = defaultdict(int)
        places: dict[str, list[int]] = defaultdict(list)
        for i, (word, number) in enumerate(words.items()):
            for start in range(len(word) - 1):
                pair = word[start : start + 2]
                self.counts[pair] += number
                places[pair].append(i)
        self.heap = [(-self.counts[pair], pair, where) for pair, where in places.items()]
        heapify(self.heap)

    def commonest(self) -> tuple[str, int, list[int]]:
        """Take the commonest pair off the heap: the pair, its count, the words it may stand in. ("", 0, []) when none is left."""
        while self.heap:
            count, pair, places = self.heap[0]
            if -count == self.counts[pair]:
                heappop(self.heap)
                return pair, -count, places
            heapreplace(self.heap, (-self.counts[pair], pair, places))  # counted anew since: back into its place
        return "", 0, []

    def merge(self, pair: str, new: str, places: Iterable[int]) -> None:
        """Put the token `new` for the pair in these words, and count the pairs this breaks and makes."""
        born: dict[str, list[int]] = defaultdict(list)
        for i in places:
            self._merge_word(i, pair, new, born)
        # Every pair with `new` in it is born here and never again: left-to-right merging spells a text one way only, so no other
        # merge makes the same token. One entry per pair is therefore enough.
        for fresh, where in born.items():
            if self.counts[fresh] > 0:
                heappush(self.heap, (-self.counts[fresh], fresh, where))

    def _merge_word(self, i: int, pair: str, new: str, born: dict[str, list[int]]) -> None:
        word, number, counts = self.words[i], self.numbers[i], self.counts
        at = word.find(pair)
        while at >= 0:
            if at:
                before = word[at - 1]
                counts[before + pair[0]] -= number
                counts[before + new] += number
                born[before + new].append(i)
            if at + 2 < len(word):
                after = word[at + 2]
                counts[pair[1] + after] -= number
                counts[new + after] += number
                born[new + after].append(i)
            word = word[:at] + new + word[at + 2 :]
            at = word.find(pair, at + 1)
        self.words[i] = word


def learn(
    pairs: Pairs, vocab: dict[str, int], vocab_size: int, min_frequency: int, advance: Callable[[int], Any]
) -> list[tuple[str, str]]:
    """Add tokens to `vocab` until it is full or no pair is common enough. Returns the merges in order."""
    tokens, merges = list(vocab), []
    while len(vocab) < vocab_size:
        pair, count, places = pairs.commonest()
        if count < max(1, min_frequency):
            break
        parts = tokens[ord(pair[0])], tokens[ord(pair[1])]
        token = "".join(parts)
        if token not in vocab:  # a special token may read like the new one, which then takes its id
            vocab[token] = len(tokens)
            tokens.append(token)
            advance(1)
        merges.append(parts)
        pairs.merge(pair, chr(vocab[token]), places)
    return merges


# ---- spelling ---------------------------------------------------------------------------------------------------------


def join_by_rank(ids: Sequence[int], ranks: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Join neighbours, always the pair learnt first (the leftmost among equals), until none is left. n letters cost n log n.

    ranks: pair of ids → (when it was learnt, the id of the token it makes).
    """
    spelt: list[int | None] = list(ids)
    before, after = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))
    heap = [(*ranks[pair], i, pair) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapify(heap)
    while heap:
        _, new, i, pair = heappop(heap)
        j = after[i]
        if j == len(spelt) or (spelt[i], spelt[j]) != pair:
            continue  # one of the two has been joined to another neighbour since
        spelt[i], spelt[j], after[i] = new, None, after[j]
        if after[i] < len(spelt):
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < len(spelt) and (fresh := (spelt[left], spelt[right])) in ranks:
                heappush(heap, (*ranks[fresh], left, fresh))
    return [id for id in spelt if id is not None]
