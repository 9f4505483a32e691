"""Pictures that say in words what they show: any matplotlib figure, attention maps, bars.

Does:     an <img> with its alt text in the page (JupyterLab drops the alt of image/png), a caption, a small file;
          one legible style; colours told apart by colour-blind readers; tokens printed as they are, spaces as ·.
Leaves out: plot types beyond attention and bars: draw them with matplotlib and pass them to `figure`.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .core import display

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "attention", "bars", "figure", "figure_html", "style"]

# Okabe & Ito 2008, ordered so that the first few lines of a plot differ most; yellow, faint on white, comes last.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
    "yellow": "#F0E442",
}

_DPI = 144  # shown at 96 per inch: 1.5 image pixels for each page pixel keeps text crisp on dense screens
_LONGEST = 24  # more token labels than this overlap


def style() -> None:
    """Make matplotlib's defaults legible from here on: colour-blind-safe colours, 11-point text, two spines."""
    import matplotlib

    matplotlib.rcParams.update(style_settings())


def style_settings() -> dict[str, Any]:
    """The settings of `style`, for use with `matplotlib.rc_context`."""
    from cycler import cycler

    return {
        "figure.figsize": (6.4, 3.8),
        "figure.constrained_layout.use": True,
        "axes.prop_cycle": cycler(color=list(COLOURS.values())),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.grid": False,
        "font.size": 11,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "image.cmap": "Blues",
    }


def figure(fig: Figure | None = None, *, alt: str = "", caption: str | None = None, close: bool = True) -> None:
    """Show a matplotlib figure with its alt text in the page.

    Args:
        fig: the figure; the current pyplot figure if None.
        alt: what the picture shows, for those who cannot see it: a sentence, not the caption again.
        caption: a line below the picture.
        close: close the figure afterwards, so that Jupyter does not show it a second time.

    Raises:
        ValueError: if there is no figure, or the alt text is missing, too short or equal to the caption.
    """
    fig = fig if fig is not None else _current()
    try:
        html = figure_html(fig, alt=alt, caption=caption)
    finally:
        if close:
            _close(fig)
    display({"text/plain": f"[figure: {alt}]", "text/html": html})


def figure_html(fig: Figure, *, alt: str, caption: str | None = None) -> str:
    """A <figure> holding the picture as a data URI; see `figure`."""
    _check_alt(alt, caption)
    png, width = _png(fig)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure style="margin:.3em 0"><img alt="{escape(alt)}" width="{width}" style="max-width:100%;height:auto" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">{below}</figure>'
    )


def _current() -> Figure:
    from matplotlib import pyplot

    if not pyplot.get_fignums():
        raise ValueError("no figure is open; draw one first, or pass it: show.figure(fig, alt=…)")
    return pyplot.gcf()


def _close(fig: Figure) -> None:
    from matplotlib import pyplot

    pyplot.close(fig)


def _check_alt(alt: str, caption: str | None) -> None:
    if len((alt or "").split()) < 4:
        raise ValueError(f"figure needs alt text of four words or more, got {alt!r}; say what the picture shows: alt=…")
    if caption is not None and alt.strip() == caption.strip():
        raise ValueError("alt text repeats the caption; describe the picture in alt, comment on it in the caption")


def _png(fig: Figure) -> tuple[bytes, int]:
    """A figure as a small PNG, and the width in page pixels at which it should be shown."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a learner's emoji becomes a box, quietly
        fig.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    return _fewer_colours(file)


def _fewer_colours(file: io.BytesIO) -> tuple[bytes, int]:
    """A PNG reduced to a palette of 192 colours, a third of the size, and its width in page pixels."""
    from PIL import Image

    image = Image.open(file).convert("RGB")
    small = io.BytesIO()
    image.quantize(192, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return min(small.getvalue(), file.getvalue(), key=len), round(image.width * 96 / _DPI)


def attention(
    weights: Any,
    tokens: Sequence[str],
    *,
    query_tokens: Sequence[str] | None = None,
    alt: str | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Show attention weights as heat maps: one row per query token, one column per key token.

    Args:
        weights: [queries, keys], or [heads, queries, keys] for one small map per head; a tensor, array or lists.
        tokens: the key tokens as text (and the query tokens, unless those are given).
        query_tokens: the query tokens, where they differ (cross-attention, or the last steps of a cache).
        alt, title, caption: texts; without `alt`, the strongest pairs are named.

    Raises:
        ValueError: if the shape does not fit the tokens, or a weight is not finite.
    """
    queries = list(tokens if query_tokens is None else query_tokens)
    maps = _maps(weights, len(queries), len(tokens))
    fig = _heat_maps(maps, [_visible(t) for t in queries], [_visible(t) for t in tokens], title)
    figure(fig, alt=alt or _attention_alt(maps, queries, list(tokens)), caption=caption)


def _array(values: Any) -> np.ndarray:
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=float)


