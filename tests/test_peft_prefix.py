"""Prefix tuning and P-tuning v2 equal HF peft on Llama, GPT-2, BERT and T5, with padding, in training and in generation."""

import copy

import peft as hf_peft
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertForTokenClassification,
)

from llmcourse import peft
from llmcourse.peft import p_tuning_v2, prefix, prompt_tuning
from llmcourse.transformer import Transformer, attention, generate
from tests.peft_models import CLOSE, GENERATORS, MODELS, batch, make, task


def hf_prefix(model, hidden=None):
    """HF peft's model on a copy of this base. T5's keys need not be as wide as its stream: that must be said."""
    c = model.config
    wide = {"token_dim": c.num_heads * c.d_kv, "num_layers": c.num_decoder_layers} if c.model_type == "t5" else {}
    options = {"prefix_projection": True, "encoder_hidden_size": hidden} if hidden else {}
    config = hf_peft.PrefixTuningConfig(task_type=task(model), num_virtual_tokens=5, **wide, **options)
    return hf_peft.get_peft_model(copy.deepcopy(model), config).eval()


def pair(model, hidden=None):
    """HF peft's model, our handle with its weights copied, and pairs of parameters that must agree."""
    theirs = hf_prefix(model, hidden)
    handle = prefix.attach(model, prefix.Config(n_tokens=5, projection=hidden is not None, hidden=hidden))
    named = dict(handle.tokens.named_parameters())
    pairs = [(p, named.pop(key.replace("transform", "mlp"))) for key, p in theirs.prompt_encoder.default.named_parameters()]
    assert not named
    with torch.no_grad():
        for their, our in pairs:
            our.copy_(their)
    return theirs, handle, pairs


# Equal to HF peft


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("hidden", "side"), [(None, "left"), (7, "right")])
def test_loss_logits_and_gradients_equal_hf_peft(name, hidden, side):
    model = make(name, seed=hidden or 1)
    theirs, _, pairs = pair(model, hidden)
    inputs = batch(name, side)
    expected, got = theirs(**inputs), model(**inputs)
    assert_close((got.loss, got.logits), (expected.loss, expected.logits), **CLOSE)
    expected.loss.backward()
    got.loss.backward()
    for their, our in pairs:
        assert their.grad.abs().max() > 1e-6
        assert_close(our.grad, their.grad, **CLOSE)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 7}])
def test_generate_equals_hf_peft(name, options):
    """Batches without padding: HF peft continues padded rows otherwise than the same rows alone."""
    model = make(name)
    theirs, _, _ = pair(model)
    inputs = {**batch(name, labels=False), "max_new_tokens": 6, **options}
    outs = []
    for each in (theirs, model):
        torch.manual_seed(0)
        outs.append(each.generate(**inputs))
    assert outs[0].equal(outs[1])


# What it is


def test_a_prefix_is_more_keys_and_values_for_every_query():
    """One head's attention, written out: softmax(q [Pk; K]ᵀ / √d) [Pv; V], no query kept from the prefix."""
    theirs = make("gpt2")
    ours = Transformer.from_hf(theirs)
    handle = prefix.attach(ours, prefix.Config(n_tokens=4))
    seen, block = [], ours.blocks[0].attention
    block.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0], out[0])))
    ours(batch("gpt2")["input_ids"])
    (x, got), (keys, values) = seen[0], handle.keys_values()[0]
    q, k, v = (part(x).view(3, 9, -1, block.d_head).transpose(1, 2) for part in (block.q, block.k, block.v))
    readable = prefix.prefix_attention(q, k, v, keys[0], values[0])
    k, v = (torch.cat((own.expand(3, -1, -1, -1), part), 2) for own, part in ((keys, k), (values, v)))
    mask = torch.cat((torch.ones(9, 4), torch.ones(9, 9).tril()), 1).bool()
    mixed = attention(q, k, v, mask[None, None])[0]
    assert_close(readable, mixed, **CLOSE)
    assert_close(got, block.o(mixed.transpose(1, 2).flatten(2)), **CLOSE)


