"""The loop itself: gradients, update, evaluation, progress bar, Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmcourse.train import random_state
from llmcourse.train.checkpoints import Checkpoints
from llmcourse.train.schedules import lr_multiplier
from llmcourse.train.settings import History, TrainConfig
from llmcourse.train.spikes import batch_number, is_spike

__all__ = ["TrainingDiverged", "adamw", "decay_groups", "fit"]

Batch = Callable[[int], Any]
Loss = Callable[[nn.Module, Any], Tensor]
Evaluate = Callable[[nn.Module, int], Mapping[str, float]]
MakeOptimizer = Callable[[nn.Module, "TrainConfig"], "Optimizer | list[Optimizer]"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingDiverged(RuntimeError):
    """The loss or a parameter is no longer a finite number, or the loss spiked in a run that was to recover from spikes.

    `step`, `lr` and the last good `losses` say where it began; `loss` is the bad one, None where a parameter went bad.
    """

    def __init__(self, what: str, step: int, lr: float, losses: list[float], loss: float | None = None) -> None:
        self.what, self.step, self.lr, self.losses, self.loss = what, step, lr, losses, loss
        last = ", ".join(f"{x:.4g}" for x in losses) or "none: it was so from the start"
        super().__init__(
            f"{what} at step {step} (lr {lr:.3g}; last good losses: {last}). "
            f"Try a lower lr ({lr / 3:.1g}), a longer warmup, clip=1.0, or precision bfloat16 or float32 in place of float16; "
            "if it was so from the start, look for bad values in the batch."
        )


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
    generators are seeded with `config.seed`. With `config.recover` a loss spike sends the run back to a checkpoint from before
    it, and on without the batches around it; on CUDA every loss is then read at once, which makes the device wait.

    Raises: TrainingDiverged on a loss that is NaN or infinite; CheckpointError when the disk is full; ValueError when the
    checkpoint belongs to another config, model or optimizer; KeyboardInterrupt after Ctrl-C, once the step is finished and saved.
    """
    if config.recover and directory is None:
        raise ValueError("recover goes back to a checkpoint; give fit a directory, or set recover=None")
    run = Run(model, config, optimizer or adamw)
    store = None if directory is None else Checkpoints(Path(directory), config.keep)
    _begin(run, store, resume)
    try:
        with _training(model), _Interrupt() as interrupt, _Bar(run) as bar:
            step = run.history.steps
            while step < config.steps:
                try:
                    run.update(step, batch, loss or _own_loss)
                    bar.advance()
                    _after_step(run, step + 1, evaluate, store, interrupt)
                    step += 1
                except TrainingDiverged as spike:
                    step = _go_back(run, store, spike)
    except KeyboardInterrupt:
        print(_how_to_go_on(run, store))
        raise
    return run.history


def _begin(run: Run, store: Checkpoints | None, resume: bool) -> None:
    random_state.seed_all(run.config.seed)
    if store is None:
        return
    store.prepare(fresh=not resume)
    if store.restore(run):
        if run.config.bar:
            print(f"resumed from {store.latest}: {run.history.steps}/{run.config.steps} steps done")
    elif run.config.recover:
        store.save(run)  # something to go back to, should the first steps already spike


def _go_back(run: Run, store: Checkpoints | None, spike: TrainingDiverged) -> int:
    """Return to before the spike, its batches left out from now on; gives the step to go on with, or raises `spike` again."""
    recover, before = run.config.recover, run.history
    if recover is None or store is None:
        raise spike
    if len(before.recoveries) >= recover.limit:
        what = f"after {recover.limit} recoveries {spike.what}"
        raise TrainingDiverged(what, spike.step, spike.lr, spike.losses, spike.loss) from None
    first = max(0, spike.step - recover.skip + 1)
    if not store.go_back(run, first):
        raise spike
    step = run.history.steps
    skipped = [batch_number(s, before.recoveries) for s in range(max(first, step), spike.step + 1)]
    entry = {"step": spike.step, "loss": spike.loss, "back_to": step, "skipped": skipped}
    run.history.recoveries, run.history.seconds = [*before.recoveries, entry], before.seconds
    return step


def _after_step(run: Run, done: int, evaluate: Evaluate | None, store: Checkpoints | None, interrupt: _Interrupt) -> None:
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


def _how_to_go_on(run: Run, store: Checkpoints | None) -> str:
    stopped = f"stopped after {run.history.steps}/{run.config.steps} steps; "
    if store is None:
        return stopped + "give fit a directory and it will save its place next time"
    if store.latest is None:
        return stopped + f"no checkpoint was saved yet in {store.directory}"
    return stopped + f"saved in {store.latest}: call fit again with the same directory to go on"


class Run:
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
        if self.device.type == "cpu" or self.config.recover:
            self.settle()

    def _gradients(self, step: int, batch: Batch, loss: Loss) -> Tensor:
        share, total = self.config.accumulate, torch.zeros((), device=self.device)
        first = batch_number(step, self.history.recoveries) * share
        for k in range(share):
            micro = _to(batch(first + k), self.device)
            self.history.tokens += _tokens(micro)
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
        """Bring the pending losses into the history; raises TrainingDiverged at the first that is not finite, or a spike."""
        now = time.perf_counter()
        self.history.seconds += now - self.clock
        self.clock = now
        values = torch.stack(self.pending).tolist() if self.pending else []
        self.pending.clear()
        for value in values:
            if not math.isfinite(value):
                self._diverged(f"the loss became {value}", self.history.steps, value)
            if self.config.recover and is_spike(value, self.history.losses, self.config.recover):
                self._diverged(f"the loss spiked to {value:.4g}", self.history.steps, value)
            self.history.losses.append(value)

    def check(self) -> None:
        """Settle, and raise TrainingDiverged where a parameter is not finite: such a checkpoint would be worthless."""
        self.settle()
        if not all(torch.stack([torch.isfinite(p).all() for p in self.trainable]).tolist()):
            self._diverged("a parameter stopped being finite", self.history.steps - 1)

    def _diverged(self, what: str, step: int, loss: float | None = None) -> None:
        raise TrainingDiverged(what, step, self.history.lrs[step], self.history.losses[-5:], loss)

    def evaluate(self, evaluate: Evaluate, done: int) -> None:
        """Record evaluate(model, done), leaving modes and random numbers as they were."""
        self.settle()
        generators = random_state.get_state()
        with _mode(self.model, training=False), torch.no_grad():
            measured = {name: float(value) for name, value in evaluate(self.model, done).items()}
        random_state.set_state(generators)
        self.history.evaluations.append({"step": done, **measured})


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError("the model returned no loss; put `labels` into the batch or pass loss=function(model, batch)")
    return loss


def _tokens(batch: Any) -> int:
    """How many `input_ids` a batch holds, also in batches within it."""
    if not isinstance(batch, Mapping):
        return 0
    own = batch["input_ids"].numel() if isinstance(batch.get("input_ids"), Tensor) else 0
    return own + sum(_tokens(part) for part in batch.values())


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

    def __init__(self, run: Run) -> None:
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
        if tokens > 0 and seconds:
            notes.append(f"{tokens / seconds:,.0f} tokens/s")
        if history.recoveries:
            notes.append(f"spikes passed {len(history.recoveries)}")
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
