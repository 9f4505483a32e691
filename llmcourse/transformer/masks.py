"""Attention masks: who may look at whom.

    True = the query (row) may look at the key (column). Combine masks with `&`.

    causal      window 2     prefix 2     padding (2 on the left)
    ■ · · ·     ■ · · ·      ■ ■ · ·      · · ■ ■
    ■ ■ · ·     ■ ■ · ·      ■ ■ · ·      · · ■ ■
    ■ ■ ■ ·     · ■ ■ ·      ■ ■ ■ ·      · · ■ ■
    ■ ■ ■ ■     · · ■ ■      ■ ■ ■ ■      · · ■ ■

A float mask is added to the scores instead: a bias, with −∞ where the query may not look.

Does:     causal, sliding-window, prefix-LM and padding masks, for whole sequences and for chunks that follow a KV cache; a bias
          and boolean masks joined in one float mask.
Leaves out: block-sparse and document masks.
Source:   Vaswani et al. 2017 §3.2.3 (causal); Raffel et al. 2020 §3.2.1 (prefix LM); Beltagy et al. 2020 §3.1 (sliding window).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Mask", "TokenMask", "causal", "complete", "join", "padding", "prefix_lm", "sliding_window"]

Device = torch.device | str | None
Mask = Bool[Tensor, "#batch #heads #query key"] | Float[Tensor, "#batch #heads #query key"]
"""Boolean, or float to be added to the scores: as torch's fused attention reads them."""
TokenMask = Bool[Tensor, "batch key"] | Int[Tensor, "batch key"]
"""What a tokenizer calls attention_mask: 1 for a token, 0 for padding."""


def _distance(n_queries: int, n_keys: int, device: Device) -> Int[Tensor, "query key"]:
    """How many places each key lies behind each query; queries are the last `n_queries` of the `n_keys` places."""
    keys = torch.arange(n_keys, device=device)
    return keys[n_keys - n_queries :, None] - keys


def causal(n_queries: int, n_keys: int, device: Device = None) -> Bool[Tensor, "query key"]:
    """Each query sees itself and everything before it."""
    return _distance(n_queries, n_keys, device) >= 0


def sliding_window(n_queries: int, n_keys: int, window: int, device: Device = None) -> Bool[Tensor, "query key"]:
    """Each query sees itself and the `window - 1` places before it, as in Mistral."""
    distance = _distance(n_queries, n_keys, device)
    return (distance >= 0) & (distance < window)


def prefix_lm(n_queries: int, n_keys: int, prefix: Int[Tensor, " batch"]) -> Bool[Tensor, "batch 1 query key"]:
    """Causal, except that the first `prefix[b]` places of row b are seen by all."""
    inside = torch.arange(n_keys, device=prefix.device) < prefix[:, None, None, None]
    return inside | causal(n_queries, n_keys, prefix.device)


def padding(attention_mask: TokenMask) -> Bool[Tensor, "batch 1 1 key"]:
    """Nobody looks at padding."""
    return attention_mask.bool()[:, None, None]


def join(mask: Mask | None, other: Bool[Tensor, "#batch #heads #query key"]) -> Mask:
    """Both at once: True where both are; a float `mask` stays float and gets −∞ where `other` is False."""
    if mask is None:
        return other
    return mask & other if mask.dtype == torch.bool else mask.masked_fill(~other, -torch.inf)


def complete(
    n_queries: int, n_keys: int, attention_mask: TokenMask | None = None, *, encoder: bool = False, window: int | None = None,
    bias: Float[Tensor, "1 heads query key"] | None = None, device: Device = None,
) -> Mask | None:  # fmt: skip
    """All that one pass needs to know, or None if that is "everything" in an encoder, "the past" in a decoder: the fast path."""
    mask = bias
    if attention_mask is not None and not attention_mask.all():
        mask = join(mask, padding(attention_mask))
    if window is not None and window < n_keys:
        return join(mask, sliding_window(n_queries, n_keys, window, device)[None, None])
    if not encoder and n_queries > 1 and (mask is not None or n_queries < n_keys):
        return join(mask, causal(n_queries, n_keys, device)[None, None])
    return mask
