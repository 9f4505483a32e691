"""LoRA: freeze a weight, learn a low-rank correction.

    y = W x + s · B A x        s = α / r, or α / √r (rsLoRA)        A: r × d_in, starts random;  B: d_out × r, starts at zero

    x ──► W (frozen) ───────────► + ──► y          merged:  W + s · B A, one matrix again
      └─► A (r × d_in) ─► B (d_out × r) ┘

Does:     linear layers (GPT-2's transposed ones and quantised ones too) and embeddings of any model; dropout on the low-rank
          path; the biases trained too; several adapters at once, also one for each row of a batch; merge; HF peft's files.
Leaves out: convolutions, a rank for each layer, other initialisations than the paper's.
Source:   Hu et al. 2021, "LoRA", eq. 3; Kalajdzievski 2023, "rsLoRA" (the scale that keeps high ranks learning).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import interface
from .interface import PREFIX, Handle, Switch, Wrapper, bottom, family, find

__all__ = [
    "Config",
    "LoRA",
    "LoRAEmbedding",
    "LoRALinear",
    "attach",
    "config_from_file",
    "features",
    "lora_forward",
    "lora_merge",
    "n_parameters",
]

# Query and value projections, the paper's choice, in each family's words. GPT-2 has them in one matrix.
TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "bert": ("query", "value"),
    "t5": ("q", "v"),
    "gpt2": ("c_attn",),
    "transformer": ("q", "v"),
}
BIASES = ("none", "all", "lora_only")
# Settings of HF peft's files that would change the outputs.
NOT_HERE = (
    "rank_pattern", "alpha_pattern", "lora_bias", "layers_to_transform", "exclude_modules", "target_parameters", "use_qalora",
    "trainable_token_indices", "layer_replication", "use_bdlora", "velora_config", "monteclora_config", "kasa_config",
    "arrow_config", "alora_invocation_tokens",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """LoRA's settings; what HF peft calls `lora_alpha`, `lora_dropout`, `use_rslora` and `target_modules` is shorter here.

    targets: name endings, or a regex for whole names, or "all-linear" (every linear layer but the head), or None (query and
    value). bias: none, all (every bias of the model is trained) or lora_only (those of the target layers).
    """

    r: int = 8
    alpha: float = 8
    dropout: float = 0.0
    rslora: bool = False
    bias: str = "none"
    targets: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"rank r={self.r} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        if self.bias not in BIASES:
            raise ValueError(f"bias={self.bias!r} is unknown; choose one of {', '.join(BIASES)}")

    @property
    def scale(self) -> float:
        """s: how much of the correction is added. Divided by r, it learns the more slowly the higher r; √r corrects that."""
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


def lora_forward(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_out d_in"], A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"],
    alpha: float,
) -> Float[Tensor, "batch d_out"]:  # fmt: skip
    """The readable version of LoRALinear: W x + (α / r) · B A x, through the narrow middle, A first, then B."""
    return F.linear(x, W) + alpha / A.shape[0] * F.linear(F.linear(x, A), B)


def lora_merge(
    W: Float[Tensor, "d_out d_in"], A: Float[Tensor, "r d_in"], B: Float[Tensor, "d_out r"], scale: float
) -> Float[Tensor, "d_out d_in"]:
    """The readable version of `merged`: one matrix that does what both paths do, W + s · B A."""
    return W + scale * B @ A


class LoRALinear(Wrapper):
    """A frozen linear layer plus its low-rank correction."""

    def __init__(self, base: nn.Module, switch: Switch, config: Config) -> None:
        super().__init__(base, switch)
        d_in, d_out = features(bottom(base))
        self.r, self.scale, self.dropout = config.r, config.scale, config.dropout
        options = like(bottom(base).weight)
        self.A = nn.Parameter(torch.empty(self.r, d_in, **options))
        self.B = nn.Parameter(torch.zeros(d_out, self.r, **options))  # so the first step starts from the model as it was
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def adapt(self, x: Float[Tensor, "*batch d_in"], y: Float[Tensor, "*batch d_out"]) -> Float[Tensor, "*batch d_out"]:
        """y + s · B A x."""
        if self.training and self.dropout:
            x = F.dropout(x, self.dropout)
        low = F.linear(x.to(self.A.dtype), self.A)
        if y.dtype != low.dtype:
            return (y + self.scale * F.linear(low, self.B)).to(y.dtype)
        # One kernel for y + s · low Bᵀ: no copy of the correction is ever made, forward or backward.
        rows, low = y.reshape(-1, y.shape[-1]), low.reshape(-1, self.r)
        return torch.addmm(rows, low, self.B.T, alpha=self.scale).view(y.shape)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The layer's weight with the correction in it: W + s · B A."""
        weight = bottom(self).weight
        left, right = (self.A.T, self.B.T) if transposed(bottom(self)) else (self.B, self.A)
        return {"weight": torch.addmm(weight.to(left.dtype), left, right, alpha=self.scale).to(weight.dtype)}

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in a file."""
        return {"lora_A.weight": self.A, "lora_B.weight": self.B}


class LoRAEmbedding(Wrapper):
    """A frozen embedding plus its low-rank correction: here A starts at zero, as it is looked up, and B random."""

    def __init__(self, base: nn.Module, switch: Switch, config: Config) -> None:
        super().__init__(base, switch)
        n, d = features(bottom(base))
        self.scale, options = config.scale, like(bottom(base).weight)
        self.A, self.B = nn.Parameter(torch.zeros(config.r, n, **options)), nn.Parameter(torch.randn(d, config.r, **options))

    def adapt(self, x: Int[Tensor, "*batch"], y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """y + s · B A[:, x]."""
        low = F.embedding(x, self.A.T, padding_idx=bottom(self).padding_idx)
        return (y + self.scale * F.linear(low, self.B)).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """The table with the correction in it: W + s · (B A)ᵀ."""
        weight = bottom(self).weight
        return {"weight": torch.addmm(weight.to(self.A.dtype), self.A.T, self.B.T, alpha=self.scale).to(weight.dtype)}

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in a file."""
        return {"lora_embedding_A": self.A, "lora_embedding_B": self.B}


