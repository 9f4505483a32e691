"""What the measured grid says: one law for all runs, its exponents with their intervals, and the pictures.

    L(N, D) = E + A · N^-α + B · D^-β        fitted to every run at once
    with the best split of a compute budget  L(C) = E + const · C^-γ,  γ = αβ / (α + β)

E is what no model can learn: names and numbers the town draws by chance. So what falls as a power law is the loss above E; the
loss itself is a straight line in log-log axes only while E is small beside it.

Does:     exponents of parameters, data and compute; how well the one law predicts each slice; straight lines for comparison.
Leaves out: measuring (see `scaling_grid`).
Source:   Hoffmann et al. 2022, approach 3; Kaplan et al. 2020 (the straight lines).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmcourse.pretraining.scaling import (
    PowerLaw,
    best_parameters,
    bootstrap,
    chinchilla,
    frontier,
    interval,
    power_law,
    r_squared,
)
from llmcourse.pretraining.scaling_grid import Measured, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "Slice", "claim_numbers", "describe", "picture", "report"]

Effect = tuple[float, float, float]  # estimate, low, high


class Slice(NamedTuple):
    """Some of the runs, seen along one cause.

    law: the surface's prediction as a function of the cause; r2: how well it predicts these runs. line: a straight line in
    log-log axes, fitted to these runs alone.
    """

    x: list[float]
    loss: list[float]
    law: Callable[[Any], Any]
    r2: float
    line: PowerLaw


class Report(NamedTuple):
    """The surface fitted to all runs, its floor and exponents with 95 % intervals, and its slices.

    exponents and slices: under "parameters", "data" and "compute".
    """

    surface: PowerLaw
    floor: Effect
    exponents: dict[str, Effect]
    slices: dict[str, Slice]


def report(measured: Measured, *, draws: int = 300) -> Report:
    """Fit everything. Raises: ValueError where the grid holds fewer than 4 sizes or 4 budgets."""
    causes = [[run.parameters for run in measured.runs], [run.tokens for run in measured.runs]]
    loss = [run.loss for run in measured.runs]
    surface = chinchilla(*causes, loss)
    drawn = bootstrap(causes, loss, surface, draws=draws)
    (alpha, beta), (alphas, betas) = surface.exponents, (drawn["exponent 0"], drawn["exponent 1"])
    exponents = {
        "parameters": _effect(alpha, alphas),
        "data": _effect(beta, betas),
        "compute": _effect(alpha * beta / (alpha + beta), alphas * betas / (alphas + betas)),
    }
    return Report(surface, _effect(surface.floor, drawn["floor"]), exponents, _slices(measured, surface))


def _effect(estimate: float, draws: np.ndarray) -> Effect:
    low, high = interval(draws)
    return estimate, min(low, estimate), max(high, estimate)


def _slices(measured: Measured, surface: PowerLaw) -> dict[str, Slice]:
    most, largest = max(run.tokens for run in measured.runs), max(run.parameters for run in measured.runs)
    best = _frontier_cells(measured)

    def at_best_split(compute: Any) -> Any:
        parameters = best_parameters(surface, compute)
        return surface(parameters, compute / (6 * parameters))

    chosen = {
        "parameters": ([r for r in measured.runs if r.tokens == most], "parameters", lambda n: surface(n, most)),
        "data": ([r for r in measured.runs if r.parameters == largest], "tokens", lambda d: surface(largest, d)),
        "compute": ([r for r in measured.runs if (r.parameters, r.tokens) in best], "compute", at_best_split),
    }
    return {name: _slice(runs, cause, law, surface) for name, (runs, cause, law) in chosen.items()}


def _slice(runs: list[Run], cause: str, law: Callable[[Any], Any], surface: PowerLaw) -> Slice:
    x, loss = [getattr(run, cause) for run in runs], [run.loss for run in runs]
    r2 = r_squared(surface, [[run.parameters for run in runs], [run.tokens for run in runs]], loss)
    return Slice(x, loss, law, r2, power_law(x, loss))


def _frontier_cells(measured: Measured) -> set[tuple[int, int]]:
    """(parameters, tokens) of the cells whose mean loss no other reaches with the same compute or less."""
    cells: dict[tuple[int, int], list[Run]] = {}
    for run in measured.runs:
        cells.setdefault((run.parameters, run.tokens), []).append(run)
    keys = list(cells)
    kept = frontier([cells[key][0].compute for key in keys], [mean(run.loss for run in cells[key]) for key in keys])
    return {keys[i] for i in kept}


def claim_numbers(found: Report) -> dict[str, Any]:
    """What the claim "scaling-power" needs: the number of sizes, and R² and exponent (with its interval) of each cause."""
    return (
        {"sizes": len(set(found.slices["parameters"].x))}
        | {f"r2_{name}": each.r2 for name, each in found.slices.items()}
        | {f"exponent_{name}": effect for name, effect in found.exponents.items()}
    )


LABELS = {"parameters": "parameters N", "data": "training tokens D", "compute": "compute C = 6ND (FLOPs)"}


def picture(measured: Measured, found: Report | None = None) -> Figure:
    """Three panels in log-log axes: all runs in grey, the slice in blue, the law as a curve, the straight line dashed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    from llmcourse.show.pictures import COLOURS, style_settings

    found = found or report(measured)
    with rc_context(style_settings()):
        fig = Figure(figsize=(10.5, 3.8))
        for axis, (name, each) in zip(fig.subplots(1, 3, sharey=True), found.slices.items(), strict=True):
            everything = [getattr(run, "tokens" if name == "data" else name) for run in measured.runs]
            axis.scatter(everything, [run.loss for run in measured.runs], s=8, color="#BBBBBB")
            axis.scatter(each.x, each.loss, s=20, color=COLOURS["blue"], zorder=3)
            ends = np.geomspace(min(each.x), max(each.x), 60)
            axis.plot(ends, each.law(ends), color=COLOURS["vermillion"], label="E + power law")
            axis.plot(ends, each.line(ends), color=COLOURS["black"], linestyle=":", linewidth=1.2, label="straight line")
            estimate, low, high = found.exponents[name]
            axis.set(xscale="log", yscale="log", xlabel=LABELS[name])
            axis.set_title(f"exponent {estimate:.2f} [{low:.2f}, {high:.2f}]", fontsize=11)
            axis.xaxis.set_minor_formatter(NullFormatter())  # within one decade they would write over each other
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        fig.axes[0].set_ylabel("held-out loss (nats per token)")
        fig.axes[0].legend(fontsize=9)
    return fig


def describe(found: Report) -> str:
    """The picture in words: its alt text."""
    parts = [
        f"along {name}, from {max(each.loss):.2f} to {min(each.loss):.2f} nats, exponent {found.exponents[name][0]:.2f}, "
        f"R² {each.r2:.3f}"
        for name, each in found.slices.items()
    ]
    return f"Held-out loss falls towards a floor of {found.floor[0]:.2f} nats per token: {'; '.join(parts)}."
