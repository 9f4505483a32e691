"""The invented town of Larkham: plain English text and tasks whose true answers are known.

    seed ─► town: people, wares, events, changes ─► kinds: text to train on ─► documents, with their bits
                                                 └► questions to measure with, in words kept for that

Everything is drawn from generators seeded with text, so item 7 of a kind is the same item on every machine and can be made
without items 0–6. Names invented for a context or a label belong to one split only, and so do some wordings of everything said
or asked.

Does:     biographies, stories, news, dialogues, closed-book, context and two-hop questions, lists, sums in three styles, reviews,
          reports, posts and opinions, also with marks; the information of every text, hence the entropy of the whole.
Leaves out: instructions, preferences, tools (their own modules, never in the training text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from .draw import Draw
from .items import Entity, Item, Question
from .kinds import facts, prose, tasks
from .marked import marked
from .opinions import judged, opinions, posts, reports, reviews, topic_news
from .town import CUTOFF, FAMOUS, Town
from .words import INVENTED, split_of

__all__ = ["APART", "CUTOFF", "FAMOUS", "KINDS", "Draw", "Entity", "Item", "Question", "Split", "World", "split_of"]

Split = Literal["train", "validation", "test"]
Maker = Callable[[Town, Draw, str, int], Item]

# kind -> how an item is made, and the smallest and largest size drawn when none is asked for
KINDS: dict[str, tuple[Maker, int, int]] = {
    "biography": (facts.biography, 4, 9),
    "story": (prose.story, 1, 1),
    "news": (prose.news, 1, 1),
    "dialogue": (prose.dialogue, 1, 2),
    "closed-book": (facts.closed_book, 3, 5),
    "context": (facts.context, 1, 3),
    "multi-hop": (facts.multi_hop, 2, 3),
    "changes": (facts.changes, 1, 3),
    "mayors": (facts.mayors, 1, 2),
    "copy": (tasks.copy, 3, 12),
    "calculation": (tasks.calculation, 4, 10),
    "sum-steps": (tasks.sum_steps, 2, 4),
    "sum-direct": (tasks.sum_direct, 2, 4),
    "sum-program": (tasks.sum_program, 2, 4),
    "sorting": (tasks.sorting, 5, 12),
    "review": (judged, 2, 4),
    "review-text": (reviews, 1, 3),
    "report": (reports, 2, 4),
    "post": (posts, 2, 4),
    "opinion": (opinions, 1, 3),
    "topic-news": (topic_news, 2, 4),
}
APART: dict[str, tuple[Maker, int, int]] = {"marked": (marked, 1, 1)}  # drawn only where it is named


class World(Town):
    """The town and all that can be written about it.

    >>> World(0).question("sum-steps", 3).answer == World(0).question("sum-steps", 3).answer
    True
    """

    def document(self, kind: str, index: int, split: str = "train", size: int | None = None) -> str:
        """Document number `index` of one kind: its text and its questions with their answers, ending in a newline.

        `size` sets the difficulty where the kind has one (people in a context, steps of a sum, words in a list).
        Raises ValueError for an unknown kind, split or size.
        """
        return self.measured(kind, index, split, size)[0]

    def measured(self, kind: str, index: int, split: str = "train", size: int | None = None) -> tuple[str, float]:
        """A document and its information in bits, given the town and the kind."""
        item, draw = self._item(kind, index, split, size)
        return item.text + "".join(q.prompt + q.completion for q in item.questions), draw.bits

    def question(self, kind: str, index: int, split: str = "test", size: int | None = None) -> Question:
        """Question number `index` of one kind, its prompt holding all that is needed. Raises ValueError as `document` does."""
        item, _ = self._item(kind, index, split, size)
        if not item.questions:
            asking = ", ".join(kind for kind in KINDS | APART if self._item(kind, 0, "train", None)[0].questions)
            raise ValueError(f'kind "{kind}" is plain text and asks no question; choose one of {asking}')
        first = item.questions[0]
        return Question(prompt=item.text + first.prompt, answer=first.answer, work=first.work, shown=first.shown)

    def documents(self, kind: str | None = None, split: str = "train", start: int = 0) -> Iterator[str]:
        """Documents without end, from number `start`; all kinds of `KINDS` in turn when none is named."""
        kinds = [kind] if kind else list(KINDS)
        number = start
        while True:
            yield self.document(kinds[number % len(kinds)], number, split)
            number += 1

    def facts_about(self, entity: Entity, split: str = "test") -> list[Question]:
        """Closed-book questions about one entity in the wordings of `split`."""
        return facts.questions_about(entity, split)

    def _item(self, kind: str, index: int, split: str, size: int | None) -> tuple[Item, Draw]:
        kinds = KINDS | APART
        if kind not in kinds:
            raise ValueError(f'unknown kind of text "{kind}"; choose one of {", ".join(kinds)}')
        if split not in INVENTED:
            raise ValueError(f'unknown split "{split}"; choose one of {", ".join(INVENTED)}')
        make, smallest, largest = kinds[kind]
        draw = Draw(f"{self.seed}/{kind}/{split}/{index}/{size}")
        size = draw.whole(smallest, largest) if size is None else size
        if not 1 <= size <= 12:
            raise ValueError(f'size {size} of kind "{kind}" is out of range; choose 1–12 (usual: {smallest}–{largest})')
        return make(self, draw, split, size), draw
