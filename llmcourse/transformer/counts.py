"""Counting: parameters, operations and bytes by formula, before anything is built.

    a matrix of d_in × d_out:   d_in · d_out weights; 2 · d_in · d_out FLOPs a token, a multiplication and an addition each
    Kaplan's rule:              C ≈ 2 N + 2 · n_layer · n_ctx · d_attn FLOPs a token forward; training 3 · 2 N = 6 N
    KV cache:                   2 · n_layer · n_kv_heads · d_head numbers a token

Does:     Kaplan's table and the exact one side by side, for every model of this package, equal to the model's own weights and to
          torch's FlopCounterMode; the weights that a token meets; bytes of the KV cache; what it saves over a generation.
          "mask" is scores and mixing: 4 · n · d_attn a layer for n keys, masked ones too, as torch counts and plain kernels
          compute them. Kaplan's 2 · n_ctx · d_attn is the half that a causal mask leaves.
Leaves out: what is no matrix product (norms, activations, softmax); kernels that skip masked keys; in Kaplan's columns, encoders.
Source:   Kaplan et al. 2020 §2.1 and table 1; Pope et al. 2022 §2.1 (KV cache); Jiang et al. 2024 §2.1 (active parameters).
"""

from collections import Counter
from dataclasses import replace

from .model import Config

__all__ = ["active_parameters", "cache_bytes", "flops", "generation_flops", "kaplan", "parameters", "table"]


def _weights(c: Config) -> list[tuple[str, int, int, bool, int, int, str]]:
    """(operation, d_in, d_out, bias, so many stored, so many applied, to which vectors); a bias is one more input."""
    d, attn, kv, layers = c.d_model, c.n_heads * c.d_head, c.n_kv_heads * c.d_head, c.n_layers
    b, m, crossing = c.attention_bias, c.mlp_bias, layers if c.n_encoder_layers else 0
    bends = c.head in ("masked", "pooled", "labels")
    answers = {"tokens": c.vocab_size, "masked": c.vocab_size, "labels": c.n_labels}.get(c.head, 0)
    experts, used = (layers * n for n in ((c.n_experts, c.experts_per_token) if c.n_experts else (1, 1)))
    n_norms = 2 * layers + crossing + c.pre_norm + c.embed_norm + (c.head == "masked")
    places = c.max_positions if c.positions == "learned" else 0
    return [
        ("embed", c.vocab_size + places + c.n_token_types, d, False, 1, 0, "tokens"),
        ("embed", c.n_buckets, c.n_heads, False, c.positions == "t5", 0, "tokens"),
        ("attention: QKV", d, attn + 2 * kv, b, layers, layers, "tokens"),
        ("attention: project", attn, d, b, layers, layers, "tokens"),
        ("cross-attention", d, attn, b, crossing, crossing, "tokens"),
        ("cross-attention", d, 2 * kv, b, crossing, crossing, "source"),
        ("cross-attention", attn, d, b, crossing, crossing, "tokens"),
        ("feed-forward", d, c.n_experts, False, layers, layers, "tokens"),  # the router
        ("feed-forward", d, (1 + c.gated) * c.d_ff, m, experts, used, "tokens"),
        ("feed-forward", c.d_ff, d, m, experts, used, "tokens"),
        ("norms", 1, d, c.norm == "layer", n_norms, 0, "tokens"),
        ("norms", 2, c.d_head, False, c.qk_norm * (layers + crossing), 0, "tokens"),
        ("de-embed", d, d, True, bends, bends, "answers"),
        ("de-embed", d, answers, False, not c.tied, 1, "answers"),  # a tied one is stored as embedding
        ("de-embed", 0, answers, c.head != "tokens", 1, 0, "answers"),  # its bias
    ]


def _encoder(c: Config) -> Config:
    return replace(c, n_layers=c.n_encoder_layers, n_encoder_layers=0, causal=False, head="none", tied=False)


def parameters(c: Config) -> Counter[str]:
    """How many weights each operation has, exactly; a tied matrix counts as embedding. `.total()` is the model's."""
    count = Counter()
    for name, d_in, d_out, bias, stored, *_ in _weights(c):
        count[name] += stored * (d_in + bias) * d_out
    if c.n_encoder_layers:
        count["encoder"] = parameters(_encoder(c)).total() - c.vocab_size * c.d_model  # it reads the decoder's embedding
    return count


