"""The exercises of notebook 01: each reference is the package's own function, each wrong answer one plausible edit away from it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exercise import Arguments, Exercise, Misconception, register
from . import masks
from .attention import attention, softmax
from .counts import cache_bytes
from .generate import probabilities
from .model import Config
from .moe import load_balancing_loss
from .norms import rms_norm
from .positions import Angles, alibi, alibi_slopes, frequencies, rope_angles, rotate
from .ssm import recurrence

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

# --- ALiBi -----------------------------------------------------------------------------------------------------------


def _alibi_inputs(trial: int) -> tuple[int, Tensor, Tensor]:
    n_heads, past, n = ((4, 0, 5), (8, 3, 7), (2, 6, 8), (16, 0, 6))[trial % 4]
    return n_heads, torch.arange(past, n), torch.arange(n)


def _alibi_rewarding(n_heads: int, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    return -alibi(n_heads, query_positions, key_positions)


def _alibi_one_slope(n_heads: int, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    return alibi(n_heads, query_positions, key_positions)[:, :1].expand(1, n_heads, -1, -1)


def _alibi_halving(n_heads: int, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    wanted, given = 2.0 ** -torch.arange(1, n_heads + 1), alibi_slopes(n_heads)
    return alibi(n_heads, query_positions, key_positions) * (wanted / given)[None, :, None, None]


def _alibi_from_one(n_heads: int, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    return alibi(n_heads, query_positions, key_positions) * 2 ** (8 / n_heads)


def _alibi_by_index(n_heads: int, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    return alibi(n_heads, torch.arange(len(query_positions)), torch.arange(len(key_positions)))


register(
    Exercise(
        id="transformer/alibi",
        title="ALiBi: the farther, the lower",
        reference=alibi,
        inputs=_alibi_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "Two parts: a table of distances, query by key, and one slope for each head. The bias is minus their product.",
            "`distance = (query_positions[:, None] - key_positions).abs()`. The exponents are `-8 / n_heads * torch.arange(1, n_heads + 1)`.",
            "`slopes = 2.0 ** exponents`; return `-slopes[None, :, None, None] * distance`.",
        ),
        misconceptions=(
            Misconception(_alibi_rewarding, "The sign is turned: a far key must *lose* score. The bias is 0 on the spot and negative elsewhere."),
            Misconception(_alibi_one_slope, "All your heads have the slope of the first. Each head gets its own, so that some look near and some far."),
            Misconception(_alibi_halving, "Your slopes are ½, ¼, ⅛ … for any number of heads: right for 8. The exponents run in n even steps down to -8: `-8 / n_heads * h`."),
            Misconception(_alibi_from_one, "Your first slope is 1: count the heads from 1, not from 0."),
            Misconception(_alibi_by_index, "You count places within the tensors. Behind a cache the first query stands further on: use the positions that are given."),
        ),
    )
)

# --- bytes of the KV cache -------------------------------------------------------------------------------------------


def _bytes_inputs(trial: int) -> Arguments:
    heads, kv, window, n, batch, width = ((8, 2, None, 40, 1, 2), (6, 3, 16, 50, 2, 4), (4, 4, 100, 30, 3, 2), (8, 1, 7, 64, 4, 1))[trial % 4]
    config = Config(vocab_size=50, d_model=48, n_layers=3 + trial, n_heads=heads, n_kv_heads=kv, d_head=10, window=window)
    return Arguments(config, n, batch=batch, bytes_per_number=width)


def _bytes_keys_only(c: Config, n_tokens: int, batch: int = 1, bytes_per_number: int = 2) -> int:
    return cache_bytes(c, n_tokens, batch=batch, bytes_per_number=bytes_per_number) // 2


def _bytes_query_heads(c: Config, n_tokens: int, batch: int = 1, bytes_per_number: int = 2) -> int:
    return cache_bytes(c, n_tokens, batch=batch, bytes_per_number=bytes_per_number) // c.n_kv_heads * c.n_heads


def _bytes_one_layer(c: Config, n_tokens: int, batch: int = 1, bytes_per_number: int = 2) -> int:
    return cache_bytes(c, n_tokens, batch=batch, bytes_per_number=bytes_per_number) // c.n_layers


def _bytes_no_window(c: Config, n_tokens: int, batch: int = 1, bytes_per_number: int = 2) -> int:
    return 2 * c.n_layers * c.n_kv_heads * c.d_head * n_tokens * batch * bytes_per_number


def _bytes_full_window(c: Config, n_tokens: int, batch: int = 1, bytes_per_number: int = 2) -> int:
    return _bytes_no_window(c, c.window or n_tokens, batch, bytes_per_number)


def _bytes_one_text(c: Config, n_tokens: int, batch: int = 1, bytes_per_number: int = 2) -> int:
    return cache_bytes(c, n_tokens, bytes_per_number=bytes_per_number)


register(
    Exercise(
        id="transformer/cache_bytes",
        title="How large is the KV cache?",
        reference=cache_bytes,
        inputs=_bytes_inputs,
        difficulty=1,
        minutes=8,
        hints=(
            "What is stored for one token, in one layer, by one head? A key and a value, each of `c.d_head` numbers.",
            "Multiply: 2 · layers · heads that own keys · features a head · tokens · rows of the batch · bytes a number.",
            "A window needs no older tokens: `kept = min(n_tokens, c.window or n_tokens)`.",
        ),
        misconceptions=(
            Misconception(_bytes_keys_only, "Half of the truth: a key *and* a value are stored for every token."),
            Misconception(_bytes_query_heads, "You count the query heads. Only key/value heads are stored, `c.n_kv_heads`: that is what sharing them saves."),
            Misconception(_bytes_one_layer, "This is one layer's share. Every layer keeps its own keys and values."),
            Misconception(_bytes_no_window, "With `c.window` set, older tokens are never looked at again and need not be kept: at most `c.window` of them are."),
            Misconception(_bytes_full_window, "A text shorter than the window does not fill it: take the smaller of both."),
            Misconception(_bytes_one_text, "Each row of the batch has its own text: multiply by `batch`."),
        ),
    )
)

# --- load balancing --------------------------------------------------------------------------------------------------


def _balance_inputs(trial: int) -> tuple[list[Tensor], int]:
    n_layers, n_experts, top_k = ((1, 4, 1), (2, 5, 2), (3, 8, 2), (1, 6, 3))[trial % 4]
    return [torch.randn(16, n_experts) + torch.randn(n_experts) for _ in range(n_layers)], top_k


def _sent(p: Tensor, top_k: int) -> Tensor:
    return torch.zeros_like(p).scatter(1, p.topk(top_k).indices, 1).mean(0)


def _balance_unscaled(logits: list[Tensor], top_k: int) -> Tensor:
    return load_balancing_loss(logits, top_k) / logits[0].shape[1]


def _balance_first_choice(logits: list[Tensor], top_k: int) -> Tensor:
    return load_balancing_loss(logits, 1)


def _balance_soft_twice(logits: list[Tensor], top_k: int) -> Tensor:
    p = torch.cat(logits).softmax(-1)
    return p.shape[1] * top_k * p.mean(0).square().sum()


def _balance_hard_twice(logits: list[Tensor], top_k: int) -> Tensor:
    p = torch.cat(logits).softmax(-1)
    return p.shape[1] * _sent(p, top_k).square().sum() / top_k


def _balance_over_tokens(logits: list[Tensor], top_k: int) -> Tensor:
    p = torch.cat(logits)
    return p.shape[1] * (_sent(p, top_k) * p.softmax(0).mean(0)).sum()


def _balance_raw(logits: list[Tensor], top_k: int) -> Tensor:
    p = torch.cat(logits)
    return p.shape[1] * (_sent(p, top_k) * p.mean(0)).sum()


register(
    Exercise(
        id="transformer/load_balancing_loss",
        title="Keep all experts busy",
        reference=load_balancing_loss,
        inputs=_balance_inputs,
        difficulty=3,
        minutes=15,
        hints=(
            "Put all layers' tokens under each other: `p = torch.cat(logits).softmax(-1)`, one row a token, one column an expert.",
            "Which experts get a token? `torch.zeros_like(p).scatter(1, p.topk(top_k).indices, 1)` holds 1 for them. Its mean over the tokens is the share f.",
            "`p.shape[1] * (f * p.mean(0)).sum()`.",
        ),
        misconceptions=(
            Misconception(_balance_unscaled, "The factor is missing: times the number of experts, so that a balanced router has loss `top_k`, however many experts there are."),
            Misconception(_balance_first_choice, "You count each token's first choice only. It is sent to `top_k` experts: count them all."),
            Misconception(_balance_soft_twice, "Both your factors are probabilities. One must be the share of tokens really *sent* to the expert: the top k."),
            Misconception(_balance_hard_twice, "Both your factors are shares of tokens. They have no gradient, so nothing would be learned: one factor must be the mean probability."),
            Misconception(_balance_over_tokens, "Your softmax runs over the tokens. Each token spreads its probability over the experts: the last axis."),
            Misconception(_balance_raw, "You average raw logits. Make them probabilities first: `.softmax(-1)`."),
        ),
    )
)

# --- state spaces ----------------------------------------------------------------------------------------------------


def _states_inputs(trial: int) -> tuple[Tensor, Tensor]:
    shape = ((1, 5, 2, 3), (2, 7, 3, 2), (2, 1, 2, 2), (1, 9, 1, 4))[trial % 4]
    return torch.rand(shape), torch.randn(shape)


def _states_never_forgetting(decay: Tensor, inflow: Tensor) -> Tensor:
    return inflow.cumsum(1)


def _states_forgetting_the_new(decay: Tensor, inflow: Tensor) -> Tensor:
    return recurrence(decay, decay * inflow)


def _states_late(decay: Tensor, inflow: Tensor) -> Tensor:
    return recurrence(decay.roll(1, 1), inflow)


def _states_forgetful(decay: Tensor, inflow: Tensor) -> Tensor:
    return inflow.clone()


def _states_averaging(decay: Tensor, inflow: Tensor) -> Tensor:
    return recurrence(decay, (1 - decay) * inflow)


register(
    Exercise(
        id="transformer/recurrence",
        title="A state that forgets",
        reference=recurrence,
        inputs=_states_inputs,
        difficulty=1,
        minutes=8,
        hints=(
            "One loop over the second axis. The state `h` has the shape of `inflow[:, 0]` and starts at zero.",
            "In each step: `h = decay[:, t] * h + inflow[:, t]`. Keep every h.",
            "`torch.stack(states, dim=1)` puts the kept states back along the second axis.",
        ),
        misconceptions=(
            Misconception(_states_never_forgetting, "Your state only adds up. Before the new comes in, the old is multiplied by its decay."),
            Misconception(_states_forgetting_the_new, "You let the new decay at once: the decay belongs to the old state alone, `decay * h + inflow`."),
            Misconception(_states_late, "You use the decay of the step before: step t has its own, `decay[:, t]`."),
            Misconception(_states_forgetful, "These are the inflows alone: the state before is lost. Carry `h` from step to step."),
            Misconception(_states_averaging, "This is a running average, (1 - decay) · inflow. In a state space the inflow comes in whole."),
        ),
    )
)
