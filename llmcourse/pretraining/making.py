"""From the recipe to a model that `zoo.load` finds: train, measure, write the model card, put everything in place at once.

    $LLMCOURSE_HOME/pretraining/<name>-<steps>-steps/      checkpoints; Ctrl-C loses nothing, the next call goes on
    llmcourse/models/<name>/                               the finished model, exchanged only when training is over

Does:     an exact continuation after any interruption; a log of the loss and of every skill along training; a card whose every
          number is measured.
Leaves out: several processes making the same model at once.
Source:   Mitchell et al. 2019 (model cards).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import uuid
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from llmcourse import zoo
from llmcourse.exercise import progress
from llmcourse.pretraining.recipe import RECIPES, Mixture, Recipe, build_model, build_tokenizer, optimizers
from llmcourse.pretraining.skills import Score, measure
from llmcourse.train import History, fit
from llmcourse.world import KINDS, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["bits_per_byte", "card", "make", "skill_rows", "write"]


def make(name: str, *, out: Path | None = None, resume: bool = True, steps: int | None = None, threads: int = 1) -> Path:
    """Train the model called `name` from the seed and return the folder it was written to.

    out: default the package's own models, which zoo.load reads, or, where `steps` shortens or lengthens the recipe, a folder
    beside the checkpoints, so that an experiment never takes the shipped weights' place. threads: the recipe was measured with
    one; more threads round differently, so the losses then agree only nearly.

    Raises: ValueError for an unknown name or steps below 1; KeyboardInterrupt after Ctrl-C, when the place has been saved;
    OSError when a file cannot be written.
    """
    if name not in RECIPES:
        raise ValueError(f'there is no recipe for "{name}"; choose one of {", ".join(RECIPES)}')
    recipe = RECIPES[name].lasting(steps)
    runs = progress.home() / "pretraining" / f"{name}-{recipe.steps}-steps"
    out = out or (zoo.FOLDER / name if steps is None else runs / "model")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, tokenizer, history = _train(recipe, runs, resume)
        write(out, name, recipe, model, tokenizer, history, threads)
    finally:
        torch.set_num_threads(before)
    return out


def _train(recipe: Recipe, runs: Path, resume: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, History]:
    world = World(recipe.seed)
    tokenizer = build_tokenizer(world, recipe)
    model = build_model(recipe, tokenizer)

    def evaluate(model: Any, step: int) -> dict[str, float]:
        return {name: score.share for name, score in measure(model, tokenizer, world, asked=64, split="validation").items()}

    history = fit(
        model,
        Mixture(world, tokenizer, recipe),
        recipe.train_config(),
        evaluate=evaluate,
        directory=runs,
        resume=resume,
        optimizer=lambda model, _: optimizers(recipe, model),
    )
    return model, tokenizer, history


# ---------------------------------------------------------------------------------------------------------------- writing


def write(
    out: Path,
    name: str,
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: History,
    threads: int,
) -> None:
    """Write weights (bfloat16), tokenizer, training log and card to `out`: all of them, or nothing is changed."""
    partial = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        deepcopy(model).to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial, save_jinja_files=False)
        model, tokenizer = zoo.load(partial)  # the rounded weights: what ships is what gets measured
        scores, bits = measure(model, tokenizer, World(recipe.seed)), bits_per_byte(model, tokenizer, World(recipe.seed))
        facts = _facts(model, recipe, history, threads) | {"bits_per_byte": round(bits, 4)}
        log = facts | {"losses": _thinned(history.losses), "skills": history.evaluations}
        (partial / "training.json").write_text(_json(log), encoding="utf-8", newline="\n")
        (partial / "README.md").write_text(card(name, facts, scores), encoding="utf-8", newline="\n")
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone; a package is read by everyone
        _exchange(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _exchange(new: Path, place: Path) -> None:
    """Put the folder `new` in the place of an older one, which comes back should the second step fail."""
    old = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
    if place.exists():
        os.replace(place, old)
    try:
        os.replace(new, place)
    except OSError:
        if old.exists():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _facts(model: PreTrainedModel, recipe: Recipe, history: History, threads: int) -> dict[str, Any]:
    """What the card and the log tell about the run."""
    kernel = f"{threads} thread{'s' if threads > 1 else ''}"
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": history.steps,
        "tokens": history.tokens,
        "minutes": round(history.seconds / 60, 1),
        "machine": f"{os.cpu_count()}-core {platform.machine() or 'unknown'} CPU, {kernel}, bfloat16",
        "loss": round(mean(history.losses[-100:]), 4),
        "seed": recipe.seed,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "tokenizers", "llmcourse")},
    }


def _json(log: dict[str, Any]) -> str:
    """One line per entry: readable, and not a thousand lines long."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in log.items()) + "\n}\n"


def _thinned(losses: list[float], every: int = 25) -> list[list[float]]:
    """[step, mean loss of the `every` steps before it], a curve small enough to ship."""
    return [[end, round(mean(losses[max(0, end - every) : end]), 4)] for end in range(every, len(losses) + 1, every)]


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, documents: int = 20) -> float:
    """Mean bits the model needs for a byte of test documents, `documents` of each kind, each beginning with <|bos|>."""
    bits = size = 0.0
    for text in (world.document(kind, i, "test") for kind in KINDS for i in range(documents)):
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
        nats = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        bits, size = bits + nats / 0.6931471805599453, size + len(text.encode("utf-8"))
    return bits / size


def skill_rows(scores: dict[str, Score]) -> list[dict[str, str]]:
    """One row a skill, ready to print: share, 95 % interval, questions, and the share the commonest answer alone would reach."""
    return [
        {
            "skill": name,
            "right": f"{score.share:.1%}",
            "95 % interval": f"{score.interval[0]:.1%} – {score.interval[1]:.1%}",
            "questions": str(score.asked),
            "commonest answer": f"{score.commonest:.1%}",
        }
        for name, score in scores.items()
    ]


CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A language model of Larkham, the invented town of llmcourse: {parameters:,} parameters, Llama architecture, trained from random
weights on text that `llmcourse.world` generates. It is made to be taken apart in lessons, not to be useful: it knows one small
town and a handful of formats, and nothing of the world outside. Instructions, tool calls and manners were never taught.

| | |
|---|---|
| shape | {layers} layers, width {width}, {heads} query and {kv_heads} key/value heads, SwiGLU {mlp_width}, context {context} |
| tokenizer | byte-level BPE, {vocab_size:,} tokens, digits split, every text begins with `<\\|bos\\|>` |
| trained on | {tokens:,} tokens in {steps:,} steps, {minutes} minutes |
| machine | {machine} |
| loss | {loss} nats per token over the last 100 steps; {bits_per_byte} bits per byte of unseen documents |
| versions | {versions} |
| seed | {seed} |
| licence | Apache-2.0 |

## Skills
Greedy decoding, held-out questions: wordings, names and label words the training text does not contain. A question counts as
right when the whole completion is. The last column is what giving the commonest answer every time would reach.

{skills}

`llmcourse measure skills` measures this table again; `llmcourse pretrain {name}` makes the weights again from the seed.
`training.json` holds the loss and the skills along training (64 validation questions each).
"""


def card(name: str, facts: dict[str, Any], scores: dict[str, Score]) -> str:
    """The model card: every number in it is measured or taken from the recipe."""
    rows = skill_rows(scores)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    shape = {key: getattr(RECIPES[name], key) for key in Recipe.SHAPE}
    return CARD.format(**facts | shape | {"name": name, "skills": table, "versions": versions})
