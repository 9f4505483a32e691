"""Houlsby and parallel adapters equal the library `adapters` (golden vectors) and their equations; BitFit HF peft's biases."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llmcourse.peft import adapters, bitfit, interface
from llmcourse.transformer import Config as OurConfig
from llmcourse.transformer import Transformer
from tests.peft_models import GOLDEN_MODELS, bare, golden

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def run(model, family: str, ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states, as the golden script computed them."""
    return model(input_ids=ids, **({"decoder_input_ids": ids.flip(1)} if family == "t5" else {})).last_hidden_state


def library_name(place: str, name: str) -> str:
    """What `adapters` calls our parameter."""
    place = place.replace("self_attn.o_proj", "attention_adapters").replace("attn.resid_dropout", "attention_adapters")
    if place.split(".")[0] in ("layers", "h"):
        place = place.replace("mlp.dropout", "output_adapters").replace("mlp", "output_adapters")
    part, kind = name.removeprefix("adapter.").split(".")
    return f"{place.removesuffix('.dropout')}.adapters.x.adapter_{part}.{'0.' if part == 'down' else ''}{kind}"


@pytest.mark.parametrize(("family", "method"), [*((f, "houlsby") for f in GOLDEN_MODELS), ("bert", "parallel")])
def test_adapters_equal_the_library_forward_and_backward(family, method):
    """Same weights in the same places: same hidden states, and the same gradient of every trained number."""
    model, tensors, kinds = golden(family, method)
    config = (
        adapters.Parallel(bottleneck=4, scale=3.0) if method == "parallel" else adapters.Houlsby(bottleneck=5, activation="silu")
    )
    handle = adapters.attach(model, config)
    named = {library_name(place, name): p for place, part in handle.parts.items() for name, p in part.own_parameters()}
    assert named.keys() == kinds["adapter"].keys()
    for name, parameter in named.items():
        parameter.data = kinds["adapter"][name]
    out = run(model, family, tensors["ids"])
    assert_close(out, tensors["output"], **CLOSE)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    for name, gradient in kinds["grad"].items():
        assert_close(named[name].grad, gradient, rtol=1e-4, atol=1e-4)


def our_model(**options) -> Transformer:
    """Our own Transformer, small and random."""
    torch.manual_seed(3)
    return Transformer(OurConfig(vocab_size=19, d_model=12, n_layers=2, n_heads=2, **options)).eval()


def test_the_readable_version_equals_the_layer():
    """houlsby_adapter is a SequentialAdapter whose biases are still zero."""
    net = adapters.Bottleneck(7, 3, "relu", zero=False)
    part, y = adapters.SequentialAdapter(nn.Identity(), interface.Switch(), net), torch.randn(4, 7)
    assert_close(part(y), adapters.houlsby_adapter(y, net.down.weight, net.up.weight))


