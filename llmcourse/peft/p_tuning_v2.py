"""P-tuning v2: deep prompts for classification: learned keys and values in every layer, and no network that writes them.

    layer L     [p1 … pn]ᴸ   h1 … hm ─► classifier          trained: n_tokens × (2 · layers · heads · d), and the head
    …           …            …
    layer 1     [p1 … pn]¹   h1 … hm                        the same attention as prefix tuning: that is the point,
                             e(x1) … e(xm)                  on models that classify, and with their head trained along

Does:     prefix tuning as understanding tasks use it: on sequence and token classifiers of BERT, Llama, GPT-2 and on our
          Transformer, the classifier's head always trained and saved along; HF peft reads and writes the files as prefix tuning.
Leaves out: the re-parameterisation, which the paper finds unsteady (prefix has it); multi-task training; T5, which
          classifies with words.
Source:   Liu et al. 2022, "P-Tuning v2", §3.
"""

from dataclasses import dataclass

from torch import nn

from ..transformer.model import Transformer
from . import interface, prefix

__all__ = ["Config", "DeepPromptHandle", "attach"]

HEADS = ("classifier", "score", "head")  # BERT's, Llama's and GPT-2's, our Transformer's


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """n_tokens deep prompts a layer. modules_to_save: the classifier's head, found by its name unless given."""

    n_tokens: int = 20


class DeepPromptHandle(prefix.PrefixHandle):
    """An attached deep prompt; `handle.tokens()` gives its keys and values, layer by layer."""

    method = "P-tuning v2"


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> DeepPromptHandle:
    """Put deep prompts into every layer of the classifier `model`, and train its head with them.

    Raises:
        ValueError: a model without a classification head; more tokens than the model has positions.
        TypeError: a model that is neither one of transformers nor our Transformer.
    """
    config = config or Config()
    heads = config.modules_to_save or _head(model)
    return DeepPromptHandle(model, prefix.Config(n_tokens=config.n_tokens, modules_to_save=heads), name)


def _head(model: nn.Module) -> tuple[str]:
    classifies = interface.task_type(model) in ("SEQ_CLS", "TOKEN_CLS")
    if isinstance(model, Transformer):
        classifies = model.config.head == "labels"
    for name, _ in model.named_children():
        if classifies and name in HEADS:
            return (name,)
    raise ValueError(f"{type(model).__name__} has no classification head to train with the prompts; prefix.attach needs none")
