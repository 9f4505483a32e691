"""The town of Larkham, drawn from a seed: who lives there, what is sold, what happened, and what changed.

    seed ─► people, wares, events, mayors, moves      facts up to the cut-off: in the training text
         └► later events, moves, a later mayor        facts after it: true, and never in the training text

Does:     facts with a frequency curve (the first people of the list are written about far more often than the last), facts that
          change over time, facts after the training cut-off.
Leaves out: the sentences (see the kinds).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from .draw import Draw
from .items import Entity
from .words import (
    COLOURS,
    DRINKS,
    EVENTS,
    FIRST_NAMES,
    FOODS,
    GOODS,
    HOBBIES,
    JOBS,
    LAST_NAMES,
    MONTHS,
    PET_NAMES,
    PETS,
    SHOPS,
    STREETS,
    VILLAGES,
)

__all__ = ["CUTOFF", "FAMOUS", "Mayor", "Move", "Town"]

CUTOFF = 2024  # the last year the training text knows
FAMOUS = 24  # so many of the people are written about often; knowledge of the others is thinner and thinner
BIRTH_YEARS = range(1940, 2010)
TABLES = {
    "job": JOBS, "street": STREETS, "food": FOODS, "drink": DRINKS, "colour": COLOURS, "hobby": HOBBIES, "pet": PETS,
    "pet_name": PET_NAMES, "village": VILLAGES,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Move:
    """Somebody left one street for another: before `year` the old one is true, from then on the new one."""

    person: Entity
    year: int
    old: str
    new: str


@dataclass(frozen=True, kw_only=True)
class Mayor:
    """Who led the town from the first to the last year, both included."""

    person: Entity
    first: int
    last: int


class Town:
    """`people` (most famous first), `wares`, `events`, `mayors`, `moves`, and `later_…`: the same after the cut-off."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = Random(f"town/{seed}")
        self.people = _people(rng, pairs=100)
        self.wares = _wares(rng)
        self.events, self.later_events = _events(rng)
        self.mayors, self.later_mayors = _mayors(rng, self.people)
        self.moves, self.later_moves = _moves(rng, self.people)

    @property
    def famous(self) -> list[Entity]:
        """The people a model trained on this town should know well."""
        return self.people[:FAMOUS]


def known(draw: Draw, entities: list[Entity]) -> Entity:
    """Draw an entity: number i of n with probability ((i + 1)/n)^⅓ − (i/n)^⅓, so the first come up far more often."""
    ends = [(i / len(entities)) ** (1 / 3) for i in range(len(entities) + 1)]
    return draw.one(entities, [b - a for a, b in pairwise(ends)])


def random_facts(rng: Random | Draw) -> dict[str, str]:
    """A stranger's facts: one value of every table and a birth year."""
    if isinstance(rng, Draw):
        return {name: rng.one(table) for name, table in TABLES.items()} | {
            "born": str(rng.whole(BIRTH_YEARS[0], BIRTH_YEARS[-1]))
        }
    return {name: rng.choice(table) for name, table in TABLES.items()} | {"born": str(rng.randint(1940, 2009))}


def fact_bits(relation: str) -> float:
    """The information of one of a stranger's facts."""
    return math.log2(len(TABLES.get(relation, BIRTH_YEARS)))


def _people(rng: Random, pairs: int) -> list[Entity]:
    """Pairs of siblings share a surname; friends stand side by side in a shuffled ring."""
    firsts = [(they, first) for they, names in FIRST_NAMES.items() for first in names]
    names = [(f"{first} {last}", they) for last in LAST_NAMES for they, first in rng.sample(firsts, 6)]
    siblings = [(names[i], names[i + 1]) for i in range(0, len(names), 2)]
    chosen = [(person, other[0]) for a, b in rng.sample(siblings, pairs) for person, other in ((a, b), (b, a))]
    rng.shuffle(chosen)
    friends = {chosen[i][0][0]: chosen[i ^ 1][0][0] for i in range(len(chosen))}
    return [
        Entity(name=name, they=they, facts=random_facts(rng) | {"friend": friends[name], "sibling": sibling})
        for (name, they), sibling in chosen
    ]


def _wares(rng: Random) -> list[Entity]:
    stock = [(good, shop) for shop in SHOPS for good in rng.sample(GOODS, 5)]
    rng.shuffle(stock)
    return [Entity(name=f"{good} at {shop}", slot="ware", facts={"price": str(rng.randint(2, 40))}) for good, shop in stock]


def _date(rng: Random, first: int, last: int) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(first, last)}"


def _events(rng: Random) -> tuple[list[Entity], list[Entity]]:
    names = rng.sample(EVENTS, len(EVENTS))
    past = [Entity(name=name, slot="event", facts={"date": _date(rng, 1960, CUTOFF)}) for name in names[:-12]]
    later = [Entity(name=name, slot="event", facts={"date": _date(rng, CUTOFF + 1, CUTOFF + 2)}) for name in names[-12:]]
    return past, later


def _mayors(rng: Random, people: list[Entity]) -> tuple[list[Mayor], list[Mayor]]:
    """A new mayor every three to five years from 1980; the one after the cut-off nobody has read about."""
    persons, mayors, year = rng.sample(people[:60], 16), [], 1980
    while year <= CUTOFF + 1:
        last = year + rng.randint(2, 4)
        if year <= CUTOFF <= last:
            last = CUTOFF  # an election at the cut-off
        mayors.append(Mayor(person=persons[len(mayors)], first=year, last=last))
        year = last + 1
    return mayors[:-1], mayors[-1:]


def _moves(rng: Random, people: list[Entity]) -> tuple[list[Move], list[Move]]:
    """Forty people moved into the street they live in now; fifteen others will leave it after the cut-off."""
    movers = rng.sample(people[:120], 55)
    moves = []
    for i, person in enumerate(movers):
        now = person.facts["street"]
        other = rng.choice([street for street in STREETS if street != now])
        old, new = (other, now) if i < 40 else (now, other)
        year = rng.randint(1995, CUTOFF) if i < 40 else rng.randint(CUTOFF + 1, CUTOFF + 2)
        moves.append(Move(person=person, year=year, old=old, new=new))
    return moves[:40], moves[40:]
