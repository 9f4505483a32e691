"""What an encoder is worth: fine-tuned on few labels and on all, from its weights and from random ones, on the six twins.

    twin × (64 labels a class | all) × (pre-trained | random start) × seeds ─► macro-F1 beside the best achievable
    summaries × (pre-trained | random start) × seeds                        ─► ROUGE-L beside the text's first sentence

Each start has its own learning rate, chosen on the validation split with the first seed. T5 answers in text: the label whose
name it finds most likely, the summary it writes greedily.

Does:     macro-F1 and ROUGE-L with their spread over seeds.
Leaves out: methods of adaptation (see the later packages): every weight is trained here.
Source:   Devlin et al. 2019 §4.1 (fine-tuning); Raffel et al. 2020 §2.4 (text to text); Lin 2004 (ROUGE).
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
from llmcourse.metrics import macro_f1, rouge
from llmcourse.pretraining.recipe import with_sinusoids
from llmcourse.train import TrainConfig, fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "TWINS",
    "Classified",
    "Summaries",
    "Summarised",
    "Transfer",
    "classified",
    "measure_summaries",
    "measure_transfer",
    "summarised",
]

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


@dataclass(frozen=True)
class Summarised:
    """A split of texts, each with the summary to learn and every summary that is as good."""

    texts: tuple[str, ...]
    summaries: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Summaries:
    """ROUGE-L against the nearest good summary: from both starts, and of the text's first sentence."""

    tuned: tuple[float, ...]
    tuned_random: tuple[float, ...]
    first_sentence: float


def classified(name: str, split: str) -> Classified:
    """A twin's split."""
    rows = data.load(name, split)
    text = next(column for column in ("text", "sentence") if column in rows.column_names)
    return Classified(tuple(rows[text]), tuple(rows["label"]), tuple(rows.features["label"].names))


def summarised(split: str) -> Summarised:
    """A split of the town's summaries."""
    rows = data.load("town-summaries", split)
    return Summarised(tuple(rows["text"]), tuple(rows["summary"]), tuple(map(tuple, rows["references"])))


