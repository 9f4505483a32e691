"""What the strategies share: names of types, torch's collectives whatever they are called, and clipping.

    clip      g ← g · min(1, c / (‖g‖ + 10⁻⁶))                 g: the gradients of the whole model as one vector

Does:     `all_gather` and `reduce_scatter` of single tensors under torch's name of the day; clipping as torch's clip_grad_norm_
          does it, once the norm is known.
Leaves out: the norm: which gradients a rank has alone, and which the others have too, only a strategy knows.
Source:   Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", §3.2.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "ADAMW", "Group", "MakeOptimizer", "all_gather", "check_clip", "clip_and_step", "reduce_scatter", "scale_down", "squares",
    "trained",
]  # fmt: skip

Group = dist.ProcessGroup | None
"""Ranks that work together; None: all."""
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
ADAMW = partial(torch.optim.AdamW, lr=1e-3)

# torch 2.13's names, and those of before.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient. Raises ValueError if there are none."""
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise ValueError("no parameter of the model requires a gradient, so there is nothing to train; unfreeze some")
    return found


def check_clip(clip: float | None) -> None:
    """Raises ValueError for a largest norm that nothing can have."""
    if clip is not None and clip <= 0:
        raise ValueError(f"clip={clip} must be above 0; None leaves gradients as they are")


def squares(gradients: Iterable[Tensor | None], device: torch.device | None = None) -> Float[Tensor, ""]:
    """The sum of the squares of all numbers."""
    start = torch.zeros((), device=device)
    return sum((grad.float().square().sum() for grad in gradients if grad is not None), start=start)


def scale_down(gradients: Iterable[Tensor | None], norm: Float[Tensor, ""], clip: float | None) -> None:
    """Make the gradients, which have this norm all together, no longer than `clip`."""
    if clip is None:
        return
    scale = (clip / (norm + 1e-6)).clamp(max=1)
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(scale)


def clip_and_step(model: nn.Module, optimizer: Optimizer, norm: Float[Tensor, ""], clip: float | None) -> None:
    """Clip the gradients in `.grad`, update, forget them."""
    scale_down((p.grad for p in model.parameters()), norm, clip)
    optimizer.step()
    optimizer.zero_grad()
