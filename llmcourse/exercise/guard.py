"""Guard: call a function that may raise, loop, print or mutate its inputs, and come back unharmed.

Does:     works on copies of the inputs; stops endless Python loops at a deadline, in the same thread; captures a bounded
          amount of what is printed; fixes the seeds of random, NumPy and torch; afterwards everything global (seeds, grad
          mode, default dtype, threads, trace function, the function's own name) is as it was. The user's own interrupt
          passes through.
Leaves out: security. Learners run their own code on their own machine, so this is a safety net, not a sandbox. One long
          call into C (a huge matmul, `time.sleep`) cannot be stopped before it returns.
Source:   own; the deadline uses `sys.settrace`.
"""

from __future__ import annotations

import copy
import inspect
import io
import linecache
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, no_type_check

__all__ = ["Failure", "Outcome", "call", "code_of", "isolated"]

PRINT_LIMIT = 2000  # characters kept of what one call prints
TEXT_LIMIT = 300  # characters kept of an exception's message


@dataclass(frozen=True)
class Failure:
    """An exception reduced to text, so that no frame or tensor is kept alive."""

    kind: str  # the exception's class, or "TimeUp"
    text: str
    where: str  # 'line 3: `x = y`' in the learner's own code, or ""


@dataclass(frozen=True)
class Outcome:
    """What one guarded call left behind: its value or failure, its prints, and the inputs as they are afterwards."""

    value: Any = None
    failure: Failure | None = None
    printed: str = ""
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def call(
    fn: Callable, args: Sequence = (), kwargs: Mapping[str, Any] | None = None, *, seed: int = 0,
    deadline: float | None = None, listed: bool = False,
) -> Outcome:  # fmt: skip
    """Call `fn` on deep copies of its inputs and report what happened.

    Args:
        seed: the state of random, NumPy and torch during the call.
        deadline: seconds before an endless Python loop is stopped; None waits for ever.
        listed: turn a generator into a list, inside the deadline.

    Raises:
        KeyboardInterrupt: the user's own, after everything global is restored.
    """
    args, kwargs = copy.deepcopy((tuple(args), dict(kwargs or {})))
    printed, value, failure = _Printed(), None, None
    folder = _folder(code_of(fn))
    with isolated(seed), redirect_stdout(printed), redirect_stderr(printed), _bound_to_its_name(fn):
        try:
            with _Deadline(deadline, folder):
                value = fn(*args, **kwargs)
                value = list(value) if listed and inspect.isgenerator(value) else value
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and TimeUp too: nothing the learner writes may end the notebook
            failure = Failure(type(error).__name__, _text(error), _where(error, folder))
    return Outcome(value, failure, str(printed), args, kwargs)


_HERE = call.__code__.co_filename  # as frames name this file


def code_of(fn: Callable) -> CodeType | None:
    """The code object behind a function, a wrapped function or a callable object; None for builtins."""
    inner = inspect.unwrap(fn)
    return getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)


# ---- state that must survive ------------------------------------------------------------------------------------------


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed random, NumPy and torch inside the block; restore them and torch's global settings after it."""
    numpy = sys.modules.get("numpy")
    python_state, recursion = random.getstate(), sys.getrecursionlimit()
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed % 2**32)
        with _torch_isolated(seed):
            yield
    finally:
        random.setstate(python_state)
        sys.setrecursionlimit(recursion)
        if numpy:
            numpy.random.set_state(numpy_state)


@contextmanager
def _torch_isolated(seed: int) -> Iterator[None]:
    """The torch half of `isolated`: nothing at all while torch has not been imported."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "random"):
        yield
        return
    # An untouched CUDA is left untouched: seeding it would start it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False):  # which switches gradients on, too
        try:
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


@contextmanager
def _bound_to_its_name(fn: Callable) -> Iterator[None]:
    """Let a recursive function find itself: while its decorator runs, its name is not bound yet."""
    inner = inspect.unwrap(fn)
    names, name = getattr(inner, "__globals__", None), getattr(inner, "__name__", "")
    if names is None or "<" in inner.__qualname__:
        yield
        return
    missing = object()
    before = names.get(name, missing)
    names[name] = fn
    try:
        yield
    finally:
        if before is missing:
            names.pop(name, None)
        else:
            names[name] = before


class _Printed(io.TextIOBase):
    """A stream that keeps its first PRINT_LIMIT characters and counts the rest."""

    def __init__(self) -> None:
        self._kept, self._dropped = "", 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        room = PRINT_LIMIT - len(self._kept)
        self._kept += text[:room]
        self._dropped += max(0, len(text) - room)
        return len(text)

    def __str__(self) -> str:
        return self._kept + (f"\n… and {self._dropped:,} characters more" if self._dropped else "")


# ---- the deadline -----------------------------------------------------------------------------------------------------


@no_type_check  # here and below: a checking wrapper around trace functions would itself be traced, and stopped
class TimeUp(BaseException):
    """The deadline has passed. Not an Exception, so that `except Exception` does not swallow it."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__("deadline passed")
        self.deadline = deadline

    def __del__(self) -> None:
        # A bare `except:` has swallowed it, and Python drops a trace function that raised: put it back, to raise again.
        if not self.deadline.over:
            self.deadline.rearm(sys._getframe(1))


@no_type_check
class _Deadline:
    """Raises TimeUp in the learner's code when time is up: at every line of it, at every call elsewhere."""

    def __init__(self, seconds: float | None, folder: str) -> None:
        self.seconds, self.folder, self.over = seconds, folder, False

    def __enter__(self) -> None:
        if self.seconds is not None:
            self._previous = sys.gettrace()
            self._end = time.perf_counter() + self.seconds
            sys.settrace(self._on_call)

    def __exit__(self, *_: object) -> None:
        self.over = True
        if self.seconds is not None:
            sys.settrace(self._previous)

    def _check(self) -> None:
        if not self.over and time.perf_counter() > self._end:
            raise TimeUp(self)

    def _on_call(self, frame: FrameType, event: str, arg: object) -> Callable | None:
        if frame.f_code.co_filename == _HERE:
            return None
        self._check()
        # Line events cost time: only the learner's own code pays it.
        return self._on_line if _folder(frame.f_code) == self.folder else None

    def _on_line(self, frame: FrameType, event: str, arg: object) -> Callable:
        self._check()
        return self._on_line

    def rearm(self, frame: FrameType | None) -> None:
        """Trace again, in `frame` and in every caller that belongs to the learner."""
        while frame is not None:
            if _folder(frame.f_code) == self.folder:
                frame.f_trace = self._on_line
            frame = frame.f_back
        sys.settrace(self._on_call)  # last: any call after it would raise in here


# ---- where and what went wrong ----------------------------------------------------------------------------------------


@no_type_check
def _folder(code: CodeType | None) -> str:
    """The folder of a code's file. All cells of one Jupyter kernel share it, so helpers in other cells count as the learner's."""
    return os.path.dirname(code.co_filename) if code else "<builtin>"


def _where(error: BaseException, folder: str) -> str:
    """The deepest line of the learner's own code in the traceback: a library's line would teach nothing."""
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if _folder(code) == folder and code.co_filename != _HERE:
            line = linecache.getline(code.co_filename, trace.tb_lineno).strip()
            place = f"line {trace.tb_lineno}" + (f": `{line}`" if line else "")
        trace = trace.tb_next
    return place


def _text(error: BaseException) -> str:
    """The exception's message, shortened; its own `__str__` may fail."""
    try:
        text = str(error)
    except Exception:
        return "(its message could not be read)"
    return text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + " …"
