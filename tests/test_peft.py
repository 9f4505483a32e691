"""The interface all methods share: attach, switch, merge, detach, files, and what is refused."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llmcourse.peft import adapters, bitfit, dora, ia3, interface, lora
from llmcourse.peft.counts import summary, trainable
from llmcourse.transformer import Config as OurConfig
from llmcourse.transformer import Transformer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EVERY = [
    ("lora", lora, lora.Config(r=2, dropout=0.1)),
    ("lora-bias", lora, lora.Config(r=2, bias="all", targets="all-linear", modules_to_save=("classifier",))),
    ("dora", dora, dora.Config(r=2, targets="all-linear", modules_to_save=("classifier",))),
    ("ia3", ia3, ia3.Config()),
    ("bitfit", bitfit, bitfit.Config(modules_to_save=("classifier",))),
    ("houlsby", adapters, adapters.Houlsby(bottleneck=3)),
    ("parallel", adapters, adapters.Parallel(bottleneck=3)),
]
METHODS = pytest.mark.parametrize(("method", "config"), [case[1:] for case in EVERY], ids=[case[0] for case in EVERY])
MERGEABLE = pytest.mark.parametrize(("method", "config"), [case[1:] for case in EVERY[:5]], ids=[case[0] for case in EVERY[:5]])


def classifier(width: int = 20, layers: int = 2, seed: int = 0):
    """A tiny random BERT with a classification head, in eval mode."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    shape = {"hidden_size": width, "intermediate_size": 26, "num_attention_heads": 4, "num_hidden_layers": layers}
    model = BertForSequenceClassification(BertConfig(vocab_size=31, num_labels=3, max_position_embeddings=12, **shape)).eval()
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.ndim == 1)
    return model


IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5], [11, 12, 13, 14, 15]])


def out(model):
    return model(input_ids=IDS).logits


def shake(handle, seed: int = 1):
    """Random values for all that is trained."""
    torch.manual_seed(seed)
    for parameter in handle.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (0.5 if parameter.ndim == 1 else 0)
    return handle


def snapshot(model):
    """All that `detach` promises to restore: modules, their order and identity, values, flags."""
    modules = [(name, id(module), module.training, list(module._modules)) for name, module in model.named_modules()]
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return modules, values, [(name, id(p), p.requires_grad) for name, p in model.named_parameters()], sorted(model.__dict__)


def assert_restored(model, before):
    now = snapshot(model)
    assert now[0] == before[0] and now[2] == before[2] and now[3] == before[3]
    assert now[1].keys() == before[1].keys() and all(torch.equal(now[1][name], value) for name, value in before[1].items())


# --- attach and detach -----------------------------------------------------------------------------------------------


@METHODS
def test_detach_restores_the_model_bit_for_bit(method, config):
    """After training, switching and detaching, every module, value and flag is what it was, a frozen parameter included."""
    model = classifier()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model.bert.encoder.layer[1].train()
    before, logits = snapshot(model), out(model.eval() and model)
    model.bert.encoder.layer[1].train()
    handle = shake(method.attach(model, config))
    assert (out(model.eval()) - logits).abs().max() > 1e-3
    model.bert.encoder.layer[1].train()
    handle.detach()
    assert_restored(model, before)


