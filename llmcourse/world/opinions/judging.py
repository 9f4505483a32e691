"""Reviews of food, goods and films: judgements that agree, negated opposites, objections with a verdict, outcomes.

    opening? ─► judgement (plain · pair · negated) or objection, then verdict ─► outcome?

Does:     reviews with and without the word for their feeling; the judging sentences, also of a company's prospects.
Leaves out: strength of feeling.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from ..draw import Draw
from ..grammar import fill, sentences
from ..items import Item, Question
from ..town import Town
from .wording import ASPECTS, GENERAL, Slots, an, pick, say, vocabulary

__all__ = ["OUTCOMES", "body", "judge", "judged", "opening", "review", "reviews", "verdict"]

PLAIN = (
    "The N was W.", "I found the N W.", "Everyone said that the N was W.", "We all thought the N W.", "The N was really W.",
    "For me the N was W.", "If you ask me, the N was W.", "My friend called the N W.", "I must say that the N was W.",
    "The N seemed W to me.", "This time the N was W.", "Again the N was W.", "The first thing we saw was that the N was W.",
)  # fmt: skip
PAIRS = (
    "The N was W and V.", "I found the N W and V.", "The N was W, even V.", "Everyone called the N W and V.",
    "The N was both W and V.", "The N was W, some say V.", "How W and V the N was.",
)  # fmt: skip
NEGATED = (
    "The N was not W.", "The N was not W at all.", "The N was never W.", "I did not find the N W.", "Nobody called the N W.",
    "Nobody said that the N was W.", "I would not call the N W.", "The N was far from W.", "The N was anything but W.",
    "Who would call the N W?", "I cannot say that the N was W.", "It is hard to call the N W.",
)  # fmt: skip
PLAIN_PROSPECTS = (
    "The N of {company} is W.", "The N of {company} looks W.", "The board calls the N of {company} W.",
    "The owners of {company} find the N W.", "People who know {company} call its N W.", "The N of {company} was W this year.",
    "The report calls the N of {company} W.", "For {company} the N is W.",
)  # fmt: skip
PAIRED_PROSPECTS = (
    "The N of {company} is W and V.", "The N of {company} looks W, even V.", "The board calls the N of {company} W and V.",
    "For {company} the N is both W and V.",
)  # fmt: skip
NEGATED_PROSPECTS = (
    "The N of {company} is not W.", "The N of {company} is far from W.", "Nobody calls the N of {company} W.",
    "The board would not call the N of {company} W.", "The N of {company} was never W this year.",
    "The N of {company} no longer looks W.",
    "For {company} the N is anything but W.", "The owners of {company} do not find the N W.",
)  # fmt: skip
OPEN_PROSPECTS = (
    "Nobody knows whether the N of {company} is W.", "The board did not say whether the N of {company} is W.",
    "It is too early to call the N of {company} W.", "The paper asks whether the N of {company} is W.",
    "{company} will say in {month} whether the N is W.",
)  # fmt: skip
VERDICTS = sentences(
    "All in all it was {word}.", "In the end it was {word}.", "On the whole I call it {word}.", "Taken together it was {word}.",
    "When all is said, it was {word}.", "Still, it was {a_word} choice.", "All in all it was {a_word} choice.",
)  # fmt: skip
NEGATED_VERDICTS = sentences(
    "All in all it was not {word}.", "In the end it was anything but {word}.", "On the whole I do not call it {word}.",
    "When all is said, it was far from {word}.", "Still, it was not {a_word} choice.",
)  # fmt: skip


def _frames(aspect: str, texts: Sequence[str]) -> tuple[str, ...]:
    """The texts with an aspect's slots in place of N, W and V."""
    word, noun = f"{{{aspect}_word}}", f"{{{aspect}}}"
    own = [" ".join(_swap(part, {"N": noun, "W": word, "V": word}) for part in text.split(" ")) for text in texts]
    return sentences(*own)


def _swap(part: str, names: dict[str, str]) -> str:
    bare = part.rstrip(".,?")
    return names.get(bare, bare) + part[len(bare) :]


FRAMES = {
    (aspect, manner): _frames(aspect, texts)
    for aspect in ASPECTS
    for manner, texts in (
        {"plain": PLAIN_PROSPECTS, "pair": PAIRED_PROSPECTS, "negated": NEGATED_PROSPECTS, "open": OPEN_PROSPECTS}
        if aspect == "prospect"
        else {"plain": PLAIN, "pair": PAIRS, "negated": NEGATED}
    ).items()
}


def judge(draw: Draw, aspect: str, good: bool, manner: str, split: str, rarity: str = "any", slots: Slots | None = None) -> str:
    """A sentence that says something good or bad about one aspect, which `slots` may name.

    manner: "plain", "pair" (a common word beside any other), "negated" (the opposite is denied),
    "open" (nothing is said in the end).
    """
    frame = draw.one(FRAMES[aspect, manner])
    words = vocabulary(draw, aspect, good != (manner == "negated"))
    with draw.unsaid() if manner == "pair" else nullcontext():
        chosen = [pick(draw, frame, words, split, rarity)]
    if manner == "pair":  # rare words are met beside common ones
        second = pick(draw, frame, words, split, "rare" if draw.chance(0.7) else "common")
        chosen = [draw.one([word for word in words.common if word != second]), second]
    first, *rest = frame.split(f"{{{aspect}_word}}")
    return say(draw, first + "".join(word + part for word, part in zip(chosen, rest, strict=True)), slots)


