"""Sentences with their entities, relations and events marked.

    "On 3 May 2001 Ada Vale bought a hat at the Blue Boat for 7 coins."
       tags       O B-date I-date I-date B-person I-person O B-ware I-ware O B-shop …
       relations  (a hat, sold at, the Blue Boat), (a hat, costs, 7)
       events     buy ("bought"): buyer Ada Vale, ware a hat, shop the Blue Boat, price 7, date 3 May 2001

    sentence = lead × clause × tail       a checksum of the three gives the split: all parts occur in training, the whole does not

Does:     tokens, BIO tags, spans, relation triples, events with trigger and roles; names that no other split has.
Leaves out: nested entities, coreference, relations across sentences.
Source:   Ramshaw and Marcus 1995 (BIO tags); Wang et al. 2023 (InstructUIE), the three kinds of annotation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count, product
from typing import Any

from .common import check_split, checked, strangers
from .draw import Draw
from .town import CUTOFF, Town
from .words import JOBS, MONTHS, STREETS, VILLAGES, split_of

__all__ = [
    "EVENT_TYPES", "LABELS", "RELATION_TYPES", "TAGS", "Annotated", "Event", "Relation", "Span", "annotated", "linearise", "rows",
    "tokenise",
]  # fmt: skip

Mark = tuple[int, int, str]  # first token, end, slot
LABELS = ("person", "job", "place", "date", "price", "ware", "shop", "event")
TAGS = ("O", *(f"{position}-{label}" for label in LABELS for position in "BI"))
LABEL_OF = {
    "name": "person", "other": "person", "job": "job", "home": "place", "old": "place", "where": "place", "village": "place",
    "date": "date", "year": "date", "price": "price", "good": "ware", "shop": "shop", "event": "event",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Span:
    """An entity: tokens `start` up to but not including `end`."""

    start: int
    end: int
    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Two entities' texts and what holds between them."""

    head: str
    relation: str
    tail: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened, the word that says so, and who or what filled which role."""

    type: str
    trigger: str
    arguments: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """One or two sentences and all that is marked in them."""

    text: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    spans: tuple[Span, ...]
    relations: tuple[Relation, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A family of sentences. A clause marks its trigger with [ ]; a role or relation counts where its slots occur."""

    leads: tuple[str, ...]
    clauses: tuple[str, ...]
    tails: tuple[str, ...]
    relations: tuple[tuple[str, str, str], ...]
    event: str = ""
    roles: tuple[tuple[str, str], ...] = ()


WORKS, COMES = ("name", "works as", "job"), ("name", "comes from", "village")
LIVES, BORN = ("name", "lives in", "home"), ("name", "born in", "year")
FORMS = {
    "buy": Form(
        leads=("", "On {date} ", "As {other} tells us, ", "Yesterday "),
        clauses=(
            "{name} [bought] {good} at {shop}", "{name} the {job} [bought] {good} at {shop}",
            "{name} from {village} [got] {good} at {shop}",
            "{name} of {home} [took] {good} home from {shop}",
        ),
        tails=("", " for {price} coins", " and paid {price} coins", " on {date}"),
        relations=(WORKS, COMES, LIVES, ("good", "sold at", "shop"), ("good", "costs", "price")),
        event="buy", roles=(("buyer", "name"), ("ware", "good"), ("shop", "shop"), ("price", "price"), ("date", "date")),
    ),
    "move": Form(
        leads=("", "In {year} ", "As {other} tells us, ", "On {date} "),
        clauses=(
            "{name} [moved] from {old} to {home}", "{name} the {job} [left] {old} for {home}",
            "{name} from {village} [moved] to {home}",
            "{name} [went] from {old} to a new house in {home}",
        ),
        tails=("", " with {other}", " on {date}", " after {event}"),
        relations=(WORKS, COMES, LIVES),
        event="move", roles=(("person", "name"), ("from", "old"), ("to", "home"), ("date", "year"), ("date", "date")),
    ),
    "meet": Form(
        leads=("", "On {date} ", "Soon after {event} ", "Yesterday "),
        clauses=(
            "{name} [met] {other} in {where}", "{name} the {job} [saw] {other} in {where}",
            "{name} from {village} [visited] {other}",
            "{name} of {home} [met] {other} at {shop}",
        ),
        tails=("", " on {date}", " after {event}", " and bought nothing"),
        relations=(WORKS, COMES, LIVES, ("name", "knows", "other")),
        event="meet", roles=(("person", "name"), ("other", "other"), ("place", "where"), ("place", "shop"), ("date", "date")),
    ),
    "life": Form(
        leads=("", "As {other} tells us, ", "It is true that ", "People say that "),
        clauses=(
            "{name} works as a {job}", "{name} from {village} lives in {home}", "{name} the {job} lives in {home}",
            "{name} was born in {year}",
        ),
        tails=("", " and is happy", " and knows {other} well", " and never talks about {event}"),
        relations=(WORKS, COMES, LIVES, BORN, ("name", "knows", "other")),
    ),
}  # fmt: skip
RELATION_TYPES = tuple(dict.fromkeys(relation for form in FORMS.values() for _, relation, _ in form.relations))
EVENT_TYPES = tuple(form.event for form in FORMS.values() if form.event)
FOREIGN_KNOWS = "As {other} tells us"  # a witness, not an acquaintance


@lru_cache(maxsize=8)
def _templates(kind: str, split: str) -> tuple[str, ...]:
    """The sentences of a form whose checksum gives the split, none with the same slot twice."""
    form = FORMS[kind]
    joined = ["".join(parts) + "." for parts in product(form.leads, form.clauses, form.tails)]
    texts = checked(*joined, extra=tuple(LABEL_OF))
    once = [text for text in texts if len(set(_slots(text))) == len(_slots(text)) and not {"year", "date"} <= set(_slots(text))]
    return tuple(text for text in once if split_of(text) == split)


