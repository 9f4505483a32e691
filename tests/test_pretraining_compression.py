"""The language model as a compressor: every byte comes back, the length is the model's loss, and damage is noticed."""

import math
import random
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmcourse import zoo
from llmcourse.pretraining import arithmetic, compress
from llmcourse.pretraining.arithmetic import CompressionError, Decoder, Encoder, narrow
from llmcourse.transformer import Config, Transformer
from llmcourse.world import World

TEXT = "Ada Bell lives in Mill Lane. Ada Bell is a baker.\nThe fish soup was not bad.\n" * 3
AWKWARD = {
    "empty": b"",
    "one byte": b"\0",
    "plain": TEXT.encode(),
    "every byte": bytes(range(256)),
    "not UTF-8": b"\xff\xfe caf\xe9 \xed\xa0\x80 ok \xc3",
    "several scripts": "naïve Zoë 漢字 🙂\t\0\r\n  end".encode(),
    "names of special tokens": b"<|bos|>Hi<|eos|> <|eos|>\n<|pad|>",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|eos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>")


def random_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, max_positions: int = 512, scale: float = 20.0) -> Transformer:
    """A model whose random predictions are far from uniform."""
    torch.manual_seed(seed)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32}
    model = Transformer(Config(vocab_size=len(tokenizer), max_positions=max_positions, **shape)).eval()
    with torch.no_grad():
        model.head.weight *= scale
    return model


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Transformer:
    return random_model(tokenizer)


# ------------------------------------------------------------------------------------------------------------- the coder


def coded(symbols: list[int], counts: list[int]) -> bytes:
    """Symbols with the given frequencies, encoded."""
    encoder = Encoder()
    for symbol in symbols:
        encoder.encode(sum(counts[:symbol]), sum(counts[: symbol + 1]), sum(counts))
    return encoder.finish()


def decoded(data: bytes, n: int, counts: list[int]) -> list[int]:
    decoder, symbols = Decoder(data), []
    for _ in range(n):
        target = decoder.target(sum(counts))
        symbol = next(s for s in range(len(counts)) if target < sum(counts[: s + 1]))
        decoder.decode(sum(counts[:symbol]), sum(counts[: symbol + 1]), sum(counts))
        symbols.append(symbol)
    decoder.finish()
    return symbols


@pytest.mark.parametrize(
    "counts",
    [[1, 1], [1, arithmetic.MAX_TOTAL - 1], [3, 5, 1, 7], [2**23 - 1, 2, 2**23 - 1], [1] * 200],
    ids=["even", "one in 2²⁴", "odd", "the middle", "many"],
)
def test_the_coder_gives_the_symbols_back(counts: list[int]) -> None:
    rng = random.Random(len(counts))
    for n in (0, 1, 2, 3, 50, 400):
        symbols = [rng.randrange(len(counts)) for _ in range(n)]
        assert decoded(coded(symbols, counts), n, counts) == symbols


def test_the_coder_survives_an_interval_that_stays_around_the_middle() -> None:
    """The middle symbol never settles a bit: hundreds are held back, then all turn at once."""
    counts = [2**23 - 1, 2, 2**23 - 1]
    for last in (0, 1, 2):
        symbols = [1] * 60 + [last]
        assert decoded(coded(symbols, counts), 61, counts) == symbols


def test_the_length_is_the_information_of_the_symbols_within_two_bits_and_the_padding() -> None:
    counts = [1, 2, 5, 8]
    symbols = random.Random(0).choices(range(4), counts, k=3000)
    information = sum(-math.log2(counts[s] / 16) for s in symbols)
    assert information <= 8 * len(coded(symbols, counts)) <= information + 2 + 7 + 1  # two bits, a byte not full, rounding


def test_the_decoder_stops_as_soon_as_more_bits_are_missing_than_an_encoder_leaves_out() -> None:
    """Thirty: of the 32 that the decoder looks at, the encoder's last two are always written."""
    assert Decoder(b"\0").position == 32
    with pytest.raises(CompressionError, match="end too early"):
        Decoder(b"")


