"""Loss spikes: notice one, go back to a checkpoint from before it, leave the batches around it out.

    loss                        ╱│ spike: loss > median + threshold · 1.4826 · MAD of the last `window` losses, or not finite
     ‾‾╲____╱╲___╱╲____________╱ │
              ▲ checkpoint    └──┘ `skip` batches left out
              └── from here once more, with the batches that come after

Does:     decides what a spike is; counts batches past those left out. `fit` does the rest, and logs it in `History.recoveries`.
Leaves out: spikes so slow that the median follows them; looking for what is wrong with a batch.
Source:   Chowdhery et al. 2022 (PaLM) §5.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from llmcourse.train.settings import Recovery

__all__ = ["batch_number", "is_spike"]


def is_spike(loss: float, before: Sequence[float], recovery: Recovery) -> bool:
    """Whether `loss` is out of the ordinary after the losses `before`."""
    if not math.isfinite(loss):
        return True
    recent = before[-recovery.window :]
    if len(recent) < recovery.window // 2:
        return False
    middle = median(recent)
    spread = 1.4826 * median(abs(x - middle) for x in recent)
    return loss > middle + recovery.threshold * max(spread, 0.01 * abs(middle))  # losses that hardly vary would make all a spike


def batch_number(step: int, recoveries: Sequence[dict[str, Any]]) -> int:
    """The number of the batch for update `step`: batches left out are passed over, those after them move up."""
    number = step
    for left_out in sorted({n for recovery in recoveries for n in recovery["skipped"]}):
        if number >= left_out:
            number += 1
    return number
