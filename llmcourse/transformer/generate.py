"""Decoding: turn next-token distributions into text.

    prompt ─► model ─► logits ─► ÷ temperature ─► top-k ─► top-p ─► draw ─┐
              ▲ KV cache                                                  │
              └───────────────── the one new token ◄──────────────────────┘

Does:     greedy, temperature, top-k and top-p sampling for batches padded on the left, stopping at EOS; the same tokens as
          transformers' `generate`, sampled ones under the same seed.
Leaves out: beam search, repetition penalties, speculative decoding.
Source:   Fan et al. 2018 (top-k); Holtzman et al. 2020 §3.1 (top-p, "nucleus").
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .cache import KVCache
from .masks import TokenMask
from .model import Transformer

__all__ = ["generate", "probabilities"]


def probabilities(
    logits: Float[Tensor, "*batch vocab"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "*batch vocab"]:
    """The distribution to draw from: keep the `top_k` likeliest, then the fewest whose mass reaches `top_p`; rescale to 1."""
    logits = logits.float() / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ascending, order = logits.sort()
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        tail[..., -1] = False  # the likeliest token always stays
        logits = logits.masked_fill(torch.zeros_like(tail).scatter(-1, order, tail), -torch.inf)
    return logits.softmax(-1)


def generate(
    model: Transformer, ids: Int[Tensor, "batch seq"], max_new_tokens: int, *, attention_mask: TokenMask | None = None,
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, generator: torch.Generator | None = None,
    eos_id: int | Sequence[int] | None = None, pad_id: int | None = None, stream: Callable[[Tensor], object] | None = None,
) -> Int[Tensor, "batch seq_and_new"]:  # fmt: skip
    """Prompt and continuation, as transformers returns them; `temperature` 0 is greedy.

    Stops early when every row has met an `eos_id`; finished rows go on with `pad_id` (by default the first `eos_id`).
    `stream` is called with each step's new tokens.
    """
    _check(model, ids, attention_mask, max_new_tokens, temperature, top_k, top_p)
    stops = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else list(eos_id)
    pad = pad_id if pad_id is not None else stops[0] if stops else 0
    tokens = torch.cat((ids, ids.new_full((len(ids), max_new_tokens), pad)), dim=1)

    def draw(logits: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(probabilities(logits, temperature, top_k, top_p), 1, generator=generator)[:, 0]

    end = _decode(model, tokens, ids.shape[1], attention_mask, draw, stops, pad, stream)
    return tokens[:, :end].contiguous()


@torch.inference_mode()  # `tokens` is made outside, so that a model may later be trained on it
def _decode(model, tokens, start, attention_mask, draw, stops, pad, stream) -> int:
    """Fill `tokens` from column `start` on; return the column after the last one written."""
    mask, positions = _padding(tokens, start, attention_mask)
    cache = KVCache(model.config.n_layers, capacity=tokens.shape[1])
    finished, stops = tokens.new_zeros(len(tokens), dtype=torch.bool), tokens.new_tensor(stops)
    for end in range(start, tokens.shape[1]):
        seen = cache.length
        new_positions = None if positions is None else positions[:, seen:end]
        x = model.hidden(tokens[:, seen:end], None if mask is None else mask[:, :end], new_positions, cache)
        token = draw(model.unembed(x[:, -1]))
        if len(stops):
            token = token.masked_fill(finished, pad)
            finished |= torch.isin(token, stops)
        tokens[:, end] = token
        if stream is not None:
            stream(token)
        if len(stops) and finished.all():
            return end + 1
    return tokens.shape[1]


def _padding(tokens: Tensor, start: int, attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Mask and positions for all columns to come, or None twice where nothing is padded: no mask is the fast path."""
    if attention_mask is None or attention_mask.all():
        return None, None
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, :start] = attention_mask.bool()
    return mask, (mask.cumsum(1) - 1).clamp_min(0)


def _check(
    model: Transformer, ids: Tensor, attention_mask: Tensor | None, n_new: int,
    temperature: float, top_k: int | None, top_p: float | None,
) -> None:  # fmt: skip
    limits = [
        (n_new >= 0, f"max_new_tokens={n_new} must be at least 0"),
        (temperature >= 0, f"temperature={temperature} must be at least 0 (0 is greedy)"),
        (top_k is None or top_k >= 1, f"top_k={top_k} must be at least 1, or None for all"),
        (top_p is None or 0 < top_p <= 1, f"top_p={top_p} must lie in (0, 1]"),
    ]
    for fine, problem in limits:
        if not fine:
            raise ValueError(problem)
    model.check(ids, attention_mask, positions=torch.zeros_like(ids))  # the true positions are checked below, new tokens included
    if attention_mask is not None and not attention_mask[:, -1].all():
        raise ValueError("attention_mask ends in padding, but generation continues the last column; pad on the left")
    longest = ids.shape[1] if attention_mask is None else int(attention_mask.bool().sum(1).max())
    if longest + n_new - 1 > model.config.max_positions:
        raise ValueError(f"{longest} tokens and {n_new} new ones exceed the model's {model.config.max_positions} positions")
