"""The measured grid behind the scaling laws: models of several sizes, each trained on several amounts of the town's text.

    for each size: the learning rate whose half and whose double are both worse, on a middle budget
    for each size × tokens × seed: a fresh Llama ─► one pass over fresh text ─► loss on held-out text

Does:     one kept file a run, so that Ctrl-C loses at most the run under way; a bar whose time left knows that large runs are
          slow; results with command, commit, versions and minutes; one small run once more, live, against the recorded ones.
Leaves out: runs longer than one pass; a learning rate for each budget; the FLOPs of attention's scores (a few per cent here).
Source:   Kaplan et al. 2020; Hoffmann et al. 2022, §3.3. N counts the tied embedding once, because its other use, the last
          layer, does compute (Porian et al. 2024).
"""

from __future__ import annotations

import io
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse import results, zoo
from llmcourse.exercise import progress
from llmcourse.metrics import prediction_interval
from llmcourse.train import TrainConfig, TrainingDiverged, fit
from llmcourse.transformer import Config, Transformer
from llmcourse.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["COMMAND", "FILE", "Grid", "Measured", "Run", "load", "one_small_run", "run_grid"]

FILE = Path(__file__).with_name("scaling.json")
COMMAND = "llmcourse measure scaling"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is run.

    shapes: (width, layers), widths in multiples of 16. tokens: budgets. first_rate: the search for a size's learning rate begins
    at this / √width. A batch is `rows` × `length` tokens. held_out: tokens the loss is measured on.
    """

    shapes: tuple[tuple[int, int], ...] = ((16, 2), (32, 2), (48, 3), (64, 4))
    tokens: tuple[int, ...] = (32_768, 65_536, 131_072, 262_144)
    seeds: tuple[int, ...] = (0, 1, 2)
    first_rate: float = 0.1
    rows: int = 2
    length: int = 128
    held_out: int = 16_384

    @property
    def middle(self) -> int:
        """The budget on which learning rates are compared."""
        return self.tokens[(len(self.tokens) - 1) // 2]


class Plan(NamedTuple):
    """One run to make."""

    width: int
    layers: int
    tokens: int
    seed: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run made. loss: nats per token of held-out text."""

    width: int
    layers: int
    parameters: int
    tokens: int
    seed: int
    lr: float
    loss: float
    seconds: float

    @property
    def compute(self) -> float:
        """6 · N · D, the FLOPs of its training."""
        return 6.0 * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All runs, and where they come from."""

    runs: tuple[Run, ...]
    grid: Grid
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """What `load` reads."""
        return results.lines({**self.provenance, "grid": asdict(self.grid)}, [asdict(run) for run in self.runs])

    def cell(self, width: int, layers: int, tokens: int) -> list[Run]:
        """The runs of one size and budget, one a seed."""
        return [run for run in self.runs if (run.width, run.layers, run.tokens) == (width, layers, tokens)]

    def interval(self, width: int, layers: int, tokens: int) -> tuple[float, float]:
        """Where the loss of one more run of this cell should fall, with 95 % confidence (Student's t).

        Raises: ValueError where the cell has fewer than two runs.
        """
        losses = [run.loss for run in self.cell(width, layers, tokens)]
        if len(losses) < 2:
            raise ValueError(f"{len(losses)} runs of {width}×{layers} with {tokens:,} tokens are recorded; an interval needs two")
        _, low, high = prediction_interval(losses)
        return low, high


# ----------------------------------------------------------------------------------------------------------------- one run


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(zoo.FOLDER / "tiny-gpt", trust_remote_code=False, local_files_only=True)


@lru_cache(maxsize=4)
def _packed(split: str, start: int, tokens: int, length: int) -> Int[Tensor, "rows length"]:
    """Documents from number `start` on, one behind another, cut into rows."""
    tokenizer, ids = _tokenizer(), []
    for document in World().documents(split=split, start=start):
        ids += [*tokenizer(document, verbose=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= tokens:
            return torch.tensor(ids[: tokens // length * length]).view(-1, length)
    raise AssertionError("documents() ended")


def _model(plan: Plan, vocabulary: int, length: int) -> Transformer:
    """A Llama whose matrices start at 1/√width: with the usual 0.02 a narrow model learns to copy late or never."""
    torch.manual_seed(plan.seed)
    heads, hidden = plan.width // 16, plan.width * 8 // 3 // 8 * 8
    shape = Config(
        vocab_size=vocabulary,
        d_model=plan.width,
        n_layers=plan.layers,
        n_heads=heads,
        d_ff=hidden,
        max_positions=length,
        tied=True,
    )
    model = Transformer(shape)
    for weight in (p for p in model.parameters() if p.ndim == 2):
        nn.init.normal_(weight, std=plan.width**-0.5)
    return model


def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    ids = batch["input_ids"]
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def _held_out_loss(model: Transformer, grid: Grid) -> float:
    rows = _packed("test", 0, grid.held_out, grid.length).split(16)
    sums = [_loss(model.eval(), {"input_ids": part}).item() * len(part) for part in rows]
    return sum(sums) / sum(map(len, rows))


def _run(plan: Plan, grid: Grid, step: Callable[[], object] = lambda: None) -> Run:
    """Train one model from its seed; `step` is called at every update."""
    most = max(*grid.tokens, plan.tokens)
    text = _packed("train", 10_000_000 * plan.seed, most, grid.length)[: plan.tokens // grid.length]
    model = _model(plan, len(_tokenizer()), grid.length)
    steps = len(text) // grid.rows

    def batch(i: int) -> dict[str, Int[Tensor, "rows length"]]:
        step()
        return {"input_ids": text[i * grid.rows : (i + 1) * grid.rows]}

    config = TrainConfig(steps=steps, lr=plan.lr, warmup=steps // 10, betas=(0.9, 0.95), seed=plan.seed, bar=False)
    began = time.perf_counter()
    try:
        with redirect_stdout(io.StringIO()):  # after Ctrl-C, fit's advice would not fit
            fit(model, batch, config, loss=_loss)
        loss = round(_held_out_loss(model, grid), 5)
    except TrainingDiverged:  # such a learning rate is never chosen
        loss = math.inf
    seconds = round(time.perf_counter() - began, 1)
    return Run(**plan._asdict(), parameters=model.n_parameters, loss=loss, seconds=seconds)


# ---------------------------------------------------------------------------------------------------------------- the grid


def run_grid(grid: Grid | None = None, *, out: Path = FILE, kept: Path | None = None, bar: bool = True) -> Measured:
    """Run the whole grid, write it to `out`, and return it.

    kept: the folder of finished runs, which another call does not repeat; by default below the learner's own folder, one for each
    town, tokenizer and grid.

    Raises: KeyboardInterrupt after Ctrl-C, when finished runs are kept; OSError when a file cannot be written.
    """
    grid = grid or Grid()
    kept = kept or progress.home() / "pretraining" / f"scaling-{_identity(grid):08x}"
    kept.mkdir(parents=True, exist_ok=True)
    with results.one_thread(), _Bar(grid, bar) as shown:
        rates = {shape: _best_rate(shape, grid, kept, shown) for shape in grid.shapes}
        plans = [Plan(*shape, n, seed, rates[shape]) for seed in grid.seeds for shape in grid.shapes for n in grid.tokens]
        runs = tuple(_once(plan, grid, kept, shown) for plan in plans)
    minutes = sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in kept.glob("*.json")) / 60
    origin = results.provenance(COMMAND, minutes, "torch", "numpy", "tokenizers") | {"vocabulary": len(_tokenizer())}
    measured = Measured(runs=runs, grid=grid, provenance=origin)
    results.write(out, measured.to_json())
    return measured


def _best_rate(shape: tuple[int, int], grid: Grid, kept: Path, shown: _Bar) -> float:
    """The learning rate whose half and double are both worse on the middle budget, with a seed that the grid does not use."""

    @cache
    def loss(lr: float) -> float:
        return _once(Plan(*shape, grid.middle, max(grid.seeds) + 1, lr), grid, kept, shown).loss

    best = float(f"{grid.first_rate / math.sqrt(shape[0]):.2g}")
    while (better := min((best, best / 2, best * 2), key=loss)) != best:
        best = better
    return best


def _once(plan: Plan, grid: Grid, kept: Path, shown: _Bar) -> Run:
    """The run, from its file where it has one."""
    path = kept / f"{plan.width}x{plan.layers}-{plan.tokens}-seed{plan.seed}-{plan.lr:g}.json"
    if path.exists():
        shown.finish(plan, kept=True)
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    run = _run(plan, grid, shown.during(plan))
    results.write(path, json.dumps(asdict(run)))
    shown.finish(plan)
    return run


def _identity(grid: Grid) -> int:
    """A checksum of what decides a run beside its plan: the text as tokens, and the shape of a batch."""
    text = _packed("test", 0, grid.held_out, grid.length).numpy().tobytes()
    names = "\n".join(_tokenizer().convert_ids_to_tokens(list(range(len(_tokenizer())))))
    return zlib.crc32(names.encode("utf-8", "replace"), zlib.crc32(text + f"{grid.rows}×{grid.length}".encode()))


class _Bar:
    """A text progress bar in units of work, which is about tokens × (parameters + a constant for the overhead).

    Four runs are expected to find a size's learning rate; the total grows where it takes more. Runs that were kept from an
    earlier call count as done before the clock started.
    """

    def __init__(self, grid: Grid, on: bool) -> None:
        tuning = 4 * sum(self.work(Plan(*shape, grid.middle, 0, 0.0)) for shape in grid.shapes)
        runs = sum(self.work(Plan(*shape, n, seed, 0.0)) for shape in grid.shapes for n in grid.tokens for seed in grid.seeds)
        self.total, self.on, self.tokens_a_step, self.done = tuning + runs, on, grid.rows * grid.length, 0.0

    def __enter__(self) -> _Bar:
        from tqdm.std import tqdm

        layout = "{percentage:3.0f}%|{bar:30}| {elapsed} < {remaining} left{postfix}"
        file = None if self.on else io.StringIO()
        self.shown = tqdm(total=self.total, file=file, bar_format=layout, smoothing=0, mininterval=0.5)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.shown.total = self.total if kind else self.done
        self.shown.close()

    @staticmethod
    def work(plan: Plan) -> float:
        """Rough: 12 · layers · width² weights, a vocabulary of 1,024, and an overhead as of 100,000 weights."""
        return plan.tokens * (12 * plan.layers * plan.width**2 + 1024 * plan.width + 100_000)

    def during(self, plan: Plan) -> Callable[[], object]:
        """What to call at each update of this run."""
        self.shown.set_postfix_str(f"width {plan.width}, {plan.tokens:,} tokens, seed {plan.seed}", refresh=False)
        each = self.work(plan) * self.tokens_a_step / plan.tokens
        return lambda: self.shown.update(min(each, self.done + self.work(plan) - self.shown.n))

    def finish(self, plan: Plan, *, kept: bool = False) -> None:
        """This run is over."""
        self.done += self.work(plan)
        self.shown.total = max(self.total, self.done)
        if kept:
            self.shown.initial += self.work(plan)
        self.shown.update(self.done - self.shown.n)


# ---------------------------------------------------------------------------------------------------------------- the file


def load(path: Path = FILE) -> Measured:
    """The recorded grid.

    Raises: FileNotFoundError where nobody has measured it; ValueError for a damaged file. Both say how to measure it.
    """
    heading, runs = results.read(path, COMMAND, "the scaling grid")
    with results.damaged(path, COMMAND):
        grid = {name: _tuples(value) for name, value in heading.pop("grid").items()}
        return Measured(runs=tuple(Run(**run) for run in runs), grid=Grid(**grid), provenance=heading)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# --------------------------------------------------------------------------------------------------------------- once more


def one_small_run(measured: Measured | None = None, *, tokens: int | None = None) -> tuple[Run, tuple[float, float]]:
    """The smallest model once more, live, with a seed nobody has recorded: the run, and the interval its loss should fall into.

    tokens: one of the grid's budgets, by default the smallest. Raises: what `load` and `Measured.interval` raise.
    """
    measured = measured or load()
    smallest = min(measured.runs, key=lambda run: (run.parameters, run.tokens))
    tokens = smallest.tokens if tokens is None else tokens
    interval = measured.interval(smallest.width, smallest.layers, tokens)
    fresh = max(run.seed for run in measured.runs) + 2  # + 1 chose the learning rates
    with results.one_thread():
        run = _run(Plan(smallest.width, smallest.layers, tokens, fresh, smallest.lr), replace(measured.grid, tokens=(tokens,)))
    return run, interval
