"""The data pipeline: from a stream of dirty documents to rows of tokens worth training on.

    documents ──► quality rules ──► exact duplicates ──► near duplicates ──► mixture ──► rows
                  (each named)      (hash of the text)   (MinHash + LSH)     (by tokens)   (packed)

    MinHash:  P(min h(A) = min h(B)) = |A ∩ B| / |A ∪ B| = J        k hashes estimate J within ± √(J (1 - J) / k)
    LSH:      b bands of r hashes meet in some band with P = 1 - (1 - Jʳ)ᵇ        an S-curve, steep near (1/b)^(1/r)

Does:     streams, one document at a time, with every drop named and counted; MinHash and LSH from nothing but NumPy; shares of a
          mixture with a cap or a temperature; packing. `dirty` spoils clean text in known ways, so that `detection` can
          say what the pipeline finds and what it loses.
Leaves out: learned quality classifiers and language identification; removal of lines within a document; indexes on disk.
Source:   Rae et al. 2021 (Gopher) app. A.1.1; Raffel et al. 2020 §2.2 (C4), §3.5.2 (mixing); Broder 1997 (MinHash);
          Leskovec et al. 2020 §3.4 (banding); Lee et al. 2022 (near duplicates in corpora); Conneau & Lample 2019 §3.1 (α).
"""

from __future__ import annotations

import re
import sys
import unicodedata
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from random import Random
from typing import TypeVar

import numpy as np
from jaxtyping import Int

__all__ = [
    "FLAWS",
    "RULES",
    "Detection",
    "Dirty",
    "ExactDuplicates",
    "MinHash",
    "NearDuplicates",
    "Quality",
    "QualityFilter",
    "clean",
    "decode",
    "detection",
    "dirty",
    "draw_weights",
    "epochs",
    "estimated_jaccard",
    "jaccard",
    "meeting_probability",
    "minhash",
    "mix",
    "mixture_shares",
    "pack",
    "shingles",
    "verdicts",
]

T = TypeVar("T")
Document = str | bytes
Stage = Callable[[str], str | None]
"""Why to drop a text, or None to keep it. A stage may remember the texts it kept."""


def verdicts(documents: Iterable[Document], stages: Sequence[Stage]) -> Iterator[tuple[str, str | None]]:
    """Each document as text, with the reason to drop it given by the first stage that has one, or None."""
    for document in documents:
        text = decode(document)
        yield text, next(filter(None, (stage(text) for stage in stages)), None)


def clean(
    documents: Iterable[Document],
    stages: Sequence[Stage],
    *,
    counts: Counter[str] | None = None,
    total: int | None = None,
    bar: bool = False,
) -> Iterator[str]:
    """The texts that pass every stage. `counts` gathers how many were "kept", and how many dropped for which reason."""
    counts = Counter() if counts is None else counts
    for text, reason in verdicts(_with_bar(documents, total) if bar else documents, stages):
        counts[reason or "kept"] += 1
        if reason is None:
            yield text


def _with_bar(documents: Iterable[Document], total: int | None) -> Iterator[Document]:
    from tqdm.std import tqdm  # not tqdm.auto: its widget would be stored in the notebook

    from llmcourse.show import is_notebook

    file = sys.stdout if is_notebook() else sys.stderr  # a kernel's stderr is shown on a red ground
    return iter(tqdm(documents, total=total, unit=" documents", mininterval=0.5, file=file))


def decode(document: Document) -> str:
    """UTF-8 bytes as text, with � for what is none: the rule "broken bytes" counts these."""
    return document if isinstance(document, str) else document.decode("utf-8", errors="replace")


# ---- quality ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The limits of the rules, Gopher's and C4's where they have one. Short texts need a smaller `min_words`."""

    min_words: int = 50
    max_words: int = 100_000
    word_length: tuple[float, float] = (3.0, 10.0)
    max_broken: float = 0.005
    min_lettered: float = 0.8
    min_stop_words: int = 2
    max_symbols: float = 0.1
    max_bullets: float = 0.9
    max_repeated: float = 0.3


