"""MAM, UniPELT and the hybrid against their equations, written out by hand on the base model's own modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from llmcourse import peft
from llmcourse.peft import adapters, hybrid, lora, mam, prefix, prompt_tuning, unipelt
from llmcourse.transformer import Transformer, generate
from tests.peft_models import CLOSE, GENERATORS, MODELS, batch, golden, make

MAM = mam.Config(prefix=prefix.Config(n_tokens=5, projection=True, hidden=7), adapter=adapters.Parallel(bottleneck=5))
HYBRID = hybrid.Config(prompt=prompt_tuning.Config(n_tokens=5), lora=lora.Config(r=2, alpha=5))
UNIPELT = unipelt.Config(lora=lora.Config(r=2, alpha=5), prefix=prefix.Config(n_tokens=5), adapter=adapters.Houlsby(bottleneck=5))
CLASSIFIERS = ["bert", "llama_classifier", "gpt2_classifier"]
CASES = [(name, mam, MAM) for name in MODELS] + [(name, hybrid, HYBRID) for name in MODELS]
CASES += [(name, unipelt, UNIPELT) for name in CLASSIFIERS]


def shake(handle):
    """Move every parameter away from its start, where much is zero."""
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return handle


def attach(model, method, config):
    torch.manual_seed(3)
    return shake(method.attach(model, config))


# Equations


def attend(layer, x, keys, values, seen):
    """BERT's attention over a prefix and the text, from its weights alone; `seen`: which of the keys may be looked at."""
    inner = layer.attention.self
    q, k, v = (F.linear(x, m.weight, m.bias) for m in (inner.query, inner.key, inner.value))
    return mix(inner, q, k, v, keys, values, seen)


