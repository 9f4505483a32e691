"""The exercises of notebook 02, one module per subject; importing the package registers them all."""

from . import bpe, compression, objectives

__all__ = ["bpe", "compression", "objectives"]
