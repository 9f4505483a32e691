"""Soft prompts: prompt tuning and P-tuning equal HF peft on Llama, GPT-2, BERT and T5, and are right where it is not."""

import copy
import json

import peft as hf_peft
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForMaskedLM,
)

from llmcourse import peft
from llmcourse.peft import p_tuning, prompt_tuning
from llmcourse.transformer import Transformer, generate
from tests.peft_models import CLOSE, GENERATORS, MODELS, batch, make, task


def theirs_with(model, config_class, **options):
    """HF peft's model on a copy of this base, its soft prompt random."""
    config = config_class(task_type=task(model), num_transformer_submodules=1, num_virtual_tokens=5, **options)
    return hf_peft.get_peft_model(copy.deepcopy(model), config).eval()


def hf_prompt_tuning(model):
    return theirs_with(model, hf_peft.PromptTuningConfig)


def hf_p_tuning(model, kind):
    return theirs_with(model, hf_peft.PromptEncoderConfig, encoder_reparameterization_type=kind, encoder_hidden_size=7)


def pair(model, kind):
    """HF peft's model, our handle with its weights copied, and pairs of parameters that must agree."""
    if kind == "table":
        theirs = hf_prompt_tuning(model)
        handle = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5, start="random"))
        pairs = [(theirs.prompt_encoder.default.embedding.weight, handle.tokens.weight)]
    else:
        theirs = hf_p_tuning(model, kind.upper())
        handle = p_tuning.attach(model, p_tuning.Config(n_tokens=5, encoder=kind, hidden=7))
        named = dict(handle.tokens.named_parameters())
        pairs = [(p, named.pop(key.replace("_head", ""))) for key, p in theirs.prompt_encoder.default.named_parameters()]
        assert not named
    with torch.no_grad():
        for their, our in pairs:
            our.copy_(their)
    return theirs, handle, pairs


# Equal to HF peft


SIDES = {"table": ["left", "right"], "lstm": ["right"], "mlp": ["left"]}
CASES = [(name, kind, side) for name in MODELS for kind, sides in SIDES.items() for side in sides]


@pytest.mark.parametrize(("name", "kind", "side"), CASES)
def test_loss_logits_and_gradients_equal_hf_peft(name, kind, side):
    """On padded batches with labels; a padded classifier that reads the last token is wrong in HF peft, and tested apart."""
    model = make(name, seed=len(kind))
    theirs, _, pairs = pair(model, kind)
    inputs = batch(name, None if name.endswith("_classifier") else side)
    expected, got = theirs(**inputs), model(**inputs)
    assert_close(got.loss, expected.loss, **CLOSE)
    assert_close(got.logits, expected.logits, **CLOSE)
    expected.loss.backward()
    got.loss.backward()
    for their, our in pairs:
        assert their.grad.abs().max() > 1e-6
        assert_close(our.grad, their.grad, **CLOSE)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}, {"do_sample": True, "top_k": 7}])
def test_generate_equals_hf_peft(name, options):
    model = make(name)
    theirs, _, _ = pair(model, "table")
    inputs = {**batch(name, labels=False), "max_new_tokens": 6, **options}
    outs = []
    for each in (theirs, model):
        torch.manual_seed(0)
        outs.append(each.generate(**inputs))
    assert outs[0].equal(outs[1])


# Right where HF peft is not


@pytest.mark.parametrize("name", ["llama_classifier", "gpt2_classifier"])
def test_a_classifier_finds_the_last_token_in_front_of_the_padding(name):
    """Padded on the right, every row gets the logits that HF peft gives it alone."""
    model = make(name)
    theirs, _, _ = pair(model, "table")
    inputs = batch(name, "right", labels=False)
    together = model(**inputs).logits
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        assert_close(together[row], theirs(input_ids=ids[None, mask.bool()]).logits[0], **CLOSE)


@pytest.mark.parametrize(("name", "num_beams"), [("llama", 2), ("gpt2", 1), ("t5", 1)])
def test_rows_padded_on_the_left_are_continued_as_they_are_alone(name, num_beams):
    """The positions of `generate` skip the padding, so the prompt is as far from the text in every row."""
    model = make(name)
    prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5))
    inputs, options = batch(name, "left", labels=False), {"max_new_tokens": 5, "num_beams": num_beams}
    together = model.generate(**inputs, **options)
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        alone = model.generate(input_ids=ids[None, mask.bool()], attention_mask=mask[None, mask.bool()], **options)
        assert together[row, -5:].equal(alone[0, -5:])


