"""Exercises: graded the moment they are defined, and never in the way.

    @exercise("transformer/attention")
    def attention(q, k, v, mask=None):
        ...                                  # your code

    correct ──► ✅ card, your function is used below
    wrong ────► ❌ card with a diagnosis, the package's function is used below
    untouched ► ○ card, the package's function is used below

Does:     the registry, the decorator, hints, solutions, and the self-test that every exercise must pass.
Leaves out: how answers are judged (`grading`) and stored (`progress`); exercises whose answer is a class.
Source:   own.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from llmcourse.exercise.grading import Arguments, Exercise, Misconception, Verdict, difference, grade, make_inputs, run
from llmcourse.exercise.progress import ID, Progress

__all__ = [
    "Arguments",
    "Exercise",
    "Misconception",
    "Progress",
    "UnknownExercise",
    "Verdict",
    "all_exercises",
    "check",
    "exercise",
    "get",
    "grade",
    "hint",
    "register",
    "solution",
]

_REGISTRY: dict[str, Exercise] = {}
_OPENED: dict[str, int] = {}  # hints opened in this kernel: Run All shows the same ones each time


class UnknownExercise(KeyError):
    """No exercise of that id; the message names the nearest and lists the topic's."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message in quotes


# ---- the registry -----------------------------------------------------------------------------------------------------


def register(new: Exercise) -> Exercise:
    """Add an exercise to its topic. Registering the same one again (a reload) replaces it.

    Raises:
        ValueError: for a malformed id, a difficulty outside 1–3, fewer than 3 trials, or an id that another reference owns.
    """
    if not ID.fullmatch(new.id):
        raise ValueError(f'exercise id {new.id!r} is malformed; write "topic/name" in lower case: "transformer/attention"')
    if new.difficulty not in (1, 2, 3):
        raise ValueError(f"{new.id}: difficulty {new.difficulty!r} is outside 1–3")
    if new.trials < 3:
        raise ValueError(f"{new.id}: {new.trials} trials are too few to catch answers that ignore their inputs; use at least 3")
    known = _REGISTRY.get(new.id)
    if known and _origin(known.reference) != _origin(new.reference):
        raise ValueError(f"exercise id {new.id!r} is taken by {_origin(known.reference)}; choose another name")
    titled = new if new.title else replace(new, title=new.id.split("/")[1].replace("_", " ").replace("-", " ").capitalize())
    _REGISTRY[new.id] = titled
    return titled


def get(id: str) -> Exercise:
    """The exercise of that id; its topic's `exercises` module is imported on demand.

    Raises:
        UnknownExercise: with the nearest id and all ids of the topic.
    """
    if id not in _REGISTRY:
        _import_topic(id.split("/")[0])
    if id in _REGISTRY:
        return _REGISTRY[id]
    raise UnknownExercise(_unknown(id))


def all_exercises(topic: str | None = None) -> list[Exercise]:
    """Every exercise of one topic, or of all, in order of registration."""
    for name in [topic] if topic else _topics():
        _import_topic(name)
    return [each for each in _REGISTRY.values() if topic is None or each.id.startswith(f"{topic}/")]


def _origin(fn: Callable) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"


def _topics() -> list[str]:
    import llmcourse

    return [module.name for module in pkgutil.iter_modules(llmcourse.__path__) if module.ispkg]


def _import_topic(topic: str) -> None:
    """Import `llmcourse.<topic>.exercises`, whose import registers them; nothing happens where there is none."""
    if topic in _topics() and importlib.util.find_spec(f"llmcourse.{topic}.exercises"):
        importlib.import_module(f"llmcourse.{topic}.exercises")


