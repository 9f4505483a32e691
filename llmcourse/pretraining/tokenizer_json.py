"""The tokenizer.json format: everything that decides the ids of a byte-pair encoding, in a text file that `tokenizers` reads.

    tokenizer.json = added_tokens · pre_tokenizer (words) · model (vocabulary, merges) · post_processor (<|bos|> …) · decoder

Does:     byte-level BPE (GPT-2's words, every digit alone or not) and characters between white space; both spellings of a merge
          ("a b" and ["a", "b"]); templates that put special tokens before and after a text. Writing is all or nothing.
Leaves out: every other model, normalizer, pre-tokenizer and setting: such a file is refused, and the error names what it was,
          because a tokenizer that ignores a setting gives wrong ids without a word.
Source:   the files that tokenizers 0.23 writes.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcourse.pretraining.pretokenize import byte_alphabet

__all__ = ["AddedToken", "Definition", "from_json", "read", "template", "to_json", "write"]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
WHITE_SPACE = {"type": "WhitespaceSplit"}


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is looked for in the text before anything is split; one that is not `normalized` is looked for first."""

    content: str
    id: int
    special: bool = True
    normalized: bool = False


@dataclass(frozen=True, kw_only=True)
class Definition:
    """Everything that decides the ids.

    vocab: token, in the visible letters of `byte_alphabet` → id. merges: in the order they were learnt. byte_level: else
    characters between white space. end_of_word: a token of its own at every word's end (characters only). unk_token: stands for
    characters without a token. post_processor: as the file holds it, or None.
    """

    vocab: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    added: tuple[AddedToken, ...] = ()
    byte_level: bool = True
    split_digits: bool = False
    end_of_word: str = ""
    unk_token: str | None = None
    post_processor: dict[str, Any] | None = None

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after a text."""
        return _around(self.post_processor)


# ---- writing ----------------------------------------------------------------------------------------------------------


def template(bos_token: str, id: int) -> dict[str, Any]:
    """The post-processor that begins every text with one special token."""

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos_token, "type_id": 0}}, sequence("A", 0)],
        "pair": [sequence("A", 0), sequence("B", 1)],
        "special_tokens": {bos_token: {"id": bos_token, "ids": [id], "tokens": [bos_token]}},
    }


def to_json(definition: Definition) -> dict[str, Any]:
    """The contents of the file, as `tokenizers` would write them.

    Raises: ValueError for an end-of-word token, which the format cannot express.
    """
    if definition.end_of_word:
        raise ValueError(
            f"tokenizer.json has no place for the end-of-word token {definition.end_of_word!r}; train without it, or byte-level"
        )
    words = [DIGITS, BYTE_LEVEL] if definition.split_digits else [BYTE_LEVEL]
    pre_tokenizer = {"type": "Sequence", "pretokenizers": words} if len(words) > 1 else words[0]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_entry(token) for token in definition.added],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer if definition.byte_level else WHITE_SPACE,
        "post_processor": definition.post_processor,
        "decoder": BYTE_LEVEL | {"add_prefix_space": True} if definition.byte_level else None,
        "model": _model_entry(definition),
    }


def _added_entry(token: AddedToken) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": token.id, "content": token.content, **plain, "normalized": token.normalized, "special": token.special}


def _model_entry(definition: Definition) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": definition.unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": definition.vocab,
        "merges": [list(pair) for pair in definition.merges],
    }


def write(path: str | os.PathLike[str], definition: Definition) -> Path:
    """Write the file (a folder gets tokenizer.json) and return its path; an older one stays until the new one is complete."""
    path = _file(path)
    text = json.dumps(to_json(definition), ensure_ascii=False, indent=2)
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path / "tokenizer.json" if path.is_dir() else path


# ---- reading ----------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Definition:
    """Read a file, or the tokenizer.json in a folder.

    Raises: FileNotFoundError; ValueError for a damaged file, or for one that uses a feature this module does not know, by name.
    """
    path = _file(path)
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise ValueError(f"{path} is damaged or truncated: {error}. Save the tokenizer again, or fetch the file again") from None
    try:
        return from_json(contents)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_json(contents: Any) -> Definition:
    """The definition in a file's contents.

    Raises: ValueError for a feature this module does not know, by name, or contents that contradict themselves.
    """
    if not isinstance(contents, dict) or not isinstance(contents.get("model"), dict):
        raise ValueError('this is no tokenizer.json: it has no "model"')
    try:
        return _definition(contents)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no complete tokenizer.json ({type(error).__name__}: {error})") from error


def _definition(contents: dict[str, Any]) -> Definition:
    for name in ("normalizer", "truncation", "padding"):
        if contents.get(name) is not None:
            raise _unsupported(name, contents[name], "none")
    byte_level, split_digits = _words(contents.get("pre_tokenizer"))
    _check_decoder(contents.get("decoder"), byte_level)
    model = contents["model"]
    _check_model(model)
    vocab = _vocab(model["vocab"], byte_level)
    added = tuple(_added(entry, vocab) for entry in contents.get("added_tokens") or ())
    unk_token = model.get("unk_token") or None
    if unk_token and unk_token not in vocab:
        raise ValueError(f"unk_token {unk_token!r} is not in the vocabulary")
    post_processor = contents.get("post_processor")
    _around(post_processor)  # refuses what it does not know
    return Definition(
        vocab=vocab,
        merges=_merges(model["merges"], vocab),
        added=added,
        byte_level=byte_level,
        split_digits=split_digits,
        unk_token=unk_token,
        post_processor=post_processor,
    )


def _unsupported(name: str, value: Any, known: str) -> ValueError:
    kind = value.get("type", value) if isinstance(value, dict) else value
    return ValueError(f"{name} {json.dumps(kind)} is not supported (known: {known}); load it with tokenizers.Tokenizer.from_file")


def _words(pre_tokenizer: Any) -> tuple[bool, bool]:
    """(byte-level?, every digit alone?)"""
    known = "ByteLevel, Digits before ByteLevel, WhitespaceSplit"
    parts = pre_tokenizer["pretokenizers"] if _kind(pre_tokenizer) == "Sequence" else [pre_tokenizer]
    for part in parts:
        for wanted in (BYTE_LEVEL, DIGITS):
            if _kind(part) == wanted["type"]:
                _check_settings("pre_tokenizer", part, wanted, ignored={"trim_offsets"})
    kinds = [_kind(part) for part in parts]
    if kinds == ["WhitespaceSplit"]:
        return False, False
    if kinds not in (["ByteLevel"], ["Digits", "ByteLevel"]):
        raise _unsupported("pre_tokenizer", " + ".join(kind or "null" for kind in kinds), known)
    return True, len(kinds) == 2


def _kind(part: Any) -> str | None:
    return None if part is None else part["type"]


def _check_settings(name: str, part: Mapping[str, Any], wanted: Mapping[str, Any], ignored: set[str]) -> None:
    """Every setting but `ignored` must be as `wanted` has it; one that is not written has that value."""
    for key in part.keys() - ignored:
        if key not in wanted or part[key] != wanted[key]:
            known = json.dumps(wanted[key]) if key in wanted else "no such setting"
            raise _unsupported(f"{name} {part['type']} with {key} =", part[key], known)


def _check_decoder(decoder: Any, byte_level: bool) -> None:
    wanted = "ByteLevel" if byte_level else None
    if _kind(decoder) != wanted:
        raise _unsupported("decoder", decoder, json.dumps(wanted))


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise _unsupported("model", model, "BPE")
    plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges")
    for name in plain:
        if model.get(name):  # null, false and "" all say that the feature is off
            raise _unsupported(f"model {name} =", model[name], "off")
    unknown = model.keys() - {*plain, "type", "unk_token", "vocab", "merges"}
    if unknown:
        raise _unsupported("model setting", sorted(unknown)[0], "those of BPE")


def _vocab(vocab: dict[str, int], byte_level: bool) -> dict[str, int]:
    ids = list(vocab.values())
    if not ids or not all(type(id) is int and 0 <= id < 0x110000 for id in ids) or len(set(ids)) < len(ids):
        raise ValueError("the vocabulary needs a token at least, and for every token an id of its own, 0–1,114,111")
    missing = [byte for byte, letter in byte_alphabet().items() if letter not in vocab] if byte_level else []
    if missing:
        raise ValueError(f"the vocabulary has no token for {len(missing)} of the 256 bytes, the first 0x{missing[0]:02X}")
    return vocab


def _added(entry: dict[str, Any], vocab: dict[str, int]) -> AddedToken:
    for name in ("single_word", "lstrip", "rstrip"):
        if entry.get(name):
            raise _unsupported(f"added token {entry['content']!r} with {name} =", True, "false")
    token = AddedToken(**{key: entry[key] for key in ("content", "id", "special", "normalized")})
    if not token.content or vocab.get(token.content, token.id) != token.id:
        raise ValueError(f"added token {token.content!r} is empty, or has the id {token.id} here and another in the vocabulary")
    return token


def _merges(merges: list[Any], vocab: dict[str, int]) -> tuple[tuple[str, str], ...]:
    """Both spellings of a merge; every token in it must be in the vocabulary."""
    pairs = []
    for number, merge in enumerate(merges):
        pair = tuple(merge.split(" ") if isinstance(merge, str) else merge)
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(f"merge {number}, {merge!r}, is not a pair of tokens")
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise ValueError(f"merge {number}, {pair[0]!r} + {pair[1]!r}, makes or needs {token!r}, which has no id")
        pairs.append(pair)
    return tuple(pairs)


def _around(post_processor: Any) -> tuple[list[int], list[int]]:
    """The ids before and after one text. ByteLevel only trims offsets, so it adds none."""
    kind = _kind(post_processor)
    if kind in (None, "ByteLevel"):
        return [], []
    if kind != "TemplateProcessing":
        raise _unsupported("post_processor", post_processor, "ByteLevel, TemplateProcessing")
    around: tuple[list[int], list[int]] = ([], [])
    texts = 0
    for part in post_processor["single"]:
        if "Sequence" in part:
            texts += 1
        else:
            around[min(texts, 1)].extend(post_processor["special_tokens"][part["SpecialToken"]["id"]]["ids"])
    if texts != 1:
        raise ValueError(f"the template of a single text holds the text {texts} times; once is supported")
    return around
