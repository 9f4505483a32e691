"""Decoding: turn next-token distributions into text.

    prompt ─► model ─► logits ─► ÷ temperature ─► top-k ─► top-p ─► min-p ─► draw ─┐
              ▲ KV cache                                                           │
              └────────────────── the one new token ◄──────────────────────────────┘

Does:     greedy, beam search (beam.py), temperature, top-k, top-p and min-p sampling, repetition penalty; decoders, in batches
          padded on the left, and encoder-decoders; stops at EOS. The same tokens as transformers' `generate`, sampled ones under
          the same seed.
Leaves out: sampled beams, contrastive and speculative decoding.
Source:   Fan et al. 2018 (top-k); Holtzman et al. 2020 §3.1 (top-p, "nucleus"); Nguyen et al. 2024 §3 (min-p);
          Keskar et al. 2019 §4.1 (repetition penalty).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .beam import beam_search
from .cache import KVCache
from .masks import TokenMask
from .model import Transformer

__all__ = ["generate", "penalise", "probabilities"]


def probabilities(
    logits: Float[Tensor, "*batch vocab"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    min_p: float | None = None,
) -> Float[Tensor, "*batch vocab"]:  # fmt: skip
    """The distribution to draw from, rescaled to 1: first the `top_k` likeliest stay, of these the fewest whose mass reaches
    `top_p`, of these the ones at least `min_p` times as likely as the likeliest."""
    logits = logits.float() / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ascending, order = logits.sort()
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        tail[..., -1] = False  # the likeliest token always stays
        logits = logits.masked_fill(torch.zeros_like(tail).scatter(-1, order, tail), -torch.inf)
    if min_p is not None:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < min_p * p.amax(-1, keepdim=True), -torch.inf)
    return logits.softmax(-1)


def penalise(
    scores: Float[Tensor, "batch vocab"], seen: Int[Tensor, "batch seq"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Make the tokens already `seen`, prompt included, less likely: divide a positive score by `penalty`, multiply a negative."""
    old = scores.gather(1, seen)
    return scores.scatter(1, seen, torch.where(old < 0, old * penalty, old / penalty))


