"""Compression: whoever predicts the next token well needs few bits to write it down.

    length in bits = Σ -log2 p(token | the tokens before it)        the model's loss in bits, and a rest below one per cent

    bytes ─► tokens ─► model ─► p(next token) as whole numbers ─► arithmetic coder ─► bytes
                         ▲ KV cache: one step a token, the same on both ends

Does:     any bytes, empty and non-UTF-8 ones too, through any byte-level tokenizer; text longer than the model's context. Where
          the model expects a document to end, its end-of-text token is written, which stands for no byte. Both ends take the
          same path through the model: batched and cached logits differ in the seventh digit, which would break the decoder.
Leaves out: speed (a forward pass a token); a stored mode: bytes the model finds surprising grow. Decoding on another kind of
          machine may fail, because sums round differently there: the checksum then says so. The model is not part of the file.
Source:   Delétang et al. 2024, "Language modeling is compression".
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import math
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmcourse.pretraining.arithmetic import MAX_TOTAL, CompressionError, Decoder, Encoder
from llmcourse.transformer import KVCache, Transformer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CompressionError", "bits_per_byte", "code_length", "compare", "compress", "decompress", "frequencies"]

MAGIC = b"LM\x01"

# -------------------------------------------------------------------------------------------------------------- the model


def frequencies(logits: Float[Tensor, " vocab"]) -> Int[Tensor, " vocab"]:
    """Probabilities as whole numbers that sum to at most 2²⁴; none is 0, so that every text can be written."""
    shares = logits.double().softmax(-1)
    return (shares * (MAX_TOTAL - len(logits))).long() + 1


class _Predictor:
    """The next token's frequencies after the tokens pushed so far: one cached step each, the same on both ends.

    When the context is full, it starts anew with the later half of what it held.
    """

    def __init__(self, model: Transformer, bos: int, eos: int | None) -> None:
        self.model, self.bos, self.eos = model, bos, eos
        self.window = model.config.max_positions
        self.recent: deque[int] = deque(maxlen=max(0, self.window // 2 - 1))
        self._start()

    def _start(self) -> None:
        self.cache = KVCache(self.model.config.n_layers, capacity=self.window)
        self._step([self.bos, *self.recent])

    @torch.inference_mode()
    def _step(self, tokens: list[int]) -> None:
        ids = torch.tensor([tokens], device=self.model.embed.weight.device)
        logits = self.model.unembed(self.model.hidden(ids, cache=self.cache)[:, -1])[0]
        self.ends = frequencies(logits.float().cpu()).cumsum(0)  # token t owns [ends[t-1], ends[t])
        self.total = int(self.ends[-1])

    def push(self, token: int) -> None:
        """Go on behind `token`; the end of a document is followed by the start of the next."""
        for each in (token, self.bos) if token == self.eos else (token,):
            self.recent.append(each)
            if self.cache.length < self.window:
                self._step([each])
            else:
                self._start()

    def part(self, token: int) -> tuple[int, int, int]:
        """(start, stop, total) of a token."""
        return int(self.ends[token - 1]) if token else 0, int(self.ends[token]), self.total

    def token_at(self, target: int) -> int:
        """The token whose part holds `target`."""
        return int(torch.searchsorted(self.ends, target, right=True))

    @property
    def expects_end(self) -> bool:
        """Whether the end of the document is likelier than everything else together."""
        if self.eos is None:
            return False
        start, stop, total = self.part(self.eos)
        return 2 * (stop - start) > total


@contextmanager
def _prediction(model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[_Predictor, bytes]]:
    """A predictor and the model's four-byte check. One thread: with more, sums may be added up in another order."""
    threads = torch.get_num_threads()
    ours = model if isinstance(model, Transformer) else Transformer.from_hf(model)
    training = ours.training
    bos = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), 0)
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id != bos else None
    torch.set_num_threads(1)
    try:
        yield _Predictor(ours.eval(), bos, eos), _check_of(ours, tokenizer)
    finally:
        ours.train(training)
        torch.set_num_threads(threads)


