"""Byte-pair encoding by hand: join the commonest pair of neighbours, and again, and again.

    low ×5  lower ×2  newest ×6  widest ×3
    n e w e s t      e + s is commonest (9 times)       n e w es t
    n e w es t       es + t (9 times)                   n e w est

Three functions are the whole method: `count_pairs`, `merge_pair` and, to spell a new word with what was learnt, `apply_merges`.

Does:     every step of the training as an object, and as a picture of the learner's own text. Equal counts: the pair with the
          smallest ids is joined, ids being given in the order of the alphabet, then of birth.
Leaves out: speed: every step counts everything again (bpe.py does not).
Source:   Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice, pairwise

from llmcourse.pretraining.pretokenize import GPT2, WORD, as_text, byte_alphabet, count_words, to_bytes, words

__all__ = ["Step", "apply_merges", "best_pair", "count_pairs", "merge_pair", "picture", "spell", "steps"]

Pair = tuple[str, str]


# ---- the method -------------------------------------------------------------------------------------------------------


def count_pairs(words: Mapping[tuple[str, ...], int]) -> dict[Pair, int]:
    """How often each pair of neighbours occurs. `words`: a word, as a tuple of its tokens → how often it occurs in the text.

    >>> count_pairs({("l", "o", "w"): 5, ("l", "o", "t"): 2})
    {('l', 'o'): 7, ('o', 'w'): 5, ('o', 't'): 2}
    """
    counts: dict[Pair, int] = {}
    for word, number in words.items():
        for pair in pairwise(word):
            counts[pair] = counts.get(pair, 0) + number
    return counts


def best_pair(counts: Mapping[Pair, int], ids: Mapping[str, int]) -> Pair:
    """The commonest pair; among equals the one whose left token has the smallest id, then whose right token has."""
    return min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))


def merge_pair(word: Sequence[str], pair: Pair) -> list[str]:
    """The word with every occurrence of the pair joined into one token, from left to right.

    >>> merge_pair(["b", "a", "n", "a", "n", "a"], ("a", "n"))
    ['b', 'an', 'an', 'a']
    """
    merged, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2  # both are used up: in a a a the middle a cannot be joined twice
        else:
            merged.append(word[i])
            i += 1
    return merged


def apply_merges(word: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Spell a word with the merges learnt: join the pair that was learnt first, until no neighbours are a known pair.

    word: its letters. ranks: pair → when it was learnt, 0 first.

    >>> apply_merges(["l", "o", "w", "e", "s", "t"], {("e", "s"): 0, ("es", "t"): 1, ("l", "o"): 2})
    ['lo', 'w', 'est']
    """
    spelt = list(word)
    while known := [pair for pair in pairwise(spelt) if pair in ranks]:
        spelt = merge_pair(spelt, min(known, key=ranks.__getitem__))
    return spelt


