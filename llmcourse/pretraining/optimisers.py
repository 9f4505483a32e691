"""Optimisers: what turns a gradient into a step, and what keeps the step from going wrong.

    AdamW       θ ← (1 - η λ) θ - η m̂ / (√v̂ + ε)            m, v: running means of g and g²; m̂, v̂: corrected for their start at 0
    Adafactor   v ≈ r cᵀ / mean(r)                          r, c: row and column means of g²; R + C numbers in place of R · C
    Muon        θ ← (1 - η λ) θ - η √max(1, R/C) · UVᵀ      UVᵀ: the momentum matrix with every singular value near 1

    float16:    loss · s ──► gradients · s ──► / s ──► clip ──► step       s halves on overflow, doubles after a calm while

Does:     each as pure arithmetic and as a torch optimizer that `train.fit` takes, equal to torch.optim's; clipping by the global
          norm; loss scaling; the bytes an optimizer keeps; the batch size beyond which more examples bring little; the picture of
          a learning-rate schedule.
Leaves out: fused kernels (`train.adamw` has them), momentum in Adafactor, sparse gradients, closures.
Source:   Loshchilov & Hutter 2019, alg. 2; Shazeer & Stern 2018, alg. 4-6; Jordan 2024 (Muon); Pascanu et al. 2013 (clipping);
          Micikevicius et al. 2018 §3.2 (loss scaling); McCandlish et al. 2018, app. A.1 (noise scale).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from llmcourse.train import TrainConfig, lr_multiplier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "SCHEDULE_CONTROLS",
    "Adafactor",
    "AdamW",
    "LossScaler",
    "Muon",
    "adafactor_square",
    "adafactor_step",
    "adamw_step",
    "clip_by_global_norm",
    "flushed_to_zero",
    "muon_step",
    "noise_scale",
    "orthogonalise",
    "schedule_picture",
    "state_bytes",
]

Weights = Float[Tensor, "*shape"]
Matrix = Float[Tensor, "rows columns"]


class _Stepwise(Optimizer):
    """Calls `_update(weight, gradient, state, **options)` for every parameter; `state` is the parameter's own dict."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, options)
        self.names = tuple(options)  # torch adds options of its own to `defaults` when a state is loaded

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            options = {name: group[name] for name in self.names}
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["step"] = self.state[p].get("step", 0) + 1
                    p.copy_(self._update(p, p.grad, self.state[p], **options))

    def _update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], **options: Any) -> Tensor:
        raise NotImplementedError


# ---- AdamW ------------------------------------------------------------------------------------------------------------


def adamw_step(
    weight: Weights,
    gradient: Weights,
    mean: Weights,
    square: Weights,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Weights, Weights, Weights]:
    """The weight, mean and square after one step; `step` counts from 1. The decay never passes through the mean or the square."""
    beta1, beta2 = betas
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient**2
    direction = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + eps)
    return (1 - lr * weight_decay) * weight - lr * direction, mean, square


