"""Sharded checkpoints: every rank writes its own shards; any number of ranks reads them back.

    directory/  rank-00000-of-00004.safetensors    shards of values (float32 masters, if there are any) and of optimizer moments
                …
                index.json                         vectors (names, shapes), ranks, the optimizer's settings, and `extra`

    saved on 4 ranks   [a a a] [a a a] [b b b] [c 0 0]
    read on 2          [a a a a a a]   [b b b c 0 0 …]      each takes from the old files only what lies in its new shard

Does:     save and load on any number of ranks and in any stage; the same losses afterwards; one state dict out of all files,
          without a process group. The directory gets its name only when all ranks have written all of it. No pickle.
Leaves out: random generators and the data's place (put the step into `extra`); units cut otherwise than when saved; asynchronous
          saving; files on disks that the ranks do not share.
Source:   the reshaping is that of torch.distributed.checkpoint, which pickles its metadata.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import shards
from .flat import Flat
from .zero import Zero

__all__ = ["load", "save", "whole"]

INDEX = "index.json"


def save(strategy: Zero, directory: str | PathLike[str], extra: Mapping[str, Any] | None = None) -> Path:
    """Write the strategy's states; all ranks call it. `extra` is anything that JSON can hold, the same on all ranks.

    Raises:
        ValueError: the directory exists.
        OSError: some rank could not write; nothing is left of the directory then.
    """
    final = Path(directory)
    partial, flat = final.with_name(f".{final.name}.partial"), strategy.flats[0]
    if flat.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    if not _all_agree(not final.exists(), strategy):
        raise ValueError(f"{final} exists already; choose another directory, one for each checkpoint")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        save_file(_own_tensors(strategy), partial / _file(flat.rank, flat.ranks))
        if flat.rank == 0:
            (partial / INDEX).write_text(json.dumps(_index(strategy, extra or {}), indent=1), encoding="utf-8")
        problem = None
    except (OSError, SafetensorError) as error:
        problem = error
    whole = _all_agree(problem is None, strategy)
    if flat.rank == 0:
        partial.rename(final) if whole else shutil.rmtree(partial, ignore_errors=True)
    _all_agree(True, strategy)  # no rank goes on before the directory is there
    if not whole:
        raise OSError(f"could not save {final}: {problem or 'another rank could not write its part'}")
    return final


def load(strategy: Zero, directory: str | PathLike[str]) -> dict[str, Any]:
    """Put a checkpoint's states into the strategy; all ranks call it. Gives back `extra`.

    Raises ValueError if the checkpoint holds other vectors than the strategy has.
    """
    index = _read_index(directory)
    _refuse_another(strategy, index, directory)
    states = {}
    with _Files(directory, index["ranks"]) as files, torch.no_grad():
        for i, (flat, entry) in enumerate(zip(strategy.flats, index["vectors"], strict=True)):
            target = flat.own if flat.master is None else flat.master
            target.copy_(files.shard(f"{i}.value", flat))
            flat.free()
            flat.refresh()
            if flat.master is not None:
                scalars = {name: torch.tensor(value) for name, value in entry["scalars"].items()}
                states[flat.master] = scalars | {name: files.shard(f"{i}.{name}", flat) for name in entry["moments"]}
        for name, buffer in strategy.model.named_buffers():
            buffer.copy_(files.tensor(0, f"buffer.{name}"))
    _load_optimizer(strategy, states, index["groups"])
    return index["extra"]


def whole(directory: str | PathLike[str]) -> dict[str, Tensor]:
    """Values of all parameters and buffers, by name, on this one process. A tied parameter has one entry."""
    index = _read_index(directory)
    found = {}
    with _Files(directory, index["ranks"]) as files:
        for i, entry in enumerate(index["vectors"]):
            parts = [files.tensor(rank, f"{i}.value") for rank in range(index["ranks"])]
            found |= dict(zip(entry["names"], shards.unshard(parts, entry["shapes"]), strict=True))
        found |= {name.removeprefix("buffer."): files.tensor(0, name) for name in files.names(0) if name.startswith("buffer.")}
    return found


# --- what is written -------------------------------------------------------------------------------------------------


def _own_tensors(strategy: Zero) -> dict[str, Tensor]:
    """This rank's shards by vector and kind; buffers, alike on all ranks, in rank 0's file."""
    found = {}
    for i, flat in enumerate(strategy.flats):
        found[f"{i}.value"] = (flat.own if flat.master is None else flat.master.detach()).clone()
        found |= {f"{i}.{name}": moment for name, moment in _state(strategy, flat, scalars=False)}
    if strategy.flats[0].rank == 0:
        found |= {f"buffer.{name}": buffer.clone() for name, buffer in strategy.model.named_buffers()}
    return found


def _state(strategy: Zero, flat: Flat, *, scalars: bool) -> Iterator[tuple[str, Tensor]]:
    """What the optimizer remembers of a vector: numbers for every element, or for all of them together."""
    for name, value in strategy.optimizer.state.get(flat.master, {}).items():
        if isinstance(value, Tensor) and (value.ndim == 0) == scalars:
            yield name, value


def _index(strategy: Zero, extra: Mapping[str, Any]) -> dict[str, Any]:
    settings = [{k: v for k, v in group.items() if k != "params"} for group in strategy.optimizer.param_groups]
    return {
        "ranks": strategy.flats[0].ranks,
        "vectors": [
            {
                **_identity(flat),
                "moments": [name for name, _ in _state(strategy, flat, scalars=False)],
                "scalars": {name: value.item() for name, value in _state(strategy, flat, scalars=True)},
            }
            for flat in strategy.flats
        ],
        "groups": settings,
        "extra": dict(extra),
    }


def _identity(flat: Flat) -> dict[str, Any]:
    """What must be the same when the checkpoint is read."""
    return {"names": flat.names, "shapes": [list(s) for s in flat.shapes], "numel": flat.numel, "trained": flat.trainable}


def _file(rank: int, ranks: int) -> str:
    return f"rank-{rank:05d}-of-{ranks:05d}.safetensors"


def _all_agree(mine: bool, strategy: Zero) -> bool:
    """Whether it is true on all ranks. None goes on before all have asked."""
    answer = torch.tensor(int(mine), device=strategy.flats[0].own.device)
    dist.all_reduce(answer, dist.ReduceOp.MIN, group=strategy.group)
    return bool(answer)


# --- what is read ----------------------------------------------------------------------------------------------------


class _Files:
    """The files of all old ranks, opened when they are first needed; only what is asked for is read."""

    def __init__(self, directory: str | PathLike[str], ranks: int) -> None:
        self.directory, self.ranks = Path(directory), ranks
        self.open: dict[int, Any] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.open.values():
            file.__exit__(None, None, None)

    def _of(self, rank: int) -> Any:
        if rank not in self.open:
            self.open[rank] = safe_open(self.directory / _file(rank, self.ranks), framework="pt").__enter__()
        return self.open[rank]

    def names(self, rank: int) -> Sequence[str]:
        return self._of(rank).keys()

    def tensor(self, rank: int, name: str) -> Tensor:
        return self._of(rank).get_tensor(name)

    def shard(self, name: str, flat: Flat) -> Tensor:
        """The new rank's shard of a vector, put together from the old ranks' shards."""
        nothing = self._of(0).get_slice(name)[:0]
        found = nothing.new_zeros(flat.own.numel())
        for old_rank, source, target in shards.overlaps(flat.numel, self.ranks, flat.rank, flat.ranks):
            found[target] = self._of(old_rank).get_slice(name)[source]
        return found.to(flat.own.device)


def _load_optimizer(strategy: Zero, states: Mapping[Tensor, dict[str, Tensor]], groups: Sequence[Mapping[str, Any]]) -> None:
    """By way of the optimizer's own `load_state_dict`, which knows on which device it wants what."""
    packed, optimizer = strategy.optimizer.state_dict(), strategy.optimizer
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group, saved in zip(packed["param_groups"], groups, strict=True):
        group.update({name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})
    packed["state"] = {i: states[parameter] for i, parameter in enumerate(order) if states[parameter]}
    optimizer.load_state_dict(packed)


def _read_index(directory: str | PathLike[str]) -> dict[str, Any]:
    path = Path(directory) / INDEX
    if not path.exists():
        raise ValueError(f"{directory} holds no sharded checkpoint: {INDEX} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def _refuse_another(strategy: Zero, index: Mapping[str, Any], directory: str | PathLike[str]) -> None:
    here = [_identity(flat) for flat in strategy.flats]
    there = [{name: entry[name] for name in ("names", "shapes", "numel", "trained")} for entry in index["vectors"]]
    for mine, saved in zip(here, there, strict=False):
        if mine != saved:
            differing = next(name for name in mine if mine[name] != saved[name])
            raise ValueError(
                f"{directory} holds other {differing}: {saved[differing]} there, {mine[differing]} here; "
                "load it into the same model, cut into the same units"
            )
    if len(here) != len(there):
        raise ValueError(
            f"{directory} holds {len(there)} vectors, the strategy has {len(here)}; cut the model into the same units"
        )
