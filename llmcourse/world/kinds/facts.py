"""Facts, told and asked: biographies, questions with and without a text, two hops, what changed and when.

Does:     biography, closed-book, context, multi-hop, changes, mayors; the closed-book questions about one entity.
Leaves out: questions whose answer is a list or a sentence.
"""

from __future__ import annotations

import math

from ..draw import Draw
from ..grammar import fill, sentences
from ..items import Entity, Item, Question
from ..phrases import PERSONAL, RELATIONS, relation_wordings
from ..town import Mayor, Move, Town, fact_bits, known, random_facts
from ..words import INVENTED

__all__ = ["ask", "biography", "changes", "closed_book", "context", "describe", "mayors", "multi_hop", "questions_about", "state"]

STATEMENTS, QUESTIONS = {}, {}
for _name in RELATIONS:
    STATEMENTS[_name], QUESTIONS[_name] = relation_wordings(_name)
    for _wordings in (STATEMENTS[_name], QUESTIONS[_name]):
        sentences(*_wordings.train, *_wordings.validation, *_wordings.test)

CONTEXT_RELATIONS = ("job", "street", "food", "drink", "colour", "hobby", "pet", "pet_name", "born", "village")
HOPS = {"friend": "the best friend of {}", "sibling": "the brother or sister of {}"}
MOVED = sentences(
    "In {year} {name} moved from {old_street} to {street}.", "{name} left {old_street} for {street} in {year}.",
    "Since {year} {name} has lived in {street}.", "Until {year} {name} lived in {old_street}.",
    "Before {year} the home of {name} was in {old_street}.",
)  # fmt: skip
MOVE_QUESTIONS = sentences(
    "Where did {name} live before {year}?", "Which street did {name} leave in {year}?",
    "From which street did {name} move in {year}?",
    "To which street did {name} move in {year}?", "In which year did {name} leave {old_street}?",
    "In which year did {name} move to {street}?",
)  # fmt: skip
MOVE_ANSWERS = ("old", "old", "old", "new", "year", "year")
LED = sentences(
    "{name} was the mayor of Larkham from {year} to {n}.", "From {year} to {n} the mayor of Larkham was {name}.",
    "{name} became the mayor of Larkham in {year}.", "In {year} the town chose {name} as mayor.",
    "{name} led the town from {year} to {n}.", "The town was led by {name} until {n}.",
)  # fmt: skip
MAYOR_QUESTIONS = sentences(
    "Who was the mayor of Larkham in {year}?", "Who led the town in {year}?", "Which mayor did Larkham have in {year}?",
    "By whom was the town led in {year}?",
)  # fmt: skip


def state(draw: Draw, entity: Entity, relation: str, split: str, pronoun: bool = False) -> str:
    """One sentence that tells one fact; `pronoun` puts She or He where the sentence begins with the name."""
    wording = draw.one(*STATEMENTS[relation].of(split))
    name = entity.they if pronoun and wording.startswith("{name}") else entity.name
    return fill(wording, **{entity.slot: name, RELATIONS[relation].value: entity.facts[relation]})


def describe(draw: Draw, entity: Entity, relations: list[str], split: str, pronouns: float) -> str:
    """One sentence for each relation; after the first, a pronoun may stand for the name."""
    told = []
    for relation in relations:
        told.append(state(draw, entity, relation, split, pronoun=bool(told) and draw.chance(pronouns)))
    return " ".join(told)


def ask(draw: Draw, entity: Entity, relation: str, split: str, name: str | None = None) -> Question:
    """A question about one fact; `name` may call the entity by something else."""
    wording = draw.one(*QUESTIONS[relation].of(split))
    return _question(fill(wording, **{entity.slot: name or entity.name}), entity.facts[relation])


def _question(text: str, answer: str) -> Question:
    return Question(prompt=f"Question: {text}\nAnswer:", answer=answer)


def questions_about(entity: Entity, split: str) -> list[Question]:
    """Every closed-book question about one entity in the wordings of a split."""
    return [
        _question(fill(wording, **{entity.slot: entity.name}), value)
        for relation, value in entity.facts.items()
        for wording in QUESTIONS[relation].of(split)[0]
    ]


