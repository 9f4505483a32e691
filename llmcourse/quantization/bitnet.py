"""BitNet b1.58: every weight is -1, 0 or 1, times one number for the whole matrix; every activation is an int8.

    β = mean |W|          ternary = clamp(round(W / β), -1, 1)          W ≈ β · ternary
    γ = max |x| a token   int8 = clamp(round(x · 127 / γ), -128, 127)   x ≈ γ/127 · int8
    y = (int8 · ternaryᵀ) · β γ / 127                                   additions and subtractions alone, then two scales

    training: the float W stays; forward uses its ternary form, backward pretends that rounding were the identity
              (straight-through), so the small steps of many batches add up until a weight changes its mind

    a trit      holds log₂ 3 = 1.585 bits          4 in a byte: 2 bits each          5 in a byte: 3⁵ = 243 ≤ 256, 1.6 bits each

Does:     `BitLinear`, trainable from scratch or from a float model, equal to transformers' AutoBitLinear; both packings (2 bits:
          transformers' layout, byte for byte); the packed layer, which gives the trained one's outputs.
Leaves out: kernels that add instead of multiply; learning-rate and weight-decay schedules of the paper; ternary embeddings.
Source:   Ma et al. 2024, "The era of 1-bit LLMs", §2; Wang et al. 2023, "BitNet", eq. 1–12; Bengio et al. 2013, §3.1.
"""

import copy
import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from .checks import check_finite, check_float
from .frozen import Frozen

__all__ = [
    "TRIT_BITS",
    "BitLinear",
    "PackedBitLinear",
    "gradients",
    "pack_base3",
    "pack_two_bits",
    "quantize_activations",
    "straight_through",
    "ternary",
    "trit_entropy",
    "unpack_base3",
    "unpack_two_bits",
]

TRIT_BITS = math.log2(3)
EPS = 1e-5  # the least mean and the least maximum: a matrix or token of zeros divides by something
TRITS = 5  # in a byte

# ---- quantise ---------------------------------------------------------------------------------------------------------


def ternary(w: Float[Tensor, "*shape"]) -> tuple[Int8[Tensor, "*shape"], Float[Tensor, ""]]:
    """Trits of -1, 0, 1 and the scale β = mean |w|: w ≈ β · trits.

    Raises: as `nf4.quantize`, for tensors that are empty, not finite or not of a float type.
    """
    check_float(w)
    inverse = _inverse_mean(w.detach())
    check_finite(w, 1 / inverse)
    return (w.detach().float() * inverse).round().clamp(-1, 1).to(torch.int8), 1 / inverse


def _inverse_mean(w: Tensor) -> Float[Tensor, ""]:
    return 1 / w.float().abs().mean().clamp(min=EPS)


def quantize_activations(
    x: Float[Tensor, "*batch features"],
) -> tuple[Int8[Tensor, "*batch features"], Float[Tensor, "*batch 1"]]:
    """Int8 codes and the factor 127/γ of each token: x ≈ codes / factor."""
    factor = 127 / x.detach().float().abs().amax(-1, keepdim=True).clamp(min=EPS)
    return (x.detach().float() * factor).round().clamp(-128, 127).to(torch.int8), factor


