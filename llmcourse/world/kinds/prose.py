"""Prose: stories, dated news, talk between two people.

Does:     every sentence from a list of alternatives, its facts true of the town.
Leaves out: plots; reviews, reports, posts and opinions (see `opinions`).
"""

from __future__ import annotations

from ..draw import Draw
from ..grammar import fill, sentences
from ..items import Item
from ..town import Town, known
from ..words import PLACES, TOWN
from .facts import state

__all__ = ["dialogue", "news", "story"]

WEATHER = sentences(
    "It was a cold day.", "It was a warm day.", "It rained all morning.", "The sun was out.", "There was a strong wind.",
    "Snow lay on the roofs.", "A thick fog lay over the river.", "The night had been long and dark.",
)  # fmt: skip
MORNINGS = sentences(
    "{name} left the house in {street} early.", "In the morning {name} fed the {pet} {pet_name}.",
    "{name} the {job} had a free day.",
    "{name} woke up in {street} and drank {drink}.", "The {pet} {pet_name} woke {name} before sunrise.",
    "{name} put on something {colour} and went out.",
)  # fmt: skip
ERRANDS = sentences(
    "{They} walked to {shop} and bought {good} for {price} coins.", "At {shop} {they} paid {price} coins for {good}.",
    "{They} needed {good} and found it at {shop} for {price} coins.", "For {price} coins {they} took {good} home from {shop}.",
)  # fmt: skip
MEETINGS = sentences(
    "Then {they} met {friend} near the {place}.", "{friend} came along and they talked about {event}.",
    "Near the {place} {friend} was waiting.", "{friend} wanted to hear about {event} again.",
    "On the way home {they} saw {friend} at the {place}.",
)  # fmt: skip
AFTERNOONS = sentences(
    "In the afternoon {they} had time for {hobby}.", "After that {they} spent an hour on {hobby}.",
    "{They} thought of {village} and of old times.", "{They} wrote a long letter to {friend}.", "The work of a {job} never ends.",
)  # fmt: skip
EVENINGS = sentences(
    "For supper {they} had {food}.", "At home there was {food} for supper.", "The {pet} was glad when {they} came home.",
    "{They} drank {drink} and went to bed.", "{They} ate {food} with {friend}.", "{pet_name} slept at the door all night.",
)  # fmt: skip
REPORTS = (
    sentences("Many people came to see it.", "{person} the {job} was there.", "The mayor made a short speech.",
        "{person} told us of it.",
              "Nobody in {street} slept that night.", "People from {village} came too."),
    sentences("The {place} stays closed for {n} days.", "Repairs will cost {n} coins.", "The school sent {n} children.",
              "All went home late.", "It took {n} men to do the work.", "The town gave {n} coins for it."),
)  # fmt: skip
SEEN = sentences(
    "On {date} the town saw {event}.", "The talk of the day is {event}.", "Today Larkham saw {event}.",
    "Everyone has heard of {event}.",
)  # fmt: skip
GREETINGS = sentences(
    "Good morning, {first}.", "Hello, {first}, how are you?", "Good evening, {first}.", "{first}, it is good to see you.",
    "How nice to meet you here, {first}.",
)  # fmt: skip
REPLIES = sentences(
    "I am well, thank you.", "Not bad, and you?", "I am a little tired today.", "Very well, the sun is out.",
    "I cannot complain.",
)  # fmt: skip
ENQUIRIES = sentences(
    "What do you know about {person}?", "Tell me something about {person}.", "Have you heard of {person}?", "Who is {person}?",
)  # fmt: skip
THANKS = sentences(
    "I did not know that.", "Thank you for telling me.", "That is what I thought.", "How good to know.", "I must remember that.",
)  # fmt: skip
FAREWELLS = sentences(
    "See you tomorrow.", "Now I must go home.", "Good night.", "Let us meet again on Sunday.", "My {pet} is waiting for me.",
)  # fmt: skip


def story(town: Town, draw: Draw, split: str, size: int) -> Item:
    """A day of one person, a sentence for every part of it."""
    person, ware = known(draw, town.people), known(draw, town.wares)
    place, place_bits = draw.aside(lambda: draw.one(PLACES))
    event, event_bits = draw.aside(lambda: known(draw, town.events).name)
    good, shop = ware.name.split(" at ")
    slots = person.facts | ware.facts | {"name": person.name, "They": person.they, "they": person.they.lower()}
    slots |= {"good": good, "shop": shop, "place": place, "event": event}
    chosen = [draw.one(part) for part in (WEATHER, MORNINGS, ERRANDS, MEETINGS, AFTERNOONS, EVENINGS)]
    _tell(draw, chosen, {("place",): place_bits, ("event",): event_bits})
    return Item(" ".join(fill(text, **slots) for text in chosen) + "\n")


def _tell(draw: Draw, chosen: list[str], aside: dict[tuple[str, ...], float]) -> None:
    """Count what was put aside for some slots where a chosen sentence has one of them."""
    draw.told(sum(bits for slots, bits in aside.items() if any(f"{{{slot}}}" in text for text in chosen for slot in slots)))


def news(town: Town, draw: Draw, split: str, size: int) -> Item:
    """A dated report of one event."""
    event, (person, person_bits) = known(draw, town.events), draw.aside(lambda: known(draw, town.people))
    place, place_bits = draw.aside(lambda: draw.one(PLACES))
    n, n_bits = draw.aside(lambda: draw.whole(2, 90))
    slots = person.facts | event.facts | {"event": event.name, "person": person.name, "place": place, "n": n}
    rest = [text for part in REPORTS for text in draw.some(part, 2)]
    _tell(draw, rest, {("person", "street", "village"): person_bits, ("place",): place_bits, ("n",): n_bits})
    told = [fill(draw.one(SEEN), **slots), fill(draw.one(WEATHER)), *(fill(text, **slots) for text in rest)]
    return Item(f"{TOWN} News, {event.facts['date']}. " + " ".join(told) + "\n")


def dialogue(town: Town, draw: Draw, split: str, size: int) -> Item:
    """Two people greet, and one tells the other `size` facts about a third."""
    asking, telling, person = known(draw, town.people), known(draw, town.people), known(draw, town.people)
    first, second = asking.name.split()[0], telling.name.split()[0]
    relations = draw.some(list(person.facts), size)
    lines = [(first, draw.one(GREETINGS)), (second, draw.one(REPLIES)), (first, draw.one(ENQUIRIES))]
    said = [f"{who}: {fill(text, first=second, person=person.name)}" for who, text in lines]
    for relation in relations:
        said += [f"{second}: {state(draw, person, relation, split)}", f"{first}: {draw.one(THANKS)}"]
    return Item("\n".join([*said, f"{second}: {fill(draw.one(FAREWELLS), pet=telling.facts['pet'])}"]) + "\n")
