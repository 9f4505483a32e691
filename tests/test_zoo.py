"""Models by name: the catalogue, loading, messages, stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from llmcourse import zoo

CHAT = [name for name, model in zoo.MODELS.items() if model.chat]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A models folder with one embedded model, `tiny-test`, in bfloat16."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    monkeypatch.delenv("LLMCOURSE_STANDIN", raising=False)
    _, tokenizer = zoo.standin("HuggingFaceTB/SmolLM2-360M-Instruct")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "tiny-test")
    tokenizer.save_pretrained(tmp_path / "tiny-test")
    return tmp_path / "tiny-test"


@pytest.fixture
def standins(monkeypatch):
    monkeypatch.setenv("LLMCOURSE_STANDIN", "1")


# ------------------------------------------------------------------------------------------------ catalogue


def test_importing_the_zoo_loads_neither_torch_nor_transformers():
    code = "import sys, llmcourse.zoo; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_catalogue_has_one_row_per_model_with_what_a_chooser_needs(shipped):
    rows = {row["name"]: row for row in zoo.catalogue()}
    assert set(rows) == {"tiny-test", *zoo.MODELS}
    assert all(row.keys() == rows["tiny-test"].keys() for row in rows.values())
    assert (rows["tiny-test"]["where"], rows["openai-community/gpt2"]["where"]) == ("embedded", "hub")
    model, _ = zoo.load("tiny-test")
    assert rows["tiny-test"]["parameters"] == model.num_parameters()
    assert rows["tiny-test"]["memory"] == pytest.approx(2e-9 * model.num_parameters())


ORIGINALS = {
    "openai-community/gpt2": {},
    "Qwen/Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    "HuggingFaceH4/zephyr-7b-beta": {},
    "google-bert/bert-base-uncased": {},
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_parameters_of_the_catalogue_are_those_of_the_architecture(name):
    config = transformers.AutoConfig.for_model(zoo.MODELS[name].architecture, **ORIGINALS[name])
    with torch.device("meta"):
        model = getattr(transformers, zoo.HEADS[zoo.MODELS[name].task]).from_config(config)
    assert model.num_parameters() == zoo.MODELS[name].parameters


def test_no_model_of_the_catalogue_is_gated_or_without_licence():
    assert not any(model.gated for model in zoo.MODELS.values())
    assert {model.licence for model in zoo.MODELS.values()} <= {"MIT", "Apache-2.0"}


# ------------------------------------------------------------------------------------------------ load


def test_embedded_bfloat16_model_comes_in_float32_on_the_cpu_in_eval_mode(shipped):
    model, tokenizer = zoo.load("tiny-test")
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    assert tokenizer.decode(tokenizer("Hello")["input_ids"]) == "Hello"


def test_directory_and_dtype_are_accepted(shipped):
    model, _ = zoo.load(shipped, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16


def test_loading_prints_nothing_and_leaves_the_verbosity(shipped, capsys):
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    zoo.load("tiny-test")
    assert capsys.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_default_dtype_is_bfloat16_only_where_the_chip_computes_in_it(monkeypatch):
    for real in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, real=real: including_emulation or real
        )
        assert zoo.default_dtype("cuda") == (torch.bfloat16 if real else torch.float16)
    assert zoo.default_dtype("cpu") == torch.float32


@pytest.mark.parametrize(
    ("wrong", "meant"), [("tiny-tset", "tiny-test"), ("qwen3-0.6b", "Qwen/Qwen3-0.6B"), ("flan-t5-smal", "google/flan-t5-small")]
)
def test_misspelt_name_is_answered_with_the_nearest_one(shipped, wrong, meant):
    with pytest.raises(ValueError, match=f'did you mean "{meant}".*catalogue'):
        zoo.load(wrong)


def test_hub_model_outside_the_catalogue_needs_a_revision(shipped, monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "_fetch", lambda name, revision: asked.append((name, revision)) or shipped)
    with pytest.raises(ValueError, match="needs its revision"):
        zoo.load("someone/something")
    zoo.load("someone/something", revision="v1.0", device="cpu")
    assert asked == [("someone/something", "v1.0")]


def test_pinned_revision_is_the_one_fetched(shipped, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(zoo, "_fetch", lambda name, revision: asked.append(revision) or shipped)
    monkeypatch.setattr(zoo, "PINS", tmp_path / "pins.json")
    zoo.load("openai-community/gpt2", device="cpu")
    (tmp_path / "pins.json").write_text('{"models": {"openai-community/gpt2": "abc"}}', encoding="utf-8")
    zoo.load("openai-community/gpt2", device="cpu")
    zoo.load("openai-community/gpt2", device="cpu", revision="main")
    assert asked == [None, "abc", "main"]


def test_architecture_that_needs_code_from_the_hub_is_refused(shipped):
    config = json.loads((shipped / "config.json").read_text(encoding="utf-8"))
    (shipped / "config.json").write_text(json.dumps(config | {"architectures": ["HomeMadeLM"]}), encoding="utf-8")
    with pytest.raises(ValueError, match="'HomeMadeLM', which transformers does not have"):
        zoo.load("tiny-test")


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_named_with_the_cure(shipped, size):
    path = shipped / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(zoo.DamagedModel, match=r"model.safetensors is damaged.*git checkout.*llmcourse pretrain tiny-test"):
        zoo.load("tiny-test")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_truncated_json_is_named(shipped, file):
    content = (shipped / file).read_bytes()
    (shipped / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(zoo.DamagedModel, match=f"{file} is damaged"):
        zoo.load("tiny-test")


def test_missing_shard_is_named(shipped):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (shipped / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(zoo.DamagedModel, match=r"model-00002-of-00002.safetensors is damaged"):
        zoo.load("tiny-test")


def test_directory_with_only_a_pickle_is_refused(shipped):
    (shipped / "model.safetensors").rename(shipped / "pytorch_model.bin")
    with pytest.raises(zoo.DamagedModel, match=r"no \.safetensors file"):
        zoo.load("tiny-test")


# ------------------------------------------------------------------------------------------------ offline and pins


def test_offline_says_what_was_wanted_its_size_and_the_embedded_way_in_one_error(shipped, tmp_path, monkeypatch):
    import huggingface_hub

    def unplugged(*args, **kwargs):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unplugged)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(zoo.Offline, match=r'"Qwen/Qwen3-0.6B" \(1.5 GB\): no route.*HF_HUB_OFFLINE.*tiny-test') as caught:
        zoo.load("Qwen/Qwen3-0.6B")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


class Hub:
    """A hub that knows every name, until it breaks down."""

    def __init__(self, gated=False, broken_after=10**9):
        self.gated, self.left = gated, broken_after

    def _info(self, name, timeout):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("gone")
        return type("Info", (), {"gated": self.gated, "sha": f"sha-of-{name}"})()

    model_info = dataset_info = _info


@pytest.fixture
def pins(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "PINS", tmp_path / "pins.json")
    data = type("data", (), {"hub_names": staticmethod(lambda: ["owner/set"])})
    monkeypatch.setattr(sys.modules["llmcourse"], "data", data, raising=False)
    monkeypatch.setitem(sys.modules, "llmcourse.data", data)
    return tmp_path / "pins.json"


def test_pin_records_the_commit_of_every_model_and_data_set(pins, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert zoo.revision_of("openai-community/gpt2") is None
    zoo.pin()
    assert set(json.loads(pins.read_text(encoding="utf-8"))["models"]) == set(zoo.MODELS)
    assert zoo.revision_of("openai-community/gpt2") == "sha-of-openai-community/gpt2"
    assert zoo.revision_of("owner/set", "datasets") == "sha-of-owner/set"


def test_pin_that_loses_the_hub_midway_writes_nothing(pins, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(broken_after=3))
    with pytest.raises(zoo.Offline, match=r"pins.json is unchanged"):
        zoo.pin()
    assert not pins.exists()


def test_pin_refuses_a_model_that_became_gated(pins, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(gated="auto"))
    with pytest.raises(ValueError, match="is gated now"):
        zoo.pin()


# ------------------------------------------------------------------------------------------------ stand-ins


@pytest.mark.parametrize("name", zoo.MODELS)
def test_standin_has_the_architecture_head_and_context_of_the_original_and_runs(standins, name):
    like = zoo.MODELS[name]
    model, tokenizer = zoo.load(name, device="cuda")
    assert (model.config.model_type, model.device.type, model.training) == (like.architecture, "cpu", False)
    assert zoo._task_of(type(model).__name__) == like.task
    assert model.num_parameters() < 500_000
    assert tokenizer.model_max_length == like.context
    batch = tokenizer("Ada lives in the mill.", return_tensors="pt")
    if like.task == "seq2seq-lm":
        batch["decoder_input_ids"] = batch["input_ids"]
    assert model(**batch).logits.shape == (*batch["input_ids"].shape, len(tokenizer))


@pytest.mark.parametrize("name", [name for name, m in zoo.MODELS.items() if m.task != "masked-lm"])
def test_standin_generates(standins, name):
    model, tokenizer = zoo.load(name)
    tokens = model.generate(**tokenizer("Ada", return_tensors="pt"), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert tokens.shape[1] >= 4


@pytest.mark.parametrize("name", zoo.MODELS)
def test_standin_tokenizer_has_the_special_tokens_of_the_original_and_no_more(standins, name):
    _, tokenizer = zoo.load(name)
    assert tokenizer.special_tokens_map == dict(zoo.MODELS[name].special)
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id < len(tokenizer)
    assert bool(tokenizer.chat_template) == (name in CHAT)


def test_standin_of_gpt2_has_no_pad_token_so_code_that_pads_fails_here_as_it_would_there(standins):
    _, tokenizer = zoo.load("openai-community/gpt2")
    with pytest.raises(ValueError, match="padding token"):
        tokenizer(["a", "a b c"], padding=True)


def test_standin_tokenizers_put_around_a_text_what_the_originals_put(standins):
    def tokens(name, *texts):
        _, tokenizer = zoo.load(name)
        encoded = tokenizer(*texts)
        return tokenizer.convert_ids_to_tokens(encoded["input_ids"]), encoded

    bert, encoded = tokens("google-bert/bert-base-uncased", "A", "b")
    assert (bert, encoded["token_type_ids"]) == (["[CLS]", "a", "[SEP]", "b", "[SEP]"], [0, 0, 0, 1, 1])
    assert tokens("google/flan-t5-small", "a")[0] == ["a", "</s>"]
    assert tokens("HuggingFaceH4/zephyr-7b-beta", "a")[0] == ["<s>", "a"]
    assert tokens("openai-community/gpt2", "a")[0] == ["a"]


@pytest.mark.parametrize("name", CHAT)
def test_chat_template_ends_where_the_assistant_begins_and_its_marks_are_single_tokens(standins, name):
    _, tokenizer = zoo.load(name)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert "Hi" in text
    assert text.rstrip().endswith(("<|im_start|>assistant", "<|assistant|>"))
    marks = ["<|im_start|>", "<|im_end|>"] if "im_start" in text else ["</s>"]
    assert all(len(tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1 for mark in marks)


def test_t5_standin_has_the_hundred_sentinels(standins):
    _, tokenizer = zoo.load("google/flan-t5-small")
    assert len({tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)}) == 100


def test_standin_keeps_grouped_heads_and_tying(standins):
    small, _ = zoo.load("Qwen/Qwen3-0.6B")
    large, _ = zoo.load("Qwen/Qwen3-8B")
    assert small.config.num_attention_heads == 2 * small.config.num_key_value_heads
    assert large.config.num_attention_heads == 4 * large.config.num_key_value_heads
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert large.get_output_embeddings().weight is not large.get_input_embeddings().weight


def test_standin_is_the_same_every_time_and_leaves_the_random_numbers_alone(standins):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, _ = zoo.load("Qwen/Qwen3-0.6B")
    assert torch.equal(torch.rand(1), expected)
    again, _ = zoo.load("Qwen/Qwen3-0.6B")
    other, _ = zoo.load("Qwen/Qwen3-1.7B")
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert first.lm_head.weight.flatten()[0] != other.lm_head.weight.flatten()[0]


def test_standin_uses_the_embedded_tokenizer_where_it_ships(shipped, standins):
    (shipped.parent / "tiny-gpt").mkdir()
    backend = zoo._byte_level_bpe()
    backend.add_tokens(["Zwiebelrostbraten"])
    backend.save(str(shipped.parent / "tiny-gpt" / "tokenizer.json"))
    _, tokenizer = zoo.load("openai-community/gpt2")
    assert tokenizer.tokenize("Zwiebelrostbraten") == ["Zwiebelrostbraten"]


def test_standin_survives_saving_and_loading(standins, tmp_path):
    for name in ("openai-community/gpt2", "google/flan-t5-small", "google-bert/bert-base-uncased"):
        model, tokenizer = zoo.load(name)
        model.save_pretrained(tmp_path / "saved")
        tokenizer.save_pretrained(tmp_path / "saved")
        back, _ = zoo.load(tmp_path / "saved")
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), back.parameters(), strict=True))


def test_embedded_models_stay_themselves_in_standin_mode(shipped, standins):
    model, _ = zoo.load("tiny-test", device="cuda")
    assert (model.config.hidden_size, model.device.type) == (32, "cpu")


def test_standin_outside_the_catalogue_is_refused(standins):
    with pytest.raises(ValueError, match="no stand-in"):
        zoo.load("someone/something", revision="v1")
