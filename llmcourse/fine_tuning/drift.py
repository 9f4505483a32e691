"""A stream whose world changes: test on each post before learning from it, forget on purpose, and hear the change in the errors.

    posts ─► guess ─► compare with the label ─► errors ─► prequential accuracy
                             │                     └────► DDM or Page-Hinkley: "drift!" ─► empty the memory
                             └─► learn: these posts + some from a reservoir

    DDM            p = share of errors so far, s = √(p(1 - p) / n);  keep the least p + s;  drift when p + s ≥ p_min + 3 s_min
    Page-Hinkley   m = Σ (error - mean - δ);  drift when m - min m > λ

Does:     reservoir sampling (a uniform sample of everything seen, in fixed memory); both detectors; static, periodic and online
          learning around any `train` and `guess`; the prequential loop, and accuracy over windows of it.
Leaves out: ADWIN, labels that come late, changes that do not alter the errors.
Source:   Vitter 1985 (algorithm R); Gama et al. 2004 (DDM); Page 1954, Mouss et al. 2004 (Page-Hinkley); Gama et al. 2013
          (prequential); Widmer & Kubat 1996 (forgetting on drift).

DDM is quick and often wrong, Page-Hinkley slower and rarely wrong: both measured in their docstrings and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

__all__ = [
    "DDM",
    "Detector",
    "Learner",
    "Online",
    "PageHinkley",
    "Periodic",
    "Prequential",
    "Reservoir",
    "Static",
    "prequential",
    "remembered",
    "windowed",
]

State = Literal["stable", "warning", "drift"]
Example = tuple[str, int]  # a text and its label
Train = Callable[[Sequence[Example]], Any]
Guess = Callable[[Sequence[str]], Sequence[int]]


# ---- memory ------------------------------------------------------------------------------------------------------------


def remembered(memory: list[Any], item: Any, seen: int, capacity: int, draw: float) -> list[Any]:
    """The memory after item number `seen` (from 1): it is added while there is room, later it may take a random place.

    `draw` is uniform in [0, 1): of `seen` places one is drawn, and if the memory has it, the new item takes it. Every item so far
    is then in memory with the same probability, capacity / seen.
    """
    if seen <= capacity:
        return [*memory, item]
    place = int(draw * seen)
    return memory if place >= capacity else [*memory[:place], item, *memory[place + 1 :]]


class Reservoir:
    """A uniform sample of all items added, never more than `capacity`.

    Raises: ValueError for a capacity below 1.
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}; choose 1 or more")
        self.capacity, self.items, self.seen, self.rng = capacity, [], 0, Random(f"reservoir/{seed}")

    def add(self, items: Iterable[Any]) -> None:
        """Offer items in turn."""
        for item in items:
            self.seen += 1
            self.items = remembered(self.items, item, self.seen, self.capacity, self.rng.random())

    def sample(self, count: int) -> list[Any]:
        """`count` different items, or all where there are fewer."""
        return self.rng.sample(self.items, min(count, len(self.items)))

    def clear(self) -> None:
        """Forget everything; the next item counts as the first."""
        self.items, self.seen = [], 0


# ---- detectors ---------------------------------------------------------------------------------------------------------


@runtime_checkable
class Detector(Protocol):
    """Reads one error at a time; starts anew after a drift."""

    def update(self, wrong: bool) -> State: ...


@dataclass
class DDM:
    """Drift when the share of errors rises three standard deviations above its best.

    It hears rises alone; `quiet` posts pass before it may speak. Its best is the luckiest moment of many, so it errs often: on
    2,000 errors of a constant rate 0.05, 0.1, 0.2 or 0.3 it cried "drift" in 56, 42, 23 or 20 streams of 100. A jump to 0.5 after
    500 posts it heard after 15, 28, 57 or 113 posts (medians). The longer all was well, the longer it takes.
    """

    warning: float = 2.0
    drift: float = 3.0
    quiet: int = 30
    count: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)
    best: tuple[float, float] = field(default=(np.inf, np.inf), init=False)  # the p and s whose sum was least

    def update(self, wrong: bool) -> State:
        """The state after one more post, right or wrong."""
        self.count += 1
        self.errors += bool(wrong)
        rate = self.errors / self.count
        spread = (rate * (1 - rate) / self.count) ** 0.5
        if self.count < self.quiet or self.errors == 0:  # without an error the best would be 0 + 0, and the next error a drift
            return "stable"
        if rate + spread < sum(self.best):
            self.best = (rate, spread)
        level = rate + spread
        if level >= self.best[0] + self.drift * self.best[1]:
            self.count, self.errors, self.best = 0, 0, (np.inf, np.inf)
            return "drift"
        return "warning" if level >= self.best[0] + self.warning * self.best[1] else "stable"