def test_a_loop_over_the_cache_gives_the_logits_of_one_pass():
    model = make("llama")
    prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5))
    ids, parts, cache = batch("llama")["input_ids"], [], None
    for chunk in ids.split([4, 1, 4], dim=1):
        out = model(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert_close(torch.cat(parts, 1), model(input_ids=ids).logits, **CLOSE)


def test_labels_and_token_types_of_a_masked_language_model_are_lengthened():
    """The soft tokens are of type 0, and none of them is to be guessed: both equal doing it by hand."""
    model = make("bert", cls=BertForMaskedLM)
    handle = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=4))
    ids = batch("bert")["input_ids"]
    types, labels = torch.ones_like(ids), ids.masked_fill(ids % 2 == 0, -100)
    got = model(input_ids=ids, token_type_ids=types, labels=labels)
    handle.disable()
    text = torch.cat((handle.prompt().expand(3, -1, -1), model.get_input_embeddings()(ids)), 1)
    types, labels = nn.functional.pad(types, (4, 0)), nn.functional.pad(labels, (4, 0), value=-100)
    expected = model(inputs_embeds=text, token_type_ids=types, labels=labels)
    assert_close((got.loss, got.logits), (expected.loss, expected.logits), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_given_positions_move_behind_the_prompt(name):
    model = make(name)
    prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5))
    ids = batch(name)["input_ids"]
    assert_close(model(input_ids=ids, position_ids=torch.arange(9)[None]).logits, model(input_ids=ids).logits, **CLOSE)
    assert (model(input_ids=ids, position_ids=torch.arange(9)[None] * 2).logits - model(input_ids=ids).logits).abs().max() > 1e-3


def test_embedded_text_and_tuples_work_as_ids_and_outputs_do():
    model = make("bert")
    prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5))
    ids = batch("bert")["input_ids"]
    expected = model(ids).logits
    assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, expected, **CLOSE)
    assert_close(model(ids, return_dict=False)[0], expected, **CLOSE)


# Our own Transformer


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", [prompt_tuning, p_tuning])
def test_our_transformer_gives_the_same_logits_and_gradients(name, side, method):
    """Of the text's tokens; for a bare decoder the prompt is read once instead of once a row."""
    theirs = make(name)
    ours = Transformer.from_hf(theirs)
    handles = [method.attach(model, method.Config(n_tokens=5)) for model in (theirs, ours)]
    handles[1].tokens.load_state_dict(handles[0].tokens.state_dict())
    inputs = batch(name, side, labels=False)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if name == "t5":
        target = batch(name, seq=6)["input_ids"]
        expected = theirs(**inputs, decoder_input_ids=target).logits
        got, counts = ours(target, source=ours.encode(ids, mask)), ...
    else:
        expected, got = theirs(**inputs).logits, ours(ids, mask)
        counts = ... if name == "bert" else mask.bool()
        expected = expected if name == "bert" else expected[:, 5:]
    assert_close(got[counts], expected[counts], **CLOSE)
    for logits in (expected, got):
        logits[counts].square().sum().backward()
    for their, our in zip(handles[0].parameters(), handles[1].parameters(), strict=True):
        assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), [("llama", {}), ("gpt2", {"num_beams": 2}), ("t5", {})])
def test_our_generate_writes_what_transformers_writes(name, options):
    theirs = make(name)
    ours = Transformer.from_hf(theirs)
    for model in (theirs, ours):
        torch.manual_seed(7)
        prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5, start="random"))
    inputs = batch(name, "left", labels=False)
    expected = theirs.generate(**inputs, max_new_tokens=6, **options)
    assert generate(ours, inputs["input_ids"], 6, attention_mask=inputs["attention_mask"], **options).equal(expected)


# Starts


class Words:
    """The least a tokenizer must be: one id a letter, and a name."""

    name_or_path = "letters"

    def __call__(self, text):
        return {"input_ids": [ord(letter) - 90 for letter in text]}

    def convert_ids_to_tokens(self, ids):
        return [chr(i + 90) for i in ids]


@pytest.mark.parametrize(("n", "expected"), [(2, [3, 4]), (3, [3, 4, 5]), (7, [3, 4, 5, 3, 4, 5, 3])])
def test_a_text_of_another_length_is_cut_or_repeated(n, expected):
    assert prompt_tuning.start_ids([3, 4, 5], n) == expected


def test_a_text_start_is_the_embedding_of_its_tokens():
    model = make("llama")
    handle = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=4, start="text", text="abc"), tokenizer=Words())
    assert_close(handle.prompt(), model.get_input_embeddings().weight[[7, 8, 9, 7]])


def test_a_vocabulary_start_takes_rows_of_the_embedding_and_a_random_one_does_not():
    model = make("llama")
    table = model.get_input_embeddings().weight
    rows = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=6), "rows").prompt()
    assert (rows[:, None] == table).all(-1).any(-1).all()
    loose = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=6, start="random"), "loose").prompt()
    assert -0.5 <= loose.min() < -0.3 and 0.3 < loose.max() <= 0.5


