"""Preference pairs: two replies to a question, judged by an annotator who follows a hidden reward, with noise.

    r(reply) = helpful + manner + length + repetition + clear           the true reward, for measurement only
    P(a preferred to b) = σ((r(a) − r(b)) / T)                          the annotator, T = 0.5

The replies that are compared hold at most two polite phrases and seldom more than twenty words. Among them politer is mostly
better, and a bare word worse than a sentence. So a reward model fitted to the pairs tends to believe that more is always better;
the true reward knows the limit. Optimising that model hard is how the reward gets hacked, and `TrueReward` shows it on any text.

Does:     pairs in the chat form, replies to start a policy from, the true reward in parts, the annotator, the accuracy that the
          noise leaves possible.
Leaves out: several turns; graded or ranked lists of more than two replies.
Source:   Bradley and Terry 1952; Christiano et al. 2017; Gao et al. 2022 ("Scaling laws for reward model overoptimization").
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count
from typing import Any

from .common import LIVED, QUESTIONS, STATEMENTS, check_split, statement, until
from .draw import Draw
from .grammar import split_sentences
from .items import Entity
from .phrases import RELATIONS
from .town import FAMOUS, TABLES, Town

__all__ = [
    "TEMPERATURE", "Annotator", "Asked", "Pair", "TrueReward", "asked", "ceiling", "demonstration_rows", "pair", "reply", "rows",
]  # fmt: skip

TEMPERATURE = 0.5
OPENERS = ("Of course.", "With pleasure.", "Thank you for asking.", "I am glad to help.", "That is a good question.")
CLOSERS = ("I hope this helps.", "Have a nice day.", "You are welcome.", "Please ask me again.", "It was a pleasure.")
RUDE = (
    "Why do you ask me?",
    "What a silly question.",
    "Everybody knows that.",
    "You should know that.",
    "I have no time for you.",
)
UNSURE = ("I do not know.", "I am not sure.", "I have not heard of that.")
BODIES = {"full": 9, "wrong": 4, "bare": 3, "more": 2, "unsure": 1, "twice": 1}  # how often each kind of reply is written
SHORTEST, LONGEST = 5, 22  # words


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about one fact, and its true answer."""

    question: str
    person: Entity
    relation: str

    @property
    def answer(self) -> str:
        """The true value."""
        return self.person.facts[self.relation]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A question and two replies, the preferred one first, with their true rewards."""

    question: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float


def asked(world: Town, draw: Draw, split: str) -> Asked:
    """A question about a famous person; both the fact and the wording belong to the split.

    Raises ValueError for an unknown split.
    """
    check_split(split)
    facts = [(person, relation) for person in world.people[:FAMOUS] for relation in LIVED]
    person, relation = until(split, lambda: draw.one(facts), lambda fact: f"{fact[0].name}|{fact[1]}")
    wording = draw.one(*QUESTIONS[relation].of(split))
    return Asked(question=wording.format(name=person.name), person=person, relation=relation)


# ---------------------------------------------------------------------------------------------------------------- replies


def reply(draw: Draw, about: Asked) -> str:
    """One of the replies people compare: right, wrong, bare, too long or doubled; polite, plain or rude."""
    opener = draw.one(("", draw.one(OPENERS), draw.one(RUDE)), (5, 3, 2))
    body = _BODY[draw.one(tuple(BODIES), tuple(BODIES.values()))](draw, about)
    closer = draw.one(("", draw.one(CLOSERS)), (3, 2))
    return " ".join(part for part in (opener, body, closer) if part)


def _told(draw: Draw, person: Entity, relation: str, value: str) -> str:
    return statement(relation, draw.one(*STATEMENTS[relation].of("train")), person.name, value)


def _full(draw: Draw, about: Asked) -> str:
    return _told(draw, about.person, about.relation, about.answer)


def _wrong(draw: Draw, about: Asked) -> str:
    return _told(
        draw, about.person, about.relation, draw.one([value for value in _values(about.relation) if value != about.answer])
    )


def _bare(draw: Draw, about: Asked) -> str:
    return f"{about.answer[:1].upper()}{about.answer[1:]}."


def _twice(draw: Draw, about: Asked) -> str:
    return " ".join([_full(draw, about)] * 2)


def _more(draw: Draw, about: Asked) -> str:
    """The answer, then another true fact that cannot be mistaken for an answer."""
    values = _pattern(about.relation)
    others = [name for name in LIVED if name != about.relation and not values.search(about.person.facts[name])]
    other = draw.one(others)
    return f"{_full(draw, about)} {_told(draw, about.person, other, about.person.facts[other])}"


def _unsure(draw: Draw, about: Asked) -> str:
    return draw.one(UNSURE)


_BODY = {"full": _full, "wrong": _wrong, "bare": _bare, "more": _more, "unsure": _unsure, "twice": _twice}


def _values(relation: str) -> tuple[str, ...]:
    return tuple(map(str, range(1940, 2010))) if relation == "born" else TABLES[relation]


@cache
def _pattern(relation: str) -> re.Pattern[str]:
    """Any value of the relation, as whole words; the first letter may be a capital, as in a bare answer."""
    values = sorted(_values(relation), key=len, reverse=True)
    return re.compile("|".join(rf"\b[{value[0]}{value[0].upper()}]{re.escape(value[1:])}\b" for value in values))


# ---------------------------------------------------------------------------------------------------------------- the true reward


class TrueReward:
    """The reward nobody who trains may see. Scores any text as a reply to any question about a person of the town.

    helpful:    +2 the true value and no other, −1 any false one, 0 none
    manner:     +0.6 for one polite phrase, +0.8 for two, 0.5 less for each further one; −1 if rude
    length:     −0.25 for each word short of 5, −0.1 for each beyond 22, at most −2
    repetition: −2 × the share of word triples that come again
    clear:      −1.5 × the share of sentences that are no statement about the person, no bare value and no phrase of manners

    >>> world = Town(0); about = asked(world, Draw("doc"), "train")
    >>> TrueReward(world)(about.question, "I do not know.") < TrueReward(world)(about.question, f"Of course. {about.answer}.")
    True
    """

    def __init__(self, world: Town) -> None:
        self._people = {person.name: person for person in world.people}
        self._relations = {
            wording: relation
            for relation in LIVED
            for split in ("train", "validation", "test")
            for wording in QUESTIONS[relation].of(split)[0]
        }

    def __call__(self, question: str, text: str) -> float:
        """The sum of the parts."""
        return sum(self.parts(question, text).values())

    def parts(self, question: str, text: str) -> dict[str, float]:
        """The reward's five parts. Raises ValueError for a question the town does not ask."""
        about = self.understand(question)
        return {
            "helpful": _helpful(about, text),
            "manner": _manner(text),
            "length": _length(text),
            "repetition": _repetition(text),
            "clear": _clear(about, text),
        }

    def understand(self, question: str) -> Asked:
        """Whom and what a question asks about. Raises ValueError for one the town does not ask."""
        for name in re.findall(r"(?=\b([A-Z]\w+ [A-Z]\w+))", question):
            relation = self._relations.get(question.replace(name, "{name}"))
            if relation and name in self._people:
                return Asked(question=question, person=self._people[name], relation=relation)
        raise ValueError(f'"{question}" is no question about a person of the town; take questions from preferences.asked')


