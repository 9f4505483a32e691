"""Checkpoints that survive `kill -9`: write aside, sync, rename; verify by checksum; resume exactly.

    directory/step-00000100/  model.safetensors   trainable parameters and buffers
                              state.safetensors   optimizer moments, random generators
                              state.json          everything that is not a tensor
                              SHA256SUMS          `sha256sum -c` agrees

Does:     newest whole checkpoint wins, damaged ones are named and passed over; another run's checkpoint is refused.
Leaves out: frozen parameters (compared, not saved); two processes writing into one directory; pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmcourse.train import random_state
from llmcourse.train.settings import History, TrainConfig

if TYPE_CHECKING:
    from llmcourse.train.loop import Run

__all__ = ["CheckpointError", "Checkpoints"]


class CheckpointError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are intact and the run can be resumed from them."""


class Checkpoints:
    """The checkpoints of one directory. A folder gets its final name only once everything in it is on the disk."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep
        self.latest: Path | None = None

    def prepare(self, *, fresh: bool) -> None:
        """Make the directory, and clear what a killed run left half-written (all of it when `fresh`)."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for leftover in self.directory.glob(".step-*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in self._all() if fresh else ():
            _discard(path)

    def _all(self) -> list[Path]:
        """Finished checkpoints, newest first."""
        return sorted((p for p in self.directory.iterdir() if re.fullmatch(r"step-\d{8,}", p.name)), key=_step_of, reverse=True)

    def restore(self, run: Run) -> bool:
        """Load the newest whole checkpoint into `run`; False when there is none. Damaged ones are passed over with a warning."""
        for path in self._all():
            damage = _damage(path)
            if damage is None:
                _load(path, run)
                self.latest = path
                return True
            warnings.warn(f"skipping the damaged checkpoint {path}: {damage}", stacklevel=4)
        if self._all():
            warnings.warn(f"no whole checkpoint is left in {self.directory}: the run begins anew", stacklevel=4)
        return False

    def go_back(self, run: Run, step: int) -> bool:
        """Load the newest whole checkpoint that holds no update from `step` on (else the oldest), and remove all after it."""
        whole = [path for path in self._all() if _damage(path) is None]
        if not whole:
            return False
        self.latest = next((path for path in whole if _step_of(path) <= step), whole[-1])
        _load(self.latest, run)
        for path in self._all():
            if _step_of(path) > _step_of(self.latest):
                _discard(path)
        return True

    def save(self, run: Run) -> None:
        """Write the checkpoint of `run`, then remove those too old to keep."""
        final = self.directory / f"step-{run.history.steps:08d}"
        if final == self.latest:
            return
        partial = self.directory / f".{final.name}-{uuid.uuid4().hex[:8]}.partial"
        try:
            _write(partial, run)
            _discard(final)  # exists only where a damaged one was passed over
            _rename(partial, final)
            _sync_folder(self.directory)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not _is_disk_error(error):
                raise
            raise CheckpointError(self._explain(error, final)) from None
        self.latest = final
        self._prune()

    def _explain(self, error: Exception, final: Path) -> str:
        intact = f"{self.latest} is intact" if self.latest else "no earlier checkpoint exists"
        return (
            f"could not save {final}: {error}. The unfinished files are removed; {intact}. "
            "Free some disk space (or choose another directory) and call fit again with the same directory to go on from there."
        )

    def _prune(self) -> None:
        """Keep the newest few. What is numbered above the one just saved was damaged, or we had resumed from it."""
        assert self.latest is not None
        newest = _step_of(self.latest)
        older = [path for path in self._all() if _step_of(path) < newest]
        newer = [path for path in self._all() if _step_of(path) > newest]
        for path in newer + older[self.keep - 1 :]:
            _discard(path)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _write(folder: Path, run: Run) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    tensors: dict[str, Tensor] = {}
    state = _pack(_state(run), tensors, "")
    save_file(_separate(_saved_tensors(run.model)), folder / "model.safetensors")
    save_file(_separate(tensors), folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    sums = "".join(f"{_sha256(folder / name)}  {name}\n" for name in ("model.safetensors", "state.safetensors", "state.json"))
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8", newline="\n")
    for path in folder.iterdir():
        _sync_file(path)
    _sync_folder(folder)


def _state(run: Run) -> dict[str, Any]:
    return {
        "config": _identity(run.config),
        "optimizer_names": [type(o).__name__ for o in run.optimizers],
        "frozen": _fingerprint(run.model),
        "history": asdict(run.history),
        "optimizers": [o.state_dict() for o in run.optimizers],
        "scaler": run.scaler.state_dict(),
        "generators": random_state.get_state(),
    }


def _load(path: Path, run: Run) -> None:
    from safetensors.torch import load_file

    saved = load_file(path / "model.safetensors")
    # clone: load_file maps the file into memory, and the optimizer would keep using a file that is to be pruned
    tensors = {name: tensor.clone() for name, tensor in load_file(path / "state.safetensors").items()}
    state = _unpack(json.loads((path / "state.json").read_text(encoding="utf-8")), tensors)
    _refuse_another(path, run, state, saved)
    with torch.no_grad():
        for name, tensor in _saved_tensors(run.model).items():
            tensor.copy_(saved[name])
    for optimizer, packed in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(packed)
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(state["scaler"])
    run.history = History(**state["history"])
    random_state.set_state(state["generators"])


def _refuse_another(path: Path, run: Run, state: dict[str, Any], saved: dict[str, Tensor]) -> None:
    ways = "Choose another directory, or resume=False to delete the old run and start anew."
    defaults = {field.name: field.default for field in fields(TrainConfig)}  # an older llmcourse knew fewer fields
    for name, now in _identity(run.config).items():
        then = state["config"].get(name, defaults[name])
        if then != now:
            raise ValueError(f"{path} was made with {name}={then!r}, this config has {now!r}. {ways}")
    names = [type(o).__name__ for o in run.optimizers]
    if state["optimizer_names"] != names:
        raise ValueError(f"{path} was made with the optimizers {state['optimizer_names']}, this run has {names}. {ways}")
    for name, (now, then) in _pairs(_saved_tensors(run.model), saved).items():
        if now != then:
            raise ValueError(f"{path} holds another model: {name} is {then} there and {now} here. {ways}")
    if state["frozen"] != _fingerprint(run.model):
        raise ValueError(f"{path} was made with other frozen weights than this model has; load the same ones. {ways}")


def _pairs(here: dict[str, Tensor], there: dict[str, Tensor]) -> dict[str, tuple[str, str]]:
    def describe(tensors: dict[str, Tensor], name: str) -> str:
        return f"{tensors[name].dtype} {list(tensors[name].shape)}" if name in tensors else "absent"

    return {name: (describe(here, name), describe(there, name)) for name in [*here, *there]}


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The fields that decide the numbers of a run; those on how it is watched and saved may change between sittings."""
    free = {"recover", "device", "evaluate_every", "checkpoint_every", "keep", "bar"}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items() if name not in free}


def _saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training can change, each once: tied parameters have one entry, and loading in place keeps them tied."""
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return trainable | {name: b.detach() for name, b in model.named_buffers()}


def _fingerprint(model: nn.Module) -> str:
    """A digest of up to 1,024 values of every frozen parameter: a 7 B base model need not be saved with its adapter."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            flat = p.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 1024)].contiguous().cpu()
            digest.update(f"{name} {p.dtype} {list(p.shape)}".encode() + sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone(memory_format=torch.contiguous_format) if place in seen else tensor.contiguous()
        seen.add(place)
    return result


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The value as JSON, its tensors moved into `tensors`. A pickle would be shorter, and could run anybody's code."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot save {name}: a {type(value).__name__} is neither a tensor nor JSON")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        sums = dict(reversed(line.split("  ", 1)) for line in lines)
        if len(sums) != 3:
            return "SHA256SUMS is incomplete"
        return next((f"{name} does not match its checksum" for name in sums if _sha256(folder / name) != sums[name]), None)
    except (OSError, ValueError) as error:
        return str(error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot sync a folder; NTFS journals the rename itself
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _rename(source: Path, target: Path) -> None:
    """Rename a folder; on Windows a virus scanner may hold it open for a moment."""
    for wait in (0.05, 0.2, 1.0) if os.name == "nt" else ():
        try:
            return os.rename(source, target)
        except PermissionError:
            time.sleep(wait)
    os.rename(source, target)


def _discard(folder: Path) -> None:
    """Delete a checkpoint so that it is never seen half-deleted: out of sight first, then away."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}.partial")
        with contextlib.suppress(OSError):  # a file still open on Windows: the next sitting tries again
            _rename(folder, hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _is_disk_error(error: Exception) -> bool:
    from safetensors import SafetensorError

    return isinstance(error, OSError | SafetensorError)
