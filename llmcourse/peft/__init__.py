"""Parameter-efficient fine-tuning: small trained parts on a frozen model, one file a method, one interface for all.

Read the modules in this order: wrapping, files, interface, lora, dora, ia3, bitfit, adapters, counts; then virtual_tokens,
prompt_tuning, p_tuning, prefix, p_tuning_v2, and combined, mam, unipelt, hybrid; at last contest, grid, pictures, where all are
compared. Each loads when it is first used, so `from llmcourse import peft` and then `peft.lora.attach(…)` costs nothing for the
methods not named.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "adapters", "attached", "bitfit", "choose_rows", "contest", "counts", "dora", "files", "grid", "hybrid", "ia3", "interface",
    "load", "lora", "mam", "p_tuning", "p_tuning_v2", "pictures", "prefix", "prompt_tuning", "summary", "unipelt",
]  # fmt: skip

# Functions offered here, by the module that has them; every other name is a module.
FUNCTIONS = {"attached": "interface", "choose_rows": "interface", "load": "interface", "summary": "counts"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{FUNCTIONS.get(name, name)}", __name__)
    return getattr(module, name) if name in FUNCTIONS else module
