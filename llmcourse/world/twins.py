"""The classification twins: labelled sets of the town with the columns, class names and balance of six real sets.

    class, difficulty ─► text from the sentences of `opinions` ─► truth ─► label: the truth, or, with the stated noise, another

    best achievable score = the truth judged by the given labels: nobody who sees only the text can expect more

Each example carries its difficulty: plain, rare (only rare words tell), negation (the opposite is denied), mixed (something
speaks against it, the main clause or verdict counts), open (telling words, but nothing decided), context (the remark alone does
not tell), target (the argument alone does not tell).

Does:     AG News, Auditor Sentiment, IMDb, Financial PhraseBank, TweetEval irony and stance (all five questions of the town, or
          one of them after a colon); the examples of a split; the best achievable accuracy and macro-F1.
Leaves out: the real texts (see `data.HUB`).
Source:   the data cards of the real sets, for their classes and the shares of these.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count

from .draw import Draw
from .opinions import companies, judging, remarks, stances, topics
from .opinions.wording import ASPECTS, GENERAL

__all__ = ["TWINS", "Example", "Twin", "best", "examples"]

SPLITS = ("train", "validation", "test")
TRIES = 200  # texts drawn for one example before it is given up
Writer = Callable[[Draw, str, str, str], str]  # draw, class, difficulty, split -> text


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A labelled set.

    column: the name of the text. shares: how common each class is. difficulties: of each class, with weights.
    noise: the part of the labels that is wrong, in every split.
    """

    column: str
    labels: tuple[str, ...]
    shares: tuple[int, ...]
    difficulties: dict[str, dict[str, int]]
    noise: float
    write: Writer
    sizes: tuple[int, int, int] = (2000, 400, 1000)


@dataclass(frozen=True)
class Example:
    """A text, its given label, its true one, and what makes it easy or hard."""

    text: str
    label: int
    truth: int
    difficulty: str


# ------------------------------------------------------------------------------------------------ the words that are rare


@cache
def _rare() -> re.Pattern[str]:
    words = [words for _, good, bad in ASPECTS.values() for words in (good, bad)] + [*GENERAL.values()]
    words += [*topics.AGENTS.values(), *topics.AFFAIRS.values(), *companies.MOVED.values()]
    return re.compile(r"\b(?:" + "|".join({word for each in words for word in each.rare}) + r")\b", re.IGNORECASE)


RARITY = {"plain": "common", "rare": "rare"}


def _suits(text: str, difficulty: str) -> bool:
    return difficulty not in RARITY or bool(_rare().search(text)) == (difficulty == "rare")


# ---------------------------------------------------------------------------------------------- one writer for each set

MANNER = {"negation": "negated", "mixed": "mixed"}


def _news(draw: Draw, label: str, difficulty: str, split: str) -> str:
    topic = dict(zip(AG_NEWS, topics.TOPICS, strict=True))[label]
    manner = "mixed" if difficulty == "mixed" else "plain"
    sentences = 2 if manner == "plain" and draw.chance(0.4) else 1
    return " ".join(topics.told(draw, topic, manner, split, RARITY.get(difficulty, "any")) for _ in range(sentences))


def _film(draw: Draw, label: str, difficulty: str, split: str) -> str:
    good, slots, rarity = label == "pos", {}, RARITY.get(difficulty, "any")
    told = [judging.opening(draw, "film", slots)] if draw.chance(0.5) else []
    for _ in range(1 if difficulty == "mixed" else 2):
        told += judging.body(draw, "film", good, MANNER.get(difficulty, "plain"), split, rarity, slots)
    return " ".join(told)


def _prospect(draw: Draw, label: str, difficulty: str, split: str) -> str:
    if label == "neutral":
        return companies.unsettled(draw, split) if difficulty == "open" else companies.fact(draw, split)
    return judging.judge(
        draw, "prospect", label == "positive", MANNER.get(difficulty, "plain"), split, RARITY.get(difficulty, "any")
    )


def _move(draw: Draw, label: str, difficulty: str, split: str) -> str:
    if label == "neutral":
        return companies.unsettled(draw, split) if difficulty == "open" else companies.fact(draw, split)
    return companies.moving(draw, label == "positive", MANNER.get(difficulty, "plain"), split, RARITY.get(difficulty, "any"))


def _post(draw: Draw, label: str, difficulty: str, split: str) -> str:
    happened, said = remarks.feelings(draw, label == "irony")
    text, frame = remarks.situation(draw, happened)
    manner = {"negation": "denied", "rare": "word"}.get(difficulty) or draw.one(("word", "set"))
    told = [text, remarks.remark(draw, frame, said, manner, split, RARITY.get(difficulty, "any"))]
    if difficulty == "plain":
        told.append(draw.one(remarks.MEANT[label == "irony"]))
    elif draw.chance(0.2):
        told.append(draw.one(remarks.MOODS[happened]))
    return " ".join(told)


def _stance(draw: Draw, label: str, difficulty: str, split: str, target: str = "") -> str:
    target = target or draw.one(tuple(stances.TARGETS))
    if difficulty == "target" or (difficulty == "plain" and label == "none"):
        text, frame = stances.mention(draw, target)
        more = stances.neutral(draw, frame, split) if label == "none" else stances.argue(draw, frame, target, label, split)
        return f"{text} {more}"
    told = [stances.mention(draw, target)[0]] if draw.chance(0.5) else []
    if difficulty == "mixed":
        told.append(stances.quote(draw, target, label, split))
    else:
        manner = "negated" if difficulty == "negation" else "plain"
        told.append(stances.stand(draw, target, label, manner, split, RARITY.get(difficulty, "any")))
    return " ".join(told)


