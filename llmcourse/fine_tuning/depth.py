"""How deep to fine-tune: the head alone, the last k layers, or everything, each layer at its own rate.

    depth
      0   head             ▲ learns          learning rate   lr
      0   final norm       ▲                                 lr
      0   layer n-1        ▲                                 lr
      1   layer n-2        ▲ last 2 layers                   lr · decay
      2   layer n-3        ─ frozen                          lr · decay²
      …   …
      n   embeddings       ─ frozen                          lr · decayⁿ

Does:     names the groups of any model built of stacked blocks (Llama, BERT, T5, GPT-2, our Transformer, and a classifier around
          one); freezes and unfreezes them; AdamW with a rate for each depth, for `train.fit`.
Leaves out: unfreezing layer by layer as training goes on (call `train_only` between two fits); parts of a layer (see forgetting).
Source:   Devlin et al. 2019 §5.3 (feature-based); Howard & Ruder 2018 §3.2 (rates that fall with depth).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from llmcourse.train import TrainConfig

__all__ = ["Stack", "discriminative", "groups", "head_only", "last_layers", "stacks", "train_all", "train_only"]


@dataclass(frozen=True)
class Stack:
    """A pile of equal blocks: the name of the list that holds them, and how many."""

    name: str
    blocks: int

    @property
    def parent(self) -> str:
        """The dotted name of the module that holds the list, with its dot; "" at the root."""
        return self.name.rpartition(".")[0] + "." if "." in self.name else ""


def stacks(model: nn.Module) -> list[Stack]:
    """The outermost lists of blocks, in order: one, or an encoder's and a decoder's.

    Raises: ValueError for a model without any.
    """
    found: list[Stack] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(stack.name + ".") for stack in found)
        if isinstance(module, nn.ModuleList) and not inside and any(True for _ in module.parameters()):
            found.append(Stack(name, len(module)))
    if not found:
        raise ValueError(f"{type(model).__name__} holds no list of blocks (nn.ModuleList), so it has no depth to speak of")
    return found


def groups(model: nn.Module) -> dict[str, list[str]]:
    """The parameters' names from bottom to top: "embeddings", "layer 0" …, "final norm", "head".

    With two stacks the layers are "encoder layer 0" …, "decoder layer 0" …. A matrix used twice belongs to the lower place, so a
    language model tied to its embedding has no "head". Raises: ValueError as `stacks` does.
    """
    piles = stacks(model)
    labels = _labels(model, piles)
    found: dict[str, list[str]] = {"embeddings": []}
    for stack in piles:
        found |= {f"{labels[stack.name]}layer {i}": [] for i in range(stack.blocks)}
    found |= {"final norm": [], "head": []}
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        found[_group(model, name, names, piles, labels)].append(name)
    return {group: members for group, members in found.items() if members}


def train_only(model: nn.Module, chosen: Iterable[str]) -> list[str]:
    """Unfreeze exactly the groups of these names and freeze the rest; returns the names of the parameters that now learn.

    A frozen parameter has no gradient, so no optimizer moves it, neither by momentum nor by weight decay.
    Raises: ValueError for a group that the model has not, with the nearest name.
    """
    members, chosen = groups(model), list(chosen)
    for group in chosen:
        if group not in members:
            near = difflib.get_close_matches(group, members, n=1, cutoff=0)
            raise ValueError(
                f"no group {group!r} in {type(model).__name__}; did you mean {near[0]!r}? It has {', '.join(members)}"
            )
    learning = {name for group in chosen for name in members[group]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
        parameter.grad = None  # one left from before would still be applied
    return sorted(learning)


def head_only(model: nn.Module) -> list[str]:
    """Feature-based: everything below the head stays as it is. Raises: ValueError where there is no head of its own."""
    return train_only(model, ["head"])


def last_layers(model: nn.Module, k: int) -> list[str]:
    """The last k blocks (of every stack), what follows them, and the head. Raises: ValueError for k outside 0 … blocks."""
    blocks = max(stack.blocks for stack in stacks(model))
    if not 0 <= k <= blocks:
        raise ValueError(f"k={k} layers of {blocks}; choose 0–{blocks}")
    depths = _depths(model)
    return train_only(model, [group for group, depth in depths.items() if depth < k or (depth == 0 and "layer" not in group)])


def train_all(model: nn.Module) -> list[str]:
    """Everything learns."""
    return train_only(model, groups(model))


def discriminative(decay: float) -> Callable[[nn.Module, TrainConfig], Optimizer]:
    """For `fit(optimizer=…)`: AdamW whose rate is lr · decay^depth; decay=1 is plain AdamW. Frozen parameters are left out.

    Raises: ValueError for a decay outside 0 … 1, 0 excluded.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay}; choose a value above 0, at most 1 (2.6⁻¹ ≈ 0.38 is Howard and Ruder's)")

    def make(model: nn.Module, config: TrainConfig) -> Optimizer:
        depths, weights = _depths(model), dict(model.named_parameters())
        made = []
        for group, names in groups(model).items():
            learning = [weights[name] for name in names if weights[name].requires_grad]
            for decays in (True, False):
                own = [p for p in learning if (p.ndim >= 2) == decays]
                rate = {"lr": config.lr * decay ** depths[group], "weight_decay": config.weight_decay * decays}
                made += [{"params": own, **rate}] if own else []
        return torch.optim.AdamW(made, lr=config.lr, betas=config.betas, fused=True)

    return make


def _depths(model: nn.Module) -> dict[str, int]:
    """How far each group lies below the top of its stack; the embeddings below all."""
    piles = stacks(model)
    labels = _labels(model, piles)
    found = {f"{labels[stack.name]}layer {i}": stack.blocks - 1 - i for stack in piles for i in range(stack.blocks)}
    found["embeddings"] = max(stack.blocks for stack in piles)
    return {group: found.get(group, 0) for group in groups(model)}


def _labels(model: nn.Module, piles: list[Stack]) -> dict[str, str]:
    """What goes before "layer i". Of two stacks the one under an `encoder` is the encoder, the other the decoder."""
    if len(piles) == 1:
        return {piles[0].name: ""}
    if len(piles) == 2:
        first = "encoder" in piles[0].name.split(".") or "encoder" not in piles[1].name.split(".")
        return dict(
            zip((pile.name for pile in piles), ("encoder ", "decoder ") if first else ("decoder ", "encoder "), strict=True)
        )
    raise ValueError(
        f"{type(model).__name__} holds {len(piles)} lists of blocks: {', '.join(pile.name for pile in piles)}; 1 or 2 fit"
    )


def _group(model: nn.Module, name: str, names: list[str], piles: list[Stack], labels: dict[str, str]) -> str:
    for stack in piles:
        if name.startswith(stack.name + "."):
            return f"{labels[stack.name]}layer {name[len(stack.name) + 1 :].split('.')[0]}"
    near = max((pile for pile in piles if name.startswith(pile.parent)), key=lambda pile: len(pile.parent), default=piles[0])
    first = next(i for i, other in enumerate(names) if other.startswith(near.name + "."))
    if names.index(name) < first:
        return "embeddings"
    owner = name.rpartition(".")[0]
    beside = owner.rpartition(".")[0] == near.parent.rstrip(".")
    return "final norm" if beside and "Norm" in type(model.get_submodule(owner)).__name__ else "head"
