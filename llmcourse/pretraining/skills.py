"""What a language model of the town can do, measured on questions it has never seen.

    a question counts as right when greedy decoding writes exactly the expected completion

Greedy decoding writes a completion exactly when, with the completion given, every one of its tokens is the most likely next one:
so a single forward pass over prompt + completion decides, and thousands of questions take seconds.

Does:     eleven skills with Wilson 95 % intervals, beside the score of always giving the commonest answer.
Leaves out: partly right answers; sums whose steps are right but not in the usual form count as wrong.
Source:   Wilson 1927 (the interval).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

import torch

from llmcourse.world import Question, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SKILLS", "Score", "Skill", "answers_right", "measure", "questions", "wilson"]


def _negated(prompt: str) -> bool:
    """Whether every sentence of a review holds a negation."""
    sentences = prompt.removeprefix("Review: ").split("\n")[0].strip(".").split(". ")
    return all(any(word in sentence for word in (" not ", " never ", "Nobody ")) for sentence in sentences)


@dataclass(frozen=True, kw_only=True)
class Skill:
    """A kind of question at one size; `only` keeps some of them, `famous` asks about the town's best-known people."""

    kind: str
    size: int
    only: Callable[[str], bool] | None = None
    famous: bool = False


SKILLS = {
    "repeat a list of 8": Skill(kind="copy", size=8),
    "answer from a text about 1 stranger": Skill(kind="context", size=1),
    "answer from a text about 2 strangers": Skill(kind="context", size=2),
    "answer from a text about 3 strangers": Skill(kind="context", size=3),
    "closed-book facts, famous people": Skill(kind="closed-book", size=1, famous=True),
    "3-step sums, with steps": Skill(kind="sum-steps", size=3),
    "3-step sums, answer only": Skill(kind="sum-direct", size=3),
    "sort words under new labels, 8 shots": Skill(kind="sorting", size=8),
    "sort words under new labels, 2 shots": Skill(kind="sorting", size=2),
    "feeling of a review": Skill(kind="review", size=1),
    "feeling of a review, negated": Skill(kind="review", size=1, only=_negated),
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """`right` of `asked`; `commonest` is the share of the most frequent answer, which needs no skill to give."""

    right: int
    asked: int
    commonest: float

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(self.right, self.asked)


def wilson(right: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share by Wilson's formula: sensible near 0 and 1, where ± 2 standard errors is not.

    >>> [round(end, 3) for end in wilson(10, 10)]
    [0.722, 1.0]
    """
    share, z2 = right / asked, z * z / asked
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / asked + z2 / asked / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def questions(world: World, skill: Skill, split: str = "test") -> Iterator[Question]:
    """Questions of one skill, worded as the training text never words them: endless, but for famous people's facts."""
    if skill.famous:
        return (question for person in world.famous for question in world.facts_about(person, split))
    drawn = (world.question(skill.kind, i, split, skill.size) for i in count())
    return (question for question in drawn if skill.only is None or skill.only(question.prompt))


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, *, asked: int = 300, split: str = "test"
) -> dict[str, Score]:
    """Score every skill on up to `asked` questions."""
    scores = {}
    for name, skill in SKILLS.items():
        items = list(islice(questions(world, skill, split), asked))
        commonest = Counter(item.answer for item in items).most_common(1)[0][1] / len(items)
        scores[name] = Score(right=sum(answers_right(model, tokenizer, items)), asked=len(items), commonest=commonest)
    return scores


def answers_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Question], batch_size: int = 50
) -> list[bool]:
    """For each question, whether greedy decoding writes its completion."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt + items[i].completion))
    verdicts = [False] * len(items)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for i, right in zip(chosen, _batch_right(model, tokenizer, [items[i] for i in chosen]), strict=True):
            verdicts[i] = right
    return verdicts


@torch.no_grad()
def _batch_right(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: list[Question]) -> list[bool]:
    prompts = [tokenizer(item.prompt)["input_ids"] for item in items]
    rows = [p + tokenizer(item.completion, add_special_tokens=False)["input_ids"] for p, item in zip(prompts, items, strict=True)]
    longest = max(map(len, rows))
    # padded on the right: under a causal mask nothing to the left sees the padding, so no attention mask is needed
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows], device=model.device)
    guesses = model(input_ids=ids).logits.argmax(-1)
    return [
        bool((guesses[i, len(p) - 1 : len(row) - 1] == ids[i, len(p) : len(row)]).all())
        for i, (p, row) in enumerate(zip(prompts, rows, strict=True))
    ]
