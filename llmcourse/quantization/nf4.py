"""Four bits a weight: find the largest weight of a block, store it, and store every weight as the nearest of 16 levels.

    weights of one block      -0.31   0.04   0.12   0.62          absmax = 0.62, stored once a block
    divided by it             -0.50   0.06   0.19   1.00
    nearest level, its number     2      8     10     15          codes 0 … 15
    packed, two a byte         0x28   0xAF                        the first weight in the high half

    nf4       the levels are quantiles of a normal distribution, so that each is used about equally often
    int4      -8/7 … 7/7 in even steps: the integers; the block's largest weight is ±7/7, so -8/7 is never used
    uniform4  16 even steps from -1 to 1: none is wasted, but none is 0

    double quantisation   the scales themselves in 8 bits: scale = mean + level[code] · absmax of 256 scales
    bits a weight         4 + 32/64 = 4.5     double: 4 + 8/64 + 32/(64 · 256) = 4.127

Does:     quantise and dequantise any float tensor, of any size; codes, scales and restored weights equal bitsandbytes' bit for
          bit, its 8-bit scales too; save and load as safetensors.
Leaves out: fp4; rounding that looks at the data (GPTQ, AWQ); products of packed weights without restoring them.
Source:   Dettmers et al. 2023, "QLoRA", §3 and appendix E; Dettmers 2016 and Dettmers et al. 2022 (dynamic 8-bit levels).
          On a CPU bitsandbytes first moves a scale to a grid of 65 536 points, then takes the level nearest to it; so do we.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from .checks import check_choice, check_finite, check_float, read_file

__all__ = [
    "CODEBOOKS",
    "Quantized4bit",
    "bits_per_weight",
    "codebook",
    "dequantize",
    "dequantize_scales",
    "dynamic_codebook",
    "int4_codebook",
    "nf4_codebook",
    "pack",
    "quantize",
    "quantize_scales",
    "uniform4_codebook",
    "unpack",
]

CHUNK = 1 << 17  # weights at a time: what is made of them on the way then stays in the processor's cache
GROUP = 256  # scales that share one scale of their own
TINY = 1e-38  # so that a block of zeros divides by something

# ---- levels -----------------------------------------------------------------------------------------------------------


def nf4_codebook(tail: float = 0.9677083) -> Float[Tensor, "16"]:
    """The 16 levels of NF4: 0, 7 normal quantiles below it and 8 above, divided by the largest.

    The probabilities run in even steps from `tail` to ½, on each side for itself. 1 would be an infinite level, so they stop
    short of it: `tail` is 1 - (1/30 + 1/32)/2, half a step of 15 and half a step of 16 levels, as bitsandbytes rounds it.
    """
    below, above = (torch.linspace(tail, 0.5, n + 1)[:-1].double() for n in (7, 8))
    levels = torch.cat((-torch.special.ndtri(below), torch.zeros(1), torch.special.ndtri(above).flip(0))).float()
    return levels / levels.max()


def int4_codebook() -> Float[Tensor, "16"]:
    """The integers -8 … 7, with 7 as 1."""
    return torch.arange(-8, 8) / 7


def uniform4_codebook() -> Float[Tensor, "16"]:
    """16 levels from -1 to 1 in even steps."""
    return torch.linspace(-1, 1, 16)


CODEBOOKS: dict[str, Callable[[], Tensor]] = {"nf4": nf4_codebook, "int4": int4_codebook, "uniform4": uniform4_codebook}


@cache
def codebook(kind: str) -> Float[Tensor, "16"]:
    """The levels of that kind, in rising order. Raises: ValueError for an unknown kind, with the nearest known one."""
    check_choice("kind", kind, CODEBOOKS)
    return CODEBOOKS[kind]()


@cache
def dynamic_codebook() -> Float[Tensor, "256"]:
    """256 levels from -0.993 to 1, dense around 0: in each power of ten, upwards from 10⁻⁶, twice as many as in the one below."""
    levels = [0.0, 1.0]
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2**power + 1)
        middle = (10 ** (power - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        levels += [*middle, *(-level for level in middle)]
    return torch.tensor(sorted(levels))


def midpoints(levels: Float[Tensor, " n"]) -> Float[Tensor, " n_minus_1"]:
    """Where the nearest level changes."""
    return (levels[:-1] + levels[1:]) / 2


# ---- two codes a byte -------------------------------------------------------------------------------------------------


def pack(codes: UInt8[Tensor, " n"]) -> UInt8[Tensor, " half"]:
    """Two codes of 0–15 in each byte, the first in the high half; an odd last one gets a 0 beside it."""
    pairs = F.pad(codes, (0, len(codes) % 2)).view(torch.int16)  # the first code is the low byte of its pair
    return ((pairs << 4) | (pairs >> 8)).to(torch.uint8)


def unpack(packed: UInt8[Tensor, " half"], n: int) -> UInt8[Tensor, " n"]:
    """The first `n` codes of those bytes."""
    return torch.stack((packed >> 4, packed & 15), 1).flatten()[:n]


# ---- the quantised tensor ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized4bit:
    """A tensor in 4 bits: two codes a byte, one scale a block.

    scales: float32, or with double quantisation the codes (uint8) of 8-bit levels; then `scale_absmax` holds one number for
    each 256 of them, and `scale_mean` what was subtracted before. dtype: of the original, which `dequantize` returns.
    """

    codes: UInt8[Tensor, " bytes"]
    scales: Float[Tensor, " blocks"] | UInt8[Tensor, " blocks"]
    scale_absmax: Float[Tensor, " groups"] | None = None
    scale_mean: Float[Tensor, ""] | None = None
    shape: tuple[int, ...]
    dtype: torch.dtype
    block_size: int
    kind: str = "nf4"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def numel(self) -> int:
        """Weights."""
        return int(torch.Size(self.shape).numel())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        about = {"shape": self.shape, "dtype": str(self.dtype)[6:], "block_size": self.block_size, "kind": self.kind}
        save_file(self.tensors, path, metadata={"quantized4bit": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Quantized4bit":
        """Read it back. Raises: ValueError for a file that is missing, damaged or of another kind."""
        tensors, about = read_file(path, "quantized4bit")
        about |= {"shape": tuple(about["shape"]), "dtype": getattr(torch, about["dtype"])}
        return cls(**tensors, **about)


def bits_per_weight(block_size: int = 64, double: bool = False) -> float:
    """What a weight of a large tensor takes, its share of the scales included."""
    return 4 + (8 / block_size + 32 / (block_size * GROUP) if double else 32 / block_size)


# ---- quantise ---------------------------------------------------------------------------------------------------------


def quantize(x: Float[Tensor, "*shape"], *, block_size: int = 64, kind: str = "nf4", double: bool = False) -> Quantized4bit:
    """`x` in 4 bits: blocks of `block_size` neighbours in memory order share a scale; `double` quantises the scales too.

    Raises: ValueError for an empty tensor, a NaN or infinity (with its place), a block size that is not a power of two from
    16 to 4096, an unknown kind; TypeError for what is not float32, bfloat16 or float16.
    """
    levels = codebook(kind)
    check_block_size(block_size)
    check_float(x)
    flat, bounds = x.detach().reshape(-1), midpoints(levels).tolist()
    whole = flat.numel() // block_size * block_size
    parts = [_quantize_blocks(part.view(-1, block_size), bounds) for part in flat[:whole].split(CHUNK) if whole]
    if whole < flat.numel():
        parts.append(_quantize_rest(flat[whole:], bounds))
    codes, scales = (torch.cat(part) for part in zip(*parts, strict=True))
    check_finite(x, scales)
    about = {"codes": codes, "shape": tuple(x.shape), "dtype": x.dtype, "block_size": block_size, "kind": kind}
    return Quantized4bit(**about, **(quantize_scales(scales) if double else {"scales": scales}))


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless it is a power of two from 16 to 4096."""
    if not (16 <= block_size <= 4096 and block_size.bit_count() == 1):
        raise ValueError(f"block_size is {block_size}; choose a power of two from 16 to 4096 (bitsandbytes: from 32)")


