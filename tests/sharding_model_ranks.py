"""What every rank runs for tests/test_sharding_model.py: all checks of model parallelism, once for each number of ranks.

    python -m tests.sharding_model_ranks FOLDER 2 4

A check gives numbers; whether they are good is the tests' business. Errors are the largest of any rank.
"""

# ruff: noqa: E402 (the import hook comes first)

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jaxtyping

jaxtyping.install_import_hook("llmcourse.sharding", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from llmcourse.sharding import mesh, pipeline, recompute, tensor, zero
from llmcourse.sharding.counting import count
from llmcourse.transformer import Config, Transformer
from tests.sharding_processes import run

STEPS, BATCH, SEQ = 20, 8, 16
FEW = 4  # for many features at once, with two passes a step
# A gradient of 1e-7 is rounding noise, which AdamW would make a full step of with its usual eps, on one process as on many.
ADAMW = partial(torch.optim.AdamW, lr=3e-3, eps=1e-5, foreach=False)
# Sizes that 4 divides, for the comparison with torch; then sizes it does not, tied ends, normalised queries and keys. Pipelines
# need more layers than their ranks; for the others two are enough.
EVEN = Config(vocab_size=64, d_model=32, n_layers=4, n_heads=8, n_kv_heads=4, d_head=8, d_ff=48)
ODD = Config(vocab_size=51, d_model=20, n_layers=5, n_heads=10, n_kv_heads=5, d_head=4, d_ff=45, tied=True, qk_norm=True)
SHORT, SHORT_ODD = replace(EVEN, n_layers=2), replace(ODD, n_layers=2)
BIASES = {"attention_bias": True, "mlp_bias": True}
BIASED = Config(vocab_size=51, d_model=20, n_layers=2, n_heads=4, d_head=4, d_ff=45, qk_norm=True, **BIASES)


# --- the same for all --------------------------------------------------------------------------------------------------


def make(config: Config, frozen: bool = False) -> Transformer:
    """The same random model on every rank, some of it frozen if asked for."""
    torch.manual_seed(0)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no zero biases, no norms of ones
        parameter.requires_grad_(not (frozen and (name.startswith("blocks.1.") or name.endswith("o.weight"))))
    return model


def batches(config: Config, steps: int = STEPS, ignored: bool = False):
    """The same global batches on every rank; some targets do not count if asked for."""
    torch.manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(config.vocab_size, (BATCH, SEQ))
        targets = (3 * ids + 1) % config.vocab_size
        yield ids, targets.masked_fill(torch.rand(BATCH, SEQ) < 0.3, -100) if ignored else targets


@cache
def alone(config: Config, *, clip: float | None = None, frozen: bool = False, ignored: bool = False, twice: bool = False) -> dict:
    """Training in one process with torch's own loss and clipping: what everything else must equal."""
    model = make(config, frozen)
    optimizer, losses, norms = ADAMW([p for p in model.parameters() if p.requires_grad]), [], []
    for ids, targets in batches(config, FEW if twice else STEPS, ignored):
        for _ in range(2 if twice else 1):
            loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
            loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip or torch.inf))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "norms": torch.stack(norms), "logits": model(PROBE(config)).detach(), "model": model}


def PROBE(config: Config) -> torch.Tensor:
    return torch.arange(2 * SEQ).view(2, SEQ) * 7 % config.vocab_size


def train(strategy, config: Config, *, ignored: bool = False, twice: bool = False) -> dict:
    """The same steps with a strategy of ours."""
    losses, norms = [], []
    for ids, targets in batches(config, FEW if twice else STEPS, ignored):
        for _ in range(2 if twice else 1):
            losses.append(one_pass(strategy, ids, targets))
        norms.append(strategy.step())
    losses = losses[1::2] if twice else losses
    return {"losses": torch.stack(losses), "norms": torch.stack(norms), "logits": strategy.logits(PROBE(config))}


