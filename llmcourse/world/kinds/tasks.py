"""Tasks with one right answer: lists to repeat, words to sort under new labels, sums to work out, reviews to judge.

Does:     copy, sorting, calculation, the same word sum with its answer only, with its steps, or as a program.
Leaves out: instructions and tools (see `instructions`, `tools`): the training text holds none.
"""

from __future__ import annotations

from random import Random

from ..draw import Draw
from ..grammar import fill, sentences
from ..items import Item, Question
from ..town import Town
from ..words import CATEGORIES, FIRST_NAMES, INVENTED, THINGS

__all__ = ["calculation", "copy", "sorting", "sum_direct", "sum_program", "sum_steps"]

GAINS = sentences(*(
    f"{{They}} {verb} {what}." for verb in ("buys", "finds", "wins", "gets", "borrows") for what in ("{n} more",
        "another {n}", "{n} more {things}")
), "A friend brings {n} more.", "Then {n} more turn up.")  # fmt: skip
LOSSES = sentences(*(
    f"{{They}} {verb} {what}." for verb in ("loses", "sells", "gives away", "drops", "lends out") for what in ("{n}",
        "{n} of them", "{n} {things}")
), "Somebody takes {n}.", "After a while {n} are gone.")  # fmt: skip
STARTS = sentences(
    "{first} has {k} {things}.", "{first} begins with {k} {things}.", "There are {k} {things} in the bag of {first}."
)
BAGS = sentences(
    "{first} has {m} bags with {n} {things} each.", "{first} fills {m} boxes with {n} {things} each.",
    "{first} gets {n} {things} a day for {m} days.",
)  # fmt: skip
ENDINGS = sentences(
    "How many {things} does {first} have now?", "How many {things} are there now?", "How many {things} has {first} in the end?",
)  # fmt: skip


def _wording(draw: Draw, texts: tuple[str, ...], split: str) -> str:
    """Lists of more than ten wordings keep their two for validation and two for test; an order drawn once decides which."""
    if len(texts) <= 10:
        return draw.one(texts)
    order = Random(texts[0]).sample(texts, len(texts))
    return draw.one({"train": order[:-4], "validation": order[-4:-2], "test": order[-2:]}[split])


def copy(town: Town, draw: Draw, split: str, size: int) -> Item:
    """A list to be written again."""
    if draw.chance(0.8):
        listed = [
            draw.one(INVENTED[split]) if draw.chance(0.6) else draw.one(draw.one(tuple(CATEGORIES.values()))) for _ in range(size)
        ]
    else:
        listed = [str(draw.whole(0, 99)) for _ in range(size)]
    words = ", ".join(listed)
    return Item(f"Repeat: {words}\n", (Question(prompt="Again:", answer=words),))


def sorting(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` shots of words sorted into two groups under invented label words, then one more word to sort."""
    groups = draw.some(tuple(CATEGORIES), 2)
    labels = dict(zip(groups, draw.some(INVENTED[split], 2), strict=True))
    words = draw.some([(word, labels[group]) for group in groups for word in CATEGORIES[group]], size + 1)
    *shots, (asked, answer) = words
    text = "Sort:\n" + "".join(f"- {word}: {label}\n" for word, label in shots)
    return Item(text, (Question(prompt=f"- {asked}:", answer=answer),))


def _change(draw: Draw, total: int) -> tuple[int, bool]:
    """A number to add to `total` (True) or to take from it, never below zero."""
    n = draw.whole(2, 9)
    return n, draw.chance(0.5) if n <= total else True


def _calculated(total: int, n: int, gain: bool) -> tuple[int, str]:
    after = total + n if gain else total - n
    return after, f"{total} {'+' if gain else '-'} {n} = {after}."


def calculation(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` sums without a story, every fourth a product."""
    written = []
    for _ in range(size):
        if draw.chance(0.25):
            a, b = draw.whole(2, 9), draw.whole(2, 6)
            written.append(f"{a} * {b} = {a * b}.")
        else:
            total = draw.whole(0, 70)
            written.append(_calculated(total, *_change(draw, total))[1])
    return Item(f"Count: {' '.join(written)}\n")


def _sum(draw: Draw, split: str, size: int) -> tuple[str, int, list[str], list[str]]:
    """A word sum of `size` operations: the story, the answer, the calculations, the program's lines."""
    slots = {"first": draw.one(draw.one(tuple(FIRST_NAMES.values()))), "things": draw.one(THINGS)}
    slots["They"] = next(they for they, names in FIRST_NAMES.items() if slots["first"] in names)
    if draw.chance(0.4):
        m, n = draw.whole(2, 6), draw.whole(2, 9)
        total, work, program = m * n, [f"{m} * {n} = {m * n}."], [f"n = {m} * {n}"]
        told = [fill(draw.one(BAGS), m=m, n=n, **slots)]
    else:
        total = draw.whole(2, 20)
        told, work, program = [fill(draw.one(STARTS), k=total, **slots)], [], [f"n = {total}"]
    while len(work) < size:
        n, gain = _change(draw, total)
        told.append(fill(_wording(draw, GAINS if gain else LOSSES, split), n=n, **slots))
        total, calculation = _calculated(total, n, gain)
        work.append(calculation)
        program.append(f"n = n {'+' if gain else '-'} {n}")
    told.append(fill(draw.one(ENDINGS), **slots))
    return f"Question: {' '.join(told)}\n", total, work, program


def sum_steps(town: Town, draw: Draw, split: str, size: int) -> Item:
    """A word sum answered step by step."""
    story, total, work, _ = _sum(draw, split, size)
    return Item("", (Question(prompt=f"{story}Steps:", answer=str(total), work=" ".join(work)),))


def sum_direct(town: Town, draw: Draw, split: str, size: int) -> Item:
    """A word sum answered at once."""
    story, total, _, _ = _sum(draw, split, size)
    return Item("", (Question(prompt=f"{story}Answer:", answer=str(total)),))


def sum_program(town: Town, draw: Draw, split: str, size: int) -> Item:
    """A word sum answered by a program whose output is the answer."""
    story, total, _, program = _sum(draw, split, size)
    return Item(
        "", (Question(prompt=f"{story}Program:", answer=str(total), work="\n".join([*program, "print(n)"]), shown=False),)
    )
