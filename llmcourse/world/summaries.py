"""Short texts and their one-sentence summaries: who did what, and where.

    "It was a cold day. Ada Vale is a baker. … She lost a lamp near the mill. … In the end she found it."
        ─►  "Ada Vale lost a lamp at the mill and found it again."

Every plot has several ways of telling each part and six ways to sum it up; all six are right (`references`), the drawn one is the
summary. The names are nobody's in town, so no text contradicts a fact, and each
belongs to one split, so no text is in two.

Does:     texts of four to six sentences, plots with who, what and where; the accepted summaries of each.
Leaves out: longer texts, summaries that must be inferred; the ROUGE score itself.
Source:   the task is that of XSum (Narayan et al. 2018), one sentence for one text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from .common import check_split, checked, strangers, they
from .draw import Draw
from .kinds.prose import WEATHER
from .town import Town
from .words import FIRST_NAMES, GOODS, JOBS, PLACES, SHOPS, STREETS, THINGS, VILLAGES

__all__ = ["PLOTS", "Plot", "Told", "rows", "summary", "told"]

SUMMARIES = (
    "{Who} {did}.", "The text tells how {who} {did}.", "In short, {who} {did}.", "{Who} the {job} {did}.",
    "This is the story of {who}, who {did}.", "We read that {who} {did}.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What happens: three parts, each with several wordings, and the same in one clause."""

    begins: tuple[str, ...]
    happens: tuple[str, ...]
    ends: tuple[str, ...]
    did: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """A text, its summary, and every summary that is as good."""

    plot: str
    text: str
    summary: str
    references: tuple[str, ...]


INTRODUCTIONS = checked(
    "{name} works as a {job}.", "{name} is a {job} by trade.", "{name} lives in {street} and works as a {job}.",
    "This is about {name}, a {job} from {village}.",
)  # fmt: skip
ASIDES = checked(
    "{They} had a free day.", "{They} was not in a hurry.", "There were many people in {street}.",
    "The day before had been long.", "A friend from {village} came along.",
)  # fmt: skip

PLOTS: dict[str, Plot] = {
    "lost": Plot(
        begins=checked(
            "{They} went out with {good}.", "{They} took {good} along.", "{They} carried {good} through the town.",
        ),
        happens=checked(
            "Near the {place} it was suddenly gone.", "At the {place} {they} could not find it.",
            "{They} lost it near the {place}.",
        ),
        ends=checked(
            "In the evening it was still there.", "After an hour {they} found it again.", "A child brought it back.",
        ),
        did="lost {good} near the {place} and got it back",
    ),
    "bought": Plot(
        begins=checked(
            "{They} needed {good}.", "{They} had long looked for {good}.", "{They} wanted {good} for the house.",
        ),
        happens=checked(
            "At {shop} {they} found one.", "There was one left at {shop}.", "{They} saw one in the window of {shop}.",
        ),
        ends=checked(
            "{They} paid {n} coins and went home.", "It was {they} who took it home for {n} coins.",
            "For {n} coins it was sold.",
        ),
        did="bought {good} at {shop} for {n} coins",
    ),
    "helped": Plot(
        begins=checked(
            "On the way {they} came to the {place}.", "{They} walked to the {place}.",
            "{They} had work at the {place}.",
        ),
        happens=checked(
            "There {first} had dropped {n} {things}.", "{first} stood there and had lost {n} {things}.",
            "On the ground lay {n} {things} of {first}.",
        ),
        ends=checked(
            "Together they found them all.", "{They} helped until the last one was found.",
            "{They} picked up every one.",
        ),
        did="helped {first} to find {n} {things} at the {place}",
    ),
    "moved": Plot(
        begins=checked(
            "The house in {street} had become too small.", "{They} did not like {street} any more.",
            "{They} lived in {street} for {n} years.",
        ),
        happens=checked(
            "{They} heard of an empty house in {village}.", "In {village} a house was free.",
            "A friend told of a house in {village}.",
        ),
        ends=checked(
            "A week later {they} lived there.", "{They} packed everything and left.", "Soon {they} had a new home.",
        ),
        did="moved from {street} to {village}",
    ),
    "repaired": Plot(
        begins=checked(
            "The {place} was in a bad state.", "Something was broken at the {place}.",
            "The {place} was not safe any more.",
        ),
        happens=checked(
            "{They} came with {good} and {n} men.", "{They} asked {n} friends and brought {good}.",
            "With {n} friends and {good} {they} went there.",
        ),
        ends=checked("By night the work was done.", "It took them a day.", "Now all is well again."),
        did="repaired the {place} with {n} friends",
    ),
    "sold": Plot(
        begins=checked(
            "{They} had {n} {things} too many.", "In the house there were {n} {things}.",
            "{They} found {n} old {things} at home.",
        ),
        happens=checked(
            "{They} carried them to {shop}.", "At {shop} somebody asked for them.",
            "{shop} was looking for such {things}.",
        ),
        ends=checked(
            "There {they} sold them all.", "They paid well for them.", "{They} came home with a full purse.",
        ),
        did="sold {n} {things} at {shop}",
    ),
}  # fmt: skip


def summary(world: Town, draw: Draw, split: str) -> tuple[str, str]:
    """A text of four to six sentences, and one sentence that says who did what, and where.

    Raises ValueError for an unknown split.
    """
    made = told(world, draw, split)
    return made.text, made.summary


def told(world: Town, draw: Draw, split: str) -> Told:
    """As `summary`, with the plot and all references. Raises ValueError for an unknown split."""
    check_split(split)
    name, (key, plot) = draw.one(strangers(world, split)), draw.one(tuple(PLOTS.items()))
    slots = _slots(draw, name)
    parts = [draw.one(part) for part in (INTRODUCTIONS, plot.begins, plot.happens, plot.ends)]
    if draw.chance(0.5):
        parts.insert(2, draw.one(ASIDES))
    if draw.chance(0.5):
        parts.insert(0, draw.one(WEATHER))
    text = " ".join(_capital(part.format(**slots)) for part in parts)
    references = _references(plot, slots)
    return Told(plot=key, text=text, summary=draw.one(references), references=references)


def _references(plot: Plot, slots: dict[str, str]) -> tuple[str, ...]:
    did = plot.did.format(**slots)
    return tuple(text.format(Who=slots["name"], who=slots["name"], did=did, job=slots["job"]) for text in SUMMARIES)


def _slots(draw: Draw, name: str) -> dict[str, str]:
    pronoun = they(name)
    tables = {
        "job": JOBS,
        "street": STREETS,
        "village": VILLAGES,
        "good": GOODS,
        "shop": SHOPS,
        "place": PLACES,
        "things": THINGS,
    }
    drawn = {slot: draw.one(words) for slot, words in tables.items()}
    other = draw.one([first for firsts in FIRST_NAMES.values() for first in firsts if first != name.split()[0]])
    return drawn | {"name": name, "They": pronoun, "they": pronoun.lower(), "first": other, "n": str(draw.whole(3, 30))}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def rows(world: Town, split: str) -> Iterator[dict[str, object]]:
    """Text, summary, references and plot, without end; row i needs no row before it."""
    for i in count():
        made = told(world, Draw(f"{world.seed}/summaries/{split}/{i}"), split)
        yield {"text": made.text, "summary": made.summary, "references": list(made.references), "plot": made.plot}