def one_pass(strategy, ids, targets) -> torch.Tensor:
    if isinstance(strategy, pipeline.Pipeline):
        return strategy.forward_backward(ids, targets)
    loss = strategy.loss(ids, targets)
    loss.backward()
    return strategy.mean(loss) if isinstance(strategy, mesh.ZeroTensor) else loss.detach()


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference on any rank; infinite if any of them is no number."""
    worst = (a.detach().float() - b.detach().float()).abs().max()
    worst = worst.nan_to_num(torch.inf)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return worst.item()


def errors(mine: dict, other: dict) -> dict:
    return {key: error(mine[key], other[key]) for key in ("losses", "norms", "logits") if key in mine and key in other}


def from_all(number: float) -> list[float]:
    """One number of each rank, in order."""
    every = [torch.zeros(1, dtype=torch.float64) for _ in range(dist.get_world_size())]
    dist.all_gather(every, torch.tensor([float(number)], dtype=torch.float64))
    return [x.item() for x in every]


def state_error(state: dict, model: nn.Module) -> float:
    whole = model.state_dict()
    assert state.keys() == whole.keys(), (sorted(state), sorted(whole))
    return max(error(state[name], whole[name]) for name in whole)


def calls_agree(counts, theory) -> dict:
    mine, expected = (sorted([c.name, c.bytes, c.ranks] for c in calls) for calls in (counts.calls, theory))
    return {"equal": min(from_all(mine == expected)), "sent": counts.sent, "mine": mine, "theory": expected}


# --- tensor and sequence parallelism -----------------------------------------------------------------------------------


def check_tensor() -> dict:
    single, found = alone(SHORT), {}
    for name, sequence in (("tensor", False), ("sequence", True)):
        strategy = tensor.TensorParallel(make(SHORT), sequence=sequence, optimizer=ADAMW)
        mine = train(strategy, SHORT)
        library = train_torch_tensor(sequence)
        found[name] = {"single": errors(mine, single), "torch": errors(mine, library)}
        found[name]["state"] = state_error(tensor.whole_state(strategy.model), single["model"])
    return found


def train_torch_tensor(sequence: bool) -> dict:
    """`parallelize_module` on the same model, with its parallel loss."""
    model = torch_plan(make(SHORT), init_device_mesh("cpu", (dist.get_world_size(),)), sequence)
    optimizer, losses = ADAMW(model.parameters()), []
    for ids, targets in batches(SHORT):
        with loss_parallel():
            loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.full_tensor().detach())
    logits = model(PROBE(SHORT)).full_tensor()
    return {"losses": torch.stack(losses), "logits": logits}


def torch_plan(model: Transformer, device_mesh: DeviceMesh, sequence: bool) -> Transformer:
    between = Shard(1) if sequence else Replicate()
    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "head": ColwiseParallel(input_layouts=between, output_layouts=Shard(-1), use_local_output=False),
    }
    for i in range(len(model.blocks)):
        column, row = ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up"), ("attention.o", "mlp.down")
        plan |= {f"blocks.{i}.{name}": ColwiseParallel() for name in column}
        plan |= {f"blocks.{i}.{name}": RowwiseParallel(output_layouts=between) for name in row}
        if sequence:
            whole = partial(PrepareModuleInput, use_local_output=True)
            layouts = {"input_layouts": (Shard(1), None, None, None, None), "desired_input_layouts": (Replicate(), *[None] * 4)}
            plan[f"blocks.{i}.attention"] = whole(**layouts)
            plan[f"blocks.{i}.mlp"] = whole(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
            plan |= {f"blocks.{i}.{name}": SequenceParallel(use_local_output=True) for name in ("norm1", "norm2")}
    if sequence:
        plan["norm"] = SequenceParallel(use_local_output=True)
    return parallelize_module(model, device_mesh, plan)


def check_tensor_odd() -> dict:
    """Uneven shares, tied, q/k-norm, clipped, partly frozen, accumulated, with targets that do not count, recomputed."""
    together = {"frozen": True, "ignored": True, "twice": True}
    single, found = alone(SHORT_ODD, clip=0.5, **together), {}
    for name, sequence in (("tensor", False), ("sequence", True)):
        strategy = tensor.TensorParallel(make(SHORT_ODD, frozen=True), sequence=sequence, optimizer=ADAMW, clip=0.5)
        recompute.attach(strategy.model, every=2)
        found[name] = errors(train(strategy, SHORT_ODD, ignored=True, twice=True), single)
    return found


def check_biases() -> dict:
    """Gradients, not training: a key's bias has no gradient but rounding noise, which AdamW would blow up."""
    ids, targets = next(batches(BIASED))
    model = make(BIASED)
    F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()).backward()
    whole, found = {name: p.grad for name, p in model.named_parameters()}, {}
    for name, sequence in (("tensor", False), ("sequence", True)):
        strategy = tensor.TensorParallel(make(BIASED), sequence=sequence)
        strategy.loss(ids, targets).backward()
        cut, rank, found[name] = tensor.cuts(strategy.model), dist.get_rank(), {}
        for n, p in strategy.model.named_parameters():
            found[name][n] = error(p.grad, cut[n].piece(whole[n], rank) if n in cut else whole[n])
    return found


