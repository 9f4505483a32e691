"""Byte-pair encoding: merges, ids and files equal to those of Hugging Face's tokenizers, and every text comes back unchanged."""

import inspect
import json
import os
import random
import re
import unicodedata
import warnings
from collections import Counter
from html import unescape
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.std import tqdm

from llmcourse import show, zoo
from llmcourse.pretraining import bpe, bpe_steps, merging, pretokenize, tokenizer_json
from llmcourse.pretraining.bpe import BPE
from llmcourse.pretraining.word_level import WordLevel
from llmcourse.world import World

WALK = " ".join(["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3)
SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>"]


def letters() -> list[str]:
    """Characters of every script: what Unicode 3.2 knew already, so that every library's tables agree about them."""
    known = unicodedata.ucd_3_2_0
    return [chr(i) for i in range(0x110000) if known.category(chr(i)) not in ("Cn", "Cs")] + list("😀👩‍🚀🏴")


LETTERS = letters()
NASTY = "aab  \n\t'sret12٣½é=—你好 \u00a0\u3000\x1c\x85"


def draw(rng: random.Random) -> str:
    """A text that is hard to split: repeated letters, white space of all kinds, digits of all scripts, any character at all."""
    among = rng.choice([NASTY, NASTY, "ab ", "=======a", "aaab<|bos|>", LETTERS])
    return "".join(rng.choices(among, k=rng.randrange(1, 150)))


def random_texts(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [draw(rng) for _ in range(rng.randrange(2, 9))]


CORPORA = {
    "town": list(islice(World(0).documents(), 120)),
    "python-docs": [topics[name] for name in sorted(topics)[:9]],
    "empty lines and runs": ["\n\n\n    if x:\n        return\n" * 9, "=" * 99, "a" * 50, " ", ""],
}


def library(texts, vocab_size, *, special=(), min_frequency=0, digits=False, characters=False, unk=None) -> Tokenizer:
    """The peer: the same tokenizer trained by Hugging Face's library."""
    peer = Tokenizer(models.BPE(unk_token=unk))
    parts = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    peer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    if characters:
        peer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        peer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special),
        initial_alphabet=[] if characters else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    peer.train_from_iterator(texts, trainer)
    return peer


def file_of(peer: Tokenizer) -> dict:
    return json.loads(peer.to_str())


def quiet(texts, vocab_size, **options) -> BPE:
    """Train where the texts may be too small for the vocabulary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return BPE.train(texts, vocab_size, progress=False, **options)


@pytest.fixture(scope="module")
def pair() -> tuple[BPE, Tokenizer]:
    """Ours and the library's, trained alike on all corpora."""
    texts = [text for corpus in CORPORA.values() for text in corpus]
    peer = library(texts, 600, special=SPECIAL, digits=True)
    peer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    return quiet(texts, 600, special_tokens=SPECIAL, bos_token="<|bos|>", split_digits=True), peer


# ---- training ---------------------------------------------------------------------------------------------------------


def test_the_walk_through_joins_e_s_then_es_t():
    learnt = BPE.train(WALK, 14, byte_level=False)
    assert ["".join(merge) for merge in learnt.definition.merges[:2]] == ["es", "est"]
    assert file_of(library([WALK], 14, characters=True))["model"]["merges"] == [list(m) for m in learnt.definition.merges]


@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("min_frequency", [0, 3])
@pytest.mark.parametrize("corpus", CORPORA)
def test_vocabulary_and_merges_equal_the_librarys(corpus, min_frequency, digits):
    texts = CORPORA[corpus]
    ours = quiet(texts, 500, special_tokens=SPECIAL, min_frequency=min_frequency, split_digits=digits)
    theirs = library(texts, 500, special=SPECIAL, min_frequency=min_frequency, digits=digits)
    assert tokenizer_json.to_json(ours.definition) == file_of(theirs)


@pytest.mark.parametrize("seed", range(30))
def test_tokenizers_learnt_from_random_text_equal_the_librarys(seed):
    texts, size, digits, rare = random_texts(seed), 256 + 3 * seed, bool(seed % 2), (0, 2)[seed % 3 == 0]
    ours = quiet(texts, size, split_digits=digits, min_frequency=rare)
    theirs = library(texts, size, digits=digits, min_frequency=rare)
    assert tokenizer_json.to_json(ours.definition) == file_of(theirs)
    for text in [*texts, *random_texts(1000 + seed)]:
        assert ours.encode(text) == theirs.encode(text).ids


@pytest.mark.parametrize("seed", range(10))
def test_no_two_merges_spell_the_same_token(seed):
    """What allows one heap entry per pair."""
    rng = random.Random(seed)
    words = {"".join(rng.choices("ab", [rng.randrange(1, 9), 1], k=rng.randrange(2, 30))): rng.randrange(1, 9) for _ in range(40)}
    vocab = {"a": 0, "b": 1}
    words = {word.translate({ord("a"): chr(0), ord("b"): chr(1)}): number for word, number in words.items()}
    merges = merging.learn(merging.Pairs(words), vocab, 200, 1, lambda _: None)
    assert len({left + right for left, right in merges}) == len(merges) == len(vocab) - 2 > 30


def test_a_token_that_is_special_can_be_learnt_again_and_keeps_its_id():
    texts = ["the theme of the thesis"] * 3
    ours, theirs = quiet(texts, 275, special_tokens=["the"]), library(texts, 275, special=["the"])
    assert ours.definition.vocab["the"] == 0 and ("t", "he") in ours.definition.merges
    assert tokenizer_json.to_json(ours.definition) == file_of(theirs)


def test_characters_between_white_space_equal_the_librarys():
    texts = [*CORPORA["town"][:60], *random_texts(5)]
    ours = quiet(texts, 3000, byte_level=False, special_tokens=["<unk>"], unk_token="<unk>", min_frequency=2)
    theirs = library(texts, 3000, characters=True, special=["<unk>"], unk="<unk>", min_frequency=2)
    assert tokenizer_json.to_json(ours.definition) == file_of(theirs)
    for text in [*texts, "never seen: ☃ 鱻", "a<unk>b", ""]:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text), skip_special_tokens=False)


