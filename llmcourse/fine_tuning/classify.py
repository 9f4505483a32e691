"""Classifiers of text in three kinds, one interface: a head on an encoder, a head on a decoder, or the likelier label word.

    HeadClassifier     texts ─► body ─► hidden states ─► first │ mean │ last place ─► dropout ─► linear ─► class
    LabelWords         "… It was" ─► language model ─► log p(" great" | text) against log p(" bad" | text)

    fit(classifier, classifier.batches(texts, labels, size=16), config);   classifier.guesses(new_texts)

A decoder's head reads the last place, which alone has seen the whole text; an encoder's the first ([CLS]). Label words need no
new weight, so they can answer before any training.

Does:     BERT, Llama, GPT-2 and other transformers models, T5 (label words: text to text), our Transformer (heads on decoders and
          encoders, label words on decoders); answers of several tokens; log-probabilities and guesses; `train.fit` fits all.
Leaves out: BERT's pooler (one more layer before the head; ours is linear); calibration of label words; several labels a text.
Source:   Devlin et al. 2019 §4.1; Radford et al. 2018 §3.2; Raffel et al. 2020 §2.4; Schick & Schütze 2021 §3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse.transformer import Transformer

from .formats import Ids, Verbaliser, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Classifier",
    "HeadClassifier",
    "LabelWords",
    "Output",
    "answer_log_probs",
    "hidden_states",
    "pooled",
    "sequence_log_probs",
]

Texts = Sequence[str] | Sequence[tuple[str, str]]
Pool = Literal["first", "last", "mean"]


class Output(NamedTuple):
    """What a classifier's forward gives: the loss where labels were given, and a score for each class where there is one."""

    loss: Tensor | None
    logits: Float[Tensor, "texts classes"] | None = None