@dataclass
class PageHinkley:
    """Drift when the errors since some moment exceed their mean by more than `threshold` in all.

    slack (δ): what may be exceeded at every post for nothing. A larger threshold (λ): fewer false alarms, and later true ones.
    On 2,000 errors of a constant rate 0.05, 0.1, 0.2 or 0.3 at most 1 stream of 100 had an alarm; a jump to 0.5 after 500 posts
    was heard after 37, 41, 55 or 99 posts (medians).
    """

    slack: float = 0.05
    threshold: float = 15.0
    quiet: int = 30
    count: int = field(default=0, init=False)
    mean: float = field(default=0.0, init=False)
    total: float = field(default=0.0, init=False)
    least: float = field(default=0.0, init=False)

    def update(self, wrong: bool) -> State:
        """The state after one more post, right or wrong."""
        self.count += 1
        self.mean += (wrong - self.mean) / self.count
        self.total += wrong - self.mean - self.slack
        self.least = min(self.least, self.total)
        if self.count < self.quiet or self.total - self.least <= self.threshold:
            return "stable"
        self.count, self.mean, self.total, self.least = 0, 0.0, 0.0, 0.0
        return "drift"


# ---- learners ----------------------------------------------------------------------------------------------------------


@runtime_checkable
class Learner(Protocol):
    """What the prequential loop calls after each test."""

    def learn(self, examples: Sequence[Example], wrong: Sequence[bool]) -> None: ...


class Static:
    """Never learns: what the model knew at the start is all it will ever know."""

    def learn(self, examples: Sequence[Example], wrong: Sequence[bool]) -> None:
        """Nothing."""


class Periodic:
    """Trains once every `every` posts, on those posts. Raises: ValueError for every < 1."""

    def __init__(self, train: Train, every: int) -> None:
        if every < 1:
            raise ValueError(f"every={every}; choose 1 or more posts")
        self.train, self.every, self.waiting = train, every, []

    def learn(self, examples: Sequence[Example], wrong: Sequence[bool]) -> None:
        """Keep the posts; train when there are enough."""
        self.waiting += examples
        while len(self.waiting) >= self.every:
            self.train(self.waiting[: self.every])
            self.waiting = self.waiting[self.every :]


class Online:
    """Trains on every chunk with `replayed` posts of a memory beside it; where a detector hears a drift, the memory is emptied.

    `drifts` holds the numbers of the posts at which it was heard, counted from 0 over the whole stream.
    """

    def __init__(self, train: Train, memory: Reservoir, replayed: int, detector: Detector | None = None) -> None:
        self.train, self.memory, self.replayed, self.detector = train, memory, replayed, detector
        self.drifts: list[int] = []
        self.seen = 0

    def learn(self, examples: Sequence[Example], wrong: Sequence[bool]) -> None:
        """Listen, forget if need be, train, remember."""
        for error in wrong if self.detector else ():
            if self.detector.update(error) == "drift":
                self.drifts.append(self.seen)
                self.memory.clear()
            self.seen += 1
        self.train([*examples, *self.memory.sample(self.replayed)])
        self.memory.add(examples)


# ---- the loop ----------------------------------------------------------------------------------------------------------


class Prequential(NamedTuple):
    """Right or wrong for every post, in order, each judged before anything was learnt from it."""

    hits: Bool[np.ndarray, " posts"]

    @property
    def accuracy(self) -> float:
        """The share of right guesses over the whole stream."""
        return float(self.hits.mean())


def prequential(guess: Guess, learner: Learner, examples: Iterable[Example], *, chunk: int = 20) -> Prequential:
    """Test, then train, a chunk at a time: all posts of a chunk are guessed before one of them is learnt from.

    Raises: ValueError for a chunk below 1, an empty stream, or guesses that are not one each.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}; choose 1 or more posts")
    hits: list[bool] = []
    for posts in _chunks(iter(examples), chunk):
        guesses = guess([text for text, _ in posts])
        if len(guesses) != len(posts):
            raise ValueError(f"{len(guesses)} guesses for {len(posts)} posts; `guess` must answer each")
        right = [found == label for found, (_, label) in zip(guesses, posts, strict=True)]
        hits += right
        learner.learn(posts, [not each for each in right])
    if not hits:
        raise ValueError("the stream is empty; give at least one post")
    return Prequential(np.array(hits))


def _chunks(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while posts := list(islice(examples, size)):
        yield posts


def windowed(hits: Bool[np.ndarray, " posts"], size: int = 200) -> Float[np.ndarray, " posts"]:
    """At every post the accuracy over the last `size` posts, itself included (fewer at the beginning).

    Raises: ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"size={size}; choose 1 or more posts")
    total = np.concatenate(([0], np.cumsum(hits)))
    ends = np.arange(1, len(total))
    starts = np.maximum(0, ends - size)
    return (total[ends] - total[starts]) / (ends - starts)