def test_the_end_of_word_token_acts_like_a_letter_behind_every_word():
    marked = WALK.replace(" ", "~ ") + "~"
    merges = BPE.train(WALK, 20, byte_level=False, end_of_word="~").definition.merges
    assert [list(merge) for merge in merges] == file_of(library([marked], 20, characters=True))["model"]["merges"]


def test_the_end_of_word_token_gives_the_spaces_back():
    learnt = BPE.train(WALK, 20, byte_level=False, end_of_word="</w>")
    assert learnt.decode(learnt.encode("low  lowest\nnewer")) == "low lowest newer"


def test_an_end_of_word_letter_in_a_new_text_is_no_end_of_word():
    with pytest.raises(ValueError, match="character '~' has no token"):
        BPE.train(WALK, 20, byte_level=False, end_of_word="~").encode("low~est")


def test_no_token_crosses_the_border_between_two_texts():
    assert "ab" not in quiet(["a", "b"] * 50, 300).definition.vocab
    assert "ab" in quiet(["ab"] * 50, 300).definition.vocab


def test_bytes_that_are_not_utf8_are_learnt_from():
    assert "ÿþ" in quiet(b"\xff\xfe" * 20, 257).definition.vocab


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one_and_says_so():
    with pytest.warns(UserWarning, match="has 258 tokens instead of 1,000.*smaller vocab_size"):
        assert BPE.train("abc", 1000).vocab_size == 258