# ---------------------------------------------------------------------------------------------------------- kinds of model


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a family learns a set (a fresh model, a batch of rows by number), and how well a fitted model answers one."""

    model: Callable[[], nn.Module]
    batch: Callable[[Any, Sequence[int]], dict[str, Tensor]]
    score: Callable[[nn.Module, Any], float]


def _right(guesses: Callable[[nn.Module, Classified], list[int]]) -> Callable[[nn.Module, Classified], float]:
    return lambda model, rows: macro_f1(rows.labels, guesses(model, rows), len(rows.names))


def _encoding(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], dict[str, Tensor]]:
    return lambda texts: dict(tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"))


def _targets(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """What the decoder has to write; -100 behind the end."""
    answers = _encoding(tokenizer)(texts)
    return answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)


def _encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Task:
    from transformers import BertForSequenceClassification

    encode = _encoding(tokenizer)

    def fresh() -> nn.Module:
        config = copy.deepcopy(model.config)
        config.num_labels = len(names)
        classifier = BertForSequenceClassification(config)
        classifier.bert.load_state_dict(model.bert.state_dict(), strict=False)
        return classifier

    def batch(rows: Classified, chosen: Sequence[int]) -> dict[str, Tensor]:
        return encode([rows.texts[i] for i in chosen]) | {"labels": torch.tensor([rows.labels[i] for i in chosen])}

    def guesses(classifier: nn.Module, rows: Classified) -> list[int]:
        return [label for part in _parts(rows.texts) for label in classifier(**encode(part)).logits.argmax(-1).tolist()]

    return Task(model=fresh, batch=batch, score=_right(guesses))


def _text_to_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Task:
    encode, targets = _encoding(tokenizer), _targets(tokenizer, names)

    def batch(rows: Classified, chosen: Sequence[int]) -> dict[str, Tensor]:
        return encode([rows.texts[i] for i in chosen]) | {"labels": targets[[rows.labels[i] for i in chosen]]}

    def guesses(fitted: nn.Module, rows: Classified) -> list[int]:
        found = []
        for part in _parts(rows.texts):
            inputs = encode(part)
            read = fitted.get_encoder()(**inputs)
            scores = []
            for target in targets:
                labels = target.repeat(len(part), 1)  # not expand: T5 views its labels as one row
                logits = fitted(encoder_outputs=read, attention_mask=inputs["attention_mask"], labels=labels).logits.float()
                each = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
                scores.append(-each.sum(1))
            found += torch.stack(scores, 1).argmax(1).tolist()
        return found

    return Task(model=lambda: copy.deepcopy(model), batch=batch, score=_right(guesses))


def _summariser(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Task:
    encode = _encoding(tokenizer)

    def batch(rows: Summarised, chosen: Sequence[int]) -> dict[str, Tensor]:
        return encode([rows.texts[i] for i in chosen]) | {"labels": _targets(tokenizer, [rows.summaries[i] for i in chosen])}

    def score(fitted: nn.Module, rows: Summarised) -> float:
        written = []
        for part in _parts(rows.texts):
            ids = fitted.generate(**encode(part), max_new_tokens=40, do_sample=False, num_beams=1)
            written += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return _rouge_l(written, rows)

    return Task(model=lambda: copy.deepcopy(model), batch=batch, score=score)


def _rouge_l(written: Sequence[str], rows: Summarised) -> float:
    return statistics.mean(
        rouge(text, references)["rougeL"].f1 for text, references in zip(written, rows.references, strict=True)
    )


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


def measure_summaries(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seeds: int = 3) -> Summaries:
    """One-sentence summaries by a T5 from both starts, 250 steps of 16 texts each."""
    splits = {split: summarised(split) for split in ("train", "validation", "test")}
    starts = (_summariser(start, tokenizer) for start in (model, _randomised(model)))
    tuned, tuned_random = (_scores(task, [splits["train"]] * seeds, splits, steps=250) for task in starts)
    first = [text[: text.index(".") + 1] for text in splits["test"].texts]
    return Summaries(tuned=tuned, tuned_random=tuned_random, first_sentence=_rouge_l(first, splits["test"]))


def _measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, twin: str, per_class: int, seeds: int) -> Transfer:
    splits = {split: classified(twin, split) for split in ("train", "validation", "test")}
    few = [splits["train"].few(per_class, seed) for seed in range(seeds)]
    make = _encoder if model.config.model_type == "bert" else _text_to_text
    task, random_start = (make(start, tokenizer, splits["train"].names) for start in (model, _randomised(model)))
    return Transfer(
        twin=twin,
        few=_scores(task, few, splits, steps=150),
        few_random=_scores(random_start, few, splits, steps=150),
        all=_scores(task, [splits["train"]] * min(2, seeds), splits, steps=350),
        best=data.best(twin)["macro_f1"],
    )


def _randomised(model: PreTrainedModel) -> PreTrainedModel:
    """The same network as it was before pre-training began."""
    torch.manual_seed(0)
    start = type(model)(copy.deepcopy(model.config))
    return with_sinusoids(start) if model.config.model_type == "bert" else start


def _scores(task: Task, rows: Sequence[Any], splits: dict[str, Any], steps: int) -> tuple[float, ...]:
    """Test scores, one for each training set, at the learning rate that does best on validation with the first."""
    tried = {rate: _fitted(task, rows[0], rate, steps, seed=0) for rate in RATES}
    rate = max(tried, key=lambda rate: _score(task, tried[rate], splits["validation"]))
    fitted = [tried[rate], *(_fitted(task, own, rate, steps, seed) for seed, own in enumerate(rows[1:], 1))]
    return tuple(_score(task, one, splits["test"]) for one in fitted)


def _fitted(task: Task, rows: Any, rate: float, steps: int, seed: int, size: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    model = task.model()
    model.set_attn_implementation("eager")  # 2.5 times as fast as the fused kernel on a CPU in bfloat16

    def batch(step: int) -> dict[str, Any]:
        return task.batch(rows, Random(f"{seed}/{step}").choices(range(len(rows.texts)), k=size))

    config = TrainConfig(steps=steps, lr=rate, schedule="linear", warmup=steps // 10, precision="bfloat16", seed=seed, bar=False)
    fit(model, batch, config)
    return model.eval()


@torch.no_grad()
def _score(task: Task, model: nn.Module, rows: Any) -> float:
    return task.score(model, rows)