def _unknown(id: str) -> str:
    topic = id.split("/")[0]
    siblings = [each for each in _REGISTRY if each.startswith(f"{topic}/")]
    if not siblings:
        topics = sorted({*_topics(), *(each.split("/")[0] for each in _REGISTRY)})
        near = difflib.get_close_matches(topic, topics, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        return f"no exercise {id!r}: there is no topic {topic!r} with exercises.{meant}"
    near = difflib.get_close_matches(id, siblings, n=1, cutoff=0.4)
    meant = f" did you mean {near[0]!r}?" if near else ""
    return f"no exercise {id!r};{meant} The topic {topic!r} has: {', '.join(sorted(siblings))}"


# ---- what a learner calls ---------------------------------------------------------------------------------------------


def exercise(id: str) -> Callable[[Any], Callable]:
    """Grade the function below at once: `@exercise("transformer/attention")`.

    The name is bound to the learner's own function when it is correct, else to the package's, so the notebook always goes on.
    A Python loop that never ends is stopped; one long call into C (a huge matmul, `time.sleep`) cannot be.

    Raises:
        UnknownExercise: if there is no exercise of that id.
    """
    task = get(id)

    def decorate(fn: Any) -> Callable:
        verdict = grade(task, fn)
        _show(task, verdict)
        Progress().attempt(task.id, verdict.state)
        return fn if verdict.state == "solved" else task.reference

    return decorate


def hint(id: str) -> None:
    """Open the next hint of an exercise, below those already open.

    Raises:
        UnknownExercise: if there is no exercise of that id.
    """
    task = get(id)
    total = len(task.hints)
    if _OPENED.get(id, 0) >= total:
        closing = f'`solution("{id}")` shows the package\'s own code.'
        _card("info", f"{task.title}: no more hints", "\n".join(filter(None, (_hints(task, total), closing))))
        return
    _OPENED[id] = opened = _OPENED.get(id, 0) + 1
    _card("info", f"{task.title}: hint {opened} of {total}", _hints(task, opened))
    Progress().hint(id, opened)


def solution(id: str) -> None:
    """Show the package's own code, live: the solution is the library.

    Raises:
        UnknownExercise: if there is no exercise of that id.
    """
    task = get(id)
    from llmcourse import show

    show.source(task.reference)
    Progress().solution(id)


def _hints(task: Exercise, opened: int) -> str:
    return "\n".join(f"{number}. {text}" for number, text in enumerate(task.hints[:opened], start=1))


def _show(task: Exercise, verdict: Verdict) -> None:
    """The card of a verdict."""
    outcomes = {"solved": ("solved", "correct"), "wrong": ("wrong", "not yet"), "untouched": ("todo", "yours to write")}
    status, outcome = outcomes[verdict.state]
    effort = f"  {'●' * task.difficulty}{'○' * (3 - task.difficulty)} {task.minutes} min"
    title = f"{task.title}: {outcome}" + (effort if verdict.state == "untouched" else "")
    if verdict.state == "solved":
        closing = "Your own function is used below."
    else:
        closing = f'The package\'s own function is used below, so the notebook goes on. Stuck? `hint("{task.id}")`'
    printed = f"Your function printed:\n{verdict.printed.rstrip()}" if verdict.printed.strip() else ""
    _card(status, title, "\n".join(filter(None, (verdict.message, printed, closing))))


def _card(status: Any, title: str, body: str) -> None:
    from llmcourse import show

    show.card(status, title, body)


# ---- the self-test of an exercise -------------------------------------------------------------------------------------


def check(task: Exercise, *, deadline: float = 0.2) -> list[str]:
    """Every way in which an exercise fails to do its work; an empty list is a pass.

    The reference must be accepted; each misconception rejected by name, of the reference's type, shape and dtype, finite, and
    different from every other; a stub left untouched; and answers that raise, loop, mutate, print, return NaN, the wrong type
    or a constant judged rightly.

    Args:
        deadline: seconds granted to the answer that loops for ever.
    """
    problems = [*_check_contents(task)]
    if (verdict := grade(task, task.reference)).state != "solved":
        return [*problems, f"the reference is {verdict.state}: {verdict.message}"]
    return [*problems, *_check_misconceptions(task), *_check_hostile(task, deadline)]


def _check_contents(task: Exercise) -> Iterator[str]:
    if len(task.misconceptions) < 3:
        yield f"{len(task.misconceptions)} misconceptions; at least 3 are needed"
    if not task.hints:
        yield "no hint"
    if not 1 <= task.minutes <= 120:
        yield f"minutes={task.minutes} is not between 1 and 120"
    messages = [each.message for each in task.misconceptions]
    if len(set(messages)) < len(messages):
        yield "two misconceptions share a message"


def _check_misconceptions(task: Exercise) -> Iterator[str]:
    trials = [(trial, make_inputs(task, trial)) for trial in range(task.trials)]

    def values(fn: Callable) -> list[Any]:
        return [run(task, fn, trial, given).value for trial, given in trials]

    expected, wrong = values(task.reference), [values(each.wrong) for each in task.misconceptions]
    for number, (each, got) in enumerate(zip(task.misconceptions, wrong, strict=True), start=1):
        verdict = grade(task, each.wrong)
        if verdict.state != "wrong" or each.message not in verdict.message:
            yield f"misconception {number} ({each.message!r}) is {verdict.state} with the message {verdict.message!r}"
        if any(_form(one) != _form(other) for one, other in zip(expected, got, strict=True)):
            yield f"misconception {number} ({each.message!r}) differs from the reference in type, shape, dtype or finiteness"
    for (i, one), (j, other) in itertools.combinations(enumerate(wrong, start=1), 2):
        if _same(task, one, other):
            yield f"misconceptions {i} and {j} give the same answers"


def _same(task: Exercise, one: Any, other: Any) -> bool:
    """Whether two answers are equal by the exercise's own comparison, trial by trial."""
    if task.compare:
        return all(task.compare(a, b) is None for a, b in zip(one, other, strict=True))
    return difference(one, other, rtol=task.rtol, atol=task.atol) is None


def _form(value: Any) -> Any:
    """What of a value must agree between a misconception and the reference: type, shape, dtype, whether NaN or infinite."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        infinity = float("inf")  # compared from both sides: booleans have no abs
        nan, infinite = bool((value != value).any()), bool(((value == infinity) | (value == -infinity)).any())
        return type(value).__name__, tuple(value.shape), str(value.dtype), nan, infinite
    if isinstance(value, tuple):
        return "tuple", tuple(map(_form, value))
    if isinstance(value, list):  # of any length (tokens, for instance), but not of another kind of element
        return "list", sorted({str(_form(each)) for each in value})
    if isinstance(value, dict):
        return "dict", {key: _form(each) for key, each in value.items()}
    if isinstance(value, float):
        return "float", value != value, abs(value) == float("inf")
    return type(value).__name__


def _check_hostile(task: Exercise, deadline: float) -> Iterator[str]:
    """Answers that misbehave, each with the state and the words its verdict must have."""
    for name, answer, state, words in _hostile(task):
        limited = replace(task, deadline=deadline) if name == "loops" else task
        verdict = grade(limited, answer)
        if verdict.state != state or not re.search(words, verdict.message + verdict.printed, re.IGNORECASE):
            yield f"an answer that {name} is {verdict.state} with the message {verdict.message!r}"


def _hostile(task: Exercise) -> Iterator[tuple[str, Callable, str, str]]:
    """(what it does, the answer, the state it must get, a pattern its message must match)."""
    reference = task.reference
    first = run(task, reference, 0, make_inputs(task, 0)).value

    def stub(*args: Any, **kwargs: Any) -> Any: ...

    def raises(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("on purpose")

    def loops(*args: Any, **kwargs: Any) -> Any:
        while True:
            pass

    def prints(*args: Any, **kwargs: Any) -> Any:
        print("on purpose")
        return reference(*args, **kwargs)

    yield "is a stub", stub, "untouched", ""
    yield "raises", raises, "wrong", "ValueError.*on purpose"
    yield "loops", loops, "wrong", "stopped after"
    yield "prints", prints, "solved", "on purpose"
    yield "returns an object of the wrong type", lambda *args, **kwargs: object(), "wrong", ""
    yield "ignores its inputs", lambda *args, **kwargs: copy.deepcopy(first), "wrong", ""
    if _spoilable(first):
        yield "returns NaN", lambda *args, **kwargs: _spoiled(reference(*args, **kwargs)), "wrong", "" if task.compare else "NaN"
    if mutates := _mutating(task):
        yield "mutates its inputs", mutates, "wrong", "in place"


def _spoilable(value: Any) -> bool:
    return isinstance(value, float) or (_is_float_tensor(value) and value.numel() > 0)


def _is_float_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return bool(torch) and isinstance(value, torch.Tensor) and value.is_floating_point()


def _spoiled(value: Any) -> Any:
    """The value with NaN in it."""
    return value * float("nan")


def _mutating(task: Exercise) -> Callable | None:
    """The reference, followed by a change of the first input that can be changed and that the reference leaves alone."""
    given = make_inputs(task, 0)
    after = run(task, task.reference, 0, given)
    names = list(inspect.signature(task.reference).parameters)
    for key, value in [*enumerate(given.args), *given.kwargs.items()]:
        left = after.args[key] if isinstance(key, int) else after.kwargs[key]
        if _is_float_tensor(value) and value.numel() and difference(value, left, rtol=0, atol=0) is None:
            position = names.index(key) if isinstance(key, str) else key
            return _mutant(task.reference, key, position)
    return None


def _mutant(reference: Callable, key: int | str, position: int) -> Callable:
    def mutates(*args: Any, **kwargs: Any) -> Any:
        result = copy.deepcopy(reference(*args, **kwargs))  # a result that shares memory with the input must not change too
        target = kwargs[key] if key in kwargs else args[position]
        target.data.add_(1)
        return result

    return mutates
