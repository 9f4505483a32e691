"""DoRA: learn a weight's length and its direction apart.

    W' = m · V / ‖V‖        V = W + s · B A        m: one length for each output feature, starts at ‖W‖;  ‖·‖: of each row

    y = W' x + b = (m / ‖V‖) · (W x + s · B A x) + b

Does:     LoRA's linear layers with a trained magnitude; the norm counts as a constant in the backward pass, as the authors
          advise; merge; HF peft's files.
Leaves out: embeddings; a cache of the norms for generation (merge instead).
Source:   Liu et al. 2024, "DoRA", eq. 5 and §4.3 (the detached norm).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import interface, lora
from .interface import Wrapper, bottom
from .lora import LoRALinear, transposed

__all__ = ["Config", "DoRA", "DoRALinear", "attach", "config_from_file"]


@dataclass(frozen=True, kw_only=True)
class Config(lora.Config):
    """DoRA's settings are LoRA's."""


class DoRALinear(LoRALinear):
    """A linear layer whose rows keep a trained length, while a low-rank correction turns them."""

    def __init__(self, base: nn.Module, switch: interface.Switch, config: Config) -> None:
        super().__init__(base, switch, config)
        self.m = nn.Parameter(self.norm())

    def adapt(self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """(m / ‖V‖) · (y - b + s · B A x) + b."""
        bias = bottom(self).bias
        below = y if bias is None else y - bias
        if self.training and self.dropout:
            # HF peft lets the extra part alone see the dropped input: the frozen part stays whole, once.
            x = F.dropout(x, self.dropout)
            weight = bottom(self).weight
            return y + self._extra(x, F.linear(x, weight.T if transposed(bottom(self)) else weight))
        return y + self._extra(x, below)

    def _extra(self, x: Tensor, below: Tensor) -> Tensor:
        gain = self.m / self.norm()
        correction = F.linear(F.linear(x.to(self.A.dtype), self.A), self.B)
        return ((gain - 1) * below + gain * self.scale * correction).to(below.dtype)

    @torch.no_grad()
    def norm(self) -> Float[Tensor, " d_out"]:
        """‖W + s · B A‖, row by row; W is the weight without what other adapters may have merged into it."""
        layer, weight = self, bottom(self).weight
        while isinstance(layer, Wrapper):
            layer, weight = layer.base, layer.kept.get("weight", weight)  # the innermost merge kept the oldest
        return self._turned(weight).norm(dim=0 if transposed(layer) else 1)

    def _turned(self, weight: Tensor) -> Tensor:
        """V = W + s · B A, laid out as W."""
        left, right = (self.A.T, self.B.T) if transposed(bottom(self)) else (self.B, self.A)
        return torch.addmm(weight.to(left.dtype), left, right, alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The layer's weight, turned and stretched: (m / ‖V‖) · V."""
        weight, gain = bottom(self).weight, self.m / self.norm()
        turned = self._turned(weight)
        return {"weight": (turned * gain if transposed(bottom(self)) else turned * gain[:, None]).to(weight.dtype)}

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in a file."""
        return {**super().tensors(), "lora_magnitude_vector": self.m}


class DoRA(lora.LoRA):
    """An attached DoRA adapter."""

    method, additive = "dora", False
    config: Config

    def wrap(self, layer: nn.Module) -> Wrapper:
        """The part for one layer."""
        if isinstance(bottom(layer), nn.Embedding):
            raise ValueError("DoRA of an embedding is not implemented here; target linear layers")
        if not bottom(layer).weight.is_floating_point():
            raise ValueError(
                f"DoRA needs the norm of the weight, which is quantised here ({bottom(layer).weight.dtype}); use LoRA"
            )
        under = layer
        while isinstance(under, Wrapper):
            if not isinstance(under, LoRALinear):
                raise ValueError(f"DoRA must lie on the layer itself or on LoRA, not on {type(under).__name__}; attach it first")
            under = under.base
        return DoRALinear(layer, self.switch, self.config)

    def file_config(self) -> dict[str, Any]:
        """HF peft's fields: LoRA's, with a flag."""
        return {**super().file_config(), "use_dora": True}


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> DoRA:
    """Freeze the model and give each target layer a magnitude and a low-rank direction.

    Raises:
        ValueError: as `lora.attach`, and for embeddings.
    """
    return DoRA(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The settings in an `adapter_config.json` with `use_dora`."""
    return Config(**vars(lora.config_from_file(fields)))
