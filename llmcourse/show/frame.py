"""The one widget frame: a few controls above a picture that is drawn anew when they move.

    controls ──► callback(**values) ──► HTML ──► the frame
                                            └──► the static picture, where widgets cannot show

Does:     draws what the callback returns (a figure, rows, text, HTML), what it shows through `show.*`, and what it
          prints; shows an exception inside the frame, where front ends would swallow it; with LLMCOURSE_STRICT=1
          tries both ends of every control and raises. ipywidgets 7.7.1 and later.
Leaves out: animation, several linked frames, and drawing while a slider is still being dragged.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from html import escape
from numbers import Integral, Real
from typing import Any

from .cards import card_html
from .core import collected, display, is_notebook
from .pictures import figure_html, style_settings
from .tables import table_html

__all__ = ["ends", "play"]

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_HTML = re.compile(r"\s*<(div|p|pre|table|figure|details|ul|ol|span|h[1-6]|blockquote)\b.*</\1>\s*", re.DOTALL)

Callback = Callable[..., Any]
Alt = str | Callable[..., str] | None


def play(callback: Callback, /, *, alt: Alt = None, **controls: Any) -> None:
    """Show controls, and below them what `callback` makes of their values.

    Args:
        callback: called with one keyword argument per control. It may return a matplotlib figure, rows (as
            `show.table` takes them), text, an HTML element as a string, or any object with `_repr_html_`; and it may
            call `show.*` and `print`.
        alt: the alt text of a returned figure, or a function of the control values that makes it.
        controls: name → (min, max[, step[, value]]) for a slider, a list or dict (label → value) for a menu, a str
            for a text box, a bool for a tick box, or an ipywidget. Where no value is given, the callback's own
            default is the start, else the middle of a slider and the first of a menu.

    Raises:
        TypeError, ValueError: if a control is none of these, or its start is out of range.
        RuntimeError: with LLMCOURSE_STRICT=1, if the callback raises at the start or at either end of a control.
    """
    made = _controls(callback, controls)
    start = {control.name: control.start for control in made}
    strict = os.environ.get("LLMCOURSE_STRICT") == "1"
    picture = _try_all(callback, alt, made) if strict else _drawn_or_error(callback, alt, start)
    note = f"Run this notebook to move the controls ({_in_words(start)})."
    bundle = {"text/plain": f"[interactive] {note}", "text/html": f"{picture}<p><em>{escape(note)}</em></p>"}
    if is_notebook() and importlib.util.find_spec("ipywidgets"):
        bundle[WIDGET_VIEW] = _view(_frame(callback, alt, made, picture))
        if "google.colab" in sys.modules:
            del bundle["text/html"]  # Colab chooses by an order of its own: leave it only the widget
    display(bundle)


def ends(controls: Mapping[str, Any], callback: Callback | None = None) -> Iterator[dict[str, Any]]:
    """Settings that put each control in turn at each of its ends, the others at their start.

    Args:
        controls: as `play` takes them.
        callback: whose defaults give the starts, as in `play`.

    Yields:
        One dict (name → value) per setting: a slider's min and max, a menu's first and last option, a tick box off
        and on, a text box as given and empty.
    """
    yield from _settings(_controls(callback, controls))


@dataclass(frozen=True, kw_only=True)
class _Control:
    """One control: its start, its ends, and how to make its widget (only when a front end can show it)."""

    name: str
    start: Any
    ends: tuple[Any, Any]
    make: Callable[[], Any]


def _controls(callback: Callback | None, specs: Mapping[str, Any]) -> list[_Control]:
    if not specs:
        raise ValueError("play needs a control, such as rank=(1, 64) or method=['lora', 'ia3']")
    defaults = inspect.signature(callback).parameters if callback else {}
    return [_control(name, spec, getattr(defaults.get(name), "default", inspect.Parameter.empty)) for name, spec in specs.items()]


def _control(name: str, spec: Any, default: Any) -> _Control:
    """The control that a specification asks for."""
    given = default is not inspect.Parameter.empty
    if hasattr(spec, "observe") and hasattr(spec, "value"):
        return _Control(name=name, start=spec.value, ends=_widget_ends(spec), make=lambda: spec)
    if isinstance(spec, bool):
        return _Control(name=name, start=spec, ends=(False, True), make=_maker("Checkbox", value=spec))
    if isinstance(spec, str):
        return _Control(name=name, start=spec, ends=(spec, ""), make=_maker("Text", value=spec))
    if isinstance(spec, list | dict) and spec:
        return _menu(name, spec, default if given else _options(spec)[0][1])
    if isinstance(spec, tuple) and 2 <= len(spec) <= 4 and all(_is_number(x) for x in spec):
        return _slider(name, spec, default if given else None)
    raise TypeError(
        f"control {name}={spec!r} is not understood; give (min, max[, step[, value]]), a non-empty list or dict, "
        "a str, a bool, or an ipywidget"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _options(spec: list[Any] | dict[str, Any]) -> list[tuple[str, Any]]:
    return list(spec.items()) if isinstance(spec, dict) else [(str(value), value) for value in spec]


def _menu(name: str, spec: list[Any] | dict[str, Any], start: Any) -> _Control:
    options = _options(spec)
    values = [value for _, value in options]
    if start not in values:
        raise ValueError(f"control {name} starts at {start!r}, which is not among its options {values}")
    ends = (values[0], values[-1])
    return _Control(name=name, start=start, ends=ends, make=_maker("Dropdown", options=options, value=start))


def _slider(name: str, spec: tuple[Any, ...], start: Any) -> _Control:
    low, high, *rest = spec
    whole = all(isinstance(x, Integral) for x in spec)
    step = rest[0] if rest else (1 if whole else (high - low) / 100)
    if len(rest) == 2:
        start = rest[1]
    elif start is None:
        start = float(f"{low + round((high - low) / 2 / step) * step:.12g}")  # 0.3, not 0.30000000000000004
    if not low <= start <= high:
        raise ValueError(f"control {name} starts at {start}, outside its range {low}–{high}")
    start = int(start) if whole else float(start)
    kind = "IntSlider" if whole else "FloatSlider"
    extra = {} if whole else {"readout_format": ".3g"}
    make = _maker(kind, min=low, max=high, step=step, value=start, **extra)
    return _Control(name=name, start=start, ends=(low, high), make=make)


def _maker(kind: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import ipywidgets

        return getattr(ipywidgets, kind)(**settings)

    return make


def _widget_ends(widget: Any) -> tuple[Any, Any]:
    """The two extreme values a ready-made widget can take; its value twice where there are none."""
    value = widget.value
    if isinstance(value, bool):
        return False, True
    if isinstance(value, str) and not hasattr(widget, "options"):
        return value, ""
    if getattr(widget, "options", None):
        return _option_value(widget.options, 0), _option_value(widget.options, -1)
    if hasattr(widget, "min") and hasattr(widget, "max"):
        low, high = (widget.base**end if hasattr(widget, "base") else end for end in (widget.min, widget.max))
        return ((low, low), (high, high)) if isinstance(value, tuple) else (low, high)
    return value, value


def _option_value(options: Any, index: int) -> Any:
    option = (list(options.values()) if isinstance(options, Mapping) else options)[index]
    return option[1] if isinstance(option, tuple) and len(option) == 2 else option


def _settings(controls: list[_Control]) -> Iterator[dict[str, Any]]:
    start = {control.name: control.start for control in controls}
    for control in controls:
        for end in control.ends:
            yield start | {control.name: end}


def _try_all(callback: Callback, alt: Alt, controls: list[_Control]) -> str:
    """Draw the start and both ends of every control; raise where the callback does. Returns the start's picture."""
    pictures = []
    start = {control.name: control.start for control in controls}
    for values in [start, *(setting for setting in _settings(controls) if setting != start)]:
        try:
            pictures.append(_drawn(callback, alt, values))
        except Exception as error:
            raise RuntimeError(f"{_call(callback, values)} raised {type(error).__name__}: {error}") from error
    return pictures[0]


