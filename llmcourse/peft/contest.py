"""One run of the comparison: a method, a model, a twin, a learning rate, a seed; what it reaches and what it costs.

    encoder    ─► body with the method's adapter ─► the state at the closing <|sep|> ─► fresh head ─► class
    T5, Llama  ─► model with the method's adapter ─► the likeliest of a word for each class

At <|bos|>, where BERT's head usually reads, our encoders have been taught to tell the marks of such texts (`world.marked`): a
head alone is as good there as any method. The state at <|sep|> is one that pre-training asked nothing of: the body must change.

Does:     sixteen methods, each in a size as its paper's, for models of this size; training on all labels or on some of each
          class; macro-F1; CPU seconds; peak memory of training; what must be kept on disk.
Leaves out: the choice of the learning rate, several seeds, the file of results (see grid).
Source:   Houlsby et al. 2019 §3 and He et al. 2022 §4 for what is worth comparing.
"""

import difflib
import io
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmcourse import data, peft, zoo
from llmcourse.fine_tuning.classify import Classifier, HeadClassifier, LabelWords, Output, pooled
from llmcourse.fine_tuning.formats import Verbaliser
from llmcourse.metrics import macro_f1
from llmcourse.train import TrainConfig, TrainingDiverged, fit

if TYPE_CHECKING:
    from .interface import Config, Handle

__all__ = [
    "IN_CONTEXT",
    "METHODS",
    "Contestant",
    "Examples",
    "Method",
    "Run",
    "Setting",
    "Training",
    "enter",
    "method",
    "peak_bytes",
    "run",
]

# ---- what a run is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is compared. labels: so many of each class, 0: all there are. rank: of LoRA and its kin."""

    model: str
    twin: str
    method: str
    labels: int = 0
    rank: int = 8


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all runs have in common: updates, texts an update; how many texts of the validation and test splits are asked."""

    steps: int = 100
    size: int = 8
    validated: int = 250
    tested: int = 500


@dataclass(frozen=True, kw_only=True)
class Run(Setting):
    """One run made. f1: macro-F1 on `split`, in points, 0 where training diverged. loss: mean of the last twenty updates.

    trained: parameters that learn, the head among them; total: all there are. seconds: CPU time of training. file: bytes that
    must be kept. memory: peak bytes of training, the weights included, where they were measured.
    """

    lr: float
    seed: int
    split: str
    f1: float
    loss: float | None
    trained: int
    total: int
    seconds: float
    file: int
    memory: int | None = None

    @property
    def setting(self) -> Setting:
        """What was compared."""
        return Setting(model=self.model, twin=self.twin, method=self.method, labels=self.labels, rank=self.rank)

    @property
    def share(self) -> float:
        """How much of the model learns, in per cent."""
        return 100 * self.trained / self.total


# ---- the methods ------------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """Where the search for the learning rate begins (None: nothing is trained), the adapter for a LoRA rank, if it has one."""

    rate: float | None
    config: Callable[[int], "Config"] | None = None
    frozen: bool = True


def _lora(rank: int) -> "Config":
    return peft.lora.Config(r=rank, alpha=16)


def _prompt(_: int = 0) -> "Config":
    return peft.prompt_tuning.Config(n_tokens=10)


def _written_prefix(n_tokens: int) -> "Config":
    return peft.prefix.Config(n_tokens=n_tokens, projection=True, hidden=64)


def _mam(_: int) -> "Config":
    return peft.mam.Config(prefix=_written_prefix(5), adapter=peft.adapters.Parallel(bottleneck=16))


def _unipelt(rank: int) -> "Config":
    adapter = peft.adapters.Houlsby(bottleneck=16)
    return peft.unipelt.Config(lora=_lora(rank), prefix=_written_prefix(5), adapter=adapter)


IN_CONTEXT = "in context"
METHODS: dict[str, Method] = {
    "full fine-tuning": Method(3e-4, frozen=False),
    "head only": Method(3e-2),
    "LoRA": Method(3e-3, _lora),
    "rsLoRA": Method(3e-3, lambda rank: peft.lora.Config(r=rank, alpha=16, rslora=True)),
    "DoRA": Method(3e-3, lambda rank: peft.dora.Config(r=rank, alpha=16)),
    "IA3": Method(1e-2, lambda _: peft.ia3.Config()),
    "BitFit": Method(3e-3, lambda _: peft.bitfit.Config()),
    "Houlsby adapter": Method(3e-3, lambda _: peft.adapters.Houlsby(bottleneck=16)),
    "parallel adapter": Method(3e-3, lambda _: peft.adapters.Parallel(bottleneck=16)),
    "prompt tuning": Method(3e-2, _prompt),
    "P-tuning": Method(1e-2, lambda _: peft.p_tuning.Config(n_tokens=10, encoder="mlp")),
    "P-tuning v2": Method(3e-2, lambda _: peft.prefix.Config(n_tokens=10)),
    "prefix tuning": Method(1e-2, lambda _: _written_prefix(10)),
    "MAM": Method(3e-3, _mam),
    "UniPELT": Method(3e-3, _unipelt),
    "LoRA + soft prompt": Method(3e-3, lambda rank: peft.hybrid.Config(lora=_lora(rank), prompt=_prompt())),
    IN_CONTEXT: Method(None),
}


def method(name: str) -> Method:
    """A method by its name.

    Raises: ValueError for an unknown name, with the nearest one.
    """
    if name not in METHODS:
        known = {each.lower(): each for each in METHODS}
        near = known[difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)[0]]
        raise ValueError(f'unknown method "{name}"; did you mean "{near}"? There are {", ".join(METHODS)}')
    return METHODS[name]


def _adapt(body: nn.Module, setting: Setting) -> "Handle | None":
    """Put the method on a body: a config's own module attaches it."""
    chosen = method(setting.method)
    body.requires_grad_(not chosen.frozen)
    if chosen.config is None:
        return None
    config = chosen.config(setting.rank)
    return sys.modules[type(config).__module__].attach(body, config)


