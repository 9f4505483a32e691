"""Models by name: the small ones that ship with the course, and the real ones on the hub, behind one `load`.

    model, tokenizer = zoo.load("tiny-gpt")             embedded: no network, float32 on the CPU
    model, tokenizer = zoo.load("Qwen/Qwen3-0.6B")      from the hub, at the revision in pins.json
    model, tokenizer = zoo.load("path/to/a/directory")  anything saved with `save_pretrained`

Does:     safetensors only, no code from the hub, ungated models only; a clear message when offline, misspelt or damaged. With
          LLMCOURSE_STANDIN=1 every hub name becomes a tiny random model of the same architecture, on the CPU, whose tokenizer
          has the special tokens and the chat template of the original: code that runs on it runs on the original.
Leaves out: quantised loading, adapters, several GPUs, gated or private models.
Source:   the model cards on huggingface.co; parameters are counted as the checkpoint has them, tied weights once.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MODELS",
    "DamagedModel",
    "Model",
    "Offline",
    "catalogue",
    "default_dtype",
    "embedded",
    "load",
    "pin",
    "revision_of",
    "standin",
]

FOLDER = Path(__file__).parent / "models"
PINS = Path(__file__).parent / "pins.json"

Task = Literal["causal-lm", "seq2seq-lm", "masked-lm"]
HEADS = {"causal-lm": "AutoModelForCausalLM", "seq2seq-lm": "AutoModelForSeq2SeqLM", "masked-lm": "AutoModelForMaskedLM"}


class Offline(OSError):
    """The hub cannot be reached, and what was asked for is not in its local cache."""


class DamagedModel(OSError):
    """A file of a model is missing, truncated or not what its name says."""


# ---------------------------------------------------------------------------------------------------------------- catalogue


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the hub, and what its stand-in must have in common with it.

    architecture: transformers' `model_type`. parameters: each tied weight once. context: positions. download: gigabytes of
    safetensors. special: the tokenizer's special tokens. chat: its chat template. like: config fields kept in the stand-in.
    """

    name: str
    task: Task
    architecture: str
    parameters: int
    licence: str
    context: int
    download: float
    special: Mapping[str, str] = field(repr=False)
    like: Mapping[str, Any] = field(repr=False)
    chat: str | None = field(default=None, repr=False)
    gated: bool = False

    @property
    def memory(self) -> float:
        """Gigabytes of the weights in bfloat16."""
        return self.parameters * 2 / 1e9


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GPT2_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}  # and no pad token
QWEN_TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
SMOLLM_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|im_end|>",
}
ZEPHYR_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
BERT_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
}


def _llama_like(
    *, hidden: int, heads: int, kv_heads: int, tied: bool, theta: float, epsilon: float, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 16,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rms_norm_eps": epsilon,
        **more,
    }


def _qwen3(size: str, parameters: int, download: float, **like: Any) -> Model:
    return Model(
        name=f"Qwen/Qwen3-{size}",
        task="causal-lm",
        architecture="qwen3",
        parameters=parameters,
        licence="Apache-2.0",
        context=40_960,
        download=download,
        special=QWEN_TOKENS,
        chat=CHATML,
        like=_llama_like(theta=1_000_000.0, epsilon=1e-6, **like),
    )


def _flan_t5(size: str, parameters: int, download: float, heads: int) -> Model:
    like = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": heads, "decoder_start_token_id": 0}
    # scaled like T5 v1.1: transformers reads `tie_word_embeddings` as "do not scale the logits"
    return Model(
        name=f"google/flan-t5-{size}",
        task="seq2seq-lm",
        architecture="t5",
        parameters=parameters,
        licence="Apache-2.0",
        context=512,
        download=download,
        special=T5_TOKENS,
        like=like | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    )


