"""LoRA, DoRA and IA³ equal HF peft's on copied weights: outputs, gradients, merged weights, files."""

import json

import pytest
import torch
from torch.testing import assert_close

from llmcourse.peft import dora, ia3, interface, lora
from llmcourse.transformer import Transformer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FAMILIES = ("llama", "bert", "t5", "gpt2")


@pytest.fixture(scope="module")
def hf_peft():
    return pytest.importorskip("peft")


def make(family: str, seed: int = 0, labels: int = 0):
    """A tiny random transformers model of odd sizes, in eval mode; with `labels`, a classifier."""
    import transformers as hf

    torch.manual_seed(seed)
    common = {"vocab_size": 53, "num_hidden_layers": 2, "pad_token_id": 0}
    shapes = {
        "llama": ("Llama", {"hidden_size": 36, "intermediate_size": 50, "num_attention_heads": 6, "num_key_value_heads": 2}),
        "bert": ("Bert", {"hidden_size": 28, "intermediate_size": 44, "num_attention_heads": 4, "max_position_embeddings": 40}),
        "t5": ("T5", {"d_model": 30, "d_ff": 42, "d_kv": 7, "num_heads": 3, "num_layers": 2, "decoder_start_token_id": 0}),
        "gpt2": ("GPT2", {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 40}),
    }
    name, shape = shapes[family]
    common = {"vocab_size": 53, "pad_token_id": 0} if family in ("t5", "gpt2") else common
    plain = {"Llama": "ForCausalLM", "Bert": "ForMaskedLM", "T5": "ForConditionalGeneration", "GPT2": "LMHeadModel"}
    head = "ForSequenceClassification" if labels else plain[name]
    config = getattr(hf, f"{name}Config")(**common, **shape, **({"num_labels": labels} if labels else {}))
    return randomise(getattr(hf, f"{name}{head}")(config).eval(), seed)


def randomise(model, seed: int = 0):
    """Random values everywhere: biases and norms too, which start at zero and one."""
    torch.manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter) + (parameter.ndim == 1)
    return model


def logits(model, family: str, batch: int = 3, seed: int = 5):
    """The model's logits for a random batch."""
    torch.manual_seed(seed)
    ids = torch.randint(1, 53, (batch, 7))
    options = {"decoder_input_ids": torch.randint(1, 53, (batch, 5))} if family == "t5" else {}
    return model(input_ids=ids, **options).logits


def scatter(tensors, seed: int = 9):
    """Random values for an adapter, so that nothing about it is zero or one."""
    torch.manual_seed(seed)
    return {
        key: 0.3 * torch.randn_like(t) + (0.5 if "magnitude" in key or "ia3" in key else 0) for key, t in sorted(tensors.items())
    }


def pair(hf_peft, family, method, ours_config, their_config, **options):
    """Ours and HF peft's adapter with the same random weights, on the same random model."""
    ours, theirs = make(family, **options), make(family, **options)
    handle, wrapped = method.attach(ours, ours_config), hf_peft.get_peft_model(theirs, their_config)
    values = scatter({key: t.detach() for key, t in handle.all_tensors().items()})
    handle.fill(values)
    assert not hf_peft.set_peft_model_state_dict(wrapped, values).unexpected_keys
    return ours, handle, wrapped.eval()


def their_key(name: str) -> str:
    """HF peft's name of a parameter in its model, as its files have it."""
    name = name.replace("modules_to_save.default.", "").replace(".default", "")
    return name.removesuffix(".weight") if "magnitude_vector" in name else name


def backward(model, family):
    """Backpropagate a loss in which every logit has a weight of its own."""
    out = logits(model, family)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()


def assert_same_gradients(ours, handle, wrapped, family):
    """Each trained parameter on our side has HF peft's gradient, and both sides train the same ones."""
    backward(ours, family)
    backward(wrapped, family)
    theirs = {their_key(name): p.grad for name, p in wrapped.named_parameters() if p.requires_grad and p.grad is not None}
    # a view (IA3's gain) has no gradient of its own, but its base has
    mine = {key: (t.grad if t.is_leaf else t._base.grad.view(t.shape)) for key, t in handle.all_tensors().items()}
    mine = {key: grad for key, grad in mine.items() if grad is not None}
    assert theirs.keys() <= mine.keys() and len({id(g) for g in mine.values()}) >= len(theirs)
    for key, gradient in theirs.items():
        scale = gradient.abs().max().clamp_min(1)
        assert_close(mine[key] / scale, gradient / scale, **CLOSE)