# ---- texts and classifiers --------------------------------------------------------------------------------------------


class Examples(NamedTuple):
    """Texts, their labels, and the classes' names."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def some(self, per_class: int, seed: int) -> "Examples":
        """So many drawn examples of every class, in any order; 0: all."""
        if not per_class:
            return self
        draw = Random(f"labels/{seed}")
        own = ([i for i, label in enumerate(self.labels) if label == c] for c in range(len(self.names)))
        chosen = [i for each in own for i in draw.sample(each, min(per_class, len(each)))]
        draw.shuffle(chosen)
        return Examples(tuple(self.texts[i] for i in chosen), tuple(self.labels[i] for i in chosen), self.names)


@lru_cache(maxsize=32)
def _examples(twin: str, split: str, most: int | None = None) -> Examples:
    rows = data.load(twin, split)
    column = next(name for name in rows.column_names if name != "label")
    return Examples(tuple(rows[column][:most]), tuple(rows["label"][:most]), tuple(rows.features["label"].names))


class _LastHead(HeadClassifier):
    """A head on the state of a text's last token, wherever virtual tokens stand."""

    def forward(
        self, input_ids: Int[Tensor, "texts seq"], attention_mask: Int[Tensor, "texts seq"],
        labels: Int[Tensor, " texts"] | None = None,
    ) -> Output:  # fmt: skip
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        text = states[:, -input_ids.shape[1] :]
        logits = self.head(self.dropout(pooled(text, attention_mask, self.pool)))
        return Output(None if labels is None else F.cross_entropy(logits, labels), logits)


# A word for each class, one token with the space before it. Those of twin-stance are not the marks that the T5s were taught of
# such texts (open, against, for): with those, tiny-t5-mini needs a soft prompt only to be asked, and no method is better.
WORDS = {
    "twin-stance": ("open", "bad", "good"),
    "twin-irony": ("true", "joke"),
    "twin-auditor": ("bad", "open", "good"),
    "twin-phrasebank": ("bad", "open", "good"),
    "twin-imdb": ("bad", "good"),
}


def _pattern(model: nn.Module, twin: str) -> Verbaliser:
    """How a language model is asked: T5 reads the text alone.

    Raises: ValueError for a twin without words.
    """
    if twin not in WORDS:
        raise ValueError(f'no words for the classes of "{twin}"; a language model can be asked of {", ".join(WORDS)}')
    if model.config.is_encoder_decoder:
        return Verbaliser("{text}", tuple(f" {word}" for word in WORDS[twin]))
    return Verbaliser("{text} Answer:", WORDS[twin])


class _OneWord(LabelWords):
    """Label words of one token: all classes are judged in one pass."""

    def scores(self, texts: Sequence[str]) -> Float[Tensor, "texts classes"]:
        tokens = [answer[0] for answer in self.answers]
        batch = self.batch(texts)
        if self.model.config.is_encoder_decoder:
            start = torch.full((len(texts), 1), self.model.config.decoder_start_token_id)
            return self.model(**batch, decoder_input_ids=start).logits[:, -1, tokens]
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)  # padded on the left
        return self.model(**batch, position_ids=positions, logits_to_keep=1).logits[:, -1, tokens]


class _InContext(_OneWord):
    """The examples stand before every text, each with its answer; what the model thinks of a class on average is taken off."""

    def __init__(self, model: nn.Module, tokenizer: Any, names: Sequence[str], asked: Verbaliser, shown: Examples) -> None:
        told = [f"{asked.prompt(text)} {asked.words[label]}\n" for text, label in zip(shown.texts, shown.labels, strict=True)]
        verbaliser = Verbaliser("".join(told) + asked.template, asked.words)
        super().__init__(model, tokenizer, names, verbaliser, longest=model.config.max_position_embeddings)

    def log_probs(self, texts: Sequence[str], *, size: int = 16) -> Float[Tensor, "texts classes"]:
        found = super().log_probs(texts, size=size)
        return (found - found.mean(0)).log_softmax(-1)


