"""Scaling laws: fit a power law to losses of many runs, and say how sure the exponent is.

    one cause:    L(x) = E + A · x^-α                    E = 0: a straight line in log-log axes, slope -α
    two causes:   L(N, D) = E + A · N^-α + B · D^-β      the best N for a compute budget C = 6 N D grows as C^(β / (α + β))

Every form is one function of logarithms: log L = logsumexp(log E, log A - α log N, log B - β log D), so one solver
(Levenberg-Marquardt, for a whole batch of bootstrap samples at once) fits them all.

Does:     straight lines, curves with a floor, Chinchilla's surface with its Huber loss; R² in log space; 95 % intervals from a
          bootstrap over runs, which holds both the noise between seeds and the misfit of the law.
Leaves out: choosing between laws; extrapolation far beyond the measured range, which no interval here covers.
Source:   Kaplan et al. 2020, eq. 1.1-1.3; Hoffmann et al. 2022 ("Chinchilla"), eq. 3, 4 and 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Num

__all__ = [
    "PowerLaw",
    "best_parameters",
    "bootstrap",
    "chinchilla",
    "frontier",
    "interval",
    "power_law",
    "r_squared",
    "straight_line",
]

Points = Num[np.ndarray, " points"] | Sequence[float]
HUBER = 1e-3  # Hoffmann et al.: beyond this residual in log space, a run counts only linearly


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """L = floor + Σ coefficient · x^-exponent, one term a cause. r2: the share of the variance of log L it explains."""

    floor: float
    coefficients: tuple[float, ...]
    exponents: tuple[float, ...]
    r2: float

    def __call__(self, *x: Points | float) -> Float[np.ndarray, " points"] | float:
        """The loss predicted for each cause's values (`law(parameters)`, `law(parameters, tokens)`)."""
        if len(x) != len(self.exponents):
            raise ValueError(f"this law has {len(self.exponents)} causes, it was called with {len(x)}")
        terms = zip(self.coefficients, self.exponents, x, strict=True)
        return self.floor + sum(a * np.asarray(values, dtype=float) ** -alpha for a, alpha, values in terms)


def straight_line(x: Points, loss: Points) -> tuple[float, float]:
    """(A, α) of the power law A · x^-α that fits best: ordinary least squares on the logarithms of both.

    >>> round(straight_line([1, 10, 100], [8.0, 4.0, 2.0])[1], 3)
    0.301
    """
    slope, intercept = np.polyfit(np.log(x), np.log(loss), 1)
    return float(np.exp(intercept)), float(-slope)


def power_law(x: Points, loss: Points, *, floor: bool = False) -> PowerLaw:
    """The law of one cause, by least squares in log space; with `floor` it levels off at E > 0.

    Raises: ValueError for fewer than 3 different x (4 with a floor), or a value that is not above 0 and finite.
    """
    return _fit([x], loss, floor=floor, huber=np.inf)


def chinchilla(parameters: Points, tokens: Points, loss: Points) -> PowerLaw:
    """The law of two causes, by Huber's loss in log space, as Hoffmann et al. fit it. Raises as `power_law` does."""
    return _fit([parameters, tokens], loss, floor=True, huber=HUBER)


def best_parameters(law: PowerLaw, compute: Points | float) -> Float[np.ndarray, " points"] | float:
    """The number of parameters that spends `compute` = 6 · N · D FLOPs best under a law of two causes (Hoffmann, eq. 4)."""
    (a, b), (alpha, beta) = law.coefficients, law.exponents
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    return ratio * (np.asarray(compute, dtype=float) / 6) ** (beta / (alpha + beta))


def frontier(compute: Points, loss: Points) -> list[int]:
    """The runs that no other beats with the same compute or less, cheapest first.

    >>> frontier([1, 2, 3, 4], [5.0, 3.0, 4.0, 2.0])
    [0, 1, 3]
    """
    kept: list[int] = []
    for i in np.lexsort((loss, compute)).tolist():
        if not kept or loss[i] < loss[kept[-1]]:
            kept.append(i)
    return kept


