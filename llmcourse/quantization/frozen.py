"""What every quantised linear layer shares: frozen codes, and a gradient for its input alone.

    forward    x ──► y = x Wᵀ + b             W restored from its codes, used, forgotten
    backward   ∂L/∂x = ∂L/∂y · W              W restored once more: keeping it would keep what quantising was to save
               ∂L/∂W                          none: codes cannot take a small step

Does:     the autograd rule, under autocast too; a weight that can be read but not set; scales that keep their precision when the
          model is moved to another dtype.
Leaves out: how codes are made and read, which each layer says in `product` and `restore`.
Source:   Dettmers et al. 2023, "QLoRA", eq. 5–6.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Frozen"]


class _Product(torch.autograd.Function):
    """x Wᵀ by the layer's own rule; the gradient of x with W restored."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: "Frozen") -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return layer.product(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return (grad @ ctx.layer.restore(grad.dtype)).to(ctx.dtype), None


class Frozen(nn.Module):
    """A linear layer whose weight is stored as codes, in buffers; a subclass gives `product` and `restore`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.dtype = layer.weight.dtype
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)

    def product(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        """x Wᵀ."""
        raise NotImplementedError(f"{type(self).__name__} has no product(x)")

    def restore(self, dtype: torch.dtype) -> Float[Tensor, "out features"]:
        """W in that dtype."""
        raise NotImplementedError(f"{type(self).__name__} has no restore(dtype)")

    @property
    def weight(self) -> Float[Tensor, "out features"]:
        """The matrix in the model's dtype, restored on every call; it cannot be set."""
        return self.restore(self.dtype)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        y = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move to a device, or to a dtype: then only what is computed changes its dtype, never the stored scales."""
        stored = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in stored.items():
            if self._buffers[name].dtype != old.dtype:
                self._buffers[name] = old.to(self._buffers[name].device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=next(iter(stored.values())).device)).dtype
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
