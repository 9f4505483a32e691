"""Positions: attention alone cannot tell the order of its keys.

    learned:  x_t ← x_t + P[t]
    RoPE:     turn the pair (x_i, x_{i + d/2}) of every query and key by the angle t · θ_i,   θ_i = base^(−2i/d)

Turning both by their own angles leaves the dot product depending on the distance of the two positions only.

Does:     rotary embeddings in the half-split layout of Hugging Face's Llama, with linear and Llama 3 frequency scaling;
          learned positions are an nn.Embedding in the model.
Leaves out: the interleaved layout of the RoPE paper (pairs x_2i, x_2i+1: the same, reordered), YaRN, NTK, ALiBi.
Source:   Su et al. 2021 eq. 34; Chen et al. 2023 (linear scaling); Llama 3.1 (frequency scaling, as in transformers).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Angles", "RopeScaling", "frequencies", "rope_angles", "rotate"]

Angles = tuple[Float[Tensor, "*batch seq d_head"], Float[Tensor, "*batch seq d_head"]]
"""Cosine and signed sine, one pair for each position and feature."""


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotation for longer contexts. Linear: every frequency ÷ factor. Llama 3: only those slower than the window."""

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_positions: int | None = None

    def __call__(self, theta: Float[Tensor, " half"]) -> Float[Tensor, " half"]:
        if self.original_positions is None:
            return theta / self.factor
        turns = self.original_positions * theta / (2 * math.pi)  # full turns within the original context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return keep * theta + (1 - keep) * theta / self.factor


def frequencies(
    d_head: int, base: float = 10_000.0, scaling: RopeScaling | None = None, device: torch.device | str | None = None
) -> Float[Tensor, " half"]:
    """Radians per position of each of the d_head / 2 pairs, fastest first."""
    theta = 1.0 / base ** (torch.arange(0, d_head, 2, device=device).float() / d_head)
    return theta if scaling is None else scaling(theta)


def rope_angles(positions: Int[Tensor, "*batch seq"], theta: Float[Tensor, " half"], dtype: torch.dtype | None = None) -> Angles:
    """Cosine and sine of every angle, computed in float32 whatever `dtype` they are returned in."""
    angle = positions[..., None].float() * theta
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Float[Tensor, "batch heads seq d_head"], angles: Angles) -> Float[Tensor, "batch heads seq d_head"]:
    """(a, b) → (a cos − b sin, b cos + a sin), where a and b are the two halves of the features."""
    cos, signed_sin = (part if part.ndim == 2 else part[:, None] for part in angles)
    swapped = x.roll(x.shape[-1] // 2, -1)  # (b, a)
    return torch.addcmul(x * cos, swapped, signed_sin)
