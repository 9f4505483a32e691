"""A stream of labelled posts whose world changes at known steps.

    step 0 ────── 1000 ─────── 2000~~~~2600 ────── 3200 ────── 4000 ────── 4800 ────►
         concept a    concept b    slowly to c      new topics   most liked   back to a
                      (abrupt)     (gradual)        (topic)      (prior)      (recurring)

A post tells what somebody took or did; the label says whether the town likes that. Nothing in the text tells the label: it must
be learnt, and after a concept drift half of it is wrong. A topic drift changes what is talked about and leaves every label as it
was; a prior drift changes how many posts are liked.

Does:     example `step` of a split without those before it; the drift points; label noise; the best accuracy at every step.
Leaves out: drift of the wording; labels that come late.
Source:   Gama et al. 2014, "A survey on concept drift adaptation"; Widmer and Kubat 1996.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, product
from random import Random
from typing import Any

from .common import check_split, checked
from .draw import Draw
from .town import Town
from .words import DRINKS, FIRST_NAMES, FOODS, GOODS, HOBBIES, PLACES, SHOPS, split_of

__all__ = ["LABELS", "NOISE", "POINTS", "Drift", "Post", "best_accuracy", "drift_points", "liked", "post", "rows", "stream"]

LABELS = ("disliked", "liked")
NOISE = 0.04  # so many labels are wrong
TOPICS = {"goods": GOODS, "foods": FOODS, "drinks": DRINKS[:8], "hobbies": HOBBIES[:12]}
LEADS = ("", "Today ", "In the morning ", "Near the {place} I heard that ", "As they say, ", "After work ")
CLAUSES = {
    "goods": (
        "{first} bought {thing} at {shop}", "{first} came home with {thing}", "{first} asked for {thing} at {shop}",
        "{first} took {thing} along",
    ),
    "foods": (
        "{first} ate {thing}", "{first} had {thing} at {shop}", "{first} made {thing}", "there was {thing} for {first}",
    ),
    "drinks": (
        "{first} drank {thing}", "{first} had {thing} at {shop}", "{first} asked for {thing}", "there was {thing} for {first}",
    ),
    "hobbies": (
        "{first} had time for {thing}", "{first} spent an hour on {thing}", "{first} went out for {thing}",
        "{first} talked of {thing}",
    ),
}  # fmt: skip
TAILS = ("", " again", " with a friend", " before the rain", " and told me about it")


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A change that begins at step `start` and is complete at step `end` (abrupt: the same step).

    kind: "concept" (what is liked), "topic" (what is talked about), "prior" (how many are liked). `to`: the state afterwards.
    """

    start: int
    end: int
    kind: str
    to: str

    def done(self, step: int) -> float:
        """How much of the change has happened at a step, 0 to 1."""
        if step < self.start or step >= self.end:
            return float(step >= self.end)
        return (step - self.start) / (self.end - self.start)


POINTS = (
    Drift(start=1000, end=1000, kind="concept", to="b"),
    Drift(start=2000, end=2600, kind="concept", to="c"),
    Drift(start=3200, end=3200, kind="topic", to="leisure"),
    Drift(start=4000, end=4000, kind="prior", to="most"),
    Drift(start=4800, end=4800, kind="concept", to="a"),
)
FIRST_STATE = {"concept": "a", "topic": "trade", "prior": "half"}
MIXES = {"trade": {"goods": 0.6, "foods": 0.4}, "leisure": {"goods": 0.1, "foods": 0.1, "drinks": 0.4, "hobbies": 0.4}}
PRIORS = {"half": 0.5, "most": 0.8}
CONCEPTS = ("a", "b", "c")


@dataclass(frozen=True, kw_only=True)
class Post:
    """One example of the stream. `clean` is the label before noise."""

    text: str
    label: str
    step: int
    concept: str
    topic: str
    clean: str


def drift_points(points: tuple[Drift, ...] = POINTS) -> tuple[int, ...]:
    """The steps at which something begins to change."""
    return tuple(point.start for point in points)


@lru_cache(maxsize=64)
def liked(seed: int, concept: str) -> frozenset[str]:
    """What the town likes under a concept: half of every topic; from one concept to the next half of all things change sides.

    Raises ValueError for an unknown concept.
    """
    if concept not in CONCEPTS:
        raise ValueError(f'unknown concept "{concept}"; choose one of {", ".join(CONCEPTS)}')
    chosen: list[str] = []
    for topic, things in TOPICS.items():
        order = Random(f"drift/{seed}/{topic}").sample(things, len(things))
        quarters = [order[i::4] for i in range(4)]  # a: 0 1, b: 1 2, c: 0 2
        pairs = {"a": (0, 1), "b": (1, 2), "c": (0, 2)}
        chosen += [thing for i in pairs[concept] for thing in quarters[i]]
    return frozenset(chosen)


