"""What the generators hand out: a text, and questions with one right answer each."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Entity", "Item", "Question"]


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A person, a ware or an event with its facts, by relation. `slot` is its place in a template, `they` opens a sentence."""

    name: str
    facts: dict[str, str]
    slot: str = "name"
    they: str = "It"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, its one right answer, and the work that leads to it (steps of a sum, a program)."""

    prompt: str
    answer: str
    work: str = ""
    shown: bool = True

    @property
    def completion(self) -> str:
        """What a model should write after the prompt, its leading space included; a program's answer is not `shown`."""
        if not self.work:
            return f" {self.answer}\n"
        return f" {self.work}\nAnswer: {self.answer}\n" if self.shown else f" {self.work}\n"


@dataclass(frozen=True)
class Item:
    """A text followed by questions about it; either may be empty."""

    text: str
    questions: tuple[Question, ...] = ()
