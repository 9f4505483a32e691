"""Train a tiny Llama with the course's strategies, step by step in turns, and report what every rank held and sent.

    torchrun --standalone --nproc-per-node 4 train.py --strategy ddp zero3 zero3:mixed --steps 20 --save DIR
    torchrun --standalone --nproc-per-node 2 train.py --strategy zero3:resumed --steps 20 --load DIR/zero3

All ranks make the same weights and the same global batch from the seed, so every strategy must arrive at the same losses. A
strategy's name may carry flags behind colons, for itself alone: mixed, checkpointing, late, resumed.

Does:     losses of the global batch; bytes of parameters, gradients, optimizer (after the backward pass) and the most that
          autograd kept at once; messages of a step; seconds a step, fairly, as all strategies take it in turns; what `plan`
          predicted of all that; a pipeline's timeline, and DDP's; ZeRO's sharded checkpoints.
Leaves out: data worth learning, evaluation.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from llmcourse.sharding import checkpoint, counting, ddp, mesh, pipeline, plan, recompute, tensor, zero
from llmcourse.sharding.scripts import rank
from llmcourse.transformer import Config, Transformer

__all__ = ["FLAGS", "STRATEGIES", "main", "train"]

FLAGS = {
    "checkpointing": "compute activations again",
    "mixed": "bfloat16 with float32 masters (zero1, zero2, zero3)",
    "late": "send gradients only after the backward pass (ddp)",
    "resumed": "go on from the checkpoint in --load (zero1, zero2, zero3)",
}
SHARDED = ("zero1", "zero2", "zero3")
ONLY = {"mixed": SHARDED, "late": ("ddp",), "resumed": SHARDED}


class Way(NamedTuple):
    """A strategy as the loop below sees it."""

    backward: Callable[[Tensor, Tensor], Tensor]  # (ids, targets) of the global batch → the loss; gradients are in place
    step: Callable[[], Any]
    held: Callable[[], dict[str, int]]  # bytes of parameters, gradients and optimizer, now
    layout: plan.Layout
    mean: Callable[[Tensor], Tensor] = lambda loss: loss  # the global batch's loss, from this rank's
    timeline: Callable[[], Any] = lambda: None
    shards: zero.Zero | None = None  # what a sharded checkpoint holds


# --- the strategies ----------------------------------------------------------------------------------------------------


def data_parallel(model: nn.Module, here: rank.Rank, o: argparse.Namespace, make: Callable, held: Callable, stage: int) -> Way:
    """Every rank reads its rows. `make(model)` gives the strategy, `held(strategy)` its bytes."""
    strategy = make(model)

    def backward(ids: Tensor, targets: Tensor) -> Tensor:
        loss = cross_entropy(model(part(ids, here)), part(targets, here))
        loss.backward()
        return loss

    layout, sharded = plan.Layout(data=here.world, stage=stage), strategy if isinstance(strategy, zero.Zero) else None
    return Way(backward, strategy.step, partial(held, strategy), layout, partial(mean, here=here), shards=sharded)


def single(model: nn.Module, here: rank.Rank, o: argparse.Namespace) -> Way:
    """No parallelism at all: the yardstick."""
    if here.world > 1:
        raise ValueError(f"strategy single needs one rank, not {here.world}")
    return data_parallel(model, here, o, lambda model: Plain(model, o), lambda s: state_bytes(model, s.optimizer), 0)


def our_ddp(model: nn.Module, here: rank.Rank, o: argparse.Namespace) -> Way:
    config = ddp.Config(clip=o.clip, overlap=not o.late, bucket_bytes=o.bucket)
    strategy = ddp.replicate(model, adamw(o), config)
    way = data_parallel(model, here, o, lambda _: strategy, lambda s: state_bytes(model, s.optimizer), 0)
    return way._replace(timeline=Clock(strategy).read)


def our_zero(model: nn.Module, here: rank.Rank, o: argparse.Namespace, stage: int) -> Way:
    config = zero.Config(stage=stage, clip=o.clip, dtype=torch.bfloat16 if o.mixed else None)
    return data_parallel(model, here, o, partial(zero.shard, optimizer=adamw(o), config=config), zero.Zero.bytes, stage)


def tensor_parallel(model: nn.Module, here: rank.Rank, o: argparse.Namespace, sequence: bool) -> Way:
    strategy = tensor.TensorParallel(model, sequence=sequence, optimizer=adamw(o), clip=o.clip)

    def backward(ids: Tensor, targets: Tensor) -> Tensor:
        loss = strategy.loss(ids, targets)
        loss.backward()
        return loss

    layout = plan.Layout(tensor=here.world, sequence_parallel=sequence)
    return Way(backward, strategy.step, partial(state_bytes, model, strategy.optimizer), layout)


def pipelined(model: nn.Module, here: rank.Rank, o: argparse.Namespace, schedule: pipeline.Schedule) -> Way:
    options = {"microbatches": o.micro_batches, "recompute": o.checkpointing, "optimizer": adamw(o), "clip": o.clip}
    strategy = pipeline.Pipeline(model, schedule=schedule, **options)
    held = partial(state_bytes, strategy.stage, strategy.optimizer)
    layout = plan.Layout(pipeline=here.world)
    return Way(strategy.forward_backward, strategy.step, held, layout, timeline=strategy.timeline)


def zero_tensor(model: nn.Module, here: rank.Rank, o: argparse.Namespace) -> Way:
    strategy = mesh.ZeroTensor(model, mesh.mesh(o.tensor), config=zero.Config(clip=o.clip), optimizer=adamw(o))

    def backward(ids: Tensor, targets: Tensor) -> Tensor:
        loss = strategy.loss(ids, targets)
        loss.backward()
        return loss

    layout = plan.Layout(data=here.world // o.tensor, tensor=o.tensor, stage=3)
    return Way(backward, strategy.step, strategy.zero.bytes, layout, strategy.mean)


def torch_ddp(model: nn.Module, here: rank.Rank, o: argparse.Namespace) -> Way:
    """PyTorch's own DDP, to compare."""
    wrapped = nn.parallel.DistributedDataParallel(model)
    return data_parallel(wrapped, here, o, lambda model: Plain(model, o), lambda s: state_bytes(model, s.optimizer), 0)


