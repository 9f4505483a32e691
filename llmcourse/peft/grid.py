"""The measured comparison: every method on two twins and two models, and how rank, data and size change it.

    methods   16 methods × 2 twins × every encoder × 3 seeds
    margins   4 of them, which are claimed to be as good as another    × 5 seeds
    ranks     LoRA of rank 1 … 64, and the head alone                × 9 seeds
    data      6 methods × 16, 64, 256 labels of each class, or all   × 5 seeds
    scale     prompt tuning and full fine-tuning × decoders by size  × 5 seeds
    shots     IA3 trained on 4 labels of each class; the same 4 shown in the context of the frozen model     × 5 seeds

    each setting's learning rate: a ladder of three rates, by factors of three, longer while the best is at its end; on validation
    texts, with a seed that nothing else uses

The twins are the two on which a short trial (a head alone, full fine-tuning, LoRA, prompt tuning, P-tuning v2; 100 updates of 8
texts, tiny-bert-small, validation texts, one seed) set the methods furthest apart: LoRA was 22 points of macro-F1 above the head
alone on twin-irony and 12 on twin-stance, 11 on twin-auditor; on twin-phrasebank nothing learned anything in so few updates.

Does:     one kept file a run, so that Ctrl-C loses at most the run under way; a bar whose time left knows that large models are
          slow; results with command, commit, versions and minutes; one run more, live, against the recorded ones.
Leaves out: other tasks and models; a search over anything but the learning rate.
Source:   He et al. 2022, "Towards a Unified View", §4 (one protocol for all methods).
"""

import io
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from llmcourse import results, zoo
from llmcourse.exercise import progress
from llmcourse.metrics import Interval, paired, prediction_interval

from .contest import IN_CONTEXT, METHODS, Contestant, Run, Setting, Training, method, run

__all__ = ["COMMAND", "FILE", "Measured", "Plan", "Section", "load", "measure", "one_more"]

FILE = Path(__file__).with_name("grid.json")
COMMAND = "llmcourse measure peft"
LADDER = 3.0  # from one rate to the next