def _maps(weights: Any, queries: int, keys: int) -> np.ndarray:
    """The weights as [heads, queries, keys], checked."""
    import numpy as np

    maps = _array(weights)
    if maps.ndim == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.ndim == 2:
        maps = maps[None]
    if maps.ndim != 3 or maps.shape[1:] != (queries, keys):
        raise ValueError(
            f"attention weights have shape {np.shape(weights)} for {queries} query and {keys} key tokens; "
            f"give [{queries}, {keys}] or [heads, {queries}, {keys}]"
        )
    if not np.isfinite(maps).all():
        raise ValueError("attention weights hold NaN or infinity; a row whose keys are all masked gives NaN after softmax")
    return maps


def _visible(token: str) -> str:
    """A token as a label: spaces (also as byte-level and SentencePiece tokenizers write them) as ·."""
    return "".join({" ": "·", "Ġ": "·", "▁": "·", "\n": "⏎", "Ċ": "⏎", "\t": "→"}.get(char, char) for char in token)


def _heat_maps(maps: np.ndarray, queries: list[str], keys: list[str], title: str | None) -> Figure:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = math.ceil(len(maps) / 4)
    columns = math.ceil(len(maps) / rows)
    side = 4.2 if len(maps) == 1 else 2.3
    with rc_context(style_settings()):
        fig = Figure(figsize=(columns * side + 1.2, rows * side * max(0.35, min(1, len(queries) / len(keys))) + 0.5))
        axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for number, axis in enumerate(axes.flat):
            axis.set_visible(number < len(maps))
        for number, (axis, weights) in enumerate(zip(axes.flat, maps, strict=False)):
            image = axis.imshow(weights, cmap="Blues", vmin=0, vmax=maps.max() or 1)
            axis.set_title(f"head {number}" if len(maps) > 1 else title, fontsize=11)
            axis.spines[:].set_visible(False)
        _label_tokens(axes, queries, keys, fontsize=10 if len(maps) == 1 else 8)
        fig.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
        if title and len(maps) > 1:
            fig.suptitle(title, x=0.01, ha="left")
    return fig


def _label_tokens(axes: np.ndarray, queries: list[str], keys: list[str], fontsize: int) -> None:
    """Tokens along the shared axes, thinned out where they would overlap; `$` stays a dollar sign."""
    every_q, every_k = math.ceil(len(queries) / _LONGEST), math.ceil(len(keys) / _LONGEST)
    text = {"parse_math": False, "fontsize": fontsize}
    for axis in axes.flat:
        axis.set_xticks(range(0, len(keys), every_k), keys[::every_k], rotation=90, **text)
        axis.set_yticks(range(0, len(queries), every_q), queries[::every_q], **text)
        axis.tick_params(length=0)
    axes[-1, 0].set_xlabel("looks at (key)")
    axes[0, 0].set_ylabel("token (query)")


def _attention_alt(maps: np.ndarray, queries: list[str], keys: list[str]) -> str:
    """The size of the maps and their three strongest pairs of different positions."""
    heads = f", {len(maps)} heads" if len(maps) > 1 else ""
    return f"Attention heat map, {len(queries)} query by {len(keys)} key tokens{heads}. " + (
        "Strongest links: " + "; ".join(_strongest(maps, queries, keys)) + "."
    )


def _strongest(maps: np.ndarray, queries: list[str], keys: list[str]) -> list[str]:
    # A token that looks at itself says little, and the first token of a decoder can do nothing else.
    pairs = [pair for pair in _descending(maps) if pair[1] != pair[2] or queries != keys] or _descending(maps)
    where = "in head {} " if len(maps) > 1 else ""
    return [f"{where.format(h)}{queries[q]!r} to {keys[k]!r} {maps[h, q, k]:.2f}" for h, q, k in pairs[:3]]


def _descending(maps: np.ndarray) -> list[tuple[int, int, int]]:
    import numpy as np

    order = np.argsort(-maps, axis=None, kind="stable")
    return [(int(h), int(q), int(k)) for h, q, k in zip(*np.unravel_index(order, maps.shape), strict=True)]


def bars(
    labels: Sequence[str],
    values: Any,
    *,
    xlabel: str = "probability",
    alt: str | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> None:
    """Show horizontal bars, the first on top: a next-token distribution, a ranking.

    Args:
        labels: one per bar; spaces show as ·.
        values: one number per bar; a tensor, array or list.
        xlabel, alt, title, caption: texts; without `alt`, every bar is read out.

    Raises:
        ValueError: if labels and values differ in number.
    """
    numbers = _array(values).ravel().tolist()
    if len(numbers) != len(labels):
        raise ValueError(f"bars got {len(labels)} labels for {len(numbers)} values; give one label per value")
    read_out = ", ".join(f"{label!r} {number:.3g}" for label, number in zip(labels, numbers, strict=True))
    figure(
        _bars([_visible(t) for t in labels], numbers, xlabel, title),
        alt=alt or f"Bar chart of {xlabel}: {read_out}",
        caption=caption,
    )


def _bars(labels: list[str], numbers: list[float], xlabel: str, title: str | None) -> Figure:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style_settings()):
        fig = Figure(figsize=(6.4, 0.32 * len(labels) + 1.1))
        axis = fig.subplots()
        drawn = axis.barh(range(len(labels)), numbers)
        axis.bar_label(drawn, fmt="{:.3g}", padding=4, fontsize=10)
        axis.set_yticks(range(len(labels)), labels, parse_math=False)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set(xlabel=xlabel, title=title or "")
    return fig
