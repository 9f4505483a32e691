"""One model, many devices: the same training run, its bytes and its work shared among ranks.

Read the modules in this order: collectives, shards, counting, common, ddp, flat, zero, checkpoint; then tensor, pipeline,
recompute, mesh; then plan, launch, scripts and speed. Each loads when it is first used, so `from llmcourse import sharding` and
then `sharding.zero.shard(…)` costs nothing for what is not named.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "checkpoint", "collectives", "common", "counting", "ddp", "flat", "launch", "mesh", "pictures", "pipeline", "plan",
    "recompute", "scripts", "shards", "speed", "tensor", "zero",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{name}", __name__)
