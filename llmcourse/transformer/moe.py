"""Mixture of experts: many feed-forward layers, of which each token uses few.

                 ┌─► expert 1 ─┐
    x ─► router ─┼─► expert 4 ─┴─► Σ w_i · expert_i(x)       w: the router's softmax, the k largest rescaled to sum to 1
                 └── 2, 3, 5 …: not computed

    balance loss = n_experts · Σ_i (share of tokens sent to i) · (mean probability of i)     least, k, when all share alike

Does:     Mixtral's layer with gated experts; the load-balancing loss of Switch, for any k, padding left out.
Leaves out: capacity limits and dropped tokens (GShard), router noise, experts on several devices.
Source:   Shazeer et al. 2017 §2.1; Fedus et al. 2021 eq. 4-6; Jiang et al. 2024 §2.1 (Mixtral).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .masks import TokenMask
from .mlp import ACTIVATIONS

__all__ = ["MoE", "load_balancing_loss", "router_logits"]


class MoE(nn.Module):
    """`n_experts` gated MLPs, stacked in two tensors; each token goes through the `top_k` its router likes best."""

    def __init__(self, d_model: int, d_ff: int, n_experts: int, top_k: int = 2, activation: str = "silu") -> None:
        super().__init__()
        self.top_k, self.act = top_k, ACTIVATIONS[activation]
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_ff, d_model) * d_model**-0.5)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_ff) * d_ff**-0.5)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        tokens = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(tokens).float().softmax(-1).topk(self.top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        mixed = torch.zeros_like(tokens)
        for expert in chosen.unique().tolist():
            row, rank = torch.where(chosen == expert)
            gate, up = F.linear(tokens[row], self.gate_up[expert]).chunk(2, -1)
            mixed.index_add_(0, row, F.linear(self.act(gate) * up, self.down[expert]) * weights[row, rank, None])
        return mixed.view_as(x)


@contextmanager
def router_logits(model: nn.Module) -> Iterator[list[Float[Tensor, "tokens experts"]]]:
    """Inside `with`, every pass of the model appends its routers' logits to this list, one tensor a layer."""
    seen: list[Tensor] = []
    routers = [part.router for part in model.modules() if isinstance(part, MoE)]
    hooks = [router.register_forward_hook(lambda _, inputs, logits: seen.append(logits)) for router in routers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def load_balancing_loss(
    logits: Sequence[Float[Tensor, "tokens experts"]], top_k: int, attention_mask: TokenMask | None = None
) -> Float[Tensor, ""]:
    """What to add to the loss, times a small factor, to keep all experts busy; all layers' tokens count alike."""
    p = torch.cat(tuple(logits)).float().softmax(-1)
    sent = torch.zeros_like(p).scatter(1, p.topk(top_k).indices, 1)
    counts = p.new_ones(len(p)) if attention_mask is None else attention_mask.flatten().repeat(len(logits)).to(p)
    share = counts / counts.sum()
    return p.shape[1] * (share @ sent) @ (share @ p)
