"""How the embedded models are made: one tokenizer, seven shapes, the order of the lessons, the optimizers.

    world ──► byte-level BPE, 2,048 tokens, shared by all
          └─► step → mixture of its stage → documents → rows of tokens → objective ──► fit ──► model

    tiny-gpt    Llama    causal                  tiny-gpt-small
    tiny-bert   BERT     masked, marks           tiny-bert-small
    tiny-t5     T5 v1.1  span corruption, marks  tiny-t5-small, tiny-t5-mini

The order matters more than the amount: tiny-gpt is taught copying first, in many small steps, because answering from a given text
grows out of it; facts, sums and longer contexts follow. Initial weights are as large as 1/√width: with the usual 0.02 these small
models stay at chance on copying for millions of tokens.

The readers, tiny-bert and tiny-t5, read first; then they also tell the marks that texts come with, as the stars of a review or
the page of a piece of news (`world.marked`): BERT where <|bos|> stands, T5 as its answer. Hidden words alone teach them no
feelings in the time a laptop has: what a text thinks of its film helps to guess a word only once one knows what its other words
think.

Does:     everything from the seed; step n is the same batch on every machine, so a run can be resumed exactly.
Leaves out: de-duplication and filtering (the town's text is clean: see `pipeline` for text that is not).
Source:   Touvron et al. 2023 (Llama); Devlin et al. 2019 (BERT); Raffel et al. 2020 (T5); Jordan 2024 (Muon); Olsson et al. 2022
          (copying first: induction heads); Phang et al. 2018 (labelled texts between pre-training and fine-tuning); Raffel et al.
          2020 §3.5 (labelled tasks within pre-training).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmcourse.pretraining import objectives
from llmcourse.train import TrainConfig
from llmcourse.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "RECIPES",
    "Mixture",
    "Recipe",
    "Stage",
    "build_model",
    "build_tokenizer",
    "optimizers",
    "reading_loss",
    "with_sinusoids",
]

SENTINELS = 32
SPECIAL_TOKENS = (
    "<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", "<|mask|>", "<|sep|>",
    *(f"<|extra_{i}|>" for i in range(SENTINELS)),
)  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FRAMES = {  # what an encoding begins and ends with: one text, two texts
    "gpt": ("<|bos|> $A", "<|bos|> $A $B"),
    "bert": ("<|bos|> $A <|sep|>", "<|bos|> $A <|sep|> $B:1 <|sep|>:1"),
    "t5": ("$A <|eos|>", "$A <|eos|> $B <|eos|>"),
}
VOCABULARY = 2048
MASKED, NOISE, SPAN = 0.15, 0.3, 4.0
MARK_WEIGHT = {"bert": 4.0, "t5": 1.0}  # of the marks in the loss, beside 1 for the hidden words
MARKED_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run. `until`: where it ends, as a share of all steps. `shares`: each kind's share of the tokens.

    `sizes`: narrower ranges than the world's own for some kinds, to begin with easy ones. A batch is `rows` × `length` tokens;
    the last `short` of them hold one text each. Beside them, `marked` rows hold such texts too and ask for the mark.
    """

    until: float
    rows: int
    length: int
    shares: dict[str, float]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    short: int = 0
    marked: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from the world itself. `family` is gpt, bert or t5."""

    family: str
    steps: int
    stages: tuple[Stage, ...]
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    seed: int = 0
    vocab_size: int = VOCABULARY
    context: int = 512
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3

    def lasting(self, steps: int | None) -> Recipe:
        """The same recipe over another number of steps; None keeps its own. Raises ValueError below 1."""
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; choose 1 or more (the recipe has {self.steps})")
        return self if steps is None else replace(self, steps=steps)

    def train_config(self) -> TrainConfig:
        """The settings of `llmcourse.train.fit`."""
        return TrainConfig(
            steps=self.steps,
            lr=self.adamw_lr,
            schedule="linear",
            warmup=min(100, self.steps // 10),
            precision="bfloat16",
            seed=self.seed,
            evaluate_every=500,
            checkpoint_every=250,
        )


COPY_FIRST = {
    "copy": 0.35, "context": 0.35, "biography": 0.08, "calculation": 0.1, "sorting": 0.12,
}  # fmt: skip
GROWING = {
    "biography": 0.05, "story": 0.03, "news": 0.02, "dialogue": 0.02, "closed-book": 0.10, "context": 0.26,
    "multi-hop": 0.02, "changes": 0.01, "mayors": 0.01, "copy": 0.05, "calculation": 0.06, "sum-steps": 0.06,
    "sum-direct": 0.06, "sum-program": 0.03, "sorting": 0.08, "review": 0.08, "review-text": 0.02, "report": 0.01,
    "post": 0.01, "opinion": 0.01, "topic-news": 0.01,
}  # fmt: skip
WHOLE = {
    "biography": 0.05, "story": 0.03, "news": 0.02, "dialogue": 0.02, "closed-book": 0.11, "context": 0.22,
    "multi-hop": 0.03, "changes": 0.01, "mayors": 0.01, "copy": 0.03, "calculation": 0.03, "sum-steps": 0.08,
    "sum-direct": 0.08, "sum-program": 0.04, "sorting": 0.08, "review": 0.09, "review-text": 0.03, "report": 0.01,
    "post": 0.01, "opinion": 0.01, "topic-news": 0.01,
}  # fmt: skip
# Two or three strangers in one text, and the feeling of reviews, stay at chance unless they are plentiful for a while.
TELLING_APART = {
    "biography": 0.04, "story": 0.02, "news": 0.01, "dialogue": 0.02, "closed-book": 0.09, "context": 0.30,
    "multi-hop": 0.02, "changes": 0.01, "mayors": 0.01, "copy": 0.02, "calculation": 0.02, "sum-steps": 0.06,
    "sum-direct": 0.06, "sum-program": 0.02, "sorting": 0.05, "review": 0.17, "review-text": 0.04, "report": 0.01,
    "post": 0.01, "opinion": 0.01, "topic-news": 0.01,
}  # fmt: skip
READING = {  # what encoders read: prose and opinions above all
    "biography": 0.10, "story": 0.08, "news": 0.05, "dialogue": 0.06, "closed-book": 0.05, "context": 0.08,
    "multi-hop": 0.01, "changes": 0.02, "mayors": 0.01, "copy": 0.01, "review": 0.01, "review-text": 0.17,
    "report": 0.09, "post": 0.09, "opinion": 0.09, "topic-news": 0.08,
}  # fmt: skip


def _gpt(steps: int, rows: int, **shape: Any) -> Recipe:
    """Copying and one person first, then two, then everything, then above all what is hard, then everything again."""
    small = {"context": (1, 2), "sum-steps": (1, 3), "sum-direct": (1, 3), "sum-program": (1, 3)}
    stages = (
        Stage(until=0.10, rows=max(rows - 2, 1), length=256, shares=COPY_FIRST, sizes={"context": (1, 1), "copy": (3, 8)}),
        Stage(until=0.35, rows=rows, length=256, shares=GROWING, sizes=small),
        Stage(until=0.4316, rows=rows, length=256, shares=WHOLE),
        Stage(until=0.80, rows=rows * 7 // 10, length=256, shares=TELLING_APART),
        Stage(until=0.92, rows=rows * 7 // 10, length=256, shares=WHOLE),
        Stage(until=1.0, rows=rows * 2 // 5, length=512, shares=WHOLE),
    )
    return Recipe(family="gpt", steps=steps, stages=stages, **shape)


def _reader(family: str, steps: int, lr: float, **shape: Any) -> Recipe:
    """Reading first, two texts a row; then marks above all. `lr`: of AdamW, which moves the embeddings."""
    stages = (
        Stage(until=0.35, rows=24, length=128, shares=READING),
        Stage(until=1.0, rows=12, length=128, shares=READING, short=6, marked=40),
    )
    return Recipe(family=family, steps=steps, stages=stages, context=128, kv_heads=shape["heads"], adamw_lr=lr, **shape)


RECIPES = {
    "tiny-gpt": _gpt(9000, 10, width=256, layers=6, heads=8, kv_heads=4, mlp_width=704),
    "tiny-gpt-small": _gpt(5000, 10, width=128, layers=4, heads=4, kv_heads=2, mlp_width=352),
    # BERT norms behind each layer: after 500 steps four of width 320 at 2e-3 are at a loss of 3.2, six of 256 at 4e-3 at 4.8.
    "tiny-bert": _reader("bert", 5000, 2e-3, width=320, layers=4, heads=10, mlp_width=960),
    "tiny-bert-small": _reader("bert", 3500, 4e-3, width=128, layers=4, heads=4, mlp_width=384),
    # T5's embeddings begin with standard deviation 1, and small steps hardly move them.
    "tiny-t5": _reader("t5", 3500, 2e-2, width=256, layers=4, heads=8, mlp_width=704),
    "tiny-t5-small": _reader("t5", 3000, 2e-2, width=128, layers=3, heads=4, mlp_width=352),
    "tiny-t5-mini": _reader("t5", 4000, 2e-2, width=64, layers=2, heads=2, mlp_width=192),
}


# ---------------------------------------------------------------------------------------------------------------- tokenizer


def build_tokenizer(world: World, recipe: Recipe, documents: int = 9000) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of all models, learnt from the town's text: digits stand alone.

    The merges are the same for every family; an encoding begins with <|bos|> (gpt), is framed as BERT does (bert) or ends with
    <|eos|> (t5).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(islice(world.documents(), documents), trainer)
    single, pair = FRAMES[recipe.family]
    numbered = [(token, bpe.token_to_id(token)) for token in ("<|bos|>", "<|eos|>", "<|sep|>")]
    bpe.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbered)
    return _wrapped(bpe, recipe)


def _wrapped(bpe: Any, recipe: Recipe) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    named = {
        "pad_token": "<|pad|>",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "mask_token": "<|mask|>",
        "sep_token": "<|sep|>",
    }
    if recipe.family == "bert":
        named |= {"cls_token": "<|bos|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **named,
        additional_special_tokens=[*SPECIAL_TOKENS[3:8], *SPECIAL_TOKENS[10:]],
        chat_template=CHAT_TEMPLATE if recipe.family == "gpt" else None,
        model_max_length=recipe.context,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if recipe.family == "bert"
        else ["input_ids", "attention_mask"],
        padding_side="left" if recipe.family == "gpt" else "right",
    )


# ---------------------------------------------------------------------------------------------------------------- models


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A transformers model with random weights, float32, tied embeddings, without dropout.

    Llama's and BERT's weights have standard deviation 1/√width; T5's are drawn as its authors do.
    """
    torch.manual_seed(recipe.seed)
    return {"gpt": _llama, "bert": _bert, "t5": _t5}[recipe.family](recipe, tokenizer)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def _llama(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.width,
            intermediate_size=recipe.mlp_width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            max_position_embeddings=recipe.context,
            initializer_range=recipe.width**-0.5,
            tie_word_embeddings=True,
            **_ids(tokenizer),
        )
    )