def test_the_parts_of_an_interval_tile_it_without_gap_or_overlap() -> None:
    low, high, ends = 1000, 9876, [0, 1, 7, 8, 20]
    parts = [narrow(low, high, a, b, 20) for a, b in pairwise(ends)]
    assert parts[0][0] == low and parts[-1][1] == high
    assert all(after[0] == before[1] + 1 for before, after in pairwise(parts))


def test_no_frequency_is_zero_and_the_sum_keeps_its_limit() -> None:
    for logits in (torch.tensor([0.0, 1e4, -1e4]), torch.zeros(7), torch.full((50_000,), -3.0)):
        counts = compress.frequencies(logits)
        assert counts.min() >= 1
        assert counts.sum() <= arithmetic.MAX_TOTAL


# ------------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("data", AWKWARD.values(), ids=AWKWARD)
def test_any_bytes_come_back(model: Transformer, tokenizer: PreTrainedTokenizerFast, data: bytes) -> None:
    assert compress.decompress(model, tokenizer, compress.compress(model, tokenizer, data)) == data


@pytest.mark.parametrize("max_positions", [1, 2, 3, 8, 32])
def test_data_longer_than_the_context_come_back(tokenizer: PreTrainedTokenizerFast, max_positions: int) -> None:
    model = random_model(tokenizer, max_positions=max_positions)
    data = (TEXT + "漢字").encode()
    assert len(tokenizer(TEXT)["input_ids"]) > 2 * max_positions
    assert compress.decompress(model, tokenizer, compress.compress(model, tokenizer, data)) == data


