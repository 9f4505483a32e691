"""One training loop for every notebook: plain PyTorch, exact to resume, hard to kill.

    for each step:   lr ← schedule(step)
                     g  ← mean over `accumulate` micro-batches of ∇loss        (autocast, GradScaler for float16)
                     θ  ← optimizer(θ, clip(g))

    directory/step-00000100/  model.safetensors   trainable parameters and buffers
                              state.safetensors   optimizer moments, random generators
                              state.json          everything that is not a tensor
                              SHA256SUMS          `sha256sum -c` agrees

Does:     any nn.Module; warm-up and four schedules; weight decay on matrices only; several optimizers at once; evaluation that
          does not disturb the random numbers; checkpoints that survive `kill -9` and continue with bit-identical losses.
Leaves out: data loading (`batch` is a function of an index), several devices (see `sharding`), two processes in one directory,
          micro-batches of unequal weight (each counts the same). Frozen parameters are checked but not saved.
Source:   Loshchilov & Hutter 2017 (cosine) and 2019 (AdamW); Vaswani et al. 2017, §5.3 (inverse square root);
          Micikevicius et al. 2018 (loss scaling).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "CheckpointError",
    "History",
    "TrainConfig",
    "TrainingDiverged",
    "adamw",
    "constant",
    "cosine",
    "decay_groups",
    "fit",
    "inverse_sqrt",
    "linear",
    "lr_multiplier",
]

Batch = Callable[[int], Any]
Loss = Callable[[nn.Module, Any], Tensor]
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
MakeOptimizer = Callable[[nn.Module, "TrainConfig"], "Optimizer | list[Optimizer]"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run is: change any field above the blank line and a checkpoint of the old run is refused.

    steps: optimizer updates. lr: peak learning rate. warmup: steps of linear rise. final_lr_ratio: the schedule ends here.
    clip: largest gradient norm, None for no clipping. accumulate: micro-batches per update. precision: of the autocast; the
    parameters keep their own dtype. evaluate_every, checkpoint_every: in updates; None means only at the end.
    keep: checkpoints kept. device: None trains where the model already is. bar: show a text progress bar.
    """

    steps: int
    lr: float = 1e-3
    schedule: Literal["constant", "linear", "cosine", "inverse-sqrt"] = "cosine"
    warmup: int = 0
    final_lr_ratio: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    accumulate: int = 1
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    device: str | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    bar: bool = True

    def __post_init__(self) -> None:
        _choice("schedule", self.schedule, SCHEDULES)
        _choice("precision", self.precision, PRECISIONS)
        for name in ("steps", "accumulate", "keep", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; choose 1 or more")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup is {self.warmup} steps of {self.steps}; choose 0–{self.steps}")
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; choose a value above 0")


