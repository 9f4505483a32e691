"""What the task sets share: recombined wordings, names nobody in town has, a draw that stays inside its split, chat messages.

    wordings = frames × cores          "Can you {}?" × "sort these words"

Every core keeps one pair for validation and one for test, so both halves of a kept pair occur in training, only elsewhere.

Does:     the four, and the check that a template's slots are known.
Leaves out: registering templates with the grammar. None of this text is in the training corpus, and what the grammar accepts is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import TypeVar

from .phrases import PERSONAL, RELATIONS, Wordings, relation_wordings
from .town import Town
from .words import FIRST_NAMES, FULL_NAMES, INVENTED, SLOTS, split_of

__all__ = [
    "FRAMES", "LIVED", "QUESTIONS", "STATEMENTS", "chat", "check_split", "checked", "recombined", "statement", "strangers",
    "they", "until",
]  # fmt: skip

T = TypeVar("T")

FRAMES = (
    "{}.", "Please {}.", "Can you {}?", "Could you please {}?", "I want you to {}.", "Your task is to {}.", "Now {}.",
    "Try to {}.",
)  # fmt: skip
STATEMENTS = {name: relation_wordings(name)[0] for name in RELATIONS}
QUESTIONS = {name: relation_wordings(name)[1] for name in RELATIONS}
LIVED = tuple(name for name in PERSONAL if name not in ("friend", "sibling"))  # facts whose value is not another person


def check_split(split: str) -> None:
    """Raise ValueError for a split nobody knows."""
    if split not in INVENTED:
        raise ValueError(f'unknown split "{split}"; choose one of {", ".join(INVENTED)}')


def recombined(name: str, cores: tuple[str, ...], frames: tuple[str, ...] = FRAMES) -> Wordings:
    """Every core in every frame; of each core one pair is kept for validation and one for test."""
    kept = {core: Random(f"recombined/{name}/{core}").sample(frames, 2) for core in cores}
    train = tuple(_framed(frame, core) for core in cores for frame in frames if frame not in kept[core])
    validation, test = (tuple(_framed(kept[core][i], core) for core in cores) for i in range(2))
    return Wordings(train, validation, test, (1,) * len(train))


def _framed(frame: str, core: str) -> str:
    text = frame.replace("{}", core)
    return text[:1].upper() + text[1:]


def checked(*texts: str, extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The templates, once every slot is known to `words.SLOTS` or named in `extra`. Raises ValueError for another."""
    for text in texts:
        for slot in re.findall(r"\{(\w+)\}", text):
            if slot not in SLOTS and slot not in extra:
                raise ValueError(f'template "{text}" has an unknown slot "{slot}"; add its words to words.SLOTS')
    return texts


def until(split: str, make: Callable[[], T], key: Callable[[T], str]) -> T:
    """Make until the checksum of what was made belongs to the split, so that no two splits hold the same.

    Raises ValueError when 2000 draws were in vain.
    """
    for _ in range(2000):
        made = make()
        if split_of(key(made)) == split:
            return made
    raise ValueError(f'nothing of 2000 draws belongs to split "{split}", the last was "{key(made)}"; widen what can be drawn')


@lru_cache(maxsize=16)
def strangers(town: Town, split: str) -> tuple[str, ...]:
    """Full names that nobody in the town has, by split: what is told about them contradicts no fact."""
    known = frozenset(person.name for person in town.people)
    return tuple(name for name in FULL_NAMES if name not in known and split_of(name) == split)


def they(name: str) -> str:
    """The pronoun that opens a sentence about a full name."""
    return next(pronoun for pronoun, firsts in FIRST_NAMES.items() if name.split()[0] in firsts)


def statement(relation: str, wording: str, name: str, value: str) -> str:
    """A relation's statement with its slots filled, the first letter a capital."""
    text = wording.format(**{RELATIONS[relation].value: value, "name": name})
    return text[:1].upper() + text[1:]


def chat(*contents: str) -> list[dict[str, str]]:
    """Messages of a conversation that the user opens: what a tokenizer's chat template takes."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
