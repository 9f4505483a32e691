"""Questions for a model that may call tools: the calls that answer them, and what each call returns.

    user       How many coins do you pay for a map and a lamp at the Old Barn?
    assistant  {"name": "price", "arguments": {"ware": "a map at the Old Barn"}}          ─► 7
    assistant  {"name": "price", "arguments": {"ware": "a lamp at the Old Barn"}}         ─► 12
    assistant  {"name": "calculate", "arguments": {"expression": "7 + 12"}}               ─► 19
    assistant  19

The tools know the whole town, people nobody writes about and events after the training cut-off included.

Does:     four tools with their JSON schemas, a safe `call` that answers errors in words, questions of one to three calls, checks
          of a call and of an answer, messages for a chat template.
Leaves out: parallel calls, tools that change anything, running a model (see the agents).
Source:   Schick et al. 2023 (Toolformer); Yao et al. 2022 (ReAct); the JSON form is that of OpenAI's function calling.
"""

from __future__ import annotations

import ast
import difflib
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

from .common import LIVED, QUESTIONS, check_split, recombined, until
from .draw import Draw
from .items import Entity
from .phrases import PERSONAL, RELATIONS
from .town import Town

__all__ = [
    "KINDS", "SCHEMAS", "Step", "Task", "ToolError", "Tools", "call_text", "parse_call", "right_answer", "right_call", "rows",
    "task",
]  # fmt: skip

RELATION_NAMES = tuple(PERSONAL)
HOPS = ("friend", "sibling")
LONGEST = 60  # characters of an expression


class ToolError(ValueError):
    """A call that cannot be carried out; its message is what the model gets to read."""


def _schema(name: str, says: str, **arguments: str) -> dict[str, Any]:
    properties: dict[str, Any] = {key: {"type": "string", "description": text} for key, text in arguments.items()}
    if "relation" in properties:
        properties["relation"]["enum"] = list(RELATION_NAMES)
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": says, "parameters": parameters}}


SCHEMAS = (
    _schema("price", "The price of a ware in coins.", ware="the ware and its shop, as in: a map at the Old Barn"),
    _schema("fact", "One fact about a person.", person="first and last name", relation="which fact"),
    _schema("calculate", "The value of a sum.", expression="whole numbers with + - * // and brackets"),
    _schema("date", "The date of an event.", event="the event, as in: the fire at the mill"),
)
ARGUMENTS = {schema["function"]["name"]: tuple(schema["function"]["parameters"]["required"]) for schema in SCHEMAS}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call and what it returns."""

    name: str
    arguments: dict[str, str]
    result: str

    @property
    def text(self) -> str:
        """The call as the model should write it."""
        return call_text(self.name, **self.arguments)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question, the calls that answer it in order, and the answer."""

    question: str
    kind: str
    steps: tuple[Step, ...]
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole exchange: user, then call and result in turns, then the answer."""
        turns = [turn for step in self.steps for turn in (("assistant", step.text), ("tool", step.result))]
        said = [("user", self.question), *turns, ("assistant", self.answer)]
        return [{"role": role, "content": text} for role, text in said]


def call_text(name: str, **arguments: str) -> str:
    """A call in JSON."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def parse_call(text: str) -> tuple[str, dict[str, str]]:
    """The name and the arguments of a call in JSON. Raises ToolError for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ToolError('this is no JSON; write {"name": …, "arguments": {…}} and nothing else') from None
    if not isinstance(found, dict) or set(found) != {"name", "arguments"} or not isinstance(found["arguments"], dict):
        raise ToolError('a call has the two keys "name" and "arguments", the latter an object')
    name, arguments = found["name"], found["arguments"]
    if not isinstance(name, str) or name not in ARGUMENTS:
        raise ToolError(f'unknown tool "{name}"{_guess(str(name), ARGUMENTS)} the tools are {", ".join(ARGUMENTS)}')
    if set(arguments) != set(ARGUMENTS[name]) or not all(isinstance(value, str) for value in arguments.values()):
        raise ToolError(f'tool "{name}" takes {" and ".join(ARGUMENTS[name])}, each a string')
    return name, arguments


def _guess(word: str, known: Any) -> str:
    """What goes between a wrong word and the way out."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f'; did you mean "{close[0]}"? If not,' if close else ";"