def _quantize_blocks(blocks: Float[Tensor, "blocks size"], bounds: list[float]) -> tuple[Tensor, Tensor]:
    blocks = blocks.float()
    absmax = blocks.abs().amax(1)
    return pack(_nearest((blocks * (1 / absmax.clamp_min(TINY))[:, None]).view(-1), bounds)), absmax


def _quantize_rest(rest: Float[Tensor, " n"], bounds: list[float]) -> tuple[Tensor, Tensor]:
    """The last, shorter block. bitsandbytes divides here where it multiplies by the inverse elsewhere, and pads with a 0."""
    absmax = rest.float().abs().max().clamp_min(TINY)
    return pack(_nearest(F.pad(rest.float() / absmax, (0, len(rest) % 2)), bounds)), absmax[None]


def _nearest(x: Float[Tensor, " n"], bounds: list[float]) -> UInt8[Tensor, " n"]:
    """The number of the nearest level: how many midpoints lie below; a tie goes to the lower level.

    `torch.bucketize` says the same; 15 comparisons of everything at once are twice as fast as its search for each weight.
    """
    above = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    codes = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for bound in bounds:
        codes += torch.gt(x, bound, out=above).view(torch.uint8)
    return codes


# ---- dequantise -------------------------------------------------------------------------------------------------------


