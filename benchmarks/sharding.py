"""Our ZeRO-3 against FSDP2 (`fully_shard`), our DDP against DistributedDataParallel: a training step on two ranks.

    each rank      ours  theirs │ theirs  ours │ …        all ranks run the same pair at the same time, in one launch

Both sides train the same random Llama from the same weights on the same rows with the same fused AdamW, and both clip by the
global norm; their losses are asserted equal, step by step, before anything is measured. Time is what rank 0 sees; no rank is
ahead of another by more than a message. Bytes are those of parameters, gradients and AdamW's moments that the rank with the most
of them holds after a backward pass.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from benchmarks.race import Result, race, report
from llmcourse.sharding import ddp, launch, zero
from llmcourse.sharding.scripts import rank
from llmcourse.sharding.scripts.train import state_bytes
from llmcourse.transformer import Config, Transformer

__all__ = ["main"]

RANKS, VOCAB, CLIP = 2, 4096, 1.0
Step = Callable[[], Tensor]
Held = Callable[[], dict[str, int]]
ADAMW = partial(torch.optim.AdamW, lr=1e-4, fused=True)


def llama(width: int, layers: int) -> Transformer:
    """A random Llama; 8 layers of 256 features are 10 M parameters."""
    torch.manual_seed(0)
    return Transformer(Config(vocab_size=VOCAB, d_model=width, n_layers=layers, n_heads=8, n_kv_heads=4, d_ff=27 * width // 10))


# --- the sides: a step, and what is held after its backward pass -------------------------------------------------------


def side(model: nn.Module, ids: Tensor, update: Callable[[], object], held: Held) -> tuple[Step, Held]:
    """Forward, backward, update; the same for all."""

    def backward() -> Tensor:
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss.detach()

    def step() -> Tensor:
        loss = backward()
        update()
        return loss

    def held_after_backward() -> dict[str, int]:
        backward()
        found = held()
        update()
        return found

    return step, held_after_backward


def our_zero3(model: Transformer, ids: Tensor) -> tuple[Step, Held]:
    strategy = zero.shard(model, ADAMW, zero.Config(clip=CLIP))
    return side(model, ids, strategy.step, strategy.bytes)


def fsdp2(model: Transformer, ids: Tensor) -> tuple[Step, Held]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
    return library(model, ids)


def our_ddp(model: Transformer, ids: Tensor) -> tuple[Step, Held]:
    strategy = ddp.replicate(model, ADAMW, ddp.Config(clip=CLIP))
    return side(model, ids, strategy.step, partial(state_bytes, model, strategy.optimizer))


def torch_ddp(model: Transformer, ids: Tensor) -> tuple[Step, Held]:
    return library(nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True), ids)


def library(model: nn.Module, ids: Tensor) -> tuple[Step, Held]:
    """The library's side of the loop, which clips as ours does."""
    optimizer = ADAMW(model.parameters())

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return side(model, ids, update, partial(state_bytes, model, optimizer))


# --- the races, on every rank ------------------------------------------------------------------------------------------


def compete(name: str, ours: Callable, theirs: Callable, goal: float, o: argparse.Namespace) -> list[Result]:
    """Time and bytes; rank 0's results count."""
    ids = torch.randint(VOCAB, (o.batch, o.seq + 1), generator=torch.Generator().manual_seed(dist.get_rank()))
    (our_step, our_held), (their_step, their_held) = (make(llama(o.width, o.layers), ids) for make in (ours, theirs))
    for _ in range(3):
        assert_close(our_step(), their_step(), rtol=1e-4, atol=1e-5)
    bytes_ = [most(held()) for held in (our_held, their_held)]
    timed = race(f"{name}, {RANKS} ranks, {o.batch} × {o.seq} tokens each", our_step, their_step, goal=goal, pairs=o.pairs)
    return [timed, bytes_result(f"{name}, bytes of the largest rank", *bytes_)]


def most(held: dict[str, int]) -> int:
    """The bytes of the rank that holds most."""
    total = torch.tensor(sum(held.values()))
    dist.all_reduce(total, dist.ReduceOp.MAX)
    return int(total)


def bytes_result(name: str, ours: int, theirs: int) -> Result:
    """Bytes do not vary, so one pair is all there is to measure."""
    ratio = ours / theirs
    sides = {"ours": ours / 1e6, "theirs": theirs / 1e6, "ratio": ratio, "low": ratio, "high": ratio}
    return Result(name=name, **sides, goal=1.05, pairs=1, unit="MB")


def on_a_rank() -> None:
    parser = argparse.ArgumentParser()
    for name, default in {"width": 256, "layers": 8, "batch": 4, "seq": 128, "pairs": 21}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    o = parser.parse_args()
    torch.set_num_threads(1)
    with rank.joined() as here:
        found = compete("ZeRO-3 step", our_zero3, fsdp2, 1.2, o) + compete("DDP step", our_ddp, torch_ddp, 1.1, o)[:1]
        here.result([asdict(result) for result in found])


def main(**options: int) -> None:
    """Launch the ranks, and report what rank 0 measured."""
    torch.set_num_threads(1)
    run = launch.run(__file__, ranks=RANKS, patience=900, **options)
    report("sharding", [Result(**result) for result in run.results[0]])


if __name__ == "__main__":
    on_a_rank()
