"""Counting: every message of a rank as it is sent, and every byte it holds; the formulas beside them.

    with count() as counts:                 counts.calls      [Call("all_gather", 4096, 4), Call("reduce_scatter", …), …]
        loss.backward(); strategy.step()    counts.sent       bytes this rank puts on the wire, if collectives run as rings

    a collective of b bytes on N ranks sends, a rank:    all_reduce 2 (N-1)/N b      the others (N-1)/N b      send b
    where b is the largest tensor of it: what is summed, what an all-gather ends with, what a reduce-scatter begins with

Does:     all collectives and point-to-point calls of torch.distributed, in whatever library makes them (ours, DDP, FSDP2,
          DTensor), in forward and backward; calls and bytes that data parallelism should have, exactly; state bytes by formula.
Leaves out: what the backend really does (gloo and NCCL choose their own algorithms); messages of other ranks; activations.
Source:   Rajbhandari et al. 2020, "ZeRO", §3 (states) and §7 (communication).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .shards import padded_size, shard_size

if TYPE_CHECKING:
    from .zero import Zero

__all__ = ["Call", "Counts", "Vector", "count", "ddp_step", "sent", "vectors", "zero_bytes", "zero_step"]

# What torch's operators are called in the field, functional ones included.
NAMES = {
    "allreduce_": "all_reduce", "allreduce_coalesced_": "all_reduce", "all_reduce": "all_reduce", "all_reduce_": "all_reduce",
    "allgather_": "all_gather", "_allgather_base_": "all_gather", "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather", "all_gather_into_tensor": "all_gather",
    "reduce_scatter_": "reduce_scatter", "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter", "reduce_scatter_tensor": "reduce_scatter",
    "alltoall_": "all_to_all", "alltoall_base_": "all_to_all", "all_to_all_single": "all_to_all",
    "broadcast_": "broadcast", "broadcast": "broadcast", "reduce_": "reduce", "gather_": "gather", "scatter_": "scatter",
    "send": "send", "recv_": "recv", "recv_any_source_": "recv",
}  # fmt: skip


class Call(NamedTuple):
    """One message or collective: its name, the bytes of its largest side, and among how many ranks."""

    name: str
    bytes: int
    ranks: int


def sent(call: Call) -> float:
    """Bytes that a rank puts on the wire: its own for `send`, else a rank's average in a ring."""
    share = {"send": 1.0, "recv": 0.0}.get(call.name, (call.ranks - 1) / call.ranks)
    return call.bytes * share * (2 if call.name == "all_reduce" else 1)


@dataclass
class Counts:
    """What was counted, in order."""

    calls: list[Call] = field(default_factory=list)

    @property
    def sent(self) -> float:
        """Bytes this rank put on the wire."""
        return sum(sent(call) for call in self.calls)

    def table(self) -> list[dict[str, Any]]:
        """A row for each kind of call, for `show.table`."""
        names = dict.fromkeys(call.name for call in self.calls)
        groups = {name: [call for call in self.calls if call.name == name] for name in names}
        return [
            {"call": name, "times": len(calls), "bytes": sum(c.bytes for c in calls), "sent": round(sum(map(sent, calls)))}
            for name, calls in groups.items()
        ]


class _Watch(TorchDispatchMode):
    """Sees every operator before it runs; those of torch.distributed are noted."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        library, _, name = func._schema.name.partition("::")
        ours = library in ("c10d", "_c10d_functional", "_c10d_functional_autograd") and name in NAMES
        out = func(*args, **(kwargs or {}))
        if ours:
            self.counts.calls.append(Call(NAMES[name], _bytes(name, args, out), _ranks(func, args)))
        return out


def _bytes(name: str, args: Sequence[Any], out: Any) -> int:
    """The larger of what goes in and what comes out. Operators that write into their arguments name both among these."""
    sides = [args[0], args[1] if name.endswith("_") and len(args) > 1 else None, None if name.endswith("_") else out]
    return max(sum(t.numel() * t.element_size() for t in tree_leaves(side) if isinstance(t, Tensor)) for side in sides)


def _ranks(func: Any, args: Sequence[Any]) -> int:
    """The size of the group, which functional operators know by name and the others hold."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.name == "process_group":
            return dist.ProcessGroup.unbox(value).size()
        if argument.name == "group_name":
            return (_resolve_process_group(value) if isinstance(value, str) else value).size()
    raise ValueError(f"{func} names no process group, so its ranks cannot be counted; report which torch this is")


@contextmanager
def count() -> Iterator[Counts]:
    """Count this rank's calls within the block."""
    counts = Counts()
    with _Watch(counts):
        yield counts


# --- theory ----------------------------------------------------------------------------------------------------------


class Vector(NamedTuple):
    """A flat vector as the formulas see it: numbers, bytes of each, trained or frozen, in the root or in a layer."""

    numel: int
    itemsize: int = 4
    trained: bool = True
    root: bool = False


def vectors(strategy: "Zero") -> list[Vector]:
    """The vectors of a strategy."""
    units = [(unit, flat) for unit in strategy.units for flat in unit.flats]
    return [Vector(f.numel, f.full.element_size(), f.trainable, not unit.name) for unit, f in units]


def zero_step(of: Sequence[Vector], ranks: int, stage: int, backwards: int = 1) -> list[Call]:
    """The calls of one step of ZeRO with so many backward passes, and a 4-byte sum for the global norm."""
    trained = [vector for vector in of if vector.trained]
    gathered = [*of, *(v for v in of if not v.root)] * backwards if stage == 3 else trained  # the root stays until backward
    reduced = trained * (1 if stage == 1 else backwards)
    calls = [(name, v) for name, many in (("all_gather", gathered), ("reduce_scatter", reduced)) for v in many]
    return [Call(name, padded_size(v.numel, ranks) * v.itemsize, ranks) for name, v in calls] + [Call("all_reduce", 4, ranks)]


def ddp_step(bucket_bytes: Sequence[int], ranks: int) -> list[Call]:
    """The calls of one step of DDP: an all-reduce a bucket."""
    return [Call("all_reduce", n, ranks) for n in bucket_bytes]


def zero_bytes(of: Sequence[Vector], ranks: int, stage: int) -> Counter[str]:
    """State bytes of a rank after backward, with AdamW: two float32 moments, and a float32 master where numbers are smaller."""
    total = Counter()
    for v in of:
        shard = shard_size(v.numel, ranks)
        total["parameters"] += v.itemsize * (shard if stage == 3 else shard * ranks)
        if v.trained:
            total["gradients"] += v.itemsize * (v.numel if stage == 1 else shard)
            total["optimizer"] += shard * (8 if v.itemsize == 4 else 12)
    return total