def check_layers() -> dict:
    """A column and a row layer with wires of their own make the two-layer network they were cut from."""
    torch.manual_seed(0)
    first, second, x = nn.Linear(6, 9), nn.Linear(9, 5), torch.randn(2, 8, 6)
    y = second(first(x_whole := x.clone().requires_grad_()).relu())
    y.square().sum().backward()
    wire = tensor.Wire()
    column, row = tensor.ColumnParallelLinear(first, wire, wire), tensor.RowParallelLinear(second, wire, wire)
    mine = row(column(x_cut := x.clone().requires_grad_()).relu())
    mine.square().sum().backward()
    return {"output": error(mine, y), "gradient": error(x_cut.grad, x_whole.grad), "bias": error(row.bias.grad, second.bias.grad)}


def check_cross_entropy() -> dict:
    torch.manual_seed(0)
    logits, targets = 300 * torch.randn(3, 7, 51), torch.randint(51, (3, 7))  # e³⁰⁰ is not a float32
    targets[0, :4] = -100
    whole = logits.clone().requires_grad_()
    loss = F.cross_entropy(whole.flatten(0, 1), targets.flatten())
    loss.backward()
    cut = tensor.Cut(-1, tensor.shares(51, dist.get_world_size()))
    mine = cut.piece(logits, dist.get_rank()).clone().requires_grad_()
    with count() as counts:
        parallel = tensor.vocab_parallel_cross_entropy(mine, targets, 51)
    parallel.backward()
    gradient = error(mine.grad, cut.piece(whole.grad, dist.get_rank()))
    return {"loss": error(parallel, loss) / loss.item(), "gradient": gradient, "messages": len(counts.calls)}


def check_tensor_counts() -> dict:
    """Messages of one step against the formula; numbers held by each rank; bytes that autograd keeps."""
    ids, targets = next(batches(SHORT))
    found = {}
    for name, sequence in (("tensor", False), ("sequence", True)):
        strategy = tensor.TensorParallel(make(SHORT), sequence=sequence, optimizer=ADAMW)
        with count() as counts:
            strategy.loss(ids, targets).backward()
            strategy.step()
        theory = tensor.step_messages(SHORT, BATCH, SEQ, dist.get_world_size(), sequence=sequence)
        found[name] = calls_agree(counts, theory)
        found[name]["numbers"] = from_all(sum(p.numel() for p in strategy.model.parameters()))
        found[name]["kept"] = recompute.saved_bytes(strategy.loss, ids, targets)
        found[name]["kept_recomputed"] = recompute.saved_bytes(recompute.attach(strategy.model), ids)
    return found


def check_whole_weights() -> dict:
    """Out of a cut model and into another: as they were."""
    model, other = (tensor.parallelize(make(SHORT_ODD)) for _ in range(2))
    for parameter in other.parameters():
        parameter.data.zero_()
    out = state_error(tensor.whole_state(model), make(SHORT_ODD))
    tensor.load_whole(other, make(SHORT_ODD).state_dict())
    return {"out": out, "in": error(other(PROBE(SHORT_ODD)), model(PROBE(SHORT_ODD)))}