def _slots(template: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", template)


def tokenise(text: str) -> list[str]:
    """Words and signs; a name's apostrophe stays inside its word."""
    return re.findall(r"\w+(?:'\w+)?|[^\w\s]", text)


def annotated(world: Town, index: int, split: str = "train") -> Annotated:
    """Text number `index`: one or two sentences about people nobody else knows. Raises ValueError for an unknown split."""
    check_split(split)
    draw = Draw(f"{world.seed}/annotated/{split}/{index}")
    return _joined([_sentence(world, draw, split) for _ in range(draw.whole(1, 2))])


def _sentence(town: Town, draw: Draw, split: str) -> Annotated:
    kind = draw.one(tuple(FORMS))
    template = draw.one(_templates(kind, split))
    values = _values(town, draw, split)
    text, marks, trigger = "", [], ""
    for literal, slot, word in re.findall(r"([^\[{]+)|\{(\w+)\}|\[(\w+)\]", template):
        piece = values[slot] if slot else literal or word
        if slot:
            marks.append((len(tokenise(text)), len(tokenise(text + piece)), slot))
        trigger = word or trigger
        text += piece
    return _annotate(FORMS[kind], template, text, marks, values, trigger)


def _values(town: Town, draw: Draw, split: str) -> dict[str, str]:
    """A value for every slot: strangers, true prices and events of the town."""
    name, other = draw.some(strangers(town, split), 2)
    good, shop = (ware := draw.one(town.wares)).name.split(" at ")
    old, home, where = draw.some(STREETS, 3)
    people = {"name": name, "other": other, "job": draw.one(JOBS), "village": draw.one(VILLAGES)}
    streets = {"old": old, "home": home, "where": where}
    date = f"{draw.whole(1, 28)} {draw.one(MONTHS)} {draw.whole(1980, CUTOFF)}"
    things = {"good": good, "shop": shop, "price": ware.facts["price"], "event": draw.one(town.events).name}
    return people | streets | things | {"date": date, "year": str(draw.whole(1940, CUTOFF))}


def _annotate(form: Form, template: str, text: str, marks: list[Mark], values: dict[str, str], trigger: str) -> Annotated:
    text = text[0].upper() + text[1:]
    tokens = tuple(tokenise(text))
    spans = tuple(Span(start=a, end=b, label=LABEL_OF[slot], text=values[slot]) for a, b, slot in marks)
    present = set(_slots(template))
    relations = tuple(
        Relation(head=values[head], relation=relation, tail=values[tail])
        for head, relation, tail in form.relations
        if {head, tail} <= present and not (relation == "knows" and template.startswith(FOREIGN_KNOWS))
    )
    roles = {role: values[slot] for role, slot in form.roles if slot in present}
    events = (Event(type=form.event, trigger=trigger, arguments=roles),) if form.event else ()
    tags = _tags(len(tokens), spans)
    return Annotated(text=text, tokens=tokens, tags=tags, spans=spans, relations=relations, events=events)


def _tags(length: int, spans: tuple[Span, ...]) -> tuple[str, ...]:
    tags = ["O"] * length
    for span in spans:
        tags[span.start : span.end] = [f"B-{span.label}", *[f"I-{span.label}"] * (span.end - span.start - 1)]
    return tuple(tags)


def _joined(parts: list[Annotated]) -> Annotated:
    """Several sentences as one text, the spans moved along."""
    starts = [sum(len(part.tokens) for part in parts[:i]) for i in range(len(parts))]
    moved = [
        Span(start=span.start + at, end=span.end + at, label=span.label, text=span.text)
        for at, part in zip(starts, parts, strict=True) for span in part.spans
    ]  # fmt: skip
    return Annotated(
        text=" ".join(part.text for part in parts),
        tokens=tuple(token for part in parts for token in part.tokens),
        tags=tuple(tag for part in parts for tag in part.tags),
        spans=tuple(moved),
        relations=tuple(dict.fromkeys(relation for part in parts for relation in part.relations)),
        events=tuple(event for part in parts for event in part.events),
    )


def linearise(made: Annotated, task: str = "entities") -> str:
    """The annotation as text, for models that write: entities, relations or events, "none" where there are none.

    Raises ValueError for an unknown task.
    """
    if task not in ("entities", "relations", "events"):
        raise ValueError(f'unknown task "{task}"; choose one of entities, relations, events')
    if task == "entities":
        written = [f"{span.label}: {span.text}" for span in made.spans]
    elif task == "relations":
        written = [f"{found.relation}: {found.head}, {found.tail}" for found in made.relations]
    else:
        roles = [", ".join(f"{role} {value}" for role, value in found.arguments.items()) for found in made.events]
        written = [f"{found.type}: {found.trigger}, {said}" for found, said in zip(made.events, roles, strict=True)]
    return "; ".join(written) or "none"


def _event_row(event: Event) -> dict[str, Any]:
    arguments = [{"role": role, "text": text} for role, text in event.arguments.items()]
    return {"type": event.type, "trigger": event.trigger, "arguments": arguments}


def rows(world: Town, split: str) -> Iterator[dict[str, Any]]:
    """Rows without end: tokens, tags, spans, relations, events (their arguments as role and text), text."""
    for i in count():
        made = annotated(world, i, split)
        yield {
            "tokens": list(made.tokens),
            "tags": list(made.tags),
            "spans": [asdict(span) for span in made.spans],
            "relations": [asdict(relation) for relation in made.relations],
            "events": [_event_row(event) for event in made.events],
            "text": made.text,
        }