@METHODS
def test_only_the_adapter_is_trained(method, config):
    """The handle's parameters are all that require gradients, and one step moves them and nothing else."""
    model = classifier()
    before = {name: p.detach().clone() for name, p in interface.base_parameters(model)}
    handle = shake(method.attach(model, config))
    mine = {id(p) for p in handle.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == mine
    assert sum(p.numel() for p in handle.parameters()) == trainable(model)[0]
    start = [p.detach().clone() for p in handle.parameters()]
    optimiser = torch.optim.SGD(handle.parameters(), lr=0.1)
    out(model).square().sum().backward()
    optimiser.step()
    moved = [not torch.equal(a, b) for a, b in zip(start, handle.parameters(), strict=True)]
    assert sum(moved) > 0.7 * len(moved)  # a key's bias, or a unit that is silent here, has no gradient
    handle.disable()
    assert all(torch.equal(before[name], p) for name, p in interface.base_parameters(model))


@METHODS
def test_disable_and_enable_switch_the_adapter(method, config):
    """Disabled: the bare model's output; enabled: the adapted one again."""
    model = classifier()
    bare = out(model)
    handle = shake(method.attach(model, config))
    adapted = out(model)
    handle.disable()
    assert_close(out(model), bare, rtol=0, atol=1e-6)
    handle.enable()
    assert_close(out(model), adapted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac"])
def test_adapters_of_several_methods_lie_on_each_other_and_leave_in_any_order(order):
    """Each detach leaves what a model has to which that adapter was never attached; the last leaves the bare model."""
    kinds = {
        "a": (lora, lora.Config(r=2)),
        "b": (ia3, ia3.Config()),
        "c": (adapters, adapters.Houlsby(bottleneck=2)),
        "d": (lora, lora.Config(r=3)),
    }
    model = classifier()
    before = snapshot(model)
    handles = {name: shake(method.attach(model, config, name), ord(name)) for name, (method, config) in kinds.items()}
    assert list(interface.attached(model)) == list(kinds)
    for i, name in enumerate(order):
        handles[name].detach()
        other = classifier()
        for rest in kinds:
            if rest not in order[: i + 1]:
                shake(kinds[rest][0].attach(other, kinds[rest][1], rest), ord(rest))
        assert_close(out(model), out(other), **CLOSE)
    assert_restored(model, before)


def test_a_failed_attach_leaves_the_model_as_it_was():
    """Whether the targets, the rank, the head or the tuned biases are wrong."""
    model = classifier()
    before = snapshot(model)
    for method, config in (
        (lora, lora.Config(targets=("query", "nothing"))),
        (lora, lora.Config(r=999)),
        (lora, lora.Config(modules_to_save=("nothing",))),
        (bitfit, bitfit.Config(targets=("word_embeddings",))),
        (adapters, adapters.Houlsby(bottleneck=99)),
    ):
        with pytest.raises(ValueError):  # each message has a test of its own
            method.attach(model, config)
        assert_restored(model, before)


def test_a_copy_of_an_adapted_model_is_independent():
    """deepcopy takes the adapters along; detaching the copy's leaves the original's."""
    model = classifier()
    shake(lora.attach(model))
    adapted, twin = out(model), copy.deepcopy(model)
    interface.attached(twin)["default"].detach()
    assert_close(out(model), adapted)
    assert not interface.attached(twin) and (out(twin) - adapted).abs().max() > 1e-3


def test_a_module_with_two_names_is_wrapped_under_both():
    """T5's encoder and decoder share one embedding: an adapter on it serves both, and is counted once."""
    ours = Transformer(OurConfig(vocab_size=17, d_model=8, n_layers=1, n_heads=2, positions="t5", n_encoder_layers=1, tied=True))
    handle = lora.attach(ours, lora.Config(r=2, targets=("embed",)))
    assert len(handle.parts) == 1 and ours.embed is ours.encoder.embed
    assert isinstance(ours.embed, lora.LoRAEmbedding)
    handle.detach()
    assert type(ours.embed) is nn.Embedding and ours.embed is ours.encoder.embed


def test_what_a_wrapper_lacks_is_looked_up_in_the_layer():
    model = classifier()
    lora.attach(model, name="a")
    lora.attach(model, name="b")
    outer = model.bert.encoder.layer[0].attention.self.query
    assert outer.weight is outer.base.base.weight and outer.in_features == 20
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = outer.no_such_thing


# --- heads -------------------------------------------------------------------------------------------------------------


def test_a_trained_head_travels_with_the_adapter(tmp_path):
    """The head's copy is trained and saved; loading brings it, detaching brings the old head back."""
    model = classifier()
    handle = shake(lora.attach(model, lora.Config(modules_to_save=("classifier",))))
    assert {"classifier.copy.weight", "classifier.copy.bias"} <= {name for name, _ in handle.named_parameters()}
    handle.save(tmp_path)
    other = classifier()
    interface.load(other, tmp_path, "mine")
    assert_close(out(other), out(model))
    handle.merge_and_unload()
    assert isinstance(model.classifier, nn.Linear)
    assert_close(out(model), out(other), **CLOSE)


def test_targets_do_not_reach_into_a_trained_head():
    """With "all-linear" the head that is trained whole gets no low-rank part."""
    handle = lora.attach(classifier(), lora.Config(r=2, targets=".*(query|classifier)", modules_to_save=("classifier",)))
    assert not any("classifier" in place for place in handle.parts)


# --- merging ---------------------------------------------------------------------------------------------------------


@MERGEABLE
def test_merging_keeps_the_outputs_and_unmerging_the_weights(method, config):
    """Merged: same outputs from plain layers. Unmerged and detached: the old weights, bit for bit."""
    model = classifier()
    before, handle = snapshot(model), shake(method.attach(model, config))
    adapted, parts = out(model), list(handle.parts.values())
    handle.merge()
    assert_close(out(model), adapted, **CLOSE)
    assert all(not torch.equal(interface.bottom(part).weight, part.kept["weight"]) for part in parts)
    handle.unmerge()
    assert_close(out(model), adapted, rtol=0, atol=1e-6)
    handle.merge()
    handle.detach()
    assert_restored(model, before)


@MERGEABLE
def test_merge_and_unload_leaves_plain_layers_with_the_effect(method, config):
    """No wrapper and no copy of old weights stays; the outputs do."""
    model = classifier()
    handle = shake(method.attach(model, config))
    adapted = out(model)
    handle.merge_and_unload()
    assert not any(isinstance(module, interface.Wrapper) for module in model.modules()) and not interface.attached(model)
    assert not any(part.kept for part in handle.parts.values())
    assert_close(out(model), adapted, **CLOSE)


def test_merging_follows_the_order_in_which_adapters_lie():
    """IA³ on LoRA: merged from the inside out, unmerged from the outside in; other orders are refused by name."""
    model = classifier()
    kinds = {"in": (lora, lora.Config(r=2)), "mid": (ia3, ia3.Config(targets=("query",), feedforward=()))}
    handles = {name: shake(method.attach(model, config, name)) for name, (method, config) in kinds.items()}
    adapted = out(model)
    with pytest.raises(ValueError, match=r'"in" lies below "mid" on ".*query"; merge it first'):
        handles["mid"].merge()
    handles["in"].merge()
    assert_close(out(model), adapted, **CLOSE)
    handles["mid"].merge()
    assert_close(out(model), adapted, **CLOSE)
    with pytest.raises(ValueError, match=r'"mid" was merged after "in"; unmerge it first'):
        handles["in"].unmerge()
    handles["mid"].unmerge()
    handles["in"].unmerge()
    assert_close(out(model), adapted, rtol=0, atol=1e-6)


def test_two_loras_merge_in_any_order_but_leave_in_reverse():
    """They add up, so either may go first; the weight kept by the second is the one to go back to first."""
    model = classifier()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    a, b = (shake(lora.attach(model, lora.Config(r=2), name), i) for i, name in enumerate("ab"))
    adapted = out(model)
    b.merge()
    assert_close(out(model), adapted, **CLOSE)
    with pytest.raises(ValueError, match=r'"b" lies on top of "a" and is merged; unmerge it first'):
        a.merge()
    b.unmerge()
    a.merge()
    b.merge()
    assert_close(out(model), adapted, **CLOSE)
    b.detach()
    a.detach()
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_dora_on_a_merged_lora_still_measures_the_old_weights():
    """The norm is that of the weight before merges, so merging what lies below changes no output."""
    model = classifier()
    below, _ = shake(lora.attach(model, lora.Config(r=2), "below")), shake(dora.attach(model, dora.Config(r=2), "above"))
    adapted = out(model)
    below.merge()
    assert_close(out(model), adapted, **CLOSE)


def test_merging_twice_or_disabled_or_switching_while_merged_is_refused():
    handle = lora.attach(classifier())
    with pytest.raises(ValueError, match="is not merged"):
        handle.unmerge()
    handle.merge()
    for action, message in ((handle.merge, "merged already"), (handle.disable, "unmerge it before you switch")):
        with pytest.raises(ValueError, match=message):
            action()
    handle.unmerge()
    handle.disable()
    with pytest.raises(ValueError, match="disabled: enable it first"):
        handle.merge()


def test_merging_into_a_shared_or_quantised_weight_is_refused():
    """A tied embedding would change the head too; integers cannot hold the sum."""
    model = Transformer(OurConfig(vocab_size=17, d_model=8, n_layers=1, n_heads=2, tied=True))
    handle = lora.attach(model, lora.Config(r=2, targets=("embed",)))
    with pytest.raises(ValueError, match='"embed" shares its weight with "head"'):
        handle.merge()
    handle.detach()
    lora.attach(model, lora.Config(r=2, targets=("attention.q",)))
    layer = interface.bottom(model.blocks[0].attention.q)
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"blocks.0.attention.q\" holds quantised weights \(torch.int8\)"):
        interface.attached(model)["default"].merge()


def test_merging_into_a_layer_that_restores_its_weight_on_each_read_is_refused():
    """Writing into such a weight would be lost without a word."""

    class Packed(nn.Module):
        in_features = out_features = 8
        bias = None

        @property
        def weight(self):
            return torch.ones(8, 8)

        def forward(self, x):
            return x @ self.weight

    handle = lora.attach(nn.Sequential(Packed()), lora.Config(r=2, targets=("0",)))
    with pytest.raises(ValueError, match="quantised weights"):
        handle.merge()


def test_merging_into_a_layer_that_another_adapter_trains_as_a_whole_is_refused():
    model = classifier()
    lora.attach(model, lora.Config(r=2, modules_to_save=("classifier",)), "whole")
    handle = lora.attach(model, lora.Config(r=2, targets=("classifier",)), "part")
    with pytest.raises(ValueError, match='"classifier" is trained as a whole by adapter "whole"'):
        handle.merge()


def test_dora_on_a_gain_or_on_quantised_weights_is_refused():
    """It needs the layer's own bias and the length of its own weight."""
    model = classifier()
    ia3.attach(model, ia3.Config(targets=("query",), feedforward=()), "gain")
    with pytest.raises(ValueError, match="not on IA3Linear; attach it first"):
        dora.attach(model, dora.Config(targets=("query",)), "dora")
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.weight = nn.Parameter(torch.zeros(26, 20, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"quantised here \(torch.int8\); use LoRA"):
        dora.attach(model, dora.Config(targets=("intermediate.dense",)), "dora")


def test_attaching_leaves_the_modes_inside_a_layer_alone():
    """A wrapper takes its layer's mode, and does not pass it on into the layer."""
    from transformers import LlamaConfig, LlamaModel

    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11}
    model = LlamaModel(LlamaConfig(**shape)).train()
    model.layers[0].mlp.act_fn.eval()
    adapters.attach(model, adapters.Parallel(bottleneck=2))
    assert model.layers[0].mlp.training and not model.layers[0].mlp.act_fn.training


def test_a_half_precision_weight_is_merged_in_full_precision():
    """W + s · B A is rounded once."""
    layer = nn.Linear(8, 6).bfloat16()
    part = lora.LoRALinear(layer, interface.Switch(), lora.Config(r=2, alpha=3))
    nn.init.normal_(part.B)
    expected = (layer.weight.float() + 1.5 * part.B @ part.A).bfloat16()
    assert torch.equal(part.merged()["weight"], expected)


# --- rows of a batch -------------------------------------------------------------------------------------------------


def test_rows_of_a_batch_equal_single_adapters():
    """Each row is what it is with only that adapter enabled; gradients flow to the adapters that serve a row."""
    model = classifier()
    handles = {
        name: shake(lora.attach(model, lora.Config(r=2, modules_to_save=("classifier",)), name), ord(name)) for name in "ab"
    }
    alone = {}
    for name, other in (("a", handles["b"]), ("b", handles["a"])):
        other.disable()
        alone[name] = out(model)
        other.enable()
    with interface.choose_rows(model, ["b", "a", "b"]):
        mixed = out(model)
    assert_close(mixed, torch.stack([alone["b"][0], alone["a"][1], alone["b"][2]]), **CLOSE)
    mixed[1].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in handles["a"].parameters())
    assert all(p.grad is None or not p.grad.any() for p in handles["b"].parameters())
    assert handles["a"].switch.rows is None


