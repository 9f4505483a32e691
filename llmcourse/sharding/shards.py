"""Shards: many tensors in one flat vector, padded, and cut into equal pieces, one for each rank.

    tensors   [a a a a a a] [b b b] [c]                      of any shapes
    flatten   [a a a a a a b b b c]                          10 numbers
    pad       [a a a a a a b b b c 0 0]                      to a multiple of 4 ranks
    shard     [a a a] [a a a] [b b b] [c 0 0]                rank 0, 1, 2, 3

Does:     flatten, pad, shard and their inverses; where a parameter's numbers lie in a rank's shard; what each new rank reads
          from which old shard when the number of ranks changes.
Leaves out: the wire (see collectives), shards along a tensor's axis (see tensor), unequal shares.
Source:   Rajbhandari et al. 2020, "ZeRO", §5; Zhao et al. 2023, "PyTorch FSDP", §3.2 (the flat parameter).
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor

__all__ = [
    "Overlap", "flatten", "overlaps", "pad", "padded_size", "piece", "pieces", "shard", "shard_size", "unflatten", "unshard",
]  # fmt: skip

Vector, Padded, Piece = Shaped[Tensor, " numbers"], Shaped[Tensor, " padded"], Shaped[Tensor, " piece"]


def flatten(tensors: Sequence[Tensor]) -> Vector:
    """All numbers of the tensors in one vector, one tensor behind the other."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(flat: Vector, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Views of the vector in the given shapes; padding behind them is left alone."""
    sizes = [prod(shape) for shape in shapes]
    if sum(sizes) > flat.numel():
        raise ValueError(f"the shapes need {sum(sizes)} numbers, the vector has {flat.numel()}; gather it whole first")
    cut = flat[: sum(sizes)].split(sizes)
    return [part.view(torch.Size(shape)) for part, shape in zip(cut, shapes, strict=True)]


def shard_size(numel: int, ranks: int) -> int:
    """Numbers in a shard: numel / ranks, rounded up."""
    if ranks < 1:
        raise ValueError(f"{ranks} ranks cannot hold shards; choose at least 1")
    return -(-numel // ranks)


def padded_size(numel: int, ranks: int) -> int:
    """The next multiple of `ranks`: what all shards hold together."""
    return shard_size(numel, ranks) * ranks


def pad(flat: Vector, ranks: int) -> Padded:
    """Zeros behind the numbers, up to a multiple of `ranks`."""
    return F.pad(flat, (0, padded_size(flat.numel(), ranks) - flat.numel()))


def piece(padded: Padded, rank: int, ranks: int) -> Piece:
    """A rank's part of an already padded vector, as a view."""
    if padded.numel() % ranks:
        raise ValueError(f"{padded.numel()} numbers do not split into {ranks} equal shards; pad them first")
    return padded.view(ranks, -1)[rank]


def shard(flat: Vector, rank: int, ranks: int) -> Piece:
    """Pad, cut, and take this rank's piece."""
    return piece(pad(flat, ranks), rank, ranks)


def unshard(shards: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The tensors again, from the shards of all ranks in order."""
    return unflatten(torch.cat(list(shards)), shapes)


def pieces(sizes: Sequence[int], rank: int, ranks: int) -> list[slice]:
    """Where in this rank's shard each tensor's numbers lie; an empty slice for a tensor that lies elsewhere."""
    size, start, found = shard_size(sum(sizes), ranks), 0, []
    for n in sizes:
        low, high = (min(max(place - rank * size, 0), size) for place in (start, start + n))
        found.append(slice(low, high))
        start += n
    return found


class Overlap(NamedTuple):
    """Numbers `source` of the old rank's shard belong at `target` of the new one."""

    old_rank: int
    source: slice
    target: slice


def overlaps(numel: int, old_ranks: int, rank: int, ranks: int) -> list[Overlap]:
    """What the shard of `rank` among `ranks` takes from which shards of `old_ranks`: only what lies there, and no padding."""
    old, new = shard_size(numel, old_ranks), shard_size(numel, ranks)
    start, end = min(rank * new, numel), min((rank + 1) * new, numel)
    found = []
    for k in range(old_ranks):
        low, high = max(start, k * old), min(end, (k + 1) * old)
        if low < high:
            found.append(Overlap(k, slice(low - k * old, high - k * old), slice(low - rank * new, high - rank * new)))
    return found