def dequantize(quantized: Quantized4bit, dtype: torch.dtype | None = None) -> Float[Tensor, "..."]:
    """The tensor again, level times scale, in its own dtype unless another is given."""
    q, n = quantized, quantized.numel
    table, scales = _pairs(q.kind, q.codes.device), dequantize_scales(q)
    pairs = torch.empty(len(q.codes), dtype=torch.int64, device=q.codes.device)
    for start in range(0, len(pairs), CHUNK // 2):
        part = pairs[start : start + CHUNK // 2]
        torch.index_select(table, 0, q.codes[start : start + CHUNK // 2].int(), out=part)
        _scale(part.view(torch.float32), scales[start * 2 // q.block_size :], q.block_size)
    return pairs.view(torch.float32)[:n].view(q.shape).to(dtype or q.dtype)


@cache
def _pairs(kind: str, device: torch.device) -> Int64[Tensor, "256"]:
    """Both levels of every byte, side by side in 64 bits: one look-up then restores two weights."""
    levels = codebook(kind)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), 1).view(torch.int64)[:, 0].to(device)


def _scale(values: Float[Tensor, " n"], scales: Float[Tensor, " blocks"], block_size: int) -> None:
    """Multiply each block by its scale, in place."""
    blocks, rest = divmod(len(values), block_size)
    values[: blocks * block_size].view(-1, block_size).mul_(scales[:blocks, None])
    if rest:
        values[-rest:].mul_(scales[blocks])


# ---- double quantisation ----------------------------------------------------------------------------------------------


def quantize_scales(scales: Float[Tensor, " blocks"]) -> dict[str, Tensor]:
    """Scales in 8 bits: less their mean, in groups of 256 divided by the group's absmax, as the nearest dynamic level."""
    mean = scales.mean()
    groups = F.pad(scales - mean, (0, -len(scales) % GROUP)).view(-1, GROUP)
    absmax = groups.abs().amax(1)
    scaled = groups * (1 / absmax.masked_fill(absmax == 0, 1))[:, None]
    # The grid's number, rounded once: bitsandbytes' processor instruction multiplies and adds in one go.
    number = (((scaled + 1) * 0.5).double() * 65_535 + 0.5).float().int()
    codes = _grid(scales.device)[number] * (absmax > 0)[:, None]  # a group of equal scales: all codes 0
    return {"scales": codes.view(-1)[: len(scales)], "scale_absmax": absmax, "scale_mean": mean}


@cache
def _grid(device: torch.device) -> UInt8[Tensor, "65536"]:
    """The nearest dynamic level of each of 65 536 even steps from -1 to 1."""
    steps = torch.arange(65_536) * 2 / 65_535 - 1
    return torch.bucketize(steps, midpoints(dynamic_codebook())).to(torch.uint8).to(device)


def dequantize_scales(quantized: Quantized4bit) -> Float[Tensor, " blocks"]:
    """One float32 a block, whether the scales were quantised or not."""
    q = quantized
    if q.scale_absmax is None:
        return q.scales
    levels = _dynamic_on(q.scales.device).index_select(0, q.scales.int())
    _scale(levels, q.scale_absmax, GROUP)
    return levels.add_(q.scale_mean)


@cache
def _dynamic_on(device: torch.device) -> Float[Tensor, "256"]:
    return dynamic_codebook().to(device)
