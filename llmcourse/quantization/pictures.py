"""What notebook 05 draws with controls: a layer's weights, the values that are left of them, and the error.

    weights ─► blocks ─► divided by the block's largest ─► nearest of 2ᵇ even levels ─► histogram, ticks of the levels, error

Does:     even levels at any number of bits from 2 to 8, any block size, NF4 beside them at 4 bits; the figure, its alt text, and
          the controls for `show.play`.
Leaves out: packing; scales in 8 bits.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from . import int8, nf4

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CONTROLS", "Rounded", "alt", "even_levels", "picture", "rounded"]

CONTROLS: dict[str, Any] = {
    "bits": (2, 8, 1, 4),
    "block": {str(size): size for size in (64, 16, 32, 128, 256, 1024, 4096)},
    "levels": ["even", "normal quantiles (4 bits)"],
}


class Rounded(NamedTuple):
    """Weights divided by their block's largest, the levels they go to, and the relative error of the restored weights."""

    scaled: Float[Tensor, " n"]
    levels: Float[Tensor, " levels"]
    error: float


def even_levels(bits: int) -> Float[Tensor, " levels"]:
    """2ᵇ - 1 even levels from -1 to 1, 0 among them: the integers from -(2ᵇ⁻¹ - 1) to 2ᵇ⁻¹ - 1, divided by the largest."""
    largest = 2 ** (bits - 1) - 1
    return torch.arange(-largest, largest + 1) / largest


def rounded(weight: Float[Tensor, "..."], bits: int, block: int, levels: str = "even") -> Rounded:
    """The weights in blocks of `block`, each rounded to the nearest level; the last block is filled up with zeros."""
    table = even_levels(bits) if levels == "even" else nf4.nf4_codebook()
    flat = weight.detach().reshape(-1).float()
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scales = blocks.abs().amax(1, keepdim=True).clamp_min(1e-38)
    scaled = blocks / scales
    nearest = table[torch.bucketize(scaled, nf4.midpoints(table))]
    restored = (nearest * scales).view(-1)[: len(flat)]
    return Rounded(scaled.view(-1)[: len(flat)], table, int8.errors(flat, restored).relative)


def picture(weight: Float[Tensor, "..."], bits: int = 4, block: int = 64, levels: str = "even") -> "Figure":
    """The histogram of the scaled weights, a line for each level (up to 31 of them), and the error in the title."""
    from matplotlib.figure import Figure

    found = rounded(weight, bits, block, levels)
    fig = Figure(figsize=(6.8, 3.2), layout="constrained")
    axis = fig.subplots()
    axis.hist(found.scaled.numpy(), bins=101, range=(-1, 1), density=True, color="#56B4E9")
    if len(found.levels) <= 31:
        axis.vlines(found.levels.tolist(), 0, axis.get_ylim()[1] * 0.3, color="#D55E00", lw=1.5)
    axis.set(xlabel="weight, of its block's largest", ylabel="density", yticks=[])
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_title(f"{_named(bits, levels)}, blocks of {block}: error {found.error:.1%}", loc="left")
    return fig


def alt(bits: int = 4, block: int = 64, levels: str = "even") -> str:
    """What `picture` shows, in words."""
    return f"Histogram of a layer's weights divided by the largest of their block of {block}, with {_named(bits, levels)} marked"


def _named(bits: int, levels: str) -> str:
    return f"{2**bits - 1} even levels" if levels == "even" else "16 levels at normal quantiles"
