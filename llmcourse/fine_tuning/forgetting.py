"""Cures for forgetting: keep showing the old, stay near the start, or leave half of the weights alone.

    replay              every so many batches one of the old task's
    lower rate          nothing new: `TrainConfig(lr=…)`
    L2 to the start     loss + λ/2 · Σ (θ - θ*)²                       θ*: the weights before the new task
    EWC                 loss + λ/2 · Σ F (θ - θ*)²                     F: how much the old task's predictions hang on each weight
    half fine-tuning    in every round a random half of the matrices of each kind learns, the other half is frozen

    F_i = mean over x of  Σ_y p(y|x) · (∂ log p(y|x) / ∂θ_i)²           the diagonal of the Fisher information

Does:     each as a batch function, a loss or a choice of trainable weights for `train.fit`; the Fisher diagonal with labels drawn
          from the model, summed over all labels, or taken from the data (the "empirical" Fisher, which is another quantity: it
          also grows where the model is wrong).
Leaves out: LoRA (see `peft`); full or block Fisher matrices; half fine-tuning's other groupings (whole model, whole layers).
Source:   Robins 1995 (rehearsal); Li et al. 2018 eq. 1 (L2-SP); Kirkpatrick et al. 2017 eq. 3 (EWC); Kunstner et al. 2019
          (empirical Fisher); Hui et al. 2024 §3 (half fine-tuning, by category).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import floor
from random import Random
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .depth import groups

__all__ = [
    "Anchor",
    "classifier_scores",
    "distance_penalty",
    "ewc",
    "fisher",
    "half",
    "half_units",
    "next_token_scores",
    "penalised",
    "replay",
    "snapshot",
    "to_start",
]

Weights = dict[str, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]
Scores = Callable[[nn.Module, Any], tuple[Float[Tensor, "predictions classes"], Int[Tensor, " predictions"]]]
Labels = Literal["model", "all", "data"]


# ---- replay ------------------------------------------------------------------------------------------------------------


def replay(new: Callable[[int], Any], old: Callable[[int], Any], share: float) -> Callable[[int], Any]:
    """A batch function for `fit` that gives the old task's batches in an even `share` of the turns: with 0.25 every fourth.

    Each of the two is asked for its batches 0, 1, 2 … without a gap. To have both in one update set `accumulate` in the config.
    Raises: ValueError for a share outside 0 … 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} of old batches; choose 0–1")

    def batch(i: int) -> Any:
        before, after = floor(i * share + 1e-9), floor((i + 1) * share + 1e-9)  # 1e-9: 3 × 0.1 and the like fall just short
        return old(before) if after > before else new(i - before)

    return batch


# ---- staying near the start ---------------------------------------------------------------------------------------------


def distance_penalty(
    now: Mapping[str, Tensor], start: Mapping[str, Tensor], strength: float, importance: Mapping[str, Tensor] | None = None
) -> Float[Tensor, ""]:
    """strength/2 · Σ importance · (now - start)²: L2 to the start without an importance, EWC with the Fisher diagonal."""
    total = torch.zeros((), device=next(iter(start.values())).device)
    for name, origin in start.items():
        squares = (now[name].float() - origin.float()).square()
        total = total + (squares if importance is None else squares * importance[name]).sum()
    return strength / 2 * total


@dataclass(frozen=True)
class Anchor:
    """Where the weights were, how strongly they are held there, and which of them matter (None: all alike)."""

    start: Weights
    strength: float
    importance: Weights | None = None

    def __post_init__(self) -> None:
        if self.strength < 0 or not self.start:
            raise ValueError(f"strength={self.strength} on {len(self.start)} weights; choose 0 or more, on at least one weight")
        if self.importance is not None and self.importance.keys() != self.start.keys():
            odd = sorted(self.importance.keys() ^ self.start.keys())
            raise ValueError(f"the importance belongs to another model: {odd[0]!r} and {len(odd) - 1} more are in one alone")

    def __call__(self, model: nn.Module) -> Float[Tensor, ""]:
        """The penalty of the model as it is now."""
        return distance_penalty(dict(model.named_parameters()), self.start, self.strength, self.importance)


def snapshot(model: nn.Module) -> Weights:
    """A copy of every trainable weight, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def to_start(model: nn.Module, strength: float) -> Anchor:
    """L2 to where the model is now, for every trainable weight. Raises: ValueError for a strength below 0."""
    return Anchor(snapshot(model), strength)


def ewc(model: nn.Module, importance: Weights, strength: float) -> Anchor:
    """EWC: hold the model where it is now, each weight as its Fisher value says. Raises: ValueError if those are another's."""
    return Anchor(snapshot(model), strength, importance)


def penalised(*anchors: Anchor, loss: Loss | None = None) -> Loss:
    """A loss for `fit`: the task's (default the model's own) and the penalty of every anchor, one for each old task.

    Adam scales the sum's gradient, so the pull of a weight depends on the task's gradient too; a strength that suits SGD does not
    suit Adam. The loss recorded in the history holds the penalty.
    """

    def total(model: nn.Module, batch: Any) -> Tensor:
        own = model(**batch).loss if loss is None else loss(model, batch)
        return own + sum(anchor(model) for anchor in anchors)

    return total


