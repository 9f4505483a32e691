"""A transformer from its parts, loading Hugging Face checkpoints with equal logits.

Read the modules in this order: masks, attention, positions, norms, mlp, cache, model, hf, generate.
"""

from .attention import Attention, attention, fast_attention, softmax
from .cache import KVCache
from .generate import generate, probabilities
from .mlp import MLP
from .model import Block, Config, Trace, Transformer
from .norms import LayerNorm, RMSNorm
from .positions import RopeScaling

__all__ = [
    "MLP", "Attention", "Block", "Config", "KVCache", "LayerNorm", "RMSNorm", "RopeScaling", "Trace", "Transformer",
    "attention", "fast_attention", "generate", "probabilities", "softmax",
]  # fmt: skip