@pytest.mark.parametrize("text", ["", b"", [], ["", ""]])
def test_an_empty_text_is_refused(text):
    with pytest.raises(ValueError, match="the text is empty"):
        BPE.train(text, 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 257, "special_tokens": ["<a>", "<b>"]}, "256 bytes \\+ 2 special tokens = 258; choose 258 or more"),
        ({"vocab_size": 9, "byte_level": False}, "10 different characters \\+ 0 special tokens = 10; choose 10 or more"),
        ({"vocab_size": 0x110000}, "above 1,114,111"),
        ({"special_tokens": ["<a>", "<a>"]}, "'<a>' is there twice"),
        ({"special_tokens": [""]}, "'' is empty"),
        ({"special_tokens": ["e"]}, "'e' is a letter of the alphabet"),
        ({"special_tokens": "<a>"}, 'give a list: \\["<a>"\\]'),
        ({"bos_token": "<a>"}, "bos_token '<a>' is not among the special_tokens"),
        ({"unk_token": "<a>", "special_tokens": ["<a>"]}, "byte_level=False"),
        ({"end_of_word": "</w>"}, "byte_level=False"),
        ({"end_of_word": "we", "byte_level": False}, "'we' stands in the text itself; choose another"),
        ({"byte_level": False, "split_digits": True}, "split_digits needs byte_level=True"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        BPE.train(WALK, **{"vocab_size": 300} | options)


def test_characters_cannot_be_learnt_from_bytes_that_are_not_utf8():
    with pytest.raises(ValueError, match="train with byte_level=True"):
        BPE.train(b"\xff\xfe", 300, byte_level=False)


def test_the_size_is_checked_before_any_text_is_read():
    def texts():
        raise AssertionError("a text was asked for")
        yield ""

    with pytest.raises(ValueError, match="choose 256 or more"):
        BPE.train(texts(), 255)


@pytest.mark.parametrize("where", ["counting", "merging"])
def test_ctrl_c_ends_the_training_and_closes_its_bar(where, monkeypatch):
    def interrupted(*_):
        yield "some text"
        raise KeyboardInterrupt

    def stop(self, *_):
        raise KeyboardInterrupt

    if where == "merging":
        monkeypatch.setattr(merging.Pairs, "merge", stop)
    bars = len(tqdm._instances)
    with pytest.raises(KeyboardInterrupt):
        BPE.train(interrupted() if where == "counting" else WALK, 300)
    assert len(tqdm._instances) == bars


# ---- splitting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_words_are_the_librarys(seed, digits):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]) if digits else byte_level
    pattern = pretokenize.GPT2_DIGITS if digits else pretokenize.GPT2
    for text in [*random_texts(seed), "it's 'twas we'll I'D 12's  3"]:
        theirs = [text[start:end] for _, (start, end) in parts.pre_tokenize_str(text)]
        assert pretokenize.words(text, pattern) == theirs and "".join(theirs) == text


@pytest.mark.parametrize("pattern", [pretokenize.GPT2, pretokenize.GPT2_DIGITS, pretokenize.WORD])
@pytest.mark.parametrize("seed", range(15))
def test_cutting_at_white_space_first_changes_no_word(seed, pattern):
    texts = random_texts(seed)
    assert pretokenize.count_words(texts, pattern) == Counter(word for text in texts for word in pattern.findall(text))


def test_the_byte_alphabet_is_the_librarys_and_reversible():
    alphabet = pretokenize.byte_alphabet()
    assert set(alphabet.values()) == set(pre_tokenizers.ByteLevel.alphabet()) and len(set(alphabet.values())) == 256
    for text in ["aé 你\n", "\x00\x7f\xad"]:
        ((theirs, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        assert "".join(alphabet[byte] for byte in text.encode()) == theirs


# ---- encoding and decoding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", CORPORA)
def test_ids_equal_the_librarys(pair, corpus):
    ours, theirs = pair
    for text in CORPORA[corpus]:
        assert ours.encode(text) == theirs.encode(text).ids
        plain = ours.encode(text, add_special_tokens=False)
        assert plain == theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)[1:]
        assert ours.tokens(text) == theirs.encode(text).tokens


@pytest.mark.parametrize(
    "text",
    [
        "<|bos|>",
        "a <|end|> b<|end|><|pad|>",
        " <|bos|>  <|bos|> ",
        "<|bos|",
        "<<|bos|>>",
        "<|BOS|>",
        "1<|end|>2 3",
        "\n<|end|>\n\n",
    ],
)
def test_special_tokens_in_the_text_are_found_as_the_library_finds_them(pair, text):
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text).ids


def test_special_tokens_can_be_spelt_as_plain_text(pair):
    ours, theirs = pair
    theirs = Tokenizer.from_str(theirs.to_str())
    theirs.encode_special_tokens = True
    text = "a <|end|> b"
    assert ours.encode(text, split_special_tokens=True) == theirs.encode(text).ids != ours.encode(text)


def test_the_longest_of_overlapping_added_tokens_wins_and_those_before_normalization_come_first():
    added = ["<a>", "<a><b>", AddedToken("b><c", normalized=True), AddedToken("x y", special=False, normalized=False)]
    theirs = library([WALK], 260)
    theirs.add_tokens(added)
    ours = BPE(tokenizer_json.from_json(file_of(theirs)))
    for text in ["<a><b><a>", "<b><c>", "<a><b><c>", "x yx  y", "<a>b><c<a><b>"]:
        assert ours.encode(text) == theirs.encode(text).ids
    ids = ours.encode("x y<a>")
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_every_text_comes_back_unchanged(pair):
    texts = [text for seed in range(30) for text in random_texts(seed)]
    assert [pair[0].decode(pair[0].encode(text, add_special_tokens=False)) for text in texts] == texts


@pytest.mark.parametrize("data", [bytes(range(256)), b"\xff\xfe caf\xe9 \xe4\xbd", b"ok \xed\xa0\x80", "é你".encode()[:-1]])
def test_any_bytes_come_back_unchanged(pair, data):
    ids = pair[0].encode(data, add_special_tokens=False)
    assert pair[0].decode_bytes(ids) == data
    assert pair[0].decode(ids, errors="surrogateescape").encode("utf-8", "surrogateescape") == data


def test_ids_cut_inside_a_character_decode_as_the_librarys_do(pair):
    ours, theirs = pair
    ids = ours.encode("naïve 你好 😀 ÿ", add_special_tokens=False)
    for start in range(len(ids)):
        for end in range(start, len(ids) + 1):
            assert ours.decode(ids[start:end]) == theirs.decode(ids[start:end])
    assert "�" in ours.decode(ids[:-1])
    with pytest.raises(UnicodeDecodeError):
        ours.decode(ids[:-1], errors="strict")


def test_special_tokens_are_decoded_or_skipped_as_asked(pair):
    ours, theirs = pair
    ids = ours.encode("one<|end|> two")
    assert ours.decode(ids) == "<|bos|>one<|end|> two" == theirs.decode(ids, skip_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=True) == "one two" == theirs.decode(ids)


def test_a_tensor_of_ids_is_decoded(pair):
    assert pair[0].decode(torch.tensor(pair[0].encode("one", add_special_tokens=False))) == "one"


def test_an_id_outside_the_vocabulary_is_refused_with_the_range(pair):
    with pytest.raises(ValueError, match="id 600 is not in the vocabulary; choose 0–599"):
        pair[0].decode([1, 600])


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="str or bytes; this is a list: \\['low'\\]"):
        inspect.unwrap(pretokenize.as_text)(["low"])