class Section(NamedTuple):
    """A part of the comparison: its settings, each of which is run with every seed."""

    name: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run. The first model and twin serve the sweeps too. family: models of one kind, by size. decoder: for the shots."""

    models: tuple[str, ...] = ("tiny-bert-small",)
    twins: tuple[str, ...] = ("twin-stance", "twin-irony")
    methods: tuple[str, ...] = tuple(name for name in METHODS if name != IN_CONTEXT)
    margins: tuple[str, ...] = ("full fine-tuning", "Houlsby adapter", "prefix tuning", "P-tuning v2")
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    labels: tuple[int, ...] = (16, 64, 256, 0)
    few: tuple[str, ...] = ("full fine-tuning", "LoRA", "prefix tuning", "prompt tuning", "BitFit", "IA3")
    family: tuple[str, ...] = ("tiny-gpt-small", "tiny-gpt")
    decoder: str = "tiny-gpt"
    shots: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    rank_seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8)
    sweep_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    choosing_seed: int = 9
    training: Training = field(default_factory=Training)

    def sections(self) -> list[Section]:
        """All that is run, in its order."""
        model, twin = self.models[0], self.twins[0]
        main = [Setting(model=m, twin=t, method=name) for m in self.models for t in self.twins for name in self.methods]
        ranks = [Setting(model=model, twin=twin, method="LoRA", rank=r) for r in self.ranks]
        ranks.append(Setting(model=model, twin=twin, method="head only"))
        few = [Setting(model=model, twin=twin, method=name, labels=n) for n in self.labels for name in self.few]
        pair = ("full fine-tuning", "prompt tuning")
        scale = [Setting(model=m, twin=twin, method=name) for m in self.family for name in pair]
        shots = [Setting(model=self.decoder, twin=twin, method=name, labels=self.shots) for name in ("IA3", IN_CONTEXT)]
        return [
            Section("methods", tuple(main), self.seeds),
            Section("margins", tuple(each for each in main if each.method in self.margins), self.sweep_seeds),
            Section("ranks", tuple(ranks), self.rank_seeds),
            Section("data", tuple(few), self.sweep_seeds),
            Section("scale", tuple(scale), self.sweep_seeds),
            Section("shots", tuple(shots), self.sweep_seeds),
        ]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All runs, those of the search for learning rates among them (split "validation"), and where they come from."""

    runs: tuple[Run, ...]
    plan: Plan
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def of(self, *, split: str = "test", **wanted: object) -> list[Run]:
        """The runs with these fields, by seed; `labels=0` and `rank=8` unless others are named.

        Raises: ValueError where there is none, with the nearest method where that is unknown.
        """
        if "method" in wanted:
            method(str(wanted["method"]))
        wanted = {"labels": 0, "rank": 8, "split": split} | wanted
        found = [run for run in self.runs if all(getattr(run, name) == value for name, value in wanted.items())]
        if not found:
            raise ValueError(f"no run with {', '.join(f'{name}={value!r}' for name, value in wanted.items())} is recorded")
        return sorted(found, key=lambda run: run.seed)

    def f1(self, **wanted: object) -> list[float]:
        """Macro-F1 on the test texts, one number a seed."""
        return [run.f1 for run in self.of(**wanted)]

    def rate(self, setting: Setting) -> float:
        """The learning rate that was chosen for a setting. Raises: ValueError as `of`."""
        return self.of(**asdict(setting))[0].lr

    def minus(self, one: Mapping[str, object], other: Mapping[str, object], **both: object) -> Interval:
        """F1 of `one` less that of `other`, over the twins and seeds both have."""
        scores = [{(run.twin, run.seed): run.f1 for run in self.of(**both, **each)} for each in (one, other)]
        pairs = sorted(scores[0].keys() & scores[1].keys())
        return paired(*([score[pair] for pair in pairs] for score in scores))

    def interval(self, setting: Setting) -> Interval:
        """Where the F1 of one more run of this setting should fall; at least ± 1 point, where seeds hardly differ."""
        mean, low, high = prediction_interval(self.f1(**asdict(setting)))
        return Interval(mean, min(low, mean - 1), max(high, mean + 1))

    def claim_numbers(self) -> dict[str, dict[str, float | Interval]]:
        """What the ledger's claims need, by claim.

        Said beforehand: on a par with full fine-tuning is judged on the largest encoder, over both twins; ranks, data and shots
        on the first twin, with the smallest encoder; "little data" is the smallest number of labels.
        """
        p = self.plan
        small, large = {"model": p.models[0], "twin": p.twins[0]}, {"model": p.models[-1]}
        few, full = small | {"labels": min(n for n in p.labels if n)}, {"method": "full fine-tuning"}
        rank = {r: {"method": "LoRA", "rank": r} for r in p.ranks}
        shots = {"model": p.decoder, "twin": p.twins[0], "labels": p.shots}
        return {
            "lora-rank": {
                "f1_rank16_minus_frozen": self.minus(rank[16], {"method": "head only"}, **small),
                "f1_rank64_minus_rank16": self.minus(rank[64], rank[16], **small),
                "f1_rank32_minus_rank4": self.minus(rank[32], rank[4], **small),
            },
            "prompt-scale": {
                "gap_smallest_model": self.minus(full, {"method": "prompt tuning"}, model=p.family[0]),
                "gap_smallest_minus_gap_largest": paired(self.gaps(p.family[0]), self.gaps(p.family[-1])),
            },
            "prefix-params": {
                "f1_prefix_minus_full": self.minus({"method": "prefix tuning"}, full, **large),
                "f1_prefix_minus_full_little_data": self.minus({"method": "prefix tuning"}, full, **few),
            },
            "ptuningv2-params": {
                "share": self.share("P-tuning v2"),
                "f1_ptuningv2_minus_full": self.minus({"method": "P-tuning v2"}, full, **large),
            },
            "adapter-26": {
                "share": self.share("Houlsby adapter"),
                "f1_adapter_minus_full": self.minus({"method": "Houlsby adapter"}, full, **large),
            },
            "bitfit-small": {
                "share": self.share("BitFit"),
                "f1_bitfit_minus_full_little_data": self.minus({"method": "BitFit"}, full, **few),
            },
            "ia3-fewest": {
                "lora": self.adapter("LoRA"),
                "ia3": self.adapter("IA3"),
                "f1_ia3_minus_in_context": self.minus({"method": "IA3"}, {"method": IN_CONTEXT}, **shots),
            },
        }

    def gaps(self, model: str) -> list[float]:
        """What prompt tuning lacks of full fine-tuning, one number a seed."""
        scores = [self.f1(model=model, twin=self.plan.twins[0], method=name) for name in ("full fine-tuning", "prompt tuning")]
        return [full - prompt for full, prompt in zip(*scores, strict=True)]

    def adapter(self, name: str) -> int:
        """Parameters that a method trains beside the head, in the largest encoder."""
        where = {"model": self.plan.models[-1], "twin": self.plan.twins[0]}
        return self.of(**where, method=name)[0].trained - self.of(**where, method="head only")[0].trained

    def share(self, name: str) -> float:
        """Those parameters in per cent of the encoder's."""
        where = {"model": self.plan.models[-1], "twin": self.plan.twins[0]}
        return 100 * self.adapter(name) / self.of(**where, method="full fine-tuning")[0].total