def straight_through(x: Float[Tensor, "*shape"], quantized: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`quantized` going forward; going backward its gradient goes to `x` unchanged, as if nothing had been rounded."""
    return _StraightThrough.apply(x, quantized)


class _StraightThrough(torch.autograd.Function):
    """x + (quantized - x).detach() does the same but for rounding errors of the sum."""

    @staticmethod
    def forward(ctx, x: Tensor, quantized: Tensor) -> Tensor:
        return quantized.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def round_weights(w: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """w as β · trits, in its own dtype."""
    inverse = _inverse_mean(w.detach())
    return ((w.detach().float() * inverse).round().clamp(-1, 1) / inverse).to(w.dtype)


def round_activations(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x as its int8 codes say, in its own dtype."""
    codes, factor = quantize_activations(x)
    return (codes / factor).to(x.dtype)


# ---- the trainable layer ----------------------------------------------------------------------------------------------


class BitLinear(nn.Linear):
    """A linear layer that computes with ternary weights and int8 activations, and trains the float weights behind them.

    norm: an RMSNorm of the inputs before they are rounded, as BitNet trained from scratch has it.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, norm: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.norm = nn.RMSNorm(in_features, eps=1e-6) if norm else None

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        x = x if self.norm is None else self.norm(x)
        weight = straight_through(self.weight, round_weights(self.weight))
        return F.linear(straight_through(x, round_activations(x)), weight, self.bias)


def gradients(
    x: Float[Tensor, "rows features"], w: Float[Tensor, "out features"], grad: Float[Tensor, "rows out"]
) -> tuple[Float[Tensor, "rows features"], Float[Tensor, "out features"]]:
    """What BitLinear's backward pass gives x and w, written out, for the gradient of its output.

    The products are those of the rounded x and w that made the output; from there straight through to the float ones.
    """
    return grad @ round_weights(w), grad.T @ round_activations(x)


# ---- packing ----------------------------------------------------------------------------------------------------------


def pack_two_bits(trits: Int8[Tensor, "rows *columns"]) -> UInt8[Tensor, "quarter *columns"]:
    """Four trits a byte, each plus 1 in two bits: byte i holds rows i, i + q, i + 2q and i + 3q of q = rows / 4, rounded up."""
    quarter = -(-len(trits) // 4)
    digits = (trits + 1).to(torch.uint8)
    padded = torch.cat((digits, digits.new_zeros(4 * quarter - len(trits), *trits.shape[1:])))
    first, second, third, fourth = padded.view(4, quarter, *trits.shape[1:])
    return first | second << 2 | third << 4 | fourth << 6


def unpack_two_bits(packed: UInt8[Tensor, "quarter *columns"], rows: int) -> Int8[Tensor, "rows *columns"]:
    """The first `rows` rows of trits."""
    digits = torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    return digits[:rows].to(torch.int8) - 1


def pack_base3(trits: Int8[Tensor, "*shape"]) -> UInt8[Tensor, " fifth"]:
    """Five trits a byte: t₀ + 3 t₁ + 9 t₂ + 27 t₃ + 81 t₄, each of them plus 1."""
    digits = (trits.reshape(-1) + 1).to(torch.uint8)
    digits = F.pad(digits, (0, -len(digits) % TRITS)).view(-1, TRITS)
    powers = torch.tensor([3**i for i in range(TRITS)], dtype=torch.uint8, device=trits.device)
    return (digits * powers).sum(1, dtype=torch.uint8)


def unpack_base3(packed: UInt8[Tensor, " fifth"], n: int) -> Int8[Tensor, " n"]:
    """The first `n` trits: each byte looks its five up."""
    return _digits(packed.device).index_select(0, packed.int()).view(-1)[:n]


@cache
def _digits(device: torch.device) -> Int8[Tensor, "243 5"]:
    numbers = torch.arange(3**TRITS)[:, None]
    return (numbers // 3 ** torch.arange(TRITS) % 3 - 1).to(device, torch.int8)


def trit_entropy(trits: Int8[Tensor, "*shape"]) -> float:
    """Bits a trit really carries, were each coded by how frequent its value is: at most log₂ 3, less when zeros prevail."""
    share = torch.bincount(trits.reshape(-1).long() + 1, minlength=3).double() / trits.numel()
    return -(share * share.log2().nan_to_num(neginf=0)).sum().item()


# ---- the packed layer -------------------------------------------------------------------------------------------------


class PackedBitLinear(Frozen):
    """A BitLinear for use alone: five trits a byte and one scale; gradients reach x straight through its rounding."""

    def __init__(self, layer: nn.Linear) -> None:
        """Of a BitLinear, or of any linear layer. Raises: as `ternary`, for weights it refuses."""
        super().__init__(layer)
        trits, scale = ternary(layer.weight)
        self.register_buffer("trits", pack_base3(trits))
        self.register_buffer("scale", scale)
        norm = getattr(layer, "norm", None)
        self.norm = None if norm is None else copy.deepcopy(norm).requires_grad_(False)

    def restore(self, dtype: torch.dtype) -> Float[Tensor, "out features"]:
        """β times the trits, in that dtype."""
        trits = unpack_base3(self.trits, self.in_features * self.out_features)
        return (trits.view(self.out_features, self.in_features) * self.scale).to(dtype)

    def product(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        """The rounded activations times the restored weight."""
        return F.linear(round_activations(x), self.restore(x.dtype))

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        return super().forward(x if self.norm is None else self.norm(x))
