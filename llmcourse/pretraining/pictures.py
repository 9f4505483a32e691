"""A picture that moves while a cell trains.

    frame = Live()
    fit(…, evaluate=lambda model, step: frame.show(draw(), alt="…") or {})      every call replaces the picture before

Does:     one picture in the page, with its alt text, redrawn in place; the last one stays, and is what a stored notebook holds.
          Without a notebook every call prints its alt text.
Leaves out: animation that can be played again; smoothness (a drawing takes a quarter of a second, so draw seldom).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Live"]


class Live:
    """The place of one picture in a cell's output. Make a new one in the cell that shows it."""

    def __init__(self) -> None:
        self._place: Any = None  # IPython's handle of what is on the page, once there is something

    def show(self, fig: Figure, *, alt: str, caption: str | None = None) -> None:
        """Put `fig` in the place of the picture shown before, and close it.

        Raises: ValueError if the alt text is missing, too short or equal to the caption.
        """
        from matplotlib import pyplot

        from llmcourse.show import is_notebook
        from llmcourse.show.pictures import figure_html

        bundle = {"text/plain": f"[figure: {alt}]", "text/html": figure_html(fig, alt=alt, caption=caption)}
        pyplot.close(fig)
        if not is_notebook():
            print(bundle["text/plain"])
        elif self._place is None:
            from IPython.display import display

            self._place = display(bundle, raw=True, display_id=True)
        else:
            self._place.update(bundle, raw=True)
