"""Grading: is this function what the exercise asks for, and if not, what is wrong with it?

    inputs(trial) ─┬─► reference ──► expected ─┐
                   ├─► learner's ──► got ──────┴─► equal? ─► solved
                   └─► misconceptions ─► which one gives the same wrong answer?

Does:     compares values, shapes, types, nested containers, modules and generators; recognises an unfinished function by its
          source or its bytecode; names the learner's mistake where it equals a known one, else describes the difference.
Leaves out: display, progress, hints (llmcourse.exercise); reading the learner's style. Only behaviour counts.
Source:   own; misconceptions as executable wrong answers.
"""

from __future__ import annotations

import inspect
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llmcourse.exercise import guard
from llmcourse.exercise.compare import describe, difference
from llmcourse.exercise.unfinished import unfinished

__all__ = ["Arguments", "Exercise", "Misconception", "Verdict", "difference", "grade", "make_inputs", "run", "unfinished"]


@dataclass(frozen=True)
class Misconception:
    """A wrong answer one plausible edit away from the right one, and what to tell whoever gives it."""

    wrong: Callable
    message: str


class Arguments:
    """Positional and keyword arguments of one call: `Arguments(q, k, v, mask=mask)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


@dataclass(frozen=True)
class Exercise:
    """One exercise: a reference, inputs that vary, and the ways people get it wrong.

    Attributes:
        id: "topic/name".
        reference: the package's own function; it is also the solution.
        inputs: trial number → a tuple (positional), a dict (keywords) or `Arguments` (both). random, NumPy and torch are seeded
            before each call, so it simply draws. The values must survive `copy.deepcopy`.
        misconceptions: in order of plausibility; the first that fits is named.
        hints: from a nudge to nearly the answer.
        difficulty: 1 to 3.
        minutes: what a learner should plan for.
        title: shown on the card; default made from the id.
        rtol, atol: tolerance for floats; everything else must be equal.
        deadline: seconds for one call.
        trials: calls with different inputs, at least 3.
        compare: replaces the comparison: `compare(expected, got)` returns None when equal, else what is wrong.
    """

    id: str
    reference: Callable
    inputs: Callable[[int], tuple | dict | Arguments]
    misconceptions: tuple[Misconception, ...] = ()
    hints: tuple[str, ...] = ()
    difficulty: int = 1
    minutes: int = 5
    title: str = ""
    rtol: float = 1e-4
    atol: float = 1e-5
    deadline: float = 5.0
    trials: int = 4
    compare: Callable[[Any, Any], str | None] | None = None


@dataclass(frozen=True)
class Verdict:
    """The outcome of grading: a state, what to tell the learner, and what their function printed."""

    state: Literal["untouched", "wrong", "solved"]
    message: str = ""
    printed: str = ""


def grade(exercise: Exercise, fn: Any) -> Verdict:
    """Grade one answer. Pure: nothing is shown or stored, and nothing global changes.

    Raises:
        RuntimeError: if the exercise itself is broken (its reference fails).
        KeyboardInterrupt: the user's own.
    """
    if refusal := _refusal(fn):
        return Verdict("wrong", refusal)
    if (blank := unfinished(fn)) is not None:
        return Verdict("untouched", blank)
    calls, printed = [], ""
    for trial in range(exercise.trials):
        given = make_inputs(exercise, trial)
        expected = _expected(exercise, trial, given)
        if misfit := _signature_problem(exercise, fn, given):
            return Verdict("wrong", misfit)
        got = run(exercise, fn, trial, given, deadline=exercise.deadline)
        printed = printed or got.printed
        if got.failure:
            return Verdict("wrong", _failure_message(got.failure, exercise.deadline), printed)
        calls.append((trial, given, expected, got))
    message = _diagnosis(exercise, calls)
    return Verdict("wrong" if message else "solved", message or "", printed)


def make_inputs(exercise: Exercise, trial: int) -> Arguments:
    """The inputs of one trial: the same on every machine, whatever was drawn before."""
    torch_was_there = "torch" in sys.modules
    with guard.isolated(_seed(exercise, trial)):
        given = exercise.inputs(trial)
    if not torch_was_there and "torch" in sys.modules:  # inputs() has just imported torch: it was not seeded yet
        return make_inputs(exercise, trial)
    if isinstance(given, Arguments):
        return given
    if isinstance(given, dict):
        return Arguments(**given)
    if isinstance(given, tuple):
        return Arguments(*given)
    raise TypeError(f"{exercise.id}: inputs({trial}) returned {describe(given)}; return a tuple, a dict or Arguments(…)")


def run(exercise: Exercise, fn: Callable, trial: int, given: Arguments, *, deadline: float | None = None) -> guard.Outcome:
    """Call any answer on one trial's inputs; functions that sample see the same seeds as the reference does."""
    seed = _seed(exercise, trial) + 1
    listed = inspect.isgeneratorfunction(inspect.unwrap(exercise.reference))
    return guard.call(fn, given.args, given.kwargs, seed=seed, deadline=deadline, listed=listed)


def _seed(exercise: Exercise, trial: int) -> int:
    return zlib.crc32(f"{exercise.id}:{trial}".encode()) // 2