def fsdp2(model: nn.Module, here: rank.Rank, o: argparse.Namespace) -> Way:
    """PyTorch's own ZeRO-3, to compare."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    devices = init_device_mesh(here.device.type, (here.world,))  # on a CPU it must be said
    for module in (*model.blocks, model):
        fully_shard(module, mesh=devices)
    return data_parallel(model, here, o, lambda model: Plain(model, o), lambda s: state_bytes(model, s.optimizer), 3)


STRATEGIES: dict[str, Callable[[nn.Module, rank.Rank, argparse.Namespace], Way]] = {
    "single": single,
    "ddp": our_ddp,
    "zero1": partial(our_zero, stage=1),
    "zero2": partial(our_zero, stage=2),
    "zero3": partial(our_zero, stage=3),
    "tensor": partial(tensor_parallel, sequence=False),
    "sequence": partial(tensor_parallel, sequence=True),
    "gpipe": partial(pipelined, schedule=pipeline.gpipe),
    "1f1b": partial(pipelined, schedule=pipeline.one_f_one_b),
    "zero3+tensor": zero_tensor,
    "torch-ddp": torch_ddp,
    "fsdp2": fsdp2,
}


# --- parts of a step ---------------------------------------------------------------------------------------------------


class Plain:
    """An optimizer's step with clipping, for models that look after their own gradients."""

    def __init__(self, model: nn.Module, o: argparse.Namespace) -> None:
        self.model, self.clip, self.optimizer = model, o.clip, adamw(o)(list(model.parameters()))

    def step(self) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def adamw(o: argparse.Namespace) -> Callable[[list[nn.Parameter]], Optimizer]:
    return partial(torch.optim.AdamW, lr=o.lr)


def part(batch: Tensor, here: rank.Rank) -> Tensor:
    """This rank's rows of a global batch."""
    if len(batch) % here.world:
        raise ValueError(f"batch={len(batch)} cannot be dealt equally to {here.world} ranks; choose a multiple of {here.world}")
    return batch.unflatten(0, (here.world, -1))[here.rank]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def mean(loss: Tensor, here: rank.Rank) -> Tensor:
    """Over the ranks, which read equally many tokens."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total / here.world


def global_batch(o: argparse.Namespace, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids that count upwards, each row from its own start in its own stride, and the ids that follow them."""
    draw = torch.Generator().manual_seed(1000 * o.seed + step)
    start, stride = (torch.randint(1, n, (o.batch, 1), generator=draw) for n in (o.vocab, 4))
    ids = (start + stride * torch.arange(o.seq + 1)) % o.vocab
    return ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)


