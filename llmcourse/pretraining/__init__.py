"""Pre-training: tokenizers, objectives, data, optimizers, scaling laws, compression; how the embedded models are made.

Names load when they are used: the command line imports this package at every start.
"""

from importlib import import_module
from typing import Any

__all__ = ["BPE"]


def __getattr__(name: str) -> Any:
    if name == "BPE":
        return import_module(".bpe", __name__).BPE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