def _choice(name: str, value: str, allowed: Mapping[str, object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(allowed)}")


@dataclass
class History:
    """What happened: `losses` and `lrs` hold one number per update, `evaluations` one dict per evaluation, with its "step".

    seconds: wall time over all sittings of the run. tokens: `input_ids` seen, padding included.
    """

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return len(self.losses)


class TrainingDiverged(RuntimeError):
    """The loss or a parameter is no longer a finite number. `step`, `lr` and the last good `losses` say where it began."""

    def __init__(self, what: str, step: int, lr: float, losses: list[float]) -> None:
        self.step, self.lr, self.losses = step, lr, losses
        last = ", ".join(f"{x:.4g}" for x in losses) or "none: it was so from the start"
        super().__init__(
            f"{what} at step {step} (lr {lr:.3g}; last good losses: {last}). "
            f"Try a lower lr ({lr / 3:.1g}), a longer warmup, clip=1.0, or precision bfloat16 or float32 in place of float16; "
            "if it was so from the start, look for bad values in the batch."
        )


class CheckpointError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are intact and the run can be resumed from them."""


# ---------------------------------------------------------------------------------------------------------------- schedules


def constant(step: int, config: TrainConfig) -> float:
    """The peak learning rate, all the way."""
    return 1.0


def linear(step: int, config: TrainConfig) -> float:
    """A straight line from 1 after the warm-up to `final_lr_ratio` at the end."""
    return 1 - (1 - config.final_lr_ratio) * _progress(step, config)


def cosine(step: int, config: TrainConfig) -> float:
    """Half a cosine from 1 after the warm-up to `final_lr_ratio` at the end (Loshchilov & Hutter 2017)."""
    half_wave = (1 + math.cos(math.pi * _progress(step, config))) / 2
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * half_wave


def inverse_sqrt(step: int, config: TrainConfig) -> float:
    """√(warmup / step), never below `final_lr_ratio` (Vaswani et al. 2017, eq. 3)."""
    start = max(1, config.warmup)
    return max(config.final_lr_ratio, math.sqrt(start / max(step, start)))


def _progress(step: int, config: TrainConfig) -> float:
    return (step - config.warmup) / max(1, config.steps - config.warmup)


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine, "inverse-sqrt": inverse_sqrt}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def lr_multiplier(step: int, config: TrainConfig) -> float:
    """The factor on every learning rate at `step` (from 0). The warm-up starts above zero, so that no step is wasted."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return SCHEDULES[config.schedule](step, config)


# ---------------------------------------------------------------------------------------------------------------- optimizer


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer: matrices decay; norms, biases and everything one-dimensional do not."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = [p for name, p in trainable if p.ndim >= 2 and not name.endswith("bias")]
    chosen = {id(p) for p in decays}
    spared = [p for _, p in trainable if id(p) not in chosen]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Fused AdamW, the default: one kernel for all parameters, about six times as fast as the loop over them."""
    return torch.optim.AdamW(decay_groups(model, config.weight_decay), lr=config.lr, betas=config.betas, fused=True)


# ---------------------------------------------------------------------------------------------------------------- the loop


def fit(
    model: nn.Module,
    batch: Batch,
    config: TrainConfig,
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    directory: str | os.PathLike[str] | None = None,
    resume: bool = True,
    optimizer: MakeOptimizer | None = None,
) -> History:
    """Train `model` in place for `config.steps` updates; it comes back in the mode (train or eval) it came in.

    batch(i) returns micro-batch i, i = step · accumulate + k for k < accumulate, usually a dict of tensors. It must depend on i
    alone: this is what makes a resumed run equal an unbroken one. loss(model, batch) returns a scalar; the default is
    `model(**batch).loss`. evaluate(model, step) returns named numbers; it runs in eval mode, without gradients, and its
    random numbers do not change the run's. optimizer(model, config) returns one optimizer or a list; the schedule scales the
    learning rate each of their groups was made with.

    With a `directory` the run is saved there every `checkpoint_every` updates, at the end and on Ctrl-C, and `resume` goes on
    from the newest whole checkpoint (`resume=False` deletes what is there and starts anew). Losses after resuming are
    bit-identical on CPU, dropout included; on CUDA as far as its kernels are deterministic. Python's, NumPy's and torch's
    generators are seeded with `config.seed`.

    Raises: TrainingDiverged on a loss that is NaN or infinite; CheckpointError when the disk is full; ValueError when the
    checkpoint belongs to another config, model or optimizer; KeyboardInterrupt after Ctrl-C, once the step is finished and saved.
    """
    run = _Run(model, config, optimizer or adamw)
    store = None if directory is None else _Checkpoints(Path(directory), config.keep)
    _begin(run, store, resume)
    try:
        with _training(model), _Interrupt() as interrupt, _Bar(run) as bar:
            for step in range(run.history.steps, config.steps):
                run.update(step, batch, loss or _own_loss)
                bar.advance()
                _after_step(run, step + 1, evaluate, store, interrupt)
    except KeyboardInterrupt:
        print(_how_to_go_on(run, store))
        raise
    return run.history


def _begin(run: _Run, store: _Checkpoints | None, resume: bool) -> None:
    _seed(run.config.seed)
    if store is None:
        return
    store.prepare(fresh=not resume)
    if store.restore(run) and run.config.bar:
        print(f"resumed from {store.latest}: {run.history.steps}/{run.config.steps} steps done")


def _after_step(run: _Run, done: int, evaluate: Evaluate | None, store: _Checkpoints | None, interrupt: _Interrupt) -> None:
    last = done == run.config.steps
    if evaluate and (last or _due(done, run.config.evaluate_every)):
        run.evaluate(evaluate, done)
    if last:
        run.check()
    if store and (last or interrupt.requested or _due(done, run.config.checkpoint_every)):
        run.check()
        store.save(run)
    if interrupt.requested:
        run.settle()
        raise KeyboardInterrupt


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def _how_to_go_on(run: _Run, store: _Checkpoints | None) -> str:
    stopped = f"stopped after {run.history.steps}/{run.config.steps} steps; "
    if store is None:
        return stopped + "give fit a directory and it will save its place next time"
    if store.latest is None:
        return stopped + f"no checkpoint was saved yet in {store.directory}"
    return stopped + f"saved in {store.latest}: call fit again with the same directory to go on"


class _Run:
    """A model with its optimizers, scaler and history: all that a step changes and a checkpoint holds."""

    def __init__(self, model: nn.Module, config: TrainConfig, make: MakeOptimizer) -> None:
        self.model, self.config, self.history = model, config, History()
        if config.device is not None:
            model.to(config.device)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self._refuse_impossible()
        self.device = self.trainable[0].device
        made = make(model, config)
        self.optimizers = list(made) if isinstance(made, list | tuple) else [made]
        self.updated = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        self._clear_gradients()
        self.peaks = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.pending: list[Tensor] = []  # losses still on the device: reading each at once would make the GPU wait
        self.clock = time.perf_counter()

    def _refuse_impossible(self) -> None:
        if not self.trainable:
            raise ValueError("the model has no trainable parameters; set requires_grad=True on those to train")
        if self.config.precision == "float16" and any(p.dtype == torch.float16 for p in self.trainable):
            raise ValueError("precision float16 needs float32 parameters (autocast converts them); call model.float() first")

    def update(self, step: int, batch: Batch, loss: Loss) -> None:
        """One optimizer update from `accumulate` micro-batches."""
        total = self._gradients(step, batch, loss)
        multiplier = lr_multiplier(step, self.config)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier
        self._apply()
        self.pending.append(total)
        self.history.lrs.append(float(self.optimizers[0].param_groups[0]["lr"]))
        if self.device.type == "cpu":
            self.settle()

    def _gradients(self, step: int, batch: Batch, loss: Loss) -> Tensor:
        share, total = self.config.accumulate, torch.zeros((), device=self.device)
        for k in range(share):
            micro = _to(batch(step * share + k), self.device)
            if isinstance(micro, Mapping) and isinstance(micro.get("input_ids"), Tensor):
                self.history.tokens += micro["input_ids"].numel()
            with self._autocast():
                value = loss(self.model, micro) / share
            self.scaler.scale(value).backward()
            total += value.detach()
        return total

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.config.precision])

    def _apply(self) -> None:
        if self.config.clip is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.updated, self.config.clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        for p in self.trainable:  # not optimizer.zero_grad(): a parameter without an optimizer would pile its gradient up
            p.grad = None

    def settle(self) -> None:
        """Bring the pending losses into the history; raises TrainingDiverged at the first that is not finite."""
        now = time.perf_counter()
        self.history.seconds += now - self.clock
        self.clock = now
        values = torch.stack(self.pending).tolist() if self.pending else []
        self.pending.clear()
        for value in values:
            if not math.isfinite(value):
                self._diverged(f"the loss became {value}", self.history.steps)
            self.history.losses.append(value)

    def check(self) -> None:
        """Settle, and raise TrainingDiverged where a parameter is not finite: such a checkpoint would be worthless."""
        self.settle()
        if not all(torch.stack([torch.isfinite(p).all() for p in self.trainable]).tolist()):
            self._diverged("a parameter stopped being finite", self.history.steps - 1)

    def _diverged(self, what: str, step: int) -> None:
        raise TrainingDiverged(what, step, self.history.lrs[step], self.history.losses[-5:])

    def evaluate(self, evaluate: Evaluate, done: int) -> None:
        """Record evaluate(model, done), leaving modes and random numbers as they were."""
        self.settle()
        generators = _generators()
        with _mode(self.model, training=False), torch.no_grad():
            measured = {name: float(value) for name, value in evaluate(self.model, done).items()}
        _set_generators(generators)
        self.history.evaluations.append({"step": done, **measured})


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError("the model returned no loss; put `labels` into the batch or pass loss=function(model, batch)")
    return loss


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_to(value, device) for value in batch)
    return batch


@contextlib.contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the whole model into one mode; afterwards every module has its own mode back."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _training(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    return _mode(model, training=True)


class _Interrupt:
    """Holds back the first Ctrl-C until the step is finished, so that what is saved is whole. A second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self.previous: Any = None

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)


