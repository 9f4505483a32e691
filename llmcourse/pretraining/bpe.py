"""Byte-pair encoding: a tokenizer learnt from text that spells every text there is.

    train    text ──► words × counts ──► join the commonest pair of neighbours ──► vocabulary + 1, again ──► merges in order
    encode   text ──► special tokens ──► words ──► bytes ──► join the pair learnt first, again ──► ids
    decode   ids ──► bytes ──► text

Knows nothing of how merges are found (merging.py), how text is cut into words (pretokenize.py), or of the file's format
(tokenizer_json.py). bpe_steps.py has the whole method in three short functions.

Does:     byte-level (GPT-2's words, every digit alone if wanted) or character-level with an end-of-word token; special tokens;
          merges and ids equal to those of Hugging Face's `tokenizers`, files as well; any bytes round-trip.
Leaves out: normalizers, sampled merges (BPE-dropout). A character without a token raises an error where `tokenizers` drops it
          silently (byte-level knows no such character).
Source:   Sennrich et al. 2016; Radford et al. 2019 §2.2.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import regex
from jaxtyping import Int
from torch import Tensor

from llmcourse.pretraining import tokenizer_json
from llmcourse.pretraining.merging import Pairs, join_by_rank, learn
from llmcourse.pretraining.pretokenize import GPT2, GPT2_DIGITS, WORD, as_text, byte_alphabet, chunks, count_words, to_bytes
from llmcourse.pretraining.tokenizer_json import AddedToken, Definition

__all__ = ["BPE"]

Texts = str | bytes | Iterable[str | bytes]
Ids = Iterable[int] | Int[Tensor, " tokens"]


class _Remembered(dict):
    """Short texts → their ids, worked out when first asked for; forgets everything when it is full."""

    def __init__(self, work: Callable[[str], list[int]], room: int = 1 << 17, longest: int = 64) -> None:
        super().__init__()
        self.work, self.room, self.longest = work, room, longest

    def __missing__(self, text: str) -> list[int]:
        ids = self.work(text)
        if len(text) <= self.longest:
            if len(self) >= self.room:
                self.clear()
            self[text] = ids
        return ids


# ---- the tokenizer ----------------------------------------------------------------------------------------------------


class BPE:
    """A byte-pair tokenizer, complete in its `definition`: `BPE.train` learns one, `BPE.load` reads one."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.pattern = (GPT2_DIGITS if definition.split_digits else GPT2) if definition.byte_level else WORD
        vocab = definition.vocab
        self.ranks = {
            (vocab[left], vocab[right]): (rank, vocab[left + right]) for rank, (left, right) in enumerate(definition.merges)
        }
        self.spelling = {id: token for token, id in vocab.items()} | {token.id: token.content for token in definition.added}
        self.special_ids = {token.id for token in definition.added if token.special}
        self._letters = _letters(definition)
        self._bytes = {id: self._bytes_of(token) for id, token in self.spelling.items()}
        self._bytes |= {token.id: to_bytes(token.content) for token in definition.added}
        self._searches = _searches(definition.added)
        self._of_word, self._of_chunk = _Remembered(self._encode_word), _Remembered(self._encode_chunk)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, special ones included."""
        return len(self.spelling)

    def __repr__(self) -> str:
        level = "byte-level" if self.definition.byte_level else "character-level"
        return f"BPE({level}, {self.vocab_size:,} tokens, {len(self.definition.merges):,} merges)"

    # ---- training

    @classmethod
    def train(
        cls,
        text: Texts,
        vocab_size: int,
        *,
        special_tokens: Sequence[str] = (),
        bos_token: str | None = None,
        unk_token: str | None = None,
        min_frequency: int = 0,
        byte_level: bool = True,
        split_digits: bool = False,
        end_of_word: str = "",
        progress: bool = True,
    ) -> BPE:
        """Learn `vocab_size` tokens from a text or many; no word goes from one text into the next.

        special_tokens: get the first ids. bos_token: one of them, which begins every encoding. unk_token: one of them, for
        characters never seen (characters only). min_frequency: rarer pairs are not joined. byte_level: else the characters
        between white space. split_digits: every digit is a token. end_of_word: a token at every word's end (characters only).
        progress: a text bar when it takes longer than two seconds. Ctrl-C stops at once and leaves nothing behind.

        Raises: ValueError for an empty text, a vocabulary smaller than its alphabet, or settings that contradict each other.
        Warns: when the text holds too few pairs to fill the vocabulary.
        """
        _check_settings(special_tokens, {"bos_token": bos_token, "unk_token": unk_token}, byte_level, split_digits, end_of_word)
        if byte_level:
            _check_size(vocab_size, 256, "bytes", special_tokens)
        pattern = (GPT2_DIGITS if split_digits else GPT2) if byte_level else WORD
        words = count_words(_counted([text] if isinstance(text, str | bytes) else text, progress), pattern)
        if not words:
            raise ValueError("the text is empty: there is nothing to learn; give it at least one word")
        letters = list(_alphabet(words, byte_level, end_of_word))
        _check_size(vocab_size, len(letters), "bytes" if byte_level else "different characters", special_tokens)
        _check_special(special_tokens, letters)
        vocab = {token: id for id, token in enumerate([*special_tokens, *letters])}
        merges = _grow(_spelt(words, vocab, byte_level, end_of_word), vocab, vocab_size, min_frequency, progress)
        return cls(
            Definition(
                vocab=vocab,
                merges=tuple(merges),
                added=tuple(AddedToken(content=token, id=id) for id, token in enumerate(special_tokens)),
                byte_level=byte_level,
                split_digits=split_digits,
                end_of_word=end_of_word,
                unk_token=unk_token,
                post_processor=tokenizer_json.template(bos_token, vocab[bos_token]) if bos_token else None,
            )
        )

    # ---- files

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BPE:
        """Read a tokenizer.json, or the one in a folder: ours, or one of `tokenizers` that uses nothing we do not know.

        Raises: FileNotFoundError; ValueError for a damaged file, or naming the feature that is not supported.
        """
        return cls(tokenizer_json.read(path))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a tokenizer.json, which `tokenizers` and transformers read as well. A folder gets a file of that name."""
        return tokenizer_json.write(path, self.definition)

    # ---- encoding

    def encode(self, text: str | bytes, *, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """The ids of a text. Bytes need not be UTF-8: each one that fits nowhere is spelt by itself.

        add_special_tokens: with <|bos|> in front, where the tokenizer has such a template. split_special_tokens: a special token
        written out *in* the text is spelt like any other; do so with text you do not trust.

        Raises: ValueError for half a surrogate pair, or a character without a token (never in a byte-level tokenizer).
        """
        before, after = self.definition.around if add_special_tokens else ((), ())
        ids = list(before)
        for part in [as_text(text)] if split_special_tokens else self._parts(as_text(text)):
            if isinstance(part, AddedToken):
                ids.append(part.id)
            else:
                ids.extend(chain.from_iterable(map(self._of_chunk.__getitem__, chunks(part))))
        ids.extend(after)
        return ids

    def tokens(self, text: str | bytes, **options: Any) -> list[str]:
        """The text's tokens as the vocabulary writes them (Ġ is a space); options as in `encode`."""
        return [self.spelling[id] for id in self.encode(text, **options)]

    def _parts(self, text: str) -> Iterable[str | AddedToken]:
        """The text cut at the added tokens in it: those found before normalization first, the longest where several begin."""
        parts: Iterable[str | AddedToken] = [text]
        for pattern, found in self._searches:
            cut = (pattern.split(part) if isinstance(part, str) else [part] for part in parts)
            parts = [found.get(piece, piece) for pieces in cut for piece in pieces]
        return parts

    def _encode_chunk(self, chunk: str) -> list[int]:
        return [id for word in self.pattern.findall(chunk) for id in self._of_word[word]]

    def _encode_word(self, word: str) -> list[int]:
        letters = to_bytes(word) if self.definition.byte_level else word
        ids = [self._letters[letter] for letter in letters]
        if self.definition.end_of_word:
            ids.append(self.definition.vocab[self.definition.end_of_word])
        return join_by_rank(ids, self.ranks)

    # ---- decoding

    def decode(self, ids: Ids, *, skip_special_tokens: bool = False, errors: str = "replace") -> str:
        """The text of the ids. Characters, having lost the white space, get one space between words (or tokens: no end_of_word).

        errors: ids can be cut inside a character, and their bytes are then no UTF-8; "replace" puts U+FFFD (�) there, "strict"
        raises, "surrogateescape" keeps each such byte for `decode(…).encode("utf-8", "surrogateescape")`.

        Raises: ValueError for an id that is not in the vocabulary.
        """
        if self.definition.byte_level:
            return self.decode_bytes(ids, skip_special_tokens=skip_special_tokens).decode("utf-8", errors=errors)
        tokens = [self.spelling[id] for id in self._known(ids, skip_special_tokens)]
        if end := self.definition.end_of_word:
            return "".join(tokens).replace(end, " ").removesuffix(" ")
        return " ".join(tokens)

    def decode_bytes(self, ids: Ids, *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of the ids of a byte-level tokenizer: exactly those that were encoded.

        Raises: ValueError for an id that is not in the vocabulary.
        """
        return b"".join(self._bytes[id] for id in self._known(ids, skip_special_tokens))

    def _known(self, ids: Ids, skip_special_tokens: bool) -> list[int]:
        """The ids as a list (a tensor's, too), each in the vocabulary."""
        listed = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if unknown := [id for id in listed if id not in self.spelling]:
            raise ValueError(f"id {unknown[0]} is not in the vocabulary; choose 0–{max(self.spelling)}")
        return [id for id in listed if id not in self.special_ids] if skip_special_tokens else listed

    def _bytes_of(self, token: str) -> bytes:
        inverse = self._inverse_alphabet
        return bytes(map(inverse.__getitem__, token)) if all(letter in inverse for letter in token) else to_bytes(token)

    _inverse_alphabet = {letter: byte for byte, letter in byte_alphabet().items()}  # noqa: RUF012 (constant)


# ---- parts of the tokenizer -------------------------------------------------------------------------------------------


def _alphabet(words: Iterable[str], byte_level: bool, end_of_word: str) -> Iterator[str]:
    """All bytes, or the characters that occur, in order; then the end-of-word token."""
    letters = sorted(byte_alphabet().values() if byte_level else set().union(*words))
    if end_of_word and any(end_of_word in word for word in words):
        raise ValueError(f"end_of_word {end_of_word!r} stands in the text itself; choose another")
    if not byte_level and any("\ud800" <= letter <= "\udfff" for letter in letters):
        raise ValueError("the bytes are not UTF-8, so they are no characters; train with byte_level=True")
    yield from letters
    if end_of_word:
        yield end_of_word


class _Letters(dict):
    """Byte or character → id; what has no token is `unk`, or an error."""

    unk: int | None = None

    def __missing__(self, letter: int | str) -> int:
        if self.unk is None:
            raise ValueError(
                f"the character {letter!r} has no token: it was not in the training text. Train with unk_token, or byte_level"
            )
        return self.unk


def _letters(definition: Definition) -> _Letters:
    if definition.byte_level:
        return _Letters({byte: definition.vocab[letter] for byte, letter in byte_alphabet().items()})
    letters = _Letters({token: id for token, id in definition.vocab.items() if len(token) == 1})
    letters.pop(definition.end_of_word, None)
    letters.unk = definition.vocab[definition.unk_token] if definition.unk_token else None
    return letters


def _searches(added: Sequence[AddedToken]) -> list[tuple[regex.Pattern, dict[str, AddedToken]]]:
    """A pattern for the tokens that are looked for first, one for the others; and the tokens by their text."""
    tiers = ([token for token in added if not token.normalized], [token for token in added if token.normalized])
    return [
        (
            regex.compile("(" + "|".join(regex.escape(t.content) for t in sorted(tier, key=lambda t: -len(t.content))) + ")"),
            {token.content: token for token in tier},
        )
        for tier in tiers
        if tier
    ]


def _check_settings(
    special_tokens: Sequence[str], roles: Mapping[str, str | None], byte_level: bool, split_digits: bool, end_of_word: str
) -> None:
    if isinstance(special_tokens, str):
        raise ValueError(f'special_tokens is one text, {special_tokens!r}; give a list: ["{special_tokens}"]')
    for role, token in roles.items():
        if token is not None and token not in special_tokens:
            raise ValueError(f"{role} {token!r} is not among the special_tokens {list(special_tokens)}; add it there")
    if byte_level and (end_of_word or roles["unk_token"]):
        raise ValueError("end_of_word and unk_token are for characters: bytes keep the spaces and know all. Use byte_level=False")
    if split_digits and not byte_level:
        raise ValueError("split_digits needs byte_level=True; without it words are cut at white space only")


def _check_size(vocab_size: int, letters: int, of_what: str, special_tokens: Sequence[str]) -> None:
    smallest = letters + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size {vocab_size} is below the alphabet's {letters} {of_what} + {len(special_tokens)} special tokens = "
            f"{smallest}; choose {smallest} or more"
        )
    if vocab_size >= 0x110000:
        raise ValueError(f"vocab_size {vocab_size} is above 1,114,111; choose fewer tokens")


def _check_special(special_tokens: Sequence[str], letters: Sequence[str]) -> None:
    for token, number in Counter(special_tokens).items():
        if number > 1 or not token or token in letters:
            why = "is there twice" if number > 1 else "is empty" if not token else "is a letter of the alphabet, too"
            raise ValueError(f'special token {token!r} {why}; choose another, such as "<|{token.strip() or "end"}|>"')


def _spelt(words: Mapping[str, int], vocab: Mapping[str, int], byte_level: bool, end_of_word: str) -> dict[str, int]:
    """The words as strings of chr(id) → their counts."""
    end = chr(vocab[end_of_word]) if end_of_word else ""
    if not byte_level:
        table = {ord(letter): chr(id) for letter, id in vocab.items() if len(letter) == 1}
        return {word.translate(table) + end: number for word, number in words.items()}
    table = {byte: chr(vocab[letter]) for byte, letter in byte_alphabet().items()}
    return {to_bytes(word).decode("latin-1").translate(table): number for word, number in words.items()}


def _grow(
    words: Mapping[str, int], vocab: dict[str, int], vocab_size: int, min_frequency: int, progress: bool
) -> list[tuple[str, str]]:
    """Learn merges under a progress bar, and say so if they end before the vocabulary is full."""
    from tqdm.std import tqdm  # not tqdm.auto: its widget would be stored in the notebook

    bar = {"desc": "merging pairs", "unit": " tokens", "delay": 2.0, "mininterval": 0.5, "leave": False, "disable": not progress}
    with tqdm(total=vocab_size - len(vocab), **bar) as shown:
        merges = learn(Pairs(words), vocab, vocab_size, min_frequency, shown.update)
    if len(vocab) < vocab_size:
        rare = f" {min_frequency} times" if min_frequency > 1 else ""
        warnings.warn(
            f"the vocabulary has {len(vocab):,} tokens instead of {vocab_size:,}: no further pair of neighbours occurs{rare} in "
            "the text. More text, or a smaller vocab_size, closes the gap",
            stacklevel=3,
        )
    return merges


def _counted(texts: Iterable[str | bytes], progress: bool) -> Iterator[str | bytes]:
    """The texts, under a progress bar."""
    from tqdm.std import tqdm

    yield from tqdm(texts, desc="counting words", unit=" texts", delay=2.0, mininterval=0.5, leave=False, disable=not progress)
