"""A transformer from its parts, loading Hugging Face checkpoints with equal logits.

Read the modules in this order: masks, attention, positions, norms, mlp, moe, cache, model, hf, beam, generate, ssm, counts,
inside.
"""

from . import counts, inside, masks
from .attention import Attention, attention, fast_attention, softmax
from .beam import beam_search
from .cache import KVCache
from .generate import generate, probabilities
from .mlp import ACTIVATIONS, MLP
from .model import Block, Config, Source, Trace, Transformer
from .moe import MoE, load_balancing_loss, router_logits
from .norms import LayerNorm, RMSNorm, rms_norm
from .positions import (
    RopeScaling,
    T5Bias,
    alibi,
    alibi_slopes,
    frequencies,
    half_split,
    interleaved,
    rope_angles,
    rotate,
    rotate_interleaved,
    sinusoidal,
)
from .ssm import Mamba, parallel_scan, recurrence, selective_scan

__all__ = [
    "ACTIVATIONS", "MLP", "Attention", "Block", "Config", "KVCache", "LayerNorm", "Mamba", "MoE", "RMSNorm", "RopeScaling",
    "Source", "T5Bias", "Trace", "Transformer", "alibi", "alibi_slopes", "attention", "beam_search", "counts", "fast_attention",
    "frequencies", "generate", "half_split", "inside", "interleaved", "load_balancing_loss", "masks", "parallel_scan",
    "probabilities", "recurrence", "rms_norm", "rope_angles", "rotate", "rotate_interleaved", "router_logits", "selective_scan",
    "sinusoidal", "softmax",
]  # fmt: skip
