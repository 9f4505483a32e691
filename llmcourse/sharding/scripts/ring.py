"""Every collective by hand and from the library, on the first two, three … of the ranks: are they equal, and who sends how much?

    torchrun --standalone --nproc-per-node 4 ring.py --numbers 1000

Does:     the largest difference from the library's result; the messages and bytes that each rank sends by hand.
Leaves out: time, which on one machine says nothing about wires.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmcourse.sharding import collectives, common, counting
from llmcourse.sharding.scripts import rank

__all__ = ["LIBRARY", "compare", "main"]

Group = dist.ProcessGroup


def all_reduce(x: Tensor, group: Group) -> Tensor:
    found = x.clone()
    dist.all_reduce(found, group=group)
    return found


def reduce_scatter(x: Tensor, group: Group) -> Tensor:
    found = x.new_empty(x.numel() // group.size())
    common.reduce_scatter(found, x, group=group)
    return found


def all_gather(x: Tensor, group: Group) -> Tensor:
    found = x.new_empty(x.numel() * group.size())
    common.all_gather(found, x, group=group)
    return found


def broadcast(x: Tensor, group: Group) -> Tensor:
    found = x.clone()
    dist.broadcast(found, group=group, group_src=0)
    return found


def all_to_all(x: Tensor, group: Group) -> Tensor:
    found = torch.empty_like(x)
    dist.all_to_all_single(found, x, group=group)
    return found


LIBRARY: dict[str, Callable[[Tensor, Group], Tensor]] = {
    "all_reduce": all_reduce,
    "reduce_scatter": reduce_scatter,
    "all_gather": all_gather,
    "broadcast": broadcast,
    "all_to_all": all_to_all,
}


def compare(name: str, x: Tensor, group: Group) -> dict[str, Any]:
    """One collective by hand, counted, beside the library's. `bytes` is its larger side, as in `counting`."""
    with counting.count() as counts:
        ours = getattr(collectives, name)(x, group=group)
    theirs = LIBRARY[name](x, group)
    return {
        "collective": name,
        "ranks": group.size(),
        "bytes": max(x.nbytes, theirs.nbytes),
        "messages": sum(call.name == "send" for call in counts.calls),
        "sent": round(counts.sent),
        "error": (ours - theirs).abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--numbers", type=int, default=1000, help="in each rank's vector, for each rank that takes part")
    o = parser.parse_args()
    with rank.joined() as here:
        found = []
        for n in range(2, here.world + 1):
            group = dist.new_group(range(n))  # made by all ranks, also those outside it
            if here.rank < n:
                x = torch.randn(n, o.numbers, generator=torch.Generator().manual_seed(here.rank)).to(here.device)
                rows = [compare(name, x if name == "all_to_all" else x.flatten(), group) for name in LIBRARY]
                print(f"{n} ranks: my all-reduce took {rows[0]['messages']} messages of {x[0].nbytes:,} bytes")
                found += rows
            here.step(n - 1, here.world - 1)
        here.result(found)


if __name__ == "__main__":
    main()