def _check_of(model: Transformer, tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Four bytes of a digest of the weights, the shape and the vocabulary."""
    digest = hashlib.sha256(repr(model.config).encode())
    digest.update("\n".join(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))).encode("utf-8", "replace"))
    for weight in model.parameters():
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.digest()[:4]


# --------------------------------------------------------------------------------------------------------- bytes and tokens


def _byte_of_char() -> dict[str, int]:
    """The characters that byte-level tokenizers write for the 256 bytes: printable ones stand for themselves (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class _Bytes:
    """Bytes to tokens of a byte-level tokenizer, and back. `of[id]` is None for special tokens, which stand for no bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, table = tokenizer, _byte_of_char()
        self.special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.of = [
            bytes(map(table.__getitem__, name)) if i not in self.special and set(name) <= table.keys() else None
            for i, name in enumerate(names)
        ]
        single = {piece: i for i, piece in enumerate(self.of) if piece is not None and len(piece) == 1}
        missing = [byte for byte in range(256) if bytes([byte]) not in single]
        if missing:
            raise ValueError(
                f"the tokenizer has no token for {len(missing)} of the 256 bytes (the first: 0x{missing[0]:02X}), so it cannot "
                "write every file; choose a byte-level one, such as that of tiny-gpt, GPT-2, Llama 3 or Qwen"
            )
        self.token_of_byte = [single[bytes([byte])] for byte in range(256)]

    def encode(self, data: bytes) -> list[int]:
        """Tokens whose bytes are exactly `data`: the tokenizer's own where it keeps every byte, single bytes elsewhere."""
        parts = re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape"))
        tokens = [token for part in parts for token in self._part(part)]
        if b"".join(self.of[token] or b"" for token in tokens) == data:
            return tokens
        return self._single(data)  # the tokenizer normalises its text

    def _part(self, text: str) -> list[int]:
        if not text or "\udc80" <= text[0] <= "\udcff":  # bytes that are not UTF-8
            return self._single(text.encode("utf-8", "surrogateescape"))
        ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [token for i in ids for token in (self._spelt(i) if i in self.special else (i,))]

    def _single(self, data: bytes) -> list[int]:
        return [self.token_of_byte[byte] for byte in data]

    def _spelt(self, special: int) -> list[int]:
        """A text that contains the name of a special token is not the special token."""
        return self._single(self.tokenizer.convert_ids_to_tokens(special).encode("utf-8"))


# --------------------------------------------------------------------------------------------------------------- the files


def compress(model: Any, tokenizer: PreTrainedTokenizerBase, data: bytes, *, bar: bool = False) -> bytes:
    """`data`, compressed by a language model: `decompress` with the same model gives it back.

    model: a `Transformer`, or a transformers model that it can load. bar: show a progress bar.

    Raises: ValueError for a tokenizer that is not byte-level.
    """
    with _prediction(model, tokenizer) as (predictor, check):
        encoder = Encoder()
        for part in _parts(predictor, tokenizer, data, bar):
            encoder.encode(*part)
        return _header(check, data) + encoder.finish()


def decompress(model: Any, tokenizer: PreTrainedTokenizerBase, blob: bytes, *, bar: bool = False) -> bytes:
    """What `compress` was given.

    Raises: CompressionError where `blob` is damaged, cut short, or was made with another model.
    """
    header = _read_header(blob)
    with _prediction(model, tokenizer) as (predictor, check):
        if check != header.check:
            raise CompressionError("this file was compressed with another model or tokenizer; decompress it with the same one")
        data = _decoded(predictor, _Bytes(tokenizer).of, blob[header.size :], header.length, bar)
    if zlib.crc32(data) != header.checksum:
        raise CompressionError("the checksum does not match: the file is damaged, or its machine rounds differently")
    return data


def _parts(predictor: _Predictor, tokenizer: PreTrainedTokenizerBase, data: bytes, bar: bool) -> Iterator[tuple[int, int, int]]:
    """The part of the frequencies of every token to be written. The predictor stands before that token meanwhile."""
    for token in _with_bar(_Bytes(tokenizer).encode(data), bar):
        for each in (predictor.eos, token) if predictor.expects_end else (token,):
            yield predictor.part(each)
            predictor.push(each)


def _decoded(predictor: _Predictor, pieces: list[bytes | None], payload: bytes, length: int, bar: bool) -> bytes:
    decoder, data = Decoder(payload), bytearray()
    with _progress(length, "B", bar) as advance:
        while len(data) < length:
            token = predictor.token_at(decoder.target(predictor.total))
            decoder.decode(*predictor.part(token))
            predictor.push(token)
            piece = b"" if token == predictor.eos else pieces[token] if token < len(pieces) else None
            if piece is None or len(data) + len(piece) > length:
                raise CompressionError("the compressed data hold a token that no text contains: the file is damaged")
            data += piece
            advance(len(piece))
    decoder.finish()
    return bytes(data)


class _Header(NamedTuple):
    check: bytes
    checksum: int
    length: int
    size: int


def _header(check: bytes, data: bytes) -> bytes:
    """The mark of the format, the model's check, the data's checksum and length: 12 bytes for up to 127 bytes of data."""
    length, rest = [], len(data)
    while rest > 127:
        length.append(128 | rest & 127)
        rest >>= 7
    return MAGIC + check + zlib.crc32(data).to_bytes(4, "big") + bytes([*length, rest])


def _read_header(blob: bytes) -> _Header:
    if not blob.startswith(MAGIC) or len(blob) < 12:
        raise CompressionError(f"these {len(blob)} bytes are no file that `compress` wrote: too short, or of another kind")
    length, size = 0, 11
    for shift in range(0, 63, 7):
        if size >= len(blob):
            break
        byte, size = blob[size], size + 1
        length |= (byte & 127) << shift
        if byte < 128:
            return _Header(blob[3:7], int.from_bytes(blob[7:11], "big"), length, size)
    raise CompressionError("the length in the file's header is damaged")


@contextmanager
def _progress(total: int, unit: str, on: bool) -> Iterator[Callable[[int], Any]]:
    from tqdm.std import tqdm

    with tqdm(total=total, unit=unit, disable=not on, leave=False, mininterval=0.5) as shown:
        yield shown.update


def _with_bar(tokens: list[int], on: bool) -> Iterator[int]:
    with _progress(len(tokens), " tokens", on) as advance:
        for token in tokens:
            yield token
            advance(1)


# -------------------------------------------------------------------------------------------------------------- measuring


def bits_per_byte(losses: Float[Tensor, " tokens"], text: str) -> float:
    """What a byte of `text` costs, from the loss of each of its tokens in nats: models with other tokenizers can be compared.

    >>> round(bits_per_byte(torch.tensor([2.0, 1.0]), "abcd"), 4)
    1.082
    """
    return losses.sum().item() / math.log(2) / len(text.encode("utf-8"))


def code_length(model: Any, tokenizer: PreTrainedTokenizerBase, data: bytes) -> float:
    """Bits the model's frequencies ask for, Σ -log2 p: what no coder can undercut, header aside."""
    with _prediction(model, tokenizer) as (predictor, _):
        parts = _parts(predictor, tokenizer, data, bar=False)
        return sum(math.log2(total / (stop - start)) for start, stop, total in parts)


def compare(model: Any, tokenizer: PreTrainedTokenizerBase, data: bytes, *, bar: bool = False) -> list[dict[str, Any]]:
    """Rows for `show.table`: what each compressor makes of `data`, and what its receiver must have beside the file.

    zstd is the one inside pyarrow, which `datasets` brings along.
    """
    from pyarrow import Codec

    weights = sum(weight.numel() * 2 for weight in model.parameters())
    made = [
        ("nothing", len(data), None),
        ("gzip -9", len(gzip.compress(data, 9, mtime=0)), None),
        ("bzip2 -9", len(bz2.compress(data, 9)), None),
        ("xz -9", len(lzma.compress(data, preset=9)), None),
        ("zstd -19", len(Codec("zstd", compression_level=19).compress(data, asbytes=True)), None),
        ("language model", len(compress(model, tokenizer, data, bar=bar)), weights),
    ]
    size = max(1, len(data))
    return [{"compressor": n, "bytes": b, "bits per byte": 8 * b / size, "model bytes (bf16)": m} for n, b, m in made]
