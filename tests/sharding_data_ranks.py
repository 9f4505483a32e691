"""What every rank runs for tests/test_sharding.py: all checks of data parallelism, once for each number of ranks.

    python -m tests.sharding_data_ranks FOLDER 4 3 2 1

Each check returns numbers, which every rank writes to a file of its own in FOLDER. The tests say what they must be.
"""

# ruff: noqa: E402 (the import hook comes first)

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import jaxtyping

jaxtyping.install_import_hook("llmcourse.sharding", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recomputed

from llmcourse.peft import lora
from llmcourse.sharding import checkpoint, collectives, common, counting, ddp, zero
from llmcourse.transformer import Config, Transformer
from tests.sharding_processes import run

STEPS, ROWS, SEQ, VOCAB = 20, 24, 9, 61
FEW = 8  # for many features at once
CLIP = 0.9  # in the midst of the norms of the first steps, so that both sides of it are met
RANK = RANKS = -1  # set in main


# --- models, batches, training ---------------------------------------------------------------------------------------


def tiny(seed: int = 0, *, tied: bool = False, frozen: bool = False, layers: int = 2) -> Transformer:
    """A Llama without biases, of sizes that no number of ranks divides; `frozen`: under LoRA."""
    torch.manual_seed(seed)
    shape = {"vocab_size": VOCAB, "d_model": 20, "n_heads": 2, "n_kv_heads": 1, "d_ff": 37}
    model = Transformer(Config(**shape, n_layers=layers, tied=tied))
    for parameter in model.parameters():  # larger than one would, so that twenty steps go somewhere
        parameter.data = 3 * parameter.data if parameter.ndim > 1 else parameter.data
    if frozen:
        handle = lora.attach(model, lora.Config(r=2))
        for parameter in handle.parameters():
            parameter.data = 0.2 * torch.randn_like(parameter)
    return model


def batch(step: int) -> torch.Tensor:
    """Rows that count upwards from somewhere: there is something to learn."""
    starts = torch.randint(VOCAB, (ROWS, 1), generator=torch.Generator().manual_seed(step))
    return (starts + torch.arange(SEQ)) % VOCAB


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())


