"""Exercises on objectives, optimisers and the data pipeline: each reference is the package's own function."""

import math
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from llmcourse.exercise import Exercise, Misconception, register
from llmcourse.pretraining.objectives import IGNORED, apply_mask, corrupt_spans
from llmcourse.pretraining.optimisers import adamw_step
from llmcourse.pretraining.pipeline import PRIME, minhash
from llmcourse.train import warmup_cosine

# --- masked LM -------------------------------------------------------------------------------------------------------

MaskInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]


def _mask_inputs(trial: int) -> MaskInputs:
    shape = (2 + trial % 2, 16)
    chosen, hide, swap = (torch.rand(shape) < share for share in (0.5, 0.6, 0.5))
    return torch.randint(10, 50, shape), chosen, hide, swap, torch.randint(50, 90, shape), 3


def _mask_all_labels(
    ids: Tensor, chosen: Tensor, hide: Tensor, swap: Tensor, words: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    return apply_mask(ids, chosen, hide, swap, words, mask_id)[0], ids.clone()


def _mask_changed_labels(
    ids: Tensor, chosen: Tensor, hide: Tensor, swap: Tensor, words: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    inputs, _ = apply_mask(ids, chosen, hide, swap, words, mask_id)
    return inputs, ids.masked_fill(inputs == ids, IGNORED)


def _mask_labels_inverted(
    ids: Tensor, chosen: Tensor, hide: Tensor, swap: Tensor, words: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    return apply_mask(ids, chosen, hide, swap, words, mask_id)[0], ids.masked_fill(chosen, IGNORED)


def _mask_labels_too_late(
    ids: Tensor, chosen: Tensor, hide: Tensor, swap: Tensor, words: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    inputs, _ = apply_mask(ids, chosen, hide, swap, words, mask_id)
    return inputs, inputs.masked_fill(~chosen, IGNORED)


def _mask_swapped_over(
    ids: Tensor, chosen: Tensor, hide: Tensor, swap: Tensor, words: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    return apply_mask(ids, chosen, hide & ~swap, swap, words, mask_id)


def _mask_everywhere(
    ids: Tensor, chosen: Tensor, hide: Tensor, swap: Tensor, words: Tensor, mask_id: int
) -> tuple[Tensor, Tensor]:
    labels = ids.masked_fill(~chosen, IGNORED)
    return torch.where(swap, words, ids).masked_fill(hide, mask_id), labels


def _mask_always(ids: Tensor, chosen: Tensor, hide: Tensor, swap: Tensor, words: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    return ids.masked_fill(chosen, mask_id), ids.masked_fill(~chosen, IGNORED)


register(
    Exercise(
        id="pretraining/apply_mask",
        title="Masked LM: hide, swap, leave",
        reference=apply_mask,
        inputs=_mask_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            "Make the labels first, from the untouched ids: a token where `chosen`, -100 (`IGNORED`) everywhere else.",
            "`hide` and `swap` are coins for *all* places; only those at chosen places count: `chosen & swap`, `chosen & hide`.",
            "Put in the random words first, `torch.where(chosen & swap, words, ids)`, then the mask over them with `masked_fill`.",
        ),
        misconceptions=(
            Misconception(
                _mask_all_labels,
                "Your labels ask for every token. Only the chosen places count; elsewhere the answer stands in the input: -100.",
            ),
            Misconception(
                _mask_changed_labels,
                "You ask only for the places that changed. The chosen places left as they are count too: that is what the last 10 % are for.",
            ),
            Misconception(_mask_labels_inverted, "Your labels are inverted: -100 belongs to the places that are *not* chosen."),
            Misconception(
                _mask_labels_too_late,
                "Your labels hold the masked tokens: take them from the ids as they were before you changed anything.",
            ),
            Misconception(
                _mask_swapped_over,
                "Your random words replace masks: then far fewer than 80 % are hidden. Where `hide` is true the mask wins.",
            ),
            Misconception(_mask_everywhere, "You change places that were not chosen. Combine the coins with `chosen`."),
            Misconception(
                _mask_always,
                "You hide every chosen token. Some become random words and some stay, because there is no mask token at fine-tuning.",
            ),
        ),
    )
)

# --- span corruption -------------------------------------------------------------------------------------------------

Ids = list[int]
Hidden = list[bool]
Spans = tuple[Ids, Ids]


def _span_inputs(trial: int) -> tuple[Ids, Hidden, Ids]:
    """Rows that end in a hidden span and rows that do not; one begins with one."""
    lengths = ((3, 2, 2, 1), (2, 3, 1, 2, 3), (0, 2, 4, 2, 1, 3), (2, 2, 3, 1, 2))[trial % 4]
    hidden = [i % 2 == 1 for i, n in enumerate(lengths) for _ in range(n)]
    return torch.randint(10, 90, (len(hidden),)).tolist(), hidden, [99, 98, 97, 96]


def _span_per_token(ids: Ids, hidden: Hidden, sentinels: Ids) -> Spans:
    visible, target = corrupt_spans(ids, hidden, sentinels)
    lengths = [len(list(group)) if hide else 0 for hide, group in groupby(hidden)]
    repeats = dict(zip(sentinels, filter(None, lengths), strict=False))
    return [token for token in visible for _ in range(repeats.get(token, 1))], target


def _span_one_sentinel(ids: Ids, hidden: Hidden, sentinels: Ids) -> Spans:
    return corrupt_spans(ids, hidden, sentinels[:1] * len(sentinels))


def _span_reversed(ids: Ids, hidden: Hidden, sentinels: Ids) -> Spans:
    return corrupt_spans(ids, hidden, sentinels[::-1])


def _span_no_sentinels(ids: Ids, hidden: Hidden, sentinels: Ids) -> Spans:
    return corrupt_spans(ids, hidden, sentinels)[0], [token for token, hide in zip(ids, hidden, strict=True) if hide]


def _span_sentinel_after(ids: Ids, hidden: Hidden, sentinels: Ids) -> Spans:
    visible, target = corrupt_spans(ids, hidden, sentinels)
    return visible, [*target[1:], target[0]]


def _span_never_closed(ids: Ids, hidden: Hidden, sentinels: Ids) -> Spans:
    visible, target = corrupt_spans(ids, hidden, sentinels)
    return visible, target if hidden[-1] else target[:-1]


def _span_inverted(ids: Ids, hidden: Hidden, sentinels: Ids) -> Spans:
    return corrupt_spans(ids, [not hide for hide in hidden], sentinels)


register(
    Exercise(
        id="pretraining/corrupt_spans",
        title="Span corruption: input and target",
        reference=corrupt_spans,
        inputs=_span_inputs,
        difficulty=3,
        minutes=15,
        hints=(
            "Walk through the row. A visible token goes to the encoder; a hidden one goes to the target.",
            "Where a hidden span *begins* (hidden here, not one place before), its sentinel goes to both sides: `sentinels[k]` for the k-th span.",
            "If the row does not end in a hidden span, the target ends with one more sentinel: it says where the last span stops.",
        ),
        misconceptions=(
            Misconception(
                _span_per_token,
                "Your encoder sees one sentinel for every hidden *token*. One stands for the whole span: the decoder must find out its length.",
            ),
            Misconception(
                _span_one_sentinel,
                "All your spans share one sentinel, so the decoder cannot tell which span it fills in. The k-th span takes `sentinels[k]`.",
            ),
            Misconception(
                _span_reversed, "You deal out the sentinels from the end of the list. The first span takes `sentinels[0]`."
            ),
            Misconception(
                _span_no_sentinels,
                "Your target is only the hidden tokens: without the sentinels nobody knows where one span ends and the next begins.",
            ),
            Misconception(
                _span_sentinel_after,
                "Your sentinels follow their spans in the target. They come first: the sentinel is the question, the span its answer.",
            ),
            Misconception(
                _span_never_closed,
                "Text follows your last hidden span, but nothing closes it in the target: add one more sentinel.",
            ),
            Misconception(
                _span_inverted, "You hide what should be seen: True in `hidden` means that the encoder does not see the token."
            ),
        ),
    )
)

# --- learning-rate schedule ------------------------------------------------------------------------------------------


def _schedule_inputs(trial: int) -> tuple[int, int, int, float]:
    """Each part of the curve once, with and without a floor."""
    return ((0, 100, 10, 0.1), (4, 100, 10, 0.0), (9, 80, 10, 0.1), (30, 80, 10, 0.1), (60, 100, 20, 0.0), (95, 100, 0, 0.2))[
        trial % 6
    ]


def _schedule_lost_step(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    return step / warmup if step < warmup else warmup_cosine(step, steps, warmup, final)


def _schedule_ignores_warmup(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    rise = (step + 1) / warmup if step < warmup else 1.0
    return rise if step < warmup else warmup_cosine(step, steps, 0, final)


def _schedule_product(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    return min(1.0, (step + 1) / max(1, warmup)) * warmup_cosine(max(step, warmup), steps, warmup, 0.0)


def _schedule_clipped(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    return warmup_cosine(step, steps, warmup) if step < warmup else max(final, warmup_cosine(step, steps, warmup))


def _schedule_added(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    return warmup_cosine(step, steps, warmup, final) if step < warmup else final + warmup_cosine(step, steps, warmup)


def _schedule_whole_wave(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return final + (1 - final) * (1 + math.cos(2 * math.pi * (step - warmup) / (steps - warmup))) / 2


def _schedule_line(step: int, steps: int, warmup: int, final: float = 0.0) -> float:
    return warmup_cosine(step, steps, warmup) if step < warmup else 1 - (1 - final) * (step - warmup) / (steps - warmup)


register(
    Exercise(
        id="pretraining/warmup_cosine",
        title="Warm-up, then half a cosine",
        reference=warmup_cosine,
        inputs=_schedule_inputs,
        difficulty=1,
        minutes=8,
        trials=6,
        hints=(
            "Two cases: in the warm-up (`step < warmup`) the factor is a straight line; afterwards it depends on how far the rest of the run is done.",
            "Steps count from 0, so the line is `(step + 1) / warmup`: the very first step already moves. The progress afterwards is `(step - warmup) / (steps - warmup)`.",
            "Half a wave from 1 to 0 is `(1 + math.cos(math.pi * progress)) / 2`; squeeze it between 1 and `final`: `final + (1 - final) * wave`.",
        ),
        misconceptions=(
            Misconception(
                _schedule_lost_step,
                "Your first step has a learning rate of 0, so its batch is wasted. Rise as `(step + 1) / warmup`.",
            ),
            Misconception(
                _schedule_ignores_warmup,
                "Your cosine counts from step 0, so the rate jumps down where the warm-up ends. Its progress starts at `warmup`.",
            ),
            Misconception(_schedule_product, "Your curve ends at 0: `final` has no effect."),
            Misconception(
                _schedule_clipped,
                "You cut the curve off at `final`: it lies flat at the end. Squeeze the whole wave between 1 and `final`.",
            ),
            Misconception(
                _schedule_added, "You add `final` to the whole wave, so it starts above 1. Scale the wave by `1 - final` first."
            ),
            Misconception(
                _schedule_whole_wave, "Yours falls and rises again: that is a whole wave. The angle goes from 0 to π, not 2π."
            ),
            Misconception(_schedule_line, "Yours falls in a straight line; a cosine starts and ends gently."),
        ),
    )
)

# --- AdamW -----------------------------------------------------------------------------------------------------------

Betas = tuple[float, float]
AdamInputs = tuple[Tensor, Tensor, Tensor, Tensor, int, float, Betas, float, float]


def _adamw_inputs(trial: int) -> AdamInputs:
    betas: Betas = ((0.9, 0.999), (0.8, 0.95), (0.9, 0.99), (0.5, 0.9))[trial % 4]
    weight, gradient, mean = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4) * 0.3
    return weight, gradient, mean, torch.rand(3, 4) * 0.1, (1, 3, 10, 2)[trial % 4], 0.1, betas, (1e-8, 1e-3)[trial % 2], 0.1


Step = tuple[Tensor, Tensor, Tensor]


def _adamw_uncorrected(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    return adamw_step(weight, gradient, mean, square, 10**6, lr, betas, eps, weight_decay)


def _adamw_step_from_zero(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    return adamw_step(weight, gradient, mean, square, step + 1, lr, betas, eps, weight_decay)


def _adamw_l2(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    return adamw_step(weight, gradient + weight_decay * weight, mean, square, step, lr, betas, eps, 0.0)


def _adamw_decay_without_lr(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    new, mean, square = adamw_step(weight, gradient, mean, square, step, lr, betas, eps, 0.0)
    return new - weight_decay * weight, mean, square


def _adamw_no_decay(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    return adamw_step(weight, gradient, mean, square, step, lr, betas, eps, 0.0)


def _adamw_no_root(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    _, mean, square = adamw_step(weight, gradient, mean, square, step, lr, betas, eps, weight_decay)
    direction = mean / (1 - betas[0] ** step) / (square / (1 - betas[1] ** step) + eps)
    return (1 - lr * weight_decay) * weight - lr * direction, mean, square


def _adamw_betas_swapped(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    return adamw_step(weight, gradient, mean, square, step, lr, betas[::-1], eps, weight_decay)


def _adamw_eps_inside(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: Betas,
    eps: float,
    weight_decay: float,
) -> Step:
    _, mean, square = adamw_step(weight, gradient, mean, square, step, lr, betas, eps, weight_decay)
    direction = mean / (1 - betas[0] ** step) / (square / (1 - betas[1] ** step) + eps).sqrt()
    return (1 - lr * weight_decay) * weight - lr * direction, mean, square


register(
    Exercise(
        id="pretraining/adamw_step",
        title="One step of AdamW",
        reference=adamw_step,
        inputs=_adamw_inputs,
        difficulty=2,
        minutes=12,
        hints=(
            "Four lines: new mean, new square, direction, new weight. Return all three tensors.",
            "A running mean keeps `beta` of the old and takes `1 - beta` of the new. Both start at 0 and are therefore too small: divide by `1 - beta ** step`.",
            "`direction = m_hat / (v_hat.sqrt() + eps)`, and the decay acts on the weight itself: `(1 - lr * weight_decay) * weight - lr * direction`.",
        ),
        misconceptions=(
            Misconception(
                _adamw_uncorrected,
                "Your mean and square are not corrected for their start at 0: divide them by `1 - beta ** step`.",
            ),
            Misconception(
                _adamw_step_from_zero, "Your correction is one step ahead. `step` counts from 1 already: use `beta ** step`."
            ),
            Misconception(
                _adamw_l2,
                "You add the decay to the gradient: that is Adam with L2. In AdamW the decay never passes through mean and square.",
            ),
            Misconception(
                _adamw_decay_without_lr,
                "Your decay is not multiplied by the learning rate, so it stays strong when the schedule has made the steps small.",
            ),
            Misconception(_adamw_no_decay, "The weights do not decay: multiply them by `1 - lr * weight_decay`."),
            Misconception(_adamw_no_root, "You divide by the mean square; take its root, or the step has the wrong unit."),
            Misconception(_adamw_betas_swapped, "`betas[0]` belongs to the mean, `betas[1]` to the square; yours are swapped."),
            Misconception(_adamw_eps_inside, "Your eps is under the root. It is added to the root: `v_hat.sqrt() + eps`."),
        ),
    )
)

# --- MinHash ---------------------------------------------------------------------------------------------------------


def _minhash_inputs(trial: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    members, hashes = ((12, 8), (7, 16), (30, 5), (9, 9))[trial % 4]
    return np.random.randint(0, PRIME, members), np.random.randint(1, PRIME, hashes), np.random.randint(0, PRIME, hashes)


def _minhash_maximum(members: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return ((slopes[:, None] * members + offsets[:, None]) % PRIME).max(axis=1)


def _minhash_of_minimum(members: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return (slopes * members.min() + offsets) % PRIME


def _minhash_position(members: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return ((slopes[:, None] * members + offsets[:, None]) % PRIME).argmin(axis=1)


def _minhash_no_modulus(members: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return (slopes[:, None] * members + offsets[:, None]).min(axis=1)


def _minhash_no_offset(members: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return (slopes[:, None] * members % PRIME).min(axis=1)


def _minhash_one_function(members: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.full_like(slopes, ((slopes[0] * members + offsets[0]) % PRIME).min())


register(
    Exercise(
        id="pretraining/minhash",
        title="A MinHash signature",
        reference=minhash,
        inputs=_minhash_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "Every hash function puts the members into another random order; the signature keeps the first of each order.",
            "A table of hash functions × members comes from broadcasting: `slopes[:, None] * members + offsets[:, None]`.",
            "Take the table modulo `PRIME` (from `llmcourse.pretraining.pipeline`), then the smallest value of each row: `.min(axis=1)`.",
        ),
        misconceptions=(
            Misconception(
                _minhash_maximum, "You keep the largest value of each hash function; the signature keeps the smallest."
            ),
            Misconception(
                _minhash_of_minimum,
                "You hash the smallest member. First hash all members, then take the smallest *hash*: else every function picks the same member.",
            ),
            Misconception(
                _minhash_position,
                "You return where the smallest hash stands. In another set it stands elsewhere: return its value.",
            ),
            Misconception(
                _minhash_no_modulus,
                "Without `% PRIME` every function keeps the order of the members, so all of them pick the same one.",
            ),
            Misconception(_minhash_no_offset, "Your hash functions lack their offsets: `slope * x + offset`."),
            Misconception(
                _minhash_one_function,
                "All entries come from the first hash function. Each pair of slope and offset gives one entry.",
            ),
        ),
    )
)
