"""Adapters: small bottleneck networks inside every layer, the first method that froze the model.

    bottleneck(x) = up(act(down(x)))          down: d → m,  up: m → d,  m ≪ d

    sequential (Houlsby):   h ─► sub-layer ─► y ─┬─────────────────► + ─► (add & norm)      after attention and after feed-forward
                                                 └─► bottleneck ─────┘

    parallel (He et al.):   x ─┬─► feed-forward ──────► + ─► (add & norm)                   beside feed-forward, times a scale
                               └─► bottleneck · s ──────┘

Does:     both kinds on Llama, BERT, T5, GPT-2 and our Transformer; both start as no change at all, or next to none.
Leaves out: adapters on cross-attention; AdapterFusion; layer norms of their own; rows of a batch with different adapters. In
          models that normalise first, the parallel adapter reads what the feed-forward layer reads, after the norm; the
          library `adapters` lets it read the stream before the norm.
Source:   Houlsby et al. 2019 §2.1; He et al. 2022, "Towards a Unified View", table 1 and §4.6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..transformer.mlp import ACTIVATIONS
from . import interface
from .interface import PREFIX, Handle, Switch, Wrapper, family, find
from .lora import like

__all__ = [
    "Bottleneck", "Config", "Houlsby", "HoulsbyHandle", "Parallel", "ParallelAdapter", "ParallelHandle", "SequentialAdapter",
    "attach", "config_from_file", "houlsby_adapter", "width",
]  # fmt: skip

# Whole names of what an adapter goes behind (Houlsby) or beside (parallel), by family. Where a dropout stands between the
# sub-layer and the residual stream, the adapter goes behind the dropout, as in the paper's code.
BEHIND = {
    "llama": r"(.*\.)?layers\.\d+\.(self_attn\.o_proj|mlp)",
    "bert": r"(.*\.)?layer\.\d+\.(attention\.output|output)\.dropout",
    "t5": r"(.*\.)?(encoder\.block\.\d+\.layer\.[01]|decoder\.block\.\d+\.layer\.[02])\.dropout",
    "gpt2": r"(.*\.)?h\.\d+\.(attn\.resid_dropout|mlp\.dropout)",
    "transformer": r"(.*\.)?blocks\.\d+\.(attention\.o|mlp)",
}
BESIDE = {
    "llama": r"(.*\.)?layers\.\d+\.mlp",
    "bert": r"(.*\.)?layer\.\d+\.output",
    "t5": r"(.*\.)?block\.\d+\.layer\.\d+\.DenseReluDense",
    "gpt2": r"(.*\.)?h\.\d+\.mlp",
    "transformer": r"(.*\.)?blocks\.\d+\.mlp",
}


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """What both kinds have. bottleneck: m; targets: as LoRA's, or None: the paper's places."""

    bottleneck: int = 16
    activation: str = "relu"
    targets: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck={self.bottleneck} must be at least 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True, kw_only=True)
class Houlsby(Config):
    """Sequential adapters, two in each layer."""


@dataclass(frozen=True, kw_only=True)
class Parallel(Config):
    """Parallel adapters beside feed-forward; scale: s, 4 in the paper."""

    scale: float = 4.0


def houlsby_adapter(
    y: Float[Tensor, "batch d"], down: Float[Tensor, "m d"], up: Float[Tensor, "d m"]
) -> Float[Tensor, "batch d"]:
    """The readable version of SequentialAdapter, without biases: squeeze, bend, stretch, and add to what came in."""
    return y + F.linear(torch.relu(F.linear(y, down)), up)


class Bottleneck(nn.Module):
    """Squeeze d features into m, bend, stretch back. With `zero` the last step starts at zero, else near it."""

    def __init__(self, d: int, m: int, activation: str, *, zero: bool, **options: Any) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.down, self.up = nn.Linear(d, m, **options), nn.Linear(m, d, **options)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)  # so small that the adapter is almost the identity
            nn.init.zeros_(layer.bias)
        if zero:
            nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.up(self.act(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


class SequentialAdapter(Wrapper):
    """A sub-layer with a bottleneck behind it, around which the output also passes unchanged."""

    def __init__(self, base: nn.Module, switch: Switch, bottleneck: Bottleneck) -> None:
        super().__init__(base, switch)
        self.adapter = bottleneck

    def adapt(self, x: Tensor, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """y + bottleneck(y)."""
        return y + self.adapter(y)


class ParallelAdapter(Wrapper):
    """A sub-layer with a bottleneck beside it, which reads the same input."""

    def __init__(self, base: nn.Module, switch: Switch, bottleneck: Bottleneck, scale: float) -> None:
        super().__init__(base, switch)
        self.adapter, self.scale = bottleneck, scale

    def adapt(self, x: Float[Tensor, "*batch d"], y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """y + s · bottleneck(x)."""
        return y + self.scale * self.adapter(x)


class ParallelBeforeNorm(ParallelAdapter):
    """The same in BERT, whose second half of feed-forward gets x as the residual and normalises the sum itself."""

    def forward(self, hidden: Float[Tensor, "batch seq d_ff"], x: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
        """norm(W hidden + x + s · bottleneck(x))."""
        return self.base(hidden, self.adapt(x, x) if self.switch.on else x)


class _Adapters(Handle):
    """What both kinds share: a bottleneck at each place."""

    own_format, must_agree = True, ("activation", "scale")
    places: ClassVar[Mapping[str, str]]
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """A bottleneck for each place."""
        c, d = self.config, width(self.model)
        if c.bottleneck > d:
            raise ValueError(f"bottleneck={c.bottleneck} exceeds the model's {d} features; choose 1–{d}")
        found = find(self.model, self.places[family(self.model)] if c.targets is None else c.targets, avoid=c.modules_to_save)
        return {place: self.wrap(place, layer) for place, layer in found.items()}

    def wrap(self, place: str, layer: nn.Module) -> Wrapper:
        """The part for one place."""
        raise NotImplementedError(f"{type(self).__name__} has no wrap()")

    def bottleneck(self, layer: nn.Module, *, zero: bool) -> Bottleneck:
        """A new bottleneck on the layer's device."""
        weights = [p for module in (layer, self.model) for p in module.parameters()]
        return Bottleneck(width(self.model), self.config.bottleneck, self.config.activation, zero=zero, **like(weights[0]))

    def file_tensors(self) -> dict[str, Tensor]:
        """`<place>.adapter.down.weight` and its like."""
        return {f"{PREFIX}{place}.{name}": p for place, part in self.parts.items() for name, p in part.own_parameters()}

    def file_config(self) -> dict[str, Any]:
        """The settings, under their own names."""
        c = self.config
        named = list(c.targets) if isinstance(c.targets, tuple) else c.targets
        return {"bottleneck": c.bottleneck, "activation": c.activation, "target_modules": named}


