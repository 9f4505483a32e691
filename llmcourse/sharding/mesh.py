"""Two dimensions: ZeRO-3 along one axis of the ranks, tensor parallelism along the other.

                     tensor rank 0    tensor rank 1
    data rank 0           [0]              [1]          a row is one model, cut over its ranks; each row has its part of the batch
    data rank 1           [2]              [3]
                           a column has the same pieces of the weights: ZeRO-3 shards them over its ranks

    weights        W  ──column or row parallel──►  W_t  ──flat, padded, sharded──►  1 / (tensor · data) of W on each rank
    messages       along a row: activations, many and small: within a node        along a column: weights and gradients

Does:     any grid of ranks; ZeRO's stages 1 to 3 with tensor or sequence parallelism; clipping by the norm of the whole gradient;
          a batch dealt out to the rows; the whole logits and weights.
Leaves out: pipeline stages as a third axis; rows with different numbers of tokens that count (each row's mean weighs the same).
Source:   Narayanan et al. 2021, "Efficient Large-Scale Language Model Training", §3; Rajbhandari et al. 2020, "ZeRO", §1.
"""

from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from ..transformer import Transformer
from . import zero
from .common import ADAMW, Group, MakeOptimizer
from .tensor import Cut, cuts, parallelize, vocab_parallel_cross_entropy, whole, whole_state

__all__ = ["Mesh", "ZeroTensor", "grid", "mesh"]


def grid(ranks: int, tensor: int) -> list[list[int]]:
    """The ranks in rows of `tensor` neighbours. Raises ValueError if the rows are not all full."""
    if tensor < 1 or ranks % tensor:
        raise ValueError(f"{ranks} ranks do not form rows of tensor={tensor}; choose a divisor of {ranks}")
    return [list(range(start, start + tensor)) for start in range(0, ranks, tensor)]


@dataclass(frozen=True)
class Mesh:
    """This rank's row (`tensor`) and column (`data`), and where it stands: `row` of `rows`."""

    tensor: Group
    data: Group
    row: int
    rows: int

    def part(self, batch: Tensor) -> Tensor:
        """The sequences of a global batch that this rank's row reads; the rows' means are equal partners, so parts are equal."""
        if len(batch) % self.rows:
            raise ValueError(f"batch={len(batch)} cannot be dealt equally to {self.rows} rows; choose a multiple of {self.rows}")
        return batch.unflatten(0, (self.rows, -1))[self.row]


def mesh(tensor: int) -> Mesh:
    """The groups of a grid over all ranks. Every rank must call it, as every group is made by all ranks together."""
    rank, rows = dist.get_rank(), grid(dist.get_world_size(), tensor)
    columns = [list(column) for column in zip(*rows, strict=True)]
    groups = {tuple(ranks): dist.new_group(ranks) for ranks in chain(rows, columns)}
    (row,) = (ranks for ranks in rows if rank in ranks)
    (column,) = (ranks for ranks in columns if rank in ranks)
    return Mesh(groups[tuple(row)], groups[tuple(column)], column.index(rank), len(rows))


class ZeroTensor:
    """A model cut over its row and sharded over its column: `strategy.loss(…).backward()`, then `strategy.step()`.

    `zero` has the clipping, and what the shards hold (`strategy.zero.bytes()`).
    """

    def __init__(
        self, model: Transformer, mesh: Mesh, *, config: zero.Config | None = None, sequence: bool = False,
        optimizer: MakeOptimizer = ADAMW,
    ) -> None:  # fmt: skip
        self.mesh, self.model = mesh, parallelize(model, mesh.tensor, sequence=sequence)
        cut, size = cuts(model), dist.get_world_size(mesh.tensor)
        # A weight that is not cut lies on every rank of a row, but is one weight of the model: the norm counts it once.
        options = {"norm_group": dist.group.WORLD, "copies": lambda name: 1 if name in cut else size}
        self.zero = zero.shard(model, optimizer, config, group=mesh.data, **options)

    def loss(self, ids: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        """Cross-entropy of this row's part of a global batch; its gradient is averaged over the rows."""
        ids, targets = self.mesh.part(ids), self.mesh.part(targets)
        return vocab_parallel_cross_entropy(self.model(ids), targets, self.model.config.vocab_size, self.mesh.tensor)

    def mean(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The global batch's loss: the mean over the rows."""
        total = loss.detach().clone()
        dist.all_reduce(total, group=self.mesh.data)
        return total / self.mesh.rows

    def step(self) -> Float[Tensor, ""]:
        """Clip, update the shards, forget the gradients. Returns the gradient's global norm before it was clipped."""
        return self.zero.step()

    @torch.no_grad()
    def logits(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Those of the whole vocabulary for sequences that every rank gives, on every rank."""
        return whole(self.model(ids), Cut(-1, self.model.head.cuts["weight"].widths), self.mesh.tensor)

    def whole_state(self) -> dict[str, Tensor]:
        """The weights by the names they had, unsharded and uncut, on every rank."""
        with self.zero.gathered():
            return whole_state(self.model, self.mesh.tensor)
