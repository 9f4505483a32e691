"""Everyday posts: a situation and a remark; with irony the remark does not fit the situation.

    situation good · bad  ×  remark good · bad        they agree: sincere        they do not: ironic

Does:     sincere and ironic posts, what shows how they were meant, how the writer feels.
Leaves out: spelling as people post it.
"""

from __future__ import annotations

from ..draw import Draw
from ..grammar import fill, sentences
from ..items import Item
from ..town import Town
from .wording import GENERAL, an, kept, pick, say

__all__ = ["MEANT", "MOODS", "feelings", "post", "posts", "remark", "situation"]

SITUATIONS = {
    True: sentences(
        "The sun is out for the first time in {k} days.", "My {pet} is well again.", "{first} brought me {food}.",
        "I found {n} coins in my old coat.",
        "I won {good} at the fair.", "My old friend {first} came to see me.", "{first} mended my {belonging} for nothing.",
        "The school is closed and we went to the river.",
        "The {belonging} I lost is back.", "My boss gave me the day off.", "I got {k} letters for my birthday.",
        "The doctor says that I am well.",
        "My sister has a little boy.", "Supper was ready when I came home.", "The train was early and half empty.",
        "{first} said yes.",
        "Our team won by {k} goals.", "My bread came out of the oven as it should.", "The neighbours brought back my {pet}.",
        "I slept for ten hours.",
        "I passed the test.", "All {k} eggs hatched."),
    False: sentences(
        "It has rained for {k} days.", "My {pet} ran away again.", "{first} ate all my {food}.",
        "I lost {n} coins on the way home.",
        "I sat on {good} and broke it.", "My old friend {first} did not even write.",
        "{first} broke my {belonging} and left.", "The school roof leaks and we sat in the wet.",
        "My {belonging} was stolen.", "My boss made me work on Sunday.", "I got {k} bills on my birthday.",
        "The doctor says that I must stay in bed.",
        "My sister has the flu.", "Supper was burnt when I came home.", "The train was late and full.", "{first} said no.",
        "Our team lost by {k} goals.", "My bread fell on the floor.", "The neighbours shouted at my {pet}.",
        "I did not sleep for one hour.",
        "I failed the test.", "All {k} eggs broke."),
}  # fmt: skip
REMARKS = {  # the frames of a remark: with a word of its own feeling, with the opposite denied, without any
    "word": sentences("What {a_word} morning!", "How {word}!", "I call that {word}.", "That is {word}.",
        "This day is simply {word}.",
                      "Is it not {word}?", "Such {a_word} week.", "It feels {word}."),
    "denied": sentences("I would not call that {word}.", "That is anything but {word}.", "Nobody can call that {word}.",
        "That is not {word} at all."),
}  # fmt: skip
SET_REMARKS = {
    True: sentences("I love it.", "I could dance.", "Thank you so much.", "Just what I wanted.", "The best day of the year.",
    "I am so happy.",
                    "Today is my day.", "I feel like a king.", "My heart sings.", "I want this every day."),
    False: sentences("I hate it.", "I could cry.", "Why always me?", "Just what I feared.", "The worst day of the year.",
    "I am so sad.",
                     "Today is not my day.", "I feel like a fool.", "My heart is heavy.", "I want this never again."),
}  # fmt: skip
MEANT = {  # what shows how the remark was meant
    True: sentences("Said nobody ever.", "Just my luck.", "Lucky me.", "Can it get any better?", "Please laugh now.",
    "I can hardly wait for more.",
                    "Believe me, if you can.", "Of course, what else.", "Yes, sure.", "Somebody is having a joke with me."),
    False: sentences("And I mean it.", "I am not joking.", "No joke.", "I say it from the heart.", "I mean every word.",
    "There is no other word for it.",
                     "Believe me, it is so.", "I say it as it is.", "Honestly.", "Those are my true feelings."),
}  # fmt: skip
MOODS = {
    True: sentences("I still smile.", "I must tell everyone.", "Tonight I will sing.", "Come and share it with me.",
    "I went out to dance.", "I will remember it for long."),
    False: sentences("I am going back to bed.", "I need a hot drink.", "Tonight I will sulk.", "Leave me alone today.",
    "I stayed in and sighed.", "I try to forget it."),
}  # fmt: skip


def situation(draw: Draw, good: bool) -> tuple[str, str]:
    """What happened, and the frame it was told in."""
    frame = draw.one(SITUATIONS[good])
    return say(draw, frame), frame


def remark(draw: Draw, after: str, good: bool, manner: str, split: str, rarity: str = "any") -> str:
    """What somebody says to a situation. manner: "word", "denied" or "set"."""
    if manner == "set":
        return draw.one(kept(after, SET_REMARKS[good], split))
    frame = draw.one(REMARKS[manner])
    word = pick(draw, after + frame, GENERAL[good != (manner == "denied")], split, rarity)
    return fill(frame, word=word, a_word=an(word))


def feelings(draw: Draw, ironic: bool) -> tuple[bool, bool]:
    """Situation and remark, good or bad: they agree, or with irony they do not; grumbling at good luck is the rarer joke."""
    happened = draw.chance(0.25) if ironic else draw.chance(0.5)
    return happened, happened != ironic


def post(draw: Draw, ironic: bool, split: str) -> str:
    """A situation and a remark, then what shows how it was meant, or how the writer feels."""
    happened, said = feelings(draw, ironic)
    text, frame = situation(draw, happened)
    told = [text, remark(draw, frame, said, draw.one(("word", "denied", "set"), (5, 2, 3)), split)]
    told += [draw.one(MOODS[happened])] if draw.chance(0.35) else []
    told += [draw.one(MEANT[ironic])] if draw.chance(0.75) else []
    return " ".join(told)


def posts(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` posts, half of them ironic."""
    return Item("".join(f"Post: {post(draw, draw.chance(0.5), split)}\n" for _ in range(size)))
