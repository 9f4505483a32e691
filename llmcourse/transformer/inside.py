"""Inside the model: which heads do what, and what is lost without them.

    text:             … A B … A ?         a list, and the list again: `period` is the distance from a token to its repetition
    previous-token head:    B looks at A, one place back, and notes: "A comes before me"
    induction head:                ? looks for the note "A" and finds B: the next token is B

    o( head 0 ‖ head 1 ‖ … )   knock out head 1:   o( head 0 ‖ 0 ‖ … )

Does:     scores of every head as a previous-token and as an induction head, from the maps of `Transformer.trace`; heads knocked
          out by hooks, to zero or to their mean, while the weights stay as they are; the loss of the same tokens the first and
          the second time. `unembed` of a trace's residual stream is the logit lens.
Leaves out: cross-attention, means over other texts, patching of activations between texts, padded batches.
Source:   Olsson et al. 2022, "In-context Learning and Induction Heads", §2; nostalgebraist 2020 (logit lens).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .model import Transformer

__all__ = ["induction", "knock_out", "previous_token", "repetition_loss"]


def previous_token(attention: Float[Tensor, "layers batch heads seq seq"]) -> Float[Tensor, "layers heads"]:
    """How much of its attention each head gives to the token one place back, on average."""
    return attention.diagonal(-1, -2, -1).mean((1, 3))


def induction(
    attention: Float[Tensor, "layers batch heads seq seq"], ids: Int[Tensor, "batch seq"], period: int
) -> Float[Tensor, "layers heads"]:
    """How much attention goes to the token that came next the first time, averaged over the tokens seen for the second time."""
    again = _again(ids, period)
    after = attention[..., period:-1, :].diagonal(1, -2, -1)  # query t, key t − period + 1
    return after.movedim(2, -1)[:, again].mean(1)


def repetition_loss(model: Transformer, ids: Int[Tensor, "batch seq"], period: int) -> tuple[float, float]:
    """Nats per token for the tokens that repeat with the `period`: the first time, and the second time."""
    again, n = _again(ids, period), ids.shape[1] - period - 1
    with torch.no_grad():
        losses = F.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:], reduction="none")
    return float(losses[:, :n][again].mean()), float(losses[:, period:][again].mean())


def _again(ids: Tensor, period: int) -> Bool[Tensor, "batch pairs"]:
    """Which pairs of neighbours stand once more one period later: with the second of the pair begins what can be copied."""
    same = ids[:, period:] == ids[:, :-period] if 0 < period < ids.shape[1] else torch.zeros_like(ids[:, :1], dtype=torch.bool)
    again = same[:, :-1] & same[:, 1:]
    if not again.any():
        raise ValueError(f"nothing in ids {tuple(ids.shape)} repeats at period={period}; two tokens or more must")
    return again


@contextmanager
def knock_out(model: Transformer, heads: Iterable[tuple[int, int]], *, mean: bool = False) -> Iterator[Transformer]:
    """Inside `with`, each (layer, head) puts out zeros, or its mean over all places of the pass; then the model is as before.

    Raises ValueError for a head the model does not have.
    """
    c, out = model.config, {}
    for layer, head in heads:
        if not (0 <= layer < c.n_layers and 0 <= head < c.n_heads):
            raise ValueError(f"there is no head ({layer}, {head}); layers are 0–{c.n_layers - 1}, heads 0–{c.n_heads - 1}")
        out.setdefault(layer, []).append(head)

    def silence(heads: list[int], outputs: Float[Tensor, "batch seq features"]) -> Float[Tensor, "batch seq features"]:
        each = outputs.unflatten(-1, (c.n_heads, -1)).clone()
        each[..., heads, :] = each[..., heads, :].mean((0, 1)) if mean else 0
        return each.flatten(-2)

    projections = [(model.blocks[layer].attention.o, heads) for layer, heads in out.items()]
    hooks = [o.register_forward_pre_hook(lambda _, x, heads=heads: (silence(heads, *x),)) for o, heads in projections]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
