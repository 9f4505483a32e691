"""Quantised layers and models: outputs, gradients, bytes and files; QLoRA; the gradient that is silently wrong."""

import copy
import math

import bitsandbytes
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from llmcourse import quantization
from llmcourse.peft import lora
from llmcourse.quantization import bits, int8, models, nf4, qlora, trap
from llmcourse.quantization.bitnet import BitLinear, PackedBitLinear
from llmcourse.quantization.linear import METHODS, Linear4bit, Linear8bit, QuantConfig, quantize_linear
from llmcourse.transformer import Config, Transformer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FAMILIES = ("llama", "bert", "t5", "gpt2", "ours")


@pytest.fixture(autouse=True)
def unguarded(monkeypatch):
    """Whatever a test does to bitsandbytes is undone; compiled functions run as they are written."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", bitsandbytes.nn.modules.has_avx512bf16)
    with torch.compiler.set_stance("force_eager"):
        yield


def make(family, seed=0, **changes):
    """A tiny random model in eval mode."""
    torch.manual_seed(seed)
    if family == "llama":
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=61, **{**shape, **changes})).eval()
    if family == "bert":
        shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
        return BertForSequenceClassification(BertConfig(vocab_size=61, num_labels=3, **shape)).eval()
    if family == "t5":
        shape = {"d_model": 48, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        return T5ForConditionalGeneration(T5Config(vocab_size=61, **shape)).eval()
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=48, n_layer=2, n_head=4, n_positions=32)).eval()
    return Transformer(Config(vocab_size=61, d_model=48, n_layers=2, n_heads=4)).eval()


IDS = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))


def logits(model):
    if isinstance(model, T5ForConditionalGeneration):
        return model(input_ids=IDS, labels=IDS).logits
    out = model(IDS)
    return getattr(out, "logits", out)


def loss(model):
    return logits(model).float().square().mean()


def linear(d_in=40, d_out=24, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(d_in, d_out, bias)


def train_adapters(model, seed=7):
    """Give the adapters weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)


# ---- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["nf4", "int4", "uniform4"])
def test_a_4_bit_layer_equals_a_linear_layer_with_the_restored_weight(method, bias):
    """Output, and the gradient of its input."""
    plain = linear(bias=bias)
    layer = Linear4bit(plain, QuantConfig(method=method, block_size=32))
    twin = models.linear_of(nf4.dequantize(layer.quantized), layer.bias)
    inputs = [torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in "ab"]
    outputs = [module(x) for module, x in zip((layer, twin), inputs, strict=True)]
    assert_close(*outputs, **CLOSE)
    for y in outputs:
        y.square().sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, **CLOSE)


@pytest.mark.parametrize("double", [True, False])
def test_a_4_bit_layer_equals_bitsandbytes_forward_and_backward(double):
    quantization.guard_bitsandbytes()
    plain = linear(64, 24)
    theirs = bitsandbytes.nn.Linear4bit(64, 24, quant_type="nf4", compress_statistics=double)
    theirs.load_state_dict(plain.state_dict())
    theirs, ours = theirs.to("cpu").train(), Linear4bit(plain, QuantConfig(double=double))
    inputs = [torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in "ab"]
    outputs = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
    assert_close(*outputs, **CLOSE)
    for y in outputs:
        y.square().sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, **CLOSE)


