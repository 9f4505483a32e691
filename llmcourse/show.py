"""What a notebook shows: cards, live source, figures with alt text, tables, attention maps, one widget frame.

Does:     every display is one bundle of text/html and text/plain; inside JupyterLab, VS Code, Colab, GitHub and a
          bare terminal each front end takes the richest form it knows. Works in light and dark themes, and where
          inline styles are stripped. All text is escaped.
Leaves out: interactive plots, animation, anything that needs JavaScript of its own.
Source:   colours of Okabe & Ito 2008, "Color Universal Design".
"""

from __future__ import annotations

import re
import sys
from html import escape
from typing import Any, Literal

__all__ = ["card", "is_notebook"]

Status = Literal["good", "bad", "todo", "info"]

# The symbol carries the meaning; colour only repeats it. Each colour reads on white and on near-black.
_CARDS = {"good": ("✓", "#009E73"), "bad": ("✗", "#D55E00"), "todo": ("○", "#888888"), "info": ("ℹ", "#3B8FD0")}


def _shell() -> Any:
    """The running IPython shell, or None; never imports IPython by itself."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def is_notebook() -> bool:
    """True where displays reach a front end that renders HTML (a Jupyter, VS Code or Colab kernel)."""
    return getattr(_shell(), "kernel", None) is not None


def _display(bundle: dict[str, Any]) -> None:
    """Show a mime bundle in IPython, or print its plain text elsewhere."""
    if _shell() is None:
        print(_printable(bundle["text/plain"]))
        return
    from IPython.display import display

    display(bundle, raw=True)


def _printable(text: str) -> str:
    """`text` with the characters the terminal cannot encode replaced (a Windows console may lack ✓)."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def _inline_html(text: str) -> str:
    """Plain text as HTML: escaped, `code` marked up, line breaks and indentation kept."""
    marked = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))
    indented = re.sub(r"^ +", lambda spaces: "&nbsp;" * len(spaces[0]), marked, flags=re.MULTILINE)
    return indented.replace("\n", "<br>")


def card(status: Status, title: str, body: str = "", *, extra: dict[str, object] | None = None) -> None:
    """Show a small card: a symbol, a title, a few lines.

    Args:
        status: "good" ✓, "bad" ✗, "todo" ○ or "info" ℹ.
        title, body: plain text; `backticks` become code, newlines line breaks.
        extra: more entries (mime type → JSON-able object) for the same display bundle.

    Raises:
        ValueError: for an unknown status.
    """
    if status not in _CARDS:
        raise ValueError(f'card status {status!r} is unknown; choose one of {", ".join(_CARDS)}')
    symbol, colour = _CARDS[status]
    below = f"<br>{_inline_html(body)}" if body else ""
    html = (
        f'<div style="border-left:4px solid {colour};padding:.4em .9em;margin:.3em 0;line-height:1.5">'
        f'<strong><span style="color:{colour}">{symbol}</span> {_inline_html(title)}</strong>{below}</div>'
    )
    plain = f"{symbol} {title}" + "".join(f"\n  {line}" for line in body.splitlines())
    _display({"text/plain": plain, "text/html": html, **(extra or {})})