def _bert(size: str, parameters: int, download: float) -> Model:
    return Model(
        name=f"google-bert/bert-{size}-uncased",
        task="masked-lm",
        architecture="bert",
        parameters=parameters,
        licence="Apache-2.0",
        context=512,
        download=download,
        special=BERT_TOKENS,
        like={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    )


_ALL = [
    Model(
        name="openai-community/gpt2",
        task="causal-lm",
        architecture="gpt2",
        parameters=124_439_808,
        licence="MIT",
        context=1024,
        download=0.55,
        special=GPT2_TOKENS,
        like={"n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    Model(
        name="HuggingFaceTB/SmolLM2-360M-Instruct",
        task="causal-lm",
        architecture="llama",
        parameters=361_821_120,
        licence="Apache-2.0",
        context=8192,
        download=0.72,
        special=SMOLLM_TOKENS,
        chat=CHATML,
        like=_llama_like(hidden=48, heads=3, kv_heads=1, tied=True, theta=100_000.0, epsilon=1e-5),
    ),
    # The 0.6B's heads together are wider than its hidden state (16 × 128 > 1024); so are its stand-in's.
    _qwen3("0.6B", 596_049_920, 1.5, hidden=32, heads=4, kv_heads=2, tied=True),
    _qwen3("1.7B", 1_720_574_976, 4.1, hidden=64, heads=4, kv_heads=2, tied=True),
    _qwen3("8B", 8_190_735_360, 16.4, hidden=64, heads=4, kv_heads=1, tied=False),
    Model(
        name="HuggingFaceH4/zephyr-7b-beta",
        task="causal-lm",
        architecture="mistral",
        parameters=7_241_732_096,
        licence="MIT",
        context=32_768,
        download=14.5,
        special=ZEPHYR_TOKENS,
        chat=ZEPHYR,
        like=_llama_like(hidden=64, heads=4, kv_heads=1, tied=False, theta=10_000.0, epsilon=1e-5, sliding_window=4096),
    ),
    _bert("base", 109_514_298, 0.44),
    _bert("large", 335_174_458, 1.34),
    _flan_t5("small", 76_961_152, 0.31, heads=3),  # as in the original, the heads are narrower than the model
    _flan_t5("base", 247_577_856, 0.99, heads=4),
    _flan_t5("large", 783_150_080, 3.1, heads=4),
    _flan_t5("xl", 2_849_757_184, 11.4, heads=4),
]
MODELS: dict[str, Model] = {model.name: model for model in _ALL}


def embedded() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def catalogue() -> list[dict[str, Any]]:
    """One row per model `load` knows: its name, where it is (embedded or hub), task, architecture, parameters, licence, context,
    memory (gigabytes in bfloat16) and revision (None until `llmcourse pin`)."""
    return [_embedded_row(name) for name in embedded()] + [_hub_row(model) for model in MODELS.values()]


def _hub_row(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "where": "hub",
        "task": model.task,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "licence": model.licence,
        "context": model.context,
        "memory": model.memory,
        "revision": revision_of(model.name),
    }


def _embedded_row(name: str) -> dict[str, Any]:
    config = _json(FOLDER / name / "config.json")
    parameters = sum(_elements(entry["shape"]) for entry in _header(FOLDER / name / "model.safetensors").values())
    return {
        "name": name,
        "where": "embedded",
        "task": _task_of(config["architectures"][0]),
        "architecture": config["model_type"],
        "parameters": parameters,
        "licence": "Apache-2.0",
        "context": config.get("max_position_embeddings") or config.get("n_positions"),
        "memory": parameters * 2 / 1e9,
        "revision": "shipped",
    }


def _task_of(head: str) -> str:
    endings = {
        "CausalLM": "causal-lm",
        "LMHeadModel": "causal-lm",
        "MaskedLM": "masked-lm",
        "ForConditionalGeneration": "seq2seq-lm",
    }
    return next((task for ending, task in endings.items() if head.endswith(ending)), head)


def _elements(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# ---------------------------------------------------------------------------------------------------------------- load


def load(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in eval mode and its tokenizer.

    name: an embedded model, a directory, or a model of the hub; `catalogue()` lists them. A hub model outside the catalogue
    needs an explicit `revision` (a commit, tag or branch), so that nobody trains on a model that changes under them.
    device: by default the CPU for what is local, and for hub models CUDA where there is one; with LLMCOURSE_STANDIN=1 always the
    CPU. dtype: see `default_dtype`.

    Raises: ValueError for an unknown name; Offline when the hub is out of reach; DamagedModel for a truncated or missing file.
    """
    name, stand_in = os.fspath(name), os.environ.get("LLMCOURSE_STANDIN") == "1"
    local = "cpu" if stand_in else device or "cpu"
    if name in embedded():
        return _load_folder(FOLDER / name, dtype, local, _shipped_cure(name))
    if Path(name).is_dir():
        return _load_folder(Path(name), dtype, local, "Save the model again with save_pretrained.")
    _refuse_unknown(name, revision)
    if stand_in:
        model, tokenizer = standin(name)
        return (model if dtype is None else model.to(dtype)), tokenizer
    folder = _fetch(name, revision or revision_of(name))
    return _load_folder(folder, dtype, device or _best_device(), f"Delete {folder} and load it again.")


def default_dtype(device: str | torch.device) -> torch.dtype:
    """float32 on a CPU; on CUDA bfloat16 where the chip computes in it, else float16 (a T4 only emulates bfloat16)."""
    import torch

    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _shipped_cure(name: str) -> str:
    return (
        f"Restore it with `git checkout -- llmcourse/models/{name}` in a clone, reinstall llmcourse, or train it again "
        f"with `llmcourse pretrain {name}`."
    )


def _load_folder(folder: Path, dtype: torch.dtype | None, device: str | torch.device, cure: str) -> Any:
    _check_files(folder, cure)
    import transformers
    from transformers.utils import is_accelerate_available

    head = _head(folder)
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "dtype": dtype or default_dtype(device)}
    if str(device) != "cpu" and is_accelerate_available():
        options["device_map"] = device  # straight to the device: a 7 B model may not fit into the machine's own memory
    with _quiet():
        model = head.from_pretrained(folder, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    return model.to(device).eval(), tokenizer


def _head(folder: Path) -> Any:
    """The model class that config.json names; by name, so that a classifier comes back as a classifier."""
    import transformers

    names = _json(folder / "config.json").get("architectures") or ["none"]
    head = getattr(transformers, names[0], None)
    if head is None:
        raise ValueError(f"{folder / 'config.json'} names the architecture {names[0]!r}, which transformers does not have")
    return head


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars and advice from transformers in the notebook, where they would be stored."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_unknown(name: str, revision: str | None) -> None:
    if name in MODELS or (revision is not None and name.count("/") == 1):
        return
    known = {key.lower(): key for key in [*embedded(), *MODELS]}
    short = {key.rsplit("/", 1)[-1]: full for key, full in known.items()}
    close = difflib.get_close_matches(name.lower(), [*known, *short], n=1, cutoff=0.5)
    guess = f'; did you mean "{(known | short)[close[0]]}"?' if close else "."
    raise ValueError(
        f'unknown model "{name}"{guess} zoo.catalogue() lists all {len(known)}; a directory must exist; '
        'any other hub model needs its revision: zoo.load("owner/name", revision="…")'
    )


# ---------------------------------------------------------------------------------------------------------------- files


def _check_files(folder: Path, cure: str) -> None:
    """Raise DamagedModel at the first file that is missing or unreadable, before a library says so at greater length."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DamagedModel(f"{folder} has no .safetensors file, and no other kind of weights is loaded. {cure}")
    shards = {folder / name for index in folder.glob("*.safetensors.index.json") for name in _shards(index)}
    for path in [folder / "config.json", *folder.glob("*.json"), *sorted(shards.union(weights))]:
        try:
            _header(path) if path.suffix == ".safetensors" else _json(path)
        except (OSError, ValueError) as error:
            raise DamagedModel(f"{path} is damaged: {error}. {cure}") from None


def _shards(index: Path) -> set[str]:
    with contextlib.suppress(ValueError):  # a damaged index is named with the other files
        return set(_json(index)["weight_map"].values())
    return set()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's table of tensors, read without torch; ValueError when the file does not have the size it promises."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 0 < length <= size - 8:
            raise ValueError(f"its {size:,} bytes are not a whole safetensors file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    promised = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if promised != size:
        raise ValueError(f"it has {size:,} bytes and should have {promised:,}")
    return header


# ---------------------------------------------------------------------------------------------------------------- the hub

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def _fetch(name: str, revision: str | None) -> Path:
    """The local folder of a hub model, downloaded unless the cache has it."""
    from huggingface_hub import errors, snapshot_download
    from tqdm.std import tqdm

    try:
        skip = ["*/*", "consolidated*"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=skip, tqdm_class=tqdm))
    except errors.GatedRepoError:
        raise ValueError(f'"{name}" is gated: it asks for an account. Choose an ungated model: zoo.catalogue()') from None
    except errors.RevisionNotFoundError:
        raise ValueError(f'"{name}" has no revision "{revision}"; see https://huggingface.co/{name}/commits') from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f'the hub has no public model "{name}"') from None
    except _network_errors() as error:
        raise Offline(_offline_message(name, error)) from None


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    return OSError, getattr(errors, "HTTPError", OSError)  # the HTTP client's own errors are not OSErrors


def _offline_message(name: str, error: Exception) -> str:
    size = f" ({MODELS[name].download:.1f} GB)" if name in MODELS else ""
    local = ", ".join(embedded()) or "none"
    hint = " HF_HUB_OFFLINE is set: unset it to allow downloads." if os.environ.get("HF_HUB_OFFLINE") else ""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(".")
    return (
        f'cannot download "{name}"{size}: {reason}.{hint} Connect once and it stays in the cache, '
        f"or work offline with an embedded model: {local}. LLMCOURSE_STANDIN=1 runs the same code on a tiny random stand-in."
    )


def revision_of(name: str, kind: Literal["models", "datasets"] = "models") -> str | None:
    """The commit that `llmcourse pin` recorded for a hub name; None when nobody has yet."""
    return (_json(PINS) if PINS.exists() else {}).get(kind, {}).get(name)


def pin() -> dict[str, dict[str, str]]:
    """Ask the hub for the present commit of every catalogued model and data set, and write them to pins.json, all or none.

    Raises: Offline when the hub is out of reach; ValueError when a name is gated or gone.
    """
    from huggingface_hub import HfApi

    from llmcourse import data

    api = HfApi()
    datasets = getattr(data, "hub_names", list)()
    pins = {
        "models": {name: _commit(api.model_info, name) for name in sorted(MODELS)},
        "datasets": {name: _commit(api.dataset_info, name) for name in sorted(datasets)},
    }
    partial = PINS.with_suffix(".json.partial")
    partial.write_text(json.dumps(pins, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, PINS)
    return pins


def _commit(ask: Any, name: str) -> str:
    from huggingface_hub import errors

    try:
        info = ask(name, timeout=20)
    except errors.RepositoryNotFoundError:
        raise ValueError(f'the hub has no public "{name}" any more; take it out of the catalogue') from None
    except _network_errors() as error:
        raise Offline(
            f'cannot ask the hub for "{name}" ({type(error).__name__}); pins.json is unchanged. Run it online.'
        ) from None
    if info.gated:
        raise ValueError(f'"{name}" is gated now; take it out of the catalogue')
    return info.sha


# ---------------------------------------------------------------------------------------------------------------- stand-ins


def standin(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tiny random model of the architecture of hub model `name`, in eval mode on the CPU, with a tokenizer like the original's.

    The same name gives the same weights; the caller's random numbers are left alone. Raises: ValueError outside the catalogue.
    """
    import torch
    import transformers

    if name not in MODELS:
        raise ValueError(f'"{name}" is not in the catalogue, so its architecture is unknown and it has no stand-in')
    like = MODELS[name]
    tokenizer = _tokenizer(like)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(zlib.crc32(name.encode()))
        model = getattr(transformers, HEADS[like.task]).from_config(_config(like, tokenizer), dtype=torch.float32)
    model.name_or_path = name
    return model.eval(), tokenizer


def _config(like: Model, tokenizer: PreTrainedTokenizerBase) -> Any:
    import transformers

    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    positions = "n_positions" if like.architecture in ("gpt2", "t5") else "max_position_embeddings"
    fields = {"vocab_size": len(tokenizer), positions: like.context, **ids, **like.like}
    return transformers.AutoConfig.for_model(like.architecture, **fields)


def _tokenizer(like: Model) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    backend = _byte_level_bpe()
    extra = [f"<extra_id_{i}>" for i in range(100)] if like.architecture == "t5" else []
    extra += ["<|im_start|>"] if like.chat == CHATML and "bos_token" not in like.special else []
    backend.add_special_tokens([*dict.fromkeys(like.special.values()), *extra])
    _dress(backend, like)
    kinds = ["input_ids", "token_type_ids", "attention_mask"] if like.architecture == "bert" else ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=like.context, model_input_names=kinds, **like.special
    )
    tokenizer.chat_template = like.chat
    tokenizer.name_or_path = like.name
    return tokenizer


def _dress(backend: Tokenizer, like: Model) -> None:
    """Give the tokenizer what the original puts around a text: [CLS] … [SEP], … </s>, <s> …"""
    from tokenizers import normalizers, processors

    around = {
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "t5": ("$A </s>", "$A </s> $B </s>"),
        "mistral": ("<s> $A", "<s> $A <s> $B"),
    }
    if like.architecture == "bert":
        backend.normalizer = normalizers.Lowercase()
    if like.architecture in around:
        single, pair = around[like.architecture]
        special = [(token, backend.token_to_id(token)) for token in dict.fromkeys(like.special.values())]
        backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _byte_level_bpe() -> Tokenizer:
    """The embedded tokenizer's merges where it ships, else a small one trained on Python's own documentation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    shipped = FOLDER / "tiny-gpt" / "tokenizer.json"
    if shipped.exists():
        backend = Tokenizer.from_file(str(shipped))
    else:
        from pydoc_data.topics import topics

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(list(topics.values())[:20], trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend
