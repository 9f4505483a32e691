"""The feed-forward layer: each position thinks for itself.

    plain:  down(act(up(x)))          gated:  down(act(gate(x)) · up(x))      SwiGLU: act = SiLU; GeGLU: act = GELU

Does:     both forms, with ReLU, SiLU, GELU (exact) and its tanh approximation.
Leaves out: mixtures of experts (see moe).
Source:   Hendrycks & Gimpel 2016 (GELU, both forms); Shazeer 2020 (GLU variants).
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "MLP"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,  # x · sigmoid(x)
    "gelu": F.gelu,  # x · Φ(x)
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # GPT-2's: ½x (1 + tanh(√(2/π) (x + 0.044715 x³)))
}


class MLP(nn.Module):
    """Expand to `d_ff` features, bend, come back."""

    def __init__(
        self, d_model: int, d_ff: int, *, activation: str = "silu", gated: bool = True, bias: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.act, self.dropout = ACTIVATIONS[activation], dropout
        self.gate = nn.Linear(d_model, d_ff, bias=bias) if gated else None
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        hidden = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        return self.down(F.dropout(hidden, self.dropout) if self.training else hidden)
