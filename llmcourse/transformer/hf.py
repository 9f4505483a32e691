"""Loading Hugging Face checkpoints: the same numbers under other names.

Does:     LlamaForCausalLM and GPT2LMHeadModel of any size, from memory or a local directory (safetensors). Every config field
          is either read, known to leave the logits alone, at its default, or refused by name.
Leaves out: quantised checkpoints, adapters, models split over devices.
Source:   transformers' modeling_llama.py and modeling_gpt2.py.
"""

import json
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .model import Config, Transformer
from .positions import RopeScaling

__all__ = ["FAMILIES", "load"]


class Family(NamedTuple):
    """How to read one architecture: its config, and the names of its weights as (theirs, ours) in order of replacement."""

    config: Callable[[Any], Config]
    names: dict[str, str]


def load(cls: type[Transformer], source: Any, ignore: tuple[str, ...] = ()) -> Transformer:
    """`Transformer.from_hf`, as a function of the class to build."""
    model = _read(Path(source)) if isinstance(source, str | PathLike) else source
    family = _family(type(model).__name__)
    config = family.config(reader := _Reader(model.config))
    reader.refuse_the_rest(ignore)
    with torch.device("meta"):  # shapes without memory: the weights are about to be replaced
        ours = cls(config)
    ours.load_state_dict(_rename(model.state_dict(), family.names), assign=True)
    ours.tie()
    return ours.eval()


def _read(directory: Path) -> Any:
    import transformers

    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory} holds no config.json; give from_hf a saved model's directory or a transformers model")
    names = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("architectures")
    name = names[0] if names else "no architecture"
    _family(name)
    options = {"local_files_only": True, "use_safetensors": True, "dtype": "auto", "output_loading_info": True}
    model, info = getattr(transformers, name).from_pretrained(directory, **options)
    if info["missing_keys"]:
        raise ValueError(f"{directory} lacks weights: {', '.join(sorted(info['missing_keys']))}")
    return model


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"{name} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _rename(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Copies of the weights under our names; GPT-2 stores its linear layers as (in, out), and q, k and v in one."""
    renamed = {}
    for name, weight in weights.items():
        weight = weight.T if re.search(r"\.c_\w+\.weight$", name) else weight
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        parts = zip("qkv", weight.chunk(3), strict=True) if ".qkv." in name else [("qkv", weight)]
        renamed |= {name.replace("qkv", part): x.clone(memory_format=torch.contiguous_format) for part, x in parts}
    return renamed


class _Reader:
    """A config that remembers which of its fields were read."""

    NO_EFFECT = re.compile(  # on the logits, that is; the last three stand in published Llama checkpoints
        r"initializer_range|use_cache|(bos|eos|pad)_token_id|summary_\w+|_attn_implementation\w*"
        r"|torch_dtype|is_llama_config|transformers\.js_config"
    )

    def __init__(self, config: Any) -> None:
        self.config, self.read = config, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.config, name)

    def refuse_the_rest(self, ignore: tuple[str, ...]) -> None:
        """Raise for fields that were not read and do not hold what the architecture means without them."""
        from transformers import PreTrainedConfig

        known = self.read.union(ignore, PreTrainedConfig().to_dict())
        default = type(self.config)().to_dict()
        for name, value in self.config.to_dict().items():
            same = value == default[name] if name in default else not value
            if not (same or name in known or self.NO_EFFECT.fullmatch(name)):
                raise ValueError(f'{name}={value!r} is not implemented; pass ignore=("{name}",) if it does not change the logits')


def _activation(name: str) -> str:
    names = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu"}
    names |= {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
    if name not in names:
        raise ValueError(f'activation "{name}" is not implemented; implemented: {", ".join(names)}')
    return names[name]


def _rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", "default")
    names = {"default": [], "linear": ["factor"]}
    names["llama3"] = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    if kind not in names:
        raise ValueError(f'rope_type "{kind}" is not implemented; implemented: {", ".join(names)}')
    for name in rope.keys() - {"rope_type", "type", "rope_theta", *names[kind]}:
        if rope[name] is not None and (name, rope[name]) != ("partial_rotary_factor", 1.0):
            raise ValueError(f'{name}={rope[name]!r} in rope_parameters is not implemented for rope_type "{kind}"')
    return RopeScaling(*(rope[name] for name in names[kind])) if names[kind] else None


def _llama(c: Any) -> Config:
    return Config(
        vocab_size=c.vocab_size, d_model=c.hidden_size, n_layers=c.num_hidden_layers, d_ff=c.intermediate_size,
        n_heads=c.num_attention_heads, n_kv_heads=c.num_key_value_heads, d_head=c.head_dim,
        max_positions=c.max_position_embeddings, positions="rope", rope_base=float(c.rope_parameters["rope_theta"]),
        rope_scaling=_rope_scaling(c.rope_parameters), norm="rms", norm_eps=c.rms_norm_eps, gated=True,
        activation=_activation(c.hidden_act), attention_bias=c.attention_bias, mlp_bias=c.mlp_bias,
        tied=c.tie_word_embeddings, attention_dropout=float(c.attention_dropout),
    )  # fmt: skip


def _gpt2(c: Any) -> Config:
    if c.embd_pdrop != c.resid_pdrop:
        raise ValueError(f"embd_pdrop={c.embd_pdrop} unlike resid_pdrop={c.resid_pdrop} is not implemented; make them equal")
    return Config(
        vocab_size=c.vocab_size, d_model=c.n_embd, n_layers=c.n_layer, n_heads=c.n_head, d_ff=c.n_inner or 4 * c.n_embd,
        max_positions=c.n_positions, positions="learned", norm="layer", norm_eps=c.layer_norm_epsilon, gated=False,
        activation=_activation(c.activation_function), attention_scale=None if c.scale_attn_weights else 1.0,
        attention_bias=True, mlp_bias=True, tied=c.tie_word_embeddings,
        dropout=float(c.resid_pdrop), attention_dropout=float(c.attn_pdrop),
    )  # fmt: skip


FAMILIES = {
    "LlamaForCausalLM": Family(
        _llama,
        {"model.embed_tokens": "embed", "model.layers": "blocks", "model.norm": "norm", "lm_head": "head", "_proj": "",
         "self_attn": "attention", "input_layernorm": "norm1", "post_attention_layernorm": "norm2"},
    ),
    "GPT2LMHeadModel": Family(
        _gpt2,
        {"transformer.wte": "embed", "transformer.wpe": "position", "transformer.h": "blocks", "transformer.ln_f": "norm",
         "lm_head": "head", "ln_": "norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.o",
         "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"},
    ),
}  # fmt: skip
