"""Eight bits a number: divide by a scale, round to an integer from -127 to 127.

    absmax        code = round(x · 127 / max|x|)               0 stays 0; half of the codes idle if all x have one sign
    zero point    code = round(x / s) + z,  s = (max - min) / 255        the range fits, at the price of one more number
    one scale     for the tensor, for each row, or for each column: the fewer numbers share one, the smaller the error

    LLM.int8()    x: tokens × features,   W: out × features
                  features with an |x| ≥ 6 ──► a few columns, multiplied in float ───────────────────────┐
                  all others ──► rows of x and rows of W to int8 ──► integer product ──► · sₓ · s_W / 127² ──► + ──► x Wᵀ

Does:     both codes with one scale for a tensor, row or column; products of codes with whatever correction the zero points need;
          vector-wise quantisation with outliers kept apart, codes and scales equal to bitsandbytes'; errors measured.
Leaves out: calibrated activation ranges; SmoothQuant; int8 training.
Source:   Jacob et al. 2018, eq. 1–7 (zero point); Dettmers et al. 2022, "LLM.int8()", §2–3.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, Int32
from torch import Tensor

from .checks import check_choice, check_finite, check_float

__all__ = [
    "Errors",
    "Quantized8bit",
    "absmax",
    "absmax_codes",
    "dequantize",
    "errors",
    "int_matmul",
    "matmul",
    "mixed_matmul",
    "vectorwise",
    "zeropoint",
    "zeropoint_codes",
]

PER = {"tensor": None, "row": -1, "column": -2}  # the axis over which a maximum is taken
TINY = 1e-38


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized8bit:
    """x ≈ (codes - zero) · scale; scale and zero broadcast against the codes, zero is None where it is 0 by construction."""

    codes: Int8[Tensor, "*shape"]
    scale: Float[Tensor, "..."]
    zero: Int32[Tensor, "..."] | None
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points together."""
        return sum(x.nbytes for x in (self.codes, self.scale, self.zero) if x is not None)


def absmax(x: Float[Tensor, "*shape"], per: str = "tensor") -> Quantized8bit:
    """Symmetric codes from -127 to 127; `per` says what shares a scale: "tensor", "row" or "column".

    Raises: ValueError for an empty tensor, a value that is not finite (with its place), an unknown `per`, or a "column" of what
    has no columns; TypeError for what is not float32, bfloat16 or float16.
    """
    _check(x, per)
    codes, scale = absmax_codes(x.detach().float(), PER[per])
    return Quantized8bit(codes=codes, scale=scale, zero=None, dtype=x.dtype)


def absmax_codes(x: Float[Tensor, "*shape"], dim: int | None = None) -> tuple[Int8[Tensor, "*shape"], Float[Tensor, "..."]]:
    """Codes and their scale, x ≈ codes · scale: one for each row along `dim`, or one for all."""
    largest = x.abs().amax(_dims(x, dim), keepdim=True)
    return (x * (127 / largest.clamp_min(TINY))).round().to(torch.int8), largest / 127


def zeropoint(x: Float[Tensor, "*shape"], per: str = "tensor") -> Quantized8bit:
    """Codes from -128 to 127 that span the range of x, widened to contain 0, which keeps an exact code. Raises: as `absmax`."""
    _check(x, per)
    codes, scale, zero = zeropoint_codes(x.detach().float(), PER[per])
    return Quantized8bit(codes=codes, scale=scale, zero=zero, dtype=x.dtype)


def zeropoint_codes(
    x: Float[Tensor, "*shape"], dim: int | None = None
) -> tuple[Int8[Tensor, "*shape"], Float[Tensor, "..."], Int32[Tensor, "..."]]:
    """Codes, scale and zero point, x ≈ (codes - zero) · scale: one pair for each row along `dim`, or one for all."""
    low = x.amin(_dims(x, dim), keepdim=True).clamp_max(0)
    high = x.amax(_dims(x, dim), keepdim=True).clamp_min(0)
    scale = (high - low).clamp_min(TINY) / 255
    zero = (-128 - low / scale).round()
    codes = ((x / scale).round() + zero).clamp(-128, 127)
    return codes.to(torch.int8), scale, zero.to(torch.int32)