def test_rows_are_refused_for_unknown_merged_and_whole_batch_adapters():
    model = classifier()
    handle = lora.attach(model, name="a")
    with pytest.raises(ValueError, match='no adapter "c" on this model; attached: a'), interface.choose_rows(model, ["c"]):
        pass
    handle.merge()
    with pytest.raises(ValueError, match='"a" is merged: unmerge it first'), interface.choose_rows(model, ["a"]):
        pass
    handle.unmerge()
    ia3.attach(model, name="b")
    with pytest.raises(ValueError, match='"b" is ia3, which serves whole batches only'), interface.choose_rows(model, ["a"]):
        pass


def test_a_batch_of_another_size_than_the_chosen_rows_is_refused():
    model = classifier()
    lora.attach(model, name="a")
    with (
        pytest.raises(ValueError, match="adapters for 2 rows were chosen, the batch has 3"),
        interface.choose_rows(model, ["a", "a"]),
    ):
        out(model)


# --- names and files ---------------------------------------------------------------------------------------------------


def test_a_target_that_matches_nothing_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r'target "querry" matches no module .*nearest names are .*query'):
        lora.attach(classifier(), lora.Config(targets=("querry",)))
    with pytest.raises(ValueError, match=r'modules_to_save "clasifier" matches no module .*classifier'):
        lora.attach(classifier(), lora.Config(modules_to_save=("clasifier",)))


