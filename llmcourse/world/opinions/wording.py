"""Words that judge, and how a sentence gets its words.

    frame "The {dish} was {dish_word}." + pair kept for this split ─► word ─► names drawn ─► "The soup was savoury."

Does:     common and rare words by what they judge; the pairs of frame and word of each split; filling in names.
Leaves out: the frames (see the modules beside this one).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..draw import Draw
from ..grammar import fill
from ..words import COMPANIES, COUNTRIES, FIRST_NAMES, FOODS, GOODS, MONTHS, PETS, SHOPS, SLOTS, SUBJECTS, TEAMS, VILLAGES

__all__ = ["ASPECTS", "GENERAL", "KEPT", "Slots", "Words", "an", "kept", "pick", "say", "slot_table", "two", "vocabulary"]

OFTEN = 2  # a common word is drawn so many times as often as a rare one
SPLIT_OF_TENTH = {0: "test", 1: "validation"}
Slots = dict[str, object]
FIRSTS = (*FIRST_NAMES["She"], *FIRST_NAMES["He"])


@dataclass(frozen=True)
class Words:
    """Common and rare words of one meaning."""

    common: tuple[str, ...]
    rare: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """The common ones first."""
        return self.common + self.rare


def two(common: str, rare: str) -> Words:
    def listed(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",")) if "," in text else tuple(text.split())

    return Words(listed(common), listed(rare))


def slot_table(slots: dict[str, Sequence[str]]) -> None:
    SLOTS.update({name: tuple(words) for name, words in slots.items()})


def an(word: str) -> str:
    """The word with its article."""
    return f"an {word}" if word[0] in "aeiou" and not word.startswith("use") else f"a {word}"


def kept(frame: str, words: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The words that may stand in a frame in one split: of ten pairs of frame and word one is for test, one for validation.

    A list of fewer than ten words is too short to share out and stays whole, as does any list for the split "any".
    """
    if len(words) < 10 or split == "any":
        return words
    return tuple(word for i, word in enumerate(words) if _split_of_pair(frame, i) == split)


def _split_of_pair(frame: str, number: int) -> str:
    return SPLIT_OF_TENTH.get((zlib.crc32(frame.encode("utf-8")) + number) % 10, "train")