class HoulsbyHandle(_Adapters):
    """Attached sequential adapters."""

    method, peft_type, places = "houlsby", "HOULSBY", BEHIND

    def wrap(self, place: str, layer: nn.Module) -> Wrapper:
        """The part for one place."""
        return SequentialAdapter(layer, self.switch, self.bottleneck(layer, zero=False))


class ParallelHandle(_Adapters):
    """Attached parallel adapters."""

    method, peft_type, places = "parallel", "PARALLEL", BESIDE
    config: Parallel

    def wrap(self, place: str, layer: nn.Module) -> Wrapper:
        """The part for one place."""
        kind = ParallelBeforeNorm if type(interface.bottom(layer)).__name__.endswith("Output") else ParallelAdapter
        return kind(layer, self.switch, self.bottleneck(layer, zero=True), self.config.scale)

    def file_config(self) -> dict[str, Any]:
        """The settings, under their own names."""
        return {**super().file_config(), "scale": self.config.scale}


def width(model: nn.Module) -> int:
    """The features of the residual stream."""
    config = model.config
    return config.d_model if hasattr(config, "d_model") else config.hidden_size


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> HoulsbyHandle | ParallelHandle:
    """Freeze the model and put adapters into it: sequential ones for a `Houlsby` config (the default), or `Parallel` ones.

    Raises:
        ValueError: a target that matches nothing (the nearest names are told), a bottleneck wider than the model, a name taken.
    """
    kind = ParallelHandle if isinstance(config, Parallel) else HoulsbyHandle
    return kind(model, config or Houlsby(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The settings in an `adapter_config.json`."""
    named = fields["target_modules"]
    common = {
        "bottleneck": fields["bottleneck"],
        "activation": fields["activation"],
        "targets": tuple(named) if isinstance(named, list) else named,
        "modules_to_save": interface.heads_from_file(fields),
    }
    return Parallel(**common, scale=fields["scale"]) if fields["peft_type"] == "PARALLEL" else Houlsby(**common)
