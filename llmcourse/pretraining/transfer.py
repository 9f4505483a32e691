"""What an encoder is worth: fine-tuned on few labels and on all, from its weights and from random ones, on the six twins.

    twin × (64 labels a class | all) × (pre-trained | random start) × seeds ─► macro-F1 beside the best achievable

Each start has its own learning rate, chosen on the validation split with the first seed. T5 answers in text: the label whose
name it finds most likely.

Does:     macro-F1 with its spread over seeds.
Leaves out: summaries; methods of adaptation (see the later packages): every weight is trained here.
Source:   Devlin et al. 2019 §4.1 (fine-tuning); Raffel et al. 2020 §2.4 (text to text).
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmcourse import data
from llmcourse.train import TrainConfig, fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TWINS", "Classified", "Transfer", "classified", "macro_f1", "measure_transfer"]

TWINS = ("twin-ag-news", "twin-auditor", "twin-imdb", "twin-phrasebank", "twin-irony", "twin-stance")
RATES = (5e-4, 2e-3)
LONGEST = 96  # tokens of a text


@dataclass(frozen=True)
class Classified:
    """A labelled split: texts, label numbers, label names."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def few(self, per_class: int, seed: int) -> Classified:
        """`per_class` drawn examples of every class (all there are, if fewer)."""
        rng, chosen = Random(f"few/{seed}"), []
        for label in range(len(self.names)):
            own = [i for i, found in enumerate(self.labels) if found == label]
            chosen += rng.sample(own, min(per_class, len(own)))
        rng.shuffle(chosen)
        return Classified(tuple(self.texts[i] for i in chosen), tuple(self.labels[i] for i in chosen), self.names)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Macro-F1 of one twin: from both starts with few labels, from the weights with all, and the best achievable."""

    twin: str
    few: tuple[float, ...]
    few_random: tuple[float, ...]
    all: tuple[float, ...]
    best: float

    @property
    def gain(self) -> float:
        """What pre-training adds with few labels."""
        return statistics.mean(self.few) - statistics.mean(self.few_random)

    @property
    def reached(self) -> float:
        """The share of the best achievable that all labels reach."""
        return statistics.mean(self.all) / self.best


def classified(name: str, split: str) -> Classified:
    """A twin's split."""
    rows = data.load(name, split)
    text = next(column for column in ("text", "sentence") if column in rows.column_names)
    return Classified(tuple(rows[text]), tuple(rows["label"]), tuple(rows.features["label"].names))


def macro_f1(truth: Sequence[int], guesses: Sequence[int], classes: int) -> float:
    """The mean over classes of 2·TP / (2·TP + FP + FN); a class neither present nor guessed counts 0."""
    scores = []
    for label in range(classes):
        hits = sum(t == g == label for t, g in zip(truth, guesses, strict=True))
        named = sum(t == label for t in truth) + sum(g == label for g in guesses)
        scores.append(2 * hits / named if named else 0.0)
    return sum(scores) / classes


# ---------------------------------------------------------------------------------------------------------- kinds of model


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a family learns a labelled set and answers."""

    model: Callable[[], nn.Module]
    batch: Callable[[Classified, Sequence[int]], dict[str, Tensor]]
    guesses: Callable[[nn.Module, Classified], list[int]]


def _encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Task:
    from transformers import BertForSequenceClassification

    def fresh() -> nn.Module:
        config = copy.deepcopy(model.config)
        config.num_labels = len(names)
        classifier = BertForSequenceClassification(config)
        classifier.bert.load_state_dict(model.bert.state_dict(), strict=False)
        return classifier

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"))

    def batch(rows: Classified, chosen: Sequence[int]) -> dict[str, Tensor]:
        return encode([rows.texts[i] for i in chosen]) | {"labels": torch.tensor([rows.labels[i] for i in chosen])}

    def guesses(classifier: nn.Module, rows: Classified) -> list[int]:
        return [label for part in _parts(rows.texts) for label in classifier(**encode(part)).logits.argmax(-1).tolist()]

    return Task(model=fresh, batch=batch, guesses=guesses)


def _text_to_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Task:
    answers = tokenizer(list(names), padding=True, return_tensors="pt")
    targets = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"))

    def batch(rows: Classified, chosen: Sequence[int]) -> dict[str, Tensor]:
        return encode([rows.texts[i] for i in chosen]) | {"labels": targets[[rows.labels[i] for i in chosen]]}

    def guesses(fitted: nn.Module, rows: Classified) -> list[int]:
        found = []
        for part in _parts(rows.texts):
            inputs = encode(part)
            scores = []
            for target in targets:
                labels = target.repeat(len(part), 1)  # not expand: T5 views its labels as one row
                logits = fitted(**inputs, labels=labels).logits.float()
                each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
                scores.append(-each.sum(1))
            found += torch.stack(scores, 1).argmax(1).tolist()
        return found

    return Task(model=lambda: copy.deepcopy(model), batch=batch, guesses=guesses)


def _parts(texts: Sequence[str], size: int = 64) -> list[Sequence[str]]:
    return [texts[i : i + size] for i in range(0, len(texts), size)]


# ---------------------------------------------------------------------------------------------------------------- measuring


def measure_transfer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    twins: Sequence[str] = TWINS,
    per_class: int = 64,
    seeds: int = 3,
    told: Callable[[str], None] = lambda text: None,
) -> list[Transfer]:
    """Every twin from both starts. `told` is called with a line after each twin."""
    from tqdm.std import tqdm

    found = []
    for twin in tqdm(twins, unit="twin"):
        found.append(_measured(model, tokenizer, twin, per_class, seeds))
        told(f"{twin}: gain {found[-1].gain:+.3f}, reached {found[-1].reached:.1%}")
    return found


def _measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, twin: str, per_class: int, seeds: int) -> Transfer:
    splits = {split: classified(twin, split) for split in ("train", "validation", "test")}
    few = [splits["train"].few(per_class, seed) for seed in range(seeds)]
    return Transfer(
        twin=twin,
        few=_scores(model, tokenizer, few, splits, steps=150),
        few_random=_scores(_randomised(model), tokenizer, few, splits, steps=150),
        all=_scores(model, tokenizer, [splits["train"]] * min(2, seeds), splits, steps=350),
        best=data.best(twin)["macro_f1"],
    )


def _randomised(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(0)
    return type(model)(copy.deepcopy(model.config))


def _scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Classified],
    splits: dict[str, Classified],
    steps: int,
) -> tuple[float, ...]:
    """Test scores, one for each training set, at the learning rate that does best on validation with the first."""
    make = _encoder if model.config.model_type == "bert" else _text_to_text
    task = make(model, tokenizer, rows[0].names)
    tried = {rate: _fitted(task, rows[0], rate, steps, seed=0) for rate in RATES}
    rate = max(tried, key=lambda rate: _score(task, tried[rate], splits["validation"]))
    fitted = [tried[rate], *(_fitted(task, own, rate, steps, seed) for seed, own in enumerate(rows[1:], 1))]
    return tuple(_score(task, one, splits["test"]) for one in fitted)


def _fitted(task: Task, rows: Classified, rate: float, steps: int, seed: int, size: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    model = task.model()

    def batch(step: int) -> dict[str, Any]:
        return task.batch(rows, Random(f"{seed}/{step}").choices(range(len(rows.texts)), k=size))

    config = TrainConfig(steps=steps, lr=rate, schedule="linear", warmup=steps // 10, precision="bfloat16", seed=seed, bar=False)
    fit(model, batch, config)
    return model.eval()


@torch.no_grad()
def _score(task: Task, model: nn.Module, rows: Classified) -> float:
    return macro_f1(rows.labels, task.guesses(model, rows), len(rows.names))