@pytest.mark.parametrize("hidden", [None, 7])
def test_the_number_of_parameters_is_that_of_the_equation(hidden):
    model = make("llama")
    handle = prefix.attach(model, prefix.Config(n_tokens=5, projection=hidden is not None, hidden=hidden))
    c = model.config
    width, layers = c.num_key_value_heads * c.head_dim, c.num_hidden_layers
    table = 5 * 2 * layers * width
    mlp = 5 * width + (width + 1) * 7 + (7 + 1) * 2 * layers * width
    assert sum(p.numel() for p in handle.parameters()) == (mlp if hidden else table)


# Padding and positions


@pytest.mark.parametrize(("name", "num_beams"), [("llama", 1), ("gpt2", 2), ("t5", 1)])
def test_rows_padded_on_the_left_are_continued_as_they_are_alone(name, num_beams):
    model = make(name)
    prefix.attach(model, prefix.Config(n_tokens=5))
    inputs, options = batch(name, "left", labels=False), {"max_new_tokens": 5, "num_beams": num_beams}
    together = model.generate(**inputs, **options)
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        alone = model.generate(input_ids=ids[None, mask.bool()], attention_mask=mask[None, mask.bool()], **options)
        assert together[row, -5:].equal(alone[0, -5:])


@pytest.mark.parametrize("name", ["llama_classifier", "gpt2_classifier", "bert"])
def test_padding_on_the_right_changes_no_row(name):
    model = make(name)
    prefix.attach(model, prefix.Config(n_tokens=5))
    inputs = batch(name, "right", labels=False)
    together = model(**inputs).logits
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        assert_close(together[row], model(input_ids=ids[None, mask.bool()]).logits[0], **CLOSE)


def test_a_loop_over_the_cache_gives_the_logits_of_one_pass():
    model = make("gpt2")
    prefix.attach(model, prefix.Config(n_tokens=5))
    ids, parts, cache = batch("gpt2")["input_ids"], [], None
    for chunk in ids.split([4, 1, 4], dim=1):
        out = model(input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert_close(torch.cat(parts, 1), model(input_ids=ids).logits, **CLOSE)


def test_a_masked_decoder_of_t5_still_sees_the_prefix():
    model = make("t5")
    theirs, _, _ = pair(model)
    target = batch("t5", "right", seq=6)
    inputs = {**batch("t5", "left", labels=False), "decoder_input_ids": target["input_ids"]}
    inputs["decoder_attention_mask"] = counts = target["attention_mask"]
    assert_close(model(**inputs).logits[counts.bool()], theirs(**inputs).logits[counts.bool()], **CLOSE)


# Our own Transformer


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_our_transformer_gives_the_same_logits_and_gradients(name, side):
    theirs = make(name)
    ours = Transformer.from_hf(theirs)
    handles = [prefix.attach(model, prefix.Config(n_tokens=5, projection=True, hidden=7)) for model in (theirs, ours)]
    handles[1].tokens.load_state_dict(handles[0].tokens.state_dict())
    inputs = batch(name, side, labels=False)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if name == "t5":
        target = batch(name, seq=6)["input_ids"]
        expected = theirs(**inputs, decoder_input_ids=target).logits
        got, counts = ours(target, source=ours.encode(ids, mask)), ...
    else:
        expected, got, counts = theirs(**inputs).logits, ours(ids, mask), ... if name == "bert" else mask.bool()
    assert_close(got[counts], expected[counts], **CLOSE)
    for logits in (expected, got):
        logits[counts].square().sum().backward()
    for their, our in zip(handles[0].parameters(), handles[1].parameters(), strict=True):
        assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "options"), [("llama", {"num_beams": 2}), ("gpt2", {}), ("t5", {"num_beams": 2})])
