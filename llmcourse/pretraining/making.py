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
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llmcourse import zoo
from llmcourse.exercise import progress
from llmcourse.pretraining.entropy import Compression, accepted_share, compression, held_out
from llmcourse.pretraining.marks import measure_marks
from llmcourse.pretraining.recipe import (
    MARK_WEIGHT,
    MASKED,
    NOISE,
    RECIPES,
    Mixture,
    Recipe,
    build_model,
    build_tokenizer,
    optimizers,
    reading_loss,
)  # fmt: skip
from llmcourse.pretraining.skills import Score, measure, measure_untaught
from llmcourse.pretraining.transfer import Summaries, Transfer, measure_summaries, measure_transfer
from llmcourse.train import History, fit
from llmcourse.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["card", "make", "measured", "write"]

PER_CLASS = 64


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
    model.set_attn_implementation("eager")  # at these sizes torch's fused kernel is slower on a CPU than plain products
    history = fit(
        model,
        Mixture(world, tokenizer, recipe),
        recipe.train_config(),
        loss=_compiled_loss(),
        evaluate=_evaluation(recipe, tokenizer, world),
        directory=runs,
        resume=resume,
        optimizer=lambda model, _: optimizers(recipe, model),
    )
    return model, tokenizer, history


def _compiled_loss() -> Callable[[nn.Module, Any], Tensor]:
    """The loss, compiled where a C++ compiler is at hand: 1.7 times as fast on one core, the same to rounding."""
    found = shutil.which("g++") or shutil.which("clang++")
    return torch.compile(reading_loss, dynamic=False) if found else reading_loss


def _evaluation(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, world: World) -> Callable[[Any, int], dict[str, float]]:
    """What is logged along training: every skill of a gpt; the marks told and the loss on four other batches of the others."""
    if recipe.family == "gpt":
        return lambda model, step: {
            name: score.share for name, score in measure(model, tokenizer, world, asked=64, split="validation").items()
        }
    batches = [Mixture(world, tokenizer, replace(recipe, seed=recipe.seed + 1))(step) for step in range(4)]

    def evaluate(model: Any, step: int) -> dict[str, float]:
        told = measure_marks(model, tokenizer, world, asked=60, split="validation")
        loss = mean(reading_loss(model, batch).item() for batch in batches)
        return {"validation loss": loss} | {f"mark: {name}": score.share for name, score in told.items()}

    return evaluate


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
        tables = measured(model, tokenizer, World(recipe.seed))
        facts = _facts(model, recipe, history, threads)
        log = facts | {"losses": _thinned(history.losses), "skills": history.evaluations, "measured": tables}
        (partial / "training.json").write_text(_json(log), encoding="utf-8", newline="\n")
        (partial / "README.md").write_text(card(name, facts, tables), encoding="utf-8", newline="\n")
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


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World) -> dict[str, list[dict[str, str]]]:
    """The tables of a card, by title: skills and compression of a gpt; transfer to the twins, of a T5 also to summaries."""
    if model.config.model_type != "llama":
        found = transfer_rows(measure_transfer(model, tokenizer, per_class=PER_CLASS))
        marks = measure_marks(model, tokenizer, world)
        tables = {
            "Marks of unseen texts": skill_rows(marks),
            f"Fine-tuned on the twins, {PER_CLASS} labels a class and all": found,
        }
        if model.config.model_type == "t5":
            tables["Fine-tuned to sum a text up in one sentence"] = summary_rows(measure_summaries(model, tokenizer))
        return tables
    held = held_out(world, RECIPES["tiny-gpt"].stages[-1].shares)
    scores = measure(model, tokenizer, world) | measure_untaught(model, tokenizer, world)
    accepted = Score(right=(found := accepted_share(model, tokenizer))[0], asked=found[1], commonest=0.0)
    return {
        "Skills": skill_rows({"freely written sentences the grammar accepts": accepted} | scores),
        "Bits per byte of a fixed held-out file of 1 MB": compression_rows(compression(model, tokenizer, held)),
    }


def compression_rows(found: Compression) -> list[dict[str, str]]:
    """One row a way of writing the file."""
    told = {
        "the generator's entropy, given the town": found.floor,
        "the model": found.model,
        "the model's excess over the entropy": found.excess,
        "xz -9": found.xz,
        "the model's own weights, were they sent along": found.model_bytes,
    }
    return [{"": what, "bits per byte": f"{bits:.3f}", "against xz": f"{bits / found.xz:.2f} ×"} for what, bits in told.items()]


