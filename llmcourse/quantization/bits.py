"""The same model at 32, 16, 8, 4 and 1.58 bits a weight: what each format takes, and what you measure on it.

    format      bits a weight    what it is
    float32     32               as computed
    bfloat16    16               the same exponents, 8 bits of mantissa
    int8         8  + a scale a row
    nf4          4.127           scales of blocks of 64, themselves in 8 bits
    int4         4.127           the same with even steps
    ternary      1.6             log₂ 3 = 1.58 at best; rounded after training, so of little use: train it (see bitnet)

Does:     copies of one model in every format; their bytes in memory, by formula and measured, and on disk; any scores of
          them, perplexity among these.
Leaves out: formats of the activations, the KV cache; time.
Source:   own; formulas in `models`.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from .checks import check_choice
from .linear import METHODS, QuantConfig
from .models import SKIP, disk_bytes, expected_bytes, memory_bytes, quantize_model

__all__ = ["FORMATS", "convert", "perplexity", "table"]

FORMATS = ("float32", "bfloat16", "int8", "nf4", "int4", "ternary")
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(model: nn.Module, format: str, skip: Collection[str] = SKIP) -> nn.Module:
    """A copy of a float model in that format: all of it for a float type, else its linear layers.

    Raises: ValueError for an unknown format, with the nearest, and as `quantize_model` does.
    """
    check_choice("format", format, (*FLOATS, *METHODS))
    twin = copy.deepcopy(model)
    return twin.to(FLOATS[format]) if format in FLOATS else quantize_model(twin, QuantConfig(method=format), skip)


def table(
    model: nn.Module,
    formats: Iterable[str] = FORMATS,
    scores: Mapping[str, Callable[[nn.Module], float]] | None = None,
    skip: Collection[str] = SKIP,
) -> list[dict[str, Any]]:
    """One row a format: bits a weight, bytes by formula, in memory and on disk, and each of `scores` of the converted copy."""
    rows = []
    for format in formats:
        twin = convert(model, format, skip)
        sizes = {"formula": _formula(model, format, skip), "memory": memory_bytes(twin), "disk": disk_bytes(twin)}
        measured = {name: score(twin) for name, score in (scores or {}).items()}
        rows.append({"format": format, "bits": _bits(format), **sizes, **measured})
    return rows


def _bits(format: str) -> float:
    return FLOATS[format].itemsize * 8.0 if format in FLOATS else QuantConfig(method=format).bits


def _formula(model: nn.Module, format: str, skip: Collection[str]) -> int:
    if format not in FLOATS:
        return expected_bytes(model, QuantConfig(method=format), skip)
    stored = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * (FLOATS[format] if t.is_floating_point() else t.dtype).itemsize for t in stored)


@torch.inference_mode()
def perplexity(model: nn.Module, rows: Int[Tensor, "rows length"], *, pad_id: int | None = None, batch: int = 16) -> float:
    """e to the mean loss of each next token in `rows`, padding not counted, of a `Transformer` or a transformers model.

    Raises: ValueError for rows without a single token to predict.
    """
    mode, total, count = model.training, 0.0, 0
    model.eval()
    for ids in rows.split(batch):
        out = model(ids)
        logits = getattr(out, "logits", out)[:, :-1]
        targets = ids[:, 1:] if pad_id is None else ids[:, 1:].masked_fill(ids[:, 1:] == pad_id, -100)
        total += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += int((targets != -100).sum())
    model.train(mode)
    if not count:
        raise ValueError(f"rows {tuple(rows.shape)} hold no token to predict: give at least two tokens a row")
    return math.exp(total / count)
