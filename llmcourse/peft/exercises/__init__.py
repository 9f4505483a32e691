"""The exercises of notebook 04, one module per subject; importing the package registers them all."""

from . import prompts, weights

__all__ = ["prompts", "weights"]
