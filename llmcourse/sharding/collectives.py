"""Collectives by hand: what all ranks do together, made of nothing but `send` and `recv`.

    all-reduce        every rank gets the sum              reduce-scatter, then all-gather      2 (N-1)/N of the bytes, a rank
    reduce-scatter    rank r gets chunk r of the sum       N-1 steps round a ring                 (N-1)/N
    all-gather        every rank gets all ranks' chunks    N-1 steps round a ring                 (N-1)/N
    broadcast         every rank gets the root's vector    a tree: those who have it pass it on   ⌈log₂ N⌉ rounds
    all-to-all        rank r gets everyone's chunk r       N-1 exchanges, in pairs                (N-1)/N

    the ring, N = 3: every rank sends right and receives from the left; what arrives is added to one's own

        rank 0  [a0 b0 c0]      sends c0 ─►  [a0   b0+b2   c0    ]      sends b0+b2 ─►  [a0+a2+a1  …        …       ]
        rank 1  [a1 b1 c1]      sends a1 ─►  [a1   b1      c1+c0 ]      sends c1+c0 ─►  […         b0+b2+b1 …       ]
        rank 2  [a2 b2 c2]      sends b2 ─►  [a2+a1 b2     c2    ]      sends a2+a1 ─►  […         …        c1+c0+c2]

Does:     the maths of the chunks, on one machine and without a wire (the first part of the file); the same over a process group,
          gloo or NCCL, equal to the library's (the second part). Vectors that N does not divide are padded.
Leaves out: other sums than +; trees for large N; overlap of sending and adding within a step.
Source:   Patarasuk and Yuan 2009 (the ring is optimal in bytes); Thakur et al. 2005, §3 and §4 (trees, pairs).
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from . import shards
from .common import Group

__all__ = [
    "all_gather", "all_gather_step", "all_reduce", "all_to_all", "broadcast", "exchange", "gathering_chunks", "reduce_scatter",
    "reduce_scatter_step", "reducing_chunks", "ring_all_reduce_states", "tree",
]  # fmt: skip

Held = Float[Tensor, "ranks chunks numbers"]

# --- the maths: who sends which chunk when ---------------------------------------------------------------------------


def reducing_chunks(rank: int, ranks: int, step: int) -> tuple[int, int]:
    """The chunk that `rank` sends right at this step of a reduce-scatter, and the one it receives from the left and adds.

    Chunk r starts behind its owner, at rank r + 1, and has passed all the others when rank r receives it, at the last step.
    """
    return (rank - step - 1) % ranks, (rank - step - 2) % ranks


def gathering_chunks(rank: int, ranks: int, step: int) -> tuple[int, int]:
    """The chunk that `rank` passes on at this step of an all-gather (first its own), and the one it receives."""
    return (rank - step) % ranks, (rank - step - 1) % ranks


def reduce_scatter_step(held: Held, step: int) -> Held:
    """What every rank holds after one step of the reduce-scatter, from what every rank held before."""
    ranks, after = len(held), held.clone()
    for rank in range(ranks):
        _, chunk = reducing_chunks(rank, ranks, step)
        after[rank, chunk] = held[rank, chunk] + held[rank - 1, chunk]
    return after


def all_gather_step(held: Held, step: int) -> Held:
    """What every rank holds after one step of the all-gather."""
    ranks, after = len(held), held.clone()
    for rank in range(ranks):
        _, chunk = gathering_chunks(rank, ranks, step)
        after[rank, chunk] = held[rank - 1, chunk]
    return after


def ring_all_reduce_states(held: Held) -> Float[Tensor, "states ranks chunks numbers"]:
    """The whole ring all-reduce, one state a step: the start, N-1 steps of adding, N-1 steps of passing on."""
    if held.shape[0] != held.shape[1]:
        raise ValueError(f"{held.shape[1]} chunks on {held.shape[0]} ranks: the ring needs as many chunks as ranks")
    states = [held]
    for one_step in (reduce_scatter_step, all_gather_step):
        for step in range(len(held) - 1):
            states.append(one_step(states[-1], step))
    return torch.stack(states)


def tree(rank: int, ranks: int, root: int = 0) -> tuple[int | None, list[int]]:
    """Whom `rank` gets a broadcast from (None: it is the root), and to whom it passes it on, in order.

    After round t, 2^t ranks have it; each sends it to the rank 2^t further on.
    """
    place = (rank - root) % ranks
    source = None if place == 0 else (place - (1 << (place.bit_length() - 1)) + root) % ranks
    further = [place + (1 << t) for t in range(place.bit_length(), ranks.bit_length())]
    return source, [(other + root) % ranks for other in further if other < ranks]


# --- the wire --------------------------------------------------------------------------------------------------------


def exchange(sent: Tensor, to: int, received: Tensor, source: int, group: Group = None) -> None:
    """Send to one rank of the group while receiving from another; both are done when this returns."""
    pair = [
        dist.P2POp(dist.isend, sent, group=group, group_peer=to),
        dist.P2POp(dist.irecv, received, group=group, group_peer=source),
    ]
    for work in dist.batch_isend_irecv(pair):
        work.wait()


def _place(group: Group) -> tuple[int, int]:
    return dist.get_rank(group), dist.get_world_size(group)


def reduce_scatter(x: Shaped[Tensor, " numbers"], group: Group = None) -> Shaped[Tensor, " shard"]:
    """This rank's chunk of the sum over all ranks; x is padded to equal chunks."""
    rank, ranks = _place(group)
    chunks = shards.pad(x, ranks).view(ranks, -1).clone()
    arriving = torch.empty_like(chunks[0])
    for step in range(ranks - 1):
        sent, received = reducing_chunks(rank, ranks, step)
        exchange(chunks[sent], (rank + 1) % ranks, arriving, (rank - 1) % ranks, group)
        chunks[received] += arriving
    return chunks[rank].clone()


