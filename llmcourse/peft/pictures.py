"""What notebook 04 draws: all methods side by side, and how much of a trained change a few singular directions carry.

    ΔW = W_trained - W = U S Vᵀ   ─►   W + U[:, :k] S[:k] V[:, :k]ᵀ   for every matrix at once   ─►   macro-F1 with rank k

Does:     the change of every matrix of a model, taken apart; the model with the changes cut to rank k; figures with alt text, and
          the control for `show.play`.
Leaves out: training, and what is measured (see contest and grid).
Source:   Eckart and Young 1936 (the best matrix of rank k); Aghajanyan et al. 2021 (few directions are enough).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmcourse.metrics import Interval, student

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .grid import Measured

__all__ = ["CONTROLS", "Change", "changes", "comparison", "comparison_alt", "cut_to", "energy", "spectrum", "spectrum_alt"]

CONTROLS: dict[str, Any] = {"rank": (0, 32, 1, 2)}
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"


# ---- a change, taken apart --------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """A matrix before training, and its change as U S Vᵀ."""

    before: Float[Tensor, "d_out d_in"]
    U: Float[Tensor, "d_out n"]
    S: Float[Tensor, " n"]
    V: Float[Tensor, "d_in n"]

    def cut(self, rank: int) -> Float[Tensor, "d_out d_in"]:
        """The matrix with the `rank` largest directions of its change."""
        return self.before + (self.U[:, :rank] * self.S[:rank]) @ self.V[:, :rank].T


@torch.no_grad()
def changes(before: nn.Module, after: nn.Module) -> dict[str, Change]:
    """What training did to every linear layer of a model, by the layer's name.

    Raises: ValueError where the two are not of one shape, or nothing changed.
    """
    old = {name: layer.weight for name, layer in before.named_modules() if isinstance(layer, nn.Linear)}
    found = {}
    for name, layer in after.named_modules():
        if isinstance(layer, nn.Linear):
            if name not in old or old[name].shape != layer.weight.shape:
                raise ValueError(f'layer "{name}" is not in the model from before training; give two of one shape')
            U, S, Vt = torch.linalg.svd(layer.weight - old[name], full_matrices=False)
            found[name] = Change(old[name].clone(), U, S, Vt.T)
    if not any(change.S.any() for change in found.values()):
        raise ValueError("no linear layer has changed, so there is nothing to take apart; train the second model first")
    return found


@contextmanager
def cut_to(model: nn.Module, found: Mapping[str, Change], rank: int) -> Iterator[None]:
    """Inside the block every matrix of `model` carries the `rank` largest directions of its change, no more."""
    layers = {name: model.get_submodule(name) for name in found}
    kept = {name: layer.weight.data for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.weight.data = found[name].cut(rank)
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data = kept[name]


def energy(found: Mapping[str, Change], rank: int) -> float:
    """The share of the changes' squared length that their `rank` largest directions carry."""
    squares = [(change.S**2) for change in found.values()]
    return float(sum(each[:rank].sum() for each in squares) / sum(each.sum() for each in squares))


def spectrum(found: Mapping[str, Change], scores: Mapping[int, float], rank: int) -> "Figure":
    """Left: the singular values of every change, those kept in colour. Right: F1 by rank, the present rank marked."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = fig.subplots(1, 2)
    for change in found.values():
        for kept, look in ((change.S, {"color": GREY, "lw": 0.6, "alpha": 0.6}), (change.S[:rank], {"color": BLUE, "lw": 1.2})):
            left.plot(range(1, len(kept) + 1), kept, **look)
    left.set(xscale="log", yscale="log", xlabel="direction", ylabel="singular value")
    left.set_ylim(bottom=max(float(change.S.max()) for change in found.values()) / 1000)
    left.set_title(f"rank {rank} of {max(len(c.S) for c in found.values())}: {energy(found, rank):.0%} of ΔW", loc="left")
    ranks = sorted(scores)
    right.plot(ranks, [scores[r] for r in ranks], "-", color=GREY, lw=1.2)
    right.plot(rank, scores[rank], "o", ms=10, color=ORANGE)
    right.set(xlabel="directions kept of each ΔW", ylabel="macro-F1")
    right.set_title(f"F1 {scores[rank]:.0f}", loc="left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return fig


def spectrum_alt(found: Mapping[str, Change], scores: Mapping[int, float], rank: int) -> str:
    """What `spectrum` shows, in words."""
    return (
        f"Singular values of {len(found)} weight changes, falling steeply; the first {rank} directions carry "
        f"{energy(found, rank):.0%} of the change and reach F1 {scores[rank]:.0f}"
    )


# ---- all methods ------------------------------------------------------------------------------------------------------


def comparison(measured: "Measured", methods: Sequence[str]) -> "Figure":
    """A row a method, a panel a twin: macro-F1 of each seed (a tick), their mean and its interval, for each model."""
    from matplotlib.figure import Figure

    models, twins = measured.plan.models, measured.plan.twins
    fig = Figure(figsize=(7.4, 0.3 * len(methods) + 1.2), layout="constrained")
    for axis, twin in zip(np.atleast_1d(fig.subplots(1, len(twins), sharey=True)), twins, strict=True):
        for shift, model, colour in zip((-0.17, 0.17), models, (ORANGE, BLUE), strict=False):
            found = [_interval(measured, name, model, twin) for name in methods]
            reach = [[e.mean - e.low for e in found], [min(100.0, e.high) - e.mean for e in found]]
            rows = [row + shift for row in range(len(methods))]
            axis.errorbar([e.mean for e in found], rows, xerr=reach, fmt="o", ms=5, lw=1.2, color=colour, label=model)
            seeds = [
                (f1, row)
                for name, row in zip(methods, rows, strict=True)
                for f1 in measured.f1(model=model, twin=twin, method=name)
            ]
            axis.plot(*zip(*seeds, strict=True), "|", ms=6, color=colour, alpha=0.6)
        lowest = min(min(measured.f1(model=m, twin=twin, method=name)) for m in models for name in methods)
        axis.set(xlim=(lowest - 5, 100), title=twin, xlabel="macro-F1")
        axis.set_yticks(range(len(methods)), methods)
        axis.grid(axis="y", lw=0.4, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    axis.invert_yaxis()
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(models), frameon=False)
    return fig


def _interval(measured: "Measured", name: str, model: str, twin: str) -> Interval:
    return student(measured.f1(model=model, twin=twin, method=name))


def comparison_alt(measured: "Measured", methods: Sequence[str]) -> str:
    """What `comparison` shows, in words: the means on the last model."""
    model = measured.plan.models[-1]
    told = [
        f"{twin}: " + ", ".join(f"{name} {_interval(measured, name, model, twin).mean:.0f}" for name in methods)
        for twin in measured.plan.twins
    ]
    return f"Macro-F1 of {len(methods)} methods with intervals over seeds. Means of {model}. " + "; ".join(told)
