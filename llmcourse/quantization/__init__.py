"""Quantisation: models in 8, 4 and 1.58 bits a weight, and how to train on top of them.

Read the modules in this order: int8, nf4, frozen, linear, models, qlora, trap, bitnet, bits. Each loads when it is first used, so
`from llmcourse import quantization` and then `quantization.nf4.quantize(…)` costs nothing for what is not named.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "BitLinear", "Linear4bit", "Linear8bit", "QuantConfig", "bitnet", "bits", "dequantize_model", "frozen", "gradient_check",
    "guard_bitsandbytes", "int8", "linear", "models", "nf4", "qlora", "quantize_model", "ternary_model", "trap",
]  # fmt: skip

# Names offered here, by the module that has them; every other name is a module.
NAMES = {
    "BitLinear": "bitnet", "Linear4bit": "linear", "Linear8bit": "linear", "QuantConfig": "linear", "dequantize_model": "models",
    "gradient_check": "trap", "guard_bitsandbytes": "trap", "quantize_model": "models", "ternary_model": "models",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{NAMES.get(name, name)}", __name__)
    return getattr(module, name) if name in NAMES else module