# --- what is measured --------------------------------------------------------------------------------------------------


def state_bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Bytes that this rank holds now; of a tensor shared out over ranks (DTensor), its own piece."""
    parameters = list(model.parameters())
    moments = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.ndim]
    kinds = {"parameters": parameters, "gradients": [p.grad for p in parameters if p.grad is not None], "optimizer": moments}
    return {kind: sum(local(t).numel() * t.element_size() for t in tensors) for kind, tensors in kinds.items()}


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Clock:
    """Of DDP's last backward pass: when each bucket's last gradient arrived, and from when to when its sum was on its way."""

    def __init__(self, strategy: ddp.Replicas) -> None:
        self.full: dict[int, float] = {}
        self.begins: dict[int, float] = {}
        self.ends: dict[int, torch.futures.Future[float]] = {}
        numbers = {bucket: number for number, bucket in enumerate(strategy.buckets)}
        arrives = strategy._arrived

        def arrived(parameter: nn.Parameter, bucket: ddp.Bucket) -> None:
            self.full[numbers[bucket]] = time.perf_counter()
            arrives(parameter, bucket)

        strategy._arrived = arrived
        for bucket, number in numbers.items():
            bucket.send = partial(self._send, bucket.send, bucket, number)

    def _send(self, send: Callable[[], None], bucket: ddp.Bucket, number: int) -> None:
        self.begins[number] = time.perf_counter()
        send()
        self.ends[number] = bucket.work.get_future().then(lambda _: time.perf_counter())

    def read(self) -> list[dict[str, float]]:
        """A bucket a row: seconds since the first one was full."""
        ends = {number: end.wait() for number, end in self.ends.items()}
        first, times = min(self.full.values()), {"full": self.full, "begins": self.begins, "ends": ends}
        return [{name: of[number] - first for name, of in times.items()} for number in sorted(self.full)]


class Kept:
    """Bytes that autograd keeps: now, and at most. Each piece of memory counts once, parameters never."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.bytes, self.most = model, 0, 0
        self.uses: Counter[int] = Counter()

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(partial(Slip, self), lambda slip: slip.tensor)

    def owns(self, storage: torch.UntypedStorage) -> bool:
        """Whether the memory is a parameter's: looked up anew, since ZeRO-3 swaps it."""
        return any(local(p).untyped_storage()._cdata == storage._cdata for p in self.model.parameters())

    def add(self, storage: torch.UntypedStorage, times: int) -> None:
        key, before = storage._cdata, self.uses[storage._cdata]
        self.uses[key] += times
        self.bytes += storage.nbytes() * ((self.uses[key] > 0) - (before > 0))
        self.most = max(self.most, self.bytes)


class Slip:
    """A kept tensor; when autograd lets go of it, it is counted off."""

    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.tensor, self.kept, self.storage = tensor, kept, tensor.untyped_storage()
        self.foreign = not kept.owns(self.storage)
        if self.foreign:
            kept.add(self.storage, 1)

    def __del__(self) -> None:
        if self.foreign:
            self.kept.add(self.storage, -1)


