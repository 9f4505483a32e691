"""UniPELT: LoRA, a prefix and adapters in one model, and a gate on each that learns how much of it a text needs.

    LoRA       W x + g(x) · s · B A x                      g(x) = σ(w · x + b), one number for each token
    prefix     softmax(q [γ Pk ; K]ᵀ / √d) [γ Pv ; V]      γ = mean of g(x) over the text's tokens, one number a text and layer
    adapter    y + g(y) · up(relu(down(y)))                behind feed-forward

Does:     all three on classifiers of Llama, BERT and GPT-2 and on BERT's language model; one handle, one file; padding never
          counts in a gate. The paper's program averages the other two gates over the text too, padding included; a gate of
          one token leaves rows as they are alone. The library `adapters` averages too, and leaves out α / r.
Leaves out: models that write text (the prefix's gate reads all of it, so a token would see what follows); our Transformer, whose
          cache has no place for gates; merging; HF peft's format, which has no place for it.
Source:   Mao et al. 2022, "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning", §3.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..transformer.masks import TokenMask
from ..transformer.model import Transformer
from . import interface
from .adapters import Bottleneck, Houlsby, HoulsbyHandle, SequentialAdapter, width
from .combined import CombinedHandle, from_file
from .interface import Switch, Wrapper, bottom, family, find, task_type
from .lora import Config as LoRAConfig
from .lora import LoRA, LoRALinear, like
from .prefix import Config as PrefixConfig
from .prefix import Prefix, PrefixHandle
from .virtual_tokens import KeysValues, extend_mask

__all__ = ["Config", "Gate", "GatedAdapter", "GatedLoRA", "GatedPrefix", "UniPELTHandle", "attach", "config_from_file"]

# The self-attention that a prefix enters, and what the adapter goes behind, by family.
ATTENTION = {
    "llama": r"(.*\.)?layers\.\d+\.self_attn",
    "bert": r"(.*\.)?layer\.\d+\.attention\.self",
    "gpt2": r"(.*\.)?h\.\d+\.attn",
}
FEED_FORWARD = {
    "llama": r"(.*\.)?layers\.\d+\.mlp",
    "bert": r"(.*\.)?layer\.\d+\.output\.dropout",
    "gpt2": r"(.*\.)?h\.\d+\.mlp\.dropout",
}


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """The paper's sizes: LoRA of rank 8, a prefix of 10 tokens, adapters of 48 features. LoRA's biases stay frozen."""

    lora: LoRAConfig = field(default_factory=LoRAConfig)
    prefix: PrefixConfig = field(default_factory=lambda: PrefixConfig(n_tokens=10, projection=True))
    adapter: Houlsby = field(default_factory=lambda: Houlsby(bottleneck=48))

    def __post_init__(self) -> None:
        if self.lora.bias != "none":
            raise ValueError(f'lora.bias={self.lora.bias!r}: UniPELT trains no biases of the base; set it to "none"')


class Gate(nn.Linear):
    """How much of a part is wanted: between 0 and 1 for every vector."""

    def __init__(self, d: int, beside: Tensor) -> None:
        super().__init__(d, 1, **like(beside))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
        return super().forward(x.to(self.weight.dtype)).sigmoid()


class GatedLoRA(LoRALinear):
    """A LoRA whose scale depends on what it reads."""

    def __init__(self, base: nn.Module, switch: Switch, config: LoRAConfig) -> None:
        super().__init__(base, switch, config)
        self.gate = Gate(self.A.shape[1], bottom(base).weight)

    def adapt(self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """y + g(x) · s · B A x."""
        return y + (self.gate(x) * super().adapt(x, torch.zeros_like(y))).to(y.dtype)


class GatedAdapter(SequentialAdapter):
    """A bottleneck whose share depends on what it reads."""

    def __init__(self, base: nn.Module, switch: Switch, bottleneck: Bottleneck) -> None:
        super().__init__(base, switch, bottleneck)
        self.gate = Gate(bottleneck.down.in_features, bottleneck.down.weight)

    def adapt(self, x: Tensor, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """y + g(y) · bottleneck(y)."""
        return y + (self.gate(y) * self.adapter(y)).to(y.dtype)


class GatedPrefix(nn.Module):
    """A prefix, and a gate for each layer's share of it."""

    def __init__(self, tokens: Prefix, n_layers: int, d: int) -> None:
        super().__init__()
        self.prefix = tokens
        self.gates = nn.ModuleList(Gate(d, tokens.embedding.weight) for _ in range(n_layers))

    def share(self, layer: int, x: Float[Tensor, "batch seq d"], mask: TokenMask | None) -> Float[Tensor, "batch 1 1 1"]:
        """γ of one layer: the mean gate of a text's tokens."""
        gate, counts = self.gates[layer](x)[..., 0], torch.ones_like(x[..., 0]) if mask is None else mask
        return ((gate * counts).sum(1) / counts.sum(1))[:, None, None, None]


