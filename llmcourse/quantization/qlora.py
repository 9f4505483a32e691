"""QLoRA: the base in 4 bits, frozen; a low-rank correction beside each layer, in float, trained.

    x ─┬─► W in nf4, scales in 8 bits ─► restore ─► W x ──────► + ──► y
       └─► A (r × d_in) ─► B (d_out × r), trained in float ──► ┘

    bytes to train one number: 4 itself, 4 its gradient, 8 Adam's moments = 16          a frozen one in nf4: 0.52

Does:     quantises a model and attaches LoRA to every linear layer but the head, as the paper does; counts the bytes of training.
Leaves out: paged optimisers, which move Adam's moments to the processor's memory when the GPU's is full (bitsandbytes has them).
Source:   Dettmers et al. 2023, "QLoRA", §3 and eq. 5.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from .linear import QuantConfig
from .models import SKIP, is_quantized, quantize_model

if TYPE_CHECKING:
    from ..peft import lora

__all__ = ["TrainingBytes", "attach", "training_bytes"]


def attach(
    model: nn.Module,
    lora_config: "lora.Config | None" = None,
    quant_config: QuantConfig | None = None,
    name: str = "default",
    skip: Collection[str] = SKIP,
) -> "lora.LoRA":
    """Quantise the model's linear layers in place, unless they are already, and attach LoRA; returns LoRA's handle.

    Without a config LoRA sits beside every linear layer but the head, and the base is nf4 with double quantisation.
    Raises: ValueError as `quantize_model` and `lora.attach` do, and for a `quant_config` when the model is quantised already.
    """
    from ..peft import lora

    if not any(is_quantized(module) for module in model.modules()):
        quantize_model(model, quant_config, skip)
    elif quant_config is not None:
        raise ValueError("this model is quantised already, perhaps otherwise than quant_config says; leave quant_config out")
    return lora.attach(model, lora_config or lora.Config(targets="all-linear"), name)


@dataclass(frozen=True, kw_only=True)
class TrainingBytes:
    """What training holds in memory besides activations."""

    frozen: int
    trained: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.frozen + self.trained + self.gradients + self.moments


def training_bytes(model: nn.Module, moment_bytes: int = 8) -> TrainingBytes:
    """By formula, for any model, also on the meta device: gradients as large as what is trained, `moment_bytes` for each number.

    moment_bytes: 8 for Adam in float32, 2 for an 8-bit Adam.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    everything = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    own = sum(p.nbytes for p in trained)
    moments = moment_bytes * sum(p.numel() for p in trained)
    return TrainingBytes(frozen=everything - own, trained=own, gradients=own, moments=moments)
