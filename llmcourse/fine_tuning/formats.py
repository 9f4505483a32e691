"""A task as one row of tokens: the same model reads one text, two, or a choice of answers.

    classification     [start] text [extract]
    pair               [start] premise [delimiter] hypothesis [extract]
    similarity         [start] a [delimiter] b [extract]   and   [start] b [delimiter] a [extract]        (features added)
    multiple choice    [start] context [delimiter] answer k [extract]        for every k                  (scores compared)

    text to text       "stance sentence1: … sentence2: …"   ─►   "agree"
    label words        "… It was"   ─►   " great" | " bad"      the likelier one is the answer

A decoder reads from the left, so only its last place has seen everything: the head takes what the model computes at [extract].

Does:     the four formats on lists of token ids, cut to a length without losing a mark; padding into a batch; T5's task prefixes;
          verbalisers (a template and a word for each label), checked.
Leaves out: BERT's [CLS] a [SEP] b [SEP] with token types (its tokenizer does that: `tokenizer(a, b)`).
Source:   Radford et al. 2018 §3.3 (GPT-1); Raffel et al. 2020 §2.4 (T5); Schick & Schütze 2021 (pattern and verbaliser).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Marks",
    "Packed",
    "Verbaliser",
    "add_marks",
    "classification",
    "joined",
    "multiple_choice",
    "pack",
    "pair",
    "similarity",
    "text_to_text",
]

Ids = Sequence[int]


@dataclass(frozen=True)
class Marks:
    """The ids of the three tokens that pre-training never saw."""

    start: int
    delimiter: int
    extract: int


class Packed(NamedTuple):
    """Rows padded on the right: ids, 1 where a token is, and the place of each row's last token, [extract]."""

    input_ids: Int[Tensor, "rows seq"]
    attention_mask: Int[Tensor, "rows seq"]
    last: Int[Tensor, " rows"]


def add_marks(model: Any, tokenizer: PreTrainedTokenizerBase) -> Marks:
    """Give a transformers model three new tokens, their embeddings random as GPT-1's were; returns their ids."""
    names = ["<|start|>", "<|delimiter|>", "<|extract|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return Marks(*tokenizer.convert_tokens_to_ids(names))


def joined(parts: Sequence[Ids], marks: Marks, longest: int | None = None) -> list[int]:
    """[start] part [delimiter] part … [extract]. While that is longer than `longest`, the longest part loses its end.

    Raises: ValueError without a part, or where not even the marks fit.
    """
    if not parts:
        raise ValueError("no parts to join; give at least one list of token ids")
    kept = [len(part) for part in parts]
    if longest is not None and longest < len(parts) + 1:
        raise ValueError(f"longest={longest} has no room for {len(parts) + 1} marks; choose {len(parts) + 1} or more")
    while longest is not None and sum(kept) + len(parts) + 1 > longest:
        kept[kept.index(max(kept))] -= 1
    row = [marks.start]
    for part, keep in zip(parts, kept, strict=True):
        row += [*part[:keep], marks.delimiter]
    return [*row[:-1], marks.extract]


def classification(text: Ids, marks: Marks, longest: int | None = None) -> list[int]:
    """[start] text [extract]. Raises as `joined`."""
    return joined([text], marks, longest)


def pair(first: Ids, second: Ids, marks: Marks, longest: int | None = None) -> list[int]:
    """[start] first [delimiter] second [extract]: entailment, stance. The order counts. Raises as `joined`."""
    return joined([first, second], marks, longest)


def similarity(a: Ids, b: Ids, marks: Marks, longest: int | None = None) -> tuple[list[int], list[int]]:
    """Both orders, since neither text comes first; add the features at their [extract] before the head. Raises as `joined`."""
    return pair(a, b, marks, longest), pair(b, a, marks, longest)


def multiple_choice(context: Ids, answers: Sequence[Ids], marks: Marks, longest: int | None = None) -> list[list[int]]:
    """One row an answer; the head gives each a score, and softmax over the rows the answer. Raises as `joined`."""
    return [pair(context, answer, marks, longest) for answer in answers]


def pack(rows: Sequence[Ids], pad: int) -> Packed:
    """Rows of any length as one batch. Raises: ValueError without rows, or for an empty one."""
    if not rows or not all(len(row) for row in rows):
        raise ValueError(f"{len(rows)} rows, of lengths {[len(row) for row in rows]}: every row needs a token")
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    return Packed(ids, (torch.arange(width) < lengths[:, None]).long(), lengths - 1)


def text_to_text(task: str, **fields: str) -> str:
    """T5's input: the task's name, then each field after its own: `text_to_text("mnli", premise=…, hypothesis=…)`."""
    return " ".join([task, *(f"{name}: {text}" for name, text in fields.items())])


@dataclass(frozen=True)
class Verbaliser:
    """A pattern that ends where a word must follow, and the word of each label: template "{text} It was", words ("bad", "great").

    Raises: ValueError for a template without {text}, or words that are empty or twice the same.
    """

    template: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if "{text}" not in self.template:
            raise ValueError(f'the template {self.template!r} holds no "{{text}}", so it would say the same of every text')
        if not all(self.words) or len(set(self.words)) < len(self.words):
            raise ValueError(f"the label words {self.words} must be different, and none empty")

    def prompt(self, text: str) -> str:
        """The text in its pattern."""
        return self.template.replace("{text}", text)

    def answers(self, tokenizer: PreTrainedTokenizerBase, lead: str = " ", end: Ids = ()) -> list[list[int]]:
        """The token ids of every word, `lead` before it and the tokens `end` behind it.

        Raises: ValueError where one answer's tokens begin another's: the shorter would be at least as likely in every text.
        """
        found = [[*tokenizer(lead + word, add_special_tokens=False)["input_ids"], *end] for word in self.words]
        for i, short in enumerate(found):
            for j, long in enumerate(found):
                if i != j and long[: len(short)] == short:
                    raise ValueError(
                        f"the tokens of {self.words[i]!r} {short} begin those of {self.words[j]!r} {long}: choose other words"
                    )
        return found