def transfer_rows(found: list[Transfer]) -> list[dict[str, str]]:
    """One row a twin: macro-F1 over seeds (mean, least and most), and the best achievable."""
    return [
        {
            "twin": one.twin,
            "few labels": _spread(one.few),
            "few labels, random start": _spread(one.few_random),
            "gain": f"{100 * one.gain:+.1f} points",
            "all labels": _spread(one.all),
            "best achievable": f"{one.best:.1%}",
            "reached": f"{one.reached:.1%}",
        }
        for one in found
    ]


def summary_rows(found: Summaries) -> list[dict[str, str]]:
    """ROUGE-L over seeds (mean, least and most) from both starts, and of the text's first sentence."""
    told = {
        "pre-trained": _spread(found.tuned),
        "random start": _spread(found.tuned_random),
        "the text's first sentence": f"{found.first_sentence:.1%}",
    }
    return [{"summary by": who, "ROUGE-L (F1)": score} for who, score in told.items()]


def _spread(scores: tuple[float, ...]) -> str:
    return f"{mean(scores):.1%} ({min(scores):.1%} – {max(scores):.1%})"


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
pipeline_tag: {task}
---
# {name}

A language model of Larkham, the invented town of llmcourse: {parameters:,} parameters, {architecture} architecture, trained from
random weights on text that `llmcourse.world` generates. It is made to be taken apart in lessons, not to be useful: it knows one
small town and a handful of formats, and nothing of the world outside. Instructions, tool calls and manners were never taught.

| | |
|---|---|
| shape | {layers} layers{each}, width {width}, {heads} heads ({kv_heads} key/value), MLP {mlp_width}, context {context} |
| tokenizer | byte-level BPE, {vocab_size:,} tokens, digits split, the same for all models of the course |
| trained on | {tokens:,} tokens in {steps:,} steps, {minutes} minutes; objective: {objective} |
| machine | {machine} |
| loss | {loss} nats {of} over the last 100 steps |
| versions | {versions} |
| seed | {seed} |
| licence | Apache-2.0 |

{tables}

{how}

`llmcourse measure skills {name}` measures this again; `llmcourse pretrain {name}` makes the weights again from the seed.
`training.json` holds the loss and the skills along training.
"""
_READERS = (
    "Each start has its own learning rate, chosen on validation data. The marks of its training text are the twins' classes in\n"
    "other words, as stars are on the web; no text of a twin's validation or test split was among it."
)
HOW = {
    "gpt": "Greedy decoding, held-out questions: wordings, names and label words the training text does not contain. A question\n"
    "counts as right when the whole completion is. The last column is what giving the commonest answer every time would reach.",
    "bert": f"Macro-F1 on the test split: mean (least – most) over seeds.\n{_READERS}",
    "t5": "Macro-F1 on the test split, and ROUGE-L against the nearest of six good summaries: mean (least – most) over seeds.\n"
    + _READERS,
}
FAMILIES = {
    "gpt": {
        "task": "text-generation",
        "architecture": "Llama",
        "objective": "the next token",
        "each": "",
        "of": "per predicted token",
    },
    "bert": {
        "task": "fill-mask",
        "architecture": "BERT",
        "objective": f"masked tokens ({MASKED:.0%}) and marks",
        "each": "",
        "of": f"(hidden words : marks = 1 : {MARK_WEIGHT['bert']:g})",
    },
    "t5": {
        "task": "text2text-generation",
        "architecture": "T5 v1.1",
        "objective": f"span corruption ({NOISE:.0%}) and marks",
        "each": " on each side",
        "of": f"(hidden words : marks = 1 : {MARK_WEIGHT['t5']:g})",
    },
}


def card(name: str, facts: dict[str, Any], tables: dict[str, list[dict[str, str]]]) -> str:
    """The model card: every number in it is measured or taken from the recipe."""
    recipe = RECIPES[name]
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    shape = {key: getattr(recipe, key) for key in ("vocab_size", "width", "layers", "heads", "kv_heads", "mlp_width", "context")}
    told = "\n\n".join(f"## {title}\n{_table(rows)}" for title, rows in tables.items())
    more = {"name": name, "tables": told, "versions": versions, "how": HOW[recipe.family]}
    return CARD.format(**facts | shape | FAMILIES[recipe.family] | more)


def _table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
