"""The marks a reader tells: stars, outlooks, pages, votes and tags of texts it has never seen.

    text ─► BERT: the word it expects at <|bos|> · T5: the answer it writes ─► right if it means the same (4 and 5 stars)

Does:     a score for every mark, with its interval, beside that of always giving the commonest.
Leaves out: marks a model finds nearly as likely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING

import torch

from llmcourse.pretraining.skills import Score
from llmcourse.world import Question, World
from llmcourse.world.marked import MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["measure_marks"]

# mark -> groups of words that mean the same
GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {title: tuple(classes.values()) for title, classes in MARKS.values()}


def measure_marks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, *, asked: int = 300, split: str = "test"
) -> dict[str, Score]:
    """Score a BERT or a T5 on `asked` texts of every mark, in the wordings of `split`."""
    scores = {}
    for title, groups in GROUPS.items():
        texts, answers = zip(*islice(_questions(world, title, split), asked), strict=True)
        meant = [_group(groups, answer) for answer in answers]
        right = sum(_group(groups, said) == group for said, group in zip(_told(model, tokenizer, texts), meant, strict=True))
        scores[title.lower()] = Score(right=right, asked=asked, commonest=Counter(meant).most_common(1)[0][1] / asked)
    return scores


def _questions(world: World, title: str, split: str) -> Iterator[tuple[str, str]]:
    drawn = (world.question("marked", i, split) for i in count())
    return (_parted(question) for question in drawn if question.prompt.endswith(f"\n{title}:"))


def _parted(question: Question) -> tuple[str, str]:
    """The text without the mark's name, and the mark."""
    return question.prompt.rpartition("\n")[0], question.answer


def _group(groups: Sequence[Sequence[str]], word: str) -> int:
    return next((i for i, words in enumerate(groups) if word in words), -1)


@torch.no_grad()
def _told(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int = 100) -> list[str]:
    words = []
    for start in range(0, len(texts), size):
        inputs = tokenizer(list(texts[start : start + size]), padding=True, return_tensors="pt").to(model.device)
        if model.config.model_type == "bert":
            ids = model(**inputs).logits[:, 0].argmax(-1, keepdim=True)
        else:
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=1)
        words += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [word.strip() for word in words]
