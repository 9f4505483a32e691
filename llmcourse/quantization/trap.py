"""Finding a gradient that is silently wrong: compare it with that of a copy whose weights are plain floats.

    quantised model ──► loss ──► gradients of what is trained ──┐
                                                                ├─► ‖g - g*‖ / ‖g*‖ for each parameter: 10⁻⁶, or 0.58?
    dequantised copy ─► loss ──► gradients of the same, g* ─────┘

    a linear layer is what it does to the identity: W = (layer(I) - b)ᵀ, whatever format its codes have

Does:     the check, for our layers and bitsandbytes', with any adapters; the copy; the guard against one real case: on processors
          with AVX512-BF16 a bitsandbytes Linear4bit that sees an input without gradient in eval mode repacks its codes for a
          kernel that has no backward pass. Nothing fails and the loss still falls, but from then on no gradient passes through.
Leaves out: wrong forward passes that both sides share; checks by finite differences.
Source:   own; bitsandbytes 0.50, nn/modules.py, `Linear4bit.forward`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .models import is_quantized, linear_of

__all__ = ["GradientReport", "dequantized_copy", "effective_weight", "gradient_check", "guard_bitsandbytes"]


def guard_bitsandbytes() -> bool:
    """Keep bitsandbytes from repacking weights on the CPU; call it before a model is built or loaded.

    Returns whether this processor would have fallen into the trap. Models built earlier in this process are not cured.
    """
    import bitsandbytes.nn.modules

    threatened = bool(bitsandbytes.nn.modules.has_avx512bf16())
    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    return threatened


@torch.no_grad()
def effective_weight(layer: nn.Module) -> Float[Tensor, "out features"]:
    """What a linear layer multiplies by, read off from its outputs for the identity; its mode is left as it was."""
    mode = layer.training
    device = next(tensor.device for tensor in (*layer.parameters(), *layer.buffers()))
    # in training mode: in eval mode the very question would make bitsandbytes repack
    outputs = layer.train()(torch.eye(layer.in_features, device=device))
    layer.train(mode)
    return (outputs if layer.bias is None else outputs - layer.bias).T.contiguous()


def dequantized_copy(model: nn.Module) -> nn.Module:
    """A copy with an nn.Linear of the same effective weight in place of each quantised layer; adapters are copied with it."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if is_quantized(module) and hasattr(module, "in_features"):
            twin.set_submodule(name, linear_of(effective_weight(module), module.bias).train(module.training))
    return twin


@dataclass(frozen=True)
class GradientReport:
    """The relative error of each trained parameter's gradient: 0 is equal, 1 as wrong as no gradient at all."""

    errors: dict[str, float]
    tolerance: float

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values())

    @property
    def ok(self) -> bool:
        """Whether every gradient is within the tolerance."""
        return self.worst <= self.tolerance

    def __str__(self) -> str:
        wrong = sum(error > self.tolerance for error in self.errors.values())
        worst = max(self.errors, key=lambda name: self.errors[name])
        verdict = "all gradients agree" if self.ok else f"{wrong} of {len(self.errors)} gradients are wrong"
        return f"{verdict} with the dequantised copy's; the worst, {worst}, is off by {self.worst:.2g} of its length"


def gradient_check(
    model: nn.Module,
    loss: Callable[[nn.Module], Float[Tensor, ""]],
    reference: nn.Module | None = None,
    tolerance: float = 0.05,
) -> GradientReport:
    """Compare the gradients of `loss(model)` with those of its dequantised copy, or of `reference`.

    loss must be deterministic (dropout off) and is called once a model. Gradients of 4-bit layers agree to 10⁻⁵; int8 and
    ternary layers round their inputs too, so theirs differ by about a hundredth. Gradients held before come back.

    Raises: ValueError when nothing is trained.
    """
    found, wanted = _gradients(model, loss), _gradients(reference or dequantized_copy(model), loss)
    if not wanted:
        raise ValueError("no parameter has requires_grad: attach an adapter first, or unfreeze what is to be trained")
    return GradientReport({name: _distance(found[name], g) for name, g in wanted.items()}, tolerance)


def _gradients(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        return {}
    found = torch.autograd.grad(loss(model), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def _distance(found: Tensor, wanted: Tensor) -> float:
    length = wanted.double().norm().item()
    gap = (found.double() - wanted.double()).norm().item()
    return gap / length if length else float(gap > 0)