def test_an_8_bit_layer_is_llm_int8_and_its_gradient_that_of_the_restored_weight():
    plain, x = linear(), torch.randn(2, 3, 40, requires_grad=True)
    x.data[..., 4] *= 20
    layer = Linear8bit(plain, QuantConfig(method="int8", threshold=6.0))
    codes, largest, _ = int8.vectorwise(plain.weight.detach())
    expected = int8.mixed_matmul(x.detach().view(-1, 40), codes, largest, 6.0).view(2, 3, 24) + plain.bias
    y = layer(x)
    assert_close(y, expected, **CLOSE)
    assert_close(y, plain(x), rtol=0.05, atol=0.05)
    y.backward(torch.ones_like(y))
    assert_close(x.grad, torch.ones(2, 3, 24) @ layer.weight, **CLOSE)
    assert_close(layer.weight, plain.weight, rtol=0, atol=plain.weight.abs().max().item() / 250)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_give_half_precision_outputs_and_gradients(method, dtype):
    layer, x = (
        quantize_linear(linear().to(dtype), QuantConfig(method=method)),
        torch.randn(3, 40, dtype=dtype, requires_grad=True),
    )
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == layer.weight.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_autocast_works_forward_and_backward(method):
    layer, x = quantize_linear(linear(), QuantConfig(method=method)), torch.randn(3, 40, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert_close(x.grad, layer.weight.sum(0).expand(3, 40), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_moving_to_another_dtype_does_not_round_the_scales(method):
    layer = quantize_linear(linear(), QuantConfig(method=method))
    before = layer.restore(torch.float32)
    layer.half()
    assert torch.equal(layer.restore(torch.float32), before)
    assert layer.weight.dtype == layer.bias.dtype == torch.float16


@pytest.mark.parametrize("method", METHODS)
def test_nothing_in_a_quantised_layer_is_trained_and_its_weight_cannot_be_set(method):
    layer = quantize_linear(linear(), QuantConfig(method=method))
    assert not any(p.requires_grad for p in layer.parameters()) and "weight" not in layer.state_dict()
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros(24, 40)
    assert "in_features=40, out_features=24, bias=True" in repr(layer)


def test_a_config_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"method 'nf3' is unknown \(did you mean 'nf4'\?\)"):
        QuantConfig(method="nf3")
    with pytest.raises(ValueError, match="block_size is 60"):
        QuantConfig(block_size=60)
    with pytest.raises(ValueError, match="threshold is -1"):
        QuantConfig(threshold=-1)


# ---- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_quantised_except_its_head_and_still_computes_nearly_the_same(family):
    model = make(family)
    expected = logits(model)
    replaced = set(models.linears(model))
    assert models.quantize_model(model) is model
    assert {name for name, m in model.named_modules() if isinstance(m, Linear4bit)} == replaced
    assert not any(part in name.split(".") for name in replaced for part in ("lm_head", "classifier", "head"))
    assert not any(type(m) is Conv1D or m.training for m in model.modules())
    assert int8.errors(expected, logits(model)).relative < 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quantised_model_equals_its_dequantised_form(family):
    model = models.quantize_model(make(family))
    expected = logits(model)
    assert_close(logits(models.dequantize_model(model)), expected, **CLOSE)
    assert not any(models.is_quantized(m) for m in model.modules())


def test_a_layer_of_conv1d_is_quantised_as_out_by_in():
    model = make("gpt2")
    weight = model.transformer.h[0].mlp.c_fc.weight.detach()
    layer = models.quantize_model(model).transformer.h[0].mlp.c_fc
    assert (layer.in_features, layer.out_features) == (48, 192)
    assert torch.equal(layer.codes, nf4.quantize(weight.T.contiguous(), double=True).codes)


def test_a_head_tied_to_the_embedding_stays_tied():
    model = make("llama", tie_word_embeddings=True)
    models.quantize_model(model, skip=())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_an_untied_head_is_quantised_when_it_is_not_skipped():
    assert isinstance(models.quantize_model(make("llama"), skip=()).lm_head, Linear4bit)


def test_a_layer_with_two_names_is_replaced_under_both():
    shared = nn.Linear(32, 32)
    model = models.quantize_model(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}))
    assert isinstance(model["a"], Linear4bit) and model["b"][0] is model["a"]


def test_names_to_skip_are_kept_and_an_unknown_one_is_refused_with_the_nearest():
    model = models.quantize_model(make("llama"), skip=("lm_head", "down_proj"))
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    with pytest.raises(ValueError, match=r"skip='down_prj' is no part of any module's name \(did you mean 'down_proj'"):
        models.quantize_model(make("llama"), skip=("down_prj",))


def test_quantising_a_model_twice_is_refused():
    model = models.quantize_model(make("llama"))
    for again in (models.quantize_model, models.ternary_model):
        with pytest.raises(ValueError, match=r"quantised already: 14 layers, 'model\.layers\.0\.self_attn\.q_proj'"):
            again(model)


