"""How close a model comes to the floor: its bits per byte beside the generator's own entropy, and beside xz.

    excess = (model's bits − generator's bits) / bytes        generator's bits: Σ log2 1/p of every choice, the kind's included

Does:     a fixed held-out file of about a megabyte, new documents from the training distribution, each with its information; the
          bits a model needs for it; what xz makes of the same bytes; the share of freely written lines the grammar accepts.
Leaves out: the information of two courses of choices that end in the same text, which would lower the floor a little.
Source:   Shannon 1948 §6–7.
"""

from __future__ import annotations

import lzma
import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch

from llmcourse.world import World
from llmcourse.world.grammar import verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Compression", "HeldOut", "accepted_share", "bits_per_byte", "compression", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """Documents no model was trained on and the bits of information the generator put into them."""

    texts: tuple[str, ...]
    bits: float

    @property
    def n_bytes(self) -> int:
        """The size of the file."""
        return sum(len(text.encode("utf-8")) for text in self.texts)


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Bits per byte of the held-out file: the generator's floor, the model's, xz's, and the model's own size on top."""

    floor: float
    model: float
    xz: float
    model_bytes: float

    @property
    def excess(self) -> float:
        """What the model needs beyond the floor."""
        return self.model - self.floor


def held_out(world: World, shares: dict[str, float], n_bytes: int = 1_000_000) -> HeldOut:
    """About `n_bytes` of new documents, the kinds in `shares` of the text."""
    rng, texts, bits, size = Random("held-out"), [], 0.0, 0
    weights = _frequencies(world, shares)
    while size < n_bytes:
        (kind,) = rng.choices(list(weights), list(weights.values()))
        text, own = world.measured(kind, 10**10 + rng.randrange(10**9))  # training draws its numbers below 10⁹
        texts.append(text)
        bits, size = bits + own - math.log2(weights[kind]), size + len(text.encode("utf-8"))
    return HeldOut(tuple(texts), bits)


def _frequencies(world: World, shares: dict[str, float]) -> dict[str, float]:
    """How often each kind is drawn: shares are of text, so kinds with long documents are drawn more rarely."""
    lengths = {kind: sum(len(world.document(kind, 10**10 + i)) for i in range(100)) for kind in shares}
    rates = {kind: share / lengths[kind] for kind, share in shares.items()}
    return {kind: rate / sum(rates.values()) for kind, rate in rates.items()}


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held: HeldOut, batch_size: int = 16) -> float:
    """Mean bits the model needs for a byte of the file, its end-of-text tokens included; every document begins anew."""
    nats = 0.0
    texts = sorted(held.texts, key=len)
    for start in range(0, len(texts), batch_size):
        rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts[start : start + batch_size]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows], device=model.device)
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows], device=model.device)[:, 1:]
        logits = model(input_ids=ids).logits[:, :-1].float()
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        ).item()
    return nats / math.log(2) / held.n_bytes


def compression(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held: HeldOut) -> Compression:
    """The held-out file three ways. The weights count two bytes each (bfloat16) in `model_bytes`."""
    packed = lzma.compress("".join(held.texts).encode("utf-8"), preset=9)
    return Compression(
        floor=held.bits / held.n_bytes,
        model=bits_per_byte(model, tokenizer, held),
        xz=8 * len(packed) / held.n_bytes,
        model_bytes=8 * 2 * sum(p.numel() for p in model.parameters()) / held.n_bytes,
    )


@torch.no_grad()
def accepted_share(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, texts: int = 100, tokens: int = 120, seed: int = 0
) -> tuple[int, int]:
    """Of the lines' sentences the model writes freely (temperature 1), how many the grammar accepts, and of how many.

    Texts begin with <|bos|> alone. A sentence cut off by the token limit does not count.
    """
    torch.manual_seed(seed)
    start = torch.full((texts, 1), tokenizer.bos_token_id, device=model.device)
    rows = model.generate(start, max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=tokenizer.pad_token_id)
    judged: list[bool] = []
    for row in rows.tolist():
        ended = tokenizer.eos_token_id in row[1:]
        text = tokenizer.decode(row[1 : 1 + row[1:].index(tokenizer.eos_token_id)] if ended else row[1:])
        lines = [line for line in text.splitlines() if line]
        judged += [verdict for line in (lines if ended else lines[:-1]) for verdict in verdicts(line)]
    return sum(judged), len(judged)
