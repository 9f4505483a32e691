"""The decoder-only transformer: one config, one block, one model, from GPT-2 to Llama 3.

    ids ─► embed (+ learned positions) ─► block × n ─► norm ─► head ─► logits

    pre-norm block:   x ─┬─► norm1 ─► attention ─► + ─┬─► norm2 ─► mlp ─► + ─►
                         └──────────────────────────┘ └─────────────────┘
    post-norm block:  x ◄─ norm1(x + attention(x));   x ◄─ norm2(x + mlp(x));   no final norm

Does:     every combination of the parts in this package; logits with or without a KV cache; `trace` of one pass.
Leaves out: encoders, cross-attention, mixtures of experts, stochastic depth.
Source:   Radford et al. 2019 §2.3 (GPT-2); Touvron et al. 2023 §2.2 (Llama); Xiong et al. 2020 (pre- and post-norm).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from . import masks
from .attention import Attention
from .cache import KVCache, LayerCache
from .mlp import ACTIVATIONS, MLP
from .norms import LayerNorm, RMSNorm
from .positions import Angles, RopeScaling, frequencies, rope_angles

__all__ = ["Block", "Config", "Trace", "Transformer"]

NORMS = {"rms": RMSNorm, "layer": LayerNorm}


@dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder's shape. The defaults are Llama's choices; `n_kv_heads` and `d_head` follow from `n_heads` unless given.

    positions: rope or learned; norm: rms or layer; activation: relu, silu, gelu or gelu_tanh; window: how many places attention
    reaches back, itself included (None: all).
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_positions: int
    n_kv_heads: int | None = None
    d_head: int | None = None
    positions: str = "rope"
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    attention_scale: float | None = None
    attention_bias: bool = False
    norm: str = "rms"
    norm_eps: float = 1e-6
    pre_norm: bool = True
    activation: str = "silu"
    gated: bool = True
    mlp_bias: bool = False
    tied: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}; choose one, or set d_head")
        object.__setattr__(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        object.__setattr__(self, "d_head", self.d_head or self.d_model // self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} must divide n_heads={self.n_heads}")
        if self.positions == "rope" and self.d_head % 2:
            raise ValueError(f"RoPE turns pairs of features: d_head={self.d_head} must be even")
        for name, known in (("positions", ("rope", "learned")), ("norm", NORMS), ("activation", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}")


class Block(nn.Module):
    """Attention between positions, then an MLP at each, both added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config
        self.pre_norm = c.pre_norm
        self.norm1, self.norm2 = (NORMS[c.norm](c.d_model, c.norm_eps) for _ in range(2))
        attention = {"bias": c.attention_bias, "scale": c.attention_scale, "dropout": c.attention_dropout}
        self.attention = Attention(c.d_model, c.n_heads, c.n_kv_heads, c.d_head, **attention)
        self.mlp = MLP(c.d_model, c.d_ff, activation=c.activation, gated=c.gated, bias=c.mlp_bias)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "#batch 1 #seq key"] | None = None,
        angles: Angles | None = None, cache: LayerCache | None = None, return_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, "batch heads seq key"] | None]:  # fmt: skip
        """The stream after this block, and the attention weights if asked for."""
        mixed, weights = self.attention(self.norm1(x) if self.pre_norm else x, mask, angles, cache, return_weights)
        x = x + self.dropout(mixed)
        if self.pre_norm:
            return x + self.dropout(self.mlp(self.norm2(x))), weights
        x = self.norm1(x)
        return self.norm2(x + self.dropout(self.mlp(x))), weights


class Trace(NamedTuple):
    """What one forward pass did: `model.unembed(trace.residual)` is the logit lens."""

    logits: Float[Tensor, "batch seq vocab"]
    attention: Float[Tensor, "layers batch heads seq key"]
    residual: Float[Tensor, "layers_plus_1 batch seq d_model"]


