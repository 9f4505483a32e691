"""How tiny-gpt is made: its tokenizer, its shape, the order of its lessons, its optimizers.

    world ──► byte-level BPE, 1,024 tokens
          └─► step → mixture of its stage → documents → rows of tokens ──► fit ──► model

The order matters more than the amount: copying is taught first, in many small steps, because answering from a given text grows
out of it; facts, sums and longer contexts follow. Initial weights are as large as 1/√width: with the usual 0.02 this small model
stays at chance on copying for millions of tokens.

Does:     everything from the seed; step n is the same batch on every machine, so a run can be resumed exactly.
Leaves out: other sizes and families; de-duplication and filtering (the town's text is clean).
Source:   Touvron et al. 2023 (Llama); Jordan 2024 (Muon); Olsson et al. 2022 (copying first: induction heads).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from llmcourse.train import TrainConfig
from llmcourse.world import World

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["RECIPES", "Mixture", "Recipe", "Stage", "build_model", "build_tokenizer", "optimizers"]

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run. `until`: where it ends, as a share of all steps. `shares`: each kind's share of the tokens.

    `sizes`: narrower ranges than the world's own for some kinds, to begin with easy ones. A batch is `rows` × `length` tokens.
    """

    until: float
    rows: int
    length: int
    shares: dict[str, float]
    sizes: dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from the world itself."""

    SHAPE: ClassVar = ("vocab_size", "width", "layers", "heads", "kv_heads", "mlp_width", "context")

    steps: int
    stages: tuple[Stage, ...]
    seed: int = 0
    vocab_size: int = 1024
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    mlp_width: int = 512
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


TINY_GPT = Recipe(
    steps=7500,
    stages=(
        Stage(
            until=0.13,
            rows=5,
            length=256,
            shares={"copy": 0.35, "context": 0.35, "biography": 0.1, "calculation": 0.1, "sorting": 0.1},
            sizes={"context": (1, 1), "copy": (3, 8)},
        ),
        Stage(
            until=0.4,
            rows=6,
            length=256,
            shares={
                "biography": 0.06, "story": 0.05, "news": 0.03, "closed-book": 0.15, "context": 0.22, "copy": 0.05,
                "calculation": 0.1, "sum-steps": 0.08, "sum-direct": 0.08, "review": 0.1, "sorting": 0.08,
            },
            sizes={"context": (1, 2), "sum-steps": (1, 3), "sum-direct": (1, 3)},
        ),
        Stage(
            until=0.5,
            rows=6,
            length=256,
            shares={
                "biography": 0.05, "story": 0.04, "news": 0.03, "closed-book": 0.14, "context": 0.26, "copy": 0.04,
                "calculation": 0.06, "sum-steps": 0.1, "sum-direct": 0.1, "review": 0.09, "sorting": 0.09,
            },
            sizes={},
        ),
        Stage(  # the feeling of a review is one token in twenty: it stays at chance unless reviews are plentiful for a while
            until=0.8,
            rows=6,
            length=256,
            shares={
                "biography": 0.04, "story": 0.03, "news": 0.02, "closed-book": 0.12, "context": 0.27, "copy": 0.04,
                "calculation": 0.04, "sum-steps": 0.1, "sum-direct": 0.1, "review": 0.15, "sorting": 0.09,
            },
            sizes={},
        ),
        Stage(
            until=1.0,
            rows=3,
            length=512,
            shares={
                "biography": 0.06, "story": 0.06, "news": 0.04, "closed-book": 0.15, "context": 0.25, "copy": 0.03,
                "calculation": 0.03, "sum-steps": 0.11, "sum-direct": 0.11, "review": 0.08, "sorting": 0.08,
            },
            sizes={},
        ),
    ),
)  # fmt: skip
RECIPES = {"tiny-gpt": TINY_GPT}


def build_tokenizer(world: World, recipe: Recipe, documents: int = 6000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from the town's text: digits stand alone, every encoding begins with <|bos|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

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
    bpe.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.context,
        padding_side="left",
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights of standard deviation 1/√width, float32, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
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
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Mixture:
    """Batches by number: `mixture(step)` packs documents of that step's stage into rows, each row beginning with a document."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.world, self.recipe = world, recipe
        self.bpe, self.eos = tokenizer.backend_tokenizer, tokenizer.eos_token_id
        self.weights: dict[float, dict[str, float]] = {}

    def __call__(self, step: int) -> dict[str, Int[Tensor, "rows length"]]:
        """Inputs and labels of one step (the model shifts the labels itself)."""
        stage = self.stage(step)
        rng = Random(f"{self.recipe.seed}/step/{step}")
        ids = torch.tensor([self._row(stage, rng) for _ in range(stage.rows)])
        return {"input_ids": ids, "labels": ids}

    def stage(self, step: int) -> Stage:
        """The stage `step` belongs to."""
        done = step / self.recipe.steps
        return next((stage for stage in self.recipe.stages if done < stage.until), self.recipe.stages[-1])

    def _row(self, stage: Stage, rng: Random) -> list[int]:
        weights, row = self._weights(stage), []
        while len(row) < stage.length:
            (kind,) = rng.choices(list(weights), list(weights.values()))
            row += self._document(stage, kind, rng)
        return row[: stage.length]

    def _weights(self, stage: Stage) -> dict[str, float]:
        """How often to draw each kind: shares are of tokens, so kinds with long documents are drawn more rarely."""
        if stage.until not in self.weights:
            rng = Random("lengths")
            lengths = {kind: sum(len(self._document(stage, kind, rng)) for _ in range(50)) / 50 for kind in stage.shares}
            self.weights[stage.until] = {kind: stage.shares[kind] / lengths[kind] for kind in stage.shares}
        return self.weights[stage.until]

    def _document(self, stage: Stage, kind: str, rng: Random) -> list[int]:
        size = rng.randint(*stage.sizes[kind]) if kind in stage.sizes else None
        return self._encode(self.world.document(kind, rng.randrange(10**9), size=size))

    def _encode(self, text: str) -> list[int]:
        return [*self.bpe.encode(text).ids, self.eos]


def optimizers(recipe: Recipe, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.05)
    return [muon, torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
