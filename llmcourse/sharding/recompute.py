"""Activation checkpointing: forget what the forward pass computed, and compute it again when the backward pass needs it.

    ordinary       x ─► block ─► y          kept for the backward pass: every tensor on the way
    recomputed     x ─► block ─► y          kept: x
                   x ─► block again ◄─ dy   one more forward pass: a third more work, for memory that hardly grows with the depth

The trick is to save slips instead of tensors. Autograd hands each tensor it wants to keep to a hook; we keep only its number.
When the backward pass presents the first slip, the block runs again, in the same order, and this time the tensors are real.

Does:     any function of tensors, with the random numbers (dropout) and the autocast state of the first run; every k-th block of
          a model; several outputs, inputs without gradient, nested use; the bytes a function keeps, measured.
Leaves out: offloading to the CPU; choosing single operations (torch's selective checkpointing); functions whose second run
          differs from the first (they are refused when the number of tensors differs).
Source:   Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", §3; torch.utils.checkpoint (use_reentrant=False).
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["attach", "checkpoint", "detach", "saved_bytes"]


def checkpoint(function: Callable, *args: Any) -> Any:
    """The function's output, with nothing kept for the backward pass but the arguments.

    The function must do the same when it runs again: no state of its own that it changes. Messages to other ranks are sent again.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    slips, again = _Slips(), partial(_run_again, function, _Inputs(args), _surroundings(args))
    with saved_tensors_hooks(slips.hand_out, partial(slips.redeem, again)):
        return function(*args)


class _Inputs:
    """The arguments, their tensors in autograd's keeping: hooks around the checkpoint see them, and so do checks for changes."""

    def __init__(self, args: tuple) -> None:
        leaves, self.shape = tree_flatten(args)
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.keeper = _Keep.apply(torch.empty(0, requires_grad=True), *(leaves[i] for i in self.places)).grad_fn

    def detached(self) -> tuple:
        """The arguments for a second run, cut off from the graph that made them."""
        leaves = list(self.leaves)
        for i, tensor in zip(self.places, self.keeper.saved_tensors, strict=True):
            leaves[i] = tensor.detach().requires_grad_(tensor.requires_grad)
        return tree_unflatten(leaves, self.shape)


class _Keep(torch.autograd.Function):
    """Saves its inputs and computes nothing."""

    @staticmethod
    def forward(ctx, anchor, *tensors):
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError("nothing is computed here, so no gradient can arrive")


class _Slips:
    """Numbers for tensors: given out in the first run, redeemed in the backward pass after one more run."""

    def __init__(self) -> None:
        self.given, self.tensors = 0, {}

    def hand_out(self, tensor: Tensor) -> int:
        self.given += 1
        return self.given - 1

    def redeem(self, again: Callable[[], list[Tensor]], slip: int) -> Tensor:
        """The tensor of that number; popped, so that it is freed as soon as it has been used."""
        if slip not in self.tensors:
            found = again()
            if len(found) != self.given:
                raise ValueError(f"the second run kept {len(found)} tensors, the first {self.given}: it is not repeatable")
            self.tensors = dict(enumerate(found))
        return self.tensors.pop(slip)


def _run_again(function: Callable, inputs: _Inputs, surroundings: Callable[[], AbstractContextManager]) -> list[Tensor]:
    """What autograd keeps in a second run, in order. Its graph is thrown away: the first run's is the one in use."""
    found: list[Tensor] = []
    args = inputs.detached()
    keep = saved_tensors_hooks(lambda tensor: found.append(tensor.detach()), lambda _: None)
    with surroundings(), torch.enable_grad(), keep:
        function(*args)
    return found


def _surroundings(args: Iterable[Any]) -> Callable[[], AbstractContextManager]:
    """The present random state and autocast, to be entered again later."""
    device = next((leaf.device for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor)), torch.device("cpu"))
    cuda = [device.index] if device.type == "cuda" else []
    cpu_state, cuda_states = torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in cuda]
    options = {"enabled": torch.is_autocast_enabled(device.type), "dtype": torch.get_autocast_dtype(device.type)}

    @contextmanager
    def enter():
        with torch.random.fork_rng(cuda), torch.autocast(device.type, **options):
            torch.set_rng_state(cpu_state)
            for i, state in zip(cuda, cuda_states, strict=True):
                torch.cuda.set_rng_state(state, i)
            yield

    return enter


def attach(model: nn.Module, every: int = 1) -> nn.Module:
    """Recompute each `every`-th block of `model.blocks`, in place; the names of the weights stay as they are.

    Where a strategy changes the model (tensor parallelism does), it comes first.

    Raises:
        ValueError: `every` below 1, or a model without blocks.
    """
    blocks = getattr(model, "blocks", None)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no `blocks` to recompute; use `checkpoint` where it calls its parts")
    if every < 1:
        raise ValueError(f"every={every} must be at least 1: each block, each second one …")
    detach(model)
    for block in list(blocks)[::every]:
        block.forward = partial(checkpoint, block.forward)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Keep activations again."""
    for block in model.blocks:
        block.__dict__.pop("forward", None)
    return model


def saved_bytes(function: Callable, *args: Any, besides: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps while the function has run and its backward pass has not; each piece of memory counts once.

    Parameters are not counted (they are there anyway), nor is what `besides` lists.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        owner = tensor if tensor._base is None else tensor._base  # a linear layer keeps its weight's transpose, a view
        if not isinstance(owner, nn.Parameter) and storage.data_ptr() not in seen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        output = function(*args)
    del output
    return sum(kept.values())