class LoRA(Handle):
    """An attached LoRA adapter."""

    method, peft_type = "lora", "LORA"
    mergeable = mixable = additive = True
    must_agree = ("r", "lora_alpha", "use_rslora", "use_dora", "bias")
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """A LoRALinear for each linear layer named, a LoRAEmbedding for each embedding."""
        found = targets(self.model, self.config.targets, TARGETS, avoid=self.config.modules_to_save)
        for place, layer in found.items():
            limit = min(features(bottom(layer), place))
            if self.config.r > limit:
                raise ValueError(f'rank {self.config.r} exceeds min(d_in, d_out) = {limit} for layer "{place}"; choose 1–{limit}')
        return {place: self.wrap(layer) for place, layer in found.items()}

    def wrap(self, layer: nn.Module) -> Wrapper:
        """The part for one layer."""
        kind = LoRAEmbedding if isinstance(bottom(layer), nn.Embedding) else LoRALinear
        return kind(layer, self.switch, self.config)

    def tuned_names(self) -> list[str]:
        """The biases to train, those of trained heads not among them."""
        if self.config.bias == "none":
            return []
        named = [name for name, _ in interface.base_parameters(self.model) if name.split(".")[-1] == "bias"]
        if self.config.bias == "lora_only":
            return [name for name in named if name.removesuffix(".bias") in self.parts]
        return [name for name in named if not any(name.startswith(f"{head}.") for head in self.heads)]

    def tuned_key(self, name: str) -> str:
        """HF peft's name of a bias, whose layer has moved inside a wrapper."""
        place = name.removesuffix(".bias")
        return f"{place}.base_layer.bias" if place in self.parts else name

    def file_tensors(self) -> dict[str, Tensor]:
        """HF peft's keys."""
        return {f"{PREFIX}{place}.{key}": t for place, part in self.parts.items() for key, t in part.tensors().items()}

    def file_config(self) -> dict[str, Any]:
        """HF peft's fields."""
        c = self.config
        return {
            "r": c.r, "lora_alpha": c.alpha, "lora_dropout": c.dropout, "use_rslora": c.rslora, "use_dora": False, "bias": c.bias,
            "target_modules": targets_for_file(self, TARGETS),
            "fan_in_fan_out": any(transposed(bottom(part)) for part in self.parts.values()),
        }  # fmt: skip


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> LoRA:
    """Freeze the model and put a low-rank correction beside each target layer.

    Raises:
        ValueError: a target that matches nothing (the nearest names are told), a rank above a layer's smaller side, a layer
            that is no linear layer or embedding, or a name that is taken.
    """
    return LoRA(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The settings in an `adapter_config.json`, ours or HF peft's.

    Raises:
        ValueError: a setting of HF peft's that changes the result and that we do not have.
    """
    if used := [name for name in NOT_HERE if fields.get(name)]:
        raise ValueError(f"the adapter uses {used[0]}={fields[used[0]]!r}, which is not implemented here; load it with HF peft")
    return Config(
        r=fields["r"], alpha=fields["lora_alpha"], dropout=fields.get("lora_dropout", 0.0), bias=fields.get("bias", "none"),
        rslora=fields.get("use_rslora", False), targets=targets_from_file(fields),
        modules_to_save=interface.heads_from_file(fields),
    )  # fmt: skip


def n_parameters(d_in: int, d_out: int, r: int) -> int:
    """How many numbers LoRA trains for one linear layer: A's r rows of d_in and B's r columns of d_out."""
    return r * (d_in + d_out)


# --- layers and their names, for all methods that change weights -------------------------------------------------------


def transposed(layer: nn.Module) -> bool:
    """Whether the layer keeps its weight as d_in × d_out: GPT-2's Conv1D, and an embedding do."""
    return hasattr(layer, "nf")


def features(layer: nn.Module, place: str = "") -> tuple[int, int]:
    """(d_in, d_out) of a linear layer, (entries, d) of an embedding.

    Raises:
        ValueError: another kind of module.
    """
    if transposed(layer):
        return tuple(layer.weight.shape)
    for d_in, d_out in (("in_features", "out_features"), ("num_embeddings", "embedding_dim")):
        if hasattr(layer, d_in):
            return getattr(layer, d_in), getattr(layer, d_out)
    inside = [name for name, child in layer.named_modules() if name and (transposed(child) or hasattr(child, "in_features"))]
    hint = f"; name a layer inside it, as {inside[0]}" if inside else ""
    raise ValueError(f'target "{place}" is a {type(layer).__name__}, not a linear layer or embedding{hint}')


def targets(
    model: nn.Module, named: str | tuple[str, ...] | None, defaults: Mapping[str, tuple[str, ...]], avoid: tuple[str, ...] = ()
) -> dict[str, nn.Module]:
    """The layers a config names, by name: `defaults` of the model's family if it names none."""
    if named == "all-linear":
        return _all_linear(model, avoid)
    return find(model, defaults[family(model)] if named is None else named, avoid=avoid)


def _all_linear(model: nn.Module, avoid: tuple[str, ...]) -> dict[str, nn.Module]:
    getter = getattr(model, "get_output_embeddings", None)
    heads = [
        getter() if getter else getattr(model, "head", None),
        *(getattr(model, name, None) for name in ("score", "classifier")),
    ]
    kept = find(model, ".*", avoid=avoid)
    linear = {n: m for n, m in kept.items() if transposed(bottom(m)) or hasattr(bottom(m), "in_features")}
    return {
        name: module
        for name, module in linear.items()
        if all(bottom(module) is not head for head in map(bottom, filter(None, heads)))
    }


def targets_for_file(handle: Handle, defaults: Mapping[str, tuple[str, ...]]) -> str | list[str]:
    """`target_modules`: the regex or the endings that were used; for "all-linear" the layers' own names."""
    named = handle.config.targets
    if named == "all-linear":
        return sorted(handle.parts)
    named = defaults[family(handle.model)] if named is None else named
    return named if isinstance(named, str) else sorted(named)


def targets_from_file(fields: Mapping[str, Any]) -> str | tuple[str, ...]:
    """The targets of an `adapter_config.json`."""
    named = fields["target_modules"]
    return named if isinstance(named, str) else tuple(sorted(named))


def like(weight: Tensor) -> dict[str, Any]:
    """Options for new parameters: on the weight's device; in its dtype only if that is wide enough to train in."""
    wide = weight.dtype in (torch.float32, torch.float64)
    return {"device": weight.device, "dtype": weight.dtype if wide else torch.float32}
