"""How a display reaches the reader: one mime bundle, from HTML down to plain text.

Does:     finds the running IPython shell without importing IPython; prints where there is none; lets the widget
          frame collect displays instead of showing them.
Leaves out: what the displays look like (cards, code, tables, pictures).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

__all__ = ["collected", "display", "inline_html", "is_notebook", "shell"]

_collectors: list[list[str]] = []


def shell() -> Any:
    """The running IPython shell, or None; never imports IPython by itself."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def is_notebook() -> bool:
    """True where displays reach a front end that renders HTML (a Jupyter, VS Code or Colab kernel)."""
    return getattr(shell(), "kernel", None) is not None


def display(bundle: dict[str, Any]) -> None:
    """Show a mime bundle (it needs text/html and text/plain) in IPython, or print its plain text elsewhere."""
    if _collectors:
        _collectors[-1].append(bundle["text/html"])
    elif shell() is None:
        print(_printable(bundle["text/plain"]))
    else:
        from IPython.display import display as show_bundle

        show_bundle(bundle, raw=True)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Within this block displays are appended, as HTML, to the list it gives."""
    _collectors.append([])
    try:
        yield _collectors[-1]
    finally:
        _collectors.pop()


def inline_html(text: str) -> str:
    """Plain text as HTML: escaped, `code` marked up, line breaks and indentation kept."""
    marked = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))
    indented = re.sub(r"^ +", lambda spaces: "&nbsp;" * len(spaces[0]), marked, flags=re.MULTILINE)
    return indented.replace("\n", "<br>")


def _printable(text: str) -> str:
    """`text` with what the terminal cannot encode replaced (an old Windows console lacks ✓)."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)