def test_a_name_is_taken_once_and_must_be_a_name():
    model = classifier()
    lora.attach(model, name="a")
    with pytest.raises(ValueError, match=r'"a" is attached already \(lora\)'):
        ia3.attach(model, name="a")
    for name in ("", "a.b"):
        with pytest.raises(ValueError, match="must not be empty"):
            lora.attach(model, name=name)


def test_a_detached_handle_is_refused():
    handle = lora.attach(classifier())
    handle.detach()
    for action in (handle.merge, handle.detach, handle.enable):
        with pytest.raises(ValueError, match="not attached to the model any more"):
            action()


def test_an_unknown_family_is_told_to_name_its_targets():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="no default targets for Sequential"):
        lora.attach(model)
    handle = lora.attach(model, lora.Config(r=2, targets=("0",)))
    assert list(handle.parts) == ["0"]


@METHODS
def test_a_file_round_trip_gives_the_same_outputs(tmp_path, method, config):
    """Saved, loaded on a fresh copy by `interface.load`, and into an adapter attached by hand."""
    model = classifier()
    handle = shake(method.attach(model, config))
    handle.save(tmp_path)
    loaded = interface.load(fresh := classifier(), tmp_path)
    assert type(loaded) is type(handle)
    by_hand = method.attach(other := classifier(), config, "other")
    by_hand.load(tmp_path)
    assert torch.equal(out(fresh), out(model)) and torch.equal(out(other), out(model))