EVERYWHERE = {"targets": "all-linear"}, {"target_modules": "all-linear"}
CROSS = r".*decoder.*EncDecAttention\.(k|o)"
LORA_CASES = [
    ("llama", {}, {}),
    ("llama", {"r": 3, "alpha": 5, "rslora": True} | EVERYWHERE[0],
     {"r": 3, "lora_alpha": 5, "use_rslora": True} | EVERYWHERE[1]),
    ("bert", {"r": 5, "alpha": 2, "bias": "lora_only"}, {"r": 5, "lora_alpha": 2, "bias": "lora_only"}),
    ("bert", {"r": 1, "bias": "all", "targets": ("key", "output.dense")},
     {"r": 1, "bias": "all", "target_modules": ["key", "output.dense"]}),
    ("t5", {"r": 4}, {"r": 4}),
    ("t5", {"r": 2, "targets": CROSS}, {"r": 2, "target_modules": CROSS}),
    ("gpt2", {"r": 7, "alpha": 3}, {"r": 7, "lora_alpha": 3, "fan_in_fan_out": True}),
    ("gpt2", {"r": 2, "targets": ("c_attn", "mlp.c_proj", "wte")},
     {"r": 2, "target_modules": ["c_attn", "mlp.c_proj", "wte"], "fan_in_fan_out": True}),
]  # fmt: skip
IDS = [f"{case[0]}-{i}" for i, case in enumerate(LORA_CASES)]
DORA_CASES = [case for case in LORA_CASES if "wte" not in case[1].get("targets", ()) and "bias" not in case[1]]


@pytest.mark.parametrize(("family", "mine", "theirs"), LORA_CASES, ids=IDS)
def test_lora_equals_hf_peft_forward_and_backward(hf_peft, family, mine, theirs):
    """Every family, odd ranks, rsLoRA, biases, embeddings, transposed weights: same logits, same gradients."""
    ours, handle, wrapped = pair(hf_peft, family, lora, lora.Config(**mine), hf_peft.LoraConfig(**theirs))
    assert_close(logits(ours, family), logits(wrapped, family), **CLOSE)
    assert (logits(ours, family) - logits(make(family), family)).abs().max() > 0.1
    assert_same_gradients(ours, handle, wrapped, family)


