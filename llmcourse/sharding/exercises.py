"""The exercises of notebook 14: a step round the ring, pad, shard and unshard, who sends what, a loss in pieces, the bubble, bytes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exercise import Exercise, Misconception, register
from .collectives import reduce_scatter_step, reducing_chunks
from .pipeline import bubble_fraction
from .plan import collectives, state_bytes
from .shards import shard, unshard
from .tensor import shard_sums

# --- a step round the ring -------------------------------------------------------------------------------------------


def _ring_inputs(trial: int) -> tuple[Tensor, int]:
    ranks, step = ((3, 0), (4, 1), (4, 2), (5, 3))[trial % 4]
    return torch.randn(ranks, ranks, 2), step


def _ring_overwritten(held: Tensor, step: int) -> Tensor:
    after = held.clone()
    for rank in range(len(held)):
        chunk = reducing_chunks(rank, len(held), step)[1]
        after[rank, chunk] = held[rank - 1, chunk]
    return after


def _ring_same_chunk(held: Tensor, step: int) -> Tensor:
    after = held.clone()
    for rank in range(len(held)):
        chunk = reducing_chunks(rank, len(held), step)[0]
        after[rank, chunk] = held[rank, chunk] + held[rank - 1, chunk]
    return after


def _ring_from_the_right(held: Tensor, step: int) -> Tensor:
    after = held.clone()
    for rank in range(len(held)):
        chunk = reducing_chunks(rank, len(held), step)[1]
        after[rank, chunk] = held[rank, chunk] + held[(rank + 1) % len(held), chunk]
    return after


def _ring_one_after_the_other(held: Tensor, step: int) -> Tensor:
    """In place, rank 1 first, and each adding the same chunk: what rank 1 has made is passed on at once."""
    after = held.clone()
    chunk = reducing_chunks(1, len(held), step)[1]
    for rank in range(1, len(held)):
        after[rank, chunk] = after[rank, chunk] + after[rank - 1, chunk]
    return after


def _ring_everything(held: Tensor, step: int) -> Tensor:
    return held + held.roll(1, 0)


def _ring_stuck(held: Tensor, step: int) -> Tensor:
    """Right at step 0; at any other it repeats it."""
    return reduce_scatter_step(held, 0) if step else reduce_scatter_step(held, len(held) - 2)


register(
    Exercise(
        id="sharding/ring_step",
        title="One step round the ring",
        reference=reduce_scatter_step,
        inputs=_ring_inputs,
        difficulty=2,
        minutes=12,
        hints=(
            "`held[rank, chunk]` is what a rank has. Every rank sends one chunk to its right-hand neighbour and adds the one that comes from the left.",
            "Chunk r starts at rank r + 1 and is at rank r after the last step. So at step s rank r receives chunk (r - s - 2) mod N.",
            "`after = held.clone()`; for every rank: `chunk = (rank - step - 2) % len(held)`; `after[rank, chunk] = held[rank, chunk] + held[rank - 1, chunk]`.",
        ),
        misconceptions=(
            Misconception(_ring_overwritten, "What arrives replaces your own numbers. That is the all-gather; a reduce-scatter *adds* it to them."),
            Misconception(_ring_same_chunk, "You add to the chunk that the rank sends. It receives its left neighbour's, which is one place further back: (rank - step - 2) mod N."),
            Misconception(_ring_from_the_right, "You take the chunk from the right. Every rank sends to the right, so it comes from the left: `held[rank - 1]`."),
            Misconception(_ring_one_after_the_other, "All ranks add the same chunk, one after the other. In a ring every rank is busy with another chunk at the same time; that is what makes it fast."),
            Misconception(_ring_everything, "You send all chunks in every step. One chunk a step is enough: N-1 steps of 1/N of the bytes."),
            Misconception(_ring_stuck, "Your chunks do not move on with the step: `step` must be subtracted."),
        ),
    )
)  # fmt: skip

# --- pad and shard ---------------------------------------------------------------------------------------------------


def _shard_inputs(trial: int) -> tuple[Tensor, int, int]:
    numel, rank, ranks = ((10, 3, 4), (7, 0, 3), (12, 2, 4), (5, 2, 4))[trial % 4]
    return torch.randn(numel), rank, ranks


def _size(flat: Tensor, ranks: int) -> int:
    return -(-len(flat) // ranks)


def _shard_padded_first(flat: Tensor, rank: int, ranks: int) -> Tensor:
    return F.pad(flat, (_size(flat, ranks) * ranks - len(flat), 0)).view(ranks, -1)[rank]


def _shard_strided(flat: Tensor, rank: int, ranks: int) -> Tensor:
    return F.pad(flat, (0, _size(flat, ranks) * ranks - len(flat))).view(-1, ranks)[:, rank].clone()


def _shard_next(flat: Tensor, rank: int, ranks: int) -> Tensor:
    return shard(flat, (rank + 1) % ranks, ranks)


def _shard_repeated(flat: Tensor, rank: int, ranks: int) -> Tensor:
    return torch.cat((flat, flat))[: _size(flat, ranks) * ranks].view(ranks, -1)[rank]


def _shard_ones(flat: Tensor, rank: int, ranks: int) -> Tensor:
    return F.pad(flat, (0, _size(flat, ranks) * ranks - len(flat)), value=1.0).view(ranks, -1)[rank]


register(
    Exercise(
        id="sharding/shard",
        title="Pad and cut",
        reference=shard,
        inputs=_shard_inputs,
        difficulty=1,
        minutes=6,
        hints=(
            "A shard has ⌈numbers / ranks⌉ numbers: `size = -(-len(flat) // ranks)`.",
            "Zeros go behind the numbers: `F.pad(flat, (0, size * ranks - len(flat)))`.",
            "Return `padded.view(ranks, -1)[rank]`: neighbours stay together.",
        ),
        misconceptions=(
            Misconception(_shard_padded_first, "The zeros stand in front of the numbers. `F.pad(flat, (before, behind))`: they belong behind."),
            Misconception(_shard_strided, "You deal the numbers out like cards, every N-th to a rank. A shard is one contiguous piece, so that a collective can send it as it lies."),
            Misconception(_shard_next, "That is the next rank's piece: ranks count from 0."),
            Misconception(_shard_repeated, "You fill up with the first numbers again. They would be counted twice in a norm: fill up with zeros."),
            Misconception(_shard_ones, "You fill up with ones. Padding must add nothing to sums and norms: zeros."),
        ),
    )
)  # fmt: skip

# --- and together again ----------------------------------------------------------------------------------------------


def _unshard_inputs(trial: int) -> tuple[list[Tensor], list[tuple[int, ...]]]:
    ranks, shapes = ((4, [(2, 3), (3,), (1,)]), (3, [(2, 2), (5,)]), (2, [(3, 3), (2, 2)]), (4, [(1, 5), (2, 1)]))[trial % 4]
    numbers = torch.randn(sum(torch.Size(shape).numel() for shape in shapes))
    return [shard(numbers, rank, ranks).clone() for rank in range(ranks)], shapes


def _unshard_backwards(shards: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return unshard(shards[::-1], shapes)


def _unshard_padding_first(shards: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Takes the last numbers instead of the first."""
    flat, needed = torch.cat(shards), sum(torch.Size(shape).numel() for shape in shapes)
    return unshard([flat.roll(needed - len(flat))], shapes)


