"""Normalisation: keep the residual stream at a size the next layer expects.

    LayerNorm:  (x − mean) / √(var + ε) · w + b          RMSNorm:  x / √(mean x² + ε) · w

Does:     both, over the last axis, in float32 inside whatever the dtype outside.
Leaves out: batch and group norm; adaptive (conditional) scales.
Source:   Ba et al. 2016 eq. 4; Zhang & Sennrich 2019 eq. 4.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LayerNorm", "RMSNorm", "rms_norm"]


def rms_norm(x: Float[Tensor, "*batch d"], weight: Float[Tensor, " d"], eps: float = 1e-6) -> Float[Tensor, "*batch d"]:
    """Each vector at unit root mean square, times a learned scale for every feature."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class LayerNorm(nn.Module):
    """Centre, scale to unit variance, then a learned scale and shift."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        variance, mean = torch.var_mean(x.float(), -1, correction=0, keepdim=True)
        return ((x - mean) * torch.rsqrt(variance + self.eps)).to(x.dtype) * self.weight + self.bias


class RMSNorm(nn.Module):
    """Scale to unit root mean square, then a learned scale: LayerNorm without the mean and the shift."""

    def __init__(self, d_model: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)  # rms_norm, in torch's own kernel
