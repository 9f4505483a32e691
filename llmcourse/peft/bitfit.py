"""BitFit: train the biases, freeze everything else.

    y = W x + b          only b learns: about one parameter in a thousand

Does:     all biases of the model, or those of chosen modules; the old ones come back on `disable` and `detach`.
Leaves out: adding biases to a model that has none (Llama and T5 have none).
Source:   Ben Zaken et al. 2022, "BitFit".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from . import interface
from .interface import Handle, base_parameters, find

__all__ = ["BitFit", "Config", "attach", "config_from_file"]


@dataclass(frozen=True, kw_only=True)
class Config(interface.Config):
    """targets: the modules whose biases are trained, by name endings or as a regex; None: all of them."""

    targets: str | tuple[str, ...] | None = None


class BitFit(Handle):
    """An attached BitFit adapter: no new parts, only the base's own biases, tuned in place."""

    method, peft_type, own_format, mergeable = "bitfit", "BITFIT", True, True
    config: Config

    def build(self) -> dict[str, nn.Module]:
        """Nothing is added to the model."""
        return {}

    def tuned_names(self) -> list[str]:
        """The biases, by name."""
        named = self.config.targets
        inside = None if named is None else set(find(self.model, named))
        names = [name for name, _ in base_parameters(self.model) if name.split(".")[-1] == "bias"]
        chosen = [name for name in names if inside is None or name.rpartition(".")[0] in inside]
        chosen = [name for name in chosen if not any(name.startswith(f"{head}.") for head in self.heads)]
        if not chosen:
            where = f"this {type(self.model).__name__}" if inside is None else f"the modules named {named!r}"
            raise ValueError(f"{where} has no biases to train, so BitFit cannot learn anything; choose LoRA or IA³ instead")
        return chosen

    def file_tensors(self) -> dict[str, Tensor]:
        """Nothing but the biases, which the interface adds."""
        return {}

    def file_config(self) -> dict[str, Any]:
        """The targets."""
        named = self.config.targets
        return {"target_modules": list(named) if isinstance(named, tuple) else named}


def attach(model: nn.Module, config: Config | None = None, name: str = "default") -> BitFit:
    """Freeze everything but the biases.

    Raises:
        ValueError: a model without biases, a target that matches nothing, or biases that another adapter trains already.
    """
    return BitFit(model, config or Config(), name)


def config_from_file(fields: Mapping[str, Any]) -> Config:
    """The settings in an `adapter_config.json`."""
    named = fields["target_modules"]
    return Config(targets=tuple(named) if isinstance(named, list) else named, modules_to_save=interface.heads_from_file(fields))
