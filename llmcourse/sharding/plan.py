"""The plan: bytes, messages and idle time of a training run, computed before anything is started.

    bytes a parameter (bf16 with fp32 master)     parameters 2 · gradients 2 · optimizer 12 = 16

    stage          0 (DDP)    1 (ZeRO-1)       2                3              of N data-parallel ranks
    a rank holds   16 Ψ       (4 + 12/N) Ψ     (2 + 14/N) Ψ     16 Ψ / N
    saved          ×1         → ×4             → ×8             ×N             as N grows

    sent a step    all-reduce 2 (N-1)/N g Ψ;   stages 1, 2: (N-1)/N (g + p) Ψ;   stage 3: (N-1)/N (g + 2p) Ψ
    pipeline       idle (P-1) / (M + P-1) of the time, with P stages and M micro-batches
    activations    a layer keeps 6 d + 2 + 2 (queries + keys) + heads + 4 d_ff numbers a token; checkpointed: d

Does:     memory of one rank (parameters, gradients, optimizer, activations, gathered layers); bytes it sends in a step, by cause;
          the bubble; an estimate of the time; the largest model that fits; all of it for data, tensor and pipeline parallelism
          and ZeRO's stages in any combination, for one GPU or thousands.
Leaves out: fragmentation and the framework's own memory (CUDA: 0.5–1 GB a rank); mixtures of experts; offloading to the CPU.
          Fused norms (CUDA) keep 2 d numbers a token and layer less than counted here. The time is an estimate, not a promise.
Source:   Rajbhandari et al. 2020 (ZeRO) §3, §7 and table 1; Narayanan et al. 2021 §2.2 (bubble, interleaving); Korthikanti et al.
          2022 §4 (activations); Patarasuk & Yuan 2009 (ring all-reduce).
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..transformer import Config, counts
from .pipeline import bubble_fraction

__all__ = [
    "PRECISIONS", "SCHEDULES", "SIZES", "STRATEGIES", "Device", "Job", "Layout", "Model", "Plan", "activation_bytes", "bubble",
    "collectives", "gathered_bytes", "in_flight", "largest", "layer_numbers", "layout", "plan", "seconds", "state_bytes", "table",
    "traffic", "unit_sizes",
]  # fmt: skip

# Bytes of a trained parameter, of its gradient, and of what the optimizer keeps for it (master copy, momentum, variance).
PRECISIONS = {"mixed": (2, 2, 12), "float32": (4, 4, 8), "bfloat16": (2, 2, 4)}
SCHEDULES = ("gpipe", "1f1b")
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "tensor", "pipeline", "zero3+tensor", "3d")

# Layers, width, feed-forward width, query heads, key heads, vocabulary: Llama 2 (7B, 13B, 70B), 3 (8B) and 3.1 (405B).
SIZES = {
    "7B": (32, 4096, 11008, 32, 32, 32_000),
    "8B": (32, 4096, 14336, 32, 8, 128_256),
    "13B": (40, 5120, 13824, 40, 40, 32_000),
    "70B": (80, 8192, 28672, 64, 8, 32_000),
    "405B": (126, 16384, 53248, 128, 8, 128_256),
}
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


# ---- what is planned --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Model:
    """A Llama by its numbers. `parameters` may be a round figure that the shape meets only roughly."""

    parameters: int
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    config: Config | None = field(default=None, repr=False)

    @classmethod
    def of(cls, size: str | int | float | Config) -> "Model":
        """A known size ("7B"), any other as text or number ("1.3T", 7.5e9), or the very config of one of our models.

        Raises: ValueError for a text that is no size, or a size below 1,000 parameters.
        """
        if isinstance(size, Config):
            return cls._from_config(size)
        if size in SIZES:
            layers, d, ff, heads, kv, vocab = SIZES[size]
            shape = {"vocab_size": vocab, "d_model": d, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv, "d_ff": ff}
            return cls._from_config(Config(**shape))
        return cls._of_size(_number(size) if isinstance(size, str) else size)

    @classmethod
    def _from_config(cls, config: Config) -> "Model":
        names = ("n_layers", "d_model", "d_ff", "n_heads", "n_kv_heads", "d_head", "vocab_size")
        numbers = {name: getattr(config, name) for name in names}
        return cls(parameters=counts.parameters(config).total(), config=config, **numbers)

    @classmethod
    def _of_size(cls, parameters: float) -> "Model":
        """Heads of 128 features, 128 features of width a layer, as Llama has: 12 L d² = 3 d³ / 32 weights in the blocks."""
        if not 1_000 <= parameters < math.inf:
            raise ValueError(f"a model of {parameters:g} parameters cannot be planned; give at least 1,000")
        heads = max(1, round((parameters * 32 / 3) ** (1 / 3) / 128))
        d = 128 * heads
        layers = max(1, round(parameters / (12 * d * d)))
        shape = {"n_layers": layers, "d_model": d, "d_ff": d * 8 // 3, "n_heads": heads, "n_kv_heads": heads, "d_head": 128}
        return cls(parameters=round(parameters), vocab_size=32_000, **shape)

    @cached_property
    def block(self) -> int:
        """Parameters of one layer: exact where the config is known, else all of them shared among the layers."""
        if self.config is None:
            return math.ceil(self.parameters / self.n_layers)
        return (self.parameters - self.ends) // self.n_layers

    @cached_property
    def ends(self) -> int:
        """Parameters outside the layers: embedding, last norm, head."""
        if self.config is None:
            return 0
        return counts.parameters(replace(self.config, n_layers=0)).total()


def _number(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+(?:e\d+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    try:
        return float(found[1]) * UNITS.get(found[2].upper(), 1)
    except (TypeError, ValueError):
        raise ValueError(f'{text!r} is no size of a model; write "7B", "350M" or "1.5T"') from None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the ranks are used: `data` × `tensor` × `pipeline` of them, and ZeRO's stage (0: DDP) within the data-parallel ones."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    stage: int = 0
    sequence_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} ranks are too few; give at least 1")
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"ZeRO has no stage {self.stage!r}; choose 0 (DDP), 1, 2 or 3")

    @property
    def ranks(self) -> int:
        return self.data * self.tensor * self.pipeline


@dataclass(frozen=True, kw_only=True)
class Job:
    """One step: every data-parallel rank trains on `micro_batches` times `batch` sequences of `seq` tokens.

    `trained` is the share of the weights that are trained (LoRA: less than 1); the others keep no gradient and no optimizer.
    """

    batch: int = 1
    micro_batches: int = 1
    seq: int = 4096
    precision: str = "mixed"
    checkpointing: bool = False
    schedule: str = "1f1b"
    trained: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}")
        for name in ("batch", "micro_batches", "seq"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is too small; give at least 1")
        if not 0 <= self.trained <= 1:
            raise ValueError(f"trained={self.trained} is no share of the weights; give a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One GPU and its wires. The defaults are an H100's, with half of its peak reached; GB = 10⁹ bytes."""

    gb: float = 80.0
    tflops: float = 400.0
    near_gbs: float = 450.0  # GB/s that a rank can send within a node
    far_gbs: float = 50.0  # and to another one
    per_node: int = 8

    def __post_init__(self) -> None:
        for name in ("gb", "tflops", "near_gbs", "far_gbs", "per_node"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be more than 0")


JOB, DEVICE = Job(), Device()


def layout(strategy: str, gpus: int, model: Model | None = None, per_node: int = 8) -> Layout:
    """How a strategy by name uses so many GPUs: tensor parallelism stays within a node, data parallelism takes what is left.

    Tensor and pipeline widths are the largest powers of two, up to `per_node`, that the GPUs allow, and the model if given.

    Raises: ValueError for an unknown strategy, or less than one GPU.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}")
    if gpus < 1:
        raise ValueError(f"gpus={gpus} are too few; give at least 1")
    heads = (model.n_heads, model.n_kv_heads) if model else ()
    most = min(per_node, model.n_layers) if model else per_node
    tensor, stages = _width(per_node, gpus, *heads), _width(most, gpus)
    behind = _width(most, gpus // tensor)
    return {
        "single": Layout(),
        "ddp": Layout(data=gpus),
        **{f"zero{stage}": Layout(data=gpus, stage=stage) for stage in (1, 2, 3)},
        "tensor": Layout(data=gpus // tensor, tensor=tensor),
        "pipeline": Layout(data=gpus // stages, pipeline=stages),
        "zero3+tensor": Layout(data=gpus // tensor, tensor=tensor, stage=3),
        "3d": Layout(data=gpus // tensor // behind, tensor=tensor, pipeline=behind, stage=1),
    }[strategy]


def _width(most: int, *multiples: int) -> int:
    """The largest power of two, up to `most`, that divides every one of the `multiples`."""
    shared = math.gcd(*multiples)
    return min(shared & -shared, 1 << (most.bit_length() - 1))


# ---- memory -----------------------------------------------------------------------------------------------------------


def state_bytes(
    parameters: float | Sequence[int], ranks: int = 1, stage: int = 0, precision: str = "mixed", trained: float = 1.0
) -> dict[str, float]:
    """Bytes of parameters, gradients and optimizer that each of `ranks` data-parallel ranks holds, by ZeRO's stage.

    A list of sizes instead of one number: vectors that are padded and cut each for itself, as `zero` does with layers.
    """
    units = [parameters] if isinstance(parameters, int | float) else list(parameters)
    whole, shard = sum(units), sum(n / ranks if n is parameters else math.ceil(n / ranks) for n in units)
    p, g, o = PRECISIONS[precision]
    return {
        "parameters": p * float(shard if stage >= 3 else shard * ranks if stage else whole),
        "gradients": g * trained * (shard if stage >= 2 else whole),
        "optimizer": o * trained * (shard if stage >= 1 else whole),
    }


def unit_sizes(model: Model, layout: Layout) -> float | list[int]:
    """Parameters of the ends and of each layer, on the rank that has most before ZeRO; only their sum for a round size.

    Tensor parallelism cuts matrices and leaves norms whole; a pipeline's last stage has the head, its first the embedding.
    """
    c, layers = model.config, math.ceil(model.n_layers / layout.pipeline)
    if c is None:
        return model.parameters * layers / model.n_layers / layout.tensor
    norms = counts.parameters(replace(c, n_layers=1))["norms"] - c.d_model
    block = math.ceil((model.block - norms) / layout.tensor) + norms
    table = math.ceil(model.vocab_size / layout.tensor) * c.d_model
    if layout.pipeline == 1:
        return [table * (1 if c.tied else 2) + c.d_model, *[block] * layers]
    fewest = model.n_layers // layout.pipeline
    return max([table, *[block] * layers], [table + c.d_model, *[block] * fewest], key=sum)


def layer_numbers(model: Model, tensor: int = 1, sequence_parallel: bool = False) -> float:
    """Numbers that one layer keeps for the backward pass, a token: what autograd saves, each tensor counted once.

    Norms and the residual stream (6 d + 2) are whole on every tensor-parallel rank. Where the sequence is cut, only what
    the matrices read (2 d) is whole.
    """
    attention = 2 * model.d_head * (model.n_heads + model.n_kv_heads) + model.n_heads  # q, output; k, v; log of the sums
    stream = (4 * model.d_model + 2) / (tensor if sequence_parallel else 1) + 2 * model.d_model
    return (attention + 4 * model.d_ff) / tensor + stream


def end_numbers(model: Model, tensor: int = 1, sequence_parallel: bool = False) -> float:
    """Numbers that the last norm, the head and the loss keep, a token."""
    vocabulary = model.vocab_size if tensor == 1 else 2 * model.vocab_size / tensor  # in pieces: z - top is kept beside its exp
    return vocabulary + (2 * model.d_model + 1) / (tensor if sequence_parallel else 1) + model.d_model


def in_flight(micro_batches: int, stages: int, schedule: str = "1f1b") -> int:
    """Micro-batches whose activations the first stage holds at once: all of them with GPipe, at most P with 1F1B."""
    if stages == 1:
        return 1
    return micro_batches if schedule == "gpipe" else min(micro_batches, stages)


def activation_bytes(model: Model, layout: Layout, job: Job) -> float:
    """Bytes kept for the backward pass at its start, on the rank that keeps most; with checkpointing one layer is made anew."""
    cut, tokens = (layout.tensor, layout.sequence_parallel), job.batch * job.seq
    layers, stream = math.ceil(model.n_layers / layout.pipeline), model.d_model / (cut[0] if cut[1] else 1)
    kept = layers * (stream if job.checkpointing else layer_numbers(model, *cut))
    again = layer_numbers(model, *cut) if job.checkpointing else 0
    ends = end_numbers(model, *cut)
    first = kept * in_flight(job.micro_batches, layout.pipeline, job.schedule) + again
    # Under 1F1B the last stage holds one micro-batch, but also the head; under GPipe it holds all of them, heads included.
    held = job.micro_batches if job.schedule == "gpipe" and layout.pipeline > 1 else 1
    last = held * (kept + ends) + again
    tables = 2 * job.seq * model.d_head  # RoPE's cosines and sines
    return PRECISIONS[job.precision][0] * (tokens * max(first, last) + tables) + 16 * tokens  # and the ids


def gathered_bytes(model: Model, layout: Layout, job: Job) -> float:
    """Bytes that are whole for a while. Stage 3: two layers, one at work and the next, and both ends of the model; stages 2 and
    3: the gradients of a layer, of the one on its way to the others, and of the ends."""
    if layout.data == 1 or layout.stage < 2:
        return 0.0
    p, g, _ = PRECISIONS[job.precision]
    whole = 2 * model.block + model.ends / min(layout.pipeline, 2)
    return (g * job.trained + (p if layout.stage == 3 else 0)) * whole / layout.tensor


def collectives(stage: int) -> tuple[str, str, str]:
    """What data parallelism sends in each part of a step: before a layer's forward, after its backward, after the update.

    Raises: ValueError for a stage that ZeRO does not have.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO has no stage {stage!r}; choose 0 (DDP), 1, 2 or 3")
    forward = "all-gather" if stage == 3 else "nothing"
    backward = "all-reduce" if stage == 0 else "reduce-scatter"
    update = "all-gather" if stage in (1, 2) else "nothing"
    return forward, backward, update


# ---- messages and time ------------------------------------------------------------------------------------------------


def bubble(stages: int, micro_batches: int, chunks: int = 1) -> float:
    """The share of time a pipeline stands idle, GPipe and 1F1B alike; `chunks` > 1: each rank has so many pieces, interleaved."""
    if min(stages, micro_batches, chunks) < 1:
        raise ValueError(f"stages={stages}, micro_batches={micro_batches} and chunks={chunks} must each be at least 1")
    return bubble_fraction(stages, chunks * micro_batches)


def traffic(model: Model, layout: Layout, job: Job) -> dict[str, float]:
    """Bytes that one rank sends in a step, by cause; collectives as rings, where a rank sends (N-1)/N of what it cuts up."""
    p, g, _ = PRECISIONS[job.precision]
    n, units = layout.data, unit_sizes(model, layout)
    mine, ends = (sum(units), units[0]) if isinstance(units, list) else (units, 0)
    ring, times = (n - 1) / n, job.micro_batches if layout.stage >= 2 else 1  # cut gradients cannot be summed up unsent
    halves = 2 if layout.stage == 0 else 1
    # What is not trained never changes: stages 1 and 2 need not send it again. Stage 3 keeps both ends from forward to backward.
    gathered = {0: 0.0, 1: job.trained * mine, 2: job.trained * mine, 3: job.micro_batches * (2 * mine - ends)}[layout.stage]
    return {
        "gradients": ring * halves * g * job.trained * times * mine,
        "parameters": ring * p * gathered,
        "tensor": _tensor_bytes(model, layout, job),
        "pipeline": _pipeline_bytes(model, layout, job),
    }


def _stream_bytes(model: Model, job: Job) -> float:
    """The residual stream of all tokens of a rank's step."""
    return PRECISIONS[job.precision][0] * job.micro_batches * job.batch * job.seq * model.d_model


def _tensor_bytes(model: Model, layout: Layout, job: Job) -> float:
    """Two all-reduces of the stream a layer forward, two backward; checkpointing runs the forward ones again.

    Besides one for the embedding, one for the head, three float32 numbers a token for the loss; where the sequence is cut, the
    gradients of the norms.
    """
    n, layers = layout.tensor, math.ceil(model.n_layers / layout.pipeline)
    ends = 2 if layout.pipeline == 1 else 1
    stream = (layers * (6 if job.checkpointing else 4) + ends) * _stream_bytes(model, job)
    norms = (2 * layers + 1) * model.d_model * PRECISIONS[job.precision][1] if layout.sequence_parallel else 0
    return 2 * (n - 1) / n * (stream + norms + 12 * job.micro_batches * job.batch * job.seq)


def _pipeline_bytes(model: Model, layout: Layout, job: Job) -> float:
    """A stage in the middle sends the stream on, and its gradient back; of two stages each sends one of them."""
    return _stream_bytes(model, job) * min(layout.pipeline - 1, 2)


def seconds(model: Model, layout: Layout, job: Job, device: Device) -> dict[str, float]:
    """An estimate: compute at the reached speed, idle time, and what of the messages cannot hide behind the backward pass."""
    tokens, sent = job.micro_batches * job.batch * job.seq, traffic(model, layout, job)
    flops = 6 * model.parameters + 6 * model.n_layers * model.n_heads * model.d_head * job.seq
    flops *= tokens * (4 / 3 if job.checkpointing else 1)
    compute = flops / (layout.tensor * layout.pipeline) / (device.tflops * 1e12)
    near = {"tensor": layout.tensor, "pipeline": layout.tensor * layout.pipeline, "data": layout.ranks}
    speed = {name: 1e9 * (device.near_gbs if ranks <= device.per_node else device.far_gbs) for name, ranks in near.items()}
    data = (sent["gradients"] + sent["parameters"]) / speed["data"]
    shown = sent["tensor"] / speed["tensor"] + sent["pipeline"] / speed["pipeline"] + max(0.0, data - compute * 2 / 3)
    idle = compute * bubble(layout.pipeline, job.micro_batches) / (1 - bubble(layout.pipeline, job.micro_batches))
    return {"compute": compute, "idle": idle, "messages": shown}


# ---- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one rank holds and sends in one step, in bytes; how long the step may take, in seconds; tokens of all ranks in it."""

    layout: Layout
    memory: dict[str, float]
    sent: dict[str, float]
    bubble: float
    seconds: dict[str, float]
    tokens: int
    gb: float

    @property
    def states(self) -> float:
        """Bytes of parameters, gradients and optimizer: ZeRO's table counts these."""
        return sum(self.memory[name] for name in ("parameters", "gradients", "optimizer"))

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.gb * 1e9


def plan(model: Model, layout: Layout, job: Job = JOB, device: Device = DEVICE) -> Plan:
    """The memory, messages, bubble and time of one step.

    Raises: ValueError where heads or layers cannot be cut into so many parts.
    """
    for parts, name, n in (
        (layout.tensor, "query heads", model.n_heads),
        (layout.tensor, "key heads", model.n_kv_heads),
    ):
        if n % parts:
            raise ValueError(f"tensor={parts} does not divide the {n} {name}; choose a divisor of {n}")
    if layout.pipeline > model.n_layers:
        raise ValueError(
            f"pipeline={layout.pipeline} stages are more than the {model.n_layers} layers; choose 1–{model.n_layers}"
        )
    return _plan(model, layout, job, device)


def _plan(model: Model, layout: Layout, job: Job, device: Device) -> Plan:
    memory = state_bytes(unit_sizes(model, layout), layout.data, layout.stage, job.precision, job.trained)
    memory |= {"activations": activation_bytes(model, layout, job), "gathered": gathered_bytes(model, layout, job)}
    return Plan(
        layout=layout,
        memory=memory,
        sent=traffic(model, layout, job),
        bubble=bubble(layout.pipeline, job.micro_batches),
        seconds=seconds(model, layout, job, device),
        tokens=layout.data * job.micro_batches * job.batch * job.seq,
        gb=device.gb,
    )


def largest(layout: Layout, job: Job = JOB, device: Device = DEVICE) -> int:
    """Parameters of the largest model (in Llama's proportions) whose plan fits the device; 0 if not even 1,000 do."""
    low, high = math.log(1e3), math.log(1e15)
    if not _plan(Model._of_size(1e3), layout, job, device).fits:
        return 0
    for _ in range(60):
        middle = (low + high) / 2
        fits = _plan(Model._of_size(math.exp(middle)), layout, job, device).fits
        low, high = (middle, high) if fits else (low, middle)
    return int(math.exp(low))


def table(
    model: Model, gpus: int, job: Job = JOB, device: Device = DEVICE, strategies: Sequence[str] = STRATEGIES
) -> list[dict[str, str | float | bool | int]]:
    """One row a strategy, for `show.table`: GB of a rank, GB it sends in a step, bubble, speed, the largest model in billions."""
    return [{"strategy": name, **_row(found, job, device)} for name, found in _plans(model, gpus, job, device, strategies)]


def _plans(model: Model, gpus: int, job: Job, device: Device, names: Sequence[str]) -> Iterator[tuple[str, Plan]]:
    for name in names:
        yield name, plan(model, layout(name, gpus, model, device.per_node), job, device)


def _row(found: Plan, job: Job, device: Device) -> dict[str, str | float | bool | int]:
    cut, gb = found.layout, {name: bytes / 1e9 for name, bytes in found.memory.items()}
    return {
        "data × tensor × pipeline": f"{cut.data} × {cut.tensor} × {cut.pipeline}",
        **gb,
        "GB in all": found.total / 1e9,
        "fits": found.fits,
        "GB sent": sum(found.sent.values()) / 1e9,
        "bubble": f"{found.bubble:.0%}",
        "tokens a second": round(found.tokens / sum(found.seconds.values())),
        "largest (10⁹)": largest(cut, job, device) / 1e9,
    }