def biography(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` facts about one person of the town."""
    person = known(draw, town.people)
    return Item(describe(draw, person, draw.some(PERSONAL, min(size, len(PERSONAL))), split, pronouns=0.7) + "\n")


def closed_book(town: Town, draw: Draw, split: str, size: int) -> Item:
    """Questions about the town whose answers must be known."""
    asked = []
    for _ in range(size):
        entity = known(draw, draw.one((town.people, town.wares, town.events), (8, 1, 1)))
        asked.append(ask(draw, entity, draw.one(list(entity.facts)), split))
    return Item("", tuple(asked))


def context(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` strangers, two or three facts each, then questions about them in mixed order."""
    relations = draw.some(CONTEXT_RELATIONS, draw.whole(2, 3))
    with draw.unsaid():  # a stranger has more facts than are told
        names = draw.some(INVENTED[split], size)
        strangers = [Entity(name=name, they=draw.one(("She", "He")), facts=random_facts(draw)) for name in names]
    told = [describe(draw, stranger, draw.order(relations), split, pronouns=0.3) for stranger in strangers]
    with draw.unsaid():  # and more could be asked than is
        pairs = [(stranger, relation) for stranger in strangers for relation in relations]
        asked = draw.order(pairs)[:5]
    draw.told(_ordered(len(INVENTED[split]), size) + _ordered(len(pairs), len(asked)))
    draw.told(size * sum(map(fact_bits, relations)))
    draw.told(sum(f" {stranger.they} " in text for stranger, text in zip(strangers, told, strict=True)))
    return Item(f"Text: {' '.join(told)}\n", tuple(ask(draw, who, what, split) for who, what in asked))


def _ordered(count: int, chosen: int) -> float:
    """Bits of `chosen` of `count` things in order."""
    return sum(math.log2(count - i) for i in range(chosen))


def multi_hop(town: Town, draw: Draw, split: str, size: int) -> Item:
    """Questions about the friend, brother or sister of somebody: two facts must be joined. Every other one shows the way."""
    asked = []
    for _ in range(size):
        person, hop = known(draw, town.people), draw.one(tuple(HOPS))
        other = next(other for other in town.people if other.name == person.facts[hop])
        relation = draw.one(CONTEXT_RELATIONS)
        asked.append(ask(draw, other, relation, split, name=HOPS[hop].format(person.name)))
    return Item("", tuple(asked))


def changes(town: Town, draw: Draw, split: str, size: int) -> Item:
    """Somebody moved: told, then asked in `size` ways."""
    move = draw.one(town.moves)
    slots = _move_slots(move)
    told = " ".join(fill(text, **slots) for text in draw.some(MOVED, 2))
    return Item(told + "\n", tuple(move_question(move, i) for i in draw.some(range(len(MOVE_QUESTIONS)), size)))


def _move_slots(move: Move) -> dict[str, object]:
    return {"name": move.person.name, "year": move.year, "old_street": move.old, "street": move.new}


def move_question(move: Move, wording: int) -> Question:
    """One of the questions about a move."""
    answer = str(getattr(move, MOVE_ANSWERS[wording]))
    return _question(fill(MOVE_QUESTIONS[wording], **_move_slots(move)), answer)


def mayors(town: Town, draw: Draw, split: str, size: int) -> Item:
    """Who led the town and when, then a question about `size` of those years."""
    mayor = draw.one(town.mayors)
    told = " ".join(fill(text, name=mayor.person.name, year=mayor.first, n=mayor.last) for text in draw.some(LED, 2))
    return Item(told + "\n", tuple(mayor_question(mayor, draw.whole(mayor.first, mayor.last), draw) for _ in range(size)))


def mayor_question(mayor: Mayor, year: int, draw: Draw) -> Question:
    """Who led the town in one year of this mayor's."""
    return _question(fill(draw.one(MAYOR_QUESTIONS), year=year), mayor.person.name)
