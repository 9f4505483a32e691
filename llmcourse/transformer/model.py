"""The transformer: one config, one block, one model, from BERT and T5 to Llama 3, Qwen3 and Mixtral.

    ids ─► embed (+ positions, token types) ─► block × n ─► norm ─► (transform) ─► head ─► logits

    pre-norm block:   x ─┬─► norm1 ─► attention ─► + ─┬─► norm2 ─► mlp ─► + ─►
                         └──────────────────────────┘ └─────────────────┘
    post-norm block:  x ◄─ norm1(x + attention(x));   x ◄─ norm2(x + mlp(x));   no final norm

    decoder: attends to the past        encoder: attends to all        with an encoder of its own (T5): a decoder whose blocks
                                                                       attend to the encoder's output between the two parts

Does:     every combination of the parts in this package; logits with or without a KV cache; `trace` of one pass; weights from
          and to transformers.
Leaves out: windows in some layers only, encoders that read anything but tokens, stochastic depth.
Source:   Devlin et al. 2019 (BERT); Radford et al. 2019 §2.3 (GPT-2); Raffel et al. 2020 §2.1 (T5); Touvron et al. 2023 §2.2
          (Llama); Xiong et al. 2020 (pre- and post-norm).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from . import masks
from .attention import Attention
from .cache import KVCache, LayerCache
from .mlp import ACTIVATIONS, MLP
from .moe import MoE
from .norms import LayerNorm, RMSNorm
from .positions import Angles, RopeScaling, T5Bias, alibi, frequencies, rope_angles, sinusoidal

__all__ = ["Block", "Config", "Source", "Trace", "Transformer"]

NORMS = {"rms": RMSNorm, "layer": LayerNorm}
POSITIONS = ("rope", "learned", "sinusoidal", "alibi", "t5", "none")
HEADS = ("tokens", "masked", "pooled", "labels", "none")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A transformer's shape. The defaults are Llama's; `d_ff`, `n_kv_heads` and `d_head` follow from the others unless given.

    positions: rope, learned, sinusoidal, alibi, t5 or none; norm: rms or layer; activation: relu, silu, gelu or gelu_tanh;
    window: how many places attention reaches back, itself included (None: all); n_encoder_layers: more than 0 makes an
    encoder-decoder; head: tokens (the next one), masked (BERT's, which bends once more first), pooled (one vector for the
    sequence, from its first place), labels (a class from that vector) or none; scaled_head: ÷ √d_model first, as tied T5 does.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int | None = None
    max_positions: float = math.inf
    n_kv_heads: int | None = None
    d_head: int | None = None
    positions: str = "rope"
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    n_buckets: int = 32
    max_distance: int = 128
    n_token_types: int = 0
    causal: bool = True
    window: int | None = None
    attention_scale: float | None = None
    attention_bias: bool = False
    qk_norm: bool = False
    norm: str = "rms"
    norm_eps: float = 1e-6
    pre_norm: bool = True
    embed_norm: bool = False
    activation: str = "silu"
    gated: bool = True
    mlp_bias: bool = False
    n_experts: int = 0
    experts_per_token: int = 2
    n_encoder_layers: int = 0
    head: str = "tokens"
    n_labels: int = 2
    scaled_head: bool = False
    tied: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; choose one, or set d_head")
        follow = {"n_kv_heads": self.n_heads, "d_head": self.d_model // self.n_heads, "d_ff": 4 * self.d_model}
        for name, value in follow.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        for name, known in (("positions", POSITIONS), ("norm", NORMS), ("activation", ACTIVATIONS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}")
        for impossible, problem in (
            (self.n_heads % self.n_kv_heads, f"n_kv_heads={self.n_kv_heads} must divide n_heads={self.n_heads}"),
            (self.positions == "rope" and self.d_head % 2, f"RoPE turns pairs of features: d_head={self.d_head} must be even"),
            (self.positions == "learned" and self.max_positions == math.inf, 'positions="learned" needs max_positions'),
            (
                self.window and (not self.causal or self.n_encoder_layers),
                f"window={self.window} needs a decoder without an encoder",
            ),
            (self.n_encoder_layers and not self.causal, "n_encoder_layers adds an encoder to a decoder: set causal=True"),
            (self.tied and self.head not in HEADS[:2], f"head={self.head!r} has no matrix to tie with the embedding"),
            (self.n_experts and (self.mlp_bias or not self.gated), "experts are gated and have no biases here"),
            (0 < self.n_experts < self.experts_per_token, f"experts_per_token must be at most n_experts={self.n_experts}"),
        ):
            if impossible:
                raise ValueError(problem)


def _norm(c: Config) -> nn.Module:
    return NORMS[c.norm](c.d_model, c.norm_eps)


class Source(NamedTuple):
    """What a decoder's cross-attention reads: an encoder's output and its padding mask."""

    states: Float[Tensor, "batch source d_model"]
    mask: Bool[Tensor, "batch 1 1 source"] | None = None


class Block(nn.Module):
    """Attention between positions, (attention to the source,) then an MLP at each, all added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config
        options = {"bias": c.attention_bias, "scale": c.attention_scale, "dropout": c.attention_dropout}
        options["norm_eps"] = c.norm_eps if c.qk_norm else None
        attention = partial(Attention, c.d_model, c.n_heads, c.n_kv_heads, c.d_head, **options)
        self.pre_norm, self.dropout, self.cross = c.pre_norm, c.dropout, None
        self.norm1, self.norm2 = _norm(c), _norm(c)
        self.attention = attention(causal=c.causal)
        if c.n_encoder_layers:
            self.cross, self.cross_norm = attention(causal=False), _norm(c)
        if c.n_experts:
            self.mlp = MoE(c.d_model, c.d_ff, c.n_experts, c.experts_per_token, c.activation)
        else:
            self.mlp = MLP(c.d_model, c.d_ff, activation=c.activation, gated=c.gated, bias=c.mlp_bias, dropout=c.mlp_dropout)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: masks.Mask | None = None, angles: Angles | None = None,
        cache: LayerCache | None = None, return_weights: bool = False,
        source: Source | None = None, cross_cache: LayerCache | None = None,
    ) -> tuple[Float[Tensor, "batch seq d_model"], Tensor | None, Tensor | None]:  # fmt: skip
        """The stream after this block, and if asked for the weights of its attention and of its cross-attention."""
        mixed, weights = self.attention(self.norm1(x) if self.pre_norm else x, mask, angles, cache, return_weights)
        x, cross_weights = self._add(x, mixed, self.norm1), None
        if self.cross is not None:
            asked = self.cross_norm(x) if self.pre_norm else x
            mixed, cross_weights = self.cross(asked, source.mask, None, cross_cache, return_weights, source.states)
            x = self._add(x, mixed, self.cross_norm)
        return self._add(x, self.mlp(self.norm2(x) if self.pre_norm else x), self.norm2), weights, cross_weights

    def _add(self, x: Tensor, part: Tensor, norm: nn.Module) -> Tensor:
        x = x + (F.dropout(part, self.dropout) if self.training else part)
        return x if self.pre_norm else norm(x)


