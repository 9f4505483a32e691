"""A vocabulary of whole words, and what it cannot say: every other word is <unk>.

    the market opens at noon  ──►  the market <unk> at noon

Does:     the commonest words of a text, and the share of a held-out text that they do not know; ids as in tokenizers' WordLevel.
Leaves out: words seen too rarely to learn well, which sub-words help as much as the unknown ones.
Source:   Sennrich et al. 2016 §1 (the open vocabulary).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llmcourse.pretraining.pretokenize import WORD, as_text, count_words, words

__all__ = ["WordLevel"]


@dataclass(frozen=True)
class WordLevel:
    """Words between white space → ids; the id of `unknown` for all others."""

    vocab: dict[str, int]
    unknown: str = "<unk>"

    @classmethod
    def train(cls, text: str | bytes | Iterable[str | bytes], vocab_size: int, *, unknown: str = "<unk>") -> WordLevel:
        """The `vocab_size` - 1 commonest words, alphabetical among equals, after `unknown`.

        Raises: ValueError for a vocabulary below 2 or a text without words.
        """
        if vocab_size < 2:
            raise ValueError(f"vocab_size {vocab_size} leaves no room for a word beside {unknown!r}; choose 2 or more")
        counted = count_words([text] if isinstance(text, str | bytes) else text, WORD)
        if not counted:
            raise ValueError("the text holds no word: there is nothing to learn; give it some text")
        counted.pop(unknown, None)
        known = sorted(counted, key=lambda word: (-counted[word], word))[: vocab_size - 1]
        return cls({word: id for id, word in enumerate([unknown, *known])}, unknown)

    def encode(self, text: str | bytes) -> list[int]:
        """One id per word."""
        return [self.vocab.get(word, self.vocab[self.unknown]) for word in words(as_text(text), WORD)]

    def decode(self, ids: Iterable[int]) -> str:
        """The words, one space between them: what white space there was is forgotten, and so are the unknown words."""
        spelling = list(self.vocab)
        return " ".join(spelling[id] for id in ids)

    def unknown_share(self, text: str | bytes) -> float:
        """The share of the text's words that become `unknown`; 0 for a text without words."""
        ids = self.encode(text)
        return ids.count(self.vocab[self.unknown]) / max(1, len(ids))
