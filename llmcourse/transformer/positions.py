"""Positions: attention alone cannot tell the order of its keys.

    sinusoidal, learned:  x_t ← x_t + P[t]                                       added to the embedding
    RoPE:                 turn each pair of features of q_t and k_t by t · θ_i   θ_i = base^(−2i/d)
    T5 bias, ALiBi:       score_ts ← score_ts + B[t − s]                         added to the scores, before the softmax

Turning q and k by their own angles leaves their dot product depending on the distance only; the biases are made of it.

      half-split pairs (Hugging Face's Llama):  (0, d/2) (1, d/2 + 1) …
      interleaved pairs (the paper, GPT-J):     (0, 1) (2, 3) …

Does:     one function of integer positions for each scheme (learned positions are an nn.Embedding in the model); both layouts of
          RoPE and the way between them; linear, NTK-aware and Llama 3 frequency scaling.
Leaves out: YaRN and LongRoPE; two-dimensional positions.
Source:   Vaswani et al. 2017 §3.5; Raffel et al. 2020 §2.1 (T5 bias); Su et al. 2021 eq. 34 (RoPE); Press et al. 2022 §3 (ALiBi);
          Chen et al. 2023 (linear scaling); bloc97 2023 (NTK-aware scaling); Llama 3.1 (frequency scaling, as in transformers).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = [
    "Angles", "RopeScaling", "T5Bias", "alibi", "alibi_slopes", "frequencies", "half_split", "interleaved", "rope_angles",
    "rotate", "rotate_interleaved", "sinusoidal",
]  # fmt: skip

Angles = tuple[Float[Tensor, "*batch seq d_head"], Float[Tensor, "*batch seq d_head"]]
"""Cosine and signed sine, one pair for each position and feature."""


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotation for longer contexts: linear, unless the other fields say Llama 3 or NTK.

    Linear: every frequency ÷ factor. Llama 3: only those slower than the window. NTK: base · factor^(d/(d−2)), which keeps the
    fastest frequency and divides the slowest by the factor.
    """

    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_positions: int | None = None
    ntk: bool = False

    def __call__(self, theta: Float[Tensor, " half"]) -> Float[Tensor, " half"]:
        if self.ntk:  # (base · factor^(d/(d−2)))^(−2i/d) = θ_i · factor^(−2i/(d−2))
            return theta * self.factor ** -torch.linspace(0, 1, len(theta), device=theta.device)
        if self.original_positions is None:
            return theta / self.factor
        turns = self.original_positions * theta / (2 * math.pi)  # full turns within the original context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return keep * theta + (1 - keep) * theta / self.factor


def frequencies(
    d_head: int, base: float = 10_000.0, scaling: RopeScaling | None = None, device: torch.device | str | None = None
) -> Float[Tensor, " half"]:
    """Radians per position of each of the d_head / 2 pairs, fastest first. Raises ValueError for an odd `d_head`."""
    if d_head % 2:
        raise ValueError(f"{d_head} features do not form pairs; choose an even number")
    theta = 1.0 / base ** (torch.arange(0, d_head, 2, device=device).float() / d_head)
    return theta if scaling is None else scaling(theta)


def sinusoidal(positions: Int[Tensor, "*batch seq"], d_model: int) -> Float[Tensor, "*batch seq d_model"]:
    """P[t] = (sin tθ_0, cos tθ_0, sin tθ_1, …): a clock with d_model / 2 hands, to be added to the embedding."""
    angle = positions[..., None].float() * frequencies(d_model, device=positions.device)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)


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


def rotate_interleaved(x: Float[Tensor, "batch heads seq d_head"], angles: Angles) -> Float[Tensor, "batch heads seq d_head"]:
    """The same for the paper's layout, where (a, b) are neighbours."""
    cos, signed_sin = (interleaved(part if part.ndim == 2 else part[:, None], x.shape[-1]) for part in angles)
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, signed_sin)


def half_split(x: Float[Tensor, "*shape"], d_head: int, dim: int = -1) -> Float[Tensor, "*shape"]:
    """Interleaved features in half-split order, head by head along `dim`: 0 for the weight or bias of a q or k projection."""
    return _reorder(x, dim, (-1, d_head // 2, 2))


def interleaved(x: Float[Tensor, "*shape"], d_head: int, dim: int = -1) -> Float[Tensor, "*shape"]:
    """Half-split features in interleaved order: the way back from `half_split`."""
    return _reorder(x, dim, (-1, 2, d_head // 2))


def _reorder(x: Tensor, dim: int, heads: tuple[int, int, int]) -> Tensor:
    dim %= x.ndim
    return x.unflatten(dim, heads).transpose(dim + 1, dim + 2).flatten(dim, dim + 2)


class T5Bias(nn.Module):
    """A learned number for each head and bucket of distances: near ones have a bucket each, far ones share ever wider ones."""

    def __init__(self, n_heads: int, n_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        self.sides = 2 if bidirectional else 1
        self.exact, self.max_distance = n_buckets // self.sides // 2, max_distance
        if not 0 < self.exact < max_distance:
            raise ValueError(f"n_buckets={n_buckets} must be at least {2 * self.sides} and below {2 * self.sides * max_distance}")
        self.weight = nn.Parameter(torch.zeros(n_buckets, n_heads))

    def forward(
        self, query_positions: Int[Tensor, " query"], key_positions: Int[Tensor, " key"]
    ) -> Float[Tensor, "1 heads query key"]:
        return self.weight[self._bucket(key_positions - query_positions[:, None])].permute(2, 0, 1)[None]

    def _bucket(self, ahead: Int[Tensor, "query key"]) -> Int[Tensor, "query key"]:
        """The bucket of a key so far `ahead` of its query: each side has its own, or all keys ahead count as distance 0."""
        n = len(self.weight) // self.sides
        distance = ahead.abs() if self.sides == 2 else (-ahead).clamp_min(0)
        far = (distance.clamp_min(1).float() / self.exact).log() / math.log(self.max_distance / self.exact) * (n - self.exact)
        bucket = torch.where(distance < self.exact, distance, (self.exact + far.long()).clamp_max(n - 1))
        return bucket + n * (ahead > 0) * (self.sides - 1)


def alibi_slopes(n_heads: int) -> Float[Tensor, " heads"]:
    """2^(−8/n), 2^(−16/n) … 2^(−8); between powers of two n, every other slope of 2n fills up."""
    power = 2 ** (n_heads.bit_length() - 1)
    steps = torch.tensor([*range(2, 2 * power + 1, 2), *range(1, 2 * (n_heads - power), 2)])
    return 2.0 ** (-4 / power * steps)


def alibi(
    n_heads: int, query_positions: Int[Tensor, " query"], key_positions: Int[Tensor, " key"]
) -> Float[Tensor, "1 heads query key"]:
    """B = −slope · |t − s|: the farther the key, the lower its score, at a rate of its own for each head."""
    distance = (query_positions[:, None] - key_positions).abs()
    return -alibi_slopes(n_heads).to(distance.device)[None, :, None, None] * distance