STOP_WORDS = frozenset(re.findall(r"\w+", "the be to of and that have with, a is was it for at by she he they"))
"""Gopher's eight, and ten more: a text of thirty words often has only one of the eight."""
PHRASES = ("lorem ipsum", "privacy policy", "terms of use", "cookie", "javascript", "all rights reserved", "{")
_ENDS = (".", "!", "?", '"', "”", "…")
_BULLETS = ("- ", "* ", "• ")


def _words(text: str) -> list[str]:
    """Words and numbers of a text in lower case, without punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _broken_bytes(text: str, q: Quality) -> bool:
    broken = sum(c == "�" or (unicodedata.category(c) == "Cc" and c not in "\n\t\r") for c in text)
    return broken > q.max_broken * len(text)


def _length(text: str, q: Quality) -> bool:
    return not q.min_words <= len(text.split()) <= q.max_words


def _word_length(text: str, q: Quality) -> bool:
    words = text.split()
    return not q.word_length[0] <= sum(map(len, words)) / max(1, len(words)) <= q.word_length[1]


def _few_letters(text: str, q: Quality) -> bool:
    words = text.split()
    return sum(any(c.isalpha() for c in word) for word in words) < q.min_lettered * len(words)


def _no_english(text: str, q: Quality) -> bool:
    return len(STOP_WORDS.intersection(_words(text))) < q.min_stop_words


def _symbols(text: str, q: Quality) -> bool:
    return text.count("#") + text.count("…") + text.count("...") > q.max_symbols * len(text.split())


def _bullets(text: str, q: Quality) -> bool:
    lines = _lines(text)
    return sum(line.startswith(_BULLETS) for line in lines) > q.max_bullets * len(lines)


def _repeated_lines(text: str, q: Quality) -> bool:
    lines = _lines(text)
    return len(lines) - len(set(lines)) > q.max_repeated * len(lines)


def _boilerplate(text: str, q: Quality) -> bool:
    return any(phrase in text.casefold() for phrase in PHRASES)


def _unfinished(text: str, q: Quality) -> bool:
    return not text.rstrip().endswith(_ENDS)


RULES: dict[str, Callable[[str, Quality], bool]] = {
    "broken bytes": _broken_bytes,
    "too short or long": _length,
    "word length": _word_length,
    "few letters": _few_letters,
    "not English": _no_english,
    "symbols": _symbols,
    "only bullets": _bullets,
    "repeated lines": _repeated_lines,
    "boilerplate": _boilerplate,
    "unfinished": _unfinished,
}
"""Name → whether a text breaks the rule, in the order in which they are asked."""


class QualityFilter:
    """The stage that asks the rules in turn; the name of the first broken one is the reason.

    Raises: ValueError for a rule that does not exist.
    """

    def __init__(self, quality: Quality | None = None, rules: Iterable[str] = tuple(RULES)) -> None:
        self.quality, self.rules = quality or Quality(), tuple(rules)
        for name in self.rules:
            if name not in RULES:
                raise ValueError(f"there is no quality rule {name!r}; choose from {', '.join(RULES)}")

    def __call__(self, text: str) -> str | None:
        return next((name for name in self.rules if RULES[name](text, self.quality)), None)


# ---- duplicates -------------------------------------------------------------------------------------------------------


class ExactDuplicates:
    """The stage that drops a text it has seen before, case, punctuation and spacing aside. Keeps 16 bytes a text."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def __call__(self, text: str) -> str | None:
        digest = blake2b(" ".join(_words(text)).encode(), digest_size=16).digest()
        if digest in self.seen:
            return "exact duplicate"
        self.seen.add(digest)
        return None


PRIME = 2**31 - 1
"""A Mersenne prime: products of two numbers below it fit into 64 bits."""


@dataclass(frozen=True, kw_only=True)
class MinHash:
    """Shingles of `shingle` words; `bands` × `rows` hashes; near duplicates are texts of an estimated Jaccard ≥ `threshold`.

    With 32 bands of 4, texts of J = 0.7 are compared with probability 0.9998, texts of J = 0.2 with 0.05.
    """

    shingle: int = 3
    bands: int = 32
    rows: int = 4
    threshold: float = 0.7
    seed: int = 0


def shingles(text: str, size: int = 3) -> Int[np.ndarray, " shingles"]:
    """The distinct runs of `size` words of a text as sorted numbers below PRIME; a shorter text is one run."""
    words = _words(text)
    runs = {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}
    return np.unique(np.array([zlib.crc32(run.encode()) % PRIME for run in runs], dtype=np.int64))