class Transform(nn.Module):
    """What BERT has before a head: one more layer, at every place for masked tokens, at the first place for the sequence."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.dense, self.everywhere = nn.Linear(c.d_model, c.d_model), c.head == "masked"
        self.act, self.norm = (ACTIVATIONS[c.activation], _norm(c)) if self.everywhere else (torch.tanh, nn.Identity())

    def forward(self, x: Float[Tensor, "*batch seq d_model"]) -> Float[Tensor, "*batch_and_maybe_seq d_model"]:
        return self.norm(self.act(self.dense(x if self.everywhere else x[..., 0, :])))


class Trace(NamedTuple):
    """What one forward pass did: `model.unembed(trace.residual)` is the logit lens; `cross` is None without an encoder."""

    logits: Float[Tensor, "batch *seq vocab"]
    attention: Float[Tensor, "layers batch heads seq key"]
    residual: Float[Tensor, "layers_plus_1 batch seq d_model"]
    cross: Float[Tensor, "layers batch heads seq source"] | None = None


class Transformer(nn.Module):
    """Encoder, decoder or both. Weights start as GPT-2's: normal(0, 0.02), back into the stream smaller by √(2 · n_layers)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = c = config
        self.embed = nn.Embedding(c.vocab_size, c.d_model)
        tables = {"learned": nn.Embedding, "sinusoidal": lambda _, d_model: partial(sinusoidal, d_model=d_model)}
        self.position = tables[c.positions](c.max_positions, c.d_model) if c.positions in tables else None
        self.token_type = nn.Embedding(c.n_token_types, c.d_model) if c.n_token_types else None
        biases = {"alibi": partial(alibi, c.n_heads)}
        if c.positions == "t5":
            biases["t5"] = T5Bias(c.n_heads, c.n_buckets, c.max_distance, bidirectional=not c.causal)
        self.position_bias = biases.get(c.positions)
        self.embed_norm = _norm(c) if c.embed_norm else nn.Identity()
        self.dropout, self.head_dropout = nn.Dropout(c.dropout), nn.Dropout(c.head_dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.norm = _norm(c) if c.pre_norm else nn.Identity()
        self.transform = nn.Identity() if c.head in ("tokens", "none") else Transform(c)
        width = {"tokens": c.vocab_size, "masked": c.vocab_size, "labels": c.n_labels}.get(c.head)
        self.head = nn.Linear(c.d_model, width, bias=c.head != "tokens") if width else nn.Identity()
        encoder = {"n_layers": c.n_encoder_layers, "n_encoder_layers": 0, "causal": False, "head": "none", "tied": False}
        self.encoder = Transformer(replace(c, **encoder, scaled_head=False)) if c.n_encoder_layers else None
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                into_stream = name.endswith(("attention.o.weight", "cross.o.weight", "mlp.down.weight", "mlp.down"))
                nn.init.normal_(weight, std=0.02 / (2 * self.config.n_layers) ** 0.5 if into_stream else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        self.tie()

    def tie(self) -> None:
        """Make head and embedding one matrix, if the config says so, and the encoder's embedding the decoder's."""
        if self.config.tied:
            self.head.weight = self.embed.weight
        if self.encoder is not None:
            self.encoder.embed = self.embed

    @classmethod
    def from_hf(cls, model: Any | str | PathLike[str], *, ignore: tuple[str, ...] = ()) -> "Transformer":
        """A copy of a transformers model, or of the one saved in a local directory: same logits, dtype and device, in eval mode.

        Raises ValueError for an architecture or a config feature that is not implemented here, by name; `ignore` lists config
        fields known not to matter.
        """
        from .hf import load

        return load(cls, model, ignore)

    def to_hf(self, **fields: Any) -> Any:
        """A copy as a transformers model with the same logits; `fields` go to its config, as `eos_token_id=2`.

        Raises ValueError if no transformers class that we know combines these parts.
        """
        from .hf import save

        return save(self, fields)

    def forward(self, *inputs: Any, **options: Any) -> Float[Tensor, "batch *seq vocab"]:
        """Logits of the next token at every place (or what `config.head` says instead). Inputs: as for `layers`, but checked."""
        self.check(*inputs, **options)
        return self.unembed(self.hidden(*inputs, **options))

    def trace(self, *inputs: Any, **options: Any) -> Trace:
        """Logits, every layer's attention weights, and the residual stream at the start and after each block."""
        self.check(*inputs, **options)
        residual, weights, cross = zip(*self.layers(*inputs, **options, return_weights=True), strict=True)
        cross = None if self.encoder is None else torch.stack(cross[1:])
        return Trace(self.unembed(residual[-1]), torch.stack(weights[1:]), torch.stack(residual), cross)

    def encode(self, ids: Int[Tensor, "batch source"], attention_mask: masks.TokenMask | None = None) -> Source:
        """What the decoder reads beside its own tokens: give it as `source` with every call."""
        return Source(self.encoder(ids, attention_mask), masks.complete(1, ids.shape[1], attention_mask, encoder=True))

    def hidden(self, *inputs: Any, **options: Any) -> Float[Tensor, "batch seq d_model"]:
        """The residual stream after the last block; inputs are not checked."""
        for x, *_ in self.layers(*inputs, **options):
            last = x
        return last

    def unembed(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch_and_maybe_seq vocab"]:
        """Final norm and head: what the stream would say if it ended here."""
        x = self.head_dropout(self.transform(self.norm(x)))
        return self.head(x * self.config.d_model**-0.5 if self.config.scaled_head else x)

    def layers(
        self, ids: Int[Tensor, "batch seq"], attention_mask: masks.TokenMask | None = None,
        positions: Int[Tensor, "batch seq"] | None = None, cache: KVCache | None = None,
        token_types: Int[Tensor, "batch seq"] | None = None, source: Source | None = None, return_weights: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:  # fmt: skip
        """The residual stream, and the weights of attention and cross-attention if asked for: for the embedding, then each block.

        `attention_mask` covers the cached tokens too. Positions count the places from 0, padding included, unless given, as
        transformers does: give left-padded batches their own (`generate` does). Token types are 0 unless given.
        """
        c, past, seq = self.config, cache.length if cache else 0, ids.shape[1]
        places = torch.arange(past + seq, device=ids.device)
        x, angles = self._place(ids, places[past:] if positions is None else positions, token_types)
        bias = None if self.position_bias is None else self.position_bias(places[past:], places).to(x.dtype)
        options = {"encoder": not c.causal, "window": c.window, "bias": bias, "device": ids.device}
        mask = masks.complete(seq, past + seq, attention_mask, **options)
        yield x, None, None
        caches = zip(cache.layers, cache.cross, strict=True) if cache else [(None, None)] * len(self.blocks)
        for block, (own, cross) in zip(self.blocks, caches, strict=True):
            x, *weights = block(x, mask, angles, own, return_weights, source, cross)
            yield x, *weights

    def _place(self, ids: Tensor, positions: Tensor, token_types: Tensor | None) -> tuple[Tensor, Angles | None]:
        x, c = self.embed(ids), self.config
        if self.token_type is not None:
            x = x + self.token_type(torch.zeros_like(ids) if token_types is None else token_types)
        if self.position is not None:
            x = x + self.position(positions).to(x.dtype)
        x = self.dropout(self.embed_norm(x))
        if c.positions != "rope":
            return x, None
        return x, rope_angles(positions, frequencies(c.d_head, c.rope_base, c.rope_scaling, x.device), x.dtype)

    def check(
        self, ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None, cache: KVCache | None = None,
        token_types: Tensor | None = None, source: Source | None = None,
    ) -> None:  # fmt: skip
        """Raise ValueError, naming the tensor and the limit, for inputs the model cannot read."""
        c = self.config
        if ids.ndim != 2 or not ids.numel():
            raise ValueError(f"ids {tuple(ids.shape)} must have shape (batch, seq), neither of them 0")
        numbers = {"ids": (ids, c.vocab_size, "vocabulary"), "token_types": (token_types, c.n_token_types, "token types")}
        numbers["positions"] = (positions, c.max_positions, "positions")
        for name, (x, n, known) in numbers.items():
            if x is not None and x.shape != ids.shape:
                raise ValueError(f"{name} {tuple(x.shape)} must be shaped as ids {tuple(ids.shape)}")
            if x is not None and not 0 <= (low := int(x.min())) <= (high := int(x.max())) < n:
                outside = f"{name} hold {low if low < 0 else high}, outside the {known} 0–{n - 1}"
                raise ValueError(outside if n else f"this model has no {known}")
        end = (cache.length if cache else 0) + ids.shape[1]
        if attention_mask is not None and attention_mask.shape != (len(ids), end):
            raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must be (batch, cached + seq) = {(len(ids), end)}")
        if positions is None and end > c.max_positions:
            raise ValueError(f"position {end - 1} is beyond the model's {c.max_positions} positions, counted from 0")
        if (source is None) != (self.encoder is None):
            raise ValueError("no encoder here reads a source" if source else "the decoder needs source=model.encode(ids)")
        if source is not None and len(source.states) != len(ids):
            raise ValueError(f"source {tuple(source.states.shape)} must have the batch of ids {tuple(ids.shape)}")
        if cache is not None and not c.causal:
            raise ValueError("an encoder reads everything at once: it has no use for a cache")

    @property
    def n_parameters(self) -> int:
        """Number of weights, a tied matrix counted once."""
        return sum(weight.numel() for weight in self.parameters())
