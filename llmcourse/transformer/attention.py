"""Attention: every query takes a weighted average of the values, weighted by how well it matches their keys.

    weights = softmax(Q Kᵀ / √d)        output = weights · V

    x ─► q ─► (norm) ─► (rotate) ─┐
    x ─► k ─► (norm) ─► (rotate) ─┼─► attention, head by head ─► o ─► y
    x ─► v ───────────────────────┘         ▲ mask or bias, KV cache

    cross-attention: k and v come from the encoder's output instead of x

Does:     scaled dot-product attention twice, readable and fast (torch's fused kernel), proven equal; multi-head, grouped-query
          and multi-query attention in one module: n_kv_heads = n_heads, in between, or 1; cross-attention; biases on the scores.
          A query whose keys are all masked gets zeros. (So it does in transformers with a boolean mask and torch's kernel; its
          eager attention, and T5's bias, fill in the least float instead: there such a query gets the mean of all values.)
Leaves out: attention sinks.
Source:   Vaswani et al. 2017 eq. 1; Shazeer 2019 (multi-query); Ainslie et al. 2023 (grouped-query); Qwen3 2025 §2 (q/k-norm).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from . import masks
from .cache import LayerCache
from .masks import Mask
from .norms import RMSNorm
from .positions import Angles, rotate

__all__ = ["Attention", "attention", "fast_attention", "softmax"]

Queries = Float[Tensor, "batch heads query d"]
Keys, Values = Float[Tensor, "batch kv_heads key d"], Float[Tensor, "batch kv_heads key d_v"]
Output, Weights = Float[Tensor, "batch heads query d_v"], Float[Tensor, "batch heads query key"]


def softmax(
    scores: Float[Tensor, "*rows key"], mask: Bool[Tensor, "*#rows key"] | Float[Tensor, "*#rows key"] | None = None
) -> Float[Tensor, "*rows key"]:
    """Softmax over the last axis that neither overflows nor divides by zero: a row whose keys are all masked gives zeros."""
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    top = scores.detach().amax(-1, keepdim=True).masked_fill(scores.isneginf().all(-1, keepdim=True), 0)
    powers = (scores - top).exp()
    # The largest score contributes e⁰ = 1, so only a fully masked row sums to less than 1.
    return powers / powers.sum(-1, keepdim=True).clamp_min(1)


def attention(
    q: Queries, k: Keys, v: Values, mask: Mask | None = None, *,
    causal: bool = False, scale: float | None = None, dropout: float = 0.0,
) -> tuple[Output, Weights]:  # fmt: skip
    """The readable version: output and weights. With fewer key/value heads, neighbouring query heads share one."""
    _check(q, k, v, mask)
    if causal:
        mask = masks.join(mask, masks.causal(q.shape[2], k.shape[2], q.device)[None, None])
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = softmax(scores.float(), mask).to(v.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v), weights


def fast_attention(
    q: Queries, k: Keys, v: Values, mask: Mask | None = None, *,
    causal: bool = False, scale: float | None = None, dropout: float = 0.0,
) -> Output:  # fmt: skip
    """The same output from torch's fused kernel, which never stores the weights."""
    _check(q, k, v, mask)
    (batch, heads, n_queries, d), kv_heads = q.shape, k.shape[1]
    grouped = kv_heads != heads
    if n_queries == 1 and (mask is None or mask.shape[1] == 1):
        q = q.reshape(batch, kv_heads, heads // kv_heads, d)  # heads that share a key stand in a row, as queries would
        causal = grouped = False  # and a single, last query sees every key
    elif causal and (mask is not None or n_queries != k.shape[2]):
        # torch aligns its causal flag to the first key, we to the last
        mask, causal = masks.join(mask, masks.causal(n_queries, k.shape[2], q.device)[None, None]), False
    mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scale, enable_gqa=grouped)
    return mixed.view(batch, heads, n_queries, -1)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit k {tuple(k.shape)}: batch and last axis must be equal, "
            "and the key heads must divide the query heads"
        )
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"v {tuple(v.shape)} must equal k {tuple(k.shape)} in all but the last axis")
    full = (*q.shape[:-1], k.shape[-2])
    if mask is not None and any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
        raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to (batch, heads, query, key) = {full}")


class Attention(nn.Module):
    """`n_heads` query heads sharing `n_kv_heads` key/value heads; `norm_eps` set: queries and keys are RMS-normalised."""

    def __init__(
        self, d_model: int, n_heads: int, n_kv_heads: int | None = None, d_head: int | None = None, *, bias: bool = False,
        causal: bool = True, scale: float | None = None, dropout: float = 0.0, norm_eps: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        n_kv_heads = n_kv_heads or n_heads
        self.d_head = d_head or d_model // n_heads
        self.causal, self.scale, self.dropout = causal, scale, dropout
        self.q = nn.Linear(d_model, n_heads * self.d_head, bias=bias)
        self.k, self.v = (nn.Linear(d_model, n_kv_heads * self.d_head, bias=bias) for _ in "kv")
        self.o = nn.Linear(n_heads * self.d_head, d_model, bias=bias)
        self.q_norm, self.k_norm = (None if norm_eps is None else RMSNorm(self.d_head, norm_eps) for _ in "qk")

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Mask | None = None, angles: Angles | None = None,
        cache: LayerCache | None = None, return_weights: bool = False, source: Float[Tensor, "batch key d_model"] | None = None,
    ) -> tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, "batch heads seq key"] | None]:  # fmt: skip
        """Output, and the weights if asked for. A mask, when given, is complete; without one a causal module masks the future.

        Keys and values are those of `source` if given (cross-attention; a cache then keeps them from the first step on).
        """
        q = self._heads(self.q(x), self.q_norm, angles)
        if source is not None and cache is not None and cache.length:
            k, v = cache.stored
        else:
            seen = x if source is None else source
            k, v = self._heads(self.k(seen), self.k_norm, angles), self._heads(self.v(seen))
            if cache is not None:
                k, v = cache.append(k, v)
        options = {"causal": self.causal and mask is None, "scale": self.scale, "dropout": self.dropout if self.training else 0.0}
        if return_weights:
            mixed, weights = attention(q, k, v, mask, **options)
        else:
            mixed, weights = fast_attention(q, k, v, mask, **options), None
        return self.o(mixed.transpose(1, 2).flatten(2)), weights

    def _heads(
        self, x: Float[Tensor, "batch seq features"], norm: nn.Module | None = None, angles: Angles | None = None
    ) -> Float[Tensor, "batch heads seq d_head"]:
        x = x.view(*x.shape[:2], -1, self.d_head)
        x = (x if norm is None else norm(x)).transpose(1, 2)
        return x if angles is None else rotate(x, angles)