def test_the_nearest_words_are_those_of_the_largest_cosine():
    """A prompt started from a text has that text's tokens as its nearest words, whatever their length."""
    handle = prompt_tuning.attach(make("llama"), prompt_tuning.Config(n_tokens=3, start="text", text="abc"), tokenizer=Words())
    handle.tokens.weight.data[1] *= 5
    nearest = prompt_tuning.neighbours(handle, Words(), k=2)
    assert [row[0][0] for row in nearest] == ["a", "b", "c"]
    assert all(row[0][1] == pytest.approx(1) and len(row) == 2 and row[1][1] < 1 for row in nearest)


@pytest.mark.parametrize(("n", "width"), [(5, 2048), (3, 17)])
def test_a_soft_prompt_trains_tokens_times_width_numbers(n, width):
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 3, "vocab_size": 9}
    handle = prompt_tuning.attach(BertForMaskedLM(BertConfig(**sizes)), prompt_tuning.Config(n_tokens=n))
    assert sum(p.numel() for p in handle.parameters()) == prompt_tuning.n_parameters(n, width)
    assert prompt_tuning.n_parameters(5, 2048) == 10_240


# The interface


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", [prompt_tuning, p_tuning])
def test_only_the_prompt_is_trained_and_detaching_restores_the_model(name, method):
    model = make(name)
    before, inputs = copy.deepcopy(model.state_dict()), batch(name)
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    expected = model(**inputs).logits
    handle = method.attach(model, method.Config(n_tokens=5))
    model(**inputs).loss.backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in handle.parameters()}
    handle.disable()
    assert_close(model(**inputs).logits, expected)
    handle.detach()
    assert model(**inputs).logits.equal(expected)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert hooks == sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("ours", [False, True])
def test_two_prompts_stand_one_behind_the_other(ours):
    """Whichever is detached first, the other goes on alone."""
    model = make("gpt2")
    model = Transformer.from_hf(model) if ours else model
    call = (lambda ids: model(ids)) if ours else (lambda ids: model(ids).logits[:, -9:])
    ids = batch("gpt2")["input_ids"]
    bare = call(ids)
    first = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=2), "first")
    alone = call(ids)
    second = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=3), "second")
    both = torch.cat((first.prompt(), second.prompt()))
    together = call(ids)
    second.disable()
    assert_close(call(ids), alone)
    first.disable()
    assert_close(call(ids), bare)
    joint = prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5), "joint")
    joint.tokens.weight.data.copy_(both)
    assert_close(call(ids), together, **CLOSE)
    joint.detach()
    first.detach()
    second.enable()
    only = call(ids)
    second.detach()
    assert_close(call(ids), bare)
    assert (only - alone).abs().max() > 1e-3 and "layers" not in vars(model)


def test_half_precision_models_keep_the_prompt_in_float32():
    model = make("llama").bfloat16()
    handle = prompt_tuning.attach(model)
    out = model(**batch("llama"))
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert handle.prompt().dtype == handle.prompt().grad.dtype == torch.float32


def test_dropout_of_the_encoder_follows_the_model():
    model = make("bert")
    handle = p_tuning.attach(model, p_tuning.Config(n_tokens=5, dropout=0.5))
    assert handle.prompt().equal(handle.prompt())
    model.train()
    assert not handle.prompt().equal(handle.prompt())


# Files


def head(name):
    return ("classifier",) if name == "bert" else ("score",) if name.endswith("_classifier") else ()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", [prompt_tuning, p_tuning])
def test_hf_peft_loads_what_we_save(name, method, tmp_path):
    """The trained head of a classifier travels along."""
    model, inputs = make(name), batch(name)
    handle = method.attach(model, method.Config(n_tokens=5, modules_to_save=head(name)))
    for parameter in handle.parameters():
        parameter.data += 0.1
    handle.save(tmp_path)
    theirs = hf_peft.PeftModel.from_pretrained(make(name), tmp_path).eval()
    assert_close(theirs(**inputs).logits, model(**inputs).logits, **CLOSE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["table", "lstm", "mlp"])
def test_we_load_what_hf_peft_saves(name, kind, tmp_path):
    """With HF peft's defaults, which for T5 keep twice the rows; the prompt of the encoder is loaded as a finished one."""
    base, inputs = make(name), batch(name)
    options = {"task_type": task(base), "num_virtual_tokens": 5}
    config = hf_peft.PromptTuningConfig(**options)
    if kind != "table":
        config = hf_peft.PromptEncoderConfig(**options, encoder_reparameterization_type=kind.upper(), encoder_hidden_size=7)
    theirs = hf_peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    theirs.save_pretrained(tmp_path)
    model = make(name)
    handle = peft.load(model, tmp_path, "theirs")
    assert_close(model(**inputs).logits, theirs(**inputs).logits, **CLOSE)
    model(**inputs).loss.backward()
    assert all(p.grad is not None for p in handle.parameters())