def test_a_restart_keeps_the_later_half_of_the_context(tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_model(tokenizer, max_positions=16)
    with compress._prediction(model, tokenizer) as (predictor, _):
        for token in range(10, 26):
            predictor.push(token)
        kept = [tokenizer.bos_token_id, *range(19, 26)]
        expected = compress.frequencies(model(torch.tensor([kept]))[0, -1])
    assert predictor.cache.length == len(kept)
    torch.testing.assert_close(predictor.ends.diff(prepend=torch.tensor([0])), expected, rtol=1e-4, atol=50)


def test_both_ends_add_up_on_one_thread_whatever_is_set(
    model: Transformer, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, used, step = torch.get_num_threads(), set(), compress._Predictor._step
    monkeypatch.setattr(
        compress._Predictor, "_step", lambda self, tokens: (used.add(torch.get_num_threads()), step(self, tokens))
    )
    try:
        torch.set_num_threads(2)
        blob = compress.compress(model, tokenizer, b"Ada Bell")
        assert compress.decompress(model, tokenizer, blob) == b"Ada Bell"
        assert (used, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


def test_the_name_of_a_special_token_is_spelt_and_the_text_around_it_keeps_its_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    encode = compress._Bytes(tokenizer).encode
    assert len(encode(b"Ada Bell<|eos|>Ada Bell")) == 2 * len(encode(b"Ada Bell")) + len("<|eos|>")
    assert tokenizer.eos_token_id not in encode(b"Ada Bell<|eos|>Ada Bell")


def test_a_model_in_training_mode_is_used_without_dropout_and_left_in_training_mode(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "dropout": 0.5}
    model = Transformer(Config(vocab_size=len(tokenizer), max_positions=64, **shape)).train()
    assert compress.decompress(model, tokenizer, compress.compress(model, tokenizer, b"baker")) == b"baker"
    assert model.training


class ExpectsAnEnd(compress._Predictor):
    """Its frequencies say after every full stop that the document is over."""

    def _step(self, tokens: list[int]) -> None:
        super()._step(tokens)
        counts = self.ends.diff(prepend=torch.tensor([0]))
        if tokens[-1] == STOP:
            counts[self.eos] = 9 * int(counts.sum())
        self.ends = counts.cumsum(0)
        self.total = int(self.ends[-1])


STOP = -1


def test_where_the_model_expects_an_end_it_is_written_and_no_byte_is_lost(
    model: Transformer, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"One. Two. " * 12
    usual = compress.compress(model, tokenizer, data)
    monkeypatch.setattr(compress, "_Predictor", ExpectsAnEnd)
    monkeypatch.setitem(globals(), "STOP", tokenizer.convert_tokens_to_ids("."))
    pushed = []
    monkeypatch.setattr(ExpectsAnEnd, "push", lambda self, token: (pushed.append(token), super(ExpectsAnEnd, self).push(token)))
    blob = compress.compress(model, tokenizer, data)
    assert pushed.count(tokenizer.eos_token_id) == 24
    assert compress.decompress(model, tokenizer, blob) == data
    assert blob != usual


# ------------------------------------------------------------------------------------------------- the length is the loss


def test_the_code_length_is_the_cross_entropy_of_the_model(model: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    """Batched and without a cache; the coder's whole numbers and its last byte may cost half a per cent and two bytes."""
    data = TEXT.encode()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        logits = model(ids)[0, :-1]
    bits = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item() / math.log(2)
    written = 8 * (len(compress.compress(model, tokenizer, data)) - len(compress._header(b"1234", data)))
    assert compress.code_length(model, tokenizer, data) == pytest.approx(bits, rel=2e-3)
    assert 0.998 * bits <= written <= 1.005 * bits + 16


def test_bits_per_byte_count_bytes_and_bits() -> None:
    losses = torch.tensor([math.log(2)] * 6)
    assert compress.bits_per_byte(losses, "abc") == pytest.approx(2)
    assert compress.bits_per_byte(losses, "漢字") == pytest.approx(1)


shipped = pytest.mark.skipif(not (zoo.FOLDER / "tiny-gpt").is_dir(), reason="tiny-gpt is not there")


@shipped
def test_on_the_towns_text_the_shipped_model_needs_less_than_half_of_what_xz_does() -> None:
    model, tokenizer = zoo.load("tiny-gpt")
    world = World()
    data = "".join(world.document("biography", i, "test") for i in range(3)).encode()
    rows = {row["compressor"]: row["bytes"] for row in compress.compare(model, tokenizer, data)}
    assert rows["nothing"] == len(data)
    assert rows["language model"] < 0.5 * rows["xz -9"]
    assert compress.decompress(model, tokenizer, compress.compress(model, tokenizer, data[:150])) == data[:150]


# ----------------------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def blob(model: Transformer, tokenizer: PreTrainedTokenizerFast) -> bytes:
    return compress.compress(model, tokenizer, b"Ada Bell is a baker.\n")


def test_a_file_cut_anywhere_is_refused(model: Transformer, tokenizer: PreTrainedTokenizerFast, blob: bytes) -> None:
    for end in range(len(blob)):
        with pytest.raises(CompressionError):
            compress.decompress(model, tokenizer, blob[:end])


def test_a_changed_byte_anywhere_is_noticed(model: Transformer, tokenizer: PreTrainedTokenizerFast, blob: bytes) -> None:
    for place in range(len(blob)):
        changed = blob[:place] + bytes([blob[place] ^ 0x55]) + blob[place + 1 :]
        with pytest.raises(CompressionError):
            compress.decompress(model, tokenizer, changed)


def test_bytes_behind_the_end_are_noticed(model: Transformer, tokenizer: PreTrainedTokenizerFast, blob: bytes) -> None:
    with pytest.raises(CompressionError, match=f"have {len(blob) - 11} bytes, {len(blob) - 12} belong to the text"):
        compress.decompress(model, tokenizer, blob + b"\0")


def test_another_file_is_told_apart(model: Transformer, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CompressionError, match="no file that `compress` wrote"):
        compress.decompress(model, tokenizer, b"\x1f\x8b" + bytes(40))


def test_another_model_is_told_by_its_weights(model: Transformer, tokenizer: PreTrainedTokenizerFast, blob: bytes) -> None:
    other = random_model(tokenizer)
    with torch.no_grad():
        other.norm.weight[3] += 1e-6
    with pytest.raises(CompressionError, match="another model or tokenizer"):
        compress.decompress(other, tokenizer, blob)


def test_a_tokenizer_without_bytes_is_refused(model: Transformer) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match=r"no token for 256 of the 256 bytes \(the first: 0x00\)"):
        compress.compress(model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"), b"hello")