def generate(
    model: Transformer, ids: Int[Tensor, "batch seq"], max_new_tokens: int, *, attention_mask: TokenMask | None = None,
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
    repetition_penalty: float = 1.0, num_beams: int = 1, length_penalty: float = 1.0, early_stopping: bool | str = False,
    num_return_sequences: int = 1, generator: torch.Generator | None = None, eos_id: int | Sequence[int] | None = None,
    pad_id: int | None = None, start_id: int = 0, stream: Callable[[Tensor], object] | None = None,
) -> Int[Tensor, "texts seq_and_new"]:  # fmt: skip
    """Prompt and continuation, as transformers returns them; `temperature` 0 is greedy, or beam search if `num_beams` > 1.

    Stops early when every row has met an `eos_id`; finished rows go on with `pad_id` (by default the first `eos_id`).
    `stream` is called with each step's new tokens. Beam search returns the `num_return_sequences` best texts of each prompt.
    An encoder-decoder reads the prompt with its encoder; the text returned is the decoder's, which begins with `start_id`.
    """
    stops = [] if eos_id is None else [eos_id] if isinstance(eos_id, int) else list(eos_id)
    sampling = temperature, top_k, top_p, min_p
    _check(model, ids, attention_mask, max_new_tokens, start_id, *sampling, repetition_penalty)
    _check_beams(model, num_beams, num_return_sequences, early_stopping, len(stops), temperature, stream)
    pad = pad_id if pad_id is not None else stops[0] if stops else 0

    def draw(logits: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(probabilities(logits, *sampling), 1, generator=generator)[:, 0]

    with torch.inference_mode():
        read = _Reader(model, ids, attention_mask, start_id, max_new_tokens, repetition_penalty, searching=num_beams > 1)
        tokens, start = F.pad(read.prompt, (0, max_new_tokens), value=pad), read.prompt.shape[1]
        stops = torch.tensor(stops, dtype=ids.dtype, device=ids.device)
        if num_beams > 1:
            beams = beam_search(read, tokens, start, num_beams, stops, length_penalty, early_stopping)
            tokens = _crop(beams[:, :num_return_sequences].flatten(0, 1), start, stops)
        else:
            tokens = _decode(read, draw, tokens, start, stops, pad, stream)
    return tokens.clone()  # made outside, so that a model may later be trained on it


class _Reader:
    """A model that reads on where it stopped: it keeps the cache, the padding and what the encoder said."""

    def __init__(self, model, ids, attention_mask, start_id, n_new, penalty, searching) -> None:
        self.model, self.penalty, self.searching = model, penalty, searching
        self.prompt, self.mask, self.source = ids, None, None
        if model.encoder is not None:
            self.prompt, self.source = ids.new_full((len(ids), 1), start_id), model.encode(ids, attention_mask)
        elif attention_mask is not None and not attention_mask.all():  # no mask is the fast path
            self.mask = attention_mask.bool()
        self.cache = KVCache(model.config.n_layers, capacity=self.prompt.shape[1] + n_new)

    def __call__(self, tokens: Tensor, end: int, rows: Tensor | None = None) -> Float[Tensor, "rows vocab"]:
        """Logits of column `end`, or log-probabilities for a search; row k continues row `rows[k]` of the call before."""
        if rows is not None:
            self._follow(rows)
        new, positions = tokens[:, self.cache.length : end], None
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, end - self.mask.shape[1]), value=True)
            positions = (self.mask.cumsum(1) - 1).clamp_min(0)[:, self.cache.length :]
        x = self.model.hidden(new, self.mask, positions, self.cache, source=self.source)
        scores = self.model.unembed(x[:, -1]).float()
        scores = scores.log_softmax(-1) if self.searching else scores
        return scores if self.penalty == 1 else penalise(scores, self._seen(tokens[:, :end]), self.penalty)

    def _follow(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self.mask = None if self.mask is None else self.mask[rows]
        if self.source is not None:
            self.source = type(self.source)(*(None if x is None else x[rows] for x in self.source))

    def _seen(self, tokens: Tensor) -> Tensor:
        """Padding is no token: the last one stands in for it."""
        return tokens if self.mask is None else tokens.where(self.mask, tokens[:, -1:])


def _decode(read, draw, tokens, start, stops, pad, stream) -> Tensor:
    """Fill `tokens` from column `start` on; return the columns up to the last one written."""
    finished = tokens.new_zeros(len(tokens), dtype=torch.bool)
    for end in range(start, tokens.shape[1]):
        token = draw(read(tokens, end))
        if len(stops):
            token = token.masked_fill(finished, pad)
            finished |= torch.isin(token, stops)
        tokens[:, end] = token
        if stream is not None:
            stream(token)
        if len(stops) and finished.all():
            return tokens[:, : end + 1]
    return tokens


def _crop(tokens: Tensor, start: int, stops: Tensor) -> Tensor:
    """Without the columns in which every text has ended."""
    before_a_stop = torch.isin(tokens[:, start:], stops).cumsum(1) == 0
    return tokens[:, : start + 1 + int(before_a_stop.sum(1).max())]


def _refuse_unless(*limits: tuple[bool, str]) -> None:
    for fine, problem in limits:
        if not fine:
            raise ValueError(problem)


def _check(model, ids, attention_mask, n_new, start_id, temperature, top_k, top_p, min_p, repetition_penalty) -> None:
    c, reader = model.config, model.encoder or model
    _refuse_unless(
        (c.causal and c.head == "tokens", "this model predicts no next token: generate needs a decoder with a token head"),
        (0 <= start_id < c.vocab_size, f"start_id={start_id} is outside the vocabulary 0–{c.vocab_size - 1}"),
        (n_new >= 0, f"max_new_tokens={n_new} must be at least 0"),
        (temperature >= 0, f"temperature={temperature} must be at least 0 (0 is greedy)"),
        (top_k is None or top_k >= 1, f"top_k={top_k} must be at least 1, or None for all"),
        (top_p is None or 0 < top_p <= 1, f"top_p={top_p} must lie in (0, 1]"),
        (min_p is None or 0 <= min_p <= 1, f"min_p={min_p} must lie in [0, 1]"),
        (repetition_penalty > 0, f"repetition_penalty={repetition_penalty} must be above 0 (1 is none)"),
    )
    reader.check(ids, attention_mask, positions=torch.zeros_like(ids))  # the true positions, new tokens included, follow
    mask = torch.ones_like(ids) if attention_mask is None or reader is not model else attention_mask.bool()
    longest, limit = 1 if reader is not model else int(mask.sum(1).max()), c.max_positions
    _refuse_unless(
        (bool(mask[:, -1].all()), "attention_mask ends in padding, but generation continues the last column; pad on the left"),
        (longest + n_new - 1 <= limit, f"{longest} tokens and {n_new} new ones exceed the model's {limit} positions"),
    )


def _check_beams(model, n, n_returned, early_stopping, n_stops, temperature, stream) -> None:
    most = max(1, model.config.vocab_size // (1 + max(1, n_stops)))
    plain = temperature == 0 and stream is None
    _refuse_unless(
        (1 <= n <= most, f"num_beams={n} must lie between 1 and {most}, lest the vocabulary run out"),
        (1 <= n_returned <= n, f"num_return_sequences={n_returned} must lie between 1 and num_beams={n}"),
        (early_stopping in (True, False, "never"), f'early_stopping={early_stopping!r} must be True, False or "never"'),
        (n == 1 or plain, f"num_beams={n} neither samples nor streams; leave temperature and stream away, or num_beams"),
    )
