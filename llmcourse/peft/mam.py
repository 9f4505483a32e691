"""MAM, "mix and match": a short prefix for attention, a wide parallel adapter for feed-forward.

    attention of layer i      softmax(q [Pk ; K]ᵀ / √d) [Pv ; V]          a few virtual tokens are enough to steer attention
    feed-forward of layer i   ffn(x) + s · up(relu(down(x)))              most parameters go where they serve best

Does:     both at once on Llama, BERT, T5 (prefix in the decoder), GPT-2 and our Transformer; one handle, one file.
Leaves out: merging; HF peft's format, which has no place for it. Against the library `adapters`, the prefix moves the text's
          positions, as it does in HF peft.
Source:   He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", §4.6.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import interface
from .adapters import Parallel, ParallelHandle
from .combined import CombinedHandle, from_file
from .prefix import Config as PrefixConfig
from .prefix import PrefixHandle
from .virtual_tokens import KeysValues

__all__ = ["Config", "MAMHandle", "attach", "config_from_file"]


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """The paper's: a prefix of 30 tokens, written by an MLP, and an adapter of scale 4 (there 512 wide, in a model of 1,024)."""

    prefix: PrefixConfig = field(default_factory=lambda: PrefixConfig(n_tokens=30, projection=True))
    adapter: Parallel = field(default_factory=Parallel)


class MAMHandle(CombinedHandle):
    """An attached prefix with its parallel adapters."""

    method, peft_type = "mam", "MAM"
    must_agree = ("scale", "activation")
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """A prefix, and an adapter beside each feed-forward layer."""
        tokens = self.parts_of(PrefixHandle, self.config.prefix)
        return tokens | self.parts_of(ParallelHandle, self.config.adapter)

    def file_config(self) -> dict[str, Any]:
        """The configs of both parts, and apart what no shape gives away."""
        return super().file_config() | {"scale": self.config.adapter.scale, "activation": self.config.adapter.activation}

    @property
    def n_prefix(self) -> int:
        """The prefix's tokens."""
        return self.config.prefix.n_tokens

    def keys_values(self) -> list[KeysValues]:
        """The prefix, layer by layer."""
        return self.tokens()


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> MAMHandle:
    """Put a prefix before every attention and an adapter beside every feed-forward layer.

    Raises:
        ValueError: whatever prefix.attach and adapters.attach refuse.
        TypeError: a model that is neither one of transformers nor our Transformer.
    """
    return MAMHandle(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The config for a saved adapter."""
    parts = {"prefix": from_file(PrefixConfig, fields["prefix"]), "adapter": from_file(Parallel, fields["adapter"])}
    return Config(**parts, modules_to_save=interface.heads_from_file(fields))
