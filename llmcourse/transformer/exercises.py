"""The exercises of notebook 01: each reference is the package's own function, each wrong answer one plausible edit away from it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exercise import Exercise, Misconception, register
from . import masks
from .attention import attention, softmax
from .generate import probabilities
from .norms import rms_norm
from .positions import Angles, frequencies, rope_angles, rotate

# --- softmax ---------------------------------------------------------------------------------------------------------


def _softmax_inputs(trial: int) -> tuple[Tensor]:
    return (torch.randn(3, 4, 6) * (1, 3, 300)[trial % 3],)


def _softmax_no_exp(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    positive = scores - scores.amin(-1, keepdim=True) + 1
    return positive / positive.sum(-1, keepdim=True)


def _softmax_wrong_axis(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    return scores.softmax(dim=-2)


def _softmax_whole(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    return scores.flatten().softmax(0).view_as(scores)


def _softmax_unnormalised(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    return (scores - scores.amax(-1, keepdim=True)).exp()


register(
    Exercise(
        id="transformer/softmax",
        title="A softmax that cannot overflow",
        reference=softmax,
        inputs=_softmax_inputs,
        difficulty=1,
        minutes=5,
        hints=(
            "`exp` of 100 fits into a float32, `exp` of 300 does not. Which number can you subtract from every score without changing the result?",
            "Subtract the row's largest score: `scores - scores.amax(-1, keepdim=True)`. The largest power is then e⁰ = 1.",
            "`powers = (scores - top).exp()`, then `powers / powers.sum(-1, keepdim=True)`.",
        ),
        misconceptions=(
            Misconception(_softmax_no_exp, "Your rows sum to 1, but the scores were never raised to powers of e. Apply `.exp()` before you normalise."),
            Misconception(_softmax_wrong_axis, "You normalise over the queries (axis -2). Each query spreads its attention over the keys: use the last axis."),
            Misconception(_softmax_whole, "The whole tensor sums to 1. Each *row* must: sum with `(-1, keepdim=True)`."),
            Misconception(_softmax_unnormalised, "These are the powers e^(score - max), not yet probabilities. Divide by their sum over the last axis."),
        ),
    )
)

# --- attention -------------------------------------------------------------------------------------------------------


def _attention_inputs(trial: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    n_queries, n_keys = ((4, 4), (3, 5), (5, 5), (2, 6))[trial % 4]
    q, k, v = torch.randn(2, 2, n_queries, 8), torch.randn(2, 2, n_keys, 8), torch.randn(2, 2, n_keys, 6)
    return q, k, v, None if trial == 0 else masks.causal(n_queries, n_keys)[None, None]


def _weigh(scores: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    weights = softmax(scores, mask)
    return weights @ v, weights


def _attention_unscaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _weigh(q @ k.mT, v, mask)


def _attention_divided_by_d(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _weigh(q @ k.mT / q.shape[-1], v, mask)


def _attention_scaled_by_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _weigh(q @ k.mT / k.shape[-2] ** 0.5, v, mask)


def _attention_unmasked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _weigh(q @ k.mT / q.shape[-1] ** 0.5, v, None)


def _attention_masked_late(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    weights = weights if mask is None else weights * mask
    return weights @ v, weights


def _attention_mask_inverted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _weigh(q @ k.mT / q.shape[-1] ** 0.5, v, None if mask is None else ~mask)


register(
    Exercise(
        id="transformer/attention",
        title="Scaled dot-product attention",
        reference=attention,
        inputs=_attention_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "Three steps: scores of every query with every key, softmax over the keys, weighted average of the values.",
            "`k.mT` swaps the last two axes, so `q @ k.mT` has the shape batch × heads × query × key. Scale it by `q.shape[-1] ** 0.5`.",
            "`weights = softmax(scores, mask)`: the mask goes into the softmax, where a masked score counts as -∞. Return `weights @ v, weights`.",
        ),
        misconceptions=(
            Misconception(_attention_unscaled, "Your scores are not divided by √d. With d features the dot product grows like √d and the softmax saturates."),
            Misconception(_attention_divided_by_d, "You divide by d; the equation says √d."),
            Misconception(_attention_scaled_by_keys, "You divide by the square root of the number of keys. d is the length of one query: `q.shape[-1]`."),
            Misconception(_attention_unmasked, "The mask has no effect: queries see the future. Hand it to the softmax."),
            Misconception(_attention_masked_late, "You mask after the softmax, so rows no longer sum to 1. Masked scores must be -∞ *before* it."),
            Misconception(_attention_mask_inverted, "Your mask is inverted: True means that the query *may* look at the key."),
        ),
    )
)

# --- causal mask -----------------------------------------------------------------------------------------------------


def _causal_inputs(trial: int) -> tuple[int, int]:
    return ((4, 4), (2, 5), (3, 7), (5, 6))[trial % 4]


def _causal_blind_to_itself(n_queries: int, n_keys: int) -> Tensor:
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries - 1)


def _causal_reversed(n_queries: int, n_keys: int) -> Tensor:
    return torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries)


def _causal_top_left(n_queries: int, n_keys: int) -> Tensor:
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril()


def _causal_inverted(n_queries: int, n_keys: int) -> Tensor:
    return ~masks.causal(n_queries, n_keys)


register(
    Exercise(
        id="transformer/causal",
        title="The causal mask, also behind a cache",
        reference=masks.causal,
        inputs=_causal_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            "The queries are the *last* `n_queries` of the `n_keys` places: the first query stands at place `n_keys - n_queries`.",
            "Make a column of query places and a row of key places with `torch.arange`; compare them with `>=`.",
            "`keys = torch.arange(n_keys)`; `keys[n_keys - n_queries:, None] >= keys`.",
        ),
        misconceptions=(
            Misconception(_causal_blind_to_itself, "A query must see itself, too: the diagonal is True. Yours sees strictly earlier places only."),
            Misconception(_causal_reversed, "Yours looks into the future: it shows the places from itself *onwards*. Turn the comparison round."),
            Misconception(_causal_top_left, "Right for a square, wrong behind a cache: the queries are the *last* places. Align the triangle to the lower right corner."),
            Misconception(_causal_inverted, "Exactly the opposite: True must mean that the query may look."),
        ),
    )
)

# --- RoPE ------------------------------------------------------------------------------------------------------------


def _rotate_inputs(trial: int) -> tuple[Tensor, Angles]:
    start, d_head = (0, 3, 100)[trial % 3], (8, 4, 6)[trial % 3]
    return torch.randn(2, 2, 5, d_head), rope_angles(torch.arange(start, start + 5), frequencies(d_head, 100.0))


def _rotate_in_place(x: Tensor, angles: Angles) -> Tensor:
    cos, signed_sin = angles
    return x * cos + x * signed_sin


def _rotate_backwards(x: Tensor, angles: Angles) -> Tensor:
    return rotate(x, (angles[0], -angles[1]))


def _rotate_interleaved(x: Tensor, angles: Angles) -> Tensor:
    cos, signed_sin = angles
    return x * cos + x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * signed_sin


def _rotate_unsigned(x: Tensor, angles: Angles) -> Tensor:
    return rotate(x, (angles[0], angles[1].abs()))


register(
    Exercise(
        id="transformer/rotate",
        title="RoPE: turn pairs of features",
        reference=rotate,
        inputs=_rotate_inputs,
        difficulty=3,
        minutes=10,
        hints=(
            "A pair is (feature i, feature i + d/2). `first, second = x.chunk(2, dim=-1)` splits all pairs at once.",
            "cos already has full width; signed_sin has -sin in its first half, +sin in its second. So the sines must meet the *other* half of x.",
            "`swapped = torch.cat((second, first), -1)`; return `x * cos + swapped * signed_sin`.",
        ),
        misconceptions=(
            Misconception(_rotate_in_place, "You multiply each feature by its own sine. A rotation mixes the two features of a pair: the sines go with the swapped halves."),
            Misconception(_rotate_backwards, "Right plane, wrong direction: the sign of the sine is turned. It is already in `signed_sin`."),
            Misconception(_rotate_interleaved, "You pair neighbours (0, 1), (2, 3) as the RoPE paper does. This model pairs feature i with i + d/2."),
            Misconception(_rotate_unsigned, "The first half needs -sin, the second +sin. Keep the signs that `signed_sin` carries."),
        ),
    )
)

# --- RMSNorm ---------------------------------------------------------------------------------------------------------


def _norm_inputs(trial: int) -> tuple[Tensor, Tensor, float]:
    return torch.randn(2, 3, 8) * (1, 10, 0.1)[trial % 3] + 0.5, torch.rand(8) + 0.5, (1e-6, 1e-5, 1e-2)[trial % 3]


def _norm_centred(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


def _norm_no_root(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps)


def _norm_by_length(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return weight * x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def _norm_without_gain(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _norm_over_sequence(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-2, keepdim=True) + eps)


register(
    Exercise(
        id="transformer/rms_norm",
        title="RMSNorm",
        reference=rms_norm,
        inputs=_norm_inputs,
        difficulty=1,
        minutes=5,
        hints=(
            "Root mean square, read from right to left: square, mean over the last axis, root.",
            "Add `eps` under the root, so that a vector of zeros stays zeros.",
            "`x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight`.",
        ),
        misconceptions=(
            Misconception(_norm_centred, "You subtract the mean: that is LayerNorm. RMSNorm only rescales."),
            Misconception(_norm_no_root, "You divide by the mean square; take its root."),
            Misconception(_norm_by_length, "You divide by the vector's length: its features then shrink as 1/√d. Take the *mean* of the squares, not their sum."),
            Misconception(_norm_without_gain, "The learned `weight` is not used: multiply by it at the end."),
            Misconception(_norm_over_sequence, "You average over positions (axis -2). Each position is normalised by itself, over its features: axis -1."),
        ),
    )
)

# --- sampling --------------------------------------------------------------------------------------------------------


def _sampling_inputs(trial: int) -> tuple[Tensor, float, int | None, float | None]:
    settings = ((0.5, None, 0.6), (1.0, 4, None), (2.0, None, 0.9), (0.7, 6, 0.8))[trial % 4]
    return torch.randn(3, 12) * 2, *settings


def _sampling_crossing_token_lost(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    p, order = probabilities(logits, temperature, top_k).sort(descending=True)
    keep = p.cumsum(-1) <= (1.0 if top_p is None else top_p)
    keep[..., 0] = True
    p = torch.zeros_like(p).scatter(-1, order, p * keep)
    return p / p.sum(-1, keepdim=True)


def _sampling_unscaled_rest(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    kept = probabilities(logits, temperature, top_k, top_p) > 0
    return (logits / temperature).softmax(-1) * kept


def _sampling_one_too_few(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    return probabilities(logits, temperature, None if top_k is None else top_k - 1, top_p)


def _sampling_temperature_late(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    kept = probabilities(logits, 1.0, top_k, top_p) > 0
    return (logits / temperature).masked_fill(~kept, -torch.inf).softmax(-1)


register(
    Exercise(
        id="transformer/probabilities",
        title="Temperature, top-k, top-p",
        reference=probabilities,
        inputs=_sampling_inputs,
        difficulty=3,
        minutes=15,
        hints=(
            "The order is: divide by the temperature, cut to the top k, cut to the top p, softmax. A cut logit becomes -∞.",
            "For top-k, the k-th largest logit is `logits.topk(top_k).values[..., -1:]`; everything below it goes.",
            "For top-p sort the probabilities downwards and sum them up. A token stays if the sum of those *before* it is below p: so the token that crosses p stays.",
        ),
        misconceptions=(
            Misconception(_sampling_crossing_token_lost, "Your top-p drops the token whose probability crosses p. The kept mass must *reach* p: keep that token."),
            Misconception(_sampling_unscaled_rest, "The kept probabilities no longer sum to 1. Cut logits to -∞ and take the softmax last."),
            Misconception(_sampling_one_too_few, "Top-k keeps one token too few: the k-th largest itself stays."),
            Misconception(_sampling_temperature_late, "You cut first and apply the temperature afterwards. transformers does it the other way round, and top-p then keeps other tokens."),
        ),
    )
)