def _state(step: int, kind: str, points: tuple[Drift, ...]) -> list[tuple[str, float]]:
    """The states a kind of change may be in at a step, with their probabilities."""
    state = [(FIRST_STATE[kind], 1.0)]
    for point in points:
        if point.kind == kind and (done := point.done(step)) > 0:
            state = [*((name, share * (1 - done)) for name, share in state), (point.to, done)]
    return [(name, share) for name, share in state if share > 0]


def _drawn(draw: Draw, step: int, kind: str, points: tuple[Drift, ...]) -> str:
    names, shares = zip(*_state(step, kind, points), strict=True)
    return draw.one(names, shares) if len(names) > 1 else names[0]


@lru_cache(maxsize=16)
def _templates(topic: str, split: str) -> tuple[str, ...]:
    """The posts about a topic whose checksum gives the split; every part of one occurs in the training posts too."""
    texts = ["".join(parts) + "." for parts in product(LEADS, CLAUSES[topic], TAILS)]
    return tuple(text for text in checked(*texts, extra=("thing",)) if split_of(text) == split)


def post(world: Town, step: int, split: str = "train", points: tuple[Drift, ...] = POINTS, noise: float = NOISE) -> Post:
    """The post of one step. The test split's post of a step is another, under the same concept, topics and prior.

    Raises ValueError for an unknown split, a step below 0, or a noise outside 0–0.5.
    """
    check_split(split)
    if step < 0 or not 0 <= noise < 0.5:
        raise ValueError(f"step {step} must be 0 or more and noise {noise} in 0–0.5, 0.5 excluded")
    draw = Draw(f"{world.seed}/drift/{split}/{step}")
    concept, mix = _drawn(draw, step, "concept", points), MIXES[_drawn(draw, step, "topic", points)]
    topic = draw.one(tuple(mix), tuple(mix.values()))
    good = draw.chance(PRIORS[_drawn(draw, step, "prior", points)])
    thing = draw.one([thing for thing in TOPICS[topic] if (thing in liked(world.seed, concept)) == good])
    text = _written(draw, topic, thing, split)
    wrong = noise > 0 and draw.chance(noise)
    return Post(text=text, label=LABELS[good != wrong], step=step, concept=concept, topic=topic, clean=LABELS[good])


def _written(draw: Draw, topic: str, thing: str, split: str) -> str:
    first = draw.one([first for firsts in FIRST_NAMES.values() for first in firsts])
    text = draw.one(_templates(topic, split)).format(thing=thing, first=first, place=draw.one(PLACES), shop=draw.one(SHOPS))
    return text[0].upper() + text[1:]


def best_accuracy(world: Town, step: int, points: tuple[Drift, ...] = POINTS, noise: float = NOISE) -> float:
    """The accuracy of the best rule at a step: for every thing the label more often right, noise and slow changes included."""
    best = 0.0
    for mix, share in _state(step, "topic", points):
        for topic, weight in MIXES[mix].items():
            best += share * weight * sum(max(chances) for chances in _chances(world, step, topic, points))
    return best * (1 - noise) + (1 - best) * noise


def _chances(world: Town, step: int, topic: str, points: tuple[Drift, ...]) -> Iterator[tuple[float, float]]:
    """For every thing of a topic, the probability that it comes up disliked and that it comes up liked."""
    prior = sum(PRIORS[name] * share for name, share in _state(step, "prior", points))
    for thing in TOPICS[topic]:
        chances = [0.0, 0.0]
        for concept, share in _state(step, "concept", points):
            good = thing in liked(world.seed, concept)
            chances[good] += share * (prior if good else 1 - prior) / (len(TOPICS[topic]) / 2)
        yield chances[0], chances[1]


def stream(
    world: Town, split: str = "train", start: int = 0, points: tuple[Drift, ...] = POINTS, noise: float = NOISE
) -> Iterator[Post]:
    """The posts from step `start` on, without end. Raises ValueError as `post` does."""
    return (post(world, step, split, points, noise) for step in count(start))


def rows(world: Town, split: str) -> Iterator[dict[str, Any]]:
    """Rows in the order of the steps: text, label, step, concept, topic."""
    for made in stream(world, split):
        yield {"text": made.text, "label": made.label, "step": made.step, "concept": made.concept, "topic": made.topic}
