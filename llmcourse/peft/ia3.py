"""IA³: no new weights, only a trained gain for each feature: keys, values, and the hidden layer of the feed-forward net.

    keys, values:   y = l ⊙ (W x + b)          feed-forward:   y = W (l ⊙ x) + b          l starts at one

Does:     the gains on a layer's output or, for the feed-forward layers, on its input; merge; HF peft's files.
Leaves out: gains of one's own for each row of a batch.
Source:   Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning", §3.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import interface
from .interface import PREFIX, Handle, Switch, Wrapper, bottom, family, find
from .lora import features, like, targets, targets_for_file, targets_from_file, transposed

__all__ = ["IA3", "Config", "IA3Linear", "attach", "config_from_file", "ia3_merge"]

TARGETS = {
    "llama": ("k_proj", "v_proj", "down_proj"),
    "bert": ("key", "value", "output.dense"),
    "t5": ("k", "v", "wo"),
    "gpt2": ("c_attn", "mlp.c_proj"),
    "transformer": ("k", "v", "down"),
}
FEEDFORWARD = {
    "llama": ("down_proj",),
    "bert": ("output.dense",),
    "t5": ("wo",),
    "gpt2": ("mlp.c_proj",),
    "transformer": ("down",),
}


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """targets: as LoRA's; feedforward: those of them whose input is scaled, not their output. None: the paper's choice."""

    targets: str | tuple[str, ...] | None = None
    feedforward: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.targets is not None and self.feedforward is None:
            raise ValueError("with targets given, say which of them are feed-forward layers too: feedforward=(…), or () for none")


def ia3_merge(
    W: Float[Tensor, "d_out d_in"], b: Float[Tensor, " d_out"], gain: Float[Tensor, " d"], on_input: bool
) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"]]:
    """The weight (d_out × d_in) and bias of one layer that does what l ⊙ (W x + b), or W (l ⊙ x) + b, does."""
    return (W * gain, b) if on_input else (gain[:, None] * W, gain * b)


class IA3Linear(Wrapper):
    """A frozen linear layer with a gain for each feature of its output or of its input."""

    def __init__(self, base: nn.Module, switch: Switch, on_input: bool) -> None:
        super().__init__(base, switch)
        self.on_input = on_input
        self.gain = nn.Parameter(torch.ones(features(bottom(base))[0 if on_input else 1], **like(bottom(base).weight)))

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """l ⊙ (W x + b), or W (l ⊙ x) + b."""
        if not self.switch.on:
            return self.base(x)
        if self.on_input:
            return self.base((x * self.gain).to(x.dtype))
        y = self.base(x)
        return (y * self.gain).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The layer's weight with its columns (gain on the input) or its rows scaled, and in the second case its bias."""
        layer = bottom(self)
        weight, bias = (layer.weight.T if transposed(layer) else layer.weight), layer.bias
        new, new_bias = ia3_merge(weight, self.gain.new_zeros(len(weight)) if bias is None else bias, self.gain, self.on_input)
        scaled = {"weight": (new.T if transposed(layer) else new).to(weight.dtype)}
        return scaled if bias is None or self.on_input else {**scaled, "bias": new_bias.to(bias.dtype)}


class IA3(Handle):
    """An attached IA³ adapter."""

    method, peft_type, mergeable = "ia3", "IA3", True
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """A gain for each target layer."""
        c = self.config
        found = targets(self.model, c.targets, TARGETS, avoid=c.modules_to_save)
        feedforward = FEEDFORWARD[family(self.model)] if c.feedforward is None else c.feedforward
        scaled = find(self.model, feedforward, what="feedforward", avoid=c.modules_to_save) if feedforward else {}
        for place, layer in found.items():
            if isinstance(bottom(layer), nn.Embedding):
                raise ValueError(f'"{place}" is an embedding; IA³ scales linear layers')
        return {place: IA3Linear(layer, self.switch, place in scaled) for place, layer in found.items()}

    def file_tensors(self) -> dict[str, Tensor]:
        """HF peft's keys and shapes: a gain on the input is a row there, one on the output a column; views of the live ones."""
        shapes = {place: (1, -1) if part.on_input else (-1, 1) for place, part in self.parts.items()}
        return {f"{PREFIX}{place}.ia3_l": part.gain.view(shapes[place]) for place, part in self.parts.items()}

    def file_config(self) -> dict[str, Any]:
        """HF peft's fields."""
        named, feedforward = targets_for_file(self, TARGETS), self.config.feedforward
        feedforward = FEEDFORWARD[family(self.model)] if feedforward is None else feedforward
        if not isinstance(feedforward, str):
            feedforward = sorted(feedforward)
            if not isinstance(named, str) and not set(feedforward) <= set(named):  # HF peft wants a part of the targets
                named, feedforward = sorted(self.parts), sorted(place for place, part in self.parts.items() if part.on_input)
        turned = any(transposed(bottom(part)) for part in self.parts.values())
        return {"target_modules": named, "feedforward_modules": feedforward, "fan_in_fan_out": turned}


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> IA3:
    """Freeze the model and give the keys, the values and the feed-forward layers' inputs a trained gain.

    Raises:
        ValueError: a target that matches nothing (the nearest names are told), one that is no linear layer, or a name taken.
    """
    return IA3(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The settings in an `adapter_config.json`, ours or HF peft's."""
    feedforward = fields.get("feedforward_modules") or ()
    return Config(
        targets=targets_from_file(fields),
        feedforward=feedforward if isinstance(feedforward, str) else tuple(sorted(feedforward)),
        modules_to_save=interface.heads_from_file(fields),
    )
