"""The calm card everything speaks through: exercises, claims, GPU cells, errors in widgets.

Does:     a symbol, a bold title, a few lines; the symbol carries the meaning, colour only repeats it.
Leaves out: buttons, nesting, free HTML (title and body are plain text).
"""

from __future__ import annotations

from typing import Literal

from .core import display, inline_html

__all__ = ["Status", "card", "card_html"]

Status = Literal["good", "bad", "solved", "wrong", "todo", "info"]

# Each colour reads on white and on near-black.
_LOOKS = {
    "good": ("✓", "#009E73"),
    "bad": ("✗", "#D55E00"),
    "solved": ("✅", "#009E73"),
    "wrong": ("❌", "#D55E00"),
    "todo": ("○", "#888888"),
    "info": ("ℹ", "#3B8FD0"),
}


def card(status: Status, title: str, body: str = "", *, extra: dict[str, object] | None = None) -> None:
    """Show a small card: a symbol, a title, a few lines.

    Args:
        status: "good" ✓, "bad" ✗, "todo" ○ or "info" ℹ; of an exercise, "solved" ✅ or "wrong" ❌.
        title, body: plain text; `backticks` become code, newlines line breaks.
        extra: more entries (mime type → JSON-able object) for the same display bundle.

    Raises:
        ValueError: for an unknown status.
    """
    html = card_html(status, title, body)
    plain = f"{_LOOKS[status][0]} {title}" + "".join(f"\n  {line}" for line in body.splitlines())
    display({"text/plain": plain, "text/html": html, **(extra or {})})


def card_html(status: Status, title: str, body: str = "") -> str:
    """The HTML of `card`; see there."""
    if status not in _LOOKS:
        raise ValueError(f"card status {status!r} is unknown; choose one of {', '.join(_LOOKS)}")
    symbol, colour = _LOOKS[status]
    below = f"<br>{inline_html(body)}" if body else ""
    return (
        f'<div style="border-left:4px solid {colour};padding:.3em .9em;margin:.3em 0;line-height:1.5">'
        f'<strong><span style="color:{colour}">{symbol}</span> {inline_html(title)}</strong>{below}</div>'
    )