def verdict(draw: Draw, good: bool, negated: bool, split: str, rarity: str = "any") -> str:
    """A sentence that sums up, whatever was said before it."""
    frame = draw.one(NEGATED_VERDICTS if negated else VERDICTS)
    word = pick(draw, frame, GENERAL[good != negated], split, rarity)
    return fill(frame, word=word, a_word=an(word))


OPENINGS = {
    "food": sentences("We ate at {shop} on {weekday}.", "I had {food} at {shop}.", "{first} took me to {shop} for {food}.",
                      "On {weekday} we had a table at {shop}.", "We were {k} people at {shop}."),
    "goods": sentences("I bought {a_item} at {shop}.", "On {weekday} I paid {n} coins for {a_item}.",
        "{first} gave me {a_item} from {shop}.",
                       "I needed {a_item} and went to {shop}.", "I have had {a_item} from {shop} for {k} days."),
    "film": sentences("I saw {film} with {first}.", "They showed {film} at the theatre on {weekday}.",
        "{first} took me to see {film}.",
                      "On {weekday} I saw {film}.", "We were {k} people in the hall for {film}."),
}  # fmt: skip
OUTCOMES = {
    ("food", True): sentences(
        "I will come again.", "We will be back next week.", "I told all my friends to go there.",
        "My plate was empty in no time.",
        "We stayed until late.", "We left with a smile.", "It is worth every coin.", "I would walk a long way for it.",
        "Next time I will bring my family.", "I gave the waiter an extra coin."),
    ("food", False): sentences(
        "I will not come again.", "We will never be back.", "I told all my friends to stay away.",
        "My plate went back half full.",
        "We left as soon as we could.", "We left with an empty stomach.", "I want my money back.", "It is not worth one coin.",
        "Next time I will eat at home.", "I asked for the owner and complained."),
    ("goods", True): sentences(
        "I will buy another one.", "I use it every day.", "It still works like new.", "It is worth every coin.",
        "My neighbour wants one too.", "I would buy it again.", "I will keep it for years.", "I thanked the seller.",
        "My family fights over it.", "We could not live without it."),
    ("goods", False): sentences(
        "I will not buy another one.", "I took it back to the shop.", "It fell apart after a day.", "I want my money back.",
        "My neighbour laughed at it.", "I would not buy it again.", "I threw it away.", "I complained to the seller.",
        "It lies in a corner now.", "We could live without it."),
    ("film", True): sentences(
        "I will see it again.", "Nobody left before the end.", "The whole hall clapped.", "Time flew by.",
        "I told all my friends to see it.", "It is worth the ticket.", "I could not look away.",
        "We talked about it all night.",
        "I laughed and cried.", "I want to see the next part."),
    ("film", False): sentences(
        "I will not see it again.", "Half the people left before the end.", "Nobody clapped.", "Time stood still.",
        "I told all my friends to stay at home.", "It is not worth the ticket.", "I fell asleep.", "We left after an hour.",
        "I looked at my watch all the time.", "I want my two hours back."),
}  # fmt: skip
ABOUT = {"food": ("dish", "host", "room"), "goods": ("item",), "film": ("part",)}


def opening(draw: Draw, thing: str, slots: Slots) -> str:
    """A sentence before the review that says nothing of it."""
    return say(draw, draw.one(OPENINGS[thing]), slots)


def body(
    draw: Draw, thing: str, good: bool, manner: str, split: str, rarity: str = "any", slots: Slots | None = None
) -> list[str]:
    """What a review says: one judgement, or ("mixed") one against the feeling, perhaps one for it, then the verdict."""
    slots = {} if slots is None else slots
    if manner != "mixed":
        return [judge(draw, draw.one(ABOUT[thing]), good, manner, split, rarity, slots)]
    told = [judge(draw, draw.one(ABOUT[thing]), not good, draw.one(("plain", "negated"), (3, 1)), split, rarity, slots)]
    if draw.chance(0.25):
        told.append(judge(draw, draw.one(ABOUT[thing]), good, "plain", split, rarity, slots))
        told = draw.order(told)
    return [*told, verdict(draw, good, draw.chance(0.25), split, rarity)]


def review(draw: Draw, thing: str, good: bool, split: str) -> str:
    """A whole review of one to five sentences, the outcome last."""
    slots: Slots = {}
    told = [opening(draw, thing, slots)] if draw.chance(0.4) else []
    manners = [draw.one(("plain", "pair", "negated", "mixed"), (30, 25, 25, 20))]
    if manners[0] != "mixed" and draw.chance(0.5):
        manners.append(draw.one(("plain", "pair", "negated"), (35, 35, 30)))
    for manner in manners:
        told += body(draw, thing, good, manner, split, slots=slots)
    if draw.chance(0.75):
        told.append(draw.one(OUTCOMES[thing, good]))
    return " ".join(told)


def reviews(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` reviews of food, goods and films."""
    lines = []
    for _ in range(size):
        thing = draw.one(("food", "goods", "film"), (5, 2, 3))
        lines.append(f"{'Film' if thing == 'film' else 'Review'}: {review(draw, thing, draw.chance(0.5), split)}\n")
    return Item("".join(lines))


def judged(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` reviews, each followed by the word for its feeling."""
    asked = []
    for _ in range(size):
        thing, good = draw.one(("food", "goods", "film")), draw.chance(0.5)
        manner = draw.one(("plain", "pair", "negated", "mixed"), (30, 25, 25, 20))
        said = " ".join(body(draw, thing, good, manner, split))
        name = "Film" if thing == "film" else "Review"
        asked.append(Question(prompt=f"{name}: {said}\nFeeling:", answer="positive" if good else "negative"))
    return Item("", tuple(asked))