# ---- the Fisher diagonal -------------------------------------------------------------------------------------------------


def fisher(model: nn.Module, examples: Iterable[Any], scores: Scores, *, labels: Labels = "model", seed: int = 0) -> Weights:
    """The diagonal of the Fisher information of every trainable weight: the mean over examples, one at a time.

    scores(model, example) → logits (predictions × classes) and the data's labels. labels: "model" draws each label from the
    model's own prediction (unbiased, one backward pass an example); "all" sums over the labels, weighted by their probability
    (exact; one pass a label, and one prediction an example); "data" takes the given ones (the empirical Fisher).
    Raises: ValueError for no examples, another kind of labels, or "all" with several predictions.
    """
    if labels not in ("model", "all", "data"):
        raise ValueError(f"labels={labels!r} is unknown; choose model, all or data")
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    generator, count, training = torch.Generator().manual_seed(seed), 0, model.training
    model.eval()  # dropout would add its own noise to every square
    for example in examples:
        count += 1
        logits, given = scores(model, example)
        for target, share in _targets(logits.detach(), given, labels, generator):
            score = logits.float().log_softmax(-1).gather(1, target[:, None]).sum()
            gradients = torch.autograd.grad(score, list(weights.values()), retain_graph=True, allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    found[name] += share * gradient.float().square()
    model.train(training)
    if not count:
        raise ValueError("no examples: the Fisher information is a mean over examples of the old task")
    return {name: total / count for name, total in found.items()}


def _targets(logits: Tensor, given: Tensor, labels: Labels, generator: torch.Generator) -> list[tuple[Tensor, float]]:
    """Label rows and the weight of each."""
    chances = logits.float().softmax(-1)
    if labels == "data":
        return [(given, 1.0)]
    if labels == "model":
        return [(torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0].to(logits.device), 1.0)]
    if len(logits) != 1:
        raise ValueError(f'labels="all" needs one prediction an example, not {len(logits)}: use "model"')
    return [(torch.tensor([label], device=logits.device), float(chance)) for label, chance in enumerate(chances[0])]


def classifier_scores(model: nn.Module, example: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """For `fisher`: a classifier's logits and the label of one example."""
    return model(**example).logits, example["labels"]


def next_token_scores(model: nn.Module, example: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """For `fisher`: a transformers decoder's prediction of every next token of one text, and the tokens that came."""
    ids = example["input_ids"]
    return model(**{name: value for name, value in example.items() if name != "labels"}).logits[0, :-1], ids[0, 1:]


# ---- half fine-tuning ----------------------------------------------------------------------------------------------------

Units = dict[str, dict[str, list[str]]]  # layer → category → modules that hold weights


def half(model: nn.Module, round: int, *, seed: int = 0) -> list[str]:
    """Freeze half of every category for one round (one task, or one call of `fit`) and unfreeze the other; returns what learns.

    Categories: attention, feed-forward, norms. Of each layer's modules in a category (a weight with its bias) half learn; where
    the number is odd, half of the layers, chosen by chance, give one more. What lies outside the layers (embeddings, final norm,
    head) learns if it did before. Call `fit` anew for each round: its optimizer then knows the round's weights alone.
    Raises: ValueError for a model without layers.
    """
    learning = set(half_units(_units(model), round, seed))
    inside = {name for names in _members(model).values() for name in names}
    for name, weight in model.named_parameters():
        if name in inside:
            weight.requires_grad_(name.rpartition(".")[0] in learning)
        weight.grad = None
    return sorted(name for name, weight in model.named_parameters() if weight.requires_grad)


def half_units(units: Units, round: int, seed: int = 0) -> list[str]:
    """The modules that learn in a round: of every layer and category half, the odd one given to every other layer by chance."""
    rng, chosen = Random(f"half/{seed}/{round}"), []
    categories = sorted({category for own in units.values() for category in own})
    for category in categories:
        odd = [layer for layer, own in units.items() if len(own.get(category, ())) % 2]
        generous = set(rng.sample(odd, (len(odd) + rng.randrange(2)) // 2))  # an odd number of odd layers: up or down by chance
        for layer, own in units.items():
            modules = own.get(category, [])
            chosen += rng.sample(modules, len(modules) // 2 + (layer in generous))
    return chosen


def _members(model: nn.Module) -> dict[str, list[str]]:
    """The parameters of every layer; position tables inside a layer (T5's) are not its own and count outside."""
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {
        layer: [name for name in names if name.rpartition(".")[0] not in tables]
        for layer, names in groups(model).items()
        if "layer" in layer
    }


def _units(model: nn.Module) -> Units:
    found: Units = {}
    for layer, names in _members(model).items():
        own = found.setdefault(layer, {})
        for module in dict.fromkeys(name.rpartition(".")[0] for name in names):
            own.setdefault(_category(model, module), []).append(module)
    return found


def _category(model: nn.Module, module: str) -> str:
    if "Norm" in type(model.get_submodule(module)).__name__:
        return "norms"
    inside = module.lower().split(".")
    return "attention" if any("att" in part or part in ("cross", "crossattention") for part in inside) else "feed-forward"