def all_gather(own: Shaped[Tensor, " shard"], group: Group = None) -> Shaped[Tensor, " numbers"]:
    """The chunks of all ranks behind one another, on every rank."""
    rank, ranks = _place(group)
    chunks = own.new_empty(ranks, own.numel())
    chunks[rank] = own
    for step in range(ranks - 1):
        sent, received = gathering_chunks(rank, ranks, step)
        exchange(chunks[sent], (rank + 1) % ranks, chunks[received], (rank - 1) % ranks, group)
    return chunks.flatten()


def all_reduce(x: Shaped[Tensor, "*shape"], group: Group = None) -> Shaped[Tensor, "*shape"]:
    """The sum over all ranks, on every rank: a reduce-scatter, then an all-gather."""
    return all_gather(reduce_scatter(x.flatten(), group), group)[: x.numel()].view_as(x)


def broadcast(x: Shaped[Tensor, "*shape"], root: int = 0, group: Group = None) -> Shaped[Tensor, "*shape"]:
    """The root's x, on every rank; elsewhere x says only the shape."""
    source, further = tree(*_place(group), root)
    found = x.clone()
    if source is not None:
        dist.recv(found, group=group, group_src=source)
    for rank in further:
        dist.send(found, group=group, group_dst=rank)
    return found


def all_to_all(x: Shaped[Tensor, "ranks *shape"], group: Group = None) -> Shaped[Tensor, "ranks *shape"]:
    """Row j goes to rank j: what comes back holds, in row i, what rank i had for this one. A transpose over the wire."""
    rank, ranks = _place(group)
    if len(x) != ranks:
        raise ValueError(f"x has {len(x)} rows for {ranks} ranks; it needs one row for each")
    found = x.clone()
    for distance in range(1, ranks):
        to, source = (rank + distance) % ranks, (rank - distance) % ranks
        exchange(x[to].contiguous(), to, found[source], source, group)
    return found