def check_tensor_errors() -> dict:
    model = tensor.parallelize(make(SHORT), sequence=True)
    return {"uneven": message(lambda: model(PROBE(SHORT)[:, :7])), "heads": message(lambda: tensor.parallelize(make(FEW_HEADS)))}


FEW_HEADS = Config(vocab_size=64, d_model=32, n_layers=1, n_heads=8, n_kv_heads=1)


def message(call) -> str:
    try:
        call()
    except ValueError as problem:
        return str(problem)
    return ""


def check_sizes() -> dict:
    weights = list(make(SHORT).parameters())
    numbers = {"total": sum(w.numel() for w in weights), "norms": sum(w.numel() for w in weights if w.ndim == 1)}
    return numbers | {"d": SHORT.d_model, "layers": SHORT.n_layers, "places": BATCH * SEQ}


def check_progress() -> list[float]:
    return [alone(SHORT)["losses"][i].item() for i in (0, -1)]


# --- pipeline ----------------------------------------------------------------------------------------------------------


def check_pipeline() -> dict:
    single, found = alone(EVEN), {"total": sum(p.numel() for p in make(EVEN).parameters())}
    for name, schedule in (("gpipe", pipeline.gpipe), ("1f1b", pipeline.one_f_one_b)):
        strategy = pipeline.Pipeline(make(EVEN), schedule=schedule, microbatches=4, optimizer=ADAMW)
        mine = train(strategy, EVEN)
        strategy.forward_backward(*next(batches(EVEN)))
        found[name] = {
            "single": errors(mine, single), "torch": errors(mine, train_torch_pipeline(name)),
            "stored": from_all(strategy.most_stored), "timeline": strategy.timeline(),
            "numbers": from_all(sum(p.numel() for p in strategy.stage.parameters())),
        }  # fmt: skip
    return found


def train_torch_pipeline(name: str) -> dict:
    """`torch.distributed.pipelining` on the same stages."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    module = pipeline.Stage(make(EVEN), ranks, rank)
    stage, kind = PipelineStage(module, rank, ranks, torch.device("cpu")), {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[name]
    schedule = kind(stage, 4, loss_fn=lambda y, t: F.cross_entropy(y.flatten(0, 1), t.flatten()))
    optimizer, losses = ADAMW(module.parameters()), []
    for ids, targets in batches(EVEN):
        parts: list[torch.Tensor] = []
        schedule.step(*([ids] if rank == 0 else []), target=targets if rank == ranks - 1 else None, losses=parts)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(torch.stack(parts).mean().detach() if parts else torch.zeros(()))
    losses = torch.stack(losses)
    dist.broadcast(losses, ranks - 1)
    return {"losses": losses, "logits": torch_pipeline_logits(module)}


def torch_pipeline_logits(module: nn.Module) -> torch.Tensor:
    """A plain pass from rank to rank."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    x = PROBE(EVEN) if rank == 0 else torch.empty(2, SEQ, EVEN.d_model)
    with torch.no_grad():
        if rank:
            dist.recv(x, rank - 1)
        y = module(x)
        if rank < ranks - 1:
            dist.send(y, rank + 1)
    logits = y if rank == ranks - 1 else torch.empty(2, SEQ, EVEN.vocab_size)
    dist.broadcast(logits, ranks - 1)
    return logits