@METHODS
def test_a_file_of_another_model_is_refused_by_name_with_both_shapes(tmp_path, method, config):
    """Another width, another depth; and nothing stays attached."""
    method.attach(classifier(), config).save(tmp_path)
    for other in (classifier(width=24), classifier(layers=1)):
        with pytest.raises(
            ValueError, match=r"is an adapter of another model.*(in the file, .* here|\d+ such|attached here)|made for a Bert"
        ):
            interface.load(other, tmp_path)
        assert not interface.attached(other)


def test_both_shapes_are_told(tmp_path):
    lora.attach(classifier(), lora.Config(r=2)).save(tmp_path)
    with pytest.raises(ValueError, match=r"query.lora_A.weight is \(2, 20\) in the file, \(2, 24\) here"):
        interface.load(classifier(width=24), tmp_path)


def test_a_file_of_another_base_is_refused_by_its_fingerprint_where_hf_peft_has_no_format(tmp_path):
    """Houlsby's tensors would fit a model with more words, but the file says which base it was made for."""
    handle = adapters.attach(classifier())
    handle.save(tmp_path)
    other = classifier()
    other.resize_token_embeddings(40)
    with pytest.raises(ValueError, match="made for a BertForSequenceClassification with other parameter shapes"):
        interface.load(other, tmp_path)


