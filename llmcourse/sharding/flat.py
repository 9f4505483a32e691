"""A flat vector of parameters and this rank's shard of it: what ZeRO gathers, frees, and reduces.

    names        [a a a a a a] [b b b] [c]            parameters: views of `full`, so that the model runs as it always did
    full         [a a a a a a b b b c 0 0]            the whole vector, padded; stage 3 gives its memory back while it is not used
    own              [a a a]                          rank 1's shard of it
    master           [a a a]                          what the optimizer updates: `own` itself, or a float32 copy of it
    gradient         [a a a]                          averaged over the ranks, summed over backward passes

Does:     gather and free; reduce a gradient to this rank's shard of the mean; refresh after an update; any dtype, frozen or not.
Leaves out: when to do all this (see zero); the maths of the pieces (see shards).
Source:   Zhao et al. 2023, "PyTorch FSDP", §3.2.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import shards
from .common import Group, all_gather, reduce_scatter

__all__ = ["Flat"]


class Flat:
    """Parameters of one unit that are alike in dtype and in being trained: one padded vector, and this rank's shard of it.

    full: the whole vector, of which the parameters are views (stage 3: without memory while freed); own: this rank's shard, in
    the parameters' dtype; master: the shard that the optimizer updates (None if frozen): `own` itself, or a float32 copy.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], stage: int, dtype: torch.dtype | None, group: Group) -> None:
        self.names, self.parameters = list(named), list(named.values())
        self.shapes = [p.shape for p in self.parameters]
        self.sizes = [p.numel() for p in self.parameters]
        self.numel, self.trainable = sum(self.sizes), self.parameters[0].requires_grad
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self.stage = stage
        self.gradient: Tensor | None = None  # this rank's shard of it, averaged over ranks and summed over backward passes
        self.arrived, self.reduced = 0, False
        self._gathering: dist.Work | None = None
        self._reducing: tuple[dist.Work, Tensor, Tensor] | None = None
        self._allocate(dtype)

    def _allocate(self, dtype: torch.dtype | None) -> None:
        given = shards.pad(shards.flatten([p.data for p in self.parameters]), self.ranks)
        dist.broadcast(given, group=self.group, group_src=0)
        self.full = given.to(dtype) if dtype and given.is_floating_point() else given
        own = shards.piece(self.full, self.rank, self.ranks)
        self.own = own.clone() if self.stage == 3 else own
        mixed = self.full.dtype != given.dtype
        source = shards.piece(given, self.rank, self.ranks).float() if mixed else self.own
        self.master = nn.Parameter(source.clone() if mixed else source) if self.trainable else None
        self._views, self._bytes = shards.unflatten(self.full, self.shapes), self.full.untyped_storage().nbytes()
        self.whole = True
        self._show(self._views)

    def _show(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor

    # --- the vector: gathered and freed ------------------------------------------------------------------------------

    def gather(self) -> None:
        """Begin to collect the whole vector from all ranks, unless it is here or on its way."""
        if not self.whole and self._gathering is None:
            self.full.untyped_storage().resize_(self._bytes)
            self._gathering = all_gather(self.full, self.own, group=self.group, async_op=True)

    def wait(self) -> None:
        """Have the whole vector, and let the parameters show it."""
        self.gather()
        if self._gathering is not None:
            self._gathering.wait()
            self._gathering, self.whole = None, True
            self._show(self._views)

    def free(self) -> None:
        """Stage 3: give the whole vector's memory back. What still reads a parameter then reads NaN, never someone else's memory.

        The storage stays the same object: views of it that autograd has saved are valid again after the next gather.
        """
        if self.stage < 3 or not (self.whole or self._gathering):
            return
        self.wait()
        hole = self.full.new_full((), torch.nan if self.full.is_floating_point() else 0)
        self._show([hole.expand(shape) for shape in self.shapes])
        self.full.untyped_storage().resize_(0)
        self.whole = False

    def refresh(self) -> None:
        """The master's new values go where forward passes read them (in stage 3, gathering takes them further)."""
        if self.master is not None and self.master.dtype != self.own.dtype:
            self.own.copy_(self.master.detach())
        if self.stage < 3:
            all_gather(self.full, self.own, group=self.group)

    # --- its gradient: reduced and settled ---------------------------------------------------------------------------

    def reduce(self) -> None:
        """Begin to add up the gradients of all ranks, each rank receiving its shard of the sum."""
        holes = ((p.grad, size) for p, size in zip(self.parameters, self.sizes, strict=True))
        parts = [self.full.new_zeros(size) if grad is None else grad for grad, size in holes]
        sent = shards.pad(shards.flatten(parts), self.ranks)
        for parameter in self.parameters:
            parameter.grad = None
        received = torch.empty_like(self.own)
        work = reduce_scatter(received, sent, group=self.group, async_op=True)
        self._reducing, self.reduced = (work, received, sent), True  # `sent` must live until the work is done

    def settle(self) -> None:
        """Wait for the shard of the sum, make it an average, add it to what earlier backward passes left."""
        if self._reducing is not None:
            (work, received, _), self._reducing = self._reducing, None
            work.wait()
            received /= self.ranks
            self.gradient = received if self.gradient is None else self.gradient.add_(received)
