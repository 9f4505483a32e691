"""DDP: every rank holds the whole model, reads its own rows of the batch, and all agree on the mean gradient.

    backward, last layer first:   grad₄ grad₃ │ grad₂ grad₁ grad₀          two buckets
                                  bucket 0 ───┴─► all-reduce ──────┐       sent while backward goes on
                                                bucket 1 ──────────┴─► all-reduce ─► ÷ N ─► step

    strategy = ddp.replicate(model, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    model(ids) …; loss.backward()        # the loss is the rank's own mean
    norm = strategy.step()               # the gradient's global norm before clipping; gradients are cleared

Does:     buckets, sent as soon as they are full, in the same order on all ranks; gradients live in the buckets and are never
          copied; accumulation without messages (`no_sync`); clipping; tied and frozen parameters; parameters that only some
          ranks use; ranks that start unlike get rank 0's values.
Leaves out: buckets ordered by when gradients really come (DDP rebuilds them after the first step); buffers kept equal while
          training (batch norm); compressed gradients; double backward.
Source:   Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", §3.2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from . import shards
from .common import Group, MakeOptimizer, check_clip, scale_down, squares, trained

__all__ = ["Bucket", "Config", "Replicas", "fill_buckets", "replicate"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """bucket_bytes: all-reduce at least so much at once; overlap: while backward goes on; clip: the largest global norm."""

    bucket_bytes: int = 25 * 2**20
    overlap: bool = True
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.bucket_bytes < 1:
            raise ValueError(f"bucket_bytes={self.bucket_bytes} must be at least 1, which gives every parameter its own bucket")
        check_clip(self.clip)


def fill_buckets(parameters: Sequence[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """The parameters, last first as backward meets them; a bucket is closed when it is full or the dtype changes."""
    buckets: list[list[nn.Parameter]] = []
    full = True
    for parameter in reversed(parameters):
        if full or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
        buckets[-1].append(parameter)
        full = sum(p.numel() * p.element_size() for p in buckets[-1]) >= bucket_bytes
    return buckets


class Bucket:
    """Gradients that travel together: one vector, of which each parameter's `.grad` is a view."""

    def __init__(self, parameters: list[nn.Parameter], group: Group) -> None:
        self.parameters, self.group = parameters, group
        self.vector = parameters[0].new_zeros(sum(p.numel() for p in parameters))
        self.views = dict(zip(parameters, shards.unflatten(self.vector, [p.shape for p in parameters]), strict=True))
        self.missing, self.work = len(parameters), None
        for parameter, view in self.views.items():
            parameter.grad = view

    def adopt(self, parameter: nn.Parameter) -> None:
        """Take in a gradient that autograd put elsewhere, because someone had set `.grad` to None."""
        if parameter.grad is not self.views[parameter]:
            self.views[parameter].copy_(parameter.grad)
            parameter.grad = self.views[parameter]

    def send(self) -> None:
        """Begin to add up the gradients of all ranks."""
        self.work = dist.all_reduce(self.vector, group=self.group, async_op=True)

    def settle(self) -> None:
        """Wait for the sum and make it the mean."""
        self.work.wait()
        self.vector /= dist.get_world_size(self.group)
        self.missing, self.work = len(self.parameters), None


class Replicas:
    """A model that all ranks of `group` hold alike. Made by `replicate`; `optimizer` is there for schedules."""

    def __init__(
        self, model: nn.Module, optimizer: MakeOptimizer, config: Config, group: Group
    ) -> None:  # fmt: skip
        self.model, self.config, self.group = model, config, group
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, group=group, group_src=0)
        self.optimizer = optimizer(trained(model))
        self.buckets = [Bucket(parameters, group) for parameters in fill_buckets(trained(model), config.bucket_bytes)]
        self._syncing, self._running, self._agreed, self._sent = True, False, False, 0
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(lambda p, bucket=bucket: self._arrived(p, bucket))
            for bucket in self.buckets for parameter in bucket.parameters
        ]  # fmt: skip

    def step(self) -> Float[Tensor, ""]:
        """Clip, update, clear gradients. Gives the gradient's global norm before clipping, which all ranks know alike."""
        if not self._agreed:
            raise ValueError("step() found gradients of this rank alone; the last backward() before it must be outside no_sync()")
        vectors = [bucket.vector for bucket in self.buckets]
        norm = squares(vectors, vectors[0].device).sqrt()
        scale_down(vectors, norm, self.config.clip)
        self.optimizer.step()
        for vector in vectors:
            vector.zero_()
        self._agreed = False
        return norm

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes within only add to this rank's own gradients; the next one outside sends the sum."""
        before, self._syncing = self._syncing, False
        try:
            yield
        finally:
            self._syncing = before

    def remove(self) -> nn.Module:
        """Give the model back on its own, hooks gone."""
        for hook in self._hooks:
            hook.remove()
        return self.model

    def _arrived(self, parameter: nn.Parameter, bucket: Bucket) -> None:
        bucket.adopt(parameter)
        self._agreed = False
        if self._syncing:
            if not self._running:
                self._running = True
                torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
            bucket.missing -= 1
            if self.config.overlap:
                self._send_full()

    def _send_full(self) -> None:
        """Send the full buckets that come next. Never out of turn: ranks must agree on which message is which."""
        while self._sent < len(self.buckets) and self.buckets[self._sent].missing == 0:
            self.buckets[self._sent].send()
            self._sent += 1

    def _end_backward(self) -> None:
        for bucket in self.buckets[self._sent :]:  # parameters that this pass did not use
            bucket.send()
        for bucket in self.buckets:
            bucket.settle()
        self._running, self._agreed, self._sent = False, True, 0


def replicate(
    model: nn.Module, optimizer: MakeOptimizer, config: Config | None = None, *, group: Group = None
) -> Replicas:  # fmt: skip
    """Train copies of the model on all ranks of `group` (None: all). The model is called as before.

    Raises ValueError if nothing is to be trained.
    """
    return Replicas(model, optimizer, config or Config(), group)