def jaccard(a: Int[np.ndarray, " n"], b: Int[np.ndarray, " m"]) -> float:
    """|A ∩ B| / |A ∪ B| of two sets given as arrays of distinct numbers."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def minhash(
    members: Int[np.ndarray, " members"], slopes: Int[np.ndarray, " hashes"], offsets: Int[np.ndarray, " hashes"]
) -> Int[np.ndarray, " hashes"]:
    """The smallest value over the set of each hash function x → (slope · x + offset) mod PRIME."""
    return ((slopes[:, None] * members + offsets[:, None]) % PRIME).min(axis=1)


def estimated_jaccard(a: Int[np.ndarray, " hashes"], b: Int[np.ndarray, " hashes"]) -> float:
    """The share of hash functions whose minimum is the same in both sets."""
    return float((a == b).mean())


def meeting_probability(similarity: float, bands: int, rows: int) -> float:
    """The probability that two sets of this Jaccard similarity agree on all rows of some band.

    >>> round(meeting_probability(0.7, 32, 4), 4)
    0.9998
    """
    return 1 - (1 - similarity**rows) ** bands


class NearDuplicates:
    """The stage that drops a text much like one it kept: LSH finds candidates, their signatures decide."""

    def __init__(self, config: MinHash | None = None) -> None:
        self.config = config or MinHash()
        draw = np.random.default_rng(self.config.seed)
        hashes = self.config.bands * self.config.rows
        self.slopes, self.offsets = draw.integers(1, PRIME, hashes), draw.integers(0, PRIME, hashes)
        self.tables: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(self.config.bands)]
        self.kept: list[np.ndarray] = []

    def signature(self, text: str) -> Int[np.ndarray, " hashes"]:
        """The text's MinHash signature."""
        return minhash(shingles(text, self.config.shingle), self.slopes, self.offsets)

    def __call__(self, text: str) -> str | None:
        signature = self.signature(text)
        keys = [band.tobytes() for band in signature.reshape(self.config.bands, -1)]
        candidates = {i for table, key in zip(self.tables, keys, strict=True) for i in table.get(key, ())}
        if candidates and self._closest(signature, candidates) >= self.config.threshold:
            return "near duplicate"
        for table, key in zip(self.tables, keys, strict=True):
            table[key].append(len(self.kept))
        self.kept.append(signature)
        return None

    def _closest(self, signature: np.ndarray, candidates: set[int]) -> float:
        """The largest estimated similarity: `estimated_jaccard` with all of them at once."""
        return float((np.stack([self.kept[i] for i in candidates]) == signature).mean(axis=1).max())


# ---- mixture ----------------------------------------------------------------------------------------------------------


def mixture_shares(tokens: Mapping[str, int], *, cap: int | None = None, alpha: float = 1.0) -> dict[str, float]:
    """Each source's share of the training tokens: min(tokens, cap)^alpha, made to sum to 1.

    alpha 1 is proportional to size, 0 gives all the same; T5's temperature is 1/alpha. A cap keeps one huge source from
    drowning the rest.

    Raises: ValueError for an empty source, an alpha outside 0–1, or a cap below 1.
    """
    if empty := [name for name, count in tokens.items() if count < 1]:
        raise ValueError(f"sources without tokens: {', '.join(empty)}; leave them out")
    if not 0 <= alpha <= 1 or (cap is not None and cap < 1):
        raise ValueError(f"alpha is {alpha}, cap {cap}; choose alpha in 0–1 and a cap of 1 or more")
    sizes = {name: min(count, cap or count) ** alpha for name, count in tokens.items()}
    return {name: size / sum(sizes.values()) for name, size in sizes.items()}


def epochs(shares: Mapping[str, float], tokens: Mapping[str, int], budget: int) -> dict[str, float]:
    """How often each source is read when `budget` tokens are trained on: far above 4, new data would serve better."""
    return {name: budget * share / tokens[name] for name, share in shares.items()}