class Tools:
    """The four tools over one town.

    >>> Tools(Town(0)).call('{"name": "calculate", "arguments": {"expression": "3 * (4 + 5)"}}')
    '27'
    """

    def __init__(self, world: Town) -> None:
        self._people = {person.name: person for person in world.people}
        self._wares = {ware.name: ware for ware in world.wares}
        self._events = {event.name: event for event in (*world.events, *world.later_events)}

    def call(self, text: str) -> str:
        """The result of a call in JSON, or "error: …" in words; never raises."""
        try:
            name, arguments = parse_call(text)
            return self.run(name, **arguments)
        except ToolError as error:
            return f"error: {error}"

    def run(self, name: str, **arguments: str) -> str:
        """The result of one tool. Raises ToolError for an unknown ware, person, relation or event, or a bad sum."""
        return str(getattr(self, f"_{name}")(**arguments))

    def _price(self, ware: str) -> str:
        return self._known("ware", ware, self._wares).facts["price"]

    def _fact(self, person: str, relation: str) -> str:
        found = self._known("person", person, self._people)
        if relation not in found.facts:
            guess = _guess(relation, found.facts)
            raise ToolError(f'unknown relation "{relation}"{guess} choose one of {", ".join(found.facts)}')
        return found.facts[relation]

    def _date(self, event: str) -> str:
        return self._known("event", event, self._events).facts["date"]

    def _calculate(self, expression: str) -> int:
        return _value(expression)

    def _known(self, what: str, name: str, table: Mapping[str, Entity]) -> Entity:
        if name not in table:
            raise ToolError(f'unknown {what} "{name}"{_guess(name, table)} write it in full, as in "{next(iter(table))}"')
        return table[name]


OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def _value(expression: str) -> int:
    """Whole numbers, + - * // and brackets: nothing else is ever evaluated."""
    if len(expression) > LONGEST:
        raise ToolError(f"the expression has {len(expression)} characters; at most {LONGEST} are read")
    try:
        return _worth(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, ToolError):
            raise
        raise ToolError(f'"{expression}" is no sum; write whole numbers with + - * // and brackets') from None


