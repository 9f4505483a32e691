"""Is QLoRA on a par with LoRA? The measured pairs, and one run more.

    seed ─► order of the texts, start of A ─┬─► LoRA on the float base  ─► macro-F1 on held-out texts
                                            └─► LoRA on the nf4 base    ─► macro-F1 on the same         difference: one pair

Does:     pairs of runs that differ in the base alone; one kept file a run, so that Ctrl-C loses at most the run under way;
          results with command, commit, versions and minutes; one run once more, live, against the recorded ones.
Leaves out: other tasks, ranks and learning rates; larger models.
Source:   Dettmers et al. 2023, "QLoRA", §4 (there the base is a language model of 125 million to 65 billion weights).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from llmcourse import results
from llmcourse.exercise import progress
from llmcourse.metrics import Interval, macro_f1, paired, prediction_interval

from . import qlora

if TYPE_CHECKING:
    from datasets import Dataset

    from ..fine_tuning.classify import LabelWords
    from ..peft import lora

__all__ = ["COMMAND", "FILE", "Measured", "Plan", "Run", "Trained", "f1", "load", "measure", "one_more", "train_one", "words"]

FILE = Path(__file__).with_name("par.json")
COMMAND = "llmcourse measure qlora"
Base = Literal["float32", "nf4"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every run has in common. answers: a word of one token for each class, asked for after `pattern`."""

    model: str = "tiny-gpt"
    task: str = "twin-imdb"
    pattern: str = "{text} Answer:"
    answers: tuple[str, ...] = ("bad", "good")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    rank: int = 8
    alpha: float = 16.0
    steps: int = 150
    size: int = 8
    lr: float = 2e-3
    tested: int = 400


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run made. f1: macro-F1 on the test texts, in points; frozen: before training."""

    base: Base
    seed: int
    f1: float
    frozen: float
    loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All runs, and where they come from."""

    runs: tuple[Run, ...]
    plan: Plan
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """What `load` reads."""
        return results.lines({**self.provenance, "plan": asdict(self.plan)}, [asdict(run) for run in self.runs])

    def scores(self, base: Base, what: str = "f1") -> list[float]:
        """One number a seed, in the order of the seeds."""
        return [getattr(run, what) for run in sorted(self.runs, key=lambda run: run.seed) if run.base == base]

    def claim_numbers(self) -> dict[str, Interval]:
        """What the claim "qlora-par" needs, each a difference over paired seeds."""
        plain, quantized = self.scores("float32"), self.scores("nf4")
        return {
            "f1_lora_minus_frozen": paired(plain, self.scores("float32", "frozen")),
            "f1_qlora_minus_lora": paired(quantized, plain),
        }

    def interval(self, base: Base) -> tuple[float, float]:
        """Where the F1 of one more run should fall, with 95 % confidence (Student's t); ± 1 point where seeds hardly differ."""
        mean, low, high = prediction_interval(self.scores(base))
        return min(low, mean - 1), max(high, mean + 1)


# ---- one run ----------------------------------------------------------------------------------------------------------


def words(model: torch.nn.Module, tokenizer: Any, plan: Plan, names: Sequence[str]) -> "LabelWords":
    """The classifier: whichever answer the model finds likeliest after the text."""
    from ..fine_tuning.classify import LabelWords
    from ..fine_tuning.formats import Verbaliser

    return LabelWords(model, tokenizer, names, Verbaliser(plan.pattern, plan.answers))


class Trained(NamedTuple):
    """A run, and what it leaves: the classifier, and LoRA's handle on its model."""

    run: Run
    classifier: "LabelWords"
    adapter: "lora.LoRA"


