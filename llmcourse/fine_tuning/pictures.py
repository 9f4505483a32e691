"""What notebook 03 draws: confusion matrices, and the plane of what was learnt against what was kept, with a point to move.

    kept ▲   start ●· · · ○ · ·                   θ(share) = (1 - share) · θ before + share · θ after
         │               ·  ○ between             share 0: the model as it was;  1: the tuned one
         │                  · ● tuned
         └──────────────────────► learnt

Does:     the figures and their alt texts; weights between two models, put into a third of the same shape; the dial's controls.
Leaves out: measuring (the notebook passes points and functions); weights beyond the two ends.
Source:   Wortsman et al. 2022 (weights between a pre-trained and a fine-tuned model).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from llmcourse.show import COLOURS

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from llmcourse.metrics import Interval

__all__ = ["CONTROLS", "between", "confusion", "confusion_alt", "plane", "plane_alt"]

CONTROLS: dict[str, Any] = {"share": (0.0, 1.0, 0.1, 0.3)}

Points = Mapping[str, "tuple[Interval, Interval]"]  # name -> learnt, kept
Weights = Mapping[str, Tensor]


# ---- confusion ---------------------------------------------------------------------------------------------------------


def confusion(matrix: Int[np.ndarray, "classes classes"], names: Sequence[str], title: str = "") -> Figure:
    """Counts as shades, true classes in rows; each row is shaded by its shares, so that rare classes can be read too."""
    from matplotlib.figure import Figure

    side = 1.5 + 0.75 * len(names)
    fig = Figure(figsize=(side + 1, side), layout="constrained")
    axis = fig.subplots()
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in ((place, matrix[place]) for place in _places(len(names))):
        axis.text(column, row, str(count), ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black")
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="guessed", ylabel="true")
    axis.set_title(title, loc="left")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return fig


def confusion_alt(matrix: Int[np.ndarray, "classes classes"], names: Sequence[str]) -> str:
    """Every row of the matrix in words."""
    rows = ("; ".join(f"{count} as {name}" for name, count in zip(names, row, strict=True)) for row in matrix.tolist())
    return "Confusion matrix. " + ". ".join(f"Of true {name}: {row}" for name, row in zip(names, rows, strict=True))


def _places(size: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(size) for column in range(size)]


# ---- learnt and kept ---------------------------------------------------------------------------------------------------


def between(model: nn.Module, before: Weights, after: Weights, share: float) -> nn.Module:
    """The model, its named weights now (1 - share) · before + share · after. Raises: ValueError for a share outside 0 … 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} of the way from one model to the other; choose 0–1")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, start in before.items():
            weights[name].copy_(torch.lerp(start, after[name], share))
    return model


def plane(
    points: Points, moved: tuple[float, float] | None = None, *, title: str = "", learnt: str = "", kept: str = ""
) -> Figure:
    """Each method's mean with its intervals in both directions; `moved` is one more point, which a control moves."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.8, 4), layout="constrained")
    axis = fig.subplots()
    for place, (name, (x, y)) in enumerate(points.items()):
        _point(axis, name, x, y, list(COLOURS.values())[place % 7])
    if moved:
        axis.plot(*moved, "*", ms=18, color=COLOURS["black"], label="between", zorder=4)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axis.set(xlabel=learnt, ylabel=kept, xlim=(0, 100), ylim=(-4, 104))  # intervals of shares may reach beyond
    axis.set_title(title, loc="left")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return fig


MARKERS = "osD^vPX<>"


def _point(axis: Axes, name: str, x: Interval, y: Interval, colour: str) -> None:
    spread = {"xerr": [[x.mean - x.low], [x.high - x.mean]], "yerr": [[y.mean - y.low], [y.high - y.mean]]}
    marker = MARKERS[len(axis.containers) % len(MARKERS)]
    axis.errorbar(x.mean, y.mean, **spread, fmt=marker, ms=8, color=colour, elinewidth=1, alpha=0.9, label=name)


def plane_alt(points: Points, moved: tuple[float, float] | None = None) -> str:
    """Every point of `plane` in words."""
    told = [f"{name} {x.mean:.0f} learnt, {y.mean:.0f} kept" for name, (x, y) in points.items()]
    more = [f"between the two models {moved[0]:.0f} learnt, {moved[1]:.0f} kept"] if moved else []
    return "What was learnt of the new task against what was kept of the old: " + "; ".join(told + more)