def _worth(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_worth(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_worth(node.left), _worth(node.right))
    raise ToolError("only whole numbers, + - * // and brackets can be worked out")


# ---------------------------------------------------------------------------------------------------------------- questions

FRAMES = (
    "Tell me {}.", "Can you tell me {}?", "Do you know {}?", "I would like to know {}.", "Please find out {}.", "Let me know {}.",
    "I want to know {}.",
)  # fmt: skip
CORES = {
    "sum": ("the value of {sum}", "the result of {sum}", "what {sum} makes"),
    "two": (
        "the price of {ware} and {other} together", "the number of coins for {ware} and {other}",
        "how many coins {ware} and {other} are together",
    ),
    "many": (
        "the price of {n} times {ware}", "the number of coins for {ware} bought {n} times",
        "what you pay if you take {ware} {n} times",
    ),
    "change": (
        "the rest of {n} coins after paying for {ware}", "the coins left of {n} if you buy {ware}",
        "what remains of {n} coins after {ware} is paid",
    ),
    "ages": (
        "the years between the births of {name} and {other}", "the difference in birth years of {name} and {other}",
        "how many years lie between the births of {name} and {other}",
    ),
    "since": (
        "the years from {event} to 2030", "the number of years between {event} and 2030",
        "how many years before 2030 people saw {event}",
    ),
}  # fmt: skip
WORDINGS = {kind: recombined(f"tools/{kind}", cores, FRAMES) for kind, cores in CORES.items()}


@dataclass(frozen=True)
class _Asked:
    """A question before it is run; a later call may hold {0}, {1} for earlier results. `key` stays in one split."""

    question: str
    calls: tuple[tuple[str, dict[str, str]], ...]
    key: str


def _wording(draw: Draw, kind: str, split: str, **slots: object) -> str:
    return draw.one(*WORDINGS[kind].of(split)).format(**slots)


def _question(draw: Draw, relation: str, split: str, **slots: object) -> str:
    text = draw.one(*QUESTIONS[relation].of(split)).format(**slots)
    return text[:1].upper() + text[1:]


def _get(relation: str, person: str) -> tuple[str, dict[str, str]]:
    return "fact", {"person": person, "relation": relation}


def _sum(expression: str) -> tuple[str, dict[str, str]]:
    return "calculate", {"expression": expression}


def _ask_price(town: Town, draw: Draw, split: str) -> _Asked:
    ware = draw.one(town.wares).name
    question = _question(draw, "price", split, ware=ware)
    return _Asked(question, (("price", {"ware": ware}),), question)


def _ask_fact(town: Town, draw: Draw, split: str) -> _Asked:
    person, relation = draw.one(town.people).name, draw.one(RELATION_NAMES)
    return _Asked(_question(draw, relation, split, name=person), (_get(relation, person),), f"{person}|{relation}")


def _ask_date(town: Town, draw: Draw, split: str) -> _Asked:
    event = draw.one([*town.events, *town.later_events]).name
    question = _question(draw, "date", split, event=event)
    return _Asked(question, (("date", {"event": event}),), question)


def _ask_sum(town: Town, draw: Draw, split: str) -> _Asked:
    a, b, c = draw.whole(20, 99), draw.whole(2, 30), draw.whole(2, 20)
    expression = draw.one(("{a} * {b}", "{a} + {b} * {c}", "{a} * {b} - {c}", "({a} + {b}) * {c}")).format(a=a, b=b, c=c)
    return _Asked(_wording(draw, "sum", split, sum=expression), (_sum(expression),), expression)


def _ask_hop(town: Town, draw: Draw, split: str) -> _Asked:
    """A fact about the friend, brother or sister of somebody."""
    person, hop, relation = draw.one(town.people).name, draw.one(HOPS), draw.one(LIVED)
    question = _question(draw, relation, split, name=_relative(draw, hop, person))
    return _Asked(question, (_get(hop, person), _get(relation, "{0}")), f"{person}|{hop}|{relation}")


def _ask_hops(town: Town, draw: Draw, split: str) -> _Asked:
    """A fact about the friend of a brother or sister, or the other way round."""
    person, hops, relation = draw.one(town.people).name, draw.order(HOPS), draw.one(LIVED)
    question = _question(draw, relation, split, name=_relative(draw, hops[1], _relative(draw, hops[0], person)))
    calls = _get(hops[0], person), _get(hops[1], "{0}"), _get(relation, "{1}")
    return _Asked(question, calls, f"{person}|{hops[0]}|{hops[1]}|{relation}")


def _relative(draw: Draw, hop: str, name: str) -> str:
    return RELATIONS[hop].nouns[0].format(name=name)


def _ask_two(town: Town, draw: Draw, split: str) -> _Asked:
    ware, other = (found.name for found in draw.some(town.wares, 2))
    calls = ("price", {"ware": ware}), ("price", {"ware": other}), _sum("{0} + {1}")
    return _Asked(_wording(draw, "two", split, ware=ware, other=other), calls, "|".join(sorted((ware, other))))


def _ask_many(town: Town, draw: Draw, split: str) -> _Asked:
    ware, n = draw.one(town.wares).name, draw.whole(3, 19)
    calls = ("price", {"ware": ware}), _sum(f"{n} * {{0}}")
    return _Asked(_wording(draw, "many", split, ware=ware, n=n), calls, f"{ware}|{n}")


def _ask_change(town: Town, draw: Draw, split: str) -> _Asked:
    ware, n = draw.one(town.wares).name, draw.whole(50, 99)
    calls = ("price", {"ware": ware}), _sum(f"{n} - {{0}}")
    return _Asked(_wording(draw, "change", split, ware=ware, n=n), calls, f"{n}|{ware}")


def _ask_ages(town: Town, draw: Draw, split: str) -> _Asked:
    """The larger year less the smaller, so that the answer has no sign."""
    first, second = draw.some(town.people, 2)
    expression = "{0} - {1}" if int(first.facts["born"]) >= int(second.facts["born"]) else "{1} - {0}"
    calls = _get("born", first.name), _get("born", second.name), _sum(expression)
    names = first.name, second.name
    return _Asked(_wording(draw, "ages", split, name=names[0], other=names[1]), calls, "|".join(sorted(names)))


def _ask_since(town: Town, draw: Draw, split: str) -> _Asked:
    event = draw.one([*town.events, *town.later_events]).name
    question = _wording(draw, "since", split, event=event)
    return _Asked(question, (("date", {"event": event}), _sum("2030 - {0.year}")), question)


MAKERS: dict[str, Callable[[Town, Draw, str], _Asked]] = {
    "price": _ask_price, "fact": _ask_fact, "date": _ask_date, "sum": _ask_sum, "hop": _ask_hop, "two": _ask_two,
    "many": _ask_many, "change": _ask_change, "ages": _ask_ages, "since": _ask_since, "hops": _ask_hops,
}  # fmt: skip
KINDS = tuple(MAKERS)


class _Result(str):
    """A tool's result inside a later call; `.year` is the last part of a date."""

    __slots__ = ()

    @property
    def year(self) -> str:
        return self.split()[-1]


def task(world: Town, index: int, split: str = "train", kind: str | None = None) -> Task:
    """Task number `index`; the kinds take turns unless one is named. Raises ValueError for an unknown split or kind."""
    check_split(split)
    kind = kind or KINDS[index % len(KINDS)]
    if kind not in MAKERS:
        raise ValueError(f'unknown kind of tool task "{kind}"{_guess(kind, KINDS)} choose one of {", ".join(KINDS)}')
    draw = Draw(f"{world.seed}/tools/{kind}/{split}/{index}")
    asked = until(split, lambda: MAKERS[kind](world, draw, split), lambda asked: asked.key)
    steps: list[Step] = []
    for name, template in asked.calls:
        earlier = [_Result(step.result) for step in steps]
        arguments = {key: value.format(*earlier) for key, value in template.items()}
        steps.append(Step(name=name, arguments=arguments, result=_tools(world).run(name, **arguments)))
    return Task(question=asked.question, kind=kind, steps=tuple(steps), answer=steps[-1].result)


@lru_cache(maxsize=4)
def _tools(world: Town) -> Tools:
    return Tools(world)


def right_call(expected: Step, text: str) -> bool:
    """Whether a text is the expected call: the same tool and arguments; of a sum, the same numbers and the same value."""
    try:
        name, arguments = parse_call(text)
        if name != expected.name or name != "calculate":
            return name == expected.name and arguments == expected.arguments
        written, wanted = arguments["expression"], expected.arguments["expression"]
        return _numbers(written) == _numbers(wanted) and _value(written) == _value(wanted)
    except ToolError:
        return False


def _numbers(expression: str) -> list[int]:
    return sorted(int(word) for word in "".join(c if c.isdecimal() else " " for c in expression).split())


def right_answer(expected: Task, text: str) -> bool:
    """Whether a text is the answer; spaces around it, a stop at its end and case do not count."""
    return " ".join(text.split()).rstrip(".").lower() == expected.answer.lower()


def rows(world: Town, split: str) -> Iterator[dict[str, Any]]:
    """Rows without end: question, kind, calls (JSON) and results, the number of calls, answer, messages."""
    for i in count():
        made = task(world, i, split)
        yield {
            "question": made.question,
            "kind": made.kind,
            "calls": [step.text for step in made.steps],
            "results": [step.result for step in made.steps],
            "hops": len(made.steps),
            "answer": made.answer,
            "messages": made.messages,
        }
