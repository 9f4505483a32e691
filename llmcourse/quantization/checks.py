"""What is refused, and in which words: one place for the checks that every method of this package makes."""

import difflib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_choice", "check_finite", "check_float", "nearest", "read_file"]


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)" for a name close to a known one, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not known, with the nearest and all of them."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{what} {name!r} is unknown{nearest(name, known)}; choose one of {', '.join(known)}")


def check_float(x: Tensor) -> None:
    """Raise TypeError for what is not float32, bfloat16 or float16, ValueError for an empty tensor."""
    if x.dtype in (torch.uint8, torch.int8):
        raise TypeError(f"the tensor is {x.dtype}: is it quantised already? Quantise the original weights, or dequantise first")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"the tensor is {x.dtype}; quantise float32, bfloat16 or float16: x.float() makes it so")
    if not x.numel():
        raise ValueError(f"the tensor {tuple(x.shape)} is empty: there is nothing to quantise")


def check_finite(x: Tensor, summary: Tensor) -> None:
    """Raise ValueError, saying where, if `x` holds a NaN or an infinity; `summary`, such as its scales, would hold one too."""
    if summary.isfinite().all():
        return
    bad = ~x.isfinite()
    place = tuple(bad.nonzero()[0].tolist())
    raise ValueError(
        f"the tensor {tuple(x.shape)} holds {int(bad.sum())} values that are not finite, the first, {x[place].item()}, at "
        f"{list(place)}: its block would be lost. Look for a diverged training or an overflow in float16"
    )


def read_file(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file and what its metadata say under `kind`.

    Raises: ValueError for a file that is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; save the quantised weights there first")
    try:
        with safe_open(path, "pt") as file:
            about, tensors = (file.metadata() or {}).get(kind), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); quantise and save it again") from None
    if about is None:
        raise ValueError(f"{path} is a safetensors file, but not one that this package saved as {kind!r}")
    return tensors, json.loads(about)
