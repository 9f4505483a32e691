"""Training steps of `train.fit` against transformers' Trainer: the same random Llama, batches, optimizer and schedule.

Both clip gradients at norm 1, follow a cosine without warm-up and use fused AdamW; neither logs, evaluates or saves. Both sides'
losses and final weights are asserted equal before anything is timed. The clock of each side runs from its first step to its last,
so that the Trainer's set-up, a fifth of a second, does not count.
"""

import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from time import perf_counter
from typing import Any

import torch

from benchmarks.race import Result, interval, report
from llmcourse.train import TrainConfig, adamw, fit

__all__ = ["main"]

SEED = 0
Side = Callable[[], tuple[float, list[float]]]
"""A whole run: the seconds of its steps, and its losses where it logs them."""


def llama(width: int, layers: int) -> torch.nn.Module:
    """A random Llama of the embedded models' kind."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    shape = {"vocab_size": 2048, "hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=width // 32, tie_word_embeddings=True))


def rows(steps: int, batch: int, length: int) -> torch.Tensor:
    """Every row of the run: step × row × token."""
    return torch.randint(3, 2048, (steps, batch, length), generator=torch.Generator().manual_seed(SEED))


def our_side(model: torch.nn.Module, data: torch.Tensor) -> Side:
    """A run of ours, ready to start."""
    config = TrainConfig(steps=len(data), lr=1e-3, schedule="cosine", weight_decay=0.01, clip=1.0, bar=False)

    def run() -> tuple[float, list[float]]:
        start = []

        def batch(i: int) -> dict[str, torch.Tensor]:
            start.append(perf_counter())
            return {"input_ids": data[i], "labels": data[i]}

        losses = fit(model, batch, config, optimizer=adamw).losses
        return perf_counter() - start[0], losses

    return run


def their_side(model: torch.nn.Module, data: torch.Tensor, *, log: bool = False) -> Side:
    """A run of theirs, ready to start; with `log` it gives its losses too (and takes longer)."""
    from transformers import PrinterCallback, Trainer

    examples = [{"input_ids": row, "labels": row} for row in data.flatten(0, 1)]
    trainer = Trainer(model, arguments(*data.shape[:2], log), train_dataset=examples, data_collator=stacked)
    trainer.remove_callback(PrinterCallback)
    clock = stopwatch()
    trainer.add_callback(clock)

    def run() -> tuple[float, list[float]]:
        trainer.train()
        return clock.end - clock.start, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return run


def arguments(steps: int, batch: int, log: bool) -> Any:
    """The Trainer's settings: our own, and nothing beside the steps."""
    from transformers import TrainingArguments

    return TrainingArguments(
        tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        seed=SEED,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="steps" if log else "no",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def stopwatch() -> Any:
    """A callback that notes when the first step begins and the last one has ended."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        start, end = 0.0, 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.start = self.start or perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.end = perf_counter()

    return Stopwatch()


def stacked(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The rows as one batch: the least a collator can do."""
    return {name: torch.stack([example[name] for example in examples]) for name in ("input_ids", "labels")}


def race_of(name: str, start: torch.nn.Module, data: torch.Tensor, pairs: int) -> Result:
    """Interleaved pairs of short runs, each from the same weights, ours first in every other pair."""
    assert_equal(start, data)
    times = [pair(start, data, swap=bool(i % 2)) for i in range(pairs + 1)][1:]  # the first pair warms up
    ratios = [a / b for a, b in times]
    low, high = interval(ratios)
    ours, theirs = (statistics.median(side) / len(data) for side in zip(*times, strict=True))
    ratio = statistics.median(ratios)
    return Result(name=name, ours=ours, theirs=theirs, ratio=ratio, low=low, high=high, goal=1.0, pairs=pairs)


def pair(start: torch.nn.Module, data: torch.Tensor, *, swap: bool) -> tuple[float, float]:
    """Seconds of our run and of theirs."""
    sides = [our_side(deepcopy(start), data), their_side(deepcopy(start), data)]
    seconds = [side()[0] for side in (sides[::-1] if swap else sides)]
    ours, theirs = seconds[::-1] if swap else seconds
    return ours, theirs


def assert_equal(start: torch.nn.Module, data: torch.Tensor) -> None:
    """Raises AssertionError unless both sides do the same work."""
    ours, theirs = deepcopy(start), deepcopy(start)
    (_, losses), (_, their_losses) = our_side(ours, data)(), their_side(theirs, data, log=True)()
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(their_losses), rtol=1e-4, atol=1e-4)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def main() -> None:
    """Run the races on one thread: with two, a busy machine makes both sides wait for each other."""
    torch.set_num_threads(1)
    results = [
        race_of("0.3 M parameters, 4 × 64 tokens", llama(64, 4), rows(20, 4, 64), pairs=21),
        race_of("3.7 M parameters, 4 × 128 tokens", llama(256, 4), rows(6, 4, 128), pairs=41),
    ]
    report("train", results)
