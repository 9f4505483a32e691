"""Prefix tuning: learned keys and values in front of those of the text, in the attention of every layer.

    attention of layer i:   softmax(q [Pk ; K]ᵀ / √d) [Pv ; V]          Pk, Pv: n_tokens × (heads · d), one pair a layer

    without projection   table: n_tokens × (2 · layers · heads · d)                                        the prefix itself
    with projection      table: n_tokens × (heads · d) ─► linear ─► tanh ─► linear ─► the prefix           trains more steadily

Does:     Llama (grouped-query too), GPT-2, BERT, and T5, there in the decoder's self-attention, through the caches of
          transformers; our own Transformer; padding on the left and on the right, in training and in `generate`; HF peft's
          files, both ways. A file holds the finished prefix, so a projection is gone after loading.
Leaves out: a prefix for T5's encoder and cross-attention (HF peft has none either); merging; gradient checkpointing, which
          leaves the cache out. On T5 HF peft 0.21 gives decoder layer i the pair 2i mod layers, so that with an even number of
          layers two share one and half of the table is idle; we do the same, for the files' sake.
Source:   Li & Liang 2021, "Prefix-Tuning", §4.2–4.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..transformer.attention import attention
from . import interface
from .virtual_tokens import KEY, KeysValues, Shape, VirtualHandle, check_room, embedding, shape

__all__ = ["Config", "Prefix", "PrefixHandle", "attach", "config_from_file", "prefix_attention"]


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """n_tokens keys and values a layer; projection: written by an MLP of `hidden` features (the keys' width unless given)."""

    n_tokens: int = 20
    projection: bool = False
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.hidden is not None and (self.hidden < 1 or not self.projection):
            raise ValueError(f"hidden={self.hidden} is the width of the projection's MLP: at least 1, and with projection=True")


class Prefix(nn.Module):
    """Keys and values of all layers in one table, or in a small table and the MLP that writes them."""

    def __init__(self, n_tokens: int, n_layers: int, kv_heads: int, d_head: int, hidden: int | None = None) -> None:
        super().__init__()
        self.sizes = n_tokens, n_layers, 2, kv_heads, d_head
        width = kv_heads * d_head
        all_layers = 2 * n_layers * width
        self.embedding = nn.Embedding(n_tokens, all_layers if hidden is None else width)
        self.mlp = nn.Identity()
        if hidden is not None:
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, all_layers))

    def table(self) -> Float[Tensor, "tokens all_layers"]:
        """The prefix, a row a token: key and value of layer 1, of layer 2, …"""
        return self.mlp(self.embedding.weight)

    def forward(self) -> list[KeysValues]:
        """Keys and values, layer by layer, each 1 × heads × tokens × d."""
        layers = self.table().view(self.sizes).permute(1, 2, 3, 0, 4)
        return [(keys[None], values[None]) for keys, values in layers]

    def finish(self, table: Float[Tensor, "tokens all_layers"]) -> None:
        """Go on with this prefix itself, without an MLP: it cannot be undone."""
        if not isinstance(self.mlp, nn.Identity):
            self.mlp, self.embedding = nn.Identity(), nn.Embedding(*table.shape, device=self.embedding.weight.device)
        with torch.no_grad():
            self.embedding.weight.copy_(table)


def prefix_attention(
    q: Float[Tensor, "batch heads seq d"], k: Float[Tensor, "batch heads seq d"], v: Float[Tensor, "batch heads seq d_v"],
    prefix_k: Float[Tensor, "heads tokens d"], prefix_v: Float[Tensor, "heads tokens d_v"],
) -> Float[Tensor, "batch heads seq d_v"]:  # fmt: skip
    """The readable version, for a decoder: every query sees the whole prefix, and the text up to itself."""
    k, v = (torch.cat((own.expand(len(x), -1, -1, -1), x), dim=2) for own, x in ((prefix_k, k), (prefix_v, v)))
    return attention(q, k, v, causal=True)[0]


class PrefixHandle(VirtualHandle):
    """An attached prefix; `handle.tokens()` gives its keys and values, layer by layer."""

    method, peft_type = "prefix tuning", "PREFIX_TUNING"
    must_agree = ("num_attention_heads", "token_dim")
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """The prefix, on the device of the embedding."""
        check_room(self.model, self.config.n_tokens)
        return {"tokens": self.make(shape(self.model)).to(embedding(self.model).weight.device)}

    def make(self, s: Shape) -> Prefix:
        """A fresh prefix for a model of these sizes."""
        hidden = (self.config.hidden or s.kv_heads * s.d_head) if self.config.projection else None
        return Prefix(self.config.n_tokens, s.n_layers, s.kv_heads, s.d_head, hidden)

    @property
    def n_prefix(self) -> int:
        """All tokens are keys and values."""
        return self.config.n_tokens

    def keys_values(self) -> list[KeysValues]:
        """Keys and values, layer by layer."""
        layers = self.tokens()
        # HF peft lays T5's out as if every other pair were for cross-attention, and drops those: files only agree if we do too.
        return [layers[2 * i % len(layers)] for i in range(len(layers))] if shape(self.model).encoder_decoder else layers

    def file_tensors(self) -> dict[str, Tensor]:
        """The finished prefix under HF peft's name."""
        return {KEY: self.tokens.table()}

    def file_config(self) -> dict[str, Any]:
        """HF peft's fields."""
        c, s = self.config, shape(self.model)
        sizes = {"num_virtual_tokens": c.n_tokens, "num_layers": s.n_layers, "num_attention_heads": s.kv_heads}
        sizes |= {"token_dim": s.kv_heads * s.d_head, "num_transformer_submodules": 1 + s.encoder_decoder}
        return {**sizes, "prefix_projection": c.projection, "encoder_hidden_size": c.hidden or s.kv_heads * s.d_head}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the finished prefix. An optimiser made before must be made again: what it trained is gone."""
        self.tokens.finish(tensors[KEY])
        super().fill(tensors)


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> PrefixHandle:
    """Put learned keys and values before those of everything `model` reads.

    Raises:
        ValueError: more tokens than the model has positions.
        TypeError: a model that is neither one of transformers nor our Transformer.
    """
    return PrefixHandle(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The config for a saved adapter."""
    projection = bool(fields.get("prefix_projection"))
    hidden = fields.get("encoder_hidden_size") if projection else None
    heads = tuple(fields.get("modules_to_save") or ())
    return Config(n_tokens=fields["num_virtual_tokens"], projection=projection, hidden=hidden, modules_to_save=heads)
