"""What the combined methods share: virtual tokens and wrappers around layers, attached as one adapter and saved in one file.

    handle.parts = {"tokens": prefix or soft prompt,  "…layers.0.mlp": wrapper,  "…layers.0.self_attn.q_proj": wrapper, …}

Does:     builds the parts with the methods they come from; puts them in and takes them out together.
Leaves out: which methods are combined (see mam, unipelt, hybrid).
Source:   He et al. 2022, "Towards a Unified View", §3: what the methods have in common.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from torch import Tensor, nn

from . import interface
from .interface import PREFIX, Handle, Wrapper
from .virtual_tokens import VirtualHandle
from .wrapping import replace

__all__ = ["CombinedHandle", "from_file"]

C = TypeVar("C", bound=interface.Config)


class CombinedHandle(VirtualHandle):
    """An adapter of virtual tokens and wrappers; a file of it is ours alone, and names the base it belongs to."""

    own_format = True

    def parts_of(self, kind: type[Handle], config: interface.Config) -> dict[str, nn.Module]:
        """The parts that another method would build for this model, obeying this handle's switch."""
        if config.modules_to_save:
            raise ValueError(f"modules_to_save={config.modules_to_save} belongs to the combined config, not to a part's")
        builder = object.__new__(kind)  # never attached: a method builds from its model, config and switch alone
        builder.model, builder.config, builder.switch = self.model, config, self.switch
        return builder.build()

    def install(self) -> None:
        """The virtual tokens as theirs, the wrappers around their layers."""
        super().install()
        replace(self.model, {part.base: part for part in self.wrappers()})

    def uninstall(self) -> None:
        """Take both out again."""
        replace(self.model, {part: part.base for part in self.wrappers()})
        super().uninstall()

    def wrappers(self) -> list[Wrapper]:
        """The parts that stand around layers."""
        return [part for part in self.parts.values() if isinstance(part, Wrapper)]

    def file_tensors(self) -> dict[str, Tensor]:
        """All parameters, those of a re-parameterisation too, by the name of their part."""
        own = {f"tokens.{name}": p for name, p in self.tokens.named_parameters()}
        for place, part in self.parts.items():
            if isinstance(part, Wrapper):
                own |= {f"{place}.{name}": p for name, p in part.own_parameters()}
        return {PREFIX + name: p for name, p in own.items()}

    def file_config(self) -> dict[str, Any]:
        """The configs of the parts, by name."""
        return {name: value for name, value in asdict(self.config).items() if name != "modules_to_save"}


def from_file(config: type[C], saved: Mapping[str, Any]) -> C:
    """A config from the fields of a file, in which tuples have become lists."""
    known = {field.name for field in fields(config)}
    return config(**{name: tuple(value) if isinstance(value, list) else value for name, value in saved.items() if name in known})
