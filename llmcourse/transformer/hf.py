"""Hugging Face checkpoints, in and out: the same numbers under other names.

Does:     Llama, Mistral, Qwen3, Mixtral, GPT-2, BERT (bare, masked-token and classification heads) and T5 of any size, from
          memory or a local directory (safetensors), and back. Every config field is either read, known to leave the logits
          alone, at its default, or refused by name.
Leaves out: quantised checkpoints, adapters, models split over devices; windows in some layers only.
Source:   transformers' modeling_*.py of these families.
"""

import json
import re
from collections.abc import Callable
from dataclasses import astuple
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from .model import Config, Transformer
from .positions import RopeScaling

__all__ = ["FAMILIES", "load", "save"]


class Family(NamedTuple):
    """One architecture. Our config is its `fields` under our names, what it `fixed`, and what `read` makes of the rest; `write`
    is the way back. `names` are patterns that turn its weights' names into ours, in order of replacement."""

    fields: dict[str, str]
    fixed: dict[str, Any]
    names: dict[str, str]
    read: Callable[[Any], dict[str, Any]] = lambda c: {}
    write: Callable[[Config], dict[str, Any]] = lambda c: {}


def load(cls: type[Transformer], source: Any, ignore: tuple[str, ...] = ()) -> Transformer:
    """`Transformer.from_hf`, as a function of the class to build."""
    model = _read(Path(source)) if isinstance(source, str | PathLike) else source
    family, reader = _family(type(model).__name__), _Reader(getattr(model, "config", None))
    config = _config(family, reader, _is_tied(model))
    reader.refuse_the_rest(ignore)
    with torch.device("meta"):  # shapes without memory: the weights are about to be replaced
        ours = cls(config)
    weights = {}
    for name, weight in model.state_dict().items():
        parts = _ours(name, family)
        pieces = (weight.T if _flipped(name) else weight).chunk(len(parts))
        # in one dtype: from a float16 directory transformers reads some of T5's weights as float32
        copies = (x.to(model.dtype, copy=True, memory_format=torch.contiguous_format) for x in pieces)
        weights |= zip(parts, copies, strict=True)
    ours.load_state_dict(weights, assign=True)
    ours.tie()
    return ours.eval()


def save(ours: Transformer, fields: dict[str, Any]) -> transformers.PreTrainedModel:
    """`Transformer.to_hf`, as a function."""
    architecture, config = _match(ours.config, fields)
    theirs, mine = getattr(transformers, architecture)(config), dict(ours.named_parameters(remove_duplicate=False))
    weights, copies = {}, {}
    for name in theirs.state_dict():
        parts = [mine[part] for part in _ours(name, FAMILIES[architecture])]
        key = tuple(map(id, parts))  # what is one matrix here is to be one there
        if key not in copies:
            joined = torch.cat([part.detach() for part in parts])
            copies[key] = nn.Parameter((joined.T if _flipped(name) else joined).clone(memory_format=torch.contiguous_format))
        weights[name] = copies[key]
    theirs.load_state_dict(weights, assign=True)
    return theirs.to(next(ours.parameters()).device).train(ours.training)


def _read(directory: Path) -> transformers.PreTrainedModel:
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