class _LoRA(LoRA):
    def wrap(self, layer: nn.Module) -> Wrapper:
        return GatedLoRA(layer, self.switch, self.config)


class _Adapters(HoulsbyHandle):
    places: ClassVar[Mapping[str, str]] = FEED_FORWARD

    def wrap(self, place: str, layer: nn.Module) -> Wrapper:
        return GatedAdapter(layer, self.switch, self.bottleneck(layer, zero=False))


class UniPELTHandle(CombinedHandle):
    """An attached LoRA, prefix and adapters with their gates."""

    method, peft_type = "unipelt", "UNIPELT"
    must_agree = ("alpha", "rslora", "activation")
    config: Config
    mask: Tensor | None = None  # of the text that is being read

    def build(self) -> dict[str, nn.Module]:
        """A gated prefix, gated corrections and gated adapters."""
        _check(self.model)
        c, self.attention = self.config, [bottom(m) for m in find(self.model, ATTENTION[family(self.model)]).values()]
        tokens = self.parts_of(PrefixHandle, c.prefix)["tokens"]
        gated = GatedPrefix(tokens, len(self.attention), width(self.model))
        return {"tokens": gated} | self.parts_of(_LoRA, c.lora) | self.parts_of(_Adapters, c.adapter)

    def file_config(self) -> dict[str, Any]:
        """The configs of all parts, and apart what no shape gives away."""
        own = {"alpha": self.config.lora.alpha, "rslora": self.config.lora.rslora}
        return super().file_config() | own | {"activation": self.config.adapter.activation}

    @property
    def n_prefix(self) -> int:
        """The prefix's tokens."""
        return self.config.prefix.n_tokens

    def keys_values(self) -> list[KeysValues]:
        """The prefix, layer by layer, before its gates."""
        return self.tokens.prefix()

    def install(self) -> None:
        """Also the hooks: the first sees the text's mask before it is lengthened, one a layer gates the prefix in the cache."""
        self.hooks.append(self.model.base_model.register_forward_pre_hook(self._see, prepend=True, with_kwargs=True))
        super().install()
        for module in self.attention:
            self.hooks.append(module.register_forward_pre_hook(self._close, with_kwargs=True))

    def _see(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.mask = _named(module, args, kwargs).get("attention_mask")

    def _close(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Scale the prefix where the cache holds it: behind those of adapters attached earlier."""
        inputs = _named(module, args, kwargs)
        if not self.switch.on:
            return
        x, layer = inputs["hidden_states"], inputs["past_key_values"].layers[module.layer_idx]
        mask = None if self.mask is None else extend_mask(self.mask, x.shape[1] - self.mask.shape[1])
        share, start = self.tokens.share(module.layer_idx, x, mask), self.first_place()
        layer.keys, layer.values = (_scaled(kv, share, start, self.n_prefix) for kv in (layer.keys, layer.values))


def _named(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs


def _scaled(
    kv: Float[Tensor, "batch heads key d"], share: Float[Tensor, "batch 1 1 1"], start: int, n: int
) -> Float[Tensor, "batch heads key d"]:
    before, own, after = kv.split((start, n, kv.shape[2] - start - n), dim=2)
    return torch.cat((before, share.to(kv.dtype) * own, after), dim=2)


def _check(model: nn.Module) -> None:
    """Raise for a model in which a gate would look ahead, or has no place."""
    if isinstance(model, Transformer):
        raise TypeError("UniPELT gates the caches of transformers; attach it to a model of transformers, not to our Transformer")
    if task_type(model) in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        raise ValueError(f"{type(model).__name__} writes text, and UniPELT's gates read all of it; attach mam or lora instead")


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> UniPELTHandle:
    """Put gated LoRA, a gated prefix and gated adapters into every layer.

    Raises:
        ValueError: a model that writes text; whatever lora.attach, prefix.attach and adapters.attach refuse.
        TypeError: a model that is not one of transformers.
    """
    return UniPELTHandle(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The config for a saved adapter."""
    kinds = {"lora": LoRAConfig, "prefix": PrefixConfig, "adapter": Houlsby}
    parts = {name: from_file(kind, fields[name]) for name, kind in kinds.items()}
    return Config(**parts, modules_to_save=interface.heads_from_file(fields))