def test_half_a_surrogate_pair_is_refused_with_its_place(pair):
    with pytest.raises(ValueError, match=r"character 2 of the text, U\+D83D, is half of a surrogate pair"):
        pair[0].encode("ab\ud83d")


def test_a_character_without_a_token_is_named():
    with pytest.raises(ValueError, match=r"character 'x' has no token.*unk_token"):
        BPE.train(WALK, 14, byte_level=False).encode("xow")


@pytest.mark.parametrize("seed", range(20))
def test_joining_with_a_heap_equals_the_plain_loop(seed):
    rng = random.Random(seed)
    word = rng.choices("abc", k=rng.randrange(1, 80))
    ids = {letter: id for id, letter in enumerate("abc")}
    merges = {}
    for rank in range(12):  # each pair makes a token of its own
        pair = tuple(rng.sample(sorted(ids), 2))
        if pair not in merges and "".join(pair) not in ids:
            merges[pair], ids["".join(pair)] = rank, len(ids)
    ranks = {(ids[a], ids[b]): (rank, ids[a + b]) for (a, b), rank in merges.items()}
    spelt = bpe_steps.apply_merges(word, merges)
    assert merging.join_by_rank([ids[letter] for letter in word], ranks) == [ids[token] for token in spelt]


def test_a_long_word_and_a_full_memory_change_no_id(pair, monkeypatch):
    ours, theirs = pair
    text = "=" * 3000 + " ".join(f"w{i}" for i in range(400)) + "ab" * 500
    fresh = BPE(ours.definition)
    fresh._of_chunk.room = fresh._of_word.room = 10
    assert fresh.encode(text) == theirs.encode(text).ids
    assert len(fresh._of_chunk) <= 10 and len(fresh._of_word) <= 10
    assert max(map(len, fresh._of_word)) <= fresh._of_word.longest