class AdamW(_Stepwise):
    """Adam with decoupled weight decay, equal to torch.optim.AdamW."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], **options: Any) -> Tensor:
        mean, square = (state.get(name, torch.zeros_like(weight)) for name in ("mean", "square"))
        weight, state["mean"], state["square"] = adamw_step(weight, gradient, mean, square, state["step"], **options)
        return weight


# ---- Adafactor --------------------------------------------------------------------------------------------------------


def adafactor_square(
    row: Float[Tensor, "*batch rows 1"], column: Float[Tensor, "*batch 1 columns"]
) -> Float[Tensor, "*batch rows columns"]:
    """The matrix of squares that two vectors of means stand for: exact where the squares have rank 1."""
    return row @ column / row.mean(-2, keepdim=True).clamp(min=torch.finfo(row.dtype).eps)


def adafactor_step(
    weight: Weights,
    gradient: Weights,
    squares: tuple[Tensor, ...],
    step: int,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    smallest_scale: float = 1e-3,
    clip: float = 1.0,
    weight_decay: float = 0.0,
) -> tuple[Weights, tuple[Tensor, ...]]:
    """The weight and the squares after one step; `step` counts from 1.

    squares: (row means, column means) for a matrix, (whole,) for a vector. The step is relative: `lr`, at most 1/√step, times the
    root mean square of the weights. An update whose own root mean square exceeds `clip` is scaled down to it.
    """
    fresh = step**beta2_decay  # 1 at the first step: no correction for a start at 0 is needed
    means = (
        [gradient.square().mean(-1, keepdim=True), gradient.square().mean(-2, keepdim=True)]
        if gradient.ndim > 1
        else [gradient**2]
    )
    squares = tuple(old + fresh * (new - old) for old, new in zip(squares, means, strict=True))
    square = adafactor_square(*squares) if gradient.ndim > 1 else squares[0]
    update = gradient * square.clamp(min=torch.finfo(square.dtype).eps ** 2).rsqrt()
    size = max(smallest_scale, float(_rms(weight))) * min(lr, step**-0.5)
    return (1 - lr * weight_decay) * weight - size / max(1.0, float(_rms(update)) / clip) * update, squares


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


class Adafactor(_Stepwise):
    """Second moments factored into rows and columns, relative steps, clipped updates; equal to torch.optim.Adafactor."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        smallest_scale: float = 1e-3,
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"beta2_decay": beta2_decay, "smallest_scale": smallest_scale, "clip": clip, "weight_decay": weight_decay}
        super().__init__(params, lr=lr, **options)

    def _update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], **options: Any) -> Tensor:
        squares = state.get("squares", _no_squares(gradient))
        weight, state["squares"] = adafactor_step(weight, gradient, squares, state["step"], **options)
        return weight


def _no_squares(gradient: Tensor) -> tuple[Tensor, ...]:
    if gradient.ndim < 2:
        return (torch.zeros_like(gradient),)
    return torch.zeros_like(gradient[..., :1]), torch.zeros_like(gradient[..., :1, :])


# ---- Muon -------------------------------------------------------------------------------------------------------------


def orthogonalise(matrix: Matrix, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Matrix:
    """About UVᵀ of the matrix's singular value decomposition USVᵀ: every singular value near 1 (0.7–1.2 after 5 steps).

    Each step puts all singular values through the odd polynomial 3.4445 s - 4.775 s³ + 2.0315 s⁵, which pushes small ones up
    fast; products of matrices are all it takes. The smaller side's Gram matrix is used.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrix.dtype)


def muon_step(
    weight: Matrix, gradient: Matrix, momentum: Matrix, lr: float = 0.02, beta: float = 0.95, weight_decay: float = 0.1
) -> tuple[Matrix, Matrix]:
    """The weight and the momentum after one step, with Nesterov's look ahead. Tall matrices take longer steps."""
    momentum = momentum.lerp(gradient, 1 - beta)  # beta · momentum + (1 - beta) · gradient
    ahead = gradient.lerp(momentum, beta)
    scale = math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
    return (1 - lr * weight_decay) * weight - lr * scale * orthogonalise(ahead), momentum


class Muon(_Stepwise):
    """Momentum, orthogonalised; for the matrices of a network only. Equal to torch.optim.Muon.

    Raises: ValueError for a parameter that is not a matrix.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.02, beta: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, lr=lr, beta=beta, weight_decay=weight_decay)
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2:
                raise ValueError(f"Muon needs matrices, got a parameter of shape {list(p.shape)}; give it to AdamW")

    def _update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], **options: Any) -> Tensor:
        weight, state["momentum"] = muon_step(weight, gradient, state.get("momentum", torch.zeros_like(weight)), **options)
        return weight


# ---- what surrounds the step ------------------------------------------------------------------------------------------


def state_bytes(optimizer: Optimizer) -> int:
    """The bytes of the tensors that an optimizer keeps between steps."""

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value)) if isinstance(value, tuple | list) else 0

    return sum(size(value) for state in optimizer.state.values() for value in state.values())


def clip_by_global_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
    """Scale all gradients by one factor, so that together they are no longer than `max_norm`; returns their length before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor)
    return norm


