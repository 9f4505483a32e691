"""Random choices that count their own surprise.

    bits of a text = Σ log2(1 / probability of each choice made while writing it)

The sum is the text's information given the town: its mean is the entropy of the generator, the floor no language model can go
below. Where two courses of choices lead to the same text the sum is an upper bound of the text's own information.

Does:     seeded draws of one item, several, an order, a whole number, a chance; the running sum of bits.
Leaves out: continuous draws.
Source:   Shannon 1948 §6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TypeVar

__all__ = ["Draw"]

T = TypeVar("T")


class Draw:
    """A seeded source of choices. `bits` is the information of all choices so far."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)
        self.bits = 0.0

    def aside(self, make: Callable[[], T]) -> tuple[T, float]:
        """What `make` draws and its information, which counts only once it is `told`."""
        before = self.bits
        made = make()
        bits, self.bits = self.bits - before, before
        return made, bits

    def told(self, bits: float) -> None:
        """Information that had been put aside has entered the text."""
        self.bits += bits

    @contextmanager
    def unsaid(self) -> Iterator[None]:
        """Choices made inside leave no trace in the text, so they carry no information."""
        before = self.bits
        yield
        self.bits = before

    def one(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options, equally likely unless weighted."""
        if weights is None:
            self.bits += math.log2(len(options))
            return options[int(self._random.random() * len(options))]
        (index,) = self._random.choices(range(len(options)), weights)
        self.bits -= math.log2(weights[index] / sum(weights))
        return options[index]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options, in drawn order."""
        self.bits += sum(math.log2(len(options) - i) for i in range(count))
        return self._random.sample(options, count)

    def order(self, options: Sequence[T]) -> list[T]:
        """All options, in drawn order."""
        return self.some(options, len(options))

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        self.bits += math.log2(high - low + 1)
        return low + int(self._random.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        true = self._random.random() < probability
        self.bits -= math.log2(probability if true else 1 - probability)
        return true
