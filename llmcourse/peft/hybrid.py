"""Hybrid: LoRA changes how the model computes, a soft prompt changes what it reads; both are trained together.

    [p1 … pn] [e(x1) … e(xm)] ─► W x + s · B A x in every chosen layer

Does:     both at once on Llama, BERT, T5, GPT-2 and our Transformer; one handle, one file.
Leaves out: merging as a whole (the prompt is no change of a weight); HF peft's format, which has one method a file: attach
          `lora` and `prompt_tuning` under two names to get two such files.
Source:   Hu et al. 2021, "LoRA", §7 and appendix E (LoRA with prefix methods).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from . import interface
from .combined import CombinedHandle, from_file
from .lora import Config as LoRAConfig
from .lora import LoRA
from .prompt_tuning import Config as PromptConfig
from .prompt_tuning import PromptTuningHandle

__all__ = ["Config", "HybridHandle", "attach", "config_from_file"]


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """A soft prompt (started from the vocabulary or at random) and a LoRA (without trained biases)."""

    prompt: PromptConfig = field(default_factory=PromptConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        if self.prompt.start == "text" or self.lora.bias != "none":
            raise ValueError(
                'a hybrid starts its prompt from the vocabulary or at random, and LoRA trains no biases (bias="none")'
            )


class HybridHandle(CombinedHandle):
    """An attached soft prompt with its LoRA."""

    method, peft_type = "hybrid", "HYBRID"
    must_agree = ("alpha", "rslora")
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """A prompt, and a low-rank correction beside each target layer."""
        tokens = self.parts_of(PromptTuningHandle, self.config.prompt)
        return tokens | self.parts_of(LoRA, self.config.lora)

    def file_config(self) -> dict[str, Any]:
        """The configs of both parts, and apart what no shape gives away."""
        return super().file_config() | {"alpha": self.config.lora.alpha, "rslora": self.config.lora.rslora}

    @property
    def n_prompt(self) -> int:
        """The prompt's tokens."""
        return self.config.prompt.n_tokens

    def prompt(self) -> Float[Tensor, "tokens width"]:
        """The soft tokens' vectors."""
        return self.tokens()


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> HybridHandle:
    """Put a soft prompt before everything `model` reads, and LoRA into its layers.

    Raises:
        ValueError: whatever prompt_tuning.attach and lora.attach refuse.
        TypeError: a model that is neither one of transformers nor our Transformer.
    """
    return HybridHandle(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The config for a saved adapter."""
    parts = {"prompt": from_file(PromptConfig, fields["prompt"]), "lora": from_file(LoRAConfig, fields["lora"])}
    return Config(**parts, modules_to_save=interface.heads_from_file(fields))