def draw_weights(shares: Mapping[str, float], mean_tokens: Mapping[str, float]) -> dict[str, float]:
    """How often to draw a document of each source so that the *tokens* have these shares: long documents more rarely."""
    weights = {name: share / mean_tokens[name] for name, share in shares.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def mix(sources: Mapping[str, Iterable[T]], weights: Mapping[str, float], rng: Random) -> Iterator[tuple[str, T]]:
    """(source, document), drawn by weight; ends with the first source that runs out, as the rest would be another mixture."""
    streams = {name: iter(documents) for name, documents in sources.items()}
    names, odds = list(streams), [weights[name] for name in streams]
    while True:
        (name,) = rng.choices(names, odds)
        try:
            yield name, next(streams[name])
        except StopIteration:
            return


def pack(documents: Iterable[Sequence[int]], length: int, *, eos_id: int, whole: bool = False) -> Iterator[list[int]]:
    """Documents, each closed by `eos_id`, as rows of exactly `length` tokens.

    By default they are joined and cut wherever a row ends, and what is left at the end is dropped. With `whole` every row begins
    with a document's beginning, and a document longer than the row loses its end.
    """
    row: list[int] = []
    for document in documents:
        row += [*document, eos_id]
        while len(row) >= length:
            yield row[:length]
            row = [] if whole else row[length:]


# ---- dirt with ground truth -------------------------------------------------------------------------------------------

FLAWS = ("exact duplicate", "near duplicate", "boilerplate", "gibberish", "truncated", "other language", "broken bytes")


@dataclass(frozen=True, kw_only=True)
class Dirty:
    """A document, and what is wrong with it (None: nothing)."""

    document: Document
    flaw: str | None


def dirty(texts: Iterable[str], *, rate: float = 0.3, seed: int = 0, flaws: Sequence[str] = FLAWS) -> Iterator[Dirty]:
    """The texts with flaws among them: for each text, with probability `rate`, one flaw of `flaws`.

    Duplicates come in addition, some time after their original; every other flaw takes a text's place.

    Raises: ValueError for an unknown flaw, or a rate outside 0–1.
    """
    if unknown := set(flaws) - set(FLAWS):
        raise ValueError(f"unknown flaws {sorted(unknown)}; choose from {', '.join(FLAWS)}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}; choose a value in 0–1")
    return _dirtied(texts, rate, Random(f"dirt/{seed}"), flaws)


def _dirtied(texts: Iterable[str], rate: float, rng: Random, flaws: Sequence[str]) -> Iterator[Dirty]:
    recent: deque[str] = deque(maxlen=200)
    for text in texts:
        flaw = rng.choice(flaws) if rng.random() < rate else None
        if flaw and not flaw.endswith("duplicate"):
            yield Dirty(document=_SPOILERS[flaw](text, rng), flaw=flaw)
            continue
        if flaw and recent:
            yield Dirty(document=_SPOILERS[flaw](rng.choice(recent), rng), flaw=flaw)
        recent.append(text)
        yield Dirty(document=text, flaw=None)


def _copied(text: str, rng: Random) -> str:
    """The same words; case or line ends may differ."""
    return rng.choice((str, str.upper, lambda t: t.replace("\n", "\r\n") + "\n"))(text)


def _edited(text: str, rng: Random) -> str:
    """One word in 25, at least one, left out, doubled or swapped with the next."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 25)):
        i = rng.randrange(max(1, len(words) - 2))
        two = words[i : i + 2]
        words[i : i + 2] = rng.choice((two[1:], [*two[:1], *two], two[::-1]))
    return " ".join(words)


_NAVIGATION = ("Home", "About us", "Contact", "Log in", "Sign up", "My basket", "Share", "Next page", "Search", "Help")
_NOTICES = (
    "This site uses cookies. By going on you accept our privacy policy.",
    "Copyright 2012 Larkham Online. All rights reserved.",
    "Please turn on JavaScript to see the comments.",
    "By posting you agree to the terms of use of the board.",
)


def _page_frame(text: str, rng: Random) -> str:
    """What surrounds an article on a web page, with a scrap of it."""
    menu = " | ".join(rng.sample(_NAVIGATION, 6))
    return "\n".join((menu, " ".join(text.split()[:12]), *rng.sample(_NOTICES, 2), menu))


def _gibberish(text: str, rng: Random) -> str:
    """Words of random letters, as many as the text has, with signs strewn in."""

    def word() -> str:
        letters = "".join(rng.choices("bcdfghjklmnpqrstvwxzaeiou", k=rng.randint(2, 9)))
        return letters if rng.random() < 0.8 else letters + rng.choice("#@%&*")

    return " ".join(word() for _ in text.split()) + "."


def _cut_off(text: str, rng: Random) -> str:
    """The first half of the text and a little more; now and then the cut falls on the end of a sentence."""
    return text[: rng.randint(len(text) // 2, max(len(text) // 2, len(text) - 10))]


_FOREIGN = {
    "German": "Der Bäcker|Die Lehrerin|Das Kind|Mein Nachbar~kauft heute|sieht jeden Morgen|verliert oft~den alten Hut|"
    "eine rote Lampe|das kleine Boot~und geht nach Hause|auf dem Markt|ohne ein Wort",
    "French": "Le boulanger|La voisine|Un enfant|Mon ami~achète souvent|regarde chaque matin|cherche toujours~une lampe rouge|"
    "le vieux chapeau|du pain frais~dans la rue|avant midi|sans rien dire",
    "Spanish": "El panadero|La maestra|Un niño|Mi vecino~compra siempre|mira cada día|busca otra vez~una lámpara roja|"
    "el viejo sombrero|pan fresco~en la plaza|antes de comer|sin decir nada",
}


def _foreign(text: str, rng: Random) -> str:
    """German, French or Spanish sentences, about as many words as the text has."""
    parts = [part.split("|") for part in rng.choice(list(_FOREIGN.values())).split("~")]
    sentences = (" ".join(rng.choice(part) for part in parts) + "." for _ in range(max(3, len(text.split()) // 9)))
    return " ".join(sentences)


def _mangled(text: str, rng: Random) -> bytes:
    """The text in UTF-16, compressed, or with a tenth of its bytes replaced: no longer UTF-8."""
    raw = text.encode()
    noisy = bytes(rng.randrange(128, 256) if rng.random() < 0.1 else byte for byte in raw)
    return rng.choice((text.encode("utf-16-le"), zlib.compress(raw), noisy))


_SPOILERS: dict[str, Callable[[str, Random], Document]] = {
    "exact duplicate": _copied,
    "near duplicate": _edited,
    "boilerplate": _page_frame,
    "gibberish": _gibberish,
    "truncated": _cut_off,
    "other language": _foreign,
    "broken bytes": _mangled,
}


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well the reasons to drop agree with the flaws: of each flaw, how many of how many were dropped; sound texts lost."""

    by_flaw: dict[str, tuple[int, int]]
    lost: Counter[str]
    sound: int

    @property
    def recall(self) -> float:
        """The share of flawed documents that were dropped."""
        return sum(n for n, _ in self.by_flaw.values()) / max(1, sum(total for _, total in self.by_flaw.values()))

    @property
    def precision(self) -> float:
        """The share of dropped documents that were flawed."""
        caught = sum(n for n, _ in self.by_flaw.values())
        return caught / max(1, caught + self.lost.total())

    def rows(self) -> list[dict[str, object]]:
        """One row a flaw and one for the sound texts, for `show.table`."""
        flawed = [
            {"what": flaw, "documents": total, "dropped": n, "share": n / total} for flaw, (n, total) in self.by_flaw.items()
        ]
        lost = self.lost.total()
        return [*flawed, {"what": "sound", "documents": self.sound, "dropped": lost, "share": lost / max(1, self.sound)}]


def detection(documents: Iterable[Dirty], stages: Sequence[Stage], limit: int | None = None) -> Detection:
    """Run the stages over documents whose flaws are known, at most `limit` of them, and count."""
    found: dict[str, list[bool]] = defaultdict(list)
    lost: Counter[str] = Counter()
    sound = 0
    for item in islice(documents, limit):
        ((_, reason),) = verdicts([item.document], stages)
        if item.flaw:
            found[item.flaw].append(reason is not None)
        else:
            sound += 1
            lost.update([reason] if reason else [])
    return Detection(by_flaw={flaw: (sum(hits), len(hits)) for flaw, hits in sorted(found.items())}, lost=lost, sound=sound)
