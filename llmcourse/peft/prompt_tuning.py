"""Prompt tuning: learn a few vectors that stand before the text; not one weight of the model moves.

    [p1 … pn] [e(x1) … e(xm)] ─► frozen model          p: n_tokens × width, the only thing trained

Does:     soft prompts on Llama, BERT, T5 (in the encoder), GPT-2 and our Transformer; started from a text, from tokens of the
          vocabulary or at random; the words nearest to each soft token; HF peft's files, both ways.
Leaves out: merging (a prompt is no change of a weight); ensembles of prompts; one prompt shared by tasks (multitask prompt
          tuning in HF peft).
Source:   Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", §2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import interface
from .virtual_tokens import PromptHandle, check_room, embedding

__all__ = [
    "Config", "PromptTuningHandle", "SoftPrompt", "attach", "config_from_file", "n_parameters", "nearest", "neighbours",
    "start_ids",
]  # fmt: skip

STARTS = ("vocabulary", "text", "random")


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """n_tokens soft tokens. start: vocabulary (embeddings of random tokens), text (those of `text`), or random (±½, uniform)."""

    n_tokens: int = 20
    start: str = "vocabulary"
    text: str | None = None

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start={self.start!r} is unknown; choose one of {', '.join(STARTS)}")
        if (self.start == "text") != bool(self.text):
            raise ValueError(f'start={self.start!r} with text={self.text!r}: a text is needed for start="text", and only there')


class SoftPrompt(nn.Module):
    """A table of vectors, one a soft token. Always float32: small steps would be lost in half precision."""

    def __init__(self, start: Float[Tensor, "tokens width"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.detach().float().clone())

    def forward(self) -> Float[Tensor, "tokens width"]:
        """The prompt."""
        return self.weight


def start_ids(ids: list[int], n_tokens: int) -> list[int]:
    """A text's token ids made `n_tokens` long, as HF peft does it: cut, or repeated from the start."""
    if not ids:
        raise ValueError("the text to start from has no tokens; write at least one word")
    return (ids * -(-n_tokens // len(ids)))[:n_tokens]


def n_parameters(n_tokens: int, width: int) -> int:
    """How many numbers a soft prompt trains: 5 tokens at width 2,048 are 10,240, however large the rest of the model is."""
    return n_tokens * width


class PromptTuningHandle(PromptHandle):
    """An attached soft prompt; `handle.tokens()` is the prompt itself."""

    method, peft_type = "prompt tuning", "PROMPT_TUNING"
    config: Config

    def __init__(self, model: nn.Module, config: Config, name: str, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        super().__init__(model, config, name)

    def build(self) -> dict[str, nn.Module]:
        """The prompt, on the device of the embedding."""
        check_room(self.model, self.config.n_tokens)
        return {"tokens": SoftPrompt(self._start(embedding(self.model).weight))}

    def _start(self, vocabulary: Float[Tensor, "vocab width"]) -> Float[Tensor, "tokens width"]:
        n = self.config.n_tokens
        if self.config.start == "random":
            return torch.rand(n, vocabulary.shape[1], device=vocabulary.device) - 0.5
        if self.config.start == "vocabulary":
            return vocabulary[torch.randint(len(vocabulary), (n,), device=vocabulary.device)]
        if self.tokenizer is None:
            raise ValueError('start="text" needs the tokenizer: attach(model, config, tokenizer=tokenizer)')
        return vocabulary[start_ids(self.tokenizer(self.config.text)["input_ids"], n)]

    def file_config(self) -> dict[str, Any]:
        """HF peft's fields. A text is only named where the file can also name its tokenizer, as HF peft demands."""
        tokenizer = getattr(self.tokenizer, "name_or_path", None) or None
        start = {"vocabulary": "SAMPLE_VOCAB", "text": "TEXT", "random": "RANDOM"}[self.config.start]
        own = {"prompt_tuning_init": start if start != "TEXT" or tokenizer else "RANDOM"}
        if own["prompt_tuning_init"] == "TEXT":
            own |= {"prompt_tuning_init_text": self.config.text, "tokenizer_name_or_path": tokenizer}
        return super().file_config() | own


def attach(model: nn.Module, config: Config | None = None, name: str = "default", *, tokenizer: Any = None) -> PromptTuningHandle:
    """Put a soft prompt before everything `model` reads. A `text` longer than the prompt is cut, a shorter one repeated.

    Raises:
        ValueError: more soft tokens than the model has positions; start="text" without a tokenizer.
        TypeError: a model that is neither one of transformers nor our Transformer.
    """
    return PromptTuningHandle(model, config or Config(), name, tokenizer)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The config for a saved adapter. How it was started does not matter any more: the weights replace the start."""
    return Config(
        n_tokens=fields["num_virtual_tokens"], start="random", modules_to_save=tuple(fields.get("modules_to_save") or ())
    )


def neighbours(handle: PromptHandle, tokenizer: Any, k: int = 5) -> list[list[tuple[str, float]]]:
    """For each soft token the `k` tokens of the vocabulary with the largest cosine to it, and these cosines."""
    with torch.no_grad():
        ids, cosines = nearest(handle.prompt(), embedding(handle.model).weight, k)
    rows = zip(ids.tolist(), cosines.tolist(), strict=True)
    return [list(zip(tokenizer.convert_ids_to_tokens(row), values, strict=True)) for row, values in rows]


def nearest(
    prompt: Float[Tensor, "tokens width"], vocabulary: Float[Tensor, "vocab width"], k: int
) -> tuple[Int[Tensor, "tokens k"], Float[Tensor, "tokens k"]]:
    """Ids of the `k` rows of the vocabulary with the largest cosine to each vector, nearest first, and these cosines."""
    cosines = F.normalize(prompt.float(), dim=-1) @ F.normalize(vocabulary.float(), dim=-1).T
    best = cosines.topk(min(k, len(vocabulary)))
    return best.indices, best.values
