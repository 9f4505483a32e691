"""Live source: the very code that runs, highlighted, with the place it lives.

Does:     functions, methods, properties, classes, modules; a slice of their lines; folding. Colours are inline and
          mid-toned, so they read on light and dark pages, and the text still reads where they are stripped.
Leaves out: code typed at a bare Python prompt and code written in C, which have no file to read.
"""

from __future__ import annotations

import functools
import inspect
import sys
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any

from .core import display

__all__ = ["source"]


def source(obj: Any, *, lines: tuple[int, int] | None = None, collapsed: bool = False) -> None:
    """Show the source of a function, method, property, class or module as it stands on disk.

    Args:
        obj: the object; decorators that keep `__wrapped__` are looked through.
        lines: first and last line to show, counted from 1 at the object's own first line, both included.
        collapsed: start folded, showing only the caption.

    Raises:
        TypeError: if the object has no Python source (a number, a builtin, something compiled).
        ValueError: if `lines` falls outside the source.
    """
    text, start, file = _read(obj)
    first, last = lines or (1, len(text.splitlines()))
    _check_lines(first, last, len(text.splitlines()))
    caption = f"{_short(file, obj)}:{start + first - 1}–{start + last - 1}"
    # The whole is highlighted before it is cut, so that a slice out of a docstring keeps its colours.
    shown = "\n".join(_highlight(text).splitlines()[first - 1 : last])
    html = (
        f"<details{'' if collapsed else ' open'}><summary><code>{escape(caption)}</code></summary>"
        f'<pre style="font-family:monospace;font-size:.92em;line-height:1.4;white-space:pre;overflow-x:auto">{shown}</pre>'
        "</details>"
    )
    plain = "\n".join(text.splitlines()[first - 1 : last])
    display({"text/plain": f"# {caption}\n{plain}", "text/html": html})


def _check_lines(first: int, last: int, count: int) -> None:
    if not 1 <= first <= last <= count:
        raise ValueError(f"lines=({first}, {last}) falls outside the source, which has {count} lines; choose 1–{count}")


def _read(obj: Any) -> tuple[str, int, str]:
    """An object's dedented source, its first line number and its file."""
    plain = _function_of(obj)
    try:
        rows, start = inspect.getsourcelines(plain)
        file = inspect.getsourcefile(plain) or "?"
    except (TypeError, OSError) as error:
        raise TypeError(_no_source(obj)) from error
    return dedent("".join(rows)).rstrip("\n"), max(start, 1), file


def _function_of(obj: Any) -> Any:
    """What `obj` wraps: a property's getter, a partial's function, a decorated function's original."""
    if isinstance(obj, property):
        obj = obj.fget
    if isinstance(obj, functools.partial):
        obj = obj.func
    return inspect.unwrap(obj) if callable(obj) else obj


def _no_source(obj: Any) -> str:
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if name is None:
        return f"a {type(obj).__name__} object has no source of its own; show its class: show.source(type(x))"
    return f"{name} has no Python source to show (built in, compiled, or typed at a bare prompt)"


def _short(file: str, obj: Any) -> str:
    """The file below its top package's parent: `llmcourse/peft/lora.py`, whatever the machine."""
    if "ipykernel" in file or Path(file).name.startswith(("<", "ipython-input")):
        return "this notebook"
    module = inspect.getmodule(_function_of(obj))
    top = sys.modules.get(module.__name__.partition(".")[0]) if module else None
    origin = getattr(top, "__file__", None)
    if origin and hasattr(top, "__path__") and Path(file).is_relative_to(Path(origin).parents[1]):
        return Path(file).relative_to(Path(origin).parents[1]).as_posix()
    return Path(file).name


def _highlight(text: str) -> str:
    """Python source as <span>s with inline colours."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(text, PythonLexer(stripnl=False), HtmlFormatter(noclasses=True, nowrap=True, style=_style()))


@functools.cache
def _style() -> Any:
    """Few colours, each with contrast above 4 on white and on near-black; the rest is the page's own."""
    from pygments.style import Style
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    class Calm(Style):
        styles = {  # noqa: RUF012 (the base class declares it)
            Comment: "italic #767676",
            Keyword: "#2277BB",
            Operator.Word: "#2277BB",
            Name.Function: "bold",
            Name.Class: "bold",
            Name.Decorator: "#9A5FA8",
            String: "#A86A10",
            String.Doc: "italic #767676",
            Number: "#158466",
        }

    return Calm