class Classifier(nn.Module):
    """The interface: `batch` makes tensors of texts, `forward` their loss, `log_probs` and `guesses` answer."""

    names: tuple[str, ...]

    def batch(self, texts: Texts, labels: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Texts (or pairs of texts) and their labels as keyword arguments of `forward`."""
        raise NotImplementedError

    def scores(self, texts: Texts) -> Float[Tensor, "texts classes"]:
        """A log-probability for each class, up to a constant of each text."""
        raise NotImplementedError

    def batches(
        self, texts: Texts, labels: Sequence[int], *, size: int = 16, seed: int = 0
    ) -> Callable[[int], dict[str, Tensor]]:
        """For `fit`: micro-batch i, which depends on i and the seed alone. Every text comes once before any comes again.

        Raises: ValueError for no texts, or not one label each.
        """
        if len(texts) != len(labels) or not len(texts):
            raise ValueError(f"{len(texts)} texts and {len(labels)} labels; give one label for each, and at least one text")

        def micro_batch(i: int) -> dict[str, Tensor]:
            places = range(i * size, (i + 1) * size)
            chosen = [_shuffled(len(texts), seed, place // len(texts))[place % len(texts)] for place in places]
            return self.batch([texts[j] for j in chosen], [labels[j] for j in chosen])

        return micro_batch

    @torch.no_grad()
    def log_probs(self, texts: Texts, *, size: int = 64) -> Float[Tensor, "texts classes"]:
        """Log-probabilities over the classes, in eval mode, `size` texts at a time."""
        training = self.training
        self.eval()
        found = [self.scores(texts[i : i + size]).float().log_softmax(-1).cpu() for i in range(0, len(texts), size)]
        self.train(training)
        return torch.cat(found)

    def guesses(self, texts: Texts, *, size: int = 64) -> list[int]:
        """The likeliest class of each text."""
        return self.log_probs(texts, size=size).argmax(-1).tolist()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> list[int]:
    return Random(f"{seed}/{epoch}").sample(range(count), count)


# ---- a head ------------------------------------------------------------------------------------------------------------


class HeadClassifier(Classifier):
    """A linear head on what a body computes at one place of every text.

    body: a transformers model (its language-model head is not used) or a `Transformer`. encode: texts → `input_ids` and
    `attention_mask`, padded on the right; default the tokenizer's own, cut at `longest` (a GPT-1 format is given this way).
    pool: "first" for encoders, "last" for decoders, "mean".
    """

    def __init__(
        self, body: nn.Module, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], *, pool: Pool,
        dropout: float = 0.1, longest: int = 96, encode: Callable[[Texts], dict[str, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.body = _headless(body) if isinstance(body, Transformer) else body.base_model
        self.names, self.pool, self.dropout = tuple(names), pool, nn.Dropout(dropout)
        config = body.config
        width = config.d_model if isinstance(body, Transformer) or not hasattr(config, "hidden_size") else config.hidden_size
        self.head = nn.Linear(width, len(self.names))
        nn.init.normal_(self.head.weight, std=0.02)  # BERT's and GPT's own start
        nn.init.zeros_(self.head.bias)
        self.head.to(next(body.parameters()).device)
        self.encode = encode or (lambda texts: _tokenized(tokenizer, texts, longest))

    def batch(self, texts: Texts, labels: Sequence[int] | None = None) -> dict[str, Tensor]:
        labelled = {} if labels is None else {"labels": torch.tensor(labels)}
        return self.encode(texts) | labelled

    def forward(
        self, input_ids: Int[Tensor, "texts seq"], attention_mask: Int[Tensor, "texts seq"],
        labels: Int[Tensor, " texts"] | None = None, **options: Tensor,
    ) -> Output:  # fmt: skip
        """Logits, and the cross-entropy with the labels; `options` (token types) go to the body."""
        states = hidden_states(self.body, input_ids, attention_mask, **options)
        logits = self.head(self.dropout(pooled(states, attention_mask, self.pool).to(self.head.weight.dtype)))
        return Output(None if labels is None else F.cross_entropy(logits.float(), labels), logits)

    def scores(self, texts: Texts) -> Float[Tensor, "texts classes"]:
        return self(**{name: value.to(self.device) for name, value in self.batch(texts).items()}).logits


def _headless(body: Transformer) -> Transformer:
    """The same weights without the head (as `base_model` is in transformers): nothing is there that could not learn."""
    bare = copy.copy(body)
    bare._modules = {**body._modules, "head": nn.Identity(), "transform": nn.Identity()}
    return bare


def hidden_states(
    body: nn.Module, ids: Int[Tensor, "texts seq"], mask: Int[Tensor, "texts seq"], **options: Tensor
) -> Float[Tensor, "texts seq width"]:
    """What a body computes at every place, its final norm included."""
    if isinstance(body, Transformer):
        return body.norm(body.hidden(ids, mask, **options))
    return body(input_ids=ids, attention_mask=mask, **options).last_hidden_state


def pooled(states: Float[Tensor, "texts seq width"], mask: Int[Tensor, "texts seq"], pool: Pool) -> Float[Tensor, "texts width"]:
    """One vector a text: of its first token, its last token that is not padding (on either side), or the mean of its tokens.

    Raises: ValueError for another way of pooling.
    """
    if pool == "mean":
        weights = mask.to(states.dtype)[..., None]
        return (states * weights).sum(1) / weights.sum(1)
    if pool not in ("first", "last"):
        raise ValueError(f"pool={pool!r} is unknown; choose first (encoders), last (decoders) or mean")
    places = torch.arange(mask.shape[1], device=mask.device)
    place = torch.where(mask.bool(), places, mask.shape[1] if pool == "first" else -1)
    chosen = place.amin(1) if pool == "first" else place.amax(1)
    return states[torch.arange(len(states), device=states.device), chosen]


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: Texts, longest: int) -> dict[str, Tensor]:
    """Padded on the right; with a tokenizer that has no padding token, by token 0, which the mask hides."""
    pairs = not isinstance(texts[0], str)
    columns = [list(column) for column in zip(*texts, strict=True)] if pairs else [list(texts)]
    found = tokenizer(*columns, truncation=True, max_length=longest)
    packed = pack(found["input_ids"], tokenizer.pad_token_id or 0)
    types = pack(found["token_type_ids"], 0).input_ids if pairs and "token_type_ids" in found else None
    inputs = {"input_ids": packed.input_ids, "attention_mask": packed.attention_mask}
    return inputs if types is None else inputs | {"token_type_ids": types}


# ---- label words -------------------------------------------------------------------------------------------------------


class LabelWords(Classifier):
    """The label whose word the language model finds likeliest after the text; training makes the right word likelier.

    model: a transformers decoder or encoder-decoder with its head, or a `Transformer` that decodes. An encoder-decoder's answer
    ends with its end token, so there a word may begin another.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], verbaliser: Verbaliser | None = None, *,
        longest: int = 96,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.tokenizer, self.names, self.longest = model, tokenizer, tuple(names), longest
        both = getattr(model.config, "is_encoder_decoder", False)
        self.verbaliser = verbaliser or Verbaliser("{text}" if both else "{text} Answer:", self.names)
        if len(self.verbaliser.words) != len(self.names):
            raise ValueError(f"{len(self.verbaliser.words)} label words for {len(self.names)} labels {self.names}; give one each")
        lead, end = ("", [tokenizer.eos_token_id]) if both else (" ", [])
        self.answers = self.verbaliser.answers(tokenizer, lead, end)

    def batch(self, texts: Texts, labels: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Prompts on the left, padded on the left; `answers` padded on the right with -100, none without labels."""
        prompts = _left(self.tokenizer, [self.verbaliser.prompt(text) for text in texts], self.longest)
        if labels is None:
            return prompts
        chosen = [torch.tensor(self.answers[label]) for label in labels]
        return prompts | {"answers": nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)}

    def forward(
        self, input_ids: Int[Tensor, "texts seq"], attention_mask: Int[Tensor, "texts seq"], answers: Int[Tensor, "texts answer"]
    ) -> Output:
        """The mean over texts of -log p(the right word | text), all of the word's tokens together."""
        return Output(-answer_log_probs(self.model, input_ids, attention_mask, answers).mean())

    def scores(self, texts: Texts) -> Float[Tensor, "texts classes"]:
        inputs = {name: value.to(self.device) for name, value in self.batch(texts).items()}
        columns = (torch.tensor(answer, device=self.device).repeat(len(texts), 1) for answer in self.answers)
        return torch.stack([answer_log_probs(self.model, **inputs, answers=column) for column in columns], dim=1)


def answer_log_probs(
    model: nn.Module, input_ids: Int[Tensor, "texts seq"], attention_mask: Int[Tensor, "texts seq"],
    answers: Int[Tensor, "texts answer"],
) -> Float[Tensor, " texts"]:  # fmt: skip
    """log p(answer | text) = Σ log p(token | text, the answer's tokens before it); -100 in `answers` is no token.

    A decoder's texts must be padded on the left, so that the answer follows at once.
    """
    given = answers.clamp_min(0)
    if getattr(model.config, "is_encoder_decoder", False):
        start = model.config.decoder_start_token_id
        shifted = torch.cat((torch.full_like(given[:, :1], start), given[:, :-1]), 1)
        logits = model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=shifted).logits
    else:
        ids = torch.cat((input_ids, given), 1)
        mask = torch.cat((attention_mask, (answers >= 0).to(attention_mask.dtype)), 1)
        logits = _last_logits(model, ids, mask, given.shape[1] + 1)[:, :-1]
    return sequence_log_probs(logits, answers)


