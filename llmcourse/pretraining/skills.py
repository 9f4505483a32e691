"""What a language model of the town can do, measured on questions it has never seen.

    a question counts as right when greedy decoding writes exactly the expected completion

Greedy decoding writes a completion exactly when, with the completion given, every one of its tokens is the most likely next one:
so a single forward pass over prompt + completion decides, and thousands of questions take seconds.

Does:     the skills with Wilson 95 % intervals, beside the score of always giving the commonest answer.
Leaves out: partly right answers; sums whose steps are right but not in the usual form count as wrong.
Source:   Wilson 1927 (the interval).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING

import torch

from llmcourse.pretraining.untaught import UNTAUGHT, replies
from llmcourse.world import Question, World
from llmcourse.world.kinds import facts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SKILLS", "Score", "answers_right", "measure", "measure_untaught", "wilson"]

Questions = Callable[[World, str], Iterator[Question]]


def _drawn(kind: str, size: int | tuple[int, ...], only: Callable[[str], bool] | None = None) -> Questions:
    """Questions of one kind, its sizes in turn; `only` keeps some of them."""
    sizes = (size,) if isinstance(size, int) else size

    def questions(world: World, split: str) -> Iterator[Question]:
        drawn = (world.question(kind, i, split, sizes[i % len(sizes)]) for i in count())
        return (question for question in drawn if only is None or only(question.prompt))

    return questions


def _closed_book(first: int, last: int | None) -> Questions:
    """Facts about the people from number `first` to number `last` of the town, in an order drawn once."""

    def questions(world: World, split: str) -> Iterator[Question]:
        asked = [question for person in world.people[first:last] for question in world.facts_about(person, split)]
        return iter(Random("closed-book").sample(asked, len(asked)))

    return questions


def _after_the_cutoff(world: World, split: str) -> Iterator[Question]:
    """Dates of later events and streets people moved to later: true in the town, and in no training text."""
    yield from (question for event in world.later_events for question in world.facts_about(event, split))
    for move in world.later_moves:
        yield from (facts.move_question(move, wording) for wording in range(3, 6))


def _negated(prompt: str) -> bool:
    """Whether a review holds a negation."""
    return any(word in prompt for word in (" not ", " never ", "Nobody ", "nothing "))


SKILLS: dict[str, Questions] = {
    "repeat a list of 8": _drawn("copy", 8),
    "answer from a text about 1 stranger": _drawn("context", 1),
    "answer from a text about 2 strangers": _drawn("context", 2),
    "answer from a text about 3 strangers": _drawn("context", 3),
    "closed-book facts, famous people": _closed_book(0, 24),
    "closed-book facts, least known people": _closed_book(100, None),
    "facts after the cut-off": _after_the_cutoff,
    "two hops, closed-book": _drawn("multi-hop", 1),
    "3–4-step sums, with steps": _drawn("sum-steps", (3, 4)),
    "3–4-step sums, by program": _drawn("sum-program", (3, 4)),
    "3–4-step sums, answer only": _drawn("sum-direct", (3, 4)),
    "sort words under new labels, 8 shots": _drawn("sorting", 8),
    "sort words under new labels, 1 shot": _drawn("sorting", 1),
    "feeling of a review": _drawn("review", 1),
    "feeling of a review, negated": _drawn("review", 1, _negated),
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """`right` of `asked`; `commonest` is the share of the most frequent answer, which needs no skill to give."""

    right: int
    asked: int
    commonest: float

    @property
    def share(self) -> float:
        """The share of right answers; 0 where nothing was asked."""
        return self.right / self.asked if self.asked else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(self.right, self.asked)


def wilson(right: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share by Wilson's formula: sensible near 0 and 1, where ± 2 standard errors is not.

    >>> [round(end, 3) for end in wilson(10, 10)]
    [0.722, 1.0]
    """
    if not asked:
        return 0.0, 1.0
    share, z2 = right / asked, z * z / asked
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / asked + z2 / asked / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, *, asked: int = 300, split: str = "test"
) -> dict[str, Score]:
    """Score every skill the training text teaches on up to `asked` questions."""
    scores = {}
    for name, questions in SKILLS.items():
        items = list(islice(questions(world, split), asked))
        commonest = Counter(item.answer for item in items).most_common(1)[0][1] / len(items)
        scores[name] = Score(right=sum(answers_right(model, tokenizer, items)), asked=len(items), commonest=commonest)
    return scores


def measure_untaught(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, *, asked: int = 150
) -> dict[str, Score]:
    """Score what the training text does not teach, in the chat form."""
    scores = {}
    for name, judged in UNTAUGHT.items():
        prompts, checks = zip(*judged(world, asked), strict=True)
        written = replies(model, tokenizer, list(prompts))
        right = sum(check(reply) for check, reply in zip(checks, written, strict=True))
        scores[name] = Score(right=right, asked=asked, commonest=0.0)
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