def test_a_file_of_another_method_or_setting_is_refused(tmp_path):
    lora.attach(classifier(), lora.Config(r=2, alpha=4)).save(tmp_path)
    with pytest.raises(ValueError, match=r'holds an adapter of type LORA; "default" is ia3'):
        ia3.attach(classifier()).load(tmp_path)
    with pytest.raises(ValueError, match='has lora_alpha=4, adapter "default" lora_alpha=8'):
        lora.attach(classifier(), lora.Config(r=2)).load(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields | {"peft_type": "VERA"}))
    with pytest.raises(ValueError, match="type VERA; known types: LORA"):
        interface.load(classifier(), tmp_path)


def test_damaged_files_are_refused(tmp_path):
    """Truncated or corrupted weights, a broken config, values that are not finite, missing files."""
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    with pytest.raises(ValueError, match=r"there is no adapter_config.json"):
        interface.load(classifier(), tmp_path)
    handle = lora.attach(classifier())
    next(handle.parameters()).data[0, 0] = torch.nan
    handle.save(tmp_path)
    with pytest.raises(ValueError, match=r"lora_A.weight holds values that are not finite"):
        interface.load(classifier(), tmp_path)
    whole = weights.read_bytes()
    for broken in (whole[:-7], whole[:50], b"\xff" * 8 + whole[8:], b""):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match="is truncated or corrupted"):
            interface.load(classifier(), tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match=r"there is no adapter_model.safetensors"):
        interface.load(classifier(), tmp_path)
    for text, message in (("{", "is damaged"), ("[]", 'has no "peft_type"')):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            interface.load(classifier(), tmp_path)


def test_loading_into_a_merged_adapter_and_saving_disabled_biases_are_refused(tmp_path):
    handle = lora.attach(classifier(), lora.Config(r=2, bias="all"))
    handle.save(tmp_path)
    handle.merge()
    with pytest.raises(ValueError, match="merged into the weights; unmerge it"):
        handle.load(tmp_path)
    handle.unmerge()
    handle.disable()
    with pytest.raises(ValueError, match="tunes parameters in place and is disabled"):
        handle.save(tmp_path)


# --- counts and imports ------------------------------------------------------------------------------------------------


def test_the_summary_counts_numbers_and_bytes(tmp_path):
    """LoRA on 4 square layers of 20: 4 · 2 · 2 · 20 numbers, the percentage of all, the bytes of the saved files."""
    model = classifier()
    n = sum(p.numel() for p in model.parameters())
    handle = lora.attach(model, lora.Config(r=2))
    told = summary(handle)
    handle.save(tmp_path)
    assert (told.trained, told.total) == (320, n + 320) and told.percent == pytest.approx(100 * 320 / (n + 320))
    assert told.file_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert str(told).startswith("lora: 320 of ")


def test_the_summary_agrees_with_hf_peft():
    hf_peft = pytest.importorskip("peft")
    handle = lora.attach(classifier(), lora.Config(r=2, modules_to_save=("classifier",)))
    wrapped = hf_peft.get_peft_model(classifier(), hf_peft.LoraConfig(r=2, modules_to_save=["classifier"]))
    assert (summary(handle).trained, summary(handle).total) == wrapped.get_nb_trainable_parameters()


def test_importing_the_package_loads_no_torch():
    code = """
import sys, llmcourse.peft as ours
assert "torch" not in sys.modules
ours.lora.attach
assert not {"transformers", "peft"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
