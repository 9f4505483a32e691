"""Exercises: what is accepted, what is said of what is not, and that nothing a learner writes stops the notebook."""

import dataclasses
import inspect
import itertools
import random
import re
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from llmcourse import exercise as exercises
from llmcourse import show
from llmcourse.exercise import (
    Arguments,
    Exercise,
    Misconception,
    Progress,
    Verdict,
    all_exercises,
    check,
    exercise,
    get,
    grade,
    grading,
    hint,
    register,
    solution,
)
from llmcourse.exercise.grading import difference, guard, unfinished

ID = "demo/softmax"


def softmax(x, dim=-1):
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


def columns(x, dim=-1):
    return softmax(x, 0)


def exponentials(x, dim=-1):
    return x.exp()


def shares(x, dim=-1):
    return x / x.sum(dim, keepdim=True)


TASK = Exercise(
    ID,
    softmax,
    lambda trial: (torch.randn(3, 4 + trial),),
    misconceptions=(
        Misconception(columns, "You normalise over columns."),
        Misconception(exponentials, "You do not normalise."),
        Misconception(shares, "You forgot the exponential."),
    ),
    hints=("Think.", "Exponentiate.", "Divide."),
    title="Softmax",
    minutes=7,
    difficulty=2,
)
QUICK = dataclasses.replace(TASK, deadline=0.2)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A registry of its own for every test, with one exercise."""
    exercises.all_exercises()  # topics register once, when they are imported: not into a test's registry
    monkeypatch.setattr(exercises, "_REGISTRY", {ID: TASK})
    monkeypatch.setattr(exercises, "_OPENED", {})


@pytest.fixture
def cards(monkeypatch):
    """Every card shown: (status, title, body)."""
    seen = []
    monkeypatch.setattr(show, "card", lambda status, title, body="", *, extra=None: seen.append((status, title, body)))
    return seen


def task(reference, inputs, **more):
    return Exercise("demo/other", reference, inputs, **more)


def message(fn, of=TASK):
    verdict = grade(of, fn)
    assert verdict.state == "wrong"
    return verdict.message


# ---- the three outcomes ----


def test_a_correct_answer_is_the_learners_own_function_from_then_on(cards):
    @exercise(ID)
    def mine(x):
        return x.softmax(-1)

    assert mine.__qualname__.endswith("mine") and mine is not softmax
    assert cards[0][:2] == ("solved", "Softmax: correct")


def test_a_wrong_answer_gets_a_diagnosis_and_the_packages_function(cards):
    @exercise(ID)
    def mine(x):
        return x.exp()

    assert mine is softmax
    assert cards[0][:2] == ("wrong", "Softmax: not yet")
    assert "You do not normalise." in cards[0][2] and f'hint("{ID}")' in cards[0][2]


def test_an_untouched_exercise_gets_the_packages_function_and_says_the_effort(cards):
    @exercise(ID)
    def mine(x): ...

    assert mine is softmax
    assert cards[0][0] == "todo" and "●●○ 7 min" in cards[0][1]


def test_grading_on_definition_is_recorded(cards):
    for answer in (lambda x: x, softmax, lambda x: x):
        exercise(ID)(answer)
    assert (Progress().read()[ID].state, Progress().read()[ID].attempts) == ("solved", 3)


def test_grading_goes_on_where_progress_cannot_be_saved(cards, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("LLMCOURSE_HOME", str(tmp_path / "file" / "home"))
    answer = lambda x: x.softmax(-1)  # noqa: E731
    assert exercise(ID)(answer) is answer


# ---- unfinished ----

STUBS = {
    "dots": "...",
    "docstring": '"""Write me."""',
    "docstring and dots": '"""Write me."""\n...  # your code',
    "pass": "pass",
    "not implemented": "raise NotImplementedError",
    "not implemented, with a message": '"""Doc."""\nraise NotImplementedError("your turn")',
    "assigned dots": "y = ...\nreturn y",
    "returned dots": "return ...",
}
PARTLY = {
    "annotated dots": "y: int = ...\nreturn y",
    "tuple of dots": "y, z = ..., ...\nreturn y",
    "dots after code": "y = x + 1\n...\nreturn y",
    "dots in a branch": "if x.ndim > 2:\n    ...\nreturn x",
    "dots as an argument": "return torch.softmax(..., dim=-1)",
    "dots as a keyword": "return x.softmax(dim=...)",
    "dots in a formula": "return x / ...",
}
REAL = {
    "index": "return x[..., 0]",
    "index in an assignment": "y = x[..., 0] * 2\nreturn y",
    "index assigned to": "y = x.clone()\ny[..., 0] = 1\nreturn y",
    "return none": "return x and None",
    "comparison": "return x is ...",
    "not implemented in a branch": "if x is None:\n    raise NotImplementedError\nreturn x",
    "other error": 'raise ValueError("no")',
}


def from_source(body, tmp_path=None):
    """A function of this body: with its source in a file, or without any."""
    source = "import torch\n\n\ndef answer(x):\n" + textwrap.indent(body, "    ") + "\n"
    name = "<nowhere>"
    if tmp_path:
        name = str(tmp_path / "answer.py")
        (tmp_path / "answer.py").write_text(source, encoding="utf-8")
    space = {}
    exec(compile(source, name, "exec"), space)
    return space["answer"]


@pytest.mark.parametrize("body", [*STUBS.values(), *PARTLY.values()], ids=[*STUBS, *PARTLY])
def test_a_function_with_something_left_to_write_is_unfinished(body, tmp_path):
    assert unfinished(from_source(body, tmp_path)) is not None


@pytest.mark.parametrize("body", STUBS.values(), ids=STUBS)
def test_an_untouched_function_is_recognised_without_its_source(body):
    assert unfinished(from_source(body)) is not None


@pytest.mark.parametrize("body", REAL.values(), ids=REAL)
def test_a_real_attempt_is_not_unfinished(body, tmp_path):
    assert unfinished(from_source(body, tmp_path)) is None
    assert unfinished(from_source(body)) is None


def test_returning_none_is_an_answer_where_the_source_tells_it_from_a_stub(tmp_path):
    assert unfinished(from_source("return None", tmp_path)) is None


def test_the_line_left_to_write_is_named(tmp_path):
    assert unfinished(from_source("y = x + 1\nz = ...\nreturn y", tmp_path)) == "Line 6 is still `...`."


def test_a_stub_below_another_decorator_is_still_untouched():
    @torch.no_grad()
    def answer(x):
        """Write me."""
        ...

    assert grade(TASK, answer).state == "untouched"


def test_a_lambda_is_an_answer():
    assert grade(TASK, lambda x: x.softmax(-1)).state == "solved"


# ---- what is wrong, each in its own words ----


@pytest.mark.parametrize("misconception", TASK.misconceptions, ids=lambda each: each.wrong.__name__)
def test_a_known_mistake_is_named(misconception):
    assert message(misconception.wrong) == misconception.message


def test_a_mistake_is_named_where_it_matters_even_if_it_is_right_elsewhere():
    signs = task(abs, lambda trial: (trial - 1,), misconceptions=(Misconception(lambda x: x, "You kept the sign."),))
    assert message(lambda x: x, signs) == "You kept the sign."
    assert message(lambda x: 7, signs) != "You kept the sign."


def test_a_misconception_that_never_differs_is_never_named():
    doubling = task(lambda x: 2 * x, lambda trial: (trial,), misconceptions=(Misconception(lambda x: x + x, "Never."),))
    assert message(lambda x: 3 * x, doubling) != "Never."


def test_an_error_shows_the_learners_own_line():
    def answer(x):
        y = x + 1
        return torch.zeros(2) @ torch.zeros(3) + y

    said = message(answer)
    line = answer.__code__.co_firstlineno + 2
    assert f"raised `RuntimeError` (line {line}: `return torch.zeros(2) @ torch.zeros(3) + y`)" in said and "inconsistent" in said


def test_an_error_deep_in_a_library_is_still_pinned_to_the_learners_line():
    def answer(x):
        return textwrap.dedent(x)

    assert "return textwrap.dedent(x)" in message(answer)


def test_an_error_in_a_helper_names_the_helpers_line():
    def helper():
        return {}["missing"]

    def answer(x):
        return helper()

    assert 'return {}["missing"]' in message(answer)


def test_an_exception_that_cannot_be_printed_is_still_reported():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    def answer(x):
        raise Odd

    assert "raised `Odd`" in message(answer)


def test_a_long_error_is_shortened():
    def answer(x):
        raise ValueError("x" * 10_000)

    assert len(message(answer)) < 600


def test_exit_is_refused_with_advice():
    def answer(x):
        sys.exit(3)

    assert "use `return`" in message(answer)


def test_endless_recursion_has_its_own_message():
    def answer(x):
        return answer(x)

    assert "calls itself without end" in message(answer)


def loop(x):
    while True:
        pass


def loop_on_one_line(x):
    return [0 for _ in iter(int, 1)]


def loop_of_calls(x):
    while True:
        torch.relu(x)


def loop_that_swallows(x):
    while True:
        try:  # noqa: SIM105
            loop(x)
        except:  # noqa: E722
            pass


def loop_that_swallows_inside(x):
    while True:
        try:
            while True:
                pass
        except BaseException as error:
            str(error)


def loop_in_a_generator(x):
    return sum(1 for _ in iter(int, 1))


@pytest.mark.parametrize(
    "answer", [loop, loop_on_one_line, loop_of_calls, loop_that_swallows, loop_that_swallows_inside, loop_in_a_generator]
)
def test_an_endless_loop_is_stopped_and_named(answer):
    assert "stopped after 0.2 s (line" in message(answer, QUICK)


def test_a_slow_answer_within_the_deadline_is_accepted():
    def answer(x):
        time.sleep(0.01)
        return x.softmax(-1)

    assert grade(QUICK, answer).state == "solved"


def test_the_learners_prints_are_shown_and_do_not_fail(capsys, cards):
    @exercise(ID)
    def mine(x):
        print("shape", tuple(x.shape))
        print("to stderr", file=sys.stderr)
        return x.softmax(-1)

    assert cards[0][0] == "solved"
    assert "shape (3, 4)\nto stderr" in cards[0][2] and "shape (3, 5)" not in cards[0][2]
    assert capsys.readouterr() == ("", "")


def test_a_flood_of_prints_is_bounded():
    def answer(x):
        for _ in range(1000):
            print("x" * 1000)
        return x.softmax(-1)

    verdict = grade(TASK, answer)
    assert verdict.state == "solved" and len(verdict.printed) < 2_100 and "characters more" in verdict.printed


def test_prints_before_an_error_are_kept():
    def answer(x):
        print("before")
        raise ValueError

    assert grade(TASK, answer).printed == "before\n"


def test_changing_an_input_in_place_is_named():
    def answer(x):
        x -= x.amax(-1, keepdim=True)
        return x.softmax(-1)

    assert message(answer) == "Your function changes its input `x` in place: work on a copy."


def test_a_wrong_result_is_told_before_the_changed_input():
    def answer(x):
        return x.exp_()

    assert message(answer).splitlines() == [
        "You do not normalise.",
        "Your function changes its input `x` in place: work on a copy.",
    ]


def test_a_changed_list_or_dict_or_module_counts_as_changed():
    module = torch.nn.Linear(1, 1)
    several = task(lambda a, b, c: 0, lambda trial: ([trial], {"k": trial}, module))

    def grows(a, b, c):
        a.append(1)
        return 0

    def deletes(a, b, c):
        b.clear()
        return 0

    def trains(a, b, c):
        c.weight.data += 1
        return 0

    for name, answer in zip("abc", (grows, deletes, trains), strict=True):
        assert f"input `{name}`" in message(answer, several)


def test_an_input_that_is_meant_to_be_updated_must_be_updated():
    def reference(cache, x):
        cache.append(x)
        return len(cache)

    cached = task(reference, lambda trial: ([0] * trial, trial))
    assert "`cache` does not hold what it should" in message(lambda cache, x: len(cache) + 1, cached)

    def answer(cache, x):
        cache += [x]
        return len(cache)

    assert grade(cached, answer).state == "solved"


def test_a_small_update_in_place_counts_too():
    def reference(x):
        x += 1e-3

    nudged = task(reference, lambda trial: (torch.randn(3),))
    assert "`x` does not hold what it should" in message(lambda x: [].clear(), nudged)
    assert "changes its input `x`" in message(lambda x: x.add_(1e-6).softmax(-1))


def test_inputs_are_fresh_for_every_call():
    kept = [torch.zeros(3)]
    shared = task(lambda x: x + 1, lambda trial: (kept[0] + 0 if trial else kept[0],))

    def answer(x):
        x += 5
        return x - 4

    grade(shared, answer)
    assert kept[0].eq(0).all()


def test_nan_is_named_with_how_many():
    def answer(x):
        y = x.softmax(-1)
        y[0, 0] = torch.nan
        return y

    assert message(answer) == "Your result contains NaN (1 of 12 entries)."


def test_infinite_values_are_named():
    assert message(lambda x: x / 0 * x.sign()) == "Your result contains infinite values (12 of 12 entries)."


def test_a_wrong_shape_shows_both():
    assert message(lambda x: x.softmax(-1)[0]) == "Your result has shape (4,), expected (3, 4)."


def test_a_wrong_dtype_shows_both():
    assert message(lambda x: x.softmax(-1).double()) == "Your result has dtype float64, expected float32."


def test_a_forgotten_return_is_guessed():
    def answer(x):
        x.softmax(-1)

    assert message(answer) == "Your result is `None`: did you forget `return`?"


def test_yield_in_place_of_return_is_guessed():
    def answer(x):
        yield x.softmax(-1)

    assert "`yield` in place of `return`" in message(answer)


def test_a_numpy_array_is_no_tensor():
    assert "a ndarray of shape (3, 4), expected a Tensor of shape (3, 4)" in message(lambda x: x.softmax(-1).numpy())


def test_arguments_that_do_not_fit_are_named():
    def answer(logits, temperature):
        return logits

    said = message(answer)
    assert "yours are `(logits, temperature)`, expected are `(x, dim=-1)`" in said
    assert "Missing: `x`." in said and "Not expected: `logits`, `temperature`." in said


def test_own_names_and_extra_defaults_are_welcome():
    assert grade(TASK, lambda logits, axis=-1, safe=True: logits.softmax(axis)).state == "solved"


def test_a_class_is_refused_with_advice(cards):
    @exercise(ID)
    class Answer:
        pass

    assert Answer is softmax and "is a class" in cards[0][2]


@pytest.mark.parametrize("thing", [3, None, "softmax", torch.zeros(2)])
def test_what_cannot_be_called_is_refused_with_advice(thing):
    assert "needs a function" in message(thing)


def test_async_is_refused_with_advice():
    async def answer(x):
        return x

    assert "plain `def`" in message(answer)


def test_an_answer_that_ignores_its_inputs_is_wrong():
    first = softmax(grading.make_inputs(TASK, 0).args[0])
    same_size = dataclasses.replace(TASK, inputs=lambda trial: (torch.randn(3, 4),))
    first = softmax(grading.make_inputs(same_size, 0).args[0])
    assert grade(same_size, lambda x: first).state == "wrong"


def test_an_answer_of_chance_is_wrong():
    assert grade(TASK, lambda x: torch.rand_like(x).softmax(-1)).state == "wrong"


def test_hostile_objects_are_merely_wrong():
    class Hostile:
        def __eq__(self, other):
            raise RuntimeError

        def __repr__(self):
            raise RuntimeError

        __hash__ = None

    for value in (Hostile(), [Hostile()], {"a": Hostile()}, 10**6000):
        assert grade(TASK, lambda x, value=value: value).state == "wrong"
        assert grade(task(lambda x: 5, lambda trial: (trial,)), lambda x, value=value: value).state == "wrong"


# ---- what must stay as it was ----


def test_a_recursive_answer_finds_itself_before_its_name_is_bound(tmp_path):
    body = "return 1 if x < 2 else x * answer(x - 1)"
    answer = from_source(body, tmp_path)
    space = answer.__globals__
    factorial = task(lambda x: [1, 1, 2, 6][x], lambda trial: (trial,))
    for before in ({}, {"answer": lambda x: 0}):
        space.pop("answer", None)
        space.update(before)
        assert grade(factorial, answer).state == "solved"
        assert {name: space[name] for name in space if name == "answer"} == before


def test_the_global_random_states_do_not_move():
    def answer(x):
        torch.rand(3), np.random.rand()
        return x.softmax(-1)

    torch.manual_seed(1), np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    grade(TASK, answer)
    assert (torch.rand(1), np.random.rand()) == expected


def test_pythons_own_random_state_does_not_move_either():
    before = random.getstate()  # not through grade(): the type checker of these tests draws from it too
    with guard.isolated(3):
        first = random.random()
    assert random.getstate() == before
    with guard.isolated(3):
        assert random.random() == first


def test_a_function_that_samples_draws_what_the_reference_draws():
    sampling = task(lambda p: torch.multinomial(p, 5, replacement=True), lambda trial: (torch.rand(4) + 0.1,))
    assert grade(sampling, lambda p: torch.multinomial(p / p.sum(), 5, replacement=True)).state == "solved"


def test_grading_is_the_same_whatever_was_drawn_before():
    seen = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        seen.append(grading.make_inputs(TASK, 2).args[0])
    assert torch.equal(*seen)


def test_torchs_settings_and_the_recursion_limit_are_restored():
    def answer(x):
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        sys.setrecursionlimit(5_000)
        raise ValueError

    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), sys.getrecursionlimit())
    grade(TASK, answer)
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), sys.getrecursionlimit()) == before


def test_grading_can_differentiate_even_inside_no_grad():
    gradient = task(lambda x: torch.autograd.grad((x.requires_grad_() ** 2).sum(), x)[0], lambda trial: (torch.randn(3),))
    with torch.no_grad():
        assert grade(gradient, lambda x: 2 * x).state == "solved"
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("answer", [softmax, loop, loop_that_swallows])
def test_a_debuggers_trace_function_is_put_back(answer):
    def trace(frame, event, arg):
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        grade(QUICK, answer)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


def test_the_users_own_interrupt_passes_through_and_leaves_all_in_order(capsys):
    def answer(x):
        torch.manual_seed(9)
        raise KeyboardInterrupt

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    trace, out = sys.gettrace(), sys.stdout
    with pytest.raises(KeyboardInterrupt):
        grade(TASK, answer)
    assert sys.gettrace() is trace and sys.stdout is out and torch.equal(torch.rand(1), expected)


def test_grading_works_in_another_thread():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(grade(QUICK, loop)))
    thread.start()
    thread.join()
    assert "stopped after" in verdicts[0].message


def test_a_failure_keeps_no_frame_alive():
    assert {type(value) for value in dataclasses.asdict(guard.call(loop, (0,), deadline=0.05).failure).values()} == {str}


def test_a_reference_that_fails_is_the_courses_fault():
    with pytest.raises(RuntimeError, match="demo/other: the reference fails on trial 0: ZeroDivisionError"):
        grade(task(lambda x: 1 / 0, lambda trial: (trial,)), lambda x: x)


# ---- inputs ----


@pytest.mark.parametrize("given", [(2, 3), {"a": 2, "b": 3}, Arguments(2, b=3)], ids=["tuple", "dict", "Arguments"])
def test_inputs_come_by_position_by_name_or_both(given):
    assert grade(task(lambda a, b: a - b, lambda trial: given), lambda a, b: -(b - a)).state == "solved"


def test_inputs_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="return a tuple, a dict or Arguments"):
        grade(task(lambda a: a, lambda trial: 3), lambda a: a)


def test_a_generator_is_compared_element_by_element():
    def reference(n):
        yield from range(n)

    counting = task(reference, lambda trial: (trial,))
    assert grade(counting, lambda n: (i for i in range(n))).state == "solved"
    assert grade(counting, lambda n: list(range(n))).state == "solved"
    assert message(lambda n: (0 for _ in range(n)), counting) == "Your result[1] is 0, expected 1."
    endless = dataclasses.replace(counting, deadline=0.2)

    def forever(n):
        while True:
            yield 1

    assert "stopped after" in message(forever, endless)


def test_an_exercise_may_compare_in_its_own_way():
    lengths = task(lambda x: "abc", lambda trial: (trial,), compare=lambda a, b: None if len(a) == len(b) else "wrong length")
    assert grade(lengths, lambda x: "xyz").state == "solved"
    assert message(lambda x: "xy", lengths) == "wrong length"
    assert "could not be compared" in message(lambda x: 5, lengths)


# ---- comparison ----


@dataclasses.dataclass
class Point:
    x: float
    y: list


T = torch.tensor


@pytest.mark.parametrize(
    "expected, got",
    [
        (1, 1),
        (True, True),
        (1.0, 1.00005),
        (1.0, 1),
        (1.0, np.float32(1)),
        (3, np.int64(3)),
        (float("nan"), float("nan")),
        (float("inf"), float("inf")),
        ("a", "a"),
        (None, None),
        ([1, (2.0, "x")], (1, [2.0, "x"])),
        ({"a": [1], "b": 2}, {"b": 2, "a": [1]}),
        ({1, 2}, {2, 1}),
        (T([1.0]), T([1.00005])),
        (T([float("nan"), -float("inf")]), T([float("nan"), -float("inf")])),
        (T([1, 2]), T([1, 2])),
        (T([True]), T([True])),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
        (T([1 + 1j]), T([1 + 1j])),
        (T([1.0], dtype=torch.bfloat16), T([1.0], dtype=torch.bfloat16)),
        (np.array(["a", "b"]), np.array(["a", "b"])),
        (np.array([1.0]), np.array([1.00005])),
        (Point(1.0, [2]), Point(1.00001, [2])),
        (torch.nn.Linear(2, 2, bias=False).requires_grad_(False), None),
    ],
)
def test_equal_values_are_equal(expected, got):
    assert difference(expected, expected if isinstance(expected, torch.nn.Module) else got) is None


@pytest.mark.parametrize(
    "expected, got, words",
    [
        (1, 2, "is 2, expected 1 (2 × the expected value)"),
        (4, -4, "-1 × the expected value"),
        (10.0, 2.5, "is 2.5, expected 10 (0.25 × the expected value)"),
        (10.0, 3.7, "is 3.7, expected 10."),
        (1.0, 1.001, "is 1.001, expected 1."),
        (1, 1.0, "`1.0` (float), expected `1` (int)"),
        (1, True, "`True` (bool)"),
        (True, 1, "`1` (int), expected `True` (bool)"),
        (1.0, True, "`True` (bool)"),
        (1.0, float("nan"), "is NaN"),
        (1.0, float("inf"), "is inf"),
        (float("inf"), 1.0, "expected inf"),
        (1.0, T(1.0), "`.item()`"),
        (1.0, None, "did you forget `return`"),
        ("a", "b", "`'b'` (str), expected `'a'` (str)"),
        ("a", 1, "expected `'a'` (str)"),
        ("a", b"a", "(bytes)"),
        ([1, 2], [1], "has 1 elements, expected 2"),
        ([1, [2, 3]], [1, [2, 4]], "Your result[1][1] is 4, expected 3"),
        ([1], 1, "expected a list of 1 elements"),
        ((1, 2), (1, None), "Your result[1] is `None`."),
        ({"a": 1}, {}, "lacks key 'a'"),
        ({}, {"a": 1}, "has the unexpected key 'a'"),
        ({"a": 1}, {"a": 3.5}, "Your result['a'] is"),
        ({"a": 1}, [("a", 1)], "expected a dict"),
        ({1}, {1, 2}, "should not contain 2"),
        ({1, 2}, {1}, "lacks 2"),
        ({1}, [1], "expected a set"),
        (None, 1, "expected `None`"),
        (T([1, 2, 3]), T([1, 2, 4]), "differs in 1 of 3 entries, most at [2]: 4, expected 3"),
        (T([[1.0, 2.0], [3.0, 9.0]]), T([[1.0, 2.5], [3.0, 7.0]]), "in 2 of 4 entries, most at [1, 1]: 7, expected 9"),
        (T([1.0, 2.0, 3.0]), T([2.0, 4.0, 6.0]), "is 2 × the expected value everywhere"),
        (T([1.0, 2.0, 4.0]), T([-1.0, -2.0, -4.0]), "is -1 × the expected value everywhere"),
        (T([1.0, 2.0, 3.0]), T([1.5, 2.5, 3.5]), "off by a constant: every entry is +0.5 away"),
        (T([1.0, 2.0, 3.0]), T([0.0, 0.0, 0.0]), "is zero everywhere"),
        (T([[1.0, 2.0], [7.0, 4.0]]), T([[1.0, 7.0], [2.0, 4.0]]), "is the transpose"),
        (T([1.0, 2.0]), T([1.0, float("nan")]), "contains NaN (1 of 2 entries)"),
        (T([1.0, 2.0]), T([1.0, float("inf")]), "contains infinite values (1 of 2 entries)"),
        (T([1.0, -float("inf")]), T([1.0, 5.0]), "at [1]: 5, expected -inf"),
        (T(1.0), T(3.0), "differs in 1 of 1 entries: 3, expected 1"),
        (T([1.0]), [1.0], "expected a Tensor of shape (1,)"),
        (T([1.0]), torch.zeros(1, device="meta"), "on device meta, expected cpu"),
        (T([True]), T([False]), "in 1 of 1 entries"),
        (np.array([1.0, 2.0]), np.array([1.0, 5.0]), "at [1]: 5, expected 2"),
        (np.array(["a"]), np.array(["b"]), "[0] is `'b'`"),
        (np.array([1.0]), T([1.0]), "expected a ndarray"),
        (Point(1.0, [2]), Point(1.0, [3]), "['y'][0] is 3"),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), "['weight']"),
        (torch.nn.Linear(2, 2), torch.nn.LayerNorm(2), "type `LayerNorm`"),
        (object(), 1, "`1` (int), expected an object"),
    ],
)
def test_each_difference_is_told_in_its_own_words(expected, got, words):
    assert words in difference(expected, got)


def test_the_tolerance_is_the_exercises():
    loose = dataclasses.replace(TASK, rtol=0.1, atol=0.1)
    assert grade(loose, lambda x: x.softmax(-1) + 0.01).state == "solved"
    assert grade(TASK, lambda x: x.softmax(-1) + 0.01).state == "wrong"


def test_integers_are_exact_whatever_the_tolerance():
    assert difference(T([1000]), T([1001]), rtol=1, atol=10) and difference(1000, 1001, rtol=1, atol=10)


def test_a_list_that_holds_itself_is_wrong_and_no_more():
    ring = []
    ring.append(ring)
    assert grade(task(lambda x: [[1]], lambda trial: (trial,)), lambda x: ring).state == "wrong"


# ---- hints, solution, registry ----


def test_hints_open_one_by_one_and_stay_open(cards):
    for _ in range(4):
        hint(ID)
    assert [title for _, title, _ in cards] == [
        "Softmax: hint 1 of 3",
        "Softmax: hint 2 of 3",
        "Softmax: hint 3 of 3",
        "Softmax: no more hints",
    ]
    assert cards[1][2] == "1. Think.\n2. Exponentiate." and f'solution("{ID}")' in cards[3][2]
    assert Progress().read()[ID].hints == 3


def test_an_exercise_without_hints_points_to_the_solution(cards):
    exercises._REGISTRY[ID] = dataclasses.replace(TASK, hints=())
    hint(ID)
    assert cards[0][1] == "Softmax: no more hints"


def test_the_solution_is_the_packages_code_and_is_recorded(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "source", shown.append)
    solution(ID)
    assert shown == [softmax] and Progress().read()[ID].solution_seen


@pytest.mark.parametrize("ask", [exercise, hint, solution, get])
def test_an_unknown_id_names_the_nearest_and_lists_the_topic(ask):
    with pytest.raises(KeyError, match=r"no exercise 'demo/sofmax'; did you mean 'demo/softmax'.*has: demo/softmax"):
        ask("demo/sofmax")


@pytest.mark.parametrize("id", ["nowhere/x", "", "os.path/x", "../x"])
def test_an_unknown_topic_is_said_to_be_one(id):
    with pytest.raises(KeyError, match="there is no topic"):
        get(id)


def test_looking_up_an_id_imports_its_topic(monkeypatch):
    for name in [name for name in sys.modules if name == "llmcourse.start_here.exercises"]:
        monkeypatch.delitem(sys.modules, name)
    assert get("start_here/temperature").id == "start_here/temperature"


def test_exercises_are_listed_by_topic_or_all_together(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("llmcourse.") and name.endswith(".exercises")]:
        monkeypatch.delitem(sys.modules, name)
    assert [each.id for each in all_exercises("demo")] == [ID]
    assert {each.id.split("/")[0] for each in all_exercises()} >= {"demo", "start_here"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"id": "Softmax"}, "malformed"),
        ({"id": "a/b/c"}, "malformed"),
        ({"difficulty": 4}, "outside 1–3"),
        ({"trials": 2}, "at least 3"),
        ({"reference": columns}, "is taken by"),
    ],
)
def test_a_malformed_exercise_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        register(dataclasses.replace(TASK, **change))


def test_registering_again_replaces():
    register(dataclasses.replace(TASK, minutes=9))
    assert get(ID).minutes == 9


def test_a_title_is_made_from_the_id_where_none_is_given():
    assert register(Exercise("demo/rms_norm", softmax, TASK.inputs)).title == "Rms norm"


# ---- the self-test ----


def test_a_sound_exercise_passes_its_self_test():
    assert check(TASK) == []


@pytest.mark.parametrize(
    "reference, inputs", [(lambda n: n * n, lambda trial: (trial + 2,)), (lambda s: s[::-1], lambda trial: {"s": f"ab{trial}"})]
)
def test_the_self_test_suits_numbers_and_text(reference, inputs):
    problems = check(task(reference, inputs))
    assert problems == ["0 misconceptions; at least 3 are needed", "no hint"]


def broken(**change):
    return "\n".join(check(dataclasses.replace(TASK, **change)))


COUNT = itertools.count()


def with_first(wrong, message="You normalise over columns."):
    return {"misconceptions": (Misconception(wrong, message), *TASK.misconceptions[1:])}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"misconceptions": TASK.misconceptions[:2]}, "2 misconceptions; at least 3"),
        ({"hints": ()}, "no hint"),
        ({"minutes": 0}, "minutes=0"),
        (with_first(columns, "You do not normalise."), "share a message"),
        (with_first(softmax), r"misconception 1 .* is solved"),
        (with_first(exponentials, "Other."), r"misconceptions 1 and 2 give the same"),
        (with_first(lambda x, dim=-1: x.sum(-1)), "differs from the reference in type, shape, dtype"),
        (with_first(lambda x, dim=-1: softmax(x).double()), "differs from the reference in type, shape, dtype"),
        (with_first(lambda x, dim=-1: x / 0 * 0), "differs from the reference in type, shape, dtype or finiteness"),
        (with_first(lambda x, dim=-1: x.tolist()), "differs from the reference in type"),
        (with_first(lambda x, dim=-1: 1 / 0), r"misconception 1 .* raised `ZeroDivisionError`"),
        ({"inputs": lambda trial: (torch.ones(2, 2),)}, "an answer that ignores its inputs is solved"),
        ({"compare": lambda expected, got: None}, "wrong type is solved"),
        ({"reference": lambda x, dim=-1: torch.full((1,), float(next(COUNT)))}, "the reference is wrong"),
        ({"rtol": 1e9}, "is solved"),
    ],
)
def test_the_self_test_finds_what_is_broken(change, words):
    assert re.search(words, broken(**change))


def test_every_hostile_answer_is_tried():
    names = [name for name, *_ in exercises._hostile(TASK)]
    assert names == [
        "is a stub",
        "raises",
        "loops",
        "prints",
        "returns an object of the wrong type",
        "ignores its inputs",
        "returns NaN",
        "mutates its inputs",
    ]


def test_verdicts_are_values():
    assert grade(TASK, softmax) == Verdict("solved") and inspect.signature(grade).return_annotation in ("Verdict", Verdict)