def _bert(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    from transformers import BertConfig, BertForMaskedLM

    model = BertForMaskedLM(
        BertConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.width,
            intermediate_size=recipe.mlp_width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=recipe.context,
            initializer_range=recipe.width**-0.5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **_ids(tokenizer),
        )
    )
    return with_sinusoids(model)


@torch.no_grad()
def with_sinusoids(model: PreTrainedModel) -> PreTrainedModel:
    """Let a BERT's positions begin as those of Vaswani et al. 2017 §3.5, sines in the even columns, as large as its words.

    They are learnt from there on. From random ones, "the word before" must be learnt at every place anew.
    """
    table = model.bert.embeddings.position_embeddings.weight
    length, width = table.shape
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
    table.copy_(torch.stack([angles.sin(), angles.cos()], -1).flatten(1) * math.sqrt(2 / width))
    return model


def _t5(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=recipe.vocab_size,
            d_model=recipe.width,
            d_kv=recipe.width // recipe.heads,
            d_ff=recipe.mlp_width,
            num_layers=recipe.layers,
            num_heads=recipe.heads,
            relative_attention_max_distance=64,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            initializer_factor=1.0,
            decoder_start_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
            **_ids(tokenizer),
        )
    )


# ---------------------------------------------------------------------------------------------------------------- batches


