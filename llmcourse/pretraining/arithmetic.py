"""Arithmetic coding: a whole message becomes one number, and likely messages need few digits.

    [low ────────────────────────── high]        the interval so far
          │  p(a)  │ p(b) │    p(c)    │
                    └──┬──┘
               [low ──── high]                   after b: narrower by p(b), so -log2 p(b) bits longer to name

Does:     exact integers, 32 bits wide at any moment: bits leave as soon as both ends agree on them; where the ends lie close on
          either side of the middle, a bit is held back until its successor is known. Any total up to 2²⁴. A file cut short is
          noticed.
Leaves out: where the frequencies come from (see `compress`); speed (Python handles each bit).
Source:   Witten, Neal & Cleary 1987, "Arithmetic coding for data compression".
"""

from __future__ import annotations

import math

__all__ = ["MAX_TOTAL", "CompressionError", "Decoder", "Encoder", "narrow"]

BITS = 32  # of the interval's two ends
HALF, QUARTER = 1 << (BITS - 1), 1 << (BITS - 2)
MAX_TOTAL = 1 << 24  # far below a quarter, the narrowest the interval gets: every token keeps a part of it


class CompressionError(ValueError):
    """The data cannot be decompressed: damaged, cut short, or made with another model."""


def narrow(low: int, high: int, start: int, stop: int, total: int) -> tuple[int, int]:
    """The part of the interval [low, high], both included, that belongs to a token.

    Its share of the frequencies is [start, stop) of total: the tokens before it in the vocabulary take `start`, it takes
    `stop - start`.

    >>> narrow(0, 99, 25, 75, 100)
    (25, 74)
    """
    width = high - low + 1
    return low + width * start // total, low + width * stop // total - 1


def _offset(low: int, high: int) -> int | None:
    """What to subtract from both ends before they are doubled; None while the interval is wide enough.

    0: both lie in the lower half, the next bit is 0. HALF: in the upper half, it is 1. QUARTER: both are near the middle on
    either side of it, and the next bit is not known yet, but the one after it will be its opposite.
    """
    if high < HALF:
        return 0
    if low >= HALF:
        return HALF
    return QUARTER if low >= QUARTER and high < HALF + QUARTER else None


class Encoder:
    """Turns tokens, each given as its part of the frequencies, into bits."""

    def __init__(self) -> None:
        self.low, self.high = 0, (1 << BITS) - 1
        self.pending = 0  # bits not known yet: opposites of the next one that is
        self.bits: list[str] = []

    def encode(self, start: int, stop: int, total: int) -> None:
        """Narrow the interval, then write the bits its two ends agree on."""
        self.low, self.high = narrow(self.low, self.high, start, stop, total)
        while (offset := _offset(self.low, self.high)) is not None:
            if offset == QUARTER:
                self.pending += 1
            else:
                self._write(offset == HALF)
            self.low, self.high = 2 * (self.low - offset), 2 * (self.high - offset) + 1

    def _write(self, bit: bool) -> None:
        self.bits.append("1" if bit else "0")
        self.bits.append(("0" if bit else "1") * self.pending)
        self.pending = 0

    def finish(self) -> bytes:
        """Everything written, and two more bits that name a quarter inside the last interval."""
        self.pending += 1
        self._write(self.low >= QUARTER)
        bits = "".join(self.bits)
        size = math.ceil(len(bits) / 8)
        return int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")


class Decoder:
    """Turns bits back into tokens: `target` says where the bits point, the caller finds the token, `decode` removes it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.low, self.high = 0, (1 << BITS) - 1
        self.code = 0
        for _ in range(BITS):
            self.code = 2 * self.code + self._read()

    def target(self, total: int) -> int:
        """A number in [0, total) that lies in the next token's part of the frequencies."""
        return ((self.code - self.low + 1) * total - 1) // (self.high - self.low + 1)

    def decode(self, start: int, stop: int, total: int) -> None:
        """Narrow the interval as the encoder did, and read on."""
        self.low, self.high = narrow(self.low, self.high, start, stop, total)
        while (offset := _offset(self.low, self.high)) is not None:
            self.low, self.high = 2 * (self.low - offset), 2 * (self.high - offset) + 1
            self.code = 2 * (self.code - offset) + self._read()

    def _read(self) -> int:
        """The next bit. Behind the last one come zeros, at most as many as the encoder can have left out."""
        byte, shift = divmod(self.position, 8)
        if byte >= len(self.data) and self.position >= 8 * len(self.data) + BITS - 2:
            raise CompressionError("the compressed data end too early: the file is cut short or damaged")
        self.position += 1
        return self.data[byte] >> (7 - shift) & 1 if byte < len(self.data) else 0

    def finish(self) -> None:
        """Raise CompressionError unless the data end exactly where the encoder's did."""
        written = self.position - BITS + 2
        if len(self.data) != math.ceil(written / 8):
            raise CompressionError(
                f"the compressed data have {len(self.data)} bytes, {math.ceil(written / 8)} belong to the text"
            )
