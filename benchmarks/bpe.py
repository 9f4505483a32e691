"""Byte-pair encoding: training and encoding against Hugging Face's `tokenizers` (Rust), training against the plain algorithm.

5 MB of real text: the documentation inside Python, then the sources of its standard library. The library may use every core; ours
uses one. Vocabularies and ids are asserted equal before anything is timed. Each of our encodings starts with no word in memory.

The plain algorithm is that of minbpe: every merge counts all pairs of all words again and rewrites all words. Its time grows with
text × merges, so it races on 100 kB and 512 tokens; on 5 MB and 4,096 tokens it would take hours, and the ratio would be smaller.
"""

import sysconfig
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.race import Result, race, report
from llmcourse import pydocs
from llmcourse.pretraining.bpe import BPE
from llmcourse.pretraining.pretokenize import byte_alphabet, words

__all__ = ["main"]

SIZE, VOCAB = 5_000_000, 4096
SMALL, SMALL_VOCAB = 100_000, 512


def corpus(size: int) -> list[str]:
    """Texts of `size` bytes together, nearly all of them ASCII."""
    texts, left = [], size
    sources = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    known = (path.read_text("utf-8", errors="replace") for path in sources if not {"site-packages", "test"} & set(path.parts))
    for text in [*(document.text for document in pydocs.documents()), *known]:
        texts.append(text.encode()[:left].decode(errors="ignore"))
        left -= len(text.encode())
        if left <= 0:
            return texts
    raise RuntimeError(f"this Python holds {size - left:,} bytes of text; the race needs {size:,}")


def rust(texts: Sequence[str]):
    """The library's tokenizer, trained alike."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def plain(texts: Sequence[str], vocab_size: int) -> list[tuple[int, int]]:
    """The merges, found by counting everything again for each."""
    ids = {letter: id for id, letter in enumerate(sorted(byte_alphabet().values()))}
    of_byte = [ids[byte_alphabet()[byte]] for byte in range(256)]
    spelt = [[of_byte[byte] for byte in word.encode()] for text in texts for word in words(text)]
    merges = []
    while 256 + len(merges) < vocab_size:
        counts = {}
        for word in spelt:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        spelt = [joined(word, best, 256 + len(merges)) for word in spelt]
        merges.append(best)
    return merges


def joined(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The word with `new` for every occurrence of the pair."""
    out, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and word[i] == pair[0] and word[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def training(texts: list[str]) -> Result:
    """Against Rust."""
    ours, theirs = BPE.train(texts, VOCAB, progress=False), rust(texts)
    assert ours.definition.vocab == theirs.get_vocab(), "the two sides do not learn the same tokens"

    def our_run() -> BPE:
        return BPE.train(texts, VOCAB, progress=False)

    return race(f"training, 5 MB, {VOCAB:,} tokens", our_run, lambda: rust(texts), goal=2.0, pairs=7, warmup=1)


def encoding(texts: list[str]) -> Result:
    """Against Rust, one text after the other."""
    definition, theirs = BPE.train(texts, VOCAB, progress=False).definition, rust(texts)

    def our_run() -> list[list[int]]:
        ours = BPE(definition)
        return [ours.encode(text) for text in texts]

    def their_run() -> list[list[int]]:
        return [theirs.encode(text).ids for text in texts]

    assert our_run() == their_run(), "the two sides do not give the same ids"
    return race("encoding, 5 MB", our_run, their_run, goal=3.0, pairs=7, warmup=1)


def against_plain(texts: list[str]) -> Result:
    """Against the plain algorithm, on less text."""

    def our_run() -> BPE:
        return BPE.train(texts, SMALL_VOCAB, progress=False)

    learnt = our_run().definition
    by_id = [(learnt.vocab[left], learnt.vocab[right]) for left, right in learnt.merges]
    assert by_id == plain(texts, SMALL_VOCAB), "the two sides do not learn the same merges"
    name = f"training, 100 kB, {SMALL_VOCAB} tokens, plain algorithm"
    return race(name, our_run, lambda: plain(texts, SMALL_VOCAB), goal=0.05, pairs=3, warmup=0)


def main() -> None:
    """Run the races."""
    texts = corpus(SIZE)
    report("bpe", [training(texts), encoding(texts), against_plain(corpus(SMALL))])
