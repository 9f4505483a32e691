"""The next token while you type: what a language model expects after the text so far.

    text ─► tokens, <|bos|> first ─► model ─► logits ÷ temperature ─► softmax ─► the likeliest few, as bars

Does:     any text, empty included (what does a document begin with?); longer than the context, of which the end is kept;
          temperature 0, where the likeliest token takes all. `show.play(partial(next_token, model=…, tokenizer=…), text="Ada")`
          makes it a widget.
Leaves out: drawing tokens and going on (see `transformer.generate`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmcourse import show
from llmcourse.transformer import Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Expectation", "distribution", "expectation", "next_token"]


class Expectation(NamedTuple):
    """The likeliest tokens as text with their probabilities, what all others share, and the entropy in bits."""

    tokens: list[str]
    probabilities: list[float]
    others: float
    entropy: float


def next_token(
    text: str = "", temperature: float = 1.0, *, model: Any, tokenizer: PreTrainedTokenizerBase, top: int = 10
) -> None:
    """Show what may follow `text`: one bar for each of the `top` likeliest tokens, one for all others together.

    model: a `Transformer` or a transformers model. Raises: ValueError for a negative temperature or top below 1.
    """
    expected = expectation(text, temperature, model=model, tokenizer=tokenizer, top=top)
    ending = repr(text[-30:]).replace("$", r"\$") if text else "nothing: the start of a document"  # a dollar, not mathematics
    show.bars(
        [*expected.tokens, "(all others)"],
        [*expected.probabilities, expected.others],
        title=f"after {ending}: {expected.entropy:.1f} bits to be learnt",
        xlabel="probability of the next token",
    )


def expectation(
    text: str, temperature: float = 1.0, *, model: Any, tokenizer: PreTrainedTokenizerBase, top: int = 10
) -> Expectation:
    """The numbers behind `next_token`; raises as it does."""
    if top < 1:
        raise ValueError(f"top is {top}; choose 1 or more tokens to show")
    logits = _logits(text, model, tokenizer)
    shares = distribution(logits, temperature)
    chosen = logits.topk(min(top, len(logits))).indices
    names, shown = [_name(tokenizer, token) for token in chosen.tolist()], shares[chosen]
    entropy = torch.special.entr(shares).sum().item() / math.log(2)
    return Expectation(names, shown.tolist(), max(0.0, 1 - shown.sum().item()), max(0.0, entropy))


def distribution(logits: Float[Tensor, " vocab"], temperature: float = 1.0) -> Float[Tensor, " vocab"]:
    """softmax(logits / temperature); at 0 the likeliest token has probability 1."""
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; choose 0 (greedy) or more")
    if temperature == 0:
        return torch.zeros_like(logits).index_fill(0, logits.argmax(), 1.0)
    # Without its largest value, no logit overflows, however small the temperature.
    return ((logits - logits.max()) / temperature).softmax(-1)


@torch.no_grad()
def _logits(text: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> Float[Tensor, " vocab"]:
    ours = isinstance(model, Transformer)
    longest = model.config.max_positions if ours else model.config.max_position_embeddings
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    kept = ids[-(longest - 1) :] if longest > 1 else []
    device = next(model.parameters()).device
    made = model(torch.tensor([[0 if start is None else start, *kept]], device=device))
    return (made if ours else made.logits)[0, -1].float().cpu()


def _name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as text; part of a character as the bytes it is written with."""
    if token >= len(tokenizer):
        return f"(unused {token})"
    text = tokenizer.decode([token])
    return tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text or not text else text