def test_quantising_under_an_adapter_is_refused():
    model = make("llama")
    lora.attach(model)
    with pytest.raises(ValueError, match="quantise the base first, then attach"):
        models.quantize_model(model)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="Embedding has no linear layer"):
        models.quantize_model(nn.Embedding(3, 4))
    with pytest.raises(ValueError, match="no quantised layer"):
        models.dequantize_model(make("llama"))
    with pytest.raises(ValueError, match="no BitLinear"):
        models.pack_model(make("llama"))


def test_a_bad_weight_is_refused_with_layer_and_place_and_nothing_is_changed():
    model = make("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = math.nan
    with pytest.raises(ValueError, match=r"layer 'model\.layers\.1\.mlp\.up_proj'.* at \[3, 5\]"):
        models.quantize_model(model)
    assert not any(models.is_quantized(m) for m in model.modules())


# ---- bytes and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*(QuantConfig(method=m) for m in METHODS), QuantConfig(block_size=32, double=False)], ids=str)
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_the_formula_gives_the_measured_bytes(family, config):
    model = make(family)
    expected = models.expected_bytes(model, config)
    assert models.memory_bytes(models.quantize_model(model, config)) == expected


def test_bytes_on_disk_are_those_of_the_saved_file(tmp_path):
    model = models.quantize_model(make("llama", tie_word_embeddings=True))
    models.save(model, tmp_path / "m.safetensors")
    assert models.disk_bytes(model) == (tmp_path / "m.safetensors").stat().st_size
    assert 0 < models.disk_bytes(model) - models.memory_bytes(model) < 10_000  # the header


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "t5", "gpt2"])
def test_a_saved_model_comes_back(tmp_path, family, method):
    model = models.quantize_model(make(family), QuantConfig(method=method, block_size=32))
    models.save(model, tmp_path / "m.safetensors")
    loaded = models.load(make(family, seed=99), tmp_path / "m.safetensors")
    assert torch.equal(logits(loaded), logits(model))


def test_a_packed_model_with_norms_comes_back_into_a_ternary_one(tmp_path):
    model = models.pack_model(models.ternary_model(make("llama"), norm=True))
    models.save(model, tmp_path / "m.safetensors")
    loaded = models.load(models.ternary_model(make("llama", seed=3), norm=True), tmp_path / "m.safetensors")
    assert torch.equal(logits(loaded), logits(model))


def test_a_file_of_another_model_is_refused_and_leaves_the_model_alone(tmp_path):
    models.save(models.quantize_model(make("llama")), tmp_path / "m.safetensors")
    said = {
        "bert": r"this BertForSequenceClassification has no 'model\.layers\.0",
        "wider": r"weight is \(61, 64\) in the file and is \(61, 128\) here",
        "deeper": r"it lacks model\.layers\.2",
    }
    others = {
        "bert": make("bert"),
        "wider": make("llama", hidden_size=128),
        "deeper": make("llama", num_hidden_layers=3),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"of another model: .*{said[name]}"):
            models.load(other, tmp_path / "m.safetensors")
        assert not any(models.is_quantized(m) for m in other.modules())


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    models.save(models.quantize_model(make("llama")), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"m\.safetensors is damaged"):
        models.load(make("llama"), path)