class Mixture:
    """Batches by number: `mixture(step)` packs documents of that step's stage into rows, each row beginning with a document."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.world, self.recipe, self.tokenizer = world, recipe, tokenizer
        self.bpe, self.eos = copy.deepcopy(tokenizer.backend_tokenizer), tokenizer.eos_token_id
        self.bpe.no_truncation()  # a call of the tokenizer with truncation=True leaves it switched on
        self.weights: dict[float, dict[str, float]] = {}

    def __call__(self, step: int) -> dict[str, Any]:
        """What the model is called with at one step, labels included; under "marked" the same for the marked texts, if any."""
        stage = self.stage(step)
        rng = Random(f"{self.recipe.seed}/step/{step}")
        batch = getattr(self, f"_{self.recipe.family}")(stage, rng)
        if stage.marked:
            texts, marks = zip(*(self._marked(rng) for _ in range(stage.marked)), strict=True)
            batch["marked"] = getattr(self, f"_{self.recipe.family}_marked")(texts, marks)
        return batch

    def stage(self, step: int) -> Stage:
        """The stage `step` belongs to."""
        done = step / self.recipe.steps
        return next((stage for stage in self.recipe.stages if done < stage.until), self.recipe.stages[-1])

    def _gpt(self, stage: Stage, rng: Random) -> dict[str, Tensor]:
        bos = self.tokenizer.bos_token_id
        return objectives.causal(torch.tensor([self._row(stage, rng, stage.length, before=[bos]) for _ in range(stage.rows)]))

    def _bert(self, stage: Stage, rng: Random) -> dict[str, Tensor]:
        """Rows of two segments of unequal length, so that both token types are learnt; then texts that stand alone."""
        cls, sep, pad = (getattr(self.tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad"))
        cuts = [rng.randrange(stage.length // 8, stage.length - stage.length // 8) for _ in range(stage.rows - stage.short)]
        rows = [
            [
                cls,
                *self._row(stage, rng, cut - 2, ends=False),
                sep,
                *self._row(stage, rng, stage.length - cut - 1, ends=False),
                sep,
            ]
            for cut in cuts
        ]
        rows += [[cls, *self._marked(rng)[0][: stage.length - 2], sep] for _ in range(stage.short)]
        batch = objectives.masked(
            self._padded(rows, stage.length), mask_id=self.tokenizer.mask_token_id, vocab_size=self.recipe.vocab_size,
            special_ids=range(len(SPECIAL_TOKENS)), pad_id=pad, rate=MASKED, generator=_generator(rng),
        )  # fmt: skip
        ends = torch.tensor(cuts + [stage.length] * stage.short)
        return batch | {"token_type_ids": (torch.arange(stage.length) >= ends[:, None]).long()}

    def _bert_marked(self, texts: Sequence[list[int]], marks: Sequence[list[int]]) -> dict[str, Tensor]:
        """Every word is visible; the label of the first place is the mark, and there is no other."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids = self._padded([[cls, *text[: MARKED_LENGTH - 2], sep] for text in texts], MARKED_LENGTH)
        labels = torch.full_like(ids, objectives.IGNORED)
        labels[:, 0] = torch.tensor([mark[-1] for mark in marks])
        return {"input_ids": ids, "attention_mask": self._seen(ids), "labels": labels}

    def _t5(self, stage: Stage, rng: Random) -> dict[str, Tensor]:
        sentinels = self.tokenizer.convert_tokens_to_ids([f"<|extra_{i}|>" for i in range(SENTINELS)])
        rows = [self._row(stage, rng, stage.length, ends=False) for _ in range(stage.rows - stage.short)]
        rows += [self._marked(rng)[0][: stage.length] for _ in range(stage.short)]
        return objectives.span_corruption(
            [torch.tensor(row) for row in rows], sentinels=sentinels, pad_id=self.tokenizer.pad_token_id, eos_id=self.eos,
            density=NOISE, mean_span=SPAN, generator=_generator(rng),
        )  # fmt: skip

    def _t5_marked(self, texts: Sequence[list[int]], marks: Sequence[list[int]]) -> dict[str, Tensor]:
        """The answer to a text is its mark."""
        longest = max(map(len, marks))
        labels = [[*mark, self.eos] + [objectives.IGNORED] * (longest - len(mark)) for mark in marks]
        ids = self._padded([[*text[: MARKED_LENGTH - 1], self.eos] for text in texts], MARKED_LENGTH)
        return {"input_ids": ids, "attention_mask": self._seen(ids), "labels": torch.tensor(labels)}

    def _padded(self, rows: Sequence[list[int]], length: int) -> Tensor:
        return torch.tensor([row + [self.tokenizer.pad_token_id] * (length - len(row)) for row in rows])

    def _seen(self, ids: Tensor) -> Tensor:
        return (ids != self.tokenizer.pad_token_id).long()

    def _marked(self, rng: Random) -> tuple[list[int], list[int]]:
        """A text and its mark, without the mark's name."""
        question = self.world.question("marked", rng.randrange(10**9), "train")
        text, _, _ = question.prompt.rpartition("\n")
        return self._ids(text), self._ids(f" {question.answer}")

    def _ids(self, text: str) -> list[int]:
        return self.bpe.encode(text, add_special_tokens=False).ids

    def _row(self, stage: Stage, rng: Random, length: int, *, before: list[int] | None = None, ends: bool = True) -> list[int]:
        """Documents packed into one row, each with `before` in front and, if it `ends`, <|eos|> behind."""
        weights, row = self._weights(stage), []
        while len(row) < length:
            (kind,) = rng.choices(list(weights), list(weights.values()))
            row += [*(before or []), *self._document(stage, kind, rng), *([self.eos] if ends else [])]
        return row[:length]

    def _weights(self, stage: Stage) -> dict[str, float]:
        """How often to draw each kind: shares are of tokens, so kinds with long documents are drawn more rarely."""
        if stage.until not in self.weights:
            rng = Random("lengths")
            lengths = {kind: sum(len(self._document(stage, kind, rng)) for _ in range(50)) / 50 for kind in stage.shares}
            self.weights[stage.until] = {kind: stage.shares[kind] / lengths[kind] for kind in stage.shares}
        return self.weights[stage.until]

    def _document(self, stage: Stage, kind: str, rng: Random) -> list[int]:
        size = rng.randint(*stage.sizes[kind]) if kind in stage.sizes else None
        return self._ids(self.world.document(kind, rng.randrange(10**9), size=size))


def _generator(rng: Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**31))


def reading_loss(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The model's own loss; where a batch has `marked` texts, the mean of both losses by `MARK_WEIGHT`."""
    text = model(**{name: value for name, value in batch.items() if name != "marked"}).loss
    if "marked" not in batch:
        return text
    weight = MARK_WEIGHT[model.config.model_type]
    return (text + weight * model(**batch["marked"]).loss) / (1 + weight)


def optimizers(recipe: Recipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embeddings, the heads and everything one-dimensional.

    BERT's positions go a tenth as fast: they begin where they are useful.
    """
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and not any(part in name for part in ("embed", "shared", "bias", "cls."))
    ]
    chosen = {id(p) for p in matrices}
    slow = [p for name, p in model.named_parameters() if "position_embeddings" in name]
    chosen |= {id(p) for p in slow}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": others}, *([{"params": slow, "lr": recipe.adamw_lr / 10}] if slow else [])]
    muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.05)
    return [muon, torch.optim.AdamW(groups, lr=recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