def planned(name: str, o: argparse.Namespace, config: Config, layout: plan.Layout) -> dict[str, float]:
    """What the calculator says of this run: bytes of the rank that holds most, and bytes sent."""
    pieces = o.micro_batches if layout.pipeline > 1 else 1
    job = plan.Job(
        batch=-(-o.batch // layout.data // pieces), micro_batches=pieces, seq=o.seq, checkpointing=o.checkpointing,
        precision="mixed" if o.mixed else "float32", schedule="gpipe" if name == "gpipe" else "1f1b",
    )  # fmt: skip
    found = plan.plan(plan.Model.of(config), layout, job)
    return {**found.memory, "sent": sum(found.sent.values()), "bubble": found.bubble}


# --- the run -----------------------------------------------------------------------------------------------------------


class Run:
    """One strategy at work: its model, its steps, and what is measured of the last one."""

    def __init__(self, word: str, here: rank.Rank, o: argparse.Namespace) -> None:
        self.name, self.o, self.here = word.partition(":")[0], flagged(word, o), here
        torch.manual_seed(o.seed)
        shape = {"d_model": o.width, "n_layers": o.layers, "n_heads": o.heads, "n_kv_heads": o.kv_heads, "d_ff": o.ff}
        self.config = Config(vocab_size=o.vocab, tied=o.tied, **shape)
        model = Transformer(self.config).to(here.device)
        if self.o.checkpointing and self.name not in ("gpipe", "1f1b"):
            recompute.attach(model)
        self.way, self.kept = STRATEGIES[self.name](model, here, self.o), Kept(model)
        self.losses, self.seconds, self.report, self.timeline = [], [], {}, None
        self.place = f"{o.save}/{word.replace(':', '-')}" if o.save and self.way.shards else None
        self.done = checkpoint.load(self.way.shards, o.load)["step"] if self.o.resumed else 0

    def step(self) -> float:
        """One step, with its loss; the last one is measured and not timed."""
        self.done += 1
        ids, targets = global_batch(self.o, self.done, self.here.device)
        began = time.perf_counter()
        if self.done == self.o.steps:
            loss, self.report = measured(self.way, self.kept, ids, targets)
        else:
            loss = self.way.backward(ids, targets)
            self.way.step()
            self.seconds.append(time.perf_counter() - began)
        self.losses.append(self.way.mean(loss.detach()).item())
        if self.done >= self.o.steps - 1:  # better of a step that was not counted, which takes longer
            self.timeline = self.timeline or self.way.timeline()
        if self.place and self.done == self.o.save_at:
            checkpoint.save(self.way.shards, self.place, {"step": self.done})
        return self.losses[-1]

    def result(self) -> dict[str, Any]:
        found = {"rank": self.here.rank, "losses": self.losses, "seconds": self.seconds, "timeline": self.timeline}
        return {**found, **self.report, "planned": planned(self.name, self.o, self.config, self.way.layout)}


def train(o: argparse.Namespace, here: rank.Rank) -> dict[str, dict[str, Any]]:
    """Train with all strategies, a step each in turns, every time another one first; a report each."""
    runs = {word: Run(word, here, o) for word in o.strategy}
    first = min(run.done for run in runs.values())
    for done in range(first, o.steps):
        turns = [run for run in runs.values() if run.done == done]  # one that was resumed waits for the others
        for run in turns[done % len(turns) :] + turns[: done % len(turns)]:
            loss = run.step()
        here.step(done + 1 - first, o.steps - first, loss=loss)
    return {word: run.result() for word, run in runs.items()}


def flagged(word: str, o: argparse.Namespace) -> argparse.Namespace:
    """The options with the flags that a strategy's name carries, `zero3:mixed`.

    Raises ValueError for an unknown name or flag, or a flag that means nothing to the strategy.
    """
    name, *flags = word.split(":")
    for known, given in ((STRATEGIES, [name]), (FLAGS, flags)):
        if unknown := set(given) - set(known):
            raise ValueError(f"{word!r}: {unknown.pop()!r} is unknown; choose from {', '.join(known)}")
    found = argparse.Namespace(**vars(o) | dict.fromkeys(flags, True))
    for flag, names in ONLY.items():
        if getattr(found, flag) and name not in names:
            raise ValueError(f"{word!r}: {flag} is for {', '.join(names)} only")
    if found.resumed and not found.load:
        raise ValueError(f"{word!r}: give the checkpoint's directory with --load")
    return found


def measured(way: Way, kept: Kept, ids: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """One step, with every message counted, and every byte while most of them are there."""
    with counting.count() as counts:
        with kept.hooks():
            loss = way.backward(ids, targets)
        held = way.held()
        way.step()
    held["activations"] = kept.most
    return loss, {"bytes": held, "messages": counts.table(), "sent": counts.sent}


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The options from the command line, or from the words given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", nargs="+", default=["zero3"], help=f"{', '.join(STRATEGIES)}, flags behind colons")
    numbers = {"steps": 20, "layers": 4, "width": 64, "heads": 4, "vocab": 96, "seq": 32, "batch": 12, "micro-batches": 4}
    numbers |= {"tensor": 2, "bucket": 25 * 2**20, "save-at": 10, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("kv-heads", "ff"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--clip", type=float)
    parser.add_argument("--save", help="every ZeRO strategy writes a sharded checkpoint here after --save-at steps")
    parser.add_argument("--load", help="the directory of the checkpoint for strategies with the flag `resumed`")
    for flag, meaning in ({"tied": "one matrix for embedding and head"} | FLAGS).items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    found = parser.parse_args(words)
    for word in found.strategy:
        try:
            flagged(word, found)
        except ValueError as error:
            parser.error(str(error))
    return found


def main() -> None:
    o = parsed()
    with rank.joined() as here:
        here.result(train(o, here))


if __name__ == "__main__":
    main()