@dataclass
class Contestant:
    """A classifier, with a method's handle on its body (None: no adapter), and the losses of its training."""

    setting: Setting
    classifier: Classifier
    handle: "Handle | None"
    losses: list[float] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many parameters learn, and how many there are."""
        sizes = [(p.numel(), p.requires_grad) for p in self.classifier.parameters()]
        return {"trained": sum(n for n, learns in sizes if learns), "total": sum(n for n, _ in sizes)}

    def kept(self) -> dict[str, Tensor]:
        """What must be kept beside the model: the adapter's file and the head; of full fine-tuning, everything."""
        adapter = self.handle.all_tensors() if self.handle else {}
        own = {id(p) for p in self.handle.parameters()} if self.handle else set()
        others = {name: p for name, p in self.classifier.named_parameters() if p.requires_grad and id(p) not in own}
        return adapter | others

    def file_bytes(self) -> int:
        """The size of a safetensors file of `kept`."""
        from safetensors.torch import save

        return len(save({name: tensor.detach().contiguous().clone() for name, tensor in self.kept().items()}))

    def f1(self, examples: Examples) -> float:
        """Macro-F1, in points."""
        return 100 * macro_f1(examples.labels, self.classifier.guesses(examples.texts), len(examples.names))


def enter(setting: Setting, seed: int) -> Contestant:
    """A fresh model with a fresh head and the method on it; `seed` decides what is random.

    Raises: ValueError for an unknown method, model or twin, with the nearest name.
    """
    method(setting.method)
    examples = _learned(setting, seed)
    model, tokenizer = zoo.load(setting.model)
    torch.manual_seed(seed)
    if model.config.model_type == "bert":
        classifier = _LastHead(model, tokenizer, examples.names, pool="last", dropout=0.0)
        return Contestant(setting, classifier, _adapt(classifier.body, setting))
    asked = _pattern(model, setting.twin)
    if setting.method == IN_CONTEXT:
        classifier = _InContext(model, tokenizer, examples.names, asked, examples)
    else:
        classifier = _OneWord(model, tokenizer, examples.names, asked)
    return Contestant(setting, classifier, _adapt(classifier.model, setting))


# ---- one run ----------------------------------------------------------------------------------------------------------


def run(
    setting: Setting, seed: int, lr: float, training: Training, *,
    split: str = "test", step: Callable[[], object] = lambda: None, memory: bool = False,
) -> tuple[Run, Contestant]:  # fmt: skip
    """Train one contestant and ask it for the texts of a split; `step` is called at every update.

    With `memory`, peak bytes are measured too, by further updates that spoil the contestant. Raises: ValueError as `enter`.
    """
    asked = _examples(setting.twin, split, training.tested if split == "test" else training.validated)
    contestant, learns = enter(setting, seed), METHODS[setting.method].rate is not None
    began = time.process_time()
    loss = _train(contestant, _learned(setting, seed), seed, lr, training, step) if learns else None
    costs = {"seconds": round(time.process_time() - began, 2), "file": contestant.file_bytes()}
    f1 = 0.0 if learns and loss is None else contestant.f1(asked)
    if memory and learns:
        costs["memory"] = _memory(contestant, lr, training)
    result = {"split": split, "f1": round(f1, 2), "loss": loss} | contestant.counts()
    return Run(**asdict(setting), lr=lr, seed=seed, **result, **costs), contestant


def _learned(setting: Setting, seed: int) -> Examples:
    return _examples(setting.twin, "train").some(setting.labels, seed)


def _train(
    contestant: Contestant, examples: Examples, seed: int, lr: float, training: Training, step: Callable[[], object]
) -> float | None:
    """Train; the mean loss of the last twenty updates, None where it diverged."""
    batches = contestant.classifier.batches(examples.texts, examples.labels, size=training.size, seed=seed)

    def batch(i: int) -> dict[str, Tensor]:
        step()
        return batches(i)

    config = TrainConfig(steps=training.steps, lr=lr, warmup=training.steps // 10, seed=seed, bar=False)
    try:
        with redirect_stdout(io.StringIO()):  # after Ctrl-C, fit's advice would not fit
            contestant.losses = fit(contestant.classifier, batch, config).losses
    except TrainingDiverged:
        return None
    last = contestant.losses[-20:]
    return round(sum(last) / len(last), 4)


def _memory(contestant: Contestant, lr: float, training: Training) -> int:
    """Peak bytes of two more updates, on texts that are the same for all seeds. The contestant is spoilt by it.

    Counted are the weights, the gradients, AdamW's moments and what the forward pass keeps for the backward one.
    """
    texts, twice = _examples(contestant.setting.twin, "train", 2 * training.size), replace(training, steps=2)
    weights = sum(p.numel() * p.element_size() for p in contestant.classifier.parameters())
    return weights + peak_bytes(lambda: _train(contestant, texts, 0, lr, twice, lambda: None))


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes torch's CPU allocator held at once during a call, beyond what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))
