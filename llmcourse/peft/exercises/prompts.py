"""Exercises on soft prompts and prefixes: each reference is the package's own function."""

import torch
from torch import Tensor

from llmcourse.exercise import Exercise, Misconception, register
from llmcourse.peft.prefix import prefix_attention
from llmcourse.peft.prompt_tuning import n_parameters, nearest, start_ids
from llmcourse.peft.virtual_tokens import IGNORED, extend_labels, extend_mask
from llmcourse.transformer import attention

# --- the attention mask ----------------------------------------------------------------------------------------------


def _padded_mask(trial: int) -> Tensor:
    lengths = torch.tensor([6, 4, 3 - trial % 3])[:, None]
    right = (torch.arange(6) < lengths).long()
    return right if trial % 2 else right.flip(1)


def _mask_inputs(trial: int) -> tuple[Tensor, int]:
    return _padded_mask(trial), 2 + trial % 3


def _mask_behind(mask: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((mask, mask.new_ones(len(mask), n_tokens)), dim=1)


def _mask_zeros(mask: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((mask.new_zeros(len(mask), n_tokens), mask), dim=1)


def _mask_repeated(mask: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((mask[:, :1].expand(-1, n_tokens), mask), dim=1)


def _mask_all_ones(mask: Tensor, n_tokens: int) -> Tensor:
    return mask.new_ones(len(mask), n_tokens + mask.shape[1])


register(
    Exercise(
        id="peft/prefix_mask",
        title="The mask of virtual tokens",
        reference=extend_mask,
        inputs=_mask_inputs,
        difficulty=1,
        minutes=4,
        hints=(
            "The text has one row of 1s and 0s per sentence. Virtual tokens stand in front of it: which value do they need so that every word may look at them?",
            "`mask.new_ones(rows, n_tokens)` makes ones of the mask's dtype, on its device.",
            "`torch.cat((mask.new_ones(len(mask), n_tokens), mask), dim=1)`: in front of the text, wherever its padding is.",
        ),
        misconceptions=(
            Misconception(
                _mask_behind,
                "Your ones stand behind the text. Virtual tokens stand in front of it, so the mask's own columns must come last.",
            ),
            Misconception(
                _mask_zeros,
                "Zeros hide the virtual tokens: the model computes them and nobody looks. They are never padding, so they get ones.",
            ),
            Misconception(
                _mask_repeated,
                "You repeat the first column. In a row padded on the left that is a 0, and this row alone would not see its prefix.",
            ),
            Misconception(
                _mask_all_ones,
                "Your mask is all ones, so the padding of the text has come back to life. Keep the text's own mask behind the new ones.",
            ),
        ),
    )
)

# --- the labels ------------------------------------------------------------------------------------------------------


def _labels_inputs(trial: int) -> tuple[Tensor, int]:
    return torch.randint(3, 50, (3, 5)).masked_fill(_padded_mask(trial)[:, :5] == 0, IGNORED), 2 + trial % 3


def _labels_zero(labels: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((labels.new_zeros(len(labels), n_tokens), labels), dim=1)


def _labels_behind(labels: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((labels, labels.new_full((len(labels), n_tokens), IGNORED)), dim=1)


def _labels_first_word(labels: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((labels[:, :1].expand(-1, n_tokens), labels), dim=1)


def _labels_minus_one(labels: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((labels.new_full((len(labels), n_tokens), -1), labels), dim=1)


def _labels_shifted(labels: Tensor, n_tokens: int) -> Tensor:
    return torch.cat((labels.new_full((len(labels), n_tokens + 1), IGNORED), labels[:, :-1]), dim=1)


register(
    Exercise(
        id="peft/prompt_labels",
        title="The labels of a soft prompt",
        reference=extend_labels,
        inputs=_labels_inputs,
        difficulty=1,
        minutes=4,
        hints=(
            "The model now reads n more places, so it predicts at n more places, and the loss asks for a label at each of them.",
            "No word is the right answer where a soft token stands. Cross-entropy skips the label -100 (`IGNORED`).",
            "`torch.cat((labels.new_full((len(labels), n_tokens), -100), labels), dim=1)`.",
        ),
        misconceptions=(
            Misconception(
                _labels_zero,
                "0 is the id of a real token: the loss would teach the model to write it at every soft token. Use -100, which the loss skips.",
            ),
            Misconception(
                _labels_behind,
                "Your -100s stand behind the text, so every label is n places too early. The prompt stands in front: so do its labels.",
            ),
            Misconception(_labels_first_word, "You label the soft tokens with the first word. They are nobody's answer: -100."),
            Misconception(
                _labels_minus_one,
                "-1 is not skipped: cross-entropy ignores -100 and stops with an error at any other negative label.",
            ),
            Misconception(
                _labels_shifted,
                "You shifted the labels by one as well. The model does that itself; put the n times -100 in front and leave the rest.",
            ),
        ),
    )
)

# --- what it costs ---------------------------------------------------------------------------------------------------


def _count_inputs(trial: int) -> tuple[int, int]:
    return ((5, 2048), (20, 768), (100, 4096), (3, 64))[trial % 4]


def _count_squared(n_tokens: int, width: int) -> int:
    return n_tokens * width**2


def _count_both(n_tokens: int, width: int) -> int:
    return 2 * n_tokens * width


def _count_one(n_tokens: int, width: int) -> int:
    return width


def _count_with_bias(n_tokens: int, width: int) -> int:
    return n_tokens * (width + 1)


register(
    Exercise(
        id="peft/prompt_parameters",
        title="How many numbers a soft prompt trains",
        reference=n_parameters,
        inputs=_count_inputs,
        difficulty=1,
        minutes=3,
        hints=(
            "A soft token takes the place of a word's embedding. How many numbers has one?",
            "`width` numbers for each soft token, and nothing else is trained: 5 tokens at width 2,048 make 10,240.",
        ),
        misconceptions=(
            Misconception(_count_squared, "A soft token is a vector of `width` numbers, not a matrix of `width` × `width`."),
            Misconception(
                _count_both,
                "Twice too many: a key and a value for each token is *prefix* tuning (and that in every layer). A soft prompt is only embedded.",
            ),
            Misconception(_count_one, "That is one soft token. There are `n_tokens` of them, each with a vector of its own."),
            Misconception(_count_with_bias, "A soft prompt has no bias: the vectors themselves are all there is."),
        ),
    )
)

# --- starting from a text --------------------------------------------------------------------------------------------


def _start_inputs(trial: int) -> tuple[list[int], int]:
    return [[7, 8, 9], [4, 5, 6, 7, 8], [11, 12, 13]][trial % 3], (7, 3, 5)[trial % 3]


def _start_last(ids: list[int], n_tokens: int) -> list[int]:
    return (ids * n_tokens)[-n_tokens:]


def _start_padded(ids: list[int], n_tokens: int) -> list[int]:
    return (ids + [ids[-1]] * n_tokens)[:n_tokens]


def _start_zeros(ids: list[int], n_tokens: int) -> list[int]:
    return (ids + [0] * n_tokens)[:n_tokens]


def _start_each(ids: list[int], n_tokens: int) -> list[int]:
    return [each for each in ids for _ in range(-(-n_tokens // len(ids)))][:n_tokens]


register(
    Exercise(
        id="peft/prompt_start",
        title="A prompt that starts as a text",
        reference=start_ids,
        inputs=_start_inputs,
        difficulty=1,
        minutes=5,
        hints=(
            "The text has as many tokens as it has, the prompt `n_tokens`. Too many: keep the first. Too few: say the text again from its start.",
            "`ids * 3` repeats a list three times. Repeat it often enough, then cut: `(ids * often)[:n_tokens]`.",
            "Often enough is n_tokens / len(ids), rounded up: `-(-n_tokens // len(ids))`.",
        ),
        misconceptions=(
            Misconception(
                _start_last, "You keep the end of the text. The start comes first: cut behind `n_tokens`, not in front."
            ),
            Misconception(
                _start_padded, "You repeat the last token. Say the whole text again: HF peft starts over from the first token."
            ),
            Misconception(_start_zeros, "You fill up with token 0, which means padding or nothing. Start the text over instead."),
            Misconception(_start_each, "You repeat every token on the spot; the text stutters. Repeat it as a whole."),
        ),
    )
)

# --- attention over a prefix -----------------------------------------------------------------------------------------

AttentionInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _attention_inputs(trial: int) -> AttentionInputs:
    seq, tokens = ((4, 3), (5, 2), (3, 4))[trial % 3]
    q, k, v = (torch.randn(2, 2, seq, 8) for _ in "qkv")
    return q, k, v, torch.randn(2, tokens, 8), torch.randn(2, tokens, 8)


def _joined(own: Tensor, x: Tensor) -> Tensor:
    return torch.cat((own.expand(len(x), -1, -1, -1), x), dim=2)


def _attention_top_left(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    k, v = _joined(prefix_k, k), _joined(prefix_v, v)
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return attention(q, k, v, mask[None, None])[0]


def _attention_everything(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    return attention(q, _joined(prefix_k, k), _joined(prefix_v, v))[0]


def _attention_only_keys(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    return attention(q, _joined(prefix_k, k), _joined(torch.zeros_like(prefix_v), v), causal=True)[0]


def _attention_swapped(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    return prefix_attention(q, k, v, prefix_v, prefix_k)


def _attention_added(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    everyone = attention(q, prefix_k.expand(len(q), -1, -1, -1), prefix_v.expand(len(q), -1, -1, -1))[0]
    return attention(q, k, v, causal=True)[0] + everyone


def _attention_behind(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    k, v = (torch.cat((x, own.expand(len(x), -1, -1, -1)), dim=2) for own, x in ((prefix_k, k), (prefix_v, v)))
    return attention(q, k, v, causal=True)[0]


register(
    Exercise(
        id="peft/prefix_attention",
        title="Attention that begins with a prefix",
        reference=prefix_attention,
        inputs=_attention_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "The prefix is heads × tokens × d, the text's keys are batch × heads × seq × d. Give the prefix a batch axis with `expand`, then join both on the axis of the keys.",
            "Only keys and values grow: the queries are still those of the text, so the output is as long as the text.",
            "Row i of the text sees all n virtual tokens and the text up to i: `attention(q, k, v, causal=True)[0]` aligns its triangle to the *last* key, which is just that.",
        ),
        misconceptions=(
            Misconception(
                _attention_top_left,
                "Your triangle starts at the first key, so the first word sees only one virtual token. Shift it by the prefix: word i sees keys 0 … n + i.",
            ),
            Misconception(
                _attention_everything, "Words look at words that follow. The prefix is seen by all, but the text stays causal."
            ),
            Misconception(
                _attention_only_keys,
                "The prefix has keys, but its values are zero: it only takes attention away. Put prefix_v before v too.",
            ),
            Misconception(_attention_swapped, "You swapped the prefix's keys and values."),
            Misconception(
                _attention_added,
                "Two softmaxes added are not one softmax over both: prefix and text must compete for the same attention.",
            ),
            Misconception(
                _attention_behind,
                "Your prefix stands behind the text, where a causal mask hides it. Put it in front of the keys.",
            ),
        ),
    )
)

# --- what a soft token says ------------------------------------------------------------------------------------------


def _nearest_inputs(trial: int) -> tuple[Tensor, Tensor, int]:
    vocabulary = torch.randn(9, 6) * torch.linspace(0.2, 4, 9)[torch.randperm(9), None]
    return vocabulary[:3] * torch.tensor([[3.0], [0.5], [1.0]]) + 0.3 * torch.randn(3, 6), vocabulary, 2 + trial % 2


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = scores.topk(k)
    return best.indices, best.values


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _nearest_dot(prompt: Tensor, vocabulary: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _best(prompt @ vocabulary.T, k)


def _nearest_half(prompt: Tensor, vocabulary: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _best(_unit(prompt) @ vocabulary.T, k)


def _nearest_euclid(prompt: Tensor, vocabulary: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _best(-torch.cdist(prompt, vocabulary), k)


def _nearest_least(prompt: Tensor, vocabulary: Tensor, k: int) -> tuple[Tensor, Tensor]:
    ids, values = _best(-_unit(prompt) @ _unit(vocabulary).T, k)
    return ids, -values


def _nearest_wrong_axis(prompt: Tensor, vocabulary: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return _best((prompt / prompt.norm(dim=0)) @ (vocabulary / vocabulary.norm(dim=0)).T, k)


register(
    Exercise(
        id="peft/nearest_words",
        title="The words a soft token is nearest to",
        reference=nearest,
        inputs=_nearest_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            "The cosine of two vectors is the dot product of their unit vectors: divide each by its own length first.",
            "`x / x.norm(dim=-1, keepdim=True)` makes every row a unit vector. Then one matrix product gives all cosines: tokens × vocabulary.",
            "`best = cosines.topk(k)`; return `best.indices, best.values`.",
        ),
        misconceptions=(
            Misconception(
                _nearest_dot,
                "A bare dot product prefers long vectors: trained soft tokens are long, and so are some words. Divide both by their lengths.",
            ),
            Misconception(
                _nearest_half,
                "You normalised the prompt only; words with long embeddings still win. Normalise the vocabulary's rows too.",
            ),
            Misconception(
                _nearest_euclid,
                "That is (minus) the distance. Soft tokens grow far longer than any word, so all words are far; the angle tells more: use the cosine.",
            ),
            Misconception(
                _nearest_least,
                "These are the *least* similar words. `topk` already takes the largest: do not negate the cosines.",
            ),
            Misconception(
                _nearest_wrong_axis,
                "You divide by the lengths of the columns. A vector is a row: take the norm over the last axis, with keepdim.",
            ),
        ),
    )
)