# ---- measuring --------------------------------------------------------------------------------------------------------


def measure(plan: Plan | None = None, *, out: Path = FILE, kept: Path | None = None, bar: bool = True) -> Measured:
    """Make every run that is not kept yet, write all to `out`, and return them.

    kept: the folder of finished runs, by default below the learner's own folder, one for each way of training.
    Raises: KeyboardInterrupt after Ctrl-C, when finished runs are kept; OSError when a file cannot be written.
    """
    plan = plan or Plan()
    kept = kept or progress.home() / "peft" / f"grid-{zlib.crc32(repr(plan.training).encode()):08x}"
    kept.mkdir(parents=True, exist_ok=True)
    runs: dict[str, tuple[Run, float]] = {}
    with results.one_thread(), _Bar(plan, bar) as shown:
        for section in plan.sections():
            for setting in section.settings:
                _setting(setting, section.seeds, _Keeper(plan, kept, shown, runs))
    minutes = sum(minutes for _, minutes in runs.values())
    provenance = results.provenance(COMMAND, minutes, "torch", "transformers")
    measured = Measured(runs=tuple(made for made, _ in runs.values()), plan=plan, provenance=provenance)
    results.write(out, _to_json(measured))
    return measured


def _setting(setting: Setting, seeds: Sequence[int], keeper: "_Keeper") -> None:
    """The search for the learning rate, then a run for each seed."""
    rate = _best_rate(setting, keeper)
    for seed in seeds:
        keeper.run(setting, seed, rate, "test")


def _best_rate(setting: Setting, keeper: "_Keeper") -> float:
    first = method(setting.method).rate
    if first is None:
        return 0.0

    def rate(rung: int) -> float:
        return float(f"{first * LADDER**rung:.2g}")

    @cache
    def f1(rung: int) -> float:
        return keeper.run(setting, keeper.plan.choosing_seed, rate(rung), "validation").f1

    best = 0
    while (better := max((best, best - 1, best + 1), key=f1)) != best:
        best = better
    return rate(best)


class _Keeper(NamedTuple):
    """Makes runs, or takes them from their files."""

    plan: Plan
    folder: Path
    shown: "_Bar"
    runs: dict[str, tuple[Run, float]]

    def run(self, setting: Setting, seed: int, lr: float, split: str) -> Run:
        """One run, kept in a file of its own, whose name says all that decides it."""
        what = "-".join(str(part) for part in (*asdict(setting).values(), split, seed, f"{lr:g}"))
        path = self.folder / f"{what}-{_weights(setting.model):08x}.json".replace(" ", "_")
        if not (kept := path.exists()):
            step = self.shown.during(setting, split, seed)
            began = time.process_time()
            made, _ = run(setting, seed, lr, self.plan.training, split=split, step=step, memory=split == "test")
            minutes = (time.process_time() - began) / 60
            results.write(path, json.dumps({"run": asdict(made), "minutes": round(minutes, 4)}))
        self.shown.finish(setting, what, kept=kept)
        found = json.loads(path.read_text(encoding="utf-8"))
        self.runs[what] = Run(**found["run"]), found["minutes"]
        return self.runs[what][0]