def active_parameters(c: Config) -> int:
    """The weights that one token meets: all, but of the experts only those it is sent to."""
    idle = [(stored - used) * d_in * d_out for name, d_in, d_out, _, stored, used, _ in _weights(c) if name == "feed-forward"]
    return parameters(c).total() - sum(idle)


def flops(c: Config, n_tokens: int, *, past: int = 0, n_source: int = 0, n_answers: int | None = None) -> Counter[str]:
    """Forward FLOPs of each operation, exactly, for one row of `n_tokens` after `past` cached ones.

    The head answers at every token unless `n_answers` is given. An encoder reads `n_source` tokens, unless something is cached.
    """
    width, read = c.n_layers * c.n_heads * c.d_head, 0 if past else n_source
    answers = 1 if c.head in ("pooled", "labels") else n_tokens if n_answers is None else n_answers
    vectors, count = {"tokens": n_tokens, "source": read, "answers": answers}, Counter()
    for name, d_in, d_out, _, _, used, at in _weights(c):
        count[name] += used * 2 * d_in * d_out * vectors[at]
    count["attention: mask"] = 4 * width * (past + n_tokens) * n_tokens
    if c.n_encoder_layers:
        count["cross-attention"] += 4 * width * n_source * n_tokens
        count["encoder"] = flops(_encoder(c), read).total()
    return count


def generation_flops(c: Config, n_prompt: int, n_new: int, *, n_source: int = 0, cached: bool = True) -> int:
    """FLOPs of writing `n_new` tokens, each from the last place's logits: with a KV cache, or reading all anew at every step."""
    total = 0
    for end in range(n_prompt, n_prompt + n_new):
        new = 1 if cached and end > n_prompt else end
        step = flops(c, new, past=end - new, n_source=n_source, n_answers=1)
        total += step.total() - (step["encoder"] if end > n_prompt else 0)  # even without a cache the encoder runs once
    return total


def cache_bytes(c: Config, n_tokens: int, *, n_source: int = 0, batch: int = 1, bytes_per_number: int = 2) -> int:
    """Bytes of the keys and values needed after `n_tokens`: those of the last window only, and all of an encoder's output."""
    kept = min(n_tokens, c.window or n_tokens) + n_source
    return 2 * c.n_layers * c.n_kv_heads * c.d_head * kept * batch * bytes_per_number


def kaplan(c: Config, n_ctx: int) -> dict[str, tuple[int, int]]:
    """Kaplan's table 1: parameters and forward FLOPs per token of each operation, in a plain decoder of this shape."""
    d, attn, layers = c.d_model, c.n_heads * c.d_head, c.n_layers
    return {
        "embed": ((c.vocab_size + n_ctx) * d, 4 * d),
        "attention: QKV": (layers * d * 3 * attn, 2 * layers * d * 3 * attn),
        "attention: mask": (0, 2 * layers * n_ctx * attn),
        "attention: project": (layers * attn * d, 2 * layers * attn * d),
        "feed-forward": (layers * 2 * d * c.d_ff, 2 * layers * 2 * d * c.d_ff),
        "de-embed": (0, 2 * d * c.vocab_size),
    }


def table(c: Config, n_tokens: int, n_source: int | None = None) -> list[dict[str, str | int]]:
    """Kaplan's numbers beside the exact ones, operation by operation, for a pass over `n_tokens`; for `show.table`.

    An encoder reads `n_source` tokens, by default as many; its work is shared among the decoder's. "N, C" are Kaplan's totals:
    embed and de-embed stay out. Training is three times the forward pass, by his rule 6 N.
    """
    rule, weights = kaplan(c, n_tokens), parameters(c)
    work = flops(c, n_tokens, n_source=n_tokens if n_source is None else n_source)
    names = [name for name in dict.fromkeys((*rule, *weights, *work)) if weights[name] or work[name]]
    rows = {name: (*rule.get(name, (0, 0)), weights[name], round(work[name] / n_tokens)) for name in names}
    inner, every = ([row for name, row in rows.items() if name not in out] for out in (("embed", "de-embed"), ()))
    rows["N, C"], rows["total"] = (tuple(map(sum, zip(*part, strict=True))) for part in (inner, every))
    rows["training"] = (rows["N, C"][0], 6 * rows["N, C"][0], rows["total"][2], 3 * rows["total"][3])
    columns = ("Kaplan's parameters", "Kaplan's FLOPs/token", "parameters", "FLOPs/token")
    return [{"operation": name, **dict(zip(columns, row, strict=True))} for name, row in rows.items()]