class _Bar:
    """A text progress bar, redrawn twice a second before eyes and every 30 s in a log. Its estimate is the average
    over this sitting, evaluations and checkpoints included."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.interval = 0.5 if _watched() else 30.0
        self.next = time.perf_counter() + self.interval
        self.start, self.tokens, self.began = run.history.steps, run.history.tokens, run.history.seconds

    def __enter__(self) -> _Bar:
        from tqdm.std import tqdm  # not tqdm.auto: its widget would be stored in the notebook

        total = self.run.config.steps
        off = not self.run.config.bar or self.start == total
        file = sys.stdout if _in_kernel() else sys.stderr  # a kernel's stderr is shown on a red ground
        self.bar = tqdm(
            total=total, initial=self.start, unit="step", disable=off, file=file, mininterval=0, miniters=1, smoothing=0
        )
        return self

    def advance(self) -> None:
        now = time.perf_counter()
        if now >= self.next:
            self.run.settle()
            self._draw()
            self.next = now + self.interval

    def _draw(self) -> None:
        history = self.run.history
        seconds, tokens = history.seconds - self.began, history.tokens - self.tokens
        notes = [f"loss {history.losses[-1]:.4g}", f"lr {history.lrs[-1]:.2g}"]
        if tokens and seconds:
            notes.append(f"{tokens / seconds:,.0f} tokens/s")
        if history.evaluations:
            notes += [f"{name} {value:.4g}" for name, value in history.evaluations[-1].items() if name != "step"]
        self.bar.set_postfix_str(" · ".join(notes), refresh=False)
        self.bar.update(history.steps - self.bar.n)

    def __exit__(self, *exception: object) -> None:
        if self.run.history.steps > self.start:
            self._draw()
        self.bar.close()


def _in_kernel() -> bool:
    return "ipykernel" in sys.modules and type(sys.stdout).__module__.startswith("ipykernel")


def _watched() -> bool:
    return _in_kernel() or (sys.stderr is not None and sys.stderr.isatty())


# ---------------------------------------------------------------------------------------------------------------- random numbers


def _seed(seed: int) -> None:
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _generators() -> dict[str, Any]:
    """The state of every global random generator."""
    import numpy as np

    name, keys, *rest = np.random.get_state(legacy=True)
    states = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_generators(states: dict[str, Any]) -> None:
    import numpy as np

    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


# ---------------------------------------------------------------------------------------------------------------- checkpoints


class _Checkpoints:
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

    def restore(self, run: _Run) -> bool:
        """Load the newest whole checkpoint into `run`; False when there is none. Damaged ones are passed over with a warning."""
        for path in self._all():
            damage = _damage(path)
            if damage is None:
                _load(path, run)
                self.latest = path
                return True
            warnings.warn(f"skipping the damaged checkpoint {path}: {damage}", stacklevel=4)
        return False

    def save(self, run: _Run) -> None:
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


def _write(folder: Path, run: _Run) -> None:
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


def _state(run: _Run) -> dict[str, Any]:
    return {
        "config": _identity(run.config),
        "optimizer_names": [type(o).__name__ for o in run.optimizers],
        "frozen": _fingerprint(run.model),
        "history": asdict(run.history),
        "optimizers": [o.state_dict() for o in run.optimizers],
        "scaler": run.scaler.state_dict(),
        "generators": _generators(),
    }


def _load(path: Path, run: _Run) -> None:
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
    run.scaler.load_state_dict(state["scaler"]) if run.scaler.is_enabled() else None
    run.history = History(**state["history"])
    _set_generators(state["generators"])


def _refuse_another(path: Path, run: _Run, state: dict[str, Any], saved: dict[str, Tensor]) -> None:
    ways = "Choose another directory, or resume=False to delete the old run and start anew."
    for name, now in _identity(run.config).items():
        if state["config"].get(name) != now:
            raise ValueError(f"{path} was made with {name}={state['config'].get(name)!r}, this config has {now!r}. {ways}")
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
    free = {"device", "evaluate_every", "checkpoint_every", "keep", "bar"}
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
        result[name] = tensor.clone() if place in seen else tensor.contiguous()
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