@cache
def _weights(model: str) -> int:
    """A checksum: a model that was trained anew must be measured anew."""
    return zlib.crc32((zoo.FOLDER / model / "model.safetensors").read_bytes())


class _Bar:
    """A text progress bar in units of work: a run's work grows with its model's file.

    Four runs are expected to find a learning rate; the total grows where it takes more. Runs that were kept from an earlier call,
    or belong to two sections, take no time.
    """

    def __init__(self, plan: Plan, on: bool) -> None:
        settings = {setting: len(section.seeds) for section in plan.sections() for setting in section.settings}
        self.total = sum(self.work(setting) * (4 + seeds) for setting, seeds in settings.items())
        self.steps, self.on, self.done, self.seen = plan.training.steps, on, 0.0, set()

    def __enter__(self) -> "_Bar":
        from tqdm.std import tqdm

        layout = "{percentage:3.0f}%|{bar:30}| {elapsed} < {remaining} left{postfix}"
        file = None if self.on else io.StringIO()
        self.shown = tqdm(total=self.total, file=file, bar_format=layout, smoothing=0, mininterval=0.5)
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.shown.total = self.total if kind else self.done
        self.shown.close()

    @staticmethod
    def work(setting: Setting) -> float:
        """Megabytes of weights, and an overhead as of 1.5."""
        path = zoo.FOLDER / setting.model / "model.safetensors"
        return 1.5 + (path.stat().st_size / 1e6 if path.exists() else 5.0)

    def during(self, setting: Setting, split: str, seed: int) -> Callable[[], object]:
        """What to call at each update of this run."""
        labels = f", {setting.labels} labels" if setting.labels else ""
        self.shown.set_postfix_str(f"{setting.model}, {setting.twin}, {setting.method}{labels}, {split} {seed}", refresh=False)
        work = self.work(setting)
        return lambda: self.shown.update(min(work / self.steps, self.done + work - self.shown.n))

    def finish(self, setting: Setting, what: str, *, kept: bool) -> None:
        """This run is over, or was there before."""
        if what in self.seen:
            return
        self.seen.add(what)
        self.done += self.work(setting)
        self.shown.total = max(self.total, self.done)
        if kept:
            self.shown.initial += self.work(setting)
        self.shown.update(self.done - self.shown.n)


# ---- the file ---------------------------------------------------------------------------------------------------------


def _to_json(measured: Measured) -> str:
    return results.lines({**measured.provenance, "plan": asdict(measured.plan)}, [asdict(run) for run in measured.runs])


def load(path: Path = FILE) -> Measured:
    """The recorded runs.

    Raises: FileNotFoundError where nobody has measured them; ValueError for a damaged file. Both say how to measure them.
    """
    heading, runs = results.read(path, COMMAND, "the methods")
    with results.damaged(path, COMMAND):
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in heading.pop("plan").items()}
        plan = Plan(**{**fields, "training": Training(**fields["training"])})
        return Measured(runs=tuple(Run(**each) for each in runs), plan=plan, provenance=heading)


# ---- once more --------------------------------------------------------------------------------------------------------


def one_more(measured: Measured, setting: Setting) -> tuple[Run, Contestant]:
    """One run live, with the recorded learning rate and a seed that nobody has recorded, and what it trained.

    Raises: ValueError where the setting is not recorded.
    """
    rate = measured.rate(setting)
    seed = max(run.seed for run in measured.runs) + 1
    with results.one_thread():
        return run(setting, seed, rate, measured.plan.training)