def _helpful(about: Asked, text: str) -> float:
    nameless = text.replace(about.person.name, "")  # a surname may be a value too: Dora Baker, baker
    said = {found.lower() for found in _pattern(about.relation).findall(nameless)}
    right = about.answer.lower()
    return 0.0 if not said else 2.0 if said == {right} else -1.0


def _manner(text: str) -> float:
    polite = sum(text.count(phrase) for phrase in (*OPENERS, *CLOSERS))
    rude = any(phrase in text for phrase in RUDE)
    return (0.0, 0.6, 0.8)[min(polite, 2)] - 0.5 * max(polite - 2, 0) - (1.0 if rude else 0.0)


def _length(text: str) -> float:
    words = len(text.split())
    return -min(2.0, 0.25 * max(SHORTEST - words, 0) + 0.1 * max(words - LONGEST, 0))


def _repetition(text: str) -> float:
    words = text.split()
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    return -2.0 * sum(n - 1 for n in triples.values()) / max(triples.total(), 1)


def _clear(about: Asked, text: str) -> float:
    parts = split_sentences(text)
    known = {*OPENERS, *CLOSERS, *RUDE, *UNSURE}
    unclear = [part for part in parts if part not in known and not _meant(about, part)]
    return -1.5 * len(unclear) / len(parts) if parts else -1.5