def _unshard_interleaved(shards: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return unshard([torch.stack(shards, 1).flatten()], shapes)


def _unshard_from_the_start(shards: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    flat = torch.cat(shards)
    return [flat[: torch.Size(shape).numel()].view(shape).clone() for shape in shapes]


register(
    Exercise(
        id="sharding/unshard",
        title="Whole tensors again",
        reference=unshard,
        inputs=_unshard_inputs,
        difficulty=1,
        minutes=7,
        hints=(
            "`torch.cat(shards)` is the padded vector. The tensors lie in it one behind the other.",
            "Keep the place: `start = 0`, and after each tensor `start += size`.",
            "For each shape: `size = math.prod(shape)`; take `flat[start : start + size].view(shape)`. What is left at the end is padding.",
        ),
        misconceptions=(
            Misconception(_unshard_backwards, "The shards are joined from the last to the first: rank 0's comes first."),
            Misconception(_unshard_padding_first, "You drop numbers at the front and keep the padding: it lies at the end."),
            Misconception(_unshard_interleaved, "You take a number from every shard in turn. Each shard is one piece: put them one behind the other."),
            Misconception(_unshard_from_the_start, "Every tensor is read from the start of the vector: move on by the size of each."),
        ),
    )
)  # fmt: skip

# --- who sends what --------------------------------------------------------------------------------------------------


def _stage_inputs(trial: int) -> tuple[int]:
    return ((0, 1, 2, 3)[trial % 4],)


def _stage_always_all_reduce(stage: int) -> tuple[str, str, str]:
    forward, _, update = collectives(stage)
    return forward, "all-reduce", update


def _stage_all_gathers_in_one(stage: int) -> tuple[str, str, str]:
    forward, backward, _ = collectives(stage)
    return forward, backward, "nothing"


def _stage_three_as_two(stage: int) -> tuple[str, str, str]:
    return collectives(min(stage, 2))


def _stage_gathers_both(stage: int) -> tuple[str, str, str]:
    return ("all-gather", "reduce-scatter", "all-gather") if stage == 3 else collectives(stage)


def _stage_broadcast(stage: int) -> tuple[str, str, str]:
    return tuple("broadcast" if name == "all-gather" else name for name in collectives(stage))


def _stage_one_all_reduces(stage: int) -> tuple[str, str, str]:
    return ("nothing", "all-reduce", "nothing") if stage == 1 else collectives(stage)


register(
    Exercise(
        id="sharding/collectives",
        title="Which collective, at which stage?",
        reference=collectives,
        inputs=_stage_inputs,
        trials=4,
        difficulty=2,
        minutes=10,
        hints=(
            'Return three words: before a layer\'s forward, after its backward, after the update. Each is "all-gather", "all-reduce", "reduce-scatter" or "nothing".',
            "Ask what a rank lacks. Stage 3: parameters, before every layer. Stages 1 and 2: the others' updated parameters, once a step. DDP: nothing but the others' gradients.",
            'A rank that updates only its shard needs only its shard of the gradient: "reduce-scatter" from stage 1 on. DDP updates everything: "all-reduce".',
        ),
        misconceptions=(
            Misconception(_stage_always_all_reduce, "You all-reduce the gradients at every stage. From stage 1 on a rank updates one shard, so half of that is enough: reduce-scatter."),
            Misconception(_stage_all_gathers_in_one, "After the update nobody knows the others' new parameters. In stages 1 and 2 they are gathered then."),
            Misconception(_stage_three_as_two, "Stage 3 keeps only a shard of the parameters: they are gathered before each layer runs, not after the update."),
            Misconception(_stage_gathers_both, "Stage 3 needs no all-gather after the update: the next forward pass gathers each layer anyway."),
            Misconception(_stage_broadcast, "A broadcast sends what *one* rank has. Here every rank has a shard that all others need: all-gather."),
            Misconception(_stage_one_all_reduces, "That is DDP. In stage 1 the optimizer is cut already: reduce-scatter the gradients, then gather the parameters."),
        ),
    )
)  # fmt: skip

# --- the loss of a vocabulary in pieces ------------------------------------------------------------------------------


def _loss_inputs(trial: int) -> tuple[Tensor, Tensor, int, Tensor]:
    mine, start = ((5, 0), (5, 5), (4, 8), (6, 6))[trial % 4]
    targets = torch.tensor([start, start + mine - 1, start + mine, max(start - 1, 0), start + 1, start + mine + 1])
    logits = torch.randn(6, mine) * 3
    return logits, targets, start, logits.amax(-1) + torch.rand(6)


def _loss_unshifted(logits: Tensor, targets: Tensor, start: int, top: Tensor) -> Tensor:
    return shard_sums(logits, targets, start, torch.zeros_like(top))


def _loss_own_top(logits: Tensor, targets: Tensor, start: int, top: Tensor) -> Tensor:
    return shard_sums(logits, targets, start, logits.amax(-1))


def _loss_half_shifted(logits: Tensor, targets: Tensor, start: int, top: Tensor) -> Tensor:
    total, _ = shard_sums(logits, targets, start, top)
    return torch.stack((total, shard_sums(logits, targets, start, torch.zeros_like(top))[1]))


def _loss_global_rows(logits: Tensor, targets: Tensor, start: int, top: Tensor) -> Tensor:
    picked = (logits - top[:, None]).gather(-1, targets.clamp(max=logits.shape[-1] - 1)[:, None])[:, 0]
    return torch.stack((shard_sums(logits, targets, start, top)[0], picked))


def _loss_unmasked(logits: Tensor, targets: Tensor, start: int, top: Tensor) -> Tensor:
    row = (targets - start).clamp(0, logits.shape[-1] - 1)
    picked = (logits - top[:, None]).gather(-1, row[:, None])[:, 0]
    return torch.stack((shard_sums(logits, targets, start, top)[0], picked))


def _loss_logarithm(logits: Tensor, targets: Tensor, start: int, top: Tensor) -> Tensor:
    total, picked = shard_sums(logits, targets, start, top)
    return torch.stack((total.log(), picked))


def _loss_off_by_one(logits: Tensor, targets: Tensor, start: int, top: Tensor) -> Tensor:
    row = targets - start
    total, picked = shard_sums(logits, targets, start, top)
    return torch.stack((total, picked.masked_fill(row == 0, 0)))


register(
    Exercise(
        id="sharding/vocabulary_loss",
        title="Cross-entropy without the whole vocabulary",
        reference=shard_sums,
        inputs=_loss_inputs,
        difficulty=3,
        minutes=15,
        hints=(
            "The loss is log Σ exp(z - top) - (z_target - top), whatever `top` is. Both sums go over the vocabulary, so each rank can add up its own part of them.",
            "`row = targets - start` is the target's place among this rank's logits; it is this rank's only if `0 <= row < logits.shape[-1]`.",
            "Return `torch.stack((shifted.exp().sum(-1), picked))` with `shifted = logits - top[..., None]`; `picked` is `shifted.gather(…)` at the row where the target is this rank's, else 0.",
        ),
        misconceptions=(
            Misconception(_loss_unshifted, "You never subtract `top`: exp overflows for large logits. And the other ranks do subtract it."),
            Misconception(_loss_own_top, "You subtract this rank's own largest logit. Ranks must subtract the same number, or their sums cannot be added: use `top`."),
            Misconception(_loss_half_shifted, "The target's logit must be shifted by `top` too: the two shifts cancel in the loss, one alone does not."),
            Misconception(_loss_global_rows, "You look the target up by its number in the whole vocabulary. Here logits start at `start`: subtract it."),
            Misconception(_loss_unmasked, "Where the target is another rank's, this rank must give 0: all ranks' numbers are added."),
            Misconception(_loss_logarithm, "The logarithm comes too early: the sum over ranks stands inside it, log(Σ₀ + Σ₁), not log Σ₀ + log Σ₁."),
            Misconception(_loss_off_by_one, "Row 0 is yours too: `0 <= row`, not `0 < row`."),
        ),
    )
)  # fmt: skip

# --- the bubble ------------------------------------------------------------------------------------------------------


def _bubble_inputs(trial: int) -> tuple[int, int]:
    return ((4, 4), (4, 8), (2, 6), (8, 32))[trial % 4]


def _bubble_of_work(stages: int, batches: int) -> float:
    return (stages - 1) / batches


def _bubble_all_stages(stages: int, batches: int) -> float:
    return stages / (batches + stages)


def _bubble_busy(stages: int, batches: int) -> float:
    return batches / (batches + stages - 1)


def _bubble_turned(stages: int, batches: int) -> float:
    return (batches - 1) / (batches + stages - 1)


def _bubble_twice(stages: int, batches: int) -> float:
    return 2 * (stages - 1) / (2 * (stages - 1) + batches)


def _bubble_one_at_a_time(stages: int, batches: int) -> float:
    return (stages - 1) / stages


register(
    Exercise(
        id="sharding/bubble",
        title="How long does a pipeline stand idle?",
        reference=bubble_fraction,
        inputs=_bubble_inputs,
        difficulty=1,
        minutes=6,
        hints=(
            "Count in units of one micro-batch (forward and backward). A stage works for as many units as there are micro-batches.",
            "The first micro-batch reaches the last stage after stages - 1 units, and until the end a stage waits no more than that: the whole takes batches + stages - 1.",
            "`(stages - 1) / (batches + stages - 1)`.",
        ),
        misconceptions=(
            Misconception(_bubble_of_work, "That is idle time over *working* time. The share of all time has both below the line: batches + stages - 1."),
            Misconception(_bubble_all_stages, "A stage waits for stages - 1 others, not for itself."),
            Misconception(_bubble_busy, "That is the busy share. Asked is the idle one: 1 minus yours."),
            Misconception(_bubble_turned, "Stages and micro-batches are exchanged: more micro-batches make the bubble smaller."),
            Misconception(_bubble_twice, "You count the wait on the way forward and the one back as whole units each. A unit holds both, forward and backward: count it once."),
            Misconception(_bubble_one_at_a_time, "That holds for a single micro-batch. With more of them, stages work at the same time."),
        ),
    )
)  # fmt: skip

# --- bytes -----------------------------------------------------------------------------------------------------------


def _bytes_inputs(trial: int) -> tuple[int, int, int]:
    return ((7_500_000_000, 64, 1), (7_500_000_000, 64, 2), (7_500_000_000, 64, 3), (1_000_000, 4, 0))[trial % 4]


def _bytes_four(parameters: int, ranks: int, stage: int) -> dict[str, float]:
    return state_bytes(parameters, ranks, stage, "float32")


def _bytes_no_master(parameters: int, ranks: int, stage: int) -> dict[str, float]:
    found = state_bytes(parameters, ranks, stage)
    return found | {"optimizer": found["optimizer"] * 8 / 12}


def _bytes_all_shared(parameters: int, ranks: int, stage: int) -> dict[str, float]:
    return state_bytes(parameters, ranks, 3 if stage else 0)


def _bytes_stage_late(parameters: int, ranks: int, stage: int) -> dict[str, float]:
    return state_bytes(parameters, ranks, max(stage - 1, 0))


def _bytes_only_the_last(parameters: int, ranks: int, stage: int) -> dict[str, float]:
    kinds, whole = ("optimizer", "gradients", "parameters"), state_bytes(parameters)
    return {kind: whole[kind] / (ranks if stage and kinds[stage - 1] == kind else 1) for kind in whole}


def _bytes_parameters_first(parameters: int, ranks: int, stage: int) -> dict[str, float]:
    whole = state_bytes(parameters)
    first = {"parameters": 1, "gradients": 2, "optimizer": 3}
    return {kind: n / (ranks if stage >= first[kind] else 1) for kind, n in whole.items()}


register(
    Exercise(
        id="sharding/state_bytes",
        title="Sixteen bytes a parameter, and who keeps them",
        reference=state_bytes,
        inputs=_bytes_inputs,
        trials=4,
        difficulty=1,
        minutes=8,
        hints=(
            "Training in bf16 with a float32 master: a parameter takes 2 bytes, its gradient 2, and the optimizer 12 (master, momentum and variance, 4 each).",
            "Stage 1 cuts the optimizer into `ranks` shards, stage 2 the gradients too, stage 3 the parameters too.",
            '`{"parameters": 2 * parameters / (ranks if stage >= 3 else 1), "gradients": 2 * parameters / (ranks if stage >= 2 else 1), "optimizer": …}`.',
        ),
        misconceptions=(
            Misconception(_bytes_four, "These are float32 numbers: 4, 4 and 8. In mixed precision it is 2, 2 and 12: the master copy belongs to the optimizer."),
            Misconception(_bytes_no_master, "The float32 master is missing: momentum, variance *and* a precise copy of the weights, 12 bytes."),
            Misconception(_bytes_all_shared, "You cut everything at every stage. Only stage 3 does; stages 1 and 2 keep whole parameters."),
            Misconception(_bytes_stage_late, "You are a stage behind: stage 1 cuts the optimizer already."),
            Misconception(_bytes_only_the_last, "Stages add up: stage 2 cuts gradients *and* optimizer, stage 3 all three."),
            Misconception(_bytes_parameters_first, "The order is the other way round: the optimizer, the largest part, is cut first; it costs no extra messages."),
        ),
    )
)  # fmt: skip
