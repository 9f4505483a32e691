"""Pre-training objectives: rows of tokens become inputs and labels, one small batch maker for each.

    objective         the model sees      and has to say         (the text is a b c d e; · counts for nothing)
    causal            a b c d e           a b c d e              each token from those before it
    masked            a ■ c d x           · b · · e              15 % of places: 80 % ■, 10 % random, 10 % left as they are
    next sentence     [A] [B]             0 or 1                 0: B follows A; 1: B is from another document
    span corruption   a ⟨0⟩ d ⟨1⟩         ⟨0⟩ b c ⟨1⟩ e          a sentinel stands for each hidden span
    denoising         d ■ a               a b c d e              masked, deleted, infilled, sentences shuffled
    prefix LM         a b c d e           · · c d e              a and b see each other, the rest looks back only

Does:     batches as transformers takes them: `input_ids`, `labels` with -100 where nothing is asked, masks. All chance comes from
          one torch.Generator. `masked` makes the very draws of transformers' DataCollatorForLanguageModeling.
Leaves out: whole-word masking; document rotation; mixtures of denoisers (UL2); moving labels by one, which the models do.
Source:   Devlin et al. 2019 §3.1 (masked, next sentence); Raffel et al. 2020 §3.1.4, §3.2.1 (span corruption, prefix LM);
          Lewis et al. 2020 §2.2 (denoising).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from llmcourse.transformer import masks

__all__ = [
    "IGNORED",
    "apply_mask",
    "causal",
    "corrupt_spans",
    "delete_tokens",
    "denoising",
    "infill",
    "mask_tokens",
    "masked",
    "next_sentence",
    "permute_sentences",
    "prefix_lm",
    "random_spans",
    "raw_length",
    "span_corruption",
    "span_counts",
]

IGNORED = -100
"""The label that no loss counts (`ignore_index` of torch's cross-entropy)."""

Batch = dict[str, Tensor]
Row = Int[Tensor, " _"]
RaggedRows = Sequence[Int[Tensor, " _"]] | Int[Tensor, "rows length"]
Noise = Callable[[Tensor], Tensor]


# ---- causal -----------------------------------------------------------------------------------------------------------


def causal(ids: Int[Tensor, "rows length"], *, pad_id: int | None = None) -> Batch:
    """Predict every token from those before it: the labels are the inputs, padding aside."""
    labels = ids.clone() if pad_id is None else ids.masked_fill(ids == pad_id, IGNORED)
    return {"input_ids": ids, "labels": labels} | _attention(ids, pad_id)


# ---- masked -----------------------------------------------------------------------------------------------------------


def masked(
    ids: Int[Tensor, "rows length"],
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    pad_id: int | None = None,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    generator: Generator | None = None,
) -> Batch:
    """Choose `rate` of the places; of these hide `mask_share`, put a random token at `random_share`, leave the rest as they are.

    special_ids are never chosen (padding neither); the random tokens come from the whole vocabulary, as BERT's do. Some chosen
    places stay visible because there is no mask token at fine-tuning: the model must make something of every token it sees.

    Raises: ValueError when a rate is outside 0–1, or the two shares sum to more than 1.
    """
    _check_shares(rate=rate, mask_share=mask_share, random_share=random_share, sum_of_shares=mask_share + random_share)
    protected = torch.isin(ids, torch.tensor([*special_ids, *_given(pad_id)], dtype=ids.dtype))
    chosen = torch.bernoulli(torch.full(ids.shape, rate).masked_fill(protected, 0.0), generator=generator).bool()
    hide = _coins(ids, mask_share, generator)
    swap = _coins(ids, random_share / (1 - mask_share) if random_share else 0.0, generator)
    words = torch.randint(vocab_size, ids.shape, generator=generator)
    inputs, labels = apply_mask(ids, chosen, hide, swap, words, mask_id)
    return {"input_ids": inputs, "labels": labels} | _attention(ids, pad_id)


def apply_mask(
    ids: Int[Tensor, "rows length"],
    chosen: Bool[Tensor, "rows length"],
    hide: Bool[Tensor, "rows length"],
    swap: Bool[Tensor, "rows length"],
    words: Int[Tensor, "rows length"],
    mask_id: int,
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
    """Inputs and labels: a chosen place becomes `mask_id` where `hide`, else its word of `words` where `swap`, else stays."""
    labels = ids.masked_fill(~chosen, IGNORED)
    inputs = torch.where(chosen & swap, words, ids)
    return inputs.masked_fill(chosen & hide, mask_id), labels


# ---- next sentence ----------------------------------------------------------------------------------------------------


def next_sentence(
    documents: Sequence[Sequence[Sequence[int]]],
    *,
    rows: int,
    length: int,
    cls_id: int,
    sep_id: int,
    pad_id: int,
    generator: Generator | None = None,
) -> Batch:
    """Rows of `[CLS] A [SEP] B [SEP]`: in half of them B follows A (label 0), in the others it is from another document (1).

    documents[d][s] are the tokens of sentence s. Pairs too long for a row lose tokens from the end of their longer sentence.
    Add the masked objective with `batch | masked(batch["input_ids"], …)`.

    Raises: ValueError without two documents, without a document of two sentences, or for rows of fewer than 5 tokens.
    """
    if len(documents) < 2 or all(len(document) < 2 for document in documents):
        raise ValueError("next_sentence needs two documents or more, one of them with two sentences; give it more text")
    if length < 5:
        raise ValueError(f"length is {length}; a row of [CLS] A [SEP] B [SEP] takes 5 tokens or more")
    labels = torch.randint(2, (rows,), generator=generator)
    pairs = [_cut(*_pair(documents, bool(label), generator), length - 3) for label in labels]
    ids = _stack([torch.tensor([cls_id, *a, sep_id, *b, sep_id]) for a, b in pairs], pad_id, length)
    kinds = _stack([torch.tensor([0] * (len(a) + 2) + [1] * (len(b) + 1)) for a, b in pairs], 0, length)
    real = _stack([torch.ones(len(a) + len(b) + 3, dtype=torch.long) for a, b in pairs], 0, length)
    return {"input_ids": ids, "token_type_ids": kinds, "attention_mask": real, "next_sentence_label": labels}


def _pair(
    documents: Sequence[Sequence[Sequence[int]]], unrelated: bool, generator: Generator | None
) -> tuple[list[int], list[int]]:
    """A sentence, and the one after it or one of another document."""
    d = _draw([i for i, document in enumerate(documents) if len(document) > 1], generator)
    s = _draw(range(len(documents[d]) - 1), generator)
    if not unrelated:
        return list(documents[d][s]), list(documents[d][s + 1])
    other = documents[_draw([i for i, document in enumerate(documents) if i != d and document], generator)]
    return list(documents[d][s]), list(other[_draw(range(len(other)), generator)])


def _cut(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    while len(a) + len(b) > room:
        max(a, b, key=len).pop()
    return a, b


# ---- span corruption --------------------------------------------------------------------------------------------------


def span_corruption(
    rows: RaggedRows,
    *,
    sentinels: Sequence[int],
    pad_id: int,
    eos_id: int | None = None,
    density: float = 0.15,
    mean_span: float = 3.0,
    generator: Generator | None = None,
) -> Batch:
    """Hide random spans of each row behind sentinels; the labels spell them out. Rows may differ in length.

    Raises: ValueError for a row of fewer than 2 tokens, or with more spans than there are sentinels.
    """
    masks = [random_spans(len(row), density=density, mean_span=mean_span, generator=generator) for row in rows]
    pairs = [corrupt_spans(row.tolist(), mask.tolist(), sentinels) for row, mask in zip(rows, masks, strict=True)]
    return _encoder_decoder([torch.tensor(a) for a, _ in pairs], [torch.tensor(b) for _, b in pairs], pad_id, eos_id)


def span_counts(length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """How many tokens of a row are hidden, and in how many spans: both are fixed, only the places are left to chance.

    >>> span_counts(512)
    (77, 26)
    """
    _check_shares(density=density)
    if length < 2:
        raise ValueError(f"a row of {length} tokens has no room for a hidden and a visible one; give 2 or more")
    hidden = min(max(round(length * density), 1), length - 1)
    return hidden, min(max(round(hidden / mean_span), 1), hidden, length - hidden)


def random_spans(
    length: int, *, density: float = 0.15, mean_span: float = 3.0, generator: Generator | None = None
) -> Bool[Tensor, " length"]:
    """True where a token is hidden. Visible and hidden spans alternate, each way of cutting them being equally likely.

    The row begins with a visible span and ends with a hidden one, as in T5.
    """
    hidden, spans = span_counts(length, density, mean_span)
    lengths = torch.stack((_parts(length - hidden, spans, generator), _parts(hidden, spans, generator)), dim=1)
    return (torch.arange(2 * spans) % 2 == 1).repeat_interleave(lengths.flatten())


def _parts(total: int, parts: int, generator: Generator | None) -> Int[Tensor, " parts"]:
    """`total` as an ordered sum of `parts` numbers ≥ 1: cut a row of `total` things at `parts - 1` different places."""
    cuts = torch.randperm(total - 1, generator=generator)[: parts - 1].sort().values + 1
    return torch.diff(cuts, prepend=torch.tensor([0]), append=torch.tensor([total]))


def corrupt_spans(ids: Sequence[int], hidden: Sequence[bool], sentinels: Sequence[int]) -> tuple[list[int], list[int]]:
    """What the encoder sees (each hidden span is one sentinel) and what the decoder writes (sentinel, span, sentinel, span …).

    Where text follows the last hidden span, one more sentinel closes the target.
    """
    visible: list[int] = []
    target: list[int] = []
    spans = 0
    for token, hide, before in zip(ids, hidden, [False, *hidden[:-1]], strict=True):
        if hide and not before:
            mark = _sentinel(sentinels, spans)
            visible.append(mark)
            target.append(mark)
            spans += 1
        (target if hide else visible).append(token)
    return visible, target if hidden[-1] else [*target, _sentinel(sentinels, spans)]


def _sentinel(sentinels: Sequence[int], k: int) -> int:
    if k >= len(sentinels):
        raise ValueError(
            f"a row needs sentinel {k + 1}, there are {len(sentinels)}; give more sentinels, shorter rows or a larger mean_span"
        )
    return sentinels[k]


def raw_length(inputs: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """How long a row may be so that, corrupted and with its end token, it fits into `inputs`; and the target's length.

    >>> raw_length(512)
    (568, 114)
    """

    def lengths(raw: int) -> tuple[int, int]:
        hidden, spans = span_counts(raw, density, mean_span)
        return raw - hidden + spans + 1, hidden + spans + 1

    raw = 2
    while lengths(raw + 1)[0] <= inputs:
        raw += 1
    return raw, lengths(raw)[1]


# ---- denoising --------------------------------------------------------------------------------------------------------


def denoising(rows: RaggedRows, noises: Sequence[Noise], *, pad_id: int, eos_id: int | None = None) -> Batch:
    """Spoil each row by every noise in turn; the labels are the row as it was.

    >>> noises = [lambda row: delete_tokens(row, rate=0.0)]
    >>> denoising([torch.tensor([5, 6, 7])], noises, pad_id=0, eos_id=1)["labels"].tolist()
    [[5, 6, 7, 1]]
    """
    return _encoder_decoder([_spoil(row, noises) for row in rows], list(rows), pad_id, eos_id)


def _spoil(row: Tensor, noises: Sequence[Noise]) -> Tensor:
    for noise in noises:
        row = noise(row)
    return row


def mask_tokens(row: Row, *, mask_id: int, rate: float = 0.15, generator: Generator | None = None) -> Row:
    """Put the mask in place of random tokens: the length stays."""
    _check_shares(rate=rate)
    return row.masked_fill(_coins(row, rate, generator), mask_id)


def delete_tokens(row: Row, *, rate: float = 0.15, generator: Generator | None = None) -> Row:
    """Drop random tokens: the model must find out where something is missing. At least one token stays."""
    _check_shares(rate=rate)
    kept = row[~_coins(row, rate, generator)]
    return kept if len(kept) else row[:1]


def infill(row: Row, *, mask_id: int, rate: float = 0.3, mean_span: float = 3.0, generator: Generator | None = None) -> Row:
    """Put one mask in place of whole spans whose lengths are Poisson(`mean_span`), until `rate` of the tokens are gone.

    A span of length 0 only inserts a mask, so the model must find out how many tokens are missing.
    """
    _check_shares(rate=rate)
    spans = _poisson_spans(round(len(row) * rate), mean_span, generator)
    visible = len(row) - sum(spans)
    places = torch.randint(visible + 1, (len(spans),), generator=generator).sort().values.tolist()
    pieces, source, before = [], 0, 0  # source: next token of the row; before: visible tokens so far
    for place, span in zip(places, spans, strict=True):
        pieces += [row[source : source + place - before], row.new_tensor([mask_id])]
        source, before = source + place - before + span, place
    return torch.cat((*pieces, row[source:]))


def _poisson_spans(budget: int, mean_span: float, generator: Generator | None) -> list[int]:
    spans: list[int] = []
    while sum(spans) < budget:
        drawn = int(torch.poisson(torch.tensor(mean_span), generator=generator))
        spans.append(min(drawn, budget - sum(spans)))
    return spans


def permute_sentences(row: Row, *, stop_ids: Sequence[int], generator: Generator | None = None) -> Row:
    """Shuffle the sentences of a row; a sentence ends with one of `stop_ids`, the last one where the row ends."""
    ends = (torch.isin(row, torch.tensor(stop_ids, dtype=row.dtype)).nonzero().flatten() + 1).tolist()
    sentences = [part for part in torch.tensor_split(row, ends) if len(part)]
    return torch.cat([sentences[i] for i in torch.randperm(len(sentences), generator=generator)])


# ---- prefix LM --------------------------------------------------------------------------------------------------------


def prefix_lm(
    ids: Int[Tensor, "rows length"],
    *,
    prefix: Int[Tensor, " rows"] | None = None,
    pad_id: int | None = None,
    generator: Generator | None = None,
) -> Batch:
    """Predict what follows a prefix whose tokens all see each other; by default its length is uniform in 1 … length - 1.

    `attention_mask` is the whole rows × 1 × length × length mask, True where a token may look.

    Raises: ValueError for a prefix that leaves nothing to predict.
    """
    rows, length = ids.shape
    if prefix is None:
        prefix = torch.randint(1, length, (rows,), generator=generator)
    if not bool(((prefix >= 0) & (prefix < length)).all()):
        raise ValueError(f"prefix lengths {prefix.tolist()} must lie in 0–{length - 1}: the row has {length} tokens")
    labels = ids.masked_fill(torch.arange(length) < prefix[:, None], IGNORED)
    mask = masks.prefix_lm(length, length, prefix)
    if pad_id is not None:
        labels, mask = labels.masked_fill(ids == pad_id, IGNORED), mask & masks.padding(ids != pad_id)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


# ---- small things -----------------------------------------------------------------------------------------------------


def _coins(like: Tensor, share: float, generator: Generator | None) -> Tensor:
    """True with probability `share`, at every place by itself."""
    return torch.bernoulli(torch.full(like.shape, share), generator=generator).bool()


def _draw(options: Sequence[int], generator: Generator | None) -> int:
    return options[int(torch.randint(len(options), (), generator=generator))]


def _given(value: int | None) -> list[int]:
    return [] if value is None else [value]


def _attention(ids: Tensor, pad_id: int | None) -> Batch:
    return {} if pad_id is None else {"attention_mask": (ids != pad_id).long()}


def _encoder_decoder(inputs: list[Tensor], targets: list[Tensor], pad_id: int, eos_id: int | None) -> Batch:
    """Inputs filled up with `pad_id`, labels with IGNORED, each behind its end token."""
    end = torch.tensor(_given(eos_id), dtype=inputs[0].dtype)
    inputs, targets = [torch.cat((x, end)) for x in inputs], [torch.cat((x, end)) for x in targets]
    real = [torch.ones(len(x), dtype=torch.long) for x in inputs]
    return {"input_ids": _stack(inputs, pad_id), "attention_mask": _stack(real, 0), "labels": _stack(targets, IGNORED)}


def _stack(rows: Sequence[Tensor], filler: int, length: int = 0) -> Int[Tensor, "rows length"]:
    """Rows filled up on the right to the longest of them, or to `length`."""
    longest = max([length, *map(len, rows)])
    return torch.stack([torch.cat((row, row.new_full((longest - len(row),), filler))) for row in rows])


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name.replace('_', ' ')} is {value}; choose a value in 0–1")