def _about(target: str) -> Writer:
    return lambda draw, label, difficulty, split: _stance(draw, label, difficulty, split, target)


# ------------------------------------------------------------------------------------------------------------ the sets

AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")
FEELINGS = ("negative", "neutral", "positive")
STANCES = ("none", "against", "favor")


def _alike(labels: Sequence[str], **weights: int) -> dict[str, dict[str, int]]:
    return dict.fromkeys(labels, weights)


def _stance_twin(write: Writer, sizes: tuple[int, int, int]) -> Twin:
    return Twin(
        column="text",
        labels=STANCES,
        shares=(25, 50, 25),
        difficulties=_alike(("against", "favor"), plain=15, rare=15, negation=20, mixed=20, target=30)
        | {"none": {"plain": 50, "mixed": 50}},
        noise=0.06,
        write=write,
        sizes=sizes,
    )


TWINS: dict[str, Twin] = {
    "twin-ag-news": Twin(
        column="text",
        labels=AG_NEWS,
        shares=(25, 25, 25, 25),
        difficulties=_alike(AG_NEWS, plain=20, rare=30, mixed=50),
        noise=0.03,
        write=_news,
    ),
    "twin-auditor": Twin(
        column="sentence",
        labels=FEELINGS,
        shares=(13, 59, 28),
        difficulties=_alike(("negative", "positive"), plain=25, rare=35, negation=40) | {"neutral": {"plain": 50, "open": 50}},
        noise=0.05,
        write=_prospect,
    ),
    "twin-imdb": Twin(
        column="text",
        labels=("neg", "pos"),
        shares=(50, 50),
        difficulties=_alike(("neg", "pos"), plain=30, rare=25, negation=25, mixed=20),
        noise=0.04,
        write=_film,
    ),
    "twin-phrasebank": Twin(
        column="sentence",
        labels=FEELINGS,
        shares=(13, 62, 25),
        difficulties=_alike(("negative", "positive"), plain=30, rare=25, negation=20, mixed=25)
        | {"neutral": {"plain": 60, "open": 40}},
        noise=0.02,
        write=_move,
    ),
    "twin-irony": Twin(
        column="text",
        labels=("non_irony", "irony"),
        shares=(50, 50),
        difficulties=_alike(("non_irony", "irony"), plain=20, rare=20, negation=20, context=40),
        noise=0.08,
        write=_post,
    ),
    "twin-stance": _stance_twin(_stance, (2000, 400, 1000)),
} | {f"twin-stance:{target}": _stance_twin(_about(target), (600, 120, 300)) for target in stances.TARGETS}


# ------------------------------------------------------------------------------------------------------------ examples and scores


@lru_cache(maxsize=64)
def examples(name: str, split: str) -> tuple[Example, ...]:
    """All examples of one split, in their order; no text is in two splits.

    Raises: ValueError for a name or a split nobody knows.
    """
    twin = _find(name)
    if split not in SPLITS:
        raise ValueError(f'"{name}" has no split "{split}"; choose one of {", ".join(SPLITS)}')
    before = SPLITS[: SPLITS.index(split)]
    seen = {example.text for earlier in before for example in examples(name, earlier)}
    numbers = count()
    made: list[Example] = []
    while len(made) < twin.sizes[SPLITS.index(split)]:
        made += _example(Draw(f"{name}/{split}/{next(numbers)}"), twin, split, seen)
    return tuple(made)


def _find(name: str) -> Twin:
    if name not in TWINS:
        close = difflib.get_close_matches(name, TWINS, n=1, cutoff=0)
        raise ValueError(f'unknown twin "{name}"; did you mean "{close[0]}"? The twins are {", ".join(TWINS)}')
    return TWINS[name]


def _example(draw: Draw, twin: Twin, split: str, seen: set[str]) -> list[Example]:
    """One example, or none when its class and difficulty have hardly a text left that nobody has seen."""
    label = draw.one(twin.labels, twin.shares)
    weights = twin.difficulties[label]
    difficulty = draw.one(tuple(weights), tuple(weights.values()))
    drawn = (twin.write(draw, label, difficulty, split) for _ in range(TRIES))
    text = next((text for text in drawn if text not in seen and _suits(text, difficulty)), None)
    if text is None:
        return []
    seen.add(text)
    truth = twin.labels.index(label)
    wrong = [i for i in range(len(twin.labels)) if i != truth]
    return [Example(text, draw.one(wrong) if draw.chance(twin.noise) else truth, truth, difficulty)]


def best(name: str, split: str = "test") -> dict[str, float]:
    """The score of whoever always says the truth, judged by the given labels: accuracy and macro-F1.

    Raises: ValueError for a name or a split nobody knows.
    """
    from llmcourse.metrics import macro_f1  # brings torch, which the texts do without

    found = examples(name, split)
    given, truth = [example.label for example in found], [example.truth for example in found]
    right = sum(a == b for a, b in zip(given, truth, strict=True))
    return {"accuracy": right / len(found), "macro_f1": macro_f1(given, truth, len(_find(name).labels))}