def train_one(base: Base, seed: int, plan: Plan, *, bar: bool = False) -> Trained:
    """Attach LoRA to the float model, or to its nf4 form, train it, and test it; `seed` decides all that is random."""
    from llmcourse import data, train, zoo

    from ..peft import lora

    began = time.perf_counter()
    rows, tests = data.load(plan.task), data.load(plan.task, "test").select(range(plan.tested))
    model, tokenizer = zoo.load(plan.model)
    torch.manual_seed(seed)
    attach = lora.attach if base == "float32" else qlora.attach
    adapter = attach(model, lora.Config(r=plan.rank, alpha=plan.alpha, targets="all-linear"))
    classifier = words(model, tokenizer, plan, rows.features["label"].names)
    frozen = f1(classifier, tests)
    config = train.TrainConfig(steps=plan.steps, lr=plan.lr, warmup=plan.steps // 10, seed=seed, bar=bar)
    column = rows.column_names[0]
    batches = classifier.batches(rows[column][:], rows["label"][:], size=plan.size, seed=seed)
    losses = train.fit(classifier, batches, config).losses[-20:]
    loss, trained, seconds = sum(losses) / len(losses), f1(classifier, tests), round(time.perf_counter() - began, 1)
    made = Run(base=base, seed=seed, f1=round(trained, 3), frozen=round(frozen, 3), loss=round(loss, 5), seconds=seconds)
    return Trained(made, classifier, adapter)


def f1(classifier: "LabelWords", tests: "Dataset") -> float:
    """Macro-F1 on a test set, in points."""
    texts, labels = tests[tests.column_names[0]][:], tests["label"][:]
    return 100 * macro_f1(labels, _guesses(classifier, texts), len(classifier.names))


@torch.no_grad()
def _guesses(classifier: "LabelWords", texts: Sequence[str], size: int = 50) -> list[int]:
    """As `classifier.guesses`, in one pass for all classes instead of one for each: their words are single tokens."""
    tokens = torch.tensor([answer[0] for answer in classifier.answers])
    found = []
    for start in range(0, len(texts), size):
        batch = classifier.batch(texts[start : start + size])
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
        logits = classifier.model.eval()(**batch, position_ids=positions, logits_to_keep=1).logits
        found += logits[:, -1, tokens].argmax(-1).tolist()
    return found


# ---- all runs ---------------------------------------------------------------------------------------------------------


def measure(plan: Plan | None = None, *, out: Path = FILE, kept: Path | None = None) -> Measured:
    """Make every run that is not kept yet, write all to `out`, and return them.

    kept: the folder of finished runs, by default below the learner's own folder, one for each plan.
    Raises: KeyboardInterrupt after Ctrl-C, when finished runs are kept.
    """
    plan = plan or Plan()
    kept = kept or progress.home() / "quantization" / f"par-{_identity(plan)}"
    kept.mkdir(parents=True, exist_ok=True)
    runs = tuple(_once(base, seed, plan, kept) for seed in plan.seeds for base in ("float32", "nf4"))
    minutes = sum(run.seconds for run in runs) / 60
    measured = Measured(runs=runs, plan=plan, provenance=results.provenance(COMMAND, minutes, "torch", "transformers"))
    results.write(out, measured.to_json())
    return measured


def _identity(plan: Plan) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(asdict(replace(plan, seeds=()))).encode()).hexdigest()[:8]


def _once(base: Base, seed: int, plan: Plan, kept: Path) -> Run:
    path = kept / f"{base}-{seed}.json"
    if path.exists():
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    with results.one_thread():
        made = train_one(base, seed, plan).run
    results.write(path, json.dumps(asdict(made)))
    print(f"{base:8} seed {seed}: F1 {made.f1:.1f}, before training {made.frozen:.1f} ({made.seconds:.0f} s)", flush=True)
    return made


def load(path: Path = FILE) -> Measured:
    """The recorded runs.

    Raises: FileNotFoundError where nobody has measured them; ValueError for a damaged file. Both say how to measure them.
    """
    heading, runs = results.read(path, COMMAND, "the pairs of LoRA and QLoRA")
    with results.damaged(path, COMMAND):
        plan = {name: tuple(value) if isinstance(value, list) else value for name, value in heading.pop("plan").items()}
        return Measured(runs=tuple(Run(**run) for run in runs), plan=Plan(**plan), provenance=heading)


def one_more(measured: Measured, base: Base, *, bar: bool = True) -> Trained:
    """One run live, with a seed that nobody has recorded."""
    return train_one(base, max(measured.plan.seeds) + 1, measured.plan, bar=bar)
