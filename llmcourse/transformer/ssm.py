"""Selective state spaces (Mamba): a memory of fixed size in place of a growing cache of keys and values.

    h_t = exp(Δ_t A) · h_{t−1} + Δ_t B_t x_t        y_t = C_t · h_t + D x_t        Δ_t, B_t, C_t: linear in x_t ("selective")

    x ─► in ─┬─► causal convolution ─► SiLU ─► selective scan ─► · ─► out ─► y
             └─► gate ─► SiLU ───────────────────────────────────┘

A step costs the same however long the past is: a text's cost grows with its length, attention's with the length squared.

Does:     the Mamba block for whole texts, chunks and single steps, with the state handed on; the scan in parallel (about 2 log₂ n
          vectorised rounds, 3 n multiply-adds) and, proven equal, as the recurrence above.
Leaves out: the fused kernel that never stores h (memory here is seq · d_inner · d_state), padding, the stack of blocks, Mamba 2.
Source:   Gu & Dao 2023, eq. 2a and algorithm 2; Blelloch 1990 §1.4 (scan).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Mamba", "parallel_scan", "recurrence", "selective_scan"]

States = Float[Tensor, "batch seq d_inner d_state"]
MambaState = tuple[Float[Tensor, "batch window d_inner"], Float[Tensor, "batch d_inner d_state"]]
"""All that is kept of the past: the convolution's last inputs, and h."""


def recurrence(decay: States, inflow: States) -> States:
    """h_t = decay_t · h_{t−1} + inflow_t from h = 0, one step after the other."""
    h, states = torch.zeros_like(inflow[:, 0]), []
    for a, b in zip(decay.unbind(1), inflow.unbind(1), strict=True):
        h = a * h + b
        states.append(h)
    return torch.stack(states, 1)


def parallel_scan(decay: States, inflow: States) -> States:
    """The same, all places at once: join each even step with the odd one behind it, solve that half, fill in the even places."""
    if inflow.shape[1] == 1:
        return inflow
    (a_even, a_odd), (b_even, b_odd) = ((x[:, ::2], x[:, 1::2]) for x in (decay, inflow))
    n = a_odd.shape[1]
    odd = parallel_scan(a_odd * a_even[:, :n], torch.addcmul(b_odd, a_odd, b_even[:, :n]))
    states = inflow.clone()  # the first state is the first inflow
    states[:, 1::2] = odd
    states[:, 2::2].addcmul_(a_even[:, 1:], odd[:, : a_even.shape[1] - 1])
    return states


def selective_scan(
    x: Float[Tensor, "batch seq d_inner"], delta: Float[Tensor, "batch seq d_inner"], A: Float[Tensor, "d_inner d_state"],
    B: Float[Tensor, "batch seq d_state"], C: Float[Tensor, "batch seq d_state"], D: Float[Tensor, " d_inner"],
    h: Float[Tensor, "batch d_inner d_state"] | None = None, scan: Callable[[Tensor, Tensor], Tensor] = parallel_scan,
) -> tuple[Float[Tensor, "batch seq d_inner"], Float[Tensor, "batch d_inner d_state"]]:  # fmt: skip
    """y, and the last state h, computed in float32 whatever the dtype outside; goes on from `h` if given."""
    decay = (delta[..., None] * A.float()).exp()
    inflow = (delta.float() * x)[..., None] * B[:, :, None]
    if h is not None:
        inflow[:, 0] += decay[:, 0] * h
    states = scan(decay, inflow)
    return torch.einsum("bsdn,bsn->bsd", states, C.float()).to(x.dtype) + D * x, states[:, -1]


class Mamba(nn.Module):
    """The block that stands where attention and MLP stand in a transformer; its weights have transformers' names."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None) -> None:
        super().__init__()
        d_inner, dt_rank = expand * d_model, dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        delta = torch.empty(d_inner).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_proj.bias.data = delta.expm1().log()  # softplus gives back delta: memories from 10 to 1000 steps long

    def forward(
        self, x: Float[Tensor, "batch seq d_model"], state: MambaState | None = None
    ) -> tuple[Float[Tensor, "batch seq d_model"], MambaState]:
        """Output and the state behind the last place; give it to the next call, whose `seq` may be 1, to go on from there."""
        x, gate = self.in_proj(x).chunk(2, -1)
        reach = self.conv1d.kernel_size[0] - 1
        past, h = state or (x.new_zeros(len(x), reach, x.shape[-1]), None)
        past = torch.cat((past, x), 1)
        x = F.silu(self.conv1d(past.mT).mT)
        y, h = selective_scan(x, *self._select(x), self.D, h)
        return self.out_proj(y * F.silu(gate)), (past[:, past.shape[1] - reach :], h)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Δ, A, B, C: how much to take in, how fast to forget, what to write, what to read."""
        d_state = self.A_log.shape[1]
        dt, B, C = self.x_proj(x).split((self.dt_proj.in_features, d_state, d_state), -1)
        return F.softplus(self.dt_proj(dt)), -self.A_log.float().exp(), B, C