# ---- step by step -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """The state after a merge; step 0 is the alphabet alone, with no pair.

    counts: of every pair *before* the merge. words: each word's tokens after it → how often the word occurs.
    """

    number: int
    pair: Pair | None
    count: int
    counts: dict[Pair, int]
    words: dict[tuple[str, ...], int]
    ids: dict[str, int]

    @property
    def token(self) -> str:
        """The token born in this step."""
        return "".join(self.pair or ())

    @property
    def tokens(self) -> int:
        """How many tokens the whole text has now."""
        return sum(len(word) * number for word, number in self.words.items())


def spell(word: str, *, byte_level: bool = False, end_of_word: str = "") -> tuple[str, ...]:
    """A word's first tokens: its characters, or its bytes in their visible letters; `end_of_word` is a token of its own.

    >>> spell("low", end_of_word="</w>")
    ('l', 'o', 'w', '</w>')
    """
    letters = map(byte_alphabet().__getitem__, to_bytes(word)) if byte_level else word
    return (*letters, *filter(None, (end_of_word,)))


def steps(text: str | bytes, *, byte_level: bool = False, end_of_word: str = "", min_frequency: int = 1) -> Iterator[Step]:
    """Yield step 0, then one step for each merge, until no pair occurs `min_frequency` times.

    Words are what stands between white space, or GPT-2's words where `byte_level` is true.
    """
    counted = count_words([text], GPT2 if byte_level else WORD)
    state = {spell(word, byte_level=byte_level, end_of_word=end_of_word): number for word, number in counted.items()}
    alphabet = set(byte_alphabet().values()) if byte_level else set().union(*state) - {end_of_word}
    ids = {letter: id for id, letter in enumerate([*sorted(alphabet), *filter(None, (end_of_word,))])}
    yield Step(number=0, pair=None, count=0, counts={}, words=state, ids=dict(ids))
    number = 0
    while (counts := count_pairs(state)) and counts[pair := best_pair(counts, ids)] >= max(1, min_frequency):
        number += 1
        state = _merged(state, pair)
        ids.setdefault("".join(pair), len(ids))
        yield Step(number=number, pair=pair, count=counts[pair], counts=counts, words=state, ids=dict(ids))


def _merged(state: dict[tuple[str, ...], int], pair: Pair) -> dict[tuple[str, ...], int]:
    merged: Counter[tuple[str, ...]] = Counter()
    for word, number in state.items():
        merged[tuple(merge_pair(word, pair))] += number
    return dict(merged)


# ---- the picture ------------------------------------------------------------------------------------------------------

# light and dark enough apart to be told from each other without colour; a border as well, where a page strips backgrounds
_SHADES = ("rgba(0,114,178,.16)", "rgba(230,159,0,.30)")
_NEW = "rgba(0,158,115,.45)"


def picture(text: str | bytes, merges: int = 0, *, byte_level: bool = False, end_of_word: str = "") -> str:
    """HTML: the text in the tokens that the first `merges` merges make of it, the last merge, and the pairs it was chosen from.

    merges: more than there are shows the last one. An empty text gets a sentence that says so.
    """
    if not as_text(text).strip():
        return "<p>There is no text yet: type a few words, some of them twice.</p>"
    shown = _step(steps(text, byte_level=byte_level, end_of_word=end_of_word), merges)
    spelt = {"".join(word): word for word in shown.words}
    found = words(as_text(text), GPT2 if byte_level else WORD)
    boxes = [spelt["".join(spell(word, byte_level=byte_level, end_of_word=end_of_word))] for word in found]
    return f"<div>{_headline(shown, merges)}{_boxes(boxes, shown.token)}{_candidates(shown)}</div>"


def _step(every: Iterator[Step], number: int) -> Step:
    *_, last = islice(every, max(0, number) + 1)
    return last


def _headline(step: Step, asked: int) -> str:
    size = f"{step.tokens:,} tokens in the text, {len(step.ids):,} in the vocabulary."
    if step.pair is None:
        return f"<p><strong>Before the first merge:</strong> single letters. {size}</p>"
    left, right = (f"<code>{escape(part)}</code>" for part in step.pair)
    end = " No pair is left to join." if asked > step.number else ""
    what = f"{left} + {right} → <code>{escape(step.token)}</code>, {step.count:,} times"
    return f"<p><strong>Merge {step.number}:</strong> {what}. {size}{end}</p>"


def _boxes(boxes: Sequence[Sequence[str]], new: str, most: int = 400) -> str:
    """The words, each token in a box; the newest token is bold."""
    drawn = " ".join("".join(_box(token, i, token == new) for i, token in enumerate(word)) for word in boxes[:most])
    more = f" … and {len(boxes) - most:,} more words" if len(boxes) > most else ""
    return f'<p style="line-height:2.1;font-family:monospace">{drawn}{more}</p>'


def _box(token: str, place: int, is_new: bool) -> str:
    shade = _NEW if is_new else _SHADES[place % 2]
    style = f"background:{shade};border:1px solid;border-radius:3px;padding:.1em .25em;margin:0 1px"
    text = f"<strong>{escape(token)}</strong>" if is_new else escape(token)
    return f'<span style="{style}">{text}</span>&#8203;'  # a long word may break between its tokens


def _candidates(step: Step, most: int = 5) -> str:
    """The pairs the merge was chosen from, commonest first, those that come first among equals on top."""
    from llmcourse.show.tables import table_html

    order = sorted(step.counts, key=lambda pair: (-step.counts[pair], step.ids[pair[0]], step.ids[pair[1]]))
    rows = [{"pair": f"`{left}` + `{right}`", "times": step.counts[left, right]} for left, right in order[:most]]
    return table_html(rows, caption="What there was to choose from")[0] if rows else ""