def dequantize(q: Quantized8bit, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
    """(codes - zero) · scale, in the original's dtype unless another is given."""
    codes = q.codes.float() if q.zero is None else q.codes.float() - q.zero
    return (codes * q.scale).to(dtype or q.dtype)


def _dims(x: Tensor, dim: int | None) -> list[int]:
    return list(range(x.ndim)) if dim is None else [dim]


def _check(x: Tensor, per: str) -> None:
    check_float(x)
    check_choice("per", per, PER)
    if x.ndim < {"tensor": 0, "row": 1, "column": 2}[per]:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} has no {per}s; choose per='tensor'")
    check_finite(x, x.detach().sum(dtype=torch.float64))  # NaN and infinity do not cancel out


# ---- products ---------------------------------------------------------------------------------------------------------


def int_matmul(a: Int8[Tensor, "m k"], b: Int8[Tensor, "n k"]) -> Int32[Tensor, "m n"]:
    """a bᵀ in whole numbers, exact up to k = 133 000."""
    if not a.is_cuda:
        return torch._int_mm(a, b.T)
    m, n = len(a), len(b)  # CUDA's kernel takes more than 16 rows, and multiples of 8
    a = F.pad(a, (0, -a.shape[1] % 8, 0, max(-m % 8, 24 - m)))
    return torch._int_mm(a, F.pad(b, (0, -b.shape[1] % 8, 0, -n % 8)).T)[:m, :n]


def matmul(a: Quantized8bit, b: Quantized8bit) -> Float[Tensor, "m n"]:
    """a bᵀ from the codes: (A - z_a)(B - z_b)ᵀ = A Bᵀ - z_a ΣB - z_b ΣA + k z_a z_b, the sums over the shared axis; then scales.

    Raises: ValueError where one side has a scale per column: inside the sum it cannot be taken out of it.
    """
    for name, side in (("a", a), ("b", b)):
        if side.scale.shape[-1] != 1:
            raise ValueError(f"{name} has one scale per column, and columns are summed over: quantise it per 'row' or 'tensor'")
    product = int_matmul(a.codes, b.codes).float()
    sums_a, sums_b = (side.codes.sum(-1, keepdim=True).float() for side in (a, b))
    zero_a, zero_b = (torch.zeros_like(side.scale) if side.zero is None else side.zero.float() for side in (a, b))
    corrected = product - zero_a * sums_b.T - sums_a * zero_b.T + a.codes.shape[1] * zero_a * zero_b.T
    return (corrected * a.scale * b.scale.T).to(a.dtype)


def vectorwise(
    x: Float[Tensor, "rows features"], threshold: float = 0.0
) -> tuple[Int8[Tensor, "rows features"], Float[Tensor, " rows"], Int[Tensor, " outliers"]]:
    """Codes by row, each row's absmax, and the outlier columns, which are 0 in the codes: those with an |x| ≥ threshold > 0.

    A row's absmax leaves out its outliers, and nothing else of their columns. A row of zeros gets codes 0.
    """
    size = x.float().abs()
    outlying = size >= threshold if threshold > 0 else torch.zeros_like(size, dtype=torch.bool)
    columns = outlying.any(0).nonzero().view(-1)
    largest = size.masked_fill(outlying, 0).amax(1)
    codes = (x * (127 / largest.clamp_min(TINY))[:, None]).round().clamp(-127, 127)
    codes = codes.index_fill(1, columns, 0) if columns.numel() else codes
    return codes.to(torch.int8), largest, columns


def mixed_matmul(
    x: Float[Tensor, "rows features"], codes: Int8[Tensor, "out features"], largest: Float[Tensor, " out"], threshold: float = 6.0
) -> Float[Tensor, "rows out"]:
    """LLM.int8(): x Wᵀ for W's row-wise `codes` and absmax, in int8 but for the columns where x has outliers."""
    x_codes, x_largest, columns = vectorwise(x, threshold)
    y = int_matmul(x_codes, codes) * (x_largest[:, None] * largest * (1 / 127**2))
    if columns.numel():
        y = y + x[:, columns].float() @ (codes[:, columns] * (largest / 127)[:, None]).T
    return y.to(x.dtype)


# ---- errors -----------------------------------------------------------------------------------------------------------


class Errors(NamedTuple):
    """How far a restored tensor is from the original."""

    mean: float  # of |error|
    worst: float
    relative: float  # √(Σ error² / Σ x²)
    decibels: float  # signal to noise: -20 log₁₀ of that; one more bit is worth 6


def errors(x: Float[Tensor, "*shape"], restored: Float[Tensor, "*shape"]) -> Errors:
    """The usual four numbers."""
    x, gap = x.detach().double(), (restored.detach().double() - x.detach().double())
    relative = (gap.square().sum() / x.square().sum()).sqrt()
    return Errors(gap.abs().mean().item(), gap.abs().max().item(), relative.item(), (-20 * relative.log10()).item())