def mix(inner, q, k, v, keys, values, seen):
    q, k, v = (t.view(*x_shape(t), -1, inner.attention_head_size).transpose(1, 2) for t in (q, k, v))
    k, v = torch.cat((keys, k), 2), torch.cat((values, v), 2)
    scores = (q @ k.mT / inner.attention_head_size**0.5).masked_fill(~seen[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def x_shape(t):
    return t.shape[:2]


def embedded(model, ids, n):
    """BERT's embeddings of a text that begins behind `n` virtual tokens."""
    table, places = model.bert.embeddings, torch.arange(n, n + ids.shape[1])
    types = table.token_type_embeddings.weight[0]
    return table.LayerNorm(table.word_embeddings(ids) + table.position_embeddings(places) + types)


def bottleneck(part, x):
    return F.relu(x @ part.down.weight.T + part.down.bias) @ part.up.weight.T + part.up.bias


@pytest.mark.parametrize("side", ["left", "right"])
def test_mam_equals_its_equations_on_bert(side):
    """Attention over [prefix; text], then feed-forward with s · bottleneck(x) inside the norm, layer by layer."""
    model, inputs = make("bert"), batch("bert", side, labels=False)
    bare = copy.deepcopy(model)
    handle = attach(model, mam, MAM)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rows, table = len(ids), handle.tokens.mlp(handle.tokens.embedding.weight)
    x, seen = embedded(bare, ids, 5), torch.cat((torch.ones(rows, 5), mask), 1).bool()
    for i, layer in enumerate(bare.bert.encoder.layer):
        heads = layer.attention.self.num_attention_heads
        width = table.shape[1] // (2 * len(bare.bert.encoder.layer))
        keys, values = (table[:, (2 * i + j) * width : (2 * i + j + 1) * width].view(5, heads, -1) for j in (0, 1))
        keys, values = (t.transpose(0, 1).expand(rows, -1, -1, -1) for t in (keys, values))
        x = layer.attention.output(attend(layer, x, keys, values, seen), x)
        part = next(p for name, p in handle.parts.items() if f"layer.{i}." in name).adapter
        ffn = layer.output.dense(layer.intermediate(x))
        x = layer.output.LayerNorm(ffn + x + 4.0 * bottleneck(part, x))
    expected = bare.classifier(bare.bert.pooler(x))
    assert_close(model(**inputs).logits, expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_unipelt_equals_its_equations_on_bert(side):
    """Three gates: a token's on LoRA and adapter, the mean of a text's tokens (padding left out) on the prefix."""
    model, inputs = make("bert"), batch("bert", side, labels=False)
    bare = copy.deepcopy(model)
    handle = attach(model, unipelt, UNIPELT)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    rows, prefix_layers = len(ids), handle.tokens.prefix()
    x, seen = embedded(bare, ids, 5), torch.cat((torch.ones(rows, 5), mask), 1).bool()

    def gate(part, x):
        return torch.sigmoid(x @ part.weight.T + part.bias)

    for i, layer in enumerate(bare.bert.encoder.layer):
        parts = {name.split(".")[-1]: p for name, p in handle.parts.items() if f"layer.{i}." in name}
        inner = layer.attention.self
        q, v = (
            getattr(inner, n)(x) + gate(parts[n].gate, x) * 2.5 * (x @ parts[n].A.T @ parts[n].B.T) for n in ("query", "value")
        )
        g = gate(handle.tokens.gates[i], x)[..., 0]
        share = torch.stack([row[keep.bool()].mean() for row, keep in zip(g, mask, strict=True)])[:, None, None, None]
        keys, values = (share * t for t in prefix_layers[i])
        x = layer.attention.output(mix(inner, q, inner.key(x), v, keys, values, seen), x)
        ffn = layer.output.dense(layer.intermediate(x))
        x = layer.output.LayerNorm(ffn + gate(parts["dropout"].gate, ffn) * bottleneck(parts["dropout"].adapter, ffn) + x)
    expected = bare.classifier(bare.bert.pooler(x))
    assert_close(model(**inputs).logits, expected, **CLOSE)


def library_names(handle) -> dict[str, nn.Parameter]:
    """Our parameters by the names that the library `adapters` gives them."""
    attention = "encoder.layer.{}.attention.self.prefix_tuning"
    pool = attention.format(0) + ".pool.prefix_tunings.x.self_prefix"
    prefix_part = handle.tokens.prefix if hasattr(handle.tokens, "prefix") else handle.tokens
    named = {f"{pool}.wte.weight": prefix_part.embedding.weight}
    named |= {f"{pool}.control_trans.{name}": p for name, p in prefix_part.mlp.named_parameters()}
    for i, gate in enumerate(getattr(handle.tokens, "gates", ())):
        named |= {f"{attention.format(i)}.prefix_gates.x.{name}": p for name, p in gate.named_parameters()}
    for place, part in handle.parts.items():
        for name, p in part.own_parameters() if hasattr(part, "own_parameters") else ():
            if name in ("A", "B") or "attention.self" in place:
                named[f"{place}.loras.x.{'lora_' * (len(name) == 1)}{name}"] = p
            else:
                called = name.replace("adapter.down.", "adapter_down.0.").replace("adapter.up.", "adapter_up.")
                named[f"{place.removesuffix('.dropout').replace('.mlp', '.output')}.adapters.x.{called}"] = p
    return named


@pytest.mark.parametrize("method", [mam, unipelt])
def test_both_combinations_equal_the_library_adapters_forward_and_backward(method, monkeypatch):
    """Same weights: same hidden states and gradients, once the stated differences are taken away.

    Its prefix leaves the positions of the text alone, ours moves them by its 3 tokens. Its gates on LoRA and adapter are means
    over the text, and with a gate it forgets α / r, here 1. (Its own settings also put UniPELT's adapter behind the norm; those
    of the golden file do not.)
    """
    model, tensors, kinds = golden("bert", method.__name__.rpartition(".")[2])
    tokens = prefix.Config(n_tokens=3, projection=True, hidden=9)
    config = {
        mam: mam.Config(prefix=tokens, adapter=adapters.Parallel(bottleneck=5)),
        unipelt: unipelt.Config(
            prefix=tokens, adapter=adapters.Houlsby(bottleneck=5, activation="relu"), lora=lora.Config(r=2, alpha=2)
        ),
    }[method]
    handle = method.attach(model, config)
    named = library_names(handle)
    assert named.keys() == kinds["adapter"].keys()
    for name, parameter in named.items():
        parameter.data = kinds["adapter"][name].view_as(parameter)
    token_gate = unipelt.Gate.forward
    monkeypatch.setattr(
        unipelt.Gate, "forward", lambda gate, x: token_gate(gate, x).mean(1, keepdim=True).expand(*x.shape[:2], 1)
    )
    ids = tensors["ids"]
    out = model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None] - 3).last_hidden_state
    assert_close(out, tensors["output"], **CLOSE)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    for name, gradient in kinds["grad"].items():
        assert_close(named[name].grad.view_as(gradient), gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_hybrid_is_lora_in_the_weights_and_vectors_before_the_text(name):
    """W + s · B A written into a copy of the base, the prompt attached to it alone."""
    model, inputs = make(name), batch(name, "left")
    merged = copy.deepcopy(model)
    handle = attach(model, hybrid, HYBRID)
    with torch.no_grad():
        for place, part in handle.parts.items():
            if place != "tokens":
                layer, change = merged.get_submodule(place), 2.5 * part.B @ part.A
                layer.weight += change.T if hasattr(layer, "nf") else change
    alone = prompt_tuning.attach(merged, prompt_tuning.Config(n_tokens=5))
    alone.tokens.load_state_dict(handle.tokens.state_dict())
    expected, got = merged(**inputs), model(**inputs)
    assert_close((got.loss, got.logits), (expected.loss, expected.logits), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_mam_is_a_prefix_and_parallel_adapters_attached_at_once(name):
    """For T5 the prefix takes every pair of the table; only prefix tuning's own file format leaves some out."""
    model, inputs = make(name), batch(name, "left")
    apart = copy.deepcopy(model)
    handle = attach(model, mam, MAM)
    first, second = prefix.attach(apart, MAM.prefix, "prefix"), adapters.attach(apart, MAM.adapter, "adapter")
    first.tokens.load_state_dict(handle.tokens.state_dict())
    first.keys_values = handle.keys_values
    for place, part in second.parts.items():
        part.adapter.load_state_dict(handle.parts[place].adapter.state_dict())
    expected, got = apart(**inputs), model(**inputs)
    assert_close((got.loss, got.logits), (expected.loss, expected.logits), **CLOSE)


# What all three promise


@pytest.mark.parametrize(("name", "method", "config"), CASES)
def test_every_part_is_trained_nothing_else_is_and_detaching_restores_the_model(name, method, config):
    model, inputs = make(name), batch(name, "right")
    before = copy.deepcopy(model.state_dict())
    expected = model(**inputs).logits
    handle = attach(model, method, config)
    model(**inputs).loss.backward()
    assert [n for n, p in handle.named_parameters() if not p.grad.abs().max()] == []
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in handle.parameters()}
    handle.disable()
    assert_close(model(**inputs).logits, expected)
    handle.detach()
    assert model(**inputs).logits.equal(expected)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert not any(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize(("name", "method", "config"), CASES)
def test_a_file_brings_back_all_parts_and_the_head(name, method, config, tmp_path):
    head = {"bert": ("classifier",), "llama_classifier": ("score",), "gpt2_classifier": ("score",)}.get(name, ())
    model, inputs = make(name), batch(name)
    handle = attach(model, method, type(config)(**{**vars(config), "modules_to_save": head}))
    handle.save(tmp_path)
    other = make(name)
    loaded = peft.load(other, tmp_path, "again")
    assert loaded.config == handle.config
    assert_close(other(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(("name", "method", "config"), [case for case in CASES if case[0] in CLASSIFIERS])
def test_rows_padded_on_the_right_get_what_they_get_alone(name, method, config):
    model, inputs = make(name), batch(name, "right", labels=False)
    attach(model, method, config)
    together = model(**inputs).logits
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        assert_close(together[row], model(input_ids=ids[None, mask.bool()]).logits[0], **CLOSE)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(("method", "config"), [(mam, MAM), (hybrid, HYBRID)])
def test_our_transformer_computes_and_writes_the_same(name, method, config):
    theirs = make(name)
    ours = Transformer.from_hf(theirs)
    # GPT-2 keeps query, key and value in one matrix, so LoRA's parts only agree where they are named alike.
    if method is hybrid:
        up = {"gpt2": r".*mlp\.c_fc", "llama": r".*mlp\.up_proj", "t5": r".*\.wi"}[name], r".*mlp\.up"
        configs = [hybrid.Config(prompt=config.prompt, lora=lora.Config(r=2, targets=t)) for t in up]
    else:
        configs = [config, config]
    handles = [attach(model, method, c) for model, c in zip((theirs, ours), configs, strict=True)]
    encoder_first = [sorted(h.named_parameters(), key=lambda p: "decoder" in p[0] or p[0].startswith("blocks")) for h in handles]
    for (_, their), (_, our) in zip(*encoder_first, strict=True):
        our.data.copy_(their)
    inputs = batch(name, "left", labels=False)
    expected = theirs.generate(**inputs, max_new_tokens=6)
    assert generate(ours, inputs["input_ids"], 6, attention_mask=inputs["attention_mask"]).equal(expected)


def test_a_prefix_attached_before_keeps_its_strength_beside_unipelt():
    """The gates scale their own prefix alone."""
    model, inputs = make("bert"), batch("bert", "left", labels=False)
    other = prefix.attach(model, prefix.Config(n_tokens=3), "other")
    handle = attach(model, unipelt, UNIPELT)
    for gate in handle.tokens.gates:
        gate.bias.data.fill_(-200)
    shut = model(**inputs).logits
    keys = copy.deepcopy(other.tokens.embedding.weight.data)
    other.tokens.embedding.weight.data *= 2
    assert (model(**inputs).logits - shut).abs().max() > 1e-3
    other.tokens.embedding.weight.data.copy_(keys)
    handle.tokens.prefix.embedding.weight.data *= 2
    assert_close(model(**inputs).logits, shut, **CLOSE)


# Errors


@pytest.mark.parametrize(("method", "config"), [(mam, MAM), (hybrid, HYBRID), (unipelt, UNIPELT)])
def test_merging_is_refused(method, config):
    handle = method.attach(make("bert"), config)
    with pytest.raises(ValueError, match="cannot merge"):
        handle.merge()


def test_a_file_of_another_setting_or_base_is_refused(tmp_path):
    mam.attach(make("bert"), MAM).save(tmp_path)
    other = mam.Config(prefix=MAM.prefix, adapter=adapters.Parallel(bottleneck=5, scale=1.0))
    with pytest.raises(ValueError, match=r"scale=4\.0"):
        mam.attach(make("bert"), other).load(tmp_path)
    with pytest.raises(ValueError, match="another model"):
        mam.attach(make("bert", seed=2), MAM).load(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("llama", "LlamaForCausalLM writes text"), ("t5", "writes text")])
def test_unipelt_refuses_models_that_write(name, message):
    with pytest.raises(ValueError, match=message):
        unipelt.attach(make(name), UNIPELT)


def test_unipelt_refuses_our_transformer_and_others_refuse_what_is_no_model():
    with pytest.raises(TypeError, match="not to our Transformer"):
        unipelt.attach(Transformer.from_hf(make("bert")), UNIPELT)
    with pytest.raises(TypeError, match="not Linear"):
        mam.attach(nn.Linear(2, 2), MAM)


def test_settings_of_a_part_that_the_whole_cannot_keep_are_refused():
    with pytest.raises(ValueError, match='bias="none"'):
        hybrid.Config(lora=lora.Config(bias="all"))
    with pytest.raises(ValueError, match="from the vocabulary or at random"):
        hybrid.Config(prompt=prompt_tuning.Config(start="text", text="a"))
    with pytest.raises(ValueError, match="trains no biases"):
        unipelt.Config(lora=lora.Config(bias="all"))
    with pytest.raises(ValueError, match="belongs to the combined config"):
        mam.attach(make("bert"), mam.Config(prefix=prefix.Config(modules_to_save=("classifier",))))