def test_our_generate_writes_what_transformers_writes(name, options):
    theirs = make(name)
    ours = Transformer.from_hf(theirs)
    for model in (theirs, ours):
        torch.manual_seed(7)
        prefix.attach(model, prefix.Config(n_tokens=5))
    inputs = batch(name, "left", labels=False)
    expected = theirs.generate(**inputs, max_new_tokens=6, **options)
    assert generate(ours, inputs["input_ids"], 6, attention_mask=inputs["attention_mask"], **options).equal(expected)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_prefix_and_a_soft_prompt_at_once_agree_on_both_models(name):
    """Positions count the prefix first, then the soft prompt, then the text."""
    theirs = make(name)
    ours = Transformer.from_hf(theirs)
    for model in (theirs, ours):
        torch.manual_seed(7)
        prompt_tuning.attach(model, prompt_tuning.Config(n_tokens=3, start="random"), "prompt")
        prefix.attach(model, prefix.Config(n_tokens=4), "prefix")
    inputs = batch(name, "left", labels=False)
    places = torch.arange(9).expand(3, -1)
    expected = theirs(**inputs, position_ids=places).logits
    got = ours(inputs["input_ids"], inputs["attention_mask"], places)
    if name == "llama":
        expected, got = expected[:, 3:][inputs["attention_mask"].bool()], got[inputs["attention_mask"].bool()]
        assert generate(ours, inputs["input_ids"][:1], 4).equal(theirs.generate(inputs["input_ids"][:1], max_new_tokens=4))
    assert_close(got, expected, **CLOSE)
    assert_close(theirs(**inputs).logits, theirs(**inputs, position_ids=places).logits, **CLOSE)


# The interface