# ---- files ------------------------------------------------------------------------------------------------------------


def test_the_library_reads_our_file_and_gives_equal_ids(pair, tmp_path):
    ours, theirs = pair
    path = ours.save(tmp_path)
    assert path == tmp_path / "tokenizer.json" and list(tmp_path.iterdir()) == [path]
    read = Tokenizer.from_file(str(path))
    assert file_of(read) == file_of(theirs)
    assert all(read.encode(text).ids == ours.encode(text) for text in random_texts(77))


def test_we_read_the_librarys_file_and_give_equal_ids(pair, tmp_path):
    ours, theirs = pair
    theirs.save(str(tmp_path / "their.json"))
    read = BPE.load(tmp_path / "their.json")
    assert read.definition == ours.definition
    assert all(read.encode(text) == theirs.encode(text).ids for text in random_texts(78))


def test_characters_survive_the_file(tmp_path):
    ours = BPE.train(WALK, 16, byte_level=False)
    assert BPE.load(ours.save(tmp_path)).definition == ours.definition


def test_the_shipped_models_tokenizer_gives_the_librarys_ids():
    folder = zoo.FOLDER / "tiny-gpt"
    ours, theirs = BPE.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in [*CORPORA["town"][:40], *random_texts(79), "<|user|>How much is 12 + 30?<|end|><|assistant|>"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids)


def test_a_file_in_gpt2s_older_spelling_is_read():
    """Merges as "a b", empty texts for settings that are off, a ByteLevel post-processor that adds no token."""
    theirs = file_of(library([WALK], 265))
    older = json.loads(json.dumps(theirs))
    older["model"] |= {"merges": [" ".join(m) for m in theirs["model"]["merges"]], "unk_token": "", "end_of_word_suffix": ""}
    older["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    older["pre_tokenizer"]["trim_offsets"] = False
    del older["model"]["type"], older["pre_tokenizer"]["use_regex"]
    read = BPE(tokenizer_json.from_json(older))
    assert read.encode("lowest  newer") == BPE(tokenizer_json.from_json(theirs)).encode("lowest  newer")


def test_tokens_after_the_text_are_added_behind_it(tmp_path):
    theirs = library([WALK], 265, special=SPECIAL)
    ends = [("<|bos|>", 1), ("<|end|>", 2)]
    theirs.post_processor = processors.TemplateProcessing(
        single="<|bos|> <|pad|> $A <|end|>", special_tokens=[*ends, ("<|pad|>", 0)]
    )
    assert BPE(tokenizer_json.from_json(file_of(theirs))).encode("low") == theirs.encode("low").ids


UNSUPPORTED = {
    "NFC": ("normalizer", {"type": "NFC"}),
    "truncation": ("truncation", {"max_length": 8, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}),
    "padding": ("padding", {"strategy": "BatchLongest"}),
    "Whitespace": ("pre_tokenizer", {"type": "Whitespace"}),
    "null": ("pre_tokenizer", None),
    "Metaspace": ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Metaspace"}]}),
    "ByteLevel + Digits": (
        "pre_tokenizer",
        {"type": "Sequence", "pretokenizers": [tokenizer_json.BYTE_LEVEL, tokenizer_json.DIGITS]},
    ),
    "add_prefix_space = true": ("pre_tokenizer", tokenizer_json.BYTE_LEVEL | {"add_prefix_space": True}),
    "use_regex = false": ("pre_tokenizer", tokenizer_json.BYTE_LEVEL | {"use_regex": False}),
    "individual_digits = false": (
        "pre_tokenizer",
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False}, tokenizer_json.BYTE_LEVEL]},
    ),
    "BPEDecoder": ("decoder", {"type": "BPEDecoder", "suffix": "</w>"}),
    "BertProcessing": ("post_processor", {"type": "BertProcessing", "sep": ["a", 0], "cls": ["b", 1]}),
}