@cache
def _choice(frame: str, words: Words, split: str, rarity: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words that may stand in a frame, with their weights; `rarity` asks for common or rare ones only, if there are any."""
    allowed = kept(frame, words.all, split)
    narrow = tuple(word for word in allowed if rarity == "any" or (word in words.rare) == (rarity == "rare"))
    chosen = narrow or allowed
    return chosen, tuple(1 if word in words.rare else OFTEN for word in chosen)


def pick(draw: Draw, frame: str, words: Words, split: str, rarity: str = "any") -> str:
    """A word for a frame."""
    return draw.one(*_choice(frame, words, split, rarity))


GENERAL = {
    True: two(
        "good great lovely fine nice wonderful excellent pleasant perfect",
        "splendid superb delightful marvellous admirable charming glorious outstanding enjoyable magnificent",
    ),
    False: two(
        "bad awful terrible horrible poor dreadful nasty unpleasant disappointing",
        "dismal wretched ghastly lousy appalling abysmal atrocious miserable hideous deplorable",
    ),
}

# aspect -> the things judged, what is good about them, what is bad
ASPECTS: dict[str, tuple[tuple[str, ...], Words, Words]] = {
    "dish": (
        ("soup", "stew", "bread", "cake", "pie", "fish", "roast", "cheese", "pudding", "toast", "tart", "porridge"),
        two("fresh tasty rich tender delicious", "savoury juicy succulent crisp wholesome fragrant"),
        two("stale dry burnt cold tasteless", "bland soggy greasy rotten mouldy rancid"),
    ),
    "host": (
        ("waiter", "cook", "owner", "seller", "host", "maid", "cashier", "porter"),
        two("kind friendly polite helpful cheerful", "courteous attentive gracious obliging amiable thoughtful"),
        two("rude lazy slow unfriendly careless", "surly grumpy sullen clumsy haughty insolent"),
    ),
    "room": (
        ("room", "hall", "kitchen", "garden", "terrace", "parlour", "corner", "cellar"),
        two("clean bright cosy quiet tidy", "spotless comfortable airy snug inviting"),
        two("dirty dark noisy cold untidy", "filthy cramped stuffy gloomy grimy"),
    ),
    "item": (
        ("lamp", "kettle", "hat", "blanket", "rope", "basket", "candle", "map", "clock", "chair", "knife", "coat"),
        two("useful, strong, solid, handy, well made", "sturdy durable reliable dependable practical elegant"),
        two("useless, weak, broken, ugly, badly made", "flimsy shoddy rickety faulty defective worthless"),
    ),
    "part": (
        ("story", "plot", "ending", "acting", "music", "hero", "dialogue", "first half", "second half", "camera work",
        "cast", "script"),
        two("exciting funny clever moving beautiful", "gripping thrilling witty touching brilliant enchanting captivating"),
        two("boring dull silly slow stupid", "tedious dreary tiresome predictable clumsy pointless insipid"),
    ),
    "prospect": (
        ("outlook", "order book", "position", "future", "business", "start", "market", "demand", "trade", "budget"),
        two("strong healthy solid bright sound", "robust promising encouraging favourable buoyant thriving prosperous"),
        two("weak gloomy shaky unhealthy worrying", "bleak fragile sluggish grim ailing feeble precarious"),
    ),
}  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FILMS = (
    "The Last Ferry", "The Red Lamp", "Snow in May", "The Long Winter", "Two Brothers", "The Lost Key", "A Boat at Night",
    "The Silent Mill", "Under the Bridge", "The Tenth Card", "North of Kelby", "The Glass House",
)  # fmt: skip
# what a sentence names, where nothing in it depends on the name
NAMED: dict[str, Sequence[str]] = {
    "shop": SHOPS, "weekday": WEEKDAYS, "month": MONTHS, "first": FIRSTS, "food": FOODS, "good": GOODS, "pet": PETS,
    "film": FILMS,
    "village": VILLAGES, "company": COMPANIES, "partner": COMPANIES, "team": TEAMS, "rival": TEAMS, "country": COUNTRIES,
    "neighbour": COUNTRIES, "subject": SUBJECTS, "relative": ("brother", "sister", "mother", "uncle", "neighbour", "boss"),
    "product": ("paper", "glass", "wool", "steel", "flour", "boats", "carts", "cheese", "soap", "bricks", "lamps", "ropes"),
    "belonging": ("cart", "clock", "umbrella", "kettle", "bicycle", "lamp", "stove", "coat", "key", "boat"),
} | {aspect: nouns for aspect, (nouns, _, _) in ASPECTS.items()}  # fmt: skip
NUMBERS = {"k": 9, "n": 60}  # from 2 to
UNLIKE = {"partner": "company", "rival": "team", "neighbour": "country"}
KEPT = (
    "company",
    "partner",
    "team",
    "rival",
    "country",
    "neighbour",
    "subject",
    "product",
    "item",
    "film",
)  # one text speaks of one
for _aspect, (_nouns, _good, _bad) in ASPECTS.items():
    slot_table({_aspect: _nouns, f"{_aspect}_word": (*_good.all, *_bad.all, *GENERAL[True].all, *GENERAL[False].all)})
_judging = (*GENERAL[True].all, *GENERAL[False].all)
slot_table({"word": _judging, "a_word": [an(word) for word in _judging], "a_item": [an(noun) for noun in ASPECTS["item"][0]]})
slot_table({name: NAMED[name] for name in ("weekday", "film", "relative", "product", "belonging", "partner")})


def say(draw: Draw, frame: str, slots: Slots | None = None) -> str:
    """The sentence; names that `slots` lacks are drawn, and those a text keeps to are remembered there."""
    slots = {} if slots is None else slots
    passing: Slots = {}
    for name in re.findall(r"\{(\w+)\}", frame):
        if name in NUMBERS:
            passing[name] = draw.whole(2, NUMBERS[name])
        elif name == "a_item":
            passing[name] = an(str(_named(draw, "item", slots)))
        elif name not in slots:
            passing[name] = _named(draw, name, slots)
    return fill(frame, **slots | passing)


def _named(draw: Draw, name: str, slots: Slots) -> object:
    if name in slots:
        return slots[name]
    found = draw.one([one for one in NAMED[name] if one != slots.get(UNLIKE.get(name, ""))])
    if name in KEPT:
        slots[name] = found
    return found


def vocabulary(draw: Draw, aspect: str, good: bool) -> Words:
    """What is said of an aspect: one of its own words, or one that fits everything; of business its own only."""
    own = ASPECTS[aspect][1 if good else 2]
    return own if aspect == "prospect" or draw.chance(0.7) else GENERAL[good]