def test_a_p_tuning_file_fills_an_adapter_that_still_has_its_encoder(tmp_path):
    model = make("gpt2")
    first = p_tuning.attach(model, p_tuning.Config(n_tokens=5, encoder="mlp"), "first")
    first.save(tmp_path)
    second = p_tuning.attach(model, p_tuning.Config(n_tokens=5), "second")
    second.load(tmp_path)
    assert_close(second.prompt(), first.prompt())
    assert [name for name, _ in second.named_parameters()] == ["tokens.embedding.weight"]
    second.save(tmp_path / "again")
    assert_close(peft.load(make("gpt2"), tmp_path / "again").prompt(), first.prompt())


def test_the_text_it_started_from_is_told_where_its_tokenizer_can_be_named(tmp_path):
    handle = prompt_tuning.attach(make("llama"), prompt_tuning.Config(n_tokens=3, start="text", text="abc"), tokenizer=Words())
    handle.save(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (fields["prompt_tuning_init"], fields["prompt_tuning_init_text"], fields["tokenizer_name_or_path"]) == (
        "TEXT",
        "abc",
        "letters",
    )
    hf_peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    handle.tokenizer = None
    handle.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["prompt_tuning_init"] == "RANDOM"


# Errors


def test_a_prompt_that_leaves_no_position_for_text_is_refused():
    with pytest.raises(ValueError, match=r"n_tokens=40 does not fit this model's 40 positions; choose 1–39"):
        prompt_tuning.attach(make("gpt2"), prompt_tuning.Config(n_tokens=40))
    with pytest.raises(ValueError, match="n_tokens=0"):
        p_tuning.attach(make("t5"), p_tuning.Config(n_tokens=0))


@pytest.mark.parametrize("name", ["gpt2", "bert"])
@pytest.mark.parametrize("ours", [False, True])
def test_a_text_longer_than_the_prompt_leaves_room_for_is_refused(name, ours):
    model = Transformer.from_hf(make(name)) if ours else make(name)
    prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=32))
    model(batch(name, seq=8)["input_ids"])
    with pytest.raises(ValueError, match="the text has 9 tokens, but 32 virtual ones leave room for 8"):
        model(batch(name, seq=9)["input_ids"])


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        (prompt_tuning, {"start": "txt"}, "start='txt' is unknown; choose one of vocabulary, text, random"),
        (prompt_tuning, {"start": "text"}, 'a text is needed for start="text"'),
        (prompt_tuning, {"text": "abc"}, "and only there"),
        (p_tuning, {"encoder": "gru"}, "encoder='gru' is unknown; choose one of lstm, mlp"),
        (p_tuning, {"hidden": 0}, "hidden=0"),
        (p_tuning, {"n_layers": 0}, "n_layers=0"),
    ],
)
def test_a_wrong_setting_is_refused(method, fields, message):
    with pytest.raises(ValueError, match=message):
        method.Config(**fields)


def test_a_text_without_tokens_or_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="has no tokens"):
        prompt_tuning.start_ids([], 3)
    with pytest.raises(ValueError, match=r"attach\(model, config, tokenizer=tokenizer\)"):
        prompt_tuning.attach(make("llama"), prompt_tuning.Config(start="text", text="abc"))


def test_another_kind_of_model_is_refused():
    with pytest.raises(TypeError, match="not Linear"):
        prompt_tuning.attach(nn.Linear(2, 2))


@pytest.mark.parametrize("method", [prompt_tuning, p_tuning])
def test_merging_is_refused(method):
    handle = method.attach(make("llama"))
    with pytest.raises(ValueError, match="cannot merge: what it adds is no change of a weight"):
        handle.merge()


def test_a_file_of_another_model_or_method_or_a_damaged_one_is_refused(tmp_path):
    prompt_tuning.attach(make("llama"), prompt_tuning.Config(n_tokens=5)).save(tmp_path)
    for model, method, message in (
        (make("gpt2"), prompt_tuning, "another model"),
        (make("llama"), p_tuning, "PROMPT_TUNING"),
    ):
        with pytest.raises(ValueError, match=message):
            method.attach(model, method.Config(n_tokens=5)).load(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated or corrupted"):
        peft.load(make("llama"), tmp_path)


def test_a_static_cache_is_refused():
    model = make("llama")
    prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=5))
    with pytest.raises(ValueError, match="a cache that grows"):
        model.generate(**batch("llama", labels=False), max_new_tokens=2, cache_implementation="static")