@pytest.mark.parametrize("feature", UNSUPPORTED)
def test_a_part_we_do_not_know_is_refused_by_name(pair, feature):
    key, value = UNSUPPORTED[feature]
    with pytest.raises(ValueError, match=f"{key}.*") as caught:
        tokenizer_json.from_json(file_of(pair[1]) | {key: value})
    assert feature.replace('"', "") in str(caught.value).replace('"', "") and "not supported" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("type", "Unigram"),
        ("dropout", 0.1),
        ("continuing_subword_prefix", "##"),
        ("end_of_word_suffix", "</w>"),
        ("fuse_unk", True),
        ("byte_fallback", True),
        ("ignore_merges", True),
        ("a_setting_of_the_future", 1),
    ],
)
def test_a_setting_of_the_model_we_do_not_know_is_refused_by_name(pair, name, value):
    contents = file_of(pair[1])
    contents["model"][name] = value
    with pytest.raises(ValueError, match=f"{'Unigram' if name == 'type' else name}.*not supported"):
        tokenizer_json.from_json(contents)


@pytest.mark.parametrize("name", ["single_word", "lstrip", "rstrip"])
def test_a_setting_of_an_added_token_we_do_not_know_is_refused_by_name(pair, name):
    contents = file_of(pair[1])
    contents["added_tokens"][2][name] = True
    with pytest.raises(ValueError, match=f"added token '<|end|>' with {name}".replace("|", r"\|")):
        tokenizer_json.from_json(contents)


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (["Ġ", "☃"], "merge 0, 'Ġ' \\+ '☃', makes or needs '☃', which has no id"),
        (["Ġ", "Ā"], "merge 0, 'Ġ' \\+ 'Ā', makes or needs 'ĠĀ', which has no id"),
        ("a b c", "merge 0, 'a b c', is not a pair of tokens"),
        (["a"], "is not a pair of tokens"),
        (["a", 7], "is not a pair of tokens"),
        (7, "no complete tokenizer.json"),
    ],
)
def test_a_bad_merge_is_named(pair, merge, message):
    contents = file_of(pair[1])
    contents["model"]["merges"][0] = merge
    with pytest.raises(ValueError, match=message):
        tokenizer_json.from_json(contents)


