"""Opinions on five questions of the town: for, against, or neither.

    argument: a value held or rejected  ×  what the question would bring or cost        "Our nights should be silent."
                                                                     against the night market, for the plan to keep carts out

Does:     stances in so many words, denied ones, those of others with or without agreement, arguments, votes.
Leaves out: compromise.
"""

from __future__ import annotations

from functools import cache

from ..draw import Draw
from ..grammar import fill, sentences
from ..items import Item
from ..town import Town
from .wording import GENERAL, kept, pick, say, slot_table

__all__ = [
    "EFFECTS",
    "TARGETS",
    "VALUES",
    "VOTES",
    "argue",
    "arguments",
    "mention",
    "neutral",
    "opinion",
    "opinions",
    "quote",
    "stand",
]

TARGETS = {
    "bridge": ("the new bridge", "a bridge over the river", "the bridge at the mill"),
    "market": ("the night market", "a market after dark", "the stalls at night"),
    "bells": ("the church bells at six", "the early bells", "the bells before breakfast"),
    "fishing": ("the fishing rule", "the rule against nets", "the fishing ban in spring"),
    "plan": ("the mayor's plan", "the plan for the High Street", "the plan to keep carts out"),
}  # fmt: skip
# what each question would bring (1) or cost (-1)
EFFECTS = {
    "bridge": {"trade": 1, "safety": 1, "nature": -1, "thrift": -1},
    "market": {"trade": 1, "quiet": -1, "safety": -1},
    "bells": {"custom": 1, "quiet": -1},
    "fishing": {"nature": 1, "trade": -1, "custom": -1},
    "plan": {"quiet": 1, "safety": 1, "trade": -1, "thrift": -1},
}
# value -> sentences of those who care for it, and of those who do not
VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trade": (
        sentences("Our shops need more buyers.", "Business must grow.", "Money must come into the town.",
        "More trade feeds more families.", "Our merchants have waited too long.", "A town lives from what it sells."),
        sentences("Our shops have buyers enough.", "Not everything is about business.", "Money is not all that matters.",
        "The merchants are rich enough.", "We have too much buying and selling."),
    ),
    "safety": (
        sentences("Our children must be safe.", "I do not want anyone to get hurt.", "Too many accidents have happened.",
        "Old people should not have to fear the street.", "Safety comes first.", "We must protect the weak."),
        sentences("Nobody has ever been hurt here.", "People can look after themselves.", "We are too careful already.",
        "A little danger makes life worth living.", "Children learn from a fall."),
    ),
    "nature": (
        sentences("The river must stay clean.", "Fish and birds need a home.", "We must leave the trees alone.",
        "Nature cannot speak for itself.", "Wild flowers need room.", "Our children should still see otters."),
        sentences("There are fish enough.", "People come before birds.", "Trees grow again.",
        "Nobody can live from wild flowers.", "The river can look after itself."),
    ),
    "thrift": (
        sentences("The town must save its coins.", "We cannot pay for everything.", "Taxes are high enough.",
        "Our purse is empty.", "Debts are a heavy load.", "Every coin is needed elsewhere."),
        sentences("The town has coins enough.", "One must spend to win.", "Our purse is full.", "Saving never built a town.",
        "The cost does not trouble me."),
    ),
    "quiet": (
        sentences("People need their sleep.", "Our nights should be silent.", "Noise makes us ill.",
        "Babies wake up from every sound.", "I long for peace and quiet.", "My ears need rest."),
        sentences("A little noise hurts nobody.", "Who wants a silent town?", "I sleep through every sound.",
        "Life is loud.", "Only the dead need silence."),
    ),
    "custom": (
        sentences("Our grandparents did it the same way.", "Old customs must live on.", "What is old should be kept.",
        "We must not forget who we are.", "It has always been so.", "Our fathers knew what they did."),
        sentences("Old customs must end.", "We do not live in the past.", "Times have changed.",
        "Our grandparents were wrong about much.", "It is time for something new."),
    ),
}  # fmt: skip
slot_table({"target": [alias for aliases in TARGETS.values() for alias in aliases]})
MENTIONS = sentences(
    "On {weekday} we vote on {target}.", "Everybody talks about {target}.", "Now it is about {target} again.",
    "The paper writes about {target}.",
    "Today somebody asked me about {target}.", "There was a long meeting about {target}.",
    "Let me say a word about {target}.", "{first} wrote to me about {target}.",
)  # fmt: skip
STANCES = {
    "plain": sentences("I call {target} {word}.", "For me {target} would be {word}.",
        "I think {target} would be {word} for us.", "In my eyes {target} would be {word}."),
    "negated": sentences("I do not call {target} {word}.", "For me {target} would be anything but {word}.",
        "I do not think {target} would be {word} for us.",
                         "Nobody can call {target} {word}."),
}  # fmt: skip
SAID = sentences("My {relative} calls {target} {word}.", "{first} thinks {target} would be {word}.",
"My {relative} says that {target} would be {word}.",
                 "The paper calls {target} {word}.")  # fmt: skip
