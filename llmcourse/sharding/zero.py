"""ZeRO: data parallel without redundant copies. Each rank keeps a 1/N shard of what all of them would hold alike.

                        parameters    gradients    optimizer        a step sends, a rank (Ψ numbers of parameters)
    stage 1             whole         whole        shard            reduce-scatter + all-gather             2 (N-1)/N Ψ
    stage 2             whole         shard        shard            the same, gradients layer by layer      2 (N-1)/N Ψ
    stage 3 (FSDP)      shard         shard        shard            + all-gather again for backward         3 (N-1)/N Ψ

    stage 3, layer i:   shard ─all-gather─► whole ─► forward ─► freed      (layer i+1 is being gathered meanwhile)
                        shard ─all-gather─► whole ─► backward ─► freed;  gradients ─reduce-scatter─► shard ─► AdamW on shards

        strategy = zero.shard(model, lambda shards: torch.optim.AdamW(shards, lr=1e-3), zero.Config(stage=3, clip=1.0))
        model(ids) …; loss.backward()        # any number of times: gradients add up, as always; the loss is the rank's own mean
        norm = strategy.step()               # the gradient's global norm before clipping; gradients are cleared

Does:     stages 1, 2 and 3 for any nn.Module, on CPU and CUDA; bf16 parameters and gradients with float32 masters (2 + 2 + 12
          bytes a parameter); clipping by the global norm, also across tensor-parallel ranks; gradient accumulation; tied, frozen
          and unevenly sized parameters; ranks that start unlike get rank 0's values.
Leaves out: models that do not fit on one rank before they are sharded; optimizers that look across elements (Muon, Adafactor);
          weight decay of some parameters only; float16 (its gradients need loss scaling); ranks that use different parameters in
          one step; offloading. In stage 3 call the model, not its methods: outside, its parameters are NaN (see `gathered`).
Source:   Rajbhandari et al. 2020, "ZeRO", §5 and §7; Zhao et al. 2023, "PyTorch FSDP", §3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from . import shards
from .common import Group, MakeOptimizer, check_clip, scale_down, trained
from .flat import Flat

__all__ = ["Config", "Unit", "Zero", "shard", "units_of"]

ROOT = ""  # the name of the unit that holds whatever no other unit holds


@dataclass(frozen=True, kw_only=True)
class Config:
    """stage: 1, 2 or 3; clip: the largest global norm of the gradient; prefetch: gather the next layer early (stage 3).

    dtype: of parameters, gradients and activations. None leaves them as they are; bfloat16 keeps float32 masters for the update.
    """

    stage: int = 3
    dtype: torch.dtype | None = None
    clip: float | None = None
    prefetch: bool = True

    def __post_init__(self) -> None:
        if self.stage not in (1, 2, 3):
            raise ValueError(f"stage={self.stage} is unknown; choose 1 (optimizer), 2 (+ gradients) or 3 (+ parameters)")
        if self.dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"dtype={self.dtype} is not offered; choose torch.bfloat16 or float32, or None for the model's own")
        check_clip(self.clip)


class Unit:
    """What is gathered and freed together: a layer, or the root, which holds all parameters outside the layers."""

    def __init__(self, name: str, module: nn.Module, flats: list[Flat]) -> None:
        self.name, self.module, self.flats = name, module, flats
        self.in_backward = False

    def gather(self) -> None:
        """Begin to gather all its vectors."""
        for flat in self.flats:
            flat.gather()

    def wait(self) -> None:
        """Have all its vectors."""
        for flat in self.flats:
            flat.wait()

    def free(self, *, frozen_only: bool = False) -> None:
        """Give their memory back, where stage 3 may."""
        for flat in self.flats:
            if not (frozen_only and flat.trainable):
                flat.free()


class Zero:
    """A model whose states are sharded over the ranks of `group`. Made by `shard`; `optimizer` is there for schedules."""

    def __init__(
        self, model: nn.Module, optimizer: MakeOptimizer, config: Config, group: Group,
        units: Mapping[str, nn.Module], norm_group: Group, copies: Callable[[str], int] | None,
    ) -> None:  # fmt: skip
        self.model, self.config, self.group = model, config, group
        self.norm_group, self.copies = norm_group or group, copies
        trained(model)  # refuses a model without any
        self.units = _split(model, units, config, group)
        self.flats = [flat for unit in self.units for flat in unit.flats]
        self.trained = [flat for flat in self.flats if flat.trainable]
        for buffer in model.buffers():
            dist.broadcast(buffer.data, group=group, group_src=0)
        self.optimizer = optimizer([flat.master for flat in self.trained])
        self._running = self._held = False
        self._hooks = [*self._watch_gradients(), *self._watch_units()]
        self._free()

    def step(self) -> Float[Tensor, ""]:
        """Clip, update the shards, spread the new values, clear gradients. Gives the gradient's global norm before clipping."""
        if self.config.stage == 1 and any(p.grad is not None for flat in self.trained for p in flat.parameters):
            self._reduce_rest()
        if all(flat.gradient is None for flat in self.trained):
            raise ValueError("step() found no gradients; call loss.backward() before it, on every rank")
        norm = self.norm()
        scale_down((flat.gradient for flat in self.trained), norm, self.config.clip)
        self._update()
        return norm

    def norm(self) -> Float[Tensor, ""]:
        """The gradient's norm over all shards of all ranks, each parameter counted once."""
        total = torch.stack([self._squares(flat) for flat in self.trained]).sum()
        dist.all_reduce(total, group=self.norm_group)
        return total.sqrt()

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """Whole parameters within, on all ranks at once: to generate, to compare, to save. They are for reading only."""
        for unit in self.units:
            unit.wait()
        self._held = True
        try:
            yield self.model
        finally:
            self._held = False
            self._free()

    def bytes(self) -> dict[str, int]:
        """What this rank holds now: bytes of parameters, gradients, and optimizer states (float32 masters among them)."""
        moments = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.ndim]
        masters = [flat.master for flat in self.trained if flat.master.dtype != flat.own.dtype]
        whole = [p.grad for flat in self.flats for p in flat.parameters if p.grad is not None]
        return {
            "parameters": _storage_bytes([t for flat in self.flats for t in (flat.full, flat.own)]),
            "gradients": _storage_bytes([*whole, *(flat.gradient for flat in self.trained if flat.gradient is not None)]),
            "optimizer": _storage_bytes([*moments, *masters]),
        }

    def remove(self) -> nn.Module:
        """Give the model back whole and on its own, hooks gone."""
        for unit in self.units:
            unit.wait()
        for hook in self._hooks:
            hook.remove()
        return self.model

    # --- the update --------------------------------------------------------------------------------------------------

    def _squares(self, flat: Flat) -> Float[Tensor, ""]:
        if flat.gradient is None:
            return flat.full.new_zeros((), dtype=torch.float32)
        gradient = flat.gradient.float()
        if self.copies is None:
            return gradient.square().sum()
        places = shards.pieces(flat.sizes, flat.rank, flat.ranks)
        parts = zip(flat.names, places, strict=True)
        return torch.stack([gradient[place].square().sum() / self.copies(name) for name, place in parts]).sum()

    def _update(self) -> None:
        for flat in self.trained:
            flat.master.grad = None if flat.gradient is None else flat.gradient.to(flat.master.dtype)
            flat.gradient = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._free()
        for flat in self.trained:
            flat.refresh()

    def _free(self) -> None:
        for unit in self.units:
            unit.free()

    # --- stages 2 and 3: gradients leave as soon as a vector's are complete ------------------------------------------

    def _watch_gradients(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        if self.config.stage > 1:
            for flat in self.trained:
                for parameter in flat.parameters:
                    yield parameter.register_post_accumulate_grad_hook(lambda _, flat=flat: self._arrived(flat))

    def _arrived(self, flat: Flat) -> None:
        self._begin_backward()
        flat.arrived += 1
        if flat.arrived == len(flat.parameters):  # all that used them has run, so they may go too
            self._reduce(flat)
            flat.free()

    def _reduce(self, flat: Flat) -> None:
        for other in self.trained:
            other.settle()  # one sum at a time is on its way, so that only one vector of whole gradients is kept for it
        flat.reduce()

    def _reduce_rest(self) -> None:
        """The sums that no hook has begun, in the same order on all ranks: of unused parameters, and in stage 1 of all."""
        for flat in self.trained:
            if not flat.reduced:
                self._reduce(flat)
        for flat in self.trained:
            flat.settle()
            flat.arrived, flat.reduced = 0, False

    def _begin_backward(self) -> None:
        if not self._running:
            self._running = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def _end_backward(self) -> None:
        self._running = False
        if self.config.stage > 1:
            self._reduce_rest()
        for unit in self.units:
            unit.in_backward = False
            unit.free()

    # --- stage 3: layers are gathered before they run, and freed after -----------------------------------------------

    def _watch_units(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        if self.config.stage == 3:
            for unit in self.units:
                yield unit.module.register_forward_pre_hook(lambda *_, unit=unit: self._before_forward(unit))
                yield unit.module.register_forward_hook(lambda _, __, out, unit=unit: self._after_forward(unit, out))

    def _before_forward(self, unit: Unit) -> None:
        unit.wait()
        if not unit.in_backward:  # within backward this is activation checkpointing running a layer again
            self._prefetch(unit, +1)

    def _after_forward(self, unit: Unit, out: object) -> None:
        if unit.in_backward:
            return
        for tensor in tree_leaves(out) if torch.is_grad_enabled() else ():
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._before_backward(unit))
        needed = unit.name == ROOT and torch.is_grad_enabled()  # at once, when backward begins
        if not (needed or self._held):
            unit.free()

    def _before_backward(self, unit: Unit) -> None:
        self._begin_backward()
        unit.in_backward = True
        for other in self.units:
            if other is not unit and other.in_backward and other.name != ROOT:
                other.free(frozen_only=True)  # no gradient of theirs will say that they are done; this layer's turn does
        unit.wait()
        self._prefetch(unit, -1)

    def _prefetch(self, unit: Unit, way: int) -> None:
        """Begin to gather the layer that runs next. The root, first in the list, runs first forward and last backward."""
        place = self.units.index(unit)
        following = len(self.units) - 1 if unit.name == ROOT and way < 0 else place + way
        if self.config.prefetch and 0 < following < len(self.units):
            self.units[following].gather()


def shard(
    model: nn.Module, optimizer: MakeOptimizer, config: Config | None = None, *, group: Group = None,
    units: Mapping[str, nn.Module] | None = None, norm_group: Group = None,
    copies: Callable[[str], int] | None = None,
) -> Zero:  # fmt: skip
    """Shard the model's states over the ranks of `group` (None: all). The model itself is changed, and is called as before.

    optimizer(shards) makes an optimizer for this rank's shards; it must be one that treats every element alone, as AdamW and SGD
    do. units: the layers to gather one by one, by name, in the order in which they run (default: `units_of(model)`).

    With tensor parallelism, `group` is the data-parallel one, and the global norm needs two more things: norm_group, all ranks
    that hold any part of the model, and copies(name), how many of its tensor-parallel ranks hold that parameter alike.

    Raises:
        ValueError: nothing to train; a unit that is not part of the model.
    """
    return Zero(model, optimizer, config or Config(), group, units_of(model) if units is None else units, norm_group, copies)


def units_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers: items of the outermost module lists, by name."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return {f"{name}.{i}": layer for name in outer for i, layer in enumerate(model.get_submodule(name))}


def _split(
    model: nn.Module, units: Mapping[str, nn.Module], config: Config, group: Group
) -> list[Unit]:  # fmt: skip
    """The root and the units, each with its parameters in flat vectors; a parameter that two of them share is the root's."""
    for name, module in units.items():
        if dict(model.named_modules()).get(name) is not module:
            raise ValueError(f"unit {name!r} is not a module of that name in the model; see zero.units_of(model)")
    owners: dict[nn.Parameter, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((unit for unit in units if name.startswith(f"{unit}.")), ROOT)
        owners.setdefault(parameter, set()).add(owner)
    kinds: dict[str, dict[tuple, dict[str, nn.Parameter]]] = {name: {} for name in (ROOT, *units)}
    for name, parameter in model.named_parameters():
        owner = min(owners[parameter]) if len(owners[parameter]) == 1 else ROOT
        kinds[owner].setdefault((parameter.requires_grad, parameter.dtype), {})[name] = parameter
    modules = {ROOT: model, **units}
    flats = {name: [Flat(kind, config.stage, config.dtype, group) for kind in kinds[name].values()] for name in modules}
    return [Unit(name, module, flats[name]) for name, module in modules.items()]


def _storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the memory behind the tensors, shared memory once."""
    storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())