def flushed_to_zero(values: Weights, scale: float = 1.0, dtype: torch.dtype = torch.float16) -> float:
    """The share of the non-zero values that become 0 in `dtype`, after multiplication by `scale`."""
    present = values[values != 0]
    return float(((present * scale).to(dtype) == 0).float().mean()) if len(present) else 0.0


class LossScaler:
    """Dynamic loss scaling, as torch.amp.GradScaler: a large factor keeps float16 gradients from becoming 0.

    `scale` halves when a gradient overflows, and that step is skipped; it doubles after `patience` good steps.
    """

    def __init__(self, scale: float = 65536.0, patience: int = 2000) -> None:
        self.scale, self.patience, self.good = scale, patience, 0

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Gradients of the scaled loss."""
        (loss * self.scale).backward()

    def step(self, optimizer: Optimizer) -> bool:
        """Unscale the gradients and step, unless one is infinite or NaN; returns whether the step was made."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for g in gradients:
            g.div_(self.scale)
        finite = all(bool(torch.isfinite(g).all()) for g in gradients)
        if finite:
            optimizer.step()
        self._adapt(finite)
        return finite

    def _adapt(self, finite: bool) -> None:
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good == self.patience:
            self.scale, self.good = self.scale * 2, 0


def noise_scale(small: int, small_norm2: float, large: int, large_norm2: float) -> float:
    """The batch size at which noise and signal of the gradient are equal; far beyond it, more examples bring little.

    small, large: two batch sizes; small_norm2, large_norm2: mean squared gradient norms over batches of these sizes.
    """
    if small >= large:
        raise ValueError(
            f"small is {small} and large {large}; measure the gradient with two different batch sizes, small < large"
        )
    signal = (large * large_norm2 - small * small_norm2) / (large - small)
    noise = (small_norm2 - large_norm2) / (1 / small - 1 / large)
    return noise / signal


# ---- the schedule designer --------------------------------------------------------------------------------------------

SCHEDULE_CONTROLS: dict[str, Any] = {
    "schedule": ["constant", "linear", "cosine", "inverse-sqrt", "wsd"],
    "warmup_percent": (0, 50, 1, 10),
    "decay_percent": (1, 100, 1, 20),
    "final_percent": (0, 100, 1, 10),
}
"""The controls of the widget: `show.play(schedule_picture, **SCHEDULE_CONTROLS, alt=…)`."""


def schedule_picture(
    schedule: str = "cosine",
    warmup_percent: int = 10,
    decay_percent: int = 20,
    final_percent: int = 10,
    *,
    steps: int = 1000,
    lr: float = 1e-3,
) -> Figure:
    """The learning rate along a run, as a picture. decay_percent is the last part of the run, in which "wsd" alone falls."""
    config = TrainConfig(
        steps=steps,
        lr=lr,
        schedule=schedule,
        warmup=steps * warmup_percent // 100,
        decay_share=decay_percent / 100,
        final_lr_ratio=final_percent / 100,
    )
    return _curve([lr * lr_multiplier(step, config) for step in range(steps)], config)


def _curve(rates: list[float], config: TrainConfig) -> Figure:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 3.0), layout="constrained")
    axis = fig.subplots()
    axis.plot(rates)
    axis.axvspan(0, config.warmup, alpha=0.1)
    share = sum(rates) / (config.lr * len(rates))
    axis.set(xlabel="step", ylabel="learning rate", ylim=(0, config.lr * 1.05), xlim=(0, config.steps))
    axis.set_title(f"{config.schedule}: {config.warmup} steps of warm-up, on average {share:.0%} of the peak", loc="left")
    return fig