def _expected(exercise: Exercise, trial: int, given: Arguments) -> guard.Outcome:
    outcome = run(exercise, exercise.reference, trial, given)
    if outcome.failure:
        failure = outcome.failure
        raise RuntimeError(f"{exercise.id}: the reference fails on trial {trial}: {failure.kind}: {failure.text}")
    return outcome


# ---- before the first call --------------------------------------------------------------------------------------------


def _refusal(fn: Any) -> str | None:
    """Why this object cannot be an answer at all."""
    if isinstance(fn, type):
        return f"`{fn.__name__}` is a class; this exercise asks for a function (`def …`)."
    if not callable(fn):
        return f"The decorator needs a function below it (`def …`); it got {describe(fn)}."
    if inspect.iscoroutinefunction(fn):
        return "`async def` makes a coroutine; write a plain `def`."
    return None


def _signature_problem(exercise: Exercise, fn: Callable, given: Arguments) -> str | None:
    """What does not fit when `fn` is called with the inputs, in terms of its parameters."""
    try:
        own = inspect.signature(fn)
    except (ValueError, TypeError):  # some builtins have none; the call itself will tell
        return None
    try:
        own.bind(*given.args, **given.kwargs)
        return None
    except TypeError:
        wanted = inspect.signature(exercise.reference)
    missing = [name for name in wanted.bind(*given.args, **given.kwargs).arguments if name not in own.parameters]
    extra = [name for name in own.parameters if name not in wanted.parameters]
    notes = [f"{label}: `{'`, `'.join(names)}`." for label, names in (("Missing", missing), ("Not expected", extra)) if names]
    return " ".join([f"The arguments do not fit: yours are `{_bare(own)}`, expected are `{_bare(wanted)}`.", *notes])


def _bare(signature: inspect.Signature) -> str:
    """The signature without annotations: names and defaults are what matters."""
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def _failure_message(failure: guard.Failure, deadline: float) -> str:
    """What to say when the call did not return."""
    where = f" ({failure.where})" if failure.where else ""
    match failure.kind:
        case "TimeUp":
            return f"Your function was stopped after {deadline:g} s{where}. Is there a loop that never ends?"
        case "RecursionError":
            return f"Your function calls itself without end{where}: it needs a case that returns without calling itself."
        case "SystemExit":
            return f"Your function tried to end the whole program{where}: use `return` in place of `exit()`."
        case kind:
            return f"Your function raised `{kind}`{where}" + (f":\n{failure.text}" if failure.text else ".")


# ---- after the calls --------------------------------------------------------------------------------------------------


def _diagnosis(exercise: Exercise, calls: list[tuple]) -> str | None:
    """The most useful thing to say about the calls, or None when every one is right."""
    problems = [_problem(exercise, expected, got) for _, _, expected, got in calls]
    mutation = next(filter(None, (_mutation(exercise, *call[1:]) for call in calls)), None)
    if any(problems):
        value = _named_misconception(exercise, calls) or next(filter(None, problems))
        return f"{value}\n{mutation}" if mutation else value
    return mutation


def _problem(exercise: Exercise, expected: guard.Outcome, got: guard.Outcome) -> str | None:
    """How the returned value differs; `compare` of the exercise decides where it has one."""
    try:
        if exercise.compare:
            return exercise.compare(expected.value, got.value)
        return difference(expected.value, got.value, rtol=exercise.rtol, atol=exercise.atol)
    except Exception as error:  # an object that cannot even be compared is not the answer
        return f"Your result ({describe(got.value)}) could not be compared with the expected one: {type(error).__name__}."


def _named_misconception(exercise: Exercise, calls: list[tuple]) -> str | None:
    """The message of the first misconception that gives the learner's answer wherever it differs from the reference."""
    for misconception in exercise.misconceptions:
        outcomes = [run(exercise, misconception.wrong, trial, given) for trial, given, *_ in calls]
        telling = [
            (wrong, got)
            for wrong, (_, _, expected, got) in zip(outcomes, calls, strict=True)
            if not wrong.failure and _problem(exercise, expected, wrong)
        ]
        if telling and all(_problem(exercise, wrong, got) is None for wrong, got in telling):
            return misconception.message
    return None


def _mutation(exercise: Exercise, given: Arguments, expected: guard.Outcome, got: guard.Outcome) -> str | None:
    """Which input was changed though it should not be, or not changed as it should be."""
    names = list(inspect.signature(exercise.reference).parameters)
    before, right, yours = (_by_name(names, call) for call in (given, expected, got))
    for name, original in before.items():
        if _differs(original, right[name], tolerance=0):
            if _differs(right[name], yours[name], tolerance=1e-4):
                return f"After the call the argument `{name}` does not hold what it should: it is meant to be updated in place."
        elif _differs(original, yours[name], tolerance=0):
            return f"Your function changes its input `{name}` in place: work on a copy."
    return None


def _by_name(names: list[str], call: Arguments | guard.Outcome) -> dict[str, Any]:
    labels = names + [f"argument {i + 1}" for i in range(len(names), len(call.args))]
    return dict(zip(labels, call.args, strict=False)) | dict(call.kwargs)


def _differs(before: Any, after: Any, tolerance: float) -> bool:
    """Whether an input changed. Objects we cannot look into (iterators, generators of random numbers) are taken as unchanged."""
    try:
        return difference(before, after, rtol=tolerance, atol=tolerance / 10, opaque=True) is not None
    except Exception:
        return False