def _is_tied(model: transformers.PreTrainedModel) -> bool:
    """As the weights are: T5's config says it is tied even where the published weights are not."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _ours(name: str, family: Family) -> list[str]:
    """Our names for the parts of one of their weights: GPT-2 has q, k and v in one."""
    for theirs, ours in family.names.items():
        name = re.sub(theirs, ours, name)
    return [name.replace("qkv", part) for part in ("qkv" if ".qkv." in name else [""])]


def _flipped(name: str) -> bool:
    """GPT-2 stores its linear layers as (in, out)."""
    return re.search(r"\.c_\w+\.weight$", name) is not None


def _config(family: Family, theirs: Any, tied: bool) -> Config:
    values = {ours: getattr(theirs, name) for name, ours in family.fields.items()}
    values |= family.fixed | family.read(theirs) | {"tied": tied}
    if values["activation"] not in ACTIVATIONS:
        raise ValueError(f'activation "{values["activation"]}" is not implemented; implemented: {", ".join(ACTIVATIONS)}')
    return Config(**values | {"activation": ACTIVATIONS[values["activation"]]})


def _match(config: Config, fields: dict[str, Any]) -> tuple[str, transformers.PreTrainedConfig]:
    """The first family that, read back, says just what `config` says, and its own config."""
    ours, nearest = vars(config) | {"activation": THEIRS[config.activation]}, ("none", vars(config))
    for name, family in FAMILIES.items():
        values = {theirs: ours[mine] for theirs, mine in family.fields.items()} | family.write(config)
        try:
            theirs = getattr(transformers, name).config_class(**values | {"tie_word_embeddings": config.tied} | fields)
            found = vars(_config(family, theirs, config.tied))
        except (StrictDataclassError, ValueError):
            continue
        lacks = {key: value for key, value in vars(config).items() if found[key] != value}
        if not lacks:
            return name, theirs
        nearest = min(nearest, (name, lacks), key=lambda pair: len(pair[1]))
    lacks = ", ".join(f"{key}={value!r}" for key, value in nearest[1].items())
    raise ValueError(f"no transformers class we know combines these parts; the nearest, {nearest[0]}, does not have {lacks}")


class _Reader:
    """A config that remembers which of its fields were read."""

    NO_EFFECT = re.compile(  # on the logits, that is; torch_dtype to pooler_ stand in published checkpoints only
        r"initializer_\w+|use_cache|(bos|eos|pad|decoder_start)_token_id|summary_\w+|_(attn|experts)_implementation\w*"
        r"|torch_dtype|is_llama_config|transformers\.js_config|output_past|task_specific_params|n_positions|gradient_checkpointing"
        r"|directionality|pooler_\w+|classifier_dropout|output_router_logits|router_aux_loss_coef"
        # and these are read in other words: from the weights, as dense_act_fn and is_gated_act, as layer_types
        r"|tie_word_embeddings|feed_forward_proj|use_sliding_window|max_window_layers"
    )

    def __init__(self, config: Any) -> None:
        self.config, self.read = config, set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.config, name)

    def refuse_the_rest(self, ignore: tuple[str, ...]) -> None:
        """Raise for fields that were not read and do not hold what the architecture means without them."""
        known = self.read.union(ignore, transformers.PreTrainedConfig().to_dict())
        default = type(self.config)().to_dict() | {"position_embedding_type": "absolute"}
        for name, value in self.config.to_dict().items():
            same = value == default[name] if name in default else not value
            if not (same or name in known or self.NO_EFFECT.fullmatch(name)):
                raise ValueError(f'{name}={value!r} is not implemented; pass ignore=("{name}",) if it does not change the logits')


def _read_rope(c: Any) -> dict[str, Any]:
    rope = c.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in ROPE:
        raise ValueError(f'rope_type "{kind}" is not implemented; implemented: {", ".join(ROPE)}')
    for name in rope.keys() - {"rope_type", "type", "rope_theta", *ROPE[kind]}:
        if rope[name] is not None and (name, rope[name]) != ("partial_rotary_factor", 1.0):
            raise ValueError(f'{name}={rope[name]!r} in rope_parameters is not implemented for rope_type "{kind}"')
    scaling = RopeScaling(*(rope[name] for name in ROPE[kind])) if ROPE[kind] else None
    return {"rope_base": rope["rope_theta"], "rope_scaling": scaling}


def _write_rope(c: Config) -> dict[str, Any]:
    scaling = c.rope_scaling
    kind = "default" if scaling is None else "linear" if scaling.original_positions is None else "llama3"
    values = dict(zip(ROPE[kind], astuple(scaling), strict=False)) if scaling else {}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": c.rope_base, **values}}


def _read_qwen3(c: Any) -> dict[str, Any]:
    if len(set(c.layer_types)) > 1:
        raise ValueError(f"layer_types={c.layer_types} is not implemented; all layers must be of one kind")
    return _read_rope(c) | {"window": c.sliding_window if "sliding_attention" in c.layer_types else None}


def _write_qwen3(c: Config) -> dict[str, Any]:
    return _write_rope(c) | {"sliding_window": c.window, "use_sliding_window": c.window is not None, "max_window_layers": 0}


def _read_gpt2(c: Any) -> dict[str, Any]:
    if c.embd_pdrop != c.resid_pdrop:
        raise ValueError(f"embd_pdrop={c.embd_pdrop} unlike resid_pdrop={c.resid_pdrop} is not implemented; make them equal")
    return {"dropout": c.resid_pdrop, "attention_scale": None if c.scale_attn_weights else 1.0}


def _write_gpt2(c: Config) -> dict[str, Any]:
    return {"embd_pdrop": c.dropout, "resid_pdrop": c.dropout, "scale_attn_weights": c.attention_scale is None}


def _read_labels(c: Any) -> dict[str, Any]:
    dropout = c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout
    return {"n_labels": c.num_labels, "head_dropout": dropout}


def _write_labels(c: Config) -> dict[str, Any]:
    return {"num_labels": c.n_labels, "classifier_dropout": c.head_dropout}


def _read_t5(c: Any) -> dict[str, Any]:
    scaled = getattr(c, "scale_decoder_outputs", c.tie_word_embeddings)  # one field in older transformers
    return {
        "scaled_head": scaled,
        "mlp_dropout": c.dropout_rate,
        "head_dropout": c.dropout_rate,
        "attention_dropout": c.dropout_rate,
    }


def _write_t5(c: Config) -> dict[str, Any]:
    return {"feed_forward_proj": ("gated-" if c.gated else "") + THEIRS[c.activation], "scale_decoder_outputs": c.scaled_head}


def _table(pairs: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in pairs.split())


ACTIVATIONS = _table("silu=silu swish=silu relu=relu gelu=gelu gelu_new=gelu_tanh gelu_pytorch_tanh=gelu_tanh")
THEIRS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE = {"default": (), "linear": ("factor",), "llama3": LLAMA3}
SHAPE = _table(
    "vocab_size=vocab_size hidden_size=d_model num_hidden_layers=n_layers num_attention_heads=n_heads intermediate_size=d_ff "
    "max_position_embeddings=max_positions hidden_act=activation"
)
LLAMA = SHAPE | _table("num_key_value_heads=n_kv_heads head_dim=d_head rms_norm_eps=norm_eps attention_dropout=attention_dropout")
LLAMA_NAMES = _table(
    "^model.= embed_tokens=embed layers=blocks lm_head=head _proj= self_attn=attention "
    "post_attention_layernorm=norm2 input_layernorm=norm1"
)
BIAS, WINDOW = {"attention_bias": "attention_bias"}, {"sliding_window": "window"}
EXPERTS = WINDOW | {"num_local_experts": "n_experts", "num_experts_per_tok": "experts_per_token"}
EXPERTS_NAMES = {"mlp.gate.": "mlp.router.", "experts.": ""} | LLAMA_NAMES
GPT2 = _table(
    "vocab_size=vocab_size n_embd=d_model n_layer=n_layers n_head=n_heads n_inner=d_ff n_positions=max_positions "
    "activation_function=activation layer_norm_epsilon=norm_eps attn_pdrop=attention_dropout"
)
GPT2_FIXED = {"positions": "learned", "norm": "layer", "gated": False, "attention_bias": True, "mlp_bias": True}
GPT2_NAMES = _table(
    "^transformer.= wte=embed wpe=position ^h=blocks ln_f=norm lm_head=head ln_=norm attn.c_attn=attention.qkv "
    "attn.c_proj=attention.o c_fc=up c_proj=down"
)
BERT = SHAPE | _table(
    "layer_norm_eps=norm_eps hidden_dropout_prob=dropout attention_probs_dropout_prob=attention_dropout "
    "type_vocab_size=n_token_types"
)
BERT_FIXED = GPT2_FIXED | {"causal": False, "pre_norm": False, "embed_norm": True}
BERT_NAMES = _table(
    r"^bert.= embeddings.word_embeddings=embed embeddings.LayerNorm=embed_norm embeddings.(\w+)_embeddings=\1 "
    r"encoder.layer=blocks attention.self.(.)\w+=attention.\1 attention.output.dense=attention.o "
    r"attention.output.LayerNorm=norm1 intermediate.dense=mlp.up output.dense=mlp.down output.LayerNorm=norm2 "
    r"pooler|cls.predictions.transform=transform LayerNorm=norm cls.predictions(.decoder)?|classifier=head"
)
T5 = _table(
    "vocab_size=vocab_size d_model=d_model d_kv=d_head d_ff=d_ff num_heads=n_heads num_layers=n_encoder_layers "
    "num_decoder_layers=n_layers relative_attention_num_buckets=n_buckets relative_attention_max_distance=max_distance "
    "layer_norm_epsilon=norm_eps dense_act_fn=activation is_gated_act=gated dropout_rate=dropout"
)
T5_NAMES = _table(
    r"^shared|decoder.embed_tokens=embed embed_tokens=embed lm_head=head final_layer_norm=norm "
    r"decoder.(.*).layer.1.layer_norm=\1.cross_norm ^decoder.= layer.0.layer_norm=norm1 layer.\d.layer_norm=norm2 "
    r"block.0.layer.0.\w+.relative_attention_bias=position_bias block=blocks layer.\d.SelfAttention=attention "
    r"layer.\d.EncDecAttention=cross layer.\d.DenseReluDense=mlp wi_0=gate wi(_1)?=up wo=down"
)
FAMILIES = {
    "LlamaForCausalLM": Family(LLAMA | BIAS | {"mlp_bias": "mlp_bias"}, {}, LLAMA_NAMES, _read_rope, _write_rope),
    "GPT2LMHeadModel": Family(GPT2, GPT2_FIXED, GPT2_NAMES, _read_gpt2, _write_gpt2),
    "MistralForCausalLM": Family(LLAMA | WINDOW, {}, LLAMA_NAMES, _read_rope, _write_rope),
    "Qwen3ForCausalLM": Family(LLAMA | BIAS, {"qk_norm": True}, LLAMA_NAMES, _read_qwen3, _write_qwen3),
    "MixtralForCausalLM": Family(LLAMA | EXPERTS, {}, EXPERTS_NAMES, _read_rope, _write_rope),
    "BertModel": Family(BERT, BERT_FIXED | {"head": "pooled"}, BERT_NAMES),
    "BertForMaskedLM": Family(BERT, BERT_FIXED | {"head": "masked"}, BERT_NAMES),
    "BertForSequenceClassification": Family(BERT, BERT_FIXED | {"head": "labels"}, BERT_NAMES, _read_labels, _write_labels),
    "T5ForConditionalGeneration": Family(T5, {"positions": "t5", "attention_scale": 1.0}, T5_NAMES, _read_t5, _write_t5),
}
