"""The stated grammar of the town: every sentence is a template whose slots hold words of `words.SLOTS`.

    "{name} works as a {job}."  +  SLOTS["name"], SLOTS["job"]   ─►  "Ada Bell works as a baker."
                                                                ◄─   accepts?

The same table writes the text and judges it, so "the share of generated sentences the grammar accepts" means exactly that: the
sentence could have been written by the generator. Sums in a sentence must also be right.

Does:     registers templates, fills them, recognises a sentence or a whole document.
Leaves out: whether a sentence is true of the town (see `World.holds`); the order of sentences.
Source:   Chomsky 1956 (finite-state and phrase-structure description of a language).
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from .words import FIRST_NAMES, INVENTED, LAST_NAMES, SLOTS

__all__ = ["accepts", "fill", "sentences", "split_sentences", "templates", "verdicts"]

_REGISTERED: dict[str, None] = {}
LINE_STARTS = re.compile(
    r"^(Text|Question|Review|Film|Report|Post|Opinion|Notice|News|Sort|Repeat|Count): |^[A-Z][\w' ]{1,24}: |^- "
)


def sentences(*texts: str) -> tuple[str, ...]:
    """Register templates of one sentence each, and return them. Raises ValueError for a slot nobody knows."""
    for text in texts:
        for slot in re.findall(r"\{(\w+)\}", text):
            if slot not in SLOTS:
                raise ValueError(f'template "{text}" has an unknown slot "{slot}"; add its words to words.SLOTS')
        _REGISTERED[text] = None
    return texts


def templates() -> tuple[str, ...]:
    """All registered templates."""
    return tuple(_REGISTERED)


def fill(template: str, **slots: object) -> str:
    """The sentence, with a capital first letter."""
    text = template.format(**slots)
    return text[:1].upper() + text[1:]


def split_sentences(text: str) -> list[str]:
    """The sentences of one line: a stop, a question mark or an exclamation mark, then a space and a capital letter."""
    return [part for part in re.split(r"(?<=[.?!]) (?=[A-Z])", text.strip()) if part]


def verdicts(line: str) -> list[bool]:
    """For every sentence of a line, whether the town's generator could have written it; a line of another shape counts as one."""
    line = line.strip()
    shaped = [check(found) for pattern, check in LINES if (found := pattern.fullmatch(line))]
    if shaped:
        return [any(shaped)]
    return [_sentence(part) for part in split_sentences(LINE_STARTS.sub("", line))] or [False]


def accepts(line: str) -> bool:
    """Whether every sentence of a line could have been written by the town's generator. An empty line is none."""
    return all(verdicts(line))


def _sentence(text: str) -> bool:
    small = text[:1].lower() + text[1:]
    return any(
        all(piece in text or piece in small for piece in pieces)
        and any(_pattern(template).fullmatch(form) for form in (text, small))
        for template, pieces in _pieces(templates())
    )


@lru_cache(maxsize=2)
def _pieces(known: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Every template beside the parts between its slots, which a sentence must hold: a quick test before the slow one."""
    return [(text, [piece for piece in re.split(r"\{\w+\}", text) if piece]) for text in known]


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    literal = [re.escape(part) if i % 2 == 0 else f"(?:{_slot(part)})" for i, part in enumerate(parts)]
    first = literal[0]
    if first and parts[0][:1].isalpha():  # templates may begin with a small letter
        literal[0] = f"[{parts[0][0].lower()}{parts[0][0].upper()}]" + re.escape(parts[0][1:])
    return re.compile("".join(literal))


FULL_NAME = f"(?:{'|'.join((*FIRST_NAMES['She'], *FIRST_NAMES['He']))}) (?:{'|'.join(LAST_NAMES)})"
INVENTED_NAME = "|".join(sorted(name for names in INVENTED.values() for name in names))
SIGNS = {"$": FULL_NAME, "@": INVENTED_NAME, "&": f"the (?:best friend|brother or sister) of {FULL_NAME}"}


@cache
def _slot(name: str) -> str:
    words = sorted(SLOTS[name], key=len, reverse=True)
    return "|".join(SIGNS.get(word) or re.escape(word).replace(r"\#", r"\d+") for word in words)


def _sums_right(text: str) -> bool:
    found = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)\.", text)
    worth = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    rest = re.sub(r"(\d+) ([-+*]) (\d+) = (\d+)\. ?", "", text)
    return bool(found) and not rest and all(worth[sign](int(a), int(b)) == int(c) for a, sign, b, c in found)


def _value(text: str) -> bool:
    small = text.strip()
    return bool(re.fullmatch(r"\d+", small)) or any(re.fullmatch(_slot(name), small) for name in SLOTS)


@lru_cache(maxsize=1)
def _list_words() -> frozenset[str]:
    from .words import CATEGORIES

    return frozenset(word for words in CATEGORIES.values() for word in words) | frozenset(INVENTED_NAME.split("|"))


def _listed(text: str) -> bool:
    return all(word in _list_words() or word.isdigit() for word in text.split(", "))


LINES = (  # lines that are not made of sentences: a pattern, and a check of what it caught
    (re.compile(r"(?:Repeat|Again): (.+)"), lambda found: _listed(found[1])),
    (re.compile(r"(?:Count|Steps): (.+)"), lambda found: _sums_right(found[1])),
    (re.compile(r"Answer: (.+)"), lambda found: _value(found[1])),
    (re.compile(r"Feeling: (positive|negative)"), lambda found: True),
    (re.compile(r"Sort:"), lambda found: True),
    (re.compile(r"- (\w+): (\w+)"), lambda found: _listed(found[1]) and _listed(found[2])),
    (re.compile(r"(?:Program: )?n = (?:n|\d+)(?: [-+*] \d+)?|print\(n\)"), lambda found: True),
    (re.compile(r"Larkham News, \d+ \w+ \d+\. (.+)"), lambda found: accepts(found[1])),
)