def test_a_vocabulary_that_contradicts_itself_is_refused(pair):
    contents = file_of(pair[1])
    for change, message in [
        ({"a": contents["model"]["vocab"]["b"]}, "an id of its own"),
        ({"a": -1}, "0–1,114,111"),
        ({"<|bos|>": 900}, "'<\\|bos\\|>'.*the id 1 here and another in the vocabulary"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenizer_json.from_json(contents | {"model": contents["model"] | {"vocab": contents["model"]["vocab"] | change}})
    with pytest.raises(ValueError, match="unk_token '<unk>' is not in the vocabulary"):
        tokenizer_json.from_json(contents | {"model": contents["model"] | {"unk_token": "<unk>"}})
    del contents["model"]["vocab"]["ÿ"]
    with pytest.raises(ValueError, match="no token for 1 of the 256 bytes, the first 0xFF"):
        tokenizer_json.from_json(contents)


def test_a_truncated_file_is_called_damaged_at_every_length(pair, tmp_path):
    whole = pair[0].save(tmp_path).read_bytes()
    cut = tmp_path / "cut.json"
    for length in [0, 1, 300, *range(1000, len(whole) - 1, 2500), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.json is damaged or truncated"):
            BPE.load(cut)


@pytest.mark.parametrize(
    "contents", [[], {}, {"model": None}, {"model": {"vocab": {}}}, {"model": {"type": "BPE"}, "decoder": 7}]
)
def test_a_file_of_another_kind_is_refused_with_its_path(contents, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"tokenizer\.json: "):
        BPE.load(tmp_path)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        BPE.load(tmp_path / "none.json")


def test_an_older_file_stays_whole_when_writing_fails(pair, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        pair[0].save(path)
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_an_end_of_word_token_has_no_place_in_the_file(tmp_path):
    with pytest.raises(ValueError, match="no place for the end-of-word token '</w>'"):
        BPE.train(WALK, 20, byte_level=False, end_of_word="</w>").save(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- by hand, and its picture -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"byte_level": True}, {"byte_level": False}, {"byte_level": False, "end_of_word": "</w>"}])
def test_every_step_by_hand_is_the_merge_that_training_learns(options):
    text = f"{WALK} {CORPORA['town'][0][:300]}"
    by_hand = [step.pair for step in islice(bpe_steps.steps(text, **options), 1, 31)]
    first = next(bpe_steps.steps(text, **options))
    assert tuple(by_hand) == BPE.train(text, len(first.ids) + 30, **options).definition.merges


def test_steps_stop_when_every_word_is_one_token_or_pairs_get_too_rare():
    assert all(len(word) == 1 for word in list(bpe_steps.steps(WALK))[-1].words)
    assert [step.count for step in bpe_steps.steps(WALK, min_frequency=7)] == [0, 9, 9, 7, 7]


def test_a_step_tells_the_tokens_of_the_whole_text():
    before, after = islice(bpe_steps.steps(WALK), 2)
    assert before.tokens == len(WALK.replace(" ", "")) and after.tokens == before.tokens - 9
    assert after.token == "es" and after.counts["e", "s"] == after.count == 9 and after.words["n", "e", "w", "es", "t"] == 6


def shown(html: str) -> list[str]:
    """The tokens in the boxes of a picture."""
    boxes = re.findall(r"<span[^>]*>(.*?)</span>", html)
    return [unescape(re.sub("<.*?>", "", box)) for box in boxes]


def test_the_picture_shows_the_text_in_the_tokens_of_that_step():
    text = "newest lowest newest <b> & low"
    html = bpe_steps.picture(text, 2)
    state = list(islice(bpe_steps.steps(text), 3))[-1]
    spelt = {"".join(word): word for word in state.words}
    assert shown(html) == [token for word in text.split() for token in spelt[word]]
    assert "<strong>Merge 2:</strong>" in html and "<b>" not in html
    assert "<strong>&lt;b</strong>" in bpe_steps.picture("<b <b <b", 1)


@pytest.mark.parametrize("byte_level", [False, True])
def test_the_picture_draws_at_both_ends_of_every_control(byte_level):
    def draw(text: str, merges: int) -> str:
        return bpe_steps.picture(text, merges, byte_level=byte_level)

    for setting in show.ends({"text": "für  alle, für 2", "merges": (0, 50)}, draw):
        html = draw(**setting)
        assert html.startswith(("<div>", "<p>")) and html.count("<p") == html.count("</p>")
    assert "Before the first merge" in draw("low", 0) and "No pair is left" in draw("low", 50)
    assert "no text yet" in draw(" ", 3)


# ---- whole words ------------------------------------------------------------------------------------------------------


def test_whole_words_have_the_librarys_ids():
    texts = CORPORA["python-docs"][:5]
    theirs = Tokenizer(models.WordLevel(unk_token="<unk>"))
    theirs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    theirs.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False))
    ours = WordLevel.train(texts, 200)
    assert ours.vocab == theirs.get_vocab()
    assert ours.encode("the snowman is a class") == theirs.encode("the snowman is a class").ids


def test_words_never_seen_are_unknown_and_sub_words_never_are(pair):
    words = WordLevel.train("low lower newest", 10)
    assert words.unknown_share("low lowest newest widest") == 0.5
    assert words.decode(words.encode("low lowest")) == "low <unk>"
    assert pair[0].decode(pair[0].encode("lowest widest", add_special_tokens=False)) == "lowest widest"


def test_the_unknown_word_written_in_the_text_takes_no_second_place():
    assert WordLevel.train("<unk> <unk> low", 2).vocab == {"<unk>": 0, "low": 1}


@pytest.mark.parametrize(("text", "size"), [("", 10), ("low", 1)])
def test_word_vocabularies_that_cannot_be_are_refused(text, size):
    with pytest.raises(ValueError, match=r"no word|leaves no room"):
        WordLevel.train(text, size)


def test_the_modules_document_what_they_leave_out():
    for module in (bpe, bpe_steps, merging, pretokenize, tokenizer_json):
        assert all(word in module.__doc__ for word in ("Does:", "Leaves out:", "Source:"))
        assert set(module.__all__) <= set(vars(module)) and Path(module.__file__).exists()