def sequence_log_probs(
    logits: Float[Tensor, "texts answer vocab"], answers: Int[Tensor, "texts answer"]
) -> Float[Tensor, " texts"]:
    """The log-probability of each whole answer, logits[:, i] being the prediction of answers[:, i]; -100 is no token."""
    each = logits.float().log_softmax(-1).gather(-1, answers.clamp_min(0)[..., None])[..., 0]
    return each.masked_fill(answers < 0, 0).sum(1)


def _last_logits(model: nn.Module, ids: Tensor, mask: Tensor, keep: int) -> Float[Tensor, "texts keep vocab"]:
    """Logits at the last places only: the head is the largest matrix of a small model."""
    positions = (mask.cumsum(1) - 1).clamp_min(0)  # left-padded: the first token is at position 0, not where it stands
    if isinstance(model, Transformer):
        return model.unembed(model.hidden(ids, mask, positions)[:, -keep:])
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits


def _left(tokenizer: PreTrainedTokenizerBase, prompts: list[str], longest: int) -> dict[str, Tensor]:
    """The last `longest` tokens of each, so that the pattern's end stays, padded on the left."""
    rows: list[Ids] = [row[-longest:] for row in tokenizer(prompts)["input_ids"]]
    packed = pack([row[::-1] for row in rows], tokenizer.pad_token_id or 0)
    return {"input_ids": packed.input_ids.flip(1), "attention_mask": packed.attention_mask.flip(1)}