def adamw(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def train(model: nn.Module, step: Callable, *, micro: int = 1, quiet: Callable = nullcontext, first: int = 0, last: int = STEPS):
    """Steps on this rank's rows of the global batch; gives the global losses, the norms, and the logits at the end."""
    losses, norms = [], []
    for i in range(first, last):
        parts, total = batch(i)[RANK::RANKS].chunk(micro), 0.0
        for k, rows in enumerate(parts):
            with quiet() if k < micro - 1 else nullcontext():
                loss = loss_of(model, rows) / micro
                loss.backward()
            total += loss.detach()
        losses.append(total)
        norms.append(float(step()))
    with torch.no_grad():
        logits = model(batch(99)[:2]).float()
    losses = torch.stack(losses).float()
    dist.all_reduce(losses)
    return {"losses": (losses / RANKS).tolist(), "norms": norms, "logits": logits.flatten().tolist()}


def alone(*, micro: int = 1, **options) -> dict:
    """What every strategy must equal: computed by rank 0, known to all."""
    text = list(json.dumps(one_process(**options)).encode()) if RANK == 0 else []
    size = torch.tensor(len(text))
    dist.broadcast(size, 0)
    sent = torch.tensor(text or [0] * int(size), dtype=torch.uint8)
    dist.broadcast(sent, 0)
    return json.loads(bytes(sent.tolist()))


def one_process(*, clip: float | None = None, steps: int = STEPS, **shape) -> dict:
    """Plain torch, the whole batch."""
    model = tiny(**shape)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses, norms = adamw(trained), [], []
    for i in range(steps):
        loss = loss_of(model, batch(i))
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(trained, clip or torch.inf)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        return {"losses": losses, "norms": norms, "logits": model(batch(99)[:2]).flatten().tolist()}


def with_zero(
    stage: int, *, clip: float | None = None, micro: int = 1, prefetch: bool = True, dtype=None, steps: int = STEPS, **shape
) -> dict:
    """Ours, from models that differ from rank to rank until rank 0's is sent around."""
    model = tiny(seed=RANK, **shape)
    strategy = zero.shard(model, adamw, zero.Config(stage=stage, clip=clip, prefetch=prefetch, dtype=dtype))
    return train(model, strategy.step, micro=micro, last=steps)


def with_ddp(*, clip: float | None = None, micro: int = 1, overlap: bool = True, steps: int = STEPS, **shape) -> dict:
    model = tiny(seed=RANK, **shape)
    strategy = ddp.replicate(model, adamw, ddp.Config(clip=clip, bucket_bytes=4000, overlap=overlap))
    return train(model, strategy.step, micro=micro, quiet=strategy.no_sync, last=steps)


def with_torch_ddp(*, clip: float | None = None, micro: int = 1, steps: int = STEPS, **shape) -> dict:
    model = DistributedDataParallel(tiny(**shape))
    return train(model, torch_step(model, clip), micro=micro, quiet=model.no_sync, last=steps)


def fsdp2(model: Transformer, dtype=None) -> Transformer:
    """torch's own stage 3, on a mesh of CPUs that is named, since it would look for a GPU otherwise."""
    mesh = init_device_mesh("cpu", (RANKS,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def with_fsdp2(*, clip: float | None = None, micro: int = 1, dtype=None, steps: int = STEPS, **shape) -> dict:
    model = fsdp2(tiny(**shape), dtype)
    return train(model, torch_step(model, clip), micro=micro, last=steps)


def torch_step(model: nn.Module, clip: float | None) -> Callable:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = adamw(trained)

    def step() -> torch.Tensor:
        norm = nn.utils.clip_grad_norm_(trained, clip or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    return step


def error(found: dict, wanted: dict) -> dict[str, float]:
    """The largest difference in losses, norms and logits."""
    return {name: max(abs(a - b) for a, b in zip(found[name], wanted[name], strict=True)) for name in found}


# --- checks: equal ---------------------------------------------------------------------------------------------------

CASES = {
    "plain": ((1, 2, 3), {}),
    "tied, clipped, accumulated": ((1, 2, 3), {"tied": True, "clip": CLIP, "micro": 2, "steps": FEW}),
    "frozen under LoRA, clipped": ((1, 3), {"frozen": True, "clip": CLIP / 4, "steps": FEW}),
}


def equal() -> dict:
    """Every strategy on every case: how far it is from one process, and from torch's own engine."""
    found = {}
    for case, (stages, options) in CASES.items():
        one, sharded = alone(**options), with_fsdp2(**options)
        copied = with_torch_ddp(**options) if case == "plain" else sharded
        runs = {"FSDP2": (sharded, one), "torch DDP": (copied, one), "DDP": (with_ddp(**options), copied)}
        runs |= {f"ZeRO-{stage}": (with_zero(stage, **options), sharded) for stage in stages}
        for name, (ours, engine) in runs.items():
            found[f"{name}, {case}"] = {"one process": error(ours, one), "engine": error(ours, engine)}
        found[f"one process, {case}"] = {"losses": one["losses"], "norms": one["norms"]}
    return found


def bfloat16() -> dict:
    """Mixed precision: losses in all stages, in FSDP2, and in float32."""
    half = {"dtype": torch.bfloat16, "steps": 8}
    runs = {f"ZeRO-{stage}": with_zero(stage, **half) for stage in (1, 2, 3)}
    runs |= {"FSDP2": with_fsdp2(**half), "float32": with_zero(3, steps=8)}
    return {name: run["losses"] for name, run in runs.items()}


def switches() -> dict:
    """What may change when things happen, but not what comes out."""
    model = tiny()
    strategy = zero.shard(model, adamw)
    for block in model.blocks:
        block.forward = lambda *args, run=block.forward, **options: recomputed(run, *args, use_reentrant=False, **options)
    inside = train(model, strategy.step, last=3)
    outside = tiny()
    strategy = zero.shard(outside, adamw)
    for i, block in enumerate(outside.blocks):
        outside.blocks[i] = Recomputed(block)
    plain = with_zero(3, steps=3)
    return {
        "no prefetch": error(with_zero(3, prefetch=False, steps=3), plain),
        "no overlap": error(with_ddp(overlap=False, steps=3), with_ddp(steps=3)),
        "recomputation inside the unit": error(inside, plain),
        "recomputation outside the unit": error(train(outside, strategy.step, last=3), plain),
    }


class Recomputed(nn.Module):
    """Activation checkpointing around a layer that stage 3 gathers: its hooks run again within backward."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args, **options):
        return recomputed(self.layer, *args, use_reentrant=False, **options)


def half_used() -> dict:
    """Two heads of which even ranks use one and odd ranks the other: DDP's mean counts the missing gradient as zero."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(5, 5), "even": nn.Linear(5, 1), "odd": nn.Linear(5, 1)})
    strategy = ddp.replicate(model, lambda p: torch.optim.SGD(p, lr=1.0), ddp.Config(bucket_bytes=1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.full((1, 5), RANK + 1.0)
    model["odd" if RANK % 2 else "even"](model["body"](x)).sum().backward()
    strategy.step()
    moved = {name: (before[name] - p.detach()) for name, p in model.named_parameters()}
    return {"even bias": float(moved["even.bias"]), "odd bias": float(moved["odd.bias"])}


def zeroed_by_hand() -> dict:
    """`model.zero_grad()` puts gradients outside the buckets; the next backward brings them back."""
    model = tiny()
    strategy = ddp.replicate(model, adamw)

    def step() -> torch.Tensor:
        norm = strategy.step()
        model.zero_grad()
        return norm

    return error(train(model, step, last=3), with_ddp(steps=3))


# --- checks: counted -------------------------------------------------------------------------------------------------


def sorted_calls(calls: list[counting.Call]) -> list[list]:
    return sorted(list(call) for call in calls)


def counted() -> dict:
    """Calls of the second step, by every strategy, beside theory."""
    found = {}
    for frozen in (False, True):
        for stage in (1, 2, 3):
            model = tiny(frozen=frozen)
            strategy = zero.shard(model, adamw, zero.Config(stage=stage))
            theory = counting.zero_step(counting.vectors(strategy), RANKS, stage, backwards=2)
            found[f"ZeRO-{stage}{', frozen' if frozen else ''}"] = measured(model, strategy.step, nullcontext, theory)
    model = tiny()
    strategy = ddp.replicate(model, adamw, ddp.Config(bucket_bytes=4000))
    theory = counting.ddp_step([bucket.vector.numel() * 4 for bucket in strategy.buckets], RANKS)
    found["DDP"] = measured(model, strategy.step, strategy.no_sync, theory)
    model = DistributedDataParallel(tiny())
    found["torch DDP"] = measured(model, torch_step(model, None), model.no_sync, [])
    model = fsdp2(tiny())
    found["FSDP2"] = measured(model, torch_step(model, None), nullcontext, [])
    return found


def measured(model: nn.Module, step: Callable, quiet: Callable, theory: list[counting.Call]) -> dict:
    for i in range(2):
        with counting.count() as counts:
            for k, rows in enumerate(batch(i)[RANK::RANKS].chunk(2)):
                with quiet() if k == 0 else nullcontext():
                    loss_of(model, rows).backward()
            step()
    wanted = sum(counting.sent(call) for call in theory)
    return {"calls": sorted_calls(counts.calls), "theory": sorted_calls(theory), "sent": counts.sent, "wanted": wanted}


def state_bytes() -> dict:
    """Bytes held after backward, in every stage and precision, beside the formula and FSDP2's."""
    found = {}
    for dtype in (None, torch.bfloat16):
        for stage in (1, 2, 3):
            model = tiny(layers=4)
            strategy = zero.shard(model, adamw, zero.Config(stage=stage, dtype=dtype))
            for i in range(2):
                loss_of(model, batch(i)[RANK::RANKS]).backward()
                held = strategy.bytes()
                strategy.step()
            wanted = dict(counting.zero_bytes(counting.vectors(strategy), RANKS, stage))
            name = f"ZeRO-{stage}, {'bfloat16' if dtype else 'float32'}"
            found[name] = {"held": held, "wanted": wanted, "parameters": model.n_parameters}
    found["FSDP2, float32"] = {"held": fsdp2_bytes()}
    return found


def fsdp2_bytes() -> dict[str, int]:
    model = fsdp2(tiny(layers=4))
    optimizer = adamw(list(model.parameters()))
    for i in range(2):
        loss_of(model, batch(i)[RANK::RANKS]).backward()
        gradients = sum(p.grad.to_local().numel() * 4 for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    moments = [t.to_local() for state in optimizer.state.values() for t in state.values() if t.ndim]
    parameters = sum(p.to_local().numel() * 4 for p in model.parameters())
    return {"parameters": parameters, "gradients": gradients, "optimizer": sum(t.numel() * 4 for t in moments)}


def order_of_events() -> dict:
    """DDP: gradients that had not come when the first bucket was sent. Stage 3: layers whole or on their way, at each layer."""
    found = {}
    for switch in (True, False):
        found[f"missing, overlap {switch}"] = missing_when_sent(switch)
        found[f"layers, prefetch {switch}"] = layers_held(switch)
    return found | {"layers, frozen": layers_held(True, frozen=True)}


def missing_when_sent(overlap: bool) -> list[int]:
    """How many gradients had not come yet, as each bucket was sent."""
    model, missing = tiny(), []
    strategy = ddp.replicate(model, adamw, ddp.Config(bucket_bytes=4000, overlap=overlap))
    for bucket in strategy.buckets:

        def note_and_send(send: Callable = bucket.send) -> None:
            missing.append(sum(bucket.missing for bucket in strategy.buckets))
            send()

        bucket.send = note_and_send
    loss_of(model, batch(0)).backward()
    return missing


def layers_held(prefetch: bool, **shape) -> list[list[int]]:
    """Which layers have memory as each of them runs, forward and then backward."""
    model, seen = tiny(layers=4, **shape), []
    strategy = zero.shard(model, adamw, zero.Config(prefetch=prefetch))

    def look(*_) -> None:
        seen.append([i for i, unit in enumerate(strategy.units[1:]) if unit.flats[0].full.untyped_storage().nbytes()])

    for block in model.blocks:
        block.attention.register_forward_pre_hook(look)
        block.attention.o.register_full_backward_hook(look)
    loss_of(model, batch(0)).backward()
    look()
    return seen


# --- checks: collectives ---------------------------------------------------------------------------------------------


def by_hand() -> dict:
    """Ours and the library's, on vectors that no number of ranks divides, and what each of ours sent."""
    torch.manual_seed(RANK)
    x, rows = torch.randn(7, 11), torch.randn(RANKS, 5)
    padded = F.pad(x.flatten(), (0, -77 % RANKS))
    total, root, swapped = x.clone(), x.clone(), rows.clone()
    shard, every = padded[: len(padded) // RANKS].clone(), padded.repeat(RANKS)
    dist.all_reduce(total)
    common.reduce_scatter(shard, padded)
    common.all_gather(every, padded)
    dist.broadcast(root, RANKS - 1)
    dist.all_to_all_single(swapped, rows)
    pairs = {
        "all_reduce": (lambda: collectives.all_reduce(x), total),
        "reduce_scatter": (lambda: collectives.reduce_scatter(x.flatten()), shard),
        "all_gather": (lambda: collectives.all_gather(padded), every),
        "broadcast": (lambda: collectives.broadcast(x, RANKS - 1), root),
        "all_to_all": (lambda: collectives.all_to_all(rows), swapped),
    }
    found = {}
    for name, (ours, theirs) in pairs.items():
        with counting.count() as counts:
            result = ours()
        sends = [call.bytes for call in counts.calls if call.name == "send"]
        found[name] = {"error": float((result - theirs).abs().max()), "sends": sends, "sent": counts.sent}
    return found | {"padded bytes": padded.numel() * 4, "row bytes": 5 * 4}


def library_calls() -> dict:
    """One call of each kind through the library, as the counter sees it."""
    x, many = torch.ones(RANKS * 3), [torch.ones(3) for _ in range(RANKS)]
    with counting.count() as counts:
        dist.all_reduce(x)
        common.all_gather(x, many[0])
        dist.all_gather(many, torch.ones(3))
        common.reduce_scatter(many[0], x)
        dist.reduce_scatter(many[0], [torch.ones(3) for _ in range(RANKS)])
        dist.broadcast(x, 0)
        dist.all_to_all_single(torch.empty_like(x), x)
        torch.distributed._functional_collectives.all_reduce(x, "sum", dist.group.WORLD).wait()
        dist.barrier()
    return {"calls": [list(call) for call in counts.calls]}


# --- checks: life ----------------------------------------------------------------------------------------------------


def holes() -> dict:
    """What a stage-3 model's parameters are outside, inside `gathered`, after evaluation, and after `remove`."""
    model, whole = tiny(seed=RANK), tiny()
    strategy = zero.shard(model, adamw)
    alike = lambda: all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))  # noqa: E731
    outside = bool(all(p.isnan().all() for p in model.parameters()))
    with strategy.gathered():
        inside, trace = alike(), bool(model.trace(batch(0)).logits.isfinite().all())
    with torch.no_grad():
        model(batch(0))
    again = bool(all(p.isnan().all() for p in model.parameters()))
    strategy.remove()
    return {"outside": outside, "inside": inside, "trace": trace, "after evaluation": again, "removed": alike()}


def refused() -> dict:
    """Messages of what is refused on all ranks."""
    model, frozen = tiny(), tiny().requires_grad_(False)
    copies = ddp.replicate(tiny(), adamw)
    with copies.no_sync():
        loss_of(copies.model, batch(0)).backward()
    return {
        "no backward": message(zero.shard(model, adamw).step),
        "no backward, DDP": message(ddp.replicate(tiny(), adamw).step),
        "no sync": message(copies.step),
        "frozen": message(lambda: zero.shard(frozen, adamw)),
        "frozen, DDP": message(lambda: ddp.replicate(frozen, adamw)),
        "unit": message(lambda: zero.shard(tiny(), adamw, units={"blocks.9": nn.Linear(2, 2)})),
        "rows": message(lambda: collectives.all_to_all(torch.ones(RANKS + 1, 2))),
    }


def message(call: Callable) -> str:
    try:
        call()
    except ValueError as problem:
        return str(problem)
    return "nothing was refused"


def norms_with_copies() -> dict:
    """`copies` and `norm_group`, as tensor parallelism needs them: here every parameter is held once by every pair of groups."""
    groups = [dist.new_group([rank]) for rank in range(RANKS)]  # data parallelism of one rank; all others are "tensor" ranks
    model, found = tiny(), {}
    for name, copies in (("counted once", lambda _: RANKS), ("counted on every rank", None)):
        strategy = zero.shard(tiny(), adamw, group=groups[RANK], norm_group=dist.group.WORLD, copies=copies)
        loss_of(strategy.model, batch(0)).backward()
        found[name] = float(strategy.step())
    loss_of(model, batch(0)).backward()
    return found | {"one process": float(nn.utils.clip_grad_norm_(model.parameters(), torch.inf))}


# --- checks: checkpoints ---------------------------------------------------------------------------------------------

HALF = 3


def checkpoints(folder: Path) -> dict:
    """Four ranks save after a few steps and go on; fewer ranks go on from there, in other stages."""
    runs = {"bfloat16": (3, {"dtype": torch.bfloat16}, {}), "frozen": (1, {"clip": CLIP}, {"frozen": True})}
    runs |= {"float32": (3, {}, {"tied": True})}
    return {name: save_and_go_on(folder / name, *run) if RANKS == 4 else go_on(folder / name, *run) for name, run in runs.items()}


def save_and_go_on(path: Path, stage: int, options: dict, shape: dict) -> dict:
    model = tiny(**shape)
    strategy = zero.shard(model, adamw, zero.Config(stage=stage, **options))
    train(model, strategy.step, last=HALF)
    for group in strategy.optimizer.param_groups:
        group["lr"] = 1e-3
    checkpoint.save(strategy, path, {"step": HALF})
    exists = message(lambda: checkpoint.save(strategy, path))
    after = train(model, strategy.step, first=HALF, last=HALF + 3)
    with strategy.gathered(), torch.no_grad():
        end = {name: float(p.detach().float().sum()) for name, p in model.named_parameters()}
    return {**after, "exists": exists, "end": end}


def go_on(path: Path, stage: int, options: dict, shape: dict) -> dict:
    """In the stage after the one it was saved in."""
    model = tiny(seed=7, **shape)
    strategy = zero.shard(model, adamw, zero.Config(stage=stage % 3 + 1, **options))
    before = train(model, strategy.step, last=2)["losses"]  # something to be overwritten, moments too
    extra = checkpoint.load(strategy, path)
    after = train(model, strategy.step, first=HALF, last=HALF + 3)
    other = zero.shard(tiny(layers=1, **shape), adamw)
    return {**after, "extra": extra, "before": before, "another": message(lambda: checkpoint.load(other, path))}


# --- all of it -------------------------------------------------------------------------------------------------------


def main(folder: Path) -> dict:
    global RANK, RANKS
    RANK, RANKS = dist.get_rank(), dist.get_world_size()
    checks = [equal, counted, state_bytes, by_hand, library_calls]
    if RANKS == 2:  # what more ranks would not change
        checks += [bfloat16, switches, half_used, zeroed_by_hand, order_of_events, holes, refused, norms_with_copies]
    found = {check.__name__: check() for check in checks}
    return found if RANKS == 3 else found | {"checkpoints": checkpoints(folder)}


if __name__ == "__main__":
    run(main)