@pytest.mark.parametrize("pre_norm", [True, False])
def test_both_kinds_follow_their_equations_on_our_transformer(pre_norm):
    """The block written out by hand, with y + bottleneck(y) behind each sub-layer, or s · bottleneck(x) beside the second."""
    x = torch.randn(2, 5, 12)
    for config in (adapters.Houlsby(bottleneck=3), adapters.Parallel(bottleneck=3, scale=0.7)):
        model = our_model(pre_norm=pre_norm, positions="none")
        handle = adapters.attach(model, config)
        for parameter in handle.parameters():
            nn.init.normal_(parameter)
        block = model.blocks[1]
        attention, mlp = interface.bottom(block.attention.o), interface.bottom(block.mlp)
        nets = [handle.parts[place].adapter for place in handle.parts if place.startswith("blocks.1.")]
        nets = [
            lambda h, net=net: torch.relu(h @ net.down.weight.T + net.down.bias) @ net.up.weight.T + net.up.bias for net in nets
        ]

        houlsby = len(nets) == 2

        def add(h, part, norm):
            return h + part if pre_norm else norm(h + part)

        read = block.norm1(x) if pre_norm else x
        q, k, v = (
            layer(read).view(2, 5, 2, 6).transpose(1, 2) for layer in (block.attention.q, block.attention.k, block.attention.v)
        )
        scores = (q @ k.mT / 6**0.5).masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf)
        mixed = attention((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = add(x, mixed + nets[0](mixed) if houlsby else mixed, block.norm1)
        read = block.norm2(h) if pre_norm else h
        y = mlp(read)
        y = y + nets[1](y) if houlsby else y + 0.7 * nets[0](read)
        assert_close(block(x)[0], add(h, y, block.norm2), **CLOSE)


@pytest.mark.parametrize("family", GOLDEN_MODELS)
def test_adapters_start_at_or_next_to_the_identity(family):
    """A parallel adapter starts as no change at all; Houlsby's start changes the output by less than one per cent."""
    model, ids = bare(family), torch.randint(1, 23, (2, 6))
    before = run(model, family, ids)
    handle = adapters.attach(model, adapters.Parallel(bottleneck=3))
    assert_close(run(model, family, ids), before)
    handle.detach()
    adapters.attach(model, adapters.Houlsby(bottleneck=3))
    change = (run(model, family, ids) - before).norm() / before.norm()
    assert 0 < change < 0.01


def test_a_parallel_adapter_of_t5_reads_what_its_feed_forward_layer_reads():
    """In both stacks there is one for each feed-forward layer, and none at cross-attention."""
    handle = adapters.attach(bare("t5"), adapters.Parallel(bottleneck=3))
    assert sorted(handle.parts) == [
        f"{s}.block.{i}.layer.{j}.DenseReluDense" for s, j in (("decoder", 2), ("encoder", 1)) for i in (0, 1)
    ]


def test_adapters_are_counted_by_the_formula():
    """2 d m + d + m for each bottleneck, two a layer (Houlsby) or one (parallel)."""
    for config, per_layer in ((adapters.Houlsby(bottleneck=7), 2), (adapters.Parallel(bottleneck=7), 1)):
        handle = adapters.attach(bare("bert"), config)
        assert sum(p.numel() for p in handle.parameters()) == 2 * per_layer * (2 * 20 * 7 + 20 + 7)


@pytest.mark.parametrize("kind", [adapters.Houlsby, adapters.Parallel])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_an_adapter_file_round_trip_keeps_every_bit(tmp_path, family, kind):
    """`interface.load` on another copy of the base gives the same outputs, with the config's settings."""
    model, ids = bare(family), torch.randint(1, 23, (2, 6))
    options = {"scale": 2.5} if kind is adapters.Parallel else {}
    handle = adapters.attach(model, kind(bottleneck=4, activation="gelu", **options))
    for parameter in handle.parameters():
        nn.init.normal_(parameter)
    handle.save(tmp_path)
    other = bare(family)
    loaded = interface.load(other, tmp_path)
    assert loaded.config == handle.config
    assert torch.equal(run(other, family, ids), run(model, family, ids))


def test_adapters_cannot_be_merged():
    with pytest.raises(ValueError, match="houlsby cannot merge"):
        adapters.attach(bare("bert")).merge()


def test_a_bottleneck_wider_than_the_model_is_refused():
    with pytest.raises(ValueError, match=r"bottleneck=21 exceeds the model's 20 features; choose 1–20"):
        adapters.attach(bare("bert"), adapters.Houlsby(bottleneck=21))


@pytest.mark.parametrize("setting", [{"bottleneck": 0}, {"activation": "sign"}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        adapters.Houlsby(**setting)


def test_a_disabled_adapter_has_no_effect_and_the_parallel_one_of_bert_neither():
    """Outputs are the bare model's, bit for bit."""
    for config in (adapters.Houlsby(), adapters.Parallel()):
        model, ids = bare("bert"), torch.randint(1, 23, (2, 6))
        before = run(model, "bert", ids)
        handle = adapters.attach(model, config)
        for parameter in handle.parameters():
            nn.init.normal_(parameter)
        assert (run(model, "bert", ids) - before).abs().max() > 0.1
        handle.disable()
        assert_close(run(model, "bert", ids), before)


# --- BitFit ----------------------------------------------------------------------------------------------------------


def test_bitfit_trains_the_biases_hf_peft_trains_and_their_gradients_are_equal():
    """HF peft's LoRA with bias="all" and its low-rank path at zero is BitFit."""
    hf_peft = pytest.importorskip("peft")
    ours, theirs, ids = bare("bert"), bare("bert"), torch.randint(1, 23, (2, 6))
    handle = bitfit.attach(ours)
    wrapped = hf_peft.get_peft_model(theirs, hf_peft.LoraConfig(bias="all", target_modules=["query"]))
    for model in (ours, wrapped):
        run(model, "bert", ids).square().sum().backward()
    wanted = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p.grad
        for name, p in wrapped.named_parameters()
        if p.requires_grad and "lora" not in name
    }
    mine = dict(handle.named_parameters())
    assert mine.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if gradient is not None:  # the pooler's bias does not reach the hidden states
            assert_close(mine[name].grad, gradient, rtol=1e-4, atol=1e-4)


def test_bitfit_switches_between_old_and_new_biases_and_gives_the_old_ones_back():
    """disable, enable and detach exchange exact values."""
    model, ids = bare("gpt2"), torch.randint(1, 23, (2, 6))
    before, values = run(model, "gpt2", ids), {k: v.clone() for k, v in model.state_dict().items()}
    handle = bitfit.attach(model)
    for parameter in handle.parameters():
        parameter.data.normal_()
    after = run(model, "gpt2", ids)
    handle.disable()
    assert_close(run(model, "gpt2", ids), before)
    handle.enable()
    assert_close(run(model, "gpt2", ids), after)
    handle.detach()
    assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_bitfit_of_chosen_modules_only():
    handle = bitfit.attach(bare("bert"), bitfit.Config(targets=("query",)))
    assert sorted(handle.tuned) == [f"encoder.layer.{i}.attention.self.query.bias" for i in (0, 1)]


def test_bitfit_refuses_a_model_without_biases_and_modules_without():
    with pytest.raises(ValueError, match="this LlamaModel has no biases to train"):
        bitfit.attach(bare("llama"))
    with pytest.raises(ValueError, match=r"'word_embeddings'.* has no biases"):
        bitfit.attach(bare("bert"), bitfit.Config(targets=("word_embeddings",)))


def test_two_adapters_cannot_tune_the_same_bias():
    model = bare("bert")
    bitfit.attach(model, name="a")
    with pytest.raises(ValueError, match=r'"embeddings.LayerNorm.bias" is tuned in place by adapter "a"'):
        bitfit.attach(model, name="b")
    assert list(interface.attached(model)) == ["a"]


def test_a_bitfit_file_round_trip(tmp_path):
    """The file holds the biases; another copy of the base gets them all."""
    model, other = bare("bert"), bare("bert")
    handle = bitfit.attach(model)
    for parameter in handle.parameters():
        parameter.data.normal_()
    handle.save(tmp_path)
    interface.load(other, tmp_path)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_bitfit_merged_for_good_leaves_its_biases():
    model = bare("bert")
    handle = bitfit.attach(model)
    handle.tuned["pooler.dense.bias"].data.fill_(7)
    handle.merge_and_unload()
    assert (model.pooler.dense.bias == 7).all() and not interface.attached(model)
