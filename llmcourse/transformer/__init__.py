"""A transformer from its parts, loading Hugging Face checkpoints with equal logits.

Read the modules in this order: masks, attention, positions, norms, mlp, cache, model, hf, generate.
"""

from . import masks
from .attention import Attention, attention, fast_attention, softmax
from .cache import KVCache
from .generate import generate, probabilities
from .mlp import ACTIVATIONS, MLP
from .model import Block, Config, Trace, Transformer
from .norms import LayerNorm, RMSNorm, rms_norm
from .positions import RopeScaling, frequencies, rope_angles, rotate

__all__ = [
    "ACTIVATIONS", "MLP", "Attention", "Block", "Config", "KVCache", "LayerNorm", "RMSNorm", "RopeScaling", "Trace",
    "Transformer", "attention", "fast_attention", "frequencies", "generate", "masks", "probabilities", "rms_norm",
    "rope_angles", "rotate", "softmax",
]  # fmt: skip