def check_pipeline_odd() -> dict:
    """Uneven layers and micro-batches, tied ends, clipped, partly frozen, accumulated, targets that do not count, recomputed."""
    single, found = alone(ODD, clip=0.5, frozen=True, ignored=True, twice=True), {}
    for name, schedule in (("gpipe", pipeline.gpipe), ("1f1b", pipeline.one_f_one_b)):
        options = {"schedule": schedule, "microbatches": 3, "recompute": True, "optimizer": ADAMW, "clip": 0.5}
        strategy = pipeline.Pipeline(make(ODD, frozen=True), **options)
        mine = train(strategy, ODD, ignored=True, twice=True)
        ends = torch.zeros(2, ODD.vocab_size, ODD.d_model)
        for end, layer in enumerate((strategy.stage.embed, strategy.stage.head)):
            ends[end] = 0 if layer is None else layer.weight.detach()
        dist.all_reduce(ends)
        found[name] = errors(mine, single) | {"tie": error(ends[0], ends[1])}
    return found


def check_pipeline_counts() -> dict:
    ids, targets = next(batches(ODD))
    strategy = pipeline.Pipeline(make(ODD), microbatches=3, optimizer=ADAMW)
    with count() as counts:
        strategy.forward_backward(ids, targets)
        strategy.step()
    return calls_agree(counts, pipeline.step_messages(ODD, BATCH, SEQ, strategy.stages, 3, strategy.index))


# --- ZeRO-3 × tensor ---------------------------------------------------------------------------------------------------


def check_mesh() -> dict:
    where, single, found = mesh.mesh(tensor=2), alone(SHORT), {}
    for name, sequence in (("tensor", False), ("sequence", True)):
        strategy = mesh.ZeroTensor(make(SHORT), where, sequence=sequence, optimizer=ADAMW)
        mine = train(strategy, SHORT)
        found[name] = {"single": errors(mine, single), "state": state_error(strategy.whole_state(), single["model"])}
        found[name]["bytes"] = {key: from_all(n) for key, n in strategy.zero.bytes().items()}
        found[name]["torch"] = errors(mine, train_torch_mesh(sequence))
    return found


def train_torch_mesh(sequence: bool) -> dict:
    """`fully_shard` over the columns of a model that `parallelize_module` has cut over the rows."""
    both = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))
    model = torch_plan(make(SHORT), both["tensor"], sequence)
    for block in model.blocks:
        fully_shard(block, mesh=both["data"])
    fully_shard(model, mesh=both["data"])
    optimizer, losses = ADAMW(model.parameters()), []
    row = slice(*(BATCH // both["data"].size() * (both["data"].get_local_rank() + end) for end in (0, 1)))
    for ids, targets in batches(SHORT):
        with loss_parallel():
            loss = F.cross_entropy(model(ids[row]).flatten(0, 1), targets[row].flatten())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.full_tensor().detach()
        dist.all_reduce(mean, group=both["data"].get_group())
        losses.append(mean / both["data"].size())
    with torch.no_grad():
        logits = model(PROBE(SHORT)).full_tensor()
    return {"losses": torch.stack(losses), "logits": logits}


def check_mesh_odd() -> dict:
    """Uneven, tied, q/k-norm, clipped, partly frozen, accumulated, recomputed, under each stage of ZeRO."""
    where, single, found = mesh.mesh(tensor=2), alone(SHORT_ODD, clip=0.5, frozen=True, twice=True), {}
    for stage in (1, 2, 3):
        options = {"config": zero.Config(stage=stage, clip=0.5), "sequence": stage != 2, "optimizer": ADAMW}
        strategy = mesh.ZeroTensor(make(SHORT_ODD, frozen=True), where, **options)
        recompute.attach(strategy.model)
        found[str(stage)] = errors(train(strategy, SHORT_ODD, twice=True), single)
    return found


# -----------------------------------------------------------------------------------------------------------------------


CHECKS = [
    check_sizes, check_progress, check_layers, check_cross_entropy, check_tensor, check_tensor_odd, check_biases,
    check_tensor_counts, check_whole_weights, check_tensor_errors, check_pipeline, check_pipeline_odd, check_pipeline_counts,
]  # fmt: skip


def main(folder: Path) -> dict:
    checks = CHECKS + ([check_mesh, check_mesh_odd] if dist.get_world_size() == 4 else [])
    return {check.__name__.removeprefix("check_"): check() for check in checks}


if __name__ == "__main__":
    run(main)