def _call(callback: Callback, values: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"{getattr(callback, '__name__', 'callback')}({arguments})"


def _drawn_or_error(callback: Callback, alt: Alt, values: dict[str, Any]) -> str:
    try:
        return _drawn(callback, alt, values)
    except Exception as error:
        lines = [f"{type(error).__name__}: {error}"]
        file = getattr(getattr(callback, "__code__", None), "co_filename", None)
        own = [step for step in traceback.extract_tb(error.__traceback__) if step.filename == file]
        if own:
            lines.append(f"in line {own[-1].lineno}: `{own[-1].line}`")
        return card_html("bad", f"`{_call(callback, values)}` stopped", "\n".join(lines))


def _drawn(callback: Callback, alt: Alt, values: dict[str, Any]) -> str:
    """Everything one call prints, shows and returns, as HTML."""
    from matplotlib import rc_context

    with rc_context(style_settings()), _own_figures() as figures, collected() as shown:
        with redirect_stdout(io.StringIO()) as printed:
            result = callback(**values)
        describe = (lambda: alt(**values)) if callable(alt) else (lambda: alt or "")
        parts = [_text(printed.getvalue()) if printed.getvalue() else "", *shown, _returned(result, describe)]
        if not any(parts):
            parts = [figure_html(fig, alt=describe()) for fig in figures()]
    return "\n".join(part for part in parts if part)


def _returned(result: Any, describe: Callable[[], str]) -> str:
    """A callback's return value as HTML."""
    if result is None:
        return ""
    if hasattr(result, "savefig") or hasattr(result, "get_figure"):
        return figure_html(result if hasattr(result, "savefig") else result.get_figure(), alt=describe())
    if isinstance(result, str):
        return result if _HTML.fullmatch(result) else _text(result)
    if isinstance(result, list | tuple) or hasattr(result, "to_dict"):
        return table_html(result)[0]
    return result._repr_html_() if hasattr(result, "_repr_html_") else _text(str(result))


def _text(text: str) -> str:
    return f'<pre style="font-family:monospace;white-space:pre-wrap">{escape(text.rstrip())}</pre>'


@contextmanager
def _own_figures() -> Iterator[Callable[[], list[Any]]]:
    """Gives the pyplot figures opened in this block, and closes them: an open one would show up in a later cell."""

    def numbers() -> set[int]:
        pyplot = sys.modules.get("matplotlib.pyplot")
        return set(pyplot.get_fignums()) if pyplot else set()

    before = numbers()
    try:
        yield lambda: [sys.modules["matplotlib.pyplot"].figure(n) for n in sorted(numbers() - before)]
    finally:
        for number in numbers() - before:
            sys.modules["matplotlib.pyplot"].close(number)


def _frame(callback: Callback, alt: Alt, controls: list[_Control], picture: str) -> Any:
    """The widget: a box of controls above an HTML view that starts as `picture`."""
    import ipywidgets

    made = {control.name: _dressed(control.make(), _label(control.name)) for control in controls}
    view = ipywidgets.HTML(picture)

    def redraw(_change: Any) -> None:
        view.value = _drawn_or_error(callback, alt, {name: widget.value for name, widget in made.items()})

    for widget in made.values():
        widget.observe(redraw, names="value")
    return ipywidgets.VBox([ipywidgets.VBox(list(made.values())), view])


def _in_words(values: Mapping[str, Any]) -> str:
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{_label(name)} = {value}" for name, value in shown.items())


def _label(name: str) -> str:
    return name.replace("_", " ")


def _dressed(widget: Any, label: str) -> Any:
    """A control with its label and tooltip, drawing only when let go."""
    if not widget.description:
        widget.description = label
    tooltip = "tooltip" if widget.has_trait("tooltip") else "description_tooltip"
    if widget.has_trait(tooltip) and not getattr(widget, tooltip):
        setattr(widget, tooltip, f"{label}: change it to redraw the picture below")
    if widget.has_trait("continuous_update"):
        widget.continuous_update = False
    if hasattr(widget.style, "description_width"):
        widget.style.description_width = "8em"
    widget.layout.width = widget.layout.width or "min(100%, 36em)"
    return widget


def _view(frame: Any) -> dict[str, Any]:
    return {"version_major": 2, "version_minor": 0, "model_id": frame.model_id}