@pytest.mark.parametrize(("family", "mine", "theirs"), DORA_CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_dora_equals_hf_peft_forward_and_backward(hf_peft, family, mine, theirs):
    """Magnitude and direction, with the norm outside the gradient."""
    ours, handle, wrapped = pair(hf_peft, family, dora, dora.Config(**mine), hf_peft.LoraConfig(**theirs, use_dora=True))
    assert_close(logits(ours, family), logits(wrapped, family), **CLOSE)
    assert_same_gradients(ours, handle, wrapped, family)


IA3_CASES = [(family, {}, {}) for family in FAMILIES] + [
    ("bert", {"targets": ("query", "intermediate.dense"), "feedforward": ("intermediate.dense",)},
     {"target_modules": ["query", "intermediate.dense"], "feedforward_modules": ["intermediate.dense"]}),
    ("gpt2", {"targets": "all-linear", "feedforward": ()}, {"target_modules": "all-linear", "feedforward_modules": []}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "mine", "theirs"), IA3_CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_ia3_equals_hf_peft_forward_and_backward(hf_peft, family, mine, theirs):
    """Default targets of each family, and others, on inputs and outputs."""
    config = hf_peft.IA3Config(**theirs, fan_in_fan_out=family == "gpt2")
    ours, handle, wrapped = pair(hf_peft, family, ia3, ia3.Config(**mine), config)
    assert_close(logits(ours, family), logits(wrapped, family), **CLOSE)
    assert_same_gradients(ours, handle, wrapped, family)


MERGES = [
    *(("lora", *LORA_CASES[i]) for i in (1, 2, 5, 6)),
    *(("dora", *DORA_CASES[i]) for i in (0, 4)),
    *(("ia3", *IA3_CASES[i]) for i in (0, 1, 3)),
]
METHODS = {"lora": lora, "dora": dora, "ia3": ia3}


@pytest.mark.parametrize(("method", "family", "mine", "theirs"), MERGES)
def test_merged_weights_equal_hf_pefts(hf_peft, method, family, mine, theirs):
    """What `merge` writes into the base is what HF peft's `merge_and_unload` leaves there, and the outputs stay."""
    module, extra = {"lora": (lora, {}), "dora": (dora, {"use_dora": True}), "ia3": (ia3, {"fan_in_fan_out": family == "gpt2"})}[
        method
    ]
    kind = hf_peft.IA3Config if method == "ia3" else hf_peft.LoraConfig
    ours, handle, wrapped = pair(hf_peft, family, module, module.Config(**mine), kind(**{**theirs, **extra}))
    before = logits(ours, family)
    handle.merge()
    assert_close(logits(ours, family), before, **CLOSE)
    merged = dict(wrapped.merge_and_unload().named_parameters())
    for name, parameter in interface.base_parameters(ours):
        if name in merged:
            assert_close(parameter, merged[name], **CLOSE)
    assert {p.data_ptr() for _, p in interface.base_parameters(ours)}.isdisjoint({p.data_ptr() for p in merged.values()})


# --- files -----------------------------------------------------------------------------------------------------------

FILES = [
    ("lora", "llama", {"r": 3, "alpha": 5, "rslora": True, "modules_to_save": ("score",)}),
    ("lora", "bert", {"r": 2, "bias": "all", "modules_to_save": ("classifier",)}),
    ("lora", "t5", {"r": 2, "targets": r".*decoder.*\.(q|wo)"}),
    ("lora", "gpt2", {"r": 2, "targets": ("c_attn", "mlp.c_fc")}),
    ("dora", "bert", {"r": 3, "targets": "all-linear"}),
    ("dora", "gpt2", {"r": 3}),
    ("ia3", "llama", {}),
    ("ia3", "gpt2", {}),
    ("ia3", "t5", {"targets": ("q", "wi"), "feedforward": ("wi",)}),
    ("ia3", "bert", {"targets": "all-linear", "feedforward": ("output.dense",)}),
]


@pytest.mark.parametrize(("method", "family", "options"), FILES)
def test_hf_peft_loads_our_file(hf_peft, tmp_path, method, family, options):
    """PeftModel.from_pretrained on our two files gives our outputs, and needs nothing more."""
    module, labels = METHODS[method], 3 if "modules_to_save" in options else 0
    ours = make(family, labels=labels)
    handle = module.attach(ours, module.Config(**options))
    handle.fill(scatter(handle.all_tensors()))
    handle.save(tmp_path)
    theirs = hf_peft.PeftModel.from_pretrained(make(family, labels=labels), tmp_path)
    assert_close(logits(ours, family), logits(theirs, family), **CLOSE)


@pytest.mark.parametrize(("method", "family", "options"), FILES)
def test_we_load_hf_pefts_file(hf_peft, tmp_path, method, family, options):
    """`interface.load` on what `save_pretrained` wrote: method, settings, heads and weights all come from the files."""
    heads = list(options.get("modules_to_save", ())) or None
    labels, module = 3 if heads else 0, METHODS[method]
    fields = module.attach(make(family, labels=labels), module.Config(**options)).file_config() | {"modules_to_save": heads}
    kind = hf_peft.IA3Config if method == "ia3" else hf_peft.LoraConfig
    config = kind(**fields, task_type="SEQ_CLS" if heads else None)
    wrapped = hf_peft.get_peft_model(make(family, labels=labels), config).eval()
    randomise_adapter(wrapped)
    wrapped.save_pretrained(tmp_path)
    ours = make(family, labels=labels)
    loaded = interface.load(ours, tmp_path, name="theirs")
    assert (loaded.method, loaded.name) == (method, "theirs")
    assert_close(logits(ours, family), logits(wrapped, family), **CLOSE)


def randomise_adapter(wrapped):
    """Random values for all that HF peft trains."""
    torch.manual_seed(4)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn_like(parameter) + (0.5 if "magnitude" in name or "ia3" in name else 0)


# --- several at once -------------------------------------------------------------------------------------------------


def two_adapters(hf_peft, family="llama", labels=0):
    """Adapters "a" and "b" of different rank and targets, the same on both sides; each with its head if there are labels."""
    heads = {"modules_to_save": ("score",)} if labels else {}
    configs = {"a": {"r": 3, "alpha": 4}, "b": {"r": 2, "alpha": 6, "rslora": True, "targets": ("q_proj", "down_proj")}}
    ours, theirs = make(family, labels=labels), make(family, labels=labels)
    for i, (name, config) in enumerate(configs.items()):
        handle = lora.attach(ours, lora.Config(**config, **heads), name)
        values = scatter(handle.all_tensors(), seed=i)
        handle.fill(values)
        fields = handle.file_config() | ({"modules_to_save": ["score"]} if labels else {})
        if i == 0:
            wrapped = hf_peft.get_peft_model(theirs, hf_peft.LoraConfig(**fields), adapter_name=name)
        else:
            wrapped.add_adapter(name, hf_peft.LoraConfig(**fields))
        hf_peft.set_peft_model_state_dict(wrapped, values, adapter_name=name)
    return ours, wrapped.eval()


@pytest.mark.parametrize("labels", [0, 3])
def test_a_mixed_batch_equals_hf_pefts_adapter_names(hf_peft, labels):
    """Each row goes through its own adapter, and its own head, or through none."""
    ours, wrapped = two_adapters(hf_peft, labels=labels)
    names = ["b", None, "a", "a", "b"]
    with interface.choose_rows(ours, names):
        mixed = logits(ours, "llama", batch=5)
    torch.manual_seed(5)
    ids = torch.randint(1, 53, (5, 7))
    assert_close(mixed, wrapped(input_ids=ids, adapter_names=[name or "__base__" for name in names]).logits, **CLOSE)


def test_two_active_adapters_add_up_as_in_hf_peft(hf_peft):
    """Both corrections are added, whatever the order they were attached in."""
    ours, wrapped = two_adapters(hf_peft)
    wrapped.base_model.set_adapter(["a", "b"])
    assert_close(logits(ours, "llama"), logits(wrapped, "llama"), **CLOSE)


# --- the equations, and our own model ----------------------------------------------------------------------------------


def test_lora_starts_as_the_model_itself():
    """B is zero: before training, not one bit of any layer's output changes."""
    for family in FAMILIES:
        for part in lora.attach(make(family), lora.Config(r=2, targets="all-linear")).parts.values():
            x = torch.randn(3, 4, lora.features(part.base)[0])
            assert torch.equal(part(x), part.base(x))


def test_lora_starts_with_the_papers_distributions():
    """A is Kaiming-uniform: within ±√(3 / (3 d_in)), and it fills that range."""
    part = next(iter(lora.attach(make("llama"), lora.Config(r=30, targets=("q_proj",))).parts.values()))
    bound = part.A.shape[1] ** -0.5
    assert 0.97 * bound < part.A.abs().max() <= bound and not part.B.any()


def test_dropout_touches_only_the_low_rank_path_and_only_in_training():
    """With dropout p, the correction is that of an input whose survivors are 1 / (1 - p) as large."""
    layer = torch.nn.Linear(9, 5)
    part = lora.LoRALinear(layer, interface.Switch(), lora.Config(r=2, alpha=3, dropout=0.4))
    torch.nn.init.normal_(part.B)
    x = torch.randn(4, 9)
    assert_close(part.eval()(x), layer(x) + 1.5 * x @ part.A.T @ part.B.T)
    torch.manual_seed(0)
    out = part.train()(x)
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(x, 0.4)
    assert_close(out, layer(x) + 1.5 * dropped @ part.A.T @ part.B.T)


def test_adapters_of_a_half_precision_model_are_float32():
    """Small updates vanish in bfloat16; the output keeps the model's dtype and equals HF peft's."""
    layer = torch.nn.Linear(9, 5).bfloat16()
    part = lora.LoRALinear(layer, interface.Switch(), lora.Config(r=2))
    torch.nn.init.normal_(part.B)
    x = torch.randn(3, 9).bfloat16()
    assert part.A.dtype == torch.float32 and part(x).dtype == torch.bfloat16
    assert_close(part(x), (layer(x) + 4 * (x.float() @ part.A.T @ part.B.T)).bfloat16())


def test_methods_work_on_our_transformer_as_on_its_hugging_face_twin():
    """The same adapter values on the same layers, under our names and theirs, give the same logits and gradients."""
    twin = make("llama")
    ours = Transformer.from_hf(twin)
    ids = torch.randint(1, 53, (2, 6))
    for method in (lora, dora, ia3):
        mine, theirs = method.attach(ours), method.attach(twin)
        assert len(mine.parts) == len(theirs.parts)
        for a, b in zip(paired(mine), paired(theirs), strict=True):
            torch.manual_seed(a.numel())
            a.data = b.data = torch.rand_like(a)
        assert_close(ours(ids), twin(input_ids=ids).logits, **CLOSE)
        mine.detach()
        theirs.detach()


def paired(handle):
    """The parameters in an order that does not depend on the model's names: by layer, then projection, then part."""
    ours = {"k_proj": "k", "v_proj": "v", "q_proj": "q", "down_proj": "down"}
    telling = {"k", "v", "q", "down", "A", "B", "m", "gain"}

    def key(name):
        words = [ours.get(word, word) for word in name.split(".")]
        return [word for word in words if word.isdigit() or word in telling]

    return [p for _, p in sorted(handle.named_parameters(), key=lambda pair: key(pair[0]))]


def test_the_readable_versions_equal_the_layers():
    """lora_forward and lora_merge are what LoRALinear computes in its own way."""
    layer = torch.nn.Linear(9, 5, bias=False)
    part = lora.LoRALinear(layer, interface.Switch(), lora.Config(r=2, alpha=3))
    torch.nn.init.normal_(part.B)
    x = torch.randn(4, 9)
    assert_close(lora.lora_forward(x, layer.weight, part.A, part.B, 3.0), part(x))
    assert_close(lora.lora_merge(layer.weight, part.A, part.B, 1.5), part.merged()["weight"])


def test_dora_is_a_unit_direction_times_a_magnitude():
    """Every row of the merged weight is as long as the magnitude says, in plain and in transposed layers."""
    for family in ("llama", "gpt2"):
        model = make(family)
        handle = dora.attach(model, dora.Config(r=2))
        handle.fill(scatter(handle.all_tensors()))
        for part in handle.parts.values():
            lengths = part.merged()["weight"].norm(dim=0 if family == "gpt2" else 1)
            assert_close(lengths, part.m.abs(), **CLOSE)


def test_counts_of_lora_follow_the_formula():
    """r (d_in + d_out) for each layer, transposed or not."""
    for family in FAMILIES:
        handle = lora.attach(make(family), lora.Config(r=3, targets="all-linear"))
        expected = sum(lora.n_parameters(*lora.features(interface.bottom(part)), 3) for part in handle.parts.values())
        assert sum(p.numel() for p in handle.parameters()) == expected


# --- what is refused ---------------------------------------------------------------------------------------------------


def test_rank_larger_than_the_matrix_is_refused_with_the_allowed_range():
    with pytest.raises(ValueError, match=r"rank 13 exceeds min\(d_in, d_out\) = 12 for layer .*v_proj\"; choose 1–12"):
        lora.attach(make("llama"), lora.Config(r=13))


def test_an_unknown_setting_of_hf_peft_is_refused_by_name():
    fields = {"r": 2, "lora_alpha": 2, "target_modules": ["q"], "rank_pattern": {"q": 3}}
    with pytest.raises(ValueError, match="rank_pattern"):
        lora.config_from_file(fields)


@pytest.mark.parametrize("setting", [{"r": 0}, {"dropout": 1.0}, {"bias": "some"}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        lora.Config(**setting)


def test_a_target_that_is_no_linear_layer_is_refused_with_one_inside_it():
    with pytest.raises(ValueError, match=r'self_attn" is a LlamaAttention.*as q_proj'):
        lora.attach(make("llama"), lora.Config(targets=("self_attn",)))


def test_the_file_has_hf_pefts_fields(tmp_path):
    """The config of a file says what HF peft asks for."""
    lora.attach(make("gpt2"), lora.Config(r=2)).save(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA" and fields["task_type"] == "CAUSAL_LM" and fields["fan_in_fan_out"] is True