class Transformer(nn.Module):
    """A decoder. Weights start as GPT-2's do: normal(0, 0.02), projections back into the stream smaller by √(2 · n_layers)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.position = nn.Embedding(config.max_positions, config.d_model) if config.positions == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = NORMS[config.norm](config.d_model, config.norm_eps) if config.pre_norm else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                into_stream = name.endswith(("attention.o", "mlp.down"))
                nn.init.normal_(module.weight, std=0.02 / (2 * self.config.n_layers) ** 0.5 if into_stream else 0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        self.tie()

    def tie(self) -> None:
        """Make head and embedding one matrix, if the config says so."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    @classmethod
    def from_hf(cls, model: Any | str | PathLike[str], *, ignore: tuple[str, ...] = ()) -> "Transformer":
        """A copy of a transformers model, or of the one saved in a local directory: same logits, dtype and device, in eval mode.

        Raises ValueError for an architecture or a config feature that is not implemented here, by name; `ignore` lists config
        fields known not to matter.
        """
        from .hf import load

        return load(cls, model, ignore)

    def forward(
        self, ids: Int[Tensor, "batch seq"], attention_mask: masks.TokenMask | None = None, *,
        positions: Int[Tensor, "batch seq"] | None = None, cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:  # fmt: skip
        """Logits of the next token at every place.

        `attention_mask` covers the cached tokens too. Positions count the places from 0, padding included, unless given, as
        transformers does: give left-padded batches their own (`generate` does).
        """
        self.check(ids, attention_mask, positions, cache)
        return self.unembed(self.hidden(ids, attention_mask, positions, cache))

    def trace(self, ids: Int[Tensor, "batch seq"], attention_mask: masks.TokenMask | None = None) -> Trace:
        """Logits, every layer's attention weights, and the residual stream at the start and after each block."""
        self.check(ids, attention_mask)
        residual, weights = zip(*self.layers(ids, attention_mask, return_weights=True), strict=True)
        return Trace(self.unembed(residual[-1]), torch.stack(weights[1:]), torch.stack(residual))

    def hidden(
        self, ids: Int[Tensor, "batch seq"], attention_mask: masks.TokenMask | None = None,
        positions: Int[Tensor, "batch seq"] | None = None, cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:  # fmt: skip
        """The residual stream after the last block; inputs are not checked."""
        for x, _ in self.layers(ids, attention_mask, positions, cache):
            last = x
        return last

    def unembed(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Final norm and head: what the stream would say if it ended here."""
        return self.head(self.norm(x))

    def layers(
        self, ids: Int[Tensor, "batch seq"], attention_mask: masks.TokenMask | None = None,
        positions: Int[Tensor, "batch seq"] | None = None, cache: KVCache | None = None, return_weights: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:  # fmt: skip
        """The residual stream, and the attention weights if asked for: once for the embedding, then after each block."""
        past, seq = cache.length if cache else 0, ids.shape[1]
        if positions is None:
            positions = torch.arange(past, past + seq, device=ids.device)
        mask = masks.decoder(seq, past + seq, attention_mask, self.config.window, ids.device)
        x, angles = self._place(self.embed(ids), positions)
        yield x, None
        for block, layer in zip(self.blocks, cache.layers if cache else [None] * len(self.blocks), strict=True):
            x, weights = block(x, mask, angles, layer, return_weights)
            yield x, weights

    def _place(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Angles | None]:
        if self.position is not None:
            return self.dropout(x + self.position(positions)), None
        theta = frequencies(self.config.d_head, self.config.rope_base, self.config.rope_scaling, x.device)
        return self.dropout(x), rope_angles(positions, theta, x.dtype)

    def check(
        self, ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None, cache: KVCache | None = None
    ) -> None:
        """Raise ValueError, naming the tensor and the limit, for inputs the model cannot read."""
        if ids.ndim != 2 or not ids.numel():
            raise ValueError(f"ids {tuple(ids.shape)} must have shape (batch, seq), neither of them 0")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"ids hold {low if low < 0 else high}, outside the vocabulary 0–{self.config.vocab_size - 1}")
        end = (cache.length if cache else 0) + ids.shape[1]
        if attention_mask is not None and attention_mask.shape != (ids.shape[0], end):
            raise ValueError(f"attention_mask {tuple(attention_mask.shape)} must be (batch, cached + seq) = {(len(ids), end)}")
        if positions is not None and positions.shape != ids.shape:
            raise ValueError(f"positions {tuple(positions.shape)} must be shaped as ids {tuple(ids.shape)}")
        last = end - 1 if positions is None else int(positions.max())
        if last >= self.config.max_positions:
            raise ValueError(f"position {last} is beyond the model's {self.config.max_positions} positions, counted from 0")

    @property
    def n_parameters(self) -> int:
        """Number of weights, a tied matrix counted once."""
        return sum(weight.numel() for weight in self.parameters())
