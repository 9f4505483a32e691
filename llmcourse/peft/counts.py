"""What an adapter costs: trained numbers, their share of the model, bytes on disk.

    share = trained / (all of the base + what was added)          bytes = the two files that `save` writes

Does:     counts of an attached adapter, of any method; counts from a model's own flags, for full fine-tuning.
Leaves out: time and memory (they are measured, not counted).
Source:   the counts are HF peft's `get_nb_trainable_parameters`.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .interface import Handle

__all__ = ["Summary", "summary", "trainable"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One adapter in numbers."""

    method: str
    name: str
    trained: int
    total: int
    file_bytes: int

    @property
    def percent(self) -> float:
        """How much of everything is trained."""
        return 100 * self.trained / self.total

    def __str__(self) -> str:
        share = f"{self.trained:,} of {self.total:,} parameters trained ({self.percent:.3f} %)"
        return f"{self.method}: {share}, {self.file_bytes:,} bytes"


def summary(handle: Handle) -> Summary:
    """Count an attached adapter; the file's size is that of the files `save` would write, weighed in a temporary folder."""
    trained = sum(p.numel() for p in handle.parameters())
    with tempfile.TemporaryDirectory() as folder:
        handle.save(folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return Summary(method=handle.method, name=handle.name, trained=trained, total=trainable(handle.model)[1], file_bytes=size)


def trainable(model: nn.Module) -> tuple[int, int]:
    """Trainable parameters of a model and all of them, shared ones once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