AGREEING = {
    True: sentences("I think so too.", "I agree.", "That is what I say.", "How right that is.", "So do I."),
    False: sentences("I see it the other way.", "I do not agree.", "That is not what I say.", "How wrong that is.",
    "I do not."),
    None: sentences("I do not know yet.", "I only listen.", "I cannot judge it.", "I will not say what I think.",
    "I leave that to others."),
}  # fmt: skip
VOTES = {
    "favor": sentences("I will vote yes.", "My name is on the list for it.", "Let us begin tomorrow.", "Count me in.",
        "I will help with my own hands.",
                       "I hope that it will come.", "The sooner the better.", "We have waited long enough."),
    "against": sentences("I will vote no.", "My name is on the list against it.", "Let us stop it now.", "Count me out.",
        "I will not lift a finger for it.",
                         "I hope that it will never come.", "Better never than late.", "We have suffered long enough."),
    "none": sentences("I have not made up my mind.", "Both sides have a point.", "Let us hear what the others say.",
        "I will read more before the vote.",
                      "I may stay at home on that day.", "It is all the same to me.", "We will see what happens.",
                      "I have no time to think about it."),
}  # fmt: skip
NEUTRAL = sentences(
    "The meeting lasted {k} hours.", "Some {n} people came to the town hall.", "The mayor read a letter aloud.",
    "The paper is on the wall of the town hall.",
    "The vote will be counted on {weekday}.", "{first} took the minutes.", "The question is {n} years old.",
    "Somebody opened a window.",
    "The next meeting is on {weekday}.", "There were {n} questions.", "The school children asked the most.",
    "A clerk wrote everything down.",
)  # fmt: skip


@cache
def arguments(target: str, stance: str, kind: str = "any") -> tuple[str, ...]:
    """The arguments for or against a target: values it would serve or cost, "held" by the speaker or "rejected"."""
    wanted = 1 if stance == "favor" else -1
    found = []
    for value, effect in EFFECTS[target].items():
        which = 0 if effect == wanted else 1
        if kind == "any" or (kind == "held") == (which == 0):
            found += VALUES[value][which]
    return tuple(found)


def mention(draw: Draw, target: str) -> tuple[str, str]:
    """A sentence that names the question and says nothing of it, and the frame it was told in."""
    frame = draw.one(MENTIONS)
    return say(draw, frame, {"target": draw.one(TARGETS[target])}), frame


def argue(draw: Draw, after: str, target: str, stance: str, split: str, kind: str = "any") -> str:
    """An argument whose stance follows from what the target would bring; some pairs with the sentence before it are kept."""
    return draw.one(kept(after + target, arguments(target, stance, kind), split))


def stand(draw: Draw, target: str, stance: str, manner: str, split: str, rarity: str = "any") -> str:
    """A stance in so many words. manner: "plain" or "negated"."""
    frame = draw.one(STANCES[manner])
    word = pick(draw, frame + target, GENERAL[(stance == "favor") != (manner == "negated")], split, rarity)
    return fill(frame, target=draw.one(TARGETS[target]), word=word)


def quote(draw: Draw, target: str, stance: str, split: str, rarity: str = "any") -> str:
    """What another says of it, and whether the writer agrees."""
    frame, praises = draw.one(SAID), draw.chance(0.5)
    word = pick(draw, frame + target, GENERAL[praises], split, rarity)
    said = say(draw, frame, {"target": draw.one(TARGETS[target]), "word": word})
    return f"{said} {draw.one(AGREEING[None if stance == 'none' else praises == (stance == 'favor')])}"


def neutral(draw: Draw, after: str, split: str) -> str:
    """Something that was seen or heard, without a stance."""
    return say(draw, draw.one(kept(after, NEUTRAL, split)))


MANNERS = {True: (6, 4), False: (45, 25, 15, 15)}


def opinion(draw: Draw, target: str, stance: str, split: str) -> str:
    """Two to four sentences of one stance on one question, the vote last."""
    first = draw.one(
        ("mention", "quote") if stance == "none" else ("mention", "stand", "denied", "quote"), MANNERS[stance == "none"]
    )
    if first == "mention":
        text, _ = mention(draw, target)
        told = [text, neutral(draw, target, split) if stance == "none" else argue(draw, "", target, stance, split)]
    elif first == "quote":
        told = [quote(draw, target, stance, split)]
    else:
        told = [stand(draw, target, stance, "plain" if first == "stand" else "negated", split)]
    if stance != "none" and draw.chance(0.5):
        told.append(argue(draw, "", target, stance, split))
    if draw.chance(0.75):
        told.append(draw.one(VOTES[stance]))
    return " ".join(told)


def opinions(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` opinions on the questions of the town."""
    lines = [
        f"Opinion: {opinion(draw, draw.one(tuple(TARGETS)), draw.one(('favor', 'against', 'none'), (4, 4, 2)), split)}\n"
        for _ in range(size)
    ]
    return Item("".join(lines))
