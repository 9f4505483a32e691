"""P-tuning: a soft prompt written by a small network, so that its tokens are learned together instead of one by one.

    t1 … tn ─► bidirectional LSTM ─► linear ─► ReLU ─► linear ─► [p1 … pn] [e(x1) … e(xm)] ─► frozen model      encoder="lstm"
    t1 … tn ─► linear ─► ReLU ─► linear ─► ReLU ─► linear ─►     [p1 … pn] …                                    encoder="mlp"

Does:     both encoders, trained with the vectors t they start from; the finished prompt is what a file holds, so the encoder is
          gone after loading and the prompt itself is trained from there on; HF peft's files, both ways.
Leaves out: soft tokens between the words of a template, anchor words (the paper's cloze patterns); merging.
Source:   Liu et al. 2021, "GPT Understands, Too", §3.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import interface
from .virtual_tokens import KEY, PromptHandle, check_room, embedding

__all__ = ["Config", "PTuningHandle", "PromptEncoder", "attach", "config_from_file"]

ENCODERS = ("lstm", "mlp")


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """n_tokens soft tokens from an encoder of `hidden` features (the model's width unless given); the last two are the LSTM's."""

    n_tokens: int = 20
    encoder: str = "lstm"
    hidden: int | None = None
    n_layers: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(f"encoder={self.encoder!r} is unknown; choose one of {', '.join(ENCODERS)}")
        if (self.hidden is not None and self.hidden < 1) or self.n_layers < 1:
            raise ValueError(f"hidden={self.hidden} and n_layers={self.n_layers} must be at least 1")


class PromptEncoder(nn.Module):
    """From a table of start vectors to the prompt; `finish` replaces both by a finished prompt."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_tokens, width)
        hidden = config.hidden or width
        self.lstm = None
        if config.encoder == "lstm":
            options = {"bidirectional": True, "batch_first": True, "dropout": config.dropout}
            self.lstm = nn.LSTM(width, hidden, config.n_layers, **options)
            self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
        else:
            inner = (nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
            self.mlp = nn.Sequential(*inner, nn.Linear(hidden, width))

    def forward(self) -> Float[Tensor, "tokens width"]:
        """The prompt."""
        x = self.embedding.weight
        return self.mlp(x if self.lstm is None else self.lstm(x[None])[0][0])

    def finish(self, prompt: Float[Tensor, "tokens width"]) -> None:
        """Go on with this prompt itself, without an encoder: it cannot be undone."""
        self.lstm, self.mlp = None, nn.Identity()
        with torch.no_grad():
            self.embedding.weight.copy_(prompt)


class PTuningHandle(PromptHandle):
    """An attached P-tuning prompt; `handle.tokens()` is the prompt itself."""

    method, peft_type = "P-tuning", "P_TUNING"
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """The encoder, on the device of the embedding."""
        check_room(self.model, self.config.n_tokens)
        vocabulary = embedding(self.model).weight
        return {"tokens": PromptEncoder(self.config, vocabulary.shape[1]).to(vocabulary.device)}

    def file_config(self) -> dict[str, Any]:
        """HF peft's fields."""
        c = self.config
        encoder = {
            "encoder_reparameterization_type": c.encoder.upper(),
            "encoder_hidden_size": c.hidden or embedding(self.model).weight.shape[1],
        }
        encoder |= {"encoder_num_layers": c.n_layers, "encoder_dropout": c.dropout}
        return super().file_config() | encoder

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the finished prompt. An optimiser made before must be made again: what it trained is gone."""
        self.tokens.finish(self.rows_read(tensors)[KEY])
        super().fill(tensors)


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> PTuningHandle:
    """Put a soft prompt written by an encoder before everything `model` reads.

    Raises:
        ValueError: more soft tokens than the model has positions.
        TypeError: a model that is neither one of transformers nor our Transformer.
    """
    return PTuningHandle(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The config for a saved adapter."""
    encoder = {
        "encoder": fields.get("encoder_reparameterization_type", "MLP").lower(),
        "hidden": fields.get("encoder_hidden_size"),
    }
    encoder |= {"n_layers": fields.get("encoder_num_layers", 2), "dropout": fields.get("encoder_dropout", 0.0)}
    return Config(n_tokens=fields["num_virtual_tokens"], modules_to_save=tuple(fields.get("modules_to_save") or ()), **encoder)
