"""Instructions in many phrasings, each with a right answer that a program can check.

    "Could you please put these words in the order of the alphabet?"      frame × core, the pair never seen together in training
    "rope, hat, lamp"                                                     input, with words drawn for the split alone
        ─►  "hat, lamp, rope"                                             right(example, answer): one of the accepted answers

43 types of task; 7 of them are held out altogether and occur in the test split only, each near a type that trains (second: first
and last; subtract: add; extract: who), so that what a mixture of instructions gives to unseen ones can be measured.

Does:     examples by type, split and number; the check; messages for a chat template; facts asked about famous people only, so
          that the tuning does not teach new facts.
Leaves out: several turns; answers longer than a sentence; partial credit.
Source:   Wei et al. 2021 (FLAN), held-out task clusters; Wang et al. 2022 (Super-NaturalInstructions), the form of an example.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from .common import LIVED, QUESTIONS, STATEMENTS, chat, check_split, recombined, statement, strangers, they, until
from .draw import Draw
from .phrases import RELATIONS, Wordings
from .summaries import told
from .town import FAMOUS, TABLES, Town
from .words import CATEGORIES, FIRST_NAMES, JOBS, MONTHS

__all__ = ["HELD_OUT", "TYPES", "Example", "TaskType", "example", "right", "rows"]

WORDS = tuple(dict.fromkeys(word for words in CATEGORIES.values() for word in words))


@dataclass(frozen=True, kw_only=True)
class Example:
    """One instruction, its input (may be empty), the reference output, and every output that is as good."""

    instruction: str
    input: str
    output: str
    type: str
    held_out: bool
    accepted: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the user writes: the instruction, and on the next line the input."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @property
    def messages(self) -> list[dict[str, str]]:
        """The exchange for a chat template."""
        return chat(self.prompt, self.output)


@dataclass(frozen=True)
class Made:
    """A case before it is worded: the right answers (the first is the reference), the input, the instruction's slots.

    `key` says what must stay in one split, where that is not the input and the slots.
    """

    accepted: Sequence[str]
    input: str = ""
    slots: Mapping[str, object] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskType:
    """One kind of task. `fresh`: its contents too belong to one split, not only its wordings."""

    name: str
    make: Callable[[Town, Draw, str], Made]
    wordings: Wordings
    fresh: bool
    held_out: bool


TYPES: dict[str, TaskType] = {}
Maker = Callable[[Town, Draw, str], Made]


def _type(*cores: str, fresh: bool = True, held_out: bool = False) -> Callable[[Maker], Maker]:
    """Enter a maker as the type it is named after."""

    def enter(make: Maker) -> Maker:
        name = make.__name__.strip("_")
        TYPES[name] = TaskType(name=name, make=make, wordings=recombined(name, cores), fresh=fresh, held_out=held_out)
        return make

    return enter


def example(world: Town, index: int, split: str = "train", type: str | None = None) -> Example:
    """Example number `index`; the types take turns unless one is named, the held-out ones only in the test split.

    Raises ValueError for an unknown split or type.
    """
    check_split(split)
    names = [name for name, kind in TYPES.items() if split == "test" or not kind.held_out]
    kind = _find(type) if type else TYPES[names[index % len(names)]]
    draw = Draw(f"{world.seed}/instructions/{kind.name}/{split}/{index}")
    made = until(split, lambda: kind.make(world, draw, split), _content) if kind.fresh else kind.make(world, draw, split)
    wording = draw.one(*kind.wordings.of(split))
    return Example(
        instruction=wording.format(**made.slots), input=made.input, output=made.accepted[0], type=kind.name,
        held_out=kind.held_out, accepted=tuple(made.accepted),
    )  # fmt: skip


def _find(name: str) -> TaskType:
    if name in TYPES:
        return TYPES[name]
    close = difflib.get_close_matches(name, TYPES, n=1)
    guess = f'; did you mean "{close[0]}"?' if close else "."
    raise ValueError(f'unknown type of task "{name}"{guess} The {len(TYPES)} types are {", ".join(TYPES)}')


def _content(made: Made) -> str:
    return made.key or "|".join([made.input, *(str(value) for value in made.slots.values())])


def right(example: Example | Mapping[str, Any], answer: str) -> bool:
    """Whether an answer is an accepted one; spaces around it, a stop at its end and (but for capitals) case do not count."""
    row = asdict(example) if isinstance(example, Example) else example
    cased = row["type"] == "capitals"
    return _normal(answer, cased) in {_normal(accepted, cased) for accepted in row["accepted"]}


def _normal(text: str, cased: bool) -> str:
    text = " ".join(text.split()).rstrip(".!?").rstrip()
    return text if cased else text.lower()


def rows(world: Town, split: str) -> Iterator[dict[str, Any]]:
    """Rows without end, with the columns of `Example`, `prompt` and `messages`."""
    for i in count():
        made = example(world, i, split)
        yield asdict(made) | {"accepted": list(made.accepted), "prompt": made.prompt, "messages": made.messages}


# ---------------------------------------------------------------------------------------------------------------- lists


def _list(draw: Draw, smallest: int, largest: int) -> list[str]:
    return draw.some(WORDS, draw.whole(smallest, largest))


def _one(answer: str, words: Sequence[str], **slots: object) -> Made:
    return Made((answer,), ", ".join(words), slots)


@_type(
    "sort these words from a to z", "put these words in the order of the alphabet", "bring the words below into order from a to z"
)
def _sort(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 3, 4)
    return _one(", ".join(sorted(words)), words)


@_type("count the words in the list", "say how many words there are below", "write the number of words in the list")
def _count(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 2, 8)
    return _one(str(len(words)), words)


@_type("give the first word of the list", "write the word that comes first", "name the first word below")
def _first(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 3, 6)
    return _one(words[0], words)


@_type("give the last word of the list", "write the word that comes last", "name the last word below")
def _last(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 3, 6)
    return _one(words[-1], words)


@_type("give the third word of the list", "write the word that comes third", "name the third word below")
def _third(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 4, 6)
    return _one(words[2], words)


@_type("give the second word of the list", "write the word that comes second", "name the second word below", held_out=True)
def _second(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 3, 6)
    return _one(words[1], words)


@_type("write the list from the last word to the first", "turn the order of the list around",
       "write the words below in reverse order", held_out=True)  # fmt: skip
def _reverse(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 3, 4)
    return _one(", ".join(words[::-1]), words)


@_type("write the word {word} {n} times", "repeat the word {word} {n} times", "say {word} {n} times in a row")
def _repeat(town: Town, draw: Draw, split: str) -> Made:
    word, n = draw.one(WORDS), draw.whole(2, 5)
    return Made((" ".join([word] * n),), slots={"word": word, "n": n})


@_type("continue the list with one more item", "write what comes next in the list", "give the next item of the list")
def _continue_(town: Town, draw: Draw, split: str) -> Made:
    n = draw.whole(3, 4)
    if draw.chance(0.3):
        start = draw.whole(0, len(MONTHS) - n - 1)
        return _one(MONTHS[start + n], MONTHS[start : start + n])
    start, step = draw.whole(1, 40), draw.one((1, 2, 5, 10))
    return _one(str(start + n * step), [str(start + i * step) for i in range(n)])


@_type("find the word that does not fit", "name the one word that is not like the others", "pick out the word of another kind")
def _odd(town: Town, draw: Draw, split: str) -> Made:
    most, other = draw.some(tuple(CATEGORIES), 2)
    odd = draw.one(CATEGORIES[other])
    return _one(odd, draw.order([*draw.some(CATEGORIES[most], 3), odd]))


@_type("write the list with {new} in place of {old}", "change {old} to {new} in the list", "put {new} where the list says {old}")
def _replace(town: Town, draw: Draw, split: str) -> Made:
    new, *words = _list(draw, 4, 5)
    old = draw.one(words)
    return _one(", ".join(new if word == old else word for word in words), words, new=new, old=old)


@_type("add {word} at the end of the list", "write the list and then {word}", "put {word} after the last word of the list")
def _append(town: Town, draw: Draw, split: str) -> Made:
    word, *words = _list(draw, 3, 5)
    return _one(", ".join([*words, word]), words, word=word)


@_type("take {word} out of the list", "write the list without {word}", "leave {word} out of the list", held_out=True)
def _remove(town: Town, draw: Draw, split: str) -> Made:
    words = _list(draw, 3, 5)
    word = draw.one(words)
    return _one(", ".join(other for other in words if other != word), words, word=word)


# ---------------------------------------------------------------------------------------------------------------- letters, words

OPPOSITES = (
    "good bad, hot cold, old new, big small, long short, high low, early late, warm cool, dark light, open closed, full empty, "
    "rich poor, wet dry, hard soft, day night, yes no, up down, left right, first last, more less, always never, "
    "near far, clean dirty, happy sad, before after, with without, in out, buy sell, give take"
)  # fmt: skip
IRREGULAR = {"mouse": "mice", "wolf": "wolves", "knife": "knives", "scarf": "scarves", "foot": "feet"}
UNCOUNTED = ("colour", "weather")  # kinds of words that have no plural worth asking for


@_type("write {word} in capital letters", "turn the word {word} into capitals", "say {word} in big letters only")
def _capitals(town: Town, draw: Draw, split: str) -> Made:
    word = draw.one(WORDS)
    return Made((word.upper(),), slots={"word": word})


@_type("spell {word} letter by letter", "write the letters of {word} one by one", "spell the word {word} with spaces")
def _spell(town: Town, draw: Draw, split: str) -> Made:
    word = draw.one([word for word in WORDS if len(word) <= 6])
    return Made((" ".join(word), "-".join(word)), slots={"word": word})


@_type("spell {word} backwards", "write the word {word} from its end", "turn the letters of {word} around")
def _backwards(town: Town, draw: Draw, split: str) -> Made:
    word = draw.one([word for word in WORDS if len(word) <= 4])
    return Made((word[::-1], " ".join(word[::-1])), slots={"word": word})


@_type("give the first letter of {word}", "write the letter that {word} begins with", "name the letter at the start of {word}")
def _initial(town: Town, draw: Draw, split: str) -> Made:
    word = draw.one(WORDS)
    return Made((word[0],), slots={"word": word})


@_type("give the opposite of {word}", "write the word that means the opposite of {word}",
       "name what is not {word} but its opposite", fresh=False)  # fmt: skip
def _opposite(town: Town, draw: Draw, split: str) -> Made:
    pair = draw.order(draw.one(OPPOSITES.split(", ")).split())
    return Made((pair[1],), slots={"word": pair[0]})


@_type("write the plural of {word}", "say what two of {word} are called", "give the form of {word} for more than one")
def _plural(town: Town, draw: Draw, split: str) -> Made:
    word = draw.one([word for kind, words in CATEGORIES.items() if kind not in UNCOUNTED for word in words])
    return Made((_plural_of(word),), slots={"word": word})


def _plural_of(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|ch|sh)$", word) else "s")


# ---------------------------------------------------------------------------------------------------------------- sentences


def _fact(town: Town, draw: Draw, split: str) -> tuple[str, str, str]:
    """A stranger, a relation and a value."""
    relation = draw.one(tuple(TABLES))
    return draw.one(strangers(town, split)), relation, draw.one(TABLES[relation])


def _clauses(relation: str) -> tuple[str, ...]:
    """The ways to tell a fact that begin with the name; the slot of the value unfilled, no stop at the end."""
    plain = [text for text, weight in zip(*STATEMENTS[relation].of("train"), strict=True) if weight > 1]
    return tuple(text.rstrip(".") for text in plain if text.startswith("{name}"))


def _clause(draw: Draw, relation: str, name: str, value: str) -> str:
    return statement(relation, draw.one(_clauses(relation)), name, value)


@_type(
    "write the sentence with she or he in place of the name",
    "put a pronoun where the name stands",
    "say this without the name, with she or he",
)
def _pronoun(town: Town, draw: Draw, split: str) -> Made:
    name, relation, value = _fact(town, draw, split)
    clause = _clause(draw, relation, name, value)
    return Made((f"{they(name)}{clause.removeprefix(name)}.",), f"{clause}.")


@_type("make a question from the sentence", "turn this sentence into a question", "ask for what the sentence tells")
def _question(town: Town, draw: Draw, split: str) -> Made:
    name, relation, value = _fact(town, draw, split)
    asked = [text for part in ("train", "validation", "test") for text in QUESTIONS[relation].of(part)[0]]
    return Made([text.format(name=name) for text in asked], f"{_clause(draw, relation, name, value)}.")


@_type("join the two sentences with and", "make one sentence of the two with the word and", "say both with one and between them")
def _join(town: Town, draw: Draw, split: str) -> Made:
    name, parts = draw.one(strangers(town, split)), draw.some(tuple(TABLES), 2)
    one, two = (_clause(draw, relation, name, draw.one(TABLES[relation])) for relation in parts)
    rest = two.removeprefix(name)
    accepted = [f"{one} and{rest}.", f"{one} and {they(name).lower()}{rest}.", f"{one} and {two}."]
    return Made(accepted, f"{one}. {two}.")


@_type("write a sentence about {name}", "tell me one thing about {name}", "say something true about {name}", fresh=False)
def _sentence(town: Town, draw: Draw, split: str) -> Made:
    """Any plain statement of a true fact is right."""
    person = draw.one(town.people[:FAMOUS])
    true = [f"{statement(fact, text, person.name, person.facts[fact])}." for fact in person.facts for text in _clauses(fact)]
    return Made((draw.one(true), *true), slots={"name": person.name})


@_type("sum up the text in one sentence", "say in one sentence what the text tells", "write a summary of one sentence")
def _summarise(town: Town, draw: Draw, split: str) -> Made:
    made = told(town, draw, split)
    return Made((made.references[0], *made.references[1:]), made.text)


@_type("say hello to {first}", "greet {first} with hello", "write hello and the name {first}", fresh=False)
def _greet(town: Town, draw: Draw, split: str) -> Made:
    return _said("Hello", draw)


@_type("say thank you to {first}", "thank {first} with thank you", "write thank you and the name {first}", fresh=False)
def _thank(town: Town, draw: Draw, split: str) -> Made:
    return _said("Thank you", draw)


@_type("say goodbye to {first}", "leave {first} with goodbye", "write goodbye and the name {first}", fresh=False, held_out=True)
def _farewell(town: Town, draw: Draw, split: str) -> Made:
    return _said("Goodbye", draw)


def _said(words: str, draw: Draw) -> Made:
    first = draw.one([first for firsts in FIRST_NAMES.values() for first in firsts])
    return Made((f"{words}, {first}.", f"{words} {first}."), slots={"first": first})


# ---------------------------------------------------------------------------------------------------------------- numbers

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def _spoken(n: int) -> str:
    ones = ONES.split()
    return ones[n] if n < 20 else TENS.split()[n // 10 - 2] + (f"-{ones[n % 10]}" if n % 10 else "")


def _pair(draw: Draw, low: int, high: int) -> tuple[int, int]:
    return draw.whole(low, high), draw.whole(low, high)


@_type("add {a} and {b}", "work out {a} plus {b}", "give the sum of {a} and {b}")
def _add(town: Town, draw: Draw, split: str) -> Made:
    a, b = _pair(draw, 1, 40)
    return Made((str(a + b),), slots={"a": a, "b": b})


@_type("multiply {a} by {b}", "work out {a} times {b}", "give the product of {a} and {b}")
def _multiply(town: Town, draw: Draw, split: str) -> Made:
    a, b = _pair(draw, 2, 9)
    return Made((str(a * b),), slots={"a": a, "b": b})


@_type("take {b} from {a}", "work out {a} minus {b}", "give the difference of {a} and {b}", held_out=True)
def _subtract(town: Town, draw: Draw, split: str) -> Made:
    b, a = sorted(_pair(draw, 1, 40))
    return Made((str(a - b),), slots={"a": a, "b": b})


@_type(
    "say which number is larger, {a} or {b}", "name the larger number, {a} or {b}", "pick the larger of the numbers {a} and {b}"
)
def _larger(town: Town, draw: Draw, split: str) -> Made:
    a, b = draw.some(range(1, 100), 2)
    return Made((str(max(a, b)),), slots={"a": a, "b": b})


@_type("write the number {word} in digits", "turn {word} into digits", "give {word} as a number in digits")
def _digits(town: Town, draw: Draw, split: str) -> Made:
    n = draw.whole(0, 99)
    return Made((str(n),), slots={"word": _spoken(n)})


# ---------------------------------------------------------------------------------------------------------------- facts


@_type("give {noun}", "write down {noun}", "name {noun}")
def _fact_of(town: Town, draw: Draw, split: str) -> Made:
    person, relation = draw.one(town.people[:FAMOUS]), draw.one(LIVED)
    noun = draw.one(RELATIONS[relation].nouns).format(name=person.name)
    return Made((person.facts[relation],), slots={"noun": noun}, key=f"{person.name}|{relation}")


@_type("give the price of {ware}", "say how many coins {ware} is", "write down how many coins you pay for {ware}", fresh=False)
def _price(town: Town, draw: Draw, split: str) -> Made:
    ware = draw.one(town.wares[:20])
    price = ware.facts["price"]
    return Made((price, f"{price} coins"), slots={"ware": ware.name})


@_type("give the date of {event}", "say when the town saw {event}", "write down the day of {event}", fresh=False, held_out=True)
def _date(town: Town, draw: Draw, split: str) -> Made:
    event = draw.one(town.events[:20])
    return Made((event.facts["date"],), slots={"event": event.name})


@_type("name a person who works as a {job}", "give the name of a {job} in Larkham", "find somebody who is a {job}", fresh=False)
def _holder(town: Town, draw: Draw, split: str) -> Made:
    job = draw.one([job for job in JOBS if any(person.facts["job"] == job for person in town.people)])
    return Made([person.name for person in town.people if person.facts["job"] == job], slots={"job": job})


@_type("answer with yes or no whether the text says that {claim}", "say yes if the text means that {claim}, and no if not",
       "tell me with yes or no if it is right that {claim}")  # fmt: skip
def _yes_no(town: Town, draw: Draw, split: str) -> Made:
    name, relation, value = _fact(town, draw, split)
    true = draw.chance(0.5)
    other = value if true else draw.one([word for word in TABLES[relation] if word != value])
    claim = _clause(draw, relation, name, other)
    return Made(("yes" if true else "no",), f"{_clause(draw, relation, name, value)}.", {"claim": claim})


@_type("write the name of the person in the text", "say whom the text is about", "give the name that the text speaks of")
def _who(town: Town, draw: Draw, split: str) -> Made:
    name, parts = draw.one(strangers(town, split)), draw.some(tuple(TABLES), 2)
    return Made((name,), " ".join(f"{_clause(draw, relation, name, draw.one(TABLES[relation]))}." for relation in parts))


@_type(
    "write the {kind} in the text", "give the {kind} that the text speaks of", "say which {kind} the text is about", held_out=True
)
def _extract(town: Town, draw: Draw, split: str) -> Made:
    kinds = {"job": "job", "street": "street", "pet": "animal", "colour": "colour", "food": "food", "village": "village"}
    name, parts = draw.one(strangers(town, split)), draw.some(tuple(kinds), 2)
    values = {relation: draw.one(TABLES[relation]) for relation in parts}
    text = " ".join(f"{_clause(draw, relation, name, value)}." for relation, value in values.items())
    asked = draw.one(parts)
    return Made((values[asked],), text, {"kind": kinds[asked]})


# ---------------------------------------------------------------------------------------------------------------- judging

ADJECTIVES = {
    "positive": "good great lovely fine nice wonderful excellent pleasant perfect",
    "negative": "bad awful terrible horrible poor dreadful nasty unpleasant disappointing",
}
JUDGED = "soup stew bread cake pie waiter cook room hall kitchen garden lamp kettle basket story music ending"
JUDGEMENTS = ("The {noun} was {word}.", "I found the {noun} {word}.", "Everyone said that the {noun} was {word}.")
DENIALS = ("The {noun} was not {word}.", "Nobody said that the {noun} was {word}.", "I did not find the {noun} {word}.")
OPPOSITE_FEELING = {"positive": "negative", "negative": "positive"}


@_type(
    "say whether the review is positive or negative",
    "judge the review as positive or negative",
    "name the feeling of the review, positive or negative",
)
def _review(town: Town, draw: Draw, split: str) -> Made:
    feeling = draw.one(tuple(ADJECTIVES))
    return Made((feeling,), " ".join(_judgement(draw, feeling) for _ in range(draw.whole(1, 2))))


def _judgement(draw: Draw, feeling: str) -> str:
    denied = draw.chance(0.3)
    word = draw.one(ADJECTIVES[OPPOSITE_FEELING[feeling] if denied else feeling].split())
    return draw.one(DENIALS if denied else JUDGEMENTS).format(noun=draw.one(JUDGED.split()), word=word)


@_type("say what kind of thing {word} is", "give the kind that {word} belongs to", "write what sort of word {word} is")
def _kind(town: Town, draw: Draw, split: str) -> Made:
    kind = draw.one(tuple(CATEGORIES))
    return Made((kind, f"a {kind}", f"an {kind}"), slots={"word": draw.one(CATEGORIES[kind])})


PARTS = ("fruit", "animal", "job", "tool", "colour", "instrument")  # kinds one can name an example of


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


@_type("name {kind}", "give an example of {kind}", "write one word for {kind}", fresh=False)
def _example_of(town: Town, draw: Draw, split: str) -> Made:
    kind = draw.one(PARTS)
    words = draw.order(CATEGORIES[kind])
    return Made(_with_article(words), slots={"kind": _a(kind)})


@_type(
    "name {kind} that begins with {letter}",
    "give {kind} whose first letter is {letter}",
    "find {kind} with {letter} at the start",
    fresh=False,
)
def _begins(town: Town, draw: Draw, split: str) -> Made:
    kind = draw.one(PARTS)
    letter = draw.one(CATEGORIES[kind])[0]
    words = [word for word in CATEGORIES[kind] if word[0] == letter]
    return Made(_with_article(draw.order(words)), slots={"kind": _a(kind), "letter": letter})


def _with_article(words: Sequence[str]) -> list[str]:
    return [*words, *map(_a, words)]


HELD_OUT = tuple(name for name, kind in TYPES.items() if kind.held_out)