@pytest.mark.parametrize("name", MODELS)
def test_only_the_prefix_is_trained_and_detaching_restores_the_model(name):
    model = make(name)
    before, inputs = copy.deepcopy(model.state_dict()), batch(name)
    expected = model(**inputs).logits
    handle = prefix.attach(model, prefix.Config(n_tokens=5, projection=True))
    assert (model(**inputs).logits - expected).abs().max() > 1e-3
    model(**inputs).loss.backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in handle.parameters()}
    handle.disable()
    assert_close(model(**inputs).logits, expected)
    handle.detach()
    assert model(**inputs).logits.equal(expected)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert not any(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_two_prefixes_stand_one_behind_the_other():
    model = make("llama")
    first = prefix.attach(model, prefix.Config(n_tokens=2), "first")
    second = prefix.attach(model, prefix.Config(n_tokens=3), "second")
    inputs = batch("llama", "left")
    together = model(**inputs)
    table = torch.cat((first.tokens.table(), second.tokens.table()))
    first.detach()
    second.detach()
    joint = prefix.attach(model, prefix.Config(n_tokens=5))
    joint.tokens.finish(table)
    assert_close(model(**inputs).logits, together.logits, **CLOSE)


def test_half_precision_models_keep_the_prefix_in_float32():
    model = make("llama").bfloat16()
    handle = prefix.attach(model)
    out = model(**batch("llama", "left"))
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert {p.dtype for p in handle.parameters()} == {torch.float32}


# Files


def head(name):
    return ("classifier",) if name == "bert" else ("score",) if name.endswith("_classifier") else ()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("projection", [False, True])
def test_hf_peft_loads_what_we_save(name, projection, tmp_path):
    """The trained head of a classifier travels along; a projection does not."""
    model, inputs = make(name), batch(name)
    handle = prefix.attach(model, prefix.Config(n_tokens=5, projection=projection, modules_to_save=head(name)))
    for parameter in handle.parameters():
        parameter.data += 0.1
    handle.save(tmp_path)
    theirs = hf_peft.PeftModel.from_pretrained(make(name), tmp_path).eval()
    assert_close(theirs(**inputs).logits, model(**inputs).logits, **CLOSE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hidden", [None, 7])
def test_we_load_what_hf_peft_saves(name, hidden, tmp_path):
    theirs, inputs = hf_prefix(make(name), hidden), batch(name)
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


# Errors


def test_a_prefix_that_leaves_no_position_for_text_is_refused():
    with pytest.raises(ValueError, match=r"n_tokens=40 does not fit this model's 40 positions; choose 1–39"):
        prefix.attach(make("gpt2"), prefix.Config(n_tokens=40))


@pytest.mark.parametrize("ours", [False, True])
def test_a_text_longer_than_the_prefix_leaves_room_for_is_refused(ours):
    model = Transformer.from_hf(make("bert")) if ours else make("bert")
    prefix.attach(model, prefix.Config(n_tokens=32))
    model(batch("bert", seq=8)["input_ids"])
    with pytest.raises(ValueError, match="the text has 9 tokens, but 32 virtual ones leave room for 8"):
        model(batch("bert", seq=9)["input_ids"])


def test_generation_beyond_the_positions_is_refused():
    model = make("gpt2")
    prefix.attach(model, prefix.Config(n_tokens=30))
    assert model.generate(batch("gpt2")["input_ids"], max_new_tokens=2).shape == (3, 11)
    with pytest.raises(ValueError, match="leave room for 10"):
        model.generate(batch("gpt2")["input_ids"], max_new_tokens=3)


@pytest.mark.parametrize("fields", [{"hidden": 7}, {"hidden": 0, "projection": True}])
def test_a_hidden_width_without_its_mlp_or_below_one_is_refused(fields):
    with pytest.raises(ValueError, match="at least 1, and with projection=True"):
        prefix.Config(**fields)


def test_merging_another_model_and_a_file_of_other_heads_are_refused(tmp_path):
    handle = prefix.attach(make("llama"))
    with pytest.raises(ValueError, match="cannot merge"):
        handle.merge()
    with pytest.raises(TypeError, match="not Linear"):
        prefix.attach(nn.Linear(2, 2))
    handle.save(tmp_path)
    with pytest.raises(ValueError, match="num_attention_heads"):
        prefix.attach(make("gpt2")).load(tmp_path)


def test_gradient_checkpointing_is_refused_as_it_would_lose_the_prefix():
    model = make("gpt2")
    prefix.attach(model, prefix.Config(n_tokens=5))
    model.gradient_checkpointing_enable()
    model(**batch("gpt2"))
    with pytest.raises(ValueError, match="gradient checkpointing leaves out"):
        model.train()(**batch("gpt2"))


# P-tuning v2


@pytest.mark.parametrize("name", ["bert", "llama_classifier", "gpt2_classifier"])
def test_p_tuning_v2_is_a_prefix_with_the_head_trained_along(name, tmp_path):
    """HF peft, which trains the head of a classifier too, loads it with the same logits and gets the same gradients."""
    model, inputs = make(name), batch(name, "left")
    handle = p_tuning_v2.attach(model, p_tuning_v2.Config(n_tokens=5))
    theirs = hf_prefix(make(name))
    with torch.no_grad():
        theirs.prompt_encoder.default.embedding.weight.copy_(handle.tokens.table())
    expected, got = theirs(**inputs), model(**inputs)
    assert_close((got.loss, got.logits), (expected.loss, expected.logits), **CLOSE)
    expected.loss.backward()
    got.loss.backward()
    trained = {p.numel(): p.grad for p in theirs.parameters() if p.grad is not None}
    assert len(trained) == len(list(handle.parameters())) == (3 if name == "bert" else 2)
    for parameter in handle.parameters():
        assert_close(parameter.grad, trained[parameter.numel()], **CLOSE)
    handle.save(tmp_path)
    other = make(name)
    p_tuning_v2.attach(other, p_tuning_v2.Config(n_tokens=5)).load(tmp_path)
    assert_close(other(**inputs).logits, got.logits, **CLOSE)


def test_p_tuning_v2_finds_the_head_of_a_token_classifier_and_of_our_transformer():
    tokens = make("bert", cls=BertForTokenClassification)
    ours = Transformer.from_hf(make("bert"))
    assert list(p_tuning_v2.attach(tokens).heads) == ["classifier"]
    assert list(p_tuning_v2.attach(ours).heads) == ["head"]


@pytest.mark.parametrize("ours", [False, True])
def test_p_tuning_v2_refuses_a_model_that_does_not_classify(ours):
    model = Transformer.from_hf(make("llama")) if ours else make("llama")
    with pytest.raises(ValueError, match="has no classification head"):
        p_tuning_v2.attach(model)
