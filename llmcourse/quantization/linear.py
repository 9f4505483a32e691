"""Linear layers whose frozen weights are stored in 4 or 8 bits, or in trits.

    Linear4bit     x Wᵀ, W restored from 16 levels and the scales of its blocks
    Linear8bit     LLM.int8(): rows of x and W rounded to int8, a few columns with outliers multiplied in float

Does:     4 bits (nf4, int4, uniform4; scales plain or in 8 bits) and 8 bits, with the input's exact gradient, in float32,
          bfloat16, float16 and under autocast; outputs and gradients equal to bitsandbytes' Linear4bit.
Leaves out: training the codes; products that never restore W (bitsandbytes' GPU kernels).
Source:   Dettmers et al. 2023, "QLoRA", eq. 5–6; Dettmers et al. 2022, "LLM.int8()".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from . import int8, nf4
from .bitnet import PackedBitLinear
from .checks import check_choice, check_finite, check_float
from .frozen import Frozen

__all__ = ["METHODS", "Linear4bit", "Linear8bit", "QuantConfig", "quantize_linear"]

METHODS = (*nf4.CODEBOOKS, "int8", "ternary")


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How to store a linear layer's weights.

    method: nf4, int4, uniform4, int8 or ternary. block_size, double: for 4 bits, how many weights share a scale, and whether
    the scales are quantised too. threshold: for int8, inputs of this size and more are multiplied in float; 0: none are.
    """

    method: str = "nf4"
    block_size: int = 64
    double: bool = True
    threshold: float = 6.0

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        nf4.check_block_size(self.block_size)
        if self.threshold < 0:
            raise ValueError(f"threshold is {self.threshold}; choose 0 (no outliers) or more")

    @property
    def bits(self) -> float:
        """What a weight of a large matrix takes, scales included; the one scale a row of int8 and ternary left out."""
        if self.method in nf4.CODEBOOKS:
            return nf4.bits_per_weight(self.block_size, self.double)
        return {"int8": 8.0, "ternary": 1.6}[self.method]


class Linear4bit(Frozen):
    """A frozen linear layer in 4 bits a weight."""

    def __init__(self, layer: nn.Linear, config: QuantConfig | None = None) -> None:
        """A copy of `layer`. Raises: ValueError or TypeError for weights that `nf4.quantize` refuses."""
        super().__init__(layer)
        self.config = c = config or QuantConfig()
        q = nf4.quantize(layer.weight, block_size=c.block_size, kind=c.method, double=c.double)
        for name, tensor in q.tensors.items():
            self.register_buffer(name, tensor)

    @property
    def quantized(self) -> nf4.Quantized4bit:
        """The weight as `nf4.quantize` returned it, wherever the layer has moved since."""
        about = {"shape": (self.out_features, self.in_features), "dtype": self.dtype, "block_size": self.config.block_size}
        return nf4.Quantized4bit(**dict(self.named_buffers()), **about, kind=self.config.method)

    def restore(self, dtype: torch.dtype) -> Float[Tensor, "out features"]:
        """The matrix in that dtype."""
        return nf4.dequantize(self.quantized, dtype)

    def product(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        """x Wᵀ, with W restored for this once."""
        return F.linear(x, self.restore(x.dtype))


class Linear8bit(Frozen):
    """A frozen linear layer in int8: rows of inputs and weights are rounded, columns with outlying inputs are not."""

    def __init__(self, layer: nn.Linear, config: QuantConfig | None = None) -> None:
        """A copy of `layer`. Raises: ValueError or TypeError for weights that are empty, not finite or not of a float type."""
        super().__init__(layer)
        self.config = config or QuantConfig(method="int8")
        check_float(layer.weight)
        codes, largest, _ = int8.vectorwise(layer.weight.detach())
        check_finite(layer.weight, largest)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", largest)

    def restore(self, dtype: torch.dtype) -> Float[Tensor, "out features"]:
        """The matrix in that dtype."""
        return (self.codes * (self.scales / 127)[:, None]).to(dtype)

    def product(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        """LLM.int8()."""
        y = int8.mixed_matmul(x.reshape(-1, self.in_features), self.codes, self.scales, self.config.threshold)
        return y.view(*x.shape[:-1], self.out_features)


def quantize_linear(layer: nn.Linear, config: QuantConfig) -> Frozen:
    """The quantised copy of a linear layer that `config` asks for. Raises: as `nf4.quantize`, for weights it refuses."""
    if config.method == "ternary":
        return PackedBitLinear(layer)
    return Linear8bit(layer, config) if config.method == "int8" else Linear4bit(layer, config)