def test_the_table_has_fewer_bytes_with_fewer_bits_and_scores_each_format():
    model = make("llama")
    before = copy.deepcopy(model.state_dict())
    rows = bits.table(model, scores={"perplexity": lambda m: bits.perplexity(m, IDS)})
    assert [row["format"] for row in rows] == list(bits.FORMATS)
    assert all(row["formula"] == row["memory"] < row["disk"] for row in rows)
    sizes = {row["format"]: row["memory"] for row in rows}
    assert sizes["float32"] == 2 * sizes["bfloat16"] and sizes["bfloat16"] > sizes["int8"] > sizes["nf4"] > sizes["ternary"]
    assert rows[0]["perplexity"] == pytest.approx(bits.perplexity(model, IDS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_unknown_format_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"format 'bfloat' is unknown \(did you mean 'bfloat16'"):
        bits.convert(make("llama"), "bfloat")


@pytest.mark.parametrize("family", ["llama", "ours"])
def test_perplexity_is_e_to_transformers_loss_and_leaves_the_mode(family):
    model = make(family).train()
    out = logits(model)
    expected = F.cross_entropy(out[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).exp().item()
    assert bits.perplexity(model, IDS, batch=1) == pytest.approx(expected, rel=1e-4)
    assert model.training


def test_perplexity_does_not_count_padding():
    model, padded = make("llama"), F.pad(IDS, (0, 4))
    assert bits.perplexity(model, padded, pad_id=0) == pytest.approx(bits.perplexity(model, IDS), rel=1e-4)
    with pytest.raises(ValueError, match="no token to predict"):
        bits.perplexity(model, IDS[:, :1])


# ---- ternary models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "ours"])
def test_a_ternary_model_trains_and_packs_without_changing_its_outputs(family):
    model = models.ternary_model(make(family))
    before = loss(model)
    before.backward()
    layers = [m for m in model.modules() if isinstance(m, BitLinear)]
    assert layers and all(layer.weight.grad.abs().sum() > 0 for layer in layers)
    expected = logits(model)
    models.pack_model(model)
    assert sum(isinstance(m, PackedBitLinear) for m in model.modules()) == len(layers)
    assert_close(logits(model), expected, **CLOSE)


def test_a_ternary_model_keeps_its_float_weights_and_dtype():
    model = make("gpt2").to(torch.bfloat16)
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    layer = models.ternary_model(model, norm=True).transformer.h[0].mlp.c_fc
    assert torch.equal(layer.weight, weight.T) and layer.norm.weight.dtype == torch.bfloat16


def test_a_packed_layer_cannot_be_dequantised():
    with pytest.raises(ValueError, match="rounds its inputs too"):
        models.dequantize_model(models.quantize_model(make("llama"), QuantConfig(method="ternary")))


# ---- QLoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_qloras_gradients_equal_those_of_lora_on_a_dequantised_copy(family):
    model = make(family)
    twin = models.dequantize_model(models.quantize_model(copy.deepcopy(model)))
    qlora.attach(model, lora.Config(r=3, targets="all-linear"))
    lora.attach(twin, lora.Config(r=3, targets="all-linear"))
    train_adapters(model), train_adapters(twin)
    loss(model).backward(), loss(twin).backward()
    found, wanted = ({n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (model, twin))
    assert found.keys() == wanted.keys() and len(found) >= 16
    for name, grad in wanted.items():
        assert_close(found[name], grad, **CLOSE)


def bnb_model(seed=0):
    """A Llama with bitsandbytes' layers, and HF peft's LoRA on them, in training mode."""
    import peft as hf_peft

    model = make("llama", seed, intermediate_size=128)
    for name, layer in models.linears(model).items():
        theirs = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
        theirs.load_state_dict(layer.state_dict())
        model.set_submodule(name, theirs.to("cpu"))
    config = hf_peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return hf_peft.get_peft_model(model, config).train()


def test_qloras_gradients_equal_those_of_hf_peft_with_bitsandbytes():
    quantization.guard_bitsandbytes()
    theirs, ours = bnb_model(), make("llama", intermediate_size=128)
    handle = qlora.attach(ours, lora.Config(r=4, alpha=8, targets=("q_proj", "v_proj", "down_proj")))
    other = {n.replace("base_model.model.", "").replace(".default.weight", ""): p for n, p in theirs.named_parameters()}
    pairs = [(p, other[n.replace(".A", ".lora_A").replace(".B", ".lora_B")]) for n, p in handle.named_parameters()]
    for mine, their in pairs:
        mine.data.copy_(their.data)
    assert len(pairs) == 12
    assert_close(loss(ours), loss(theirs), **CLOSE)
    loss(ours).backward(), loss(theirs).backward()
    for mine, their in pairs:
        assert_close(mine.grad, their.grad, **CLOSE)


def test_qlora_trains_the_adapter_alone():
    model = make("llama")
    handle = qlora.attach(model)
    codes = model.model.layers[0].mlp.up_proj.base.codes.clone()
    optimiser = torch.optim.AdamW(handle.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        losses.append(model(IDS, labels=IDS).loss)
        losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < losses[0] - 0.2
    assert torch.equal(model.model.layers[0].mlp.up_proj.base.codes, codes)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in handle.parameters()}


def test_qlora_attaches_to_a_quantised_model_but_not_with_another_quantisation():
    model = models.quantize_model(make("llama"), QuantConfig(method="int8"))
    qlora.attach(model, name="first")
    qlora.attach(model, name="second")
    with pytest.raises(ValueError, match="leave quant_config out"):
        qlora.attach(model, quant_config=QuantConfig(), name="third")


def test_detaching_qlora_leaves_the_quantised_model():
    model = models.quantize_model(make("llama"))
    expected = logits(model)
    handle = qlora.attach(model)
    train_adapters(model)
    assert not torch.equal(logits(model), expected)
    handle.detach()
    assert torch.equal(logits(model), expected)


def test_training_bytes_are_the_model_gradients_and_moments():
    model = make("llama")
    full = qlora.training_bytes(model)
    assert full.total == 16 * sum(p.numel() for p in model.parameters()) + full.frozen
    handle = qlora.attach(model)
    trained = sum(p.numel() for p in handle.parameters())
    small = qlora.training_bytes(model)
    assert (small.trained, small.gradients, small.moments) == (4 * trained, 4 * trained, 8 * trained)
    assert small.frozen == models.memory_bytes(model) - 4 * trained


# ---- a gradient that is silently wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "tolerance"), [("nf4", 1e-5), ("int8", 0.05), ("ternary", 0.05)])
def test_the_gradient_check_passes_right_gradients(method, tolerance):
    model = make("llama")
    qlora.attach(model, quant_config=QuantConfig(method=method))
    train_adapters(model)
    report = trap.gradient_check(model, loss, tolerance=tolerance)
    assert report.ok and len(report.errors) == 28 and str(report).startswith("all gradients agree")


def test_the_gradient_check_finds_a_layer_that_lets_no_gradient_pass():
    model = make("llama")
    qlora.attach(model)
    train_adapters(model)
    broken = model.model.layers[1].mlp.down_proj.base
    broken.forward = lambda x: Linear4bit.forward(broken, x.detach())
    report = trap.gradient_check(model, loss)
    assert not report.ok and report.worst > 0.1
    assert "gradients are wrong" in str(report)


def test_the_gradient_check_leaves_model_and_gradients_alone():
    model = make("llama")
    qlora.attach(model)
    train_adapters(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trap.gradient_check(model, loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not model.training


def test_a_parameter_that_gets_no_gradient_counts_as_one_of_zero():
    model = make("llama")
    handle = qlora.attach(model, lora.Config(targets=("q_proj",)))
    train_adapters(model)
    broken, twin = model.model.layers[0].self_attn.q_proj, trap.dequantized_copy(model)
    broken.adapt = lambda x, y: y
    report = trap.gradient_check(model, loss, twin)
    assert [name for name, error in report.errors.items() if error == 1] == [
        f"model.layers.0.self_attn.q_proj.{name}" for name in ("A", "B")
    ]
    assert len(report.errors) == 4 == len(list(handle.parameters()))


def test_the_gradient_check_needs_something_that_is_trained():
    model = models.quantize_model(make("llama")).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter has requires_grad"):
        trap.gradient_check(model, loss)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_the_effective_weight_is_the_restored_one(method, bias):
    layer = quantize_linear(linear(bias=bias), QuantConfig(method=method)).eval()
    assert_close(trap.effective_weight(layer), layer.weight, **CLOSE)
    assert not layer.training


def test_asking_a_bitsandbytes_layer_for_its_weight_does_not_repack_it():
    layer = bnb_model().eval().base_model.model.model.layers[0].mlp.up_proj
    trap.effective_weight(layer)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False) and not layer.training


def test_the_guard_keeps_bitsandbytes_gradients_right_after_an_evaluation():
    """Where the processor has the instructions, the same evaluation without the guard makes them wrong: the check finds it."""

    def evaluated() -> nn.Module:
        model = bnb_model().eval()
        with torch.no_grad():
            loss(model)
        return model.train()

    unguarded = trap.gradient_check(evaluated(), loss)
    threatened = quantization.guard_bitsandbytes()
    assert trap.gradient_check(evaluated(), loss).ok
    assert unguarded.ok is not threatened