def bootstrap(
    causes: Sequence[Points], loss: Points, law: PowerLaw, *, draws: int = 500, seed: int = 0
) -> dict[str, Float[np.ndarray, " draws"]]:
    """The law fitted again to runs drawn with replacement: every draw's "floor", "exponent 0", "coefficient 0", "exponent 1" …

    law: what `power_law` or `chinchilla` returned for the same runs; the fits start there. Draws that hold too few different
    values of a cause are left out. Draws of another quantity, such as a ratio, are had by computing with these arrays.
    """
    log_x, log_y = _logarithms(causes, loss)
    has_floor = law.floor > 0
    chosen = np.random.default_rng(seed).integers(len(log_y), size=(draws, len(log_y)))
    chosen = chosen[[all(len(np.unique(column)) >= 3 + has_floor for column in log_x[row].T) for row in chosen]]
    huber = HUBER if len(causes) == 2 else np.inf
    start = np.tile(_packed(law), (len(chosen), 1))
    theta, _ = _solve(log_x[chosen], log_y[chosen], start, has_floor, huber, steps=60)
    return _unpacked(theta, len(causes), has_floor)


def interval(draws: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def r_squared(law: PowerLaw, causes: Sequence[Points], loss: Points) -> float:
    """The share of the variance of log L, over these runs, that the law predicts; below 0 where a constant would do better."""
    log_y = np.log(loss)
    return float(1 - np.square(log_y - np.log(law(*causes))).mean() / log_y.var())


# --------------------------------------------------------------------------------------------------------------- the solver


def _logarithms(causes: Sequence[Points], loss: Points) -> tuple[np.ndarray, np.ndarray]:
    """(points × causes, points), checked."""
    x, y = np.stack([np.asarray(cause, dtype=float) for cause in causes], axis=-1), np.asarray(loss, dtype=float)
    if x.shape[:-1] != y.shape:
        raise ValueError(f"{x.shape[0]} values of a cause for {y.shape[0]} losses; give one of each per run")
    for values in (x, y):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError("a power law needs finite values above 0; leave out runs that diverged")
    return np.log(x), np.log(y)


def _fit(causes: Sequence[Points], loss: Points, *, floor: bool, huber: float) -> PowerLaw:
    log_x, log_y = _logarithms(causes, loss)
    different = min(len(np.unique(column)) for column in log_x.T)
    if different < 3 + floor:
        raise ValueError(f"a law{' with a floor' if floor else ''} needs {3 + floor} different values, there are {different}")
    starts = _starts(log_x, log_y, floor)
    many = (len(starts), 1)
    theta, objective = _solve(np.tile(log_x, (*many, 1)), np.tile(log_y, many), starts, floor, huber)
    best = theta[np.argmin(objective)]
    found = {name: float(values[0]) for name, values in _unpacked(best[None], len(causes), floor).items()}
    law = PowerLaw(
        floor=found.get("floor", 0.0),
        coefficients=tuple(found[f"coefficient {k}"] for k in range(len(causes))),
        exponents=tuple(found[f"exponent {k}"] for k in range(len(causes))),
        r2=math.nan,
    )
    return replace(law, r2=r_squared(law, causes, loss))


def _starts(log_x: np.ndarray, log_y: np.ndarray, floor: bool) -> np.ndarray:
    """Where to begin: several exponents and floors, each term an equal part of what lies above the floor at the centre."""
    causes, starts = log_x.shape[1], []
    for share in (0.3, 0.7, 0.95) if floor else (0.0,):
        above = np.log((1 - share) * np.exp(log_y.mean()) / causes)
        for alpha in (0.1, 0.3, 0.7):
            terms = [value for k in range(causes) for value in (above + alpha * log_x[:, k].mean(), alpha)]
            starts.append([log_y.min() + np.log(share), *terms] if floor else terms)
    return np.array(starts)


def _packed(law: PowerLaw) -> np.ndarray:
    """A law as the solver's vector: log E, then log A and α of each cause."""
    terms = [value for a, alpha in zip(law.coefficients, law.exponents, strict=True) for value in (np.log(a), alpha)]
    return np.array([np.log(law.floor), *terms] if law.floor > 0 else terms)


def _unpacked(theta: np.ndarray, causes: int, floor: bool) -> dict[str, np.ndarray]:
    found = {"floor": np.exp(theta[:, 0])} if floor else {}
    for k in range(causes):
        found[f"coefficient {k}"] = np.exp(theta[:, floor + 2 * k])
        found[f"exponent {k}"] = theta[:, floor + 2 * k + 1]
    return found


def _predicted(log_x: np.ndarray, theta: np.ndarray, floor: bool) -> tuple[np.ndarray, np.ndarray]:
    """log L of every batch and point, and its derivatives by every entry of theta."""
    log_a, alpha = theta[:, None, floor::2], theta[:, None, floor + 1 :: 2]
    terms = log_a - alpha * log_x
    if floor:
        terms = np.concatenate([np.broadcast_to(theta[:, None, :1], (*terms.shape[:2], 1)), terms], axis=-1)
    top = terms.max(-1, keepdims=True)
    log_l = top[..., 0] + np.log(np.exp(terms - top).sum(-1))
    weights = np.exp(terms - log_l[..., None])  # each term's share of L is the derivative by its logarithm
    by_a = weights[..., floor:]
    slopes = np.stack([by_a, -by_a * log_x], axis=-1).reshape(*by_a.shape[:2], -1)
    return log_l, np.concatenate([weights[..., :1], slopes], axis=-1) if floor else slopes


def _huber(residual: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Huber's loss summed over points, and each point's weight in the least-squares step."""
    size = np.abs(residual)
    weights = np.ones_like(size) if np.isinf(delta) else np.minimum(1, delta / np.maximum(size, 1e-300))
    values = size**2 / 2 if np.isinf(delta) else np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    return values.sum(-1), weights


def _solve(
    log_x: np.ndarray, log_y: np.ndarray, theta: np.ndarray, floor: bool, huber: float, steps: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt from `theta`, every batch with a damping of its own; the solutions and their objectives."""
    centre = log_x.mean(1)  # around the mean of log x, a coefficient and its exponent do not pull at each other
    theta = theta.copy()
    theta[:, floor::2] -= theta[:, floor + 1 :: 2] * centre
    log_x, damping = log_x - centre[:, None], np.full(len(theta), 1e-2)
    prediction, slopes = _predicted(log_x, theta, floor)
    objective, weights = _huber(log_y - prediction, huber)
    for _ in range(steps):
        tried = theta + _step(slopes, weights, log_y - prediction, damping)
        new_prediction, new_slopes = _predicted(log_x, tried, floor)
        new_objective, new_weights = _huber(log_y - new_prediction, huber)
        better = new_objective < objective
        if not better.any() and (damping > 1e8).all():
            break
        damping = np.where(better, damping / 3, damping * 4).clip(1e-9, 1e12)
        theta, prediction = np.where(better[:, None], tried, theta), np.where(better[:, None], new_prediction, prediction)
        slopes, weights = np.where(better[:, None, None], new_slopes, slopes), np.where(better[:, None], new_weights, weights)
        objective = np.where(better, new_objective, objective)
    theta[:, floor::2] += theta[:, floor + 1 :: 2] * centre
    return theta, objective


def _step(slopes: np.ndarray, weights: np.ndarray, residual: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """The damped least-squares step of every batch."""
    weighted = slopes * weights[..., None]
    normal = np.einsum("bpi,bpj->bij", weighted, slopes)
    diagonal = np.einsum("bii->bi", normal)
    normal = normal + np.einsum("bi,ij->bij", damping[:, None] * diagonal + 1e-12, np.eye(normal.shape[-1]))
    step = np.linalg.solve(normal, np.einsum("bpi,bp->bi", weighted, residual)[..., None])[..., 0]
    return step.clip(-2, 2)  # a nearly flat direction must not throw the fit out of sight
