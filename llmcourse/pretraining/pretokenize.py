"""Before byte-pair encoding: text becomes words, words become bytes, bytes become printable letters.

    "It's 2026,  town"  ──pattern──►  It · 's · ␣2026 · , · ␣ · ␣town  ──UTF-8──►  bytes  ──alphabet──►  Ġtown

No merge ever crosses a border between words, so each word has to be handled once however often it occurs. Bytes leave nothing
unknown: 256 of them spell every text in every language. The alphabet draws each byte as one visible letter (a space is Ġ),
because a vocabulary file holds text.

Does:     GPT-2's pattern; the same with every digit alone; plain splitting at white space; bytes that are not UTF-8, which travel
          through the text as surrogates (PEP 383) and come back unchanged.
Leaves out: lower-casing, accents, Unicode normal forms, scripts that need a dictionary to be split.
Source:   Radford et al. 2019 §2.2 and its code (pattern and alphabet). Characters that Unicode added lately are letters or not
          by the version of Unicode inside the `regex` library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import count

import regex

__all__ = ["GPT2", "GPT2_DIGITS", "WORD", "as_text", "byte_alphabet", "chunks", "count_words", "to_bytes", "words"]

# Contractions; letters, digits or signs, each with at most one space before them; white space, which leaves its last space to the
# word that follows. The doubled ++ never gives back what it took: the same words as with one +, found faster.
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s++")
# Digits are cut out one by one before anything else, so the white space before a digit is all of it a word.
GPT2_DIGITS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s++")
WORD = regex.compile(r"\S++")
# White space and what follows it. A word of either pattern never has white space behind something else, so cutting here first
# changes no word, and the few different chunks of a text can each be split once.
CHUNK = regex.compile(r"\s*+\S++|\s++")

Pattern = regex.Pattern
Texts = str | bytes | Iterable[str | bytes]


def words(text: str, pattern: Pattern = GPT2) -> list[str]:
    """The words of a text. With GPT-2's patterns nothing is lost: joined, they are the text again.

    >>> words("It's 2026,  town")
    ['It', "'s", ' 2026', ',', ' ', ' town']
    """
    return pattern.findall(text)


def chunks(text: str) -> list[str]:
    """The text cut before white space; each chunk can be split into words by itself."""
    return CHUNK.findall(text)


def count_words(texts: Iterable[str | bytes], pattern: Pattern = GPT2) -> Counter[str]:
    """How often each word occurs in all texts; no word goes from one text into the next."""
    found, counted = Counter(), Counter()
    for text in texts:
        found.update(CHUNK.findall(as_text(text)))
    for chunk, number in found.items():
        for word in pattern.findall(chunk):
            counted[word] += number
    return counted


@cache
def byte_alphabet() -> dict[int, str]:
    """Byte → the visible letter that stands for it. Printable Latin-1 stands for itself; the others take letters from U+0100 on.

    >>> byte_alphabet()[ord("a")], byte_alphabet()[ord(" ")], byte_alphabet()[0]
    ('a', 'Ġ', 'Ā')
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    spare = count(256)
    return {byte: chr(byte if byte in printable else next(spare)) for byte in range(256)}


def as_text(text: str | bytes) -> str:
    """Text as it is; bytes as UTF-8, where a byte that fits nowhere becomes the surrogate U+DC80 … U+DCFF that stands for it.

    Raises: ValueError for a text with any other half of a surrogate pair, and its place; TypeError for what is no text.
    """
    if isinstance(text, bytes):
        return text.decode("utf-8", errors="surrogateescape")
    if not isinstance(text, str):
        raise TypeError(f"a text is expected, str or bytes; this is a {type(text).__name__}: {text!r:.60}")
    if not text.isascii():
        to_bytes(text)
    return text


def to_bytes(text: str) -> bytes:
    """The UTF-8 bytes of a text; surrogates made by `as_text` become their bytes again.

    Raises: ValueError for any other half of a surrogate pair, which stands for no character.
    """
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        bad = ord(text[error.start])
        raise ValueError(
            f"character {error.start} of the text, U+{bad:04X}, is half of a surrogate pair: it stands for no character and has "
            'no UTF-8 bytes. Repair the text, e.g. text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from None