def _meant(about: Asked, part: str) -> bool:
    bare = _pattern(about.relation).fullmatch(part.rstrip("."))
    return bool(bare) or bool(_statements().fullmatch(part.replace(about.person.name, "{name}")))


@lru_cache(maxsize=1)
def _statements() -> re.Pattern[str]:
    """Any statement of any relation about the person whose name was put back into its slot."""
    ways = []
    for relation in LIVED:
        slot = re.escape("{" + RELATIONS[relation].value + "}")
        values = "|".join(map(re.escape, _values(relation)))
        for split in ("train", "validation", "test"):
            ways += [_any_case(re.escape(text)).replace(slot, f"(?:{values})") for text in STATEMENTS[relation].of(split)[0]]
    return re.compile("|".join(ways))


def _any_case(text: str) -> str:
    return f"[{text[0].lower()}{text[0].upper()}]{text[1:]}" if text[0].isalpha() else text


# ---------------------------------------------------------------------------------------------------------------- the annotator


@dataclass(frozen=True, kw_only=True)
class Annotator:
    """Prefers the better reply with probability σ(difference of the true rewards / temperature)."""

    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be above 0; 0.01 is an annotator who hardly errs")

    def probability(self, first: float, second: float) -> float:
        """The probability that a reply of reward `first` is preferred to one of reward `second`."""
        return 1 / (1 + math.exp(-min(max((first - second) / self.temperature, -700.0), 700.0)))

    def prefers_first(self, draw: Draw, first: float, second: float) -> bool:
        """One noisy judgement."""
        return draw.chance(min(max(self.probability(first, second), 1e-12), 1 - 1e-12))


@lru_cache(maxsize=4)
def _judge(world: Town) -> TrueReward:
    return TrueReward(world)


def pair(world: Town, index: int, split: str = "train", annotator: Annotator | None = None) -> Pair:
    """Pair number `index`: two different replies to one question. Raises ValueError for an unknown split."""
    draw = Draw(f"{world.seed}/preferences/{split}/{index}")
    about = asked(world, draw, split)
    first, second = reply(draw, about), reply(draw, about)
    while second == first:
        second = reply(draw, about)
    scored = [(text, _judge(world)(about.question, text)) for text in (first, second)]
    if not (annotator or Annotator()).prefers_first(draw, scored[0][1], scored[1][1]):
        scored.reverse()
    (chosen, high), (rejected, low) = scored
    return Pair(question=about.question, chosen=chosen, rejected=rejected, chosen_reward=high, rejected_reward=low)


def ceiling(pairs: list[Pair], annotator: Annotator | None = None) -> float:
    """The best accuracy a reward model can expect on noisy labels: the mean of max(p, 1 − p). Raises ValueError for no pairs."""
    if not pairs:
        raise ValueError("no pairs to judge; pass at least one")
    judge = annotator or Annotator()
    chances = [judge.probability(pair.chosen_reward, pair.rejected_reward) for pair in pairs]
    return sum(max(p, 1 - p) for p in chances) / len(chances)


def rows(world: Town, split: str) -> Iterator[dict[str, Any]]:
    """Pairs as messages (prompt, chosen, rejected), the two true rewards, and the pair as one `text`; without end."""
    for i in count():
        made = pair(world, i, split)
        yield {
            "prompt": [{"role": "user", "content": made.question}],
            "chosen": [{"role": "assistant", "content": made.chosen}],
            "rejected": [{"role": "assistant", "content": made.rejected}],
            "chosen_reward": made.chosen_reward,
            "rejected_reward": made.rejected_reward,
            "text": "\n".join((made.question, made.chosen, made.rejected)),
        }


def demonstration_rows(world: Town, split: str) -> Iterator[dict[str, Any]]:
    """Questions with one reply of mixed quality, to fine-tune a first policy on, and the reply's true reward; without end."""
    for i in count():
        draw = Draw(f"{world.seed}/demonstrations/{split}/{i}")
        about = asked(world, draw, split)
        text = reply(draw, about)
        exchange = [{"role": "user", "content": about.question}, {"role": "assistant", "content": text}]
        yield {"messages": exchange, "reward": _judge(world)(about.question, text), "text": f"{about.question}\n{text}"}
