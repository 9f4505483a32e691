"""Pictures for the widgets of notebook 01: a head on your sentence, RoPE's hands, the logit lens.

    look     sentence ─► trace ─► the map of one head
    hands    distance, start ─► two hands a pair of features, turned by RoPE
    lens     sentence ─► trace ─► unembed after every layer ─► the word the stream would say there

Does:     one function a widget, made of values the model really computes; long sentences are cut to what fits.
Leaves out: the controls (`show.play` makes them).
Source:   Su et al. 2021 §3.2 (RoPE as rotation); nostalgebraist 2020 (logit lens).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .. import show
from .positions import frequencies

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .model import Transformer

__all__ = ["hands", "lens", "look"]

PLACES, WORDS, LETTERS = 24, 13, 9  # what fits: tokens on an attention map's side, cells of the lens, letters in a cell


def look(model: Transformer, tokenizer: Any, sentence: str, layer: int, head: int) -> None:
    """Show where one head of one layer looks in the first tokens of `sentence`."""
    ids, tokens = _read(tokenizer, sentence, PLACES)
    show.attention(model.trace(ids).attention[layer, 0, head], tokens, title=f"Layer {layer}, head {head}")


def hands(distance: int, start: int, d_head: int = 64, pairs: tuple[int, ...] = (0, 4, 8, 14)) -> Figure:
    """One vector as key at place `start` and as query `distance` further on: some of its pairs of features, turned by RoPE."""
    from matplotlib.figure import Figure

    theta = frequencies(d_head)
    score = (distance * theta).cos().mean()
    fig = Figure(figsize=(8.4, 2.9), layout="none")
    for ax, pair in zip(fig.subplots(1, len(pairs), gridspec_kw={"top": 0.74, "bottom": 0.1}), pairs, strict=True):
        _clock(ax, float(theta[pair]) * start, float(theta[pair]) * (start + distance))
        turned = float(theta[pair]) * distance * 180 / math.pi
        ax.set_title(f"pair {pair}\n{turned:.0f}° apart", fontsize=10)
    fig.suptitle(f"{distance} places apart: cosine {score:.2f}, wherever the two stand", x=0.12, ha="left", fontsize=12)
    fig.text(0.12, 0.02, "dashed: key; solid: query", fontsize=9)
    return fig


def _clock(ax: Any, key: float, query: float) -> None:
    ax.add_patch(_circle())
    for angle, colour, style in ((key, "orange", "--"), (query, "blue", "-")):
        ax.plot([0, math.cos(angle)], [0, math.sin(angle)], style, color=show.COLOURS[colour], lw=3)
    ax.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    ax.axis("off")


def _circle() -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1, fill=False, color="0.7")


def lens(model: Transformer, tokenizer: Any, sentence: str) -> Figure:
    """The word the residual stream would say next after every layer, at every token, and how sure it is."""
    from matplotlib.figure import Figure

    ids, tokens = _read(tokenizer, sentence, WORDS)
    p, best = model.unembed(model.trace(ids).residual)[:, 0].detach().softmax(-1).max(-1)  # both (layers + 1, tokens)
    middle = len(best) // 2
    fig = Figure(figsize=(max(5.5, 1.5 + 0.78 * len(tokens)), 1.5 + 0.4 * len(best)), layout="constrained")
    ax = fig.subplots()
    image = ax.imshow(p.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
    for layer, place in torch.cartesian_prod(*map(torch.arange, p.shape)).tolist():
        word, colour = _label(tokenizer.decode(best[layer, place])), "white" if p[layer, place] > 0.6 else "black"
        ax.text(place, layer, word, ha="center", va="center", fontsize=9, color=colour, parse_math=False)
    ax.set_xticks(range(len(tokens)), [_label(token) for token in tokens], fontsize=9, parse_math=False)
    ax.set_yticks(range(len(best)), ["embedding", *(f"layer {layer}" for layer in range(len(best) - 1))], fontsize=9)
    ax.set(xlabel="token read", ylabel="the stream after …")
    settled = float((best[middle] == best[-1]).float().mean())
    ax.set_title(f"Half-way up, {settled:.0%} of the final words stand")
    fig.colorbar(image, label="probability")
    return fig


def _read(tokenizer: Any, sentence: str, longest: int) -> tuple[torch.Tensor, list[str]]:
    """The first token ids of a sentence, and each as text."""
    ids = tokenizer(sentence, return_tensors="pt")["input_ids"][:, :longest]
    return ids, [tokenizer.decode(token) for token in ids[0]]


def _label(token: str) -> str:
    text = token.replace(" ", "·").replace("\n", "⏎")
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
