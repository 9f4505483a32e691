"""Counting: every formula against the model itself, torch's FLOP counter, the real cache, and published sizes."""

import contextlib
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmcourse.show.tables import table_html
from llmcourse.transformer import Config, KVCache, Source, Transformer, generate
from llmcourse.transformer.counts import active_parameters, cache_bytes, flops, generation_flops, kaplan, parameters, table

SMALL = {"vocab_size": 61, "d_model": 36, "n_layers": 3, "n_heads": 6, "d_ff": 50, "max_positions": 64}
GPT2 = {"positions": "learned", "norm": "layer", "gated": False, "attention_bias": True, "mlp_bias": True, "activation": "gelu"}
BERT = GPT2 | {"causal": False, "pre_norm": False, "embed_norm": True, "n_token_types": 2}
T5 = {"positions": "t5", "n_encoder_layers": 2, "attention_scale": 1.0}
SHAPES = {
    "llama_multi_head": {},
    "llama_grouped_tied": {"n_kv_heads": 2, "tied": True},
    "llama_multi_query_biased_wide_heads": {"n_kv_heads": 1, "d_head": 10, "attention_bias": True, "mlp_bias": True},
    "gpt2": GPT2 | {"tied": True},
    "gpt2_untied_post_norm": GPT2 | {"pre_norm": False},
    "mistral": {"n_kv_heads": 3, "window": 4},
    "qwen3": {"n_kv_heads": 2, "d_head": 8, "qk_norm": True},
    "mixtral": {"n_kv_heads": 2, "n_experts": 5, "experts_per_token": 2},
    "mixtral_one_expert_each": {"n_experts": 3, "experts_per_token": 1},
    "bert_pooled": BERT | {"head": "pooled"},
    "bert_masked": BERT | {"head": "masked", "tied": True},
    "bert_masked_untied": BERT | {"head": "masked"},
    "bert_labels": BERT | {"head": "labels", "n_labels": 3},
    "bert_headless": BERT | {"head": "none"},
    "t5_plain_tied": T5 | {"gated": False, "activation": "relu", "tied": True, "scaled_head": True},
    "t5_gated_wide_heads": T5 | {"d_head": 5, "activation": "gelu_tanh"},
    "encoder_decoder_learned_grouped": {"n_encoder_layers": 1, "positions": "learned", "n_kv_heads": 3, "attention_bias": True},
    "encoder_decoder_qk_norm_experts": {"n_encoder_layers": 2, "qk_norm": True, "n_experts": 3, "norm": "layer"},
    "alibi": {"positions": "alibi"},
    "sinusoidal": {"positions": "sinusoidal"},
}
DECODERS = [name for name, shape in SHAPES.items() if shape.get("causal", True)]
LLAMA_7B = {"vocab_size": 32_000, "d_model": 4096, "n_layers": 32, "n_heads": 32, "d_ff": 11_008, "max_positions": 4096}
MISTRAL_7B = LLAMA_7B | {"n_kv_heads": 8, "d_ff": 14_336}
BASE = {"d_model": 768, "n_layers": 12, "n_heads": 12}
PUBLISHED = {
    "GPT-2": (124_439_808, GPT2 | BASE | {"vocab_size": 50_257, "max_positions": 1024, "tied": True}),
    "BERT base": (109_482_240, BERT | BASE | {"vocab_size": 30_522, "max_positions": 512, "head": "pooled"}),
    "T5 small": (
        60_506_624,
        T5 | {"vocab_size": 32_128, "d_model": 512, "n_layers": 6, "n_encoder_layers": 6, "n_heads": 8, "gated": False}
        | {"tied": True},
    ),
    "Llama 2 7B": (6_738_415_616, LLAMA_7B),
    "Mistral 7B": (7_241_732_096, MISTRAL_7B),
    "Mixtral 8x7B": (46_702_792_704, MISTRAL_7B | {"n_experts": 8}),
    "Qwen3 0.6B": (
        596_049_920,
        {"vocab_size": 151_936, "d_model": 1024, "n_layers": 28, "n_heads": 16, "n_kv_heads": 8, "d_head": 128, "d_ff": 3072,
         "qk_norm": True, "tied": True},
    ),
}  # fmt: skip


def config(name, **changes):
    return Config(**SMALL | SHAPES[name] | changes)


def counted(model, run):
    """What torch counts: on meta tensors, or with the plain attention kernel, for it counts nothing for the CPU's fused one."""
    plain = contextlib.nullcontext() if model.embed.weight.is_meta else sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, plain, torch.no_grad():
        run()
    return counter.get_total_flops()


def built(c):
    """On meta, where nothing is computed; a router must really choose."""
    torch.manual_seed(0)
    with torch.device("cpu" if c.n_experts else "meta"):
        return Transformer(c).eval()


def ids(model, n, batch=1):
    return torch.ones(batch, n, dtype=torch.long, device=model.embed.weight.device)


def source(model, n):
    """What an encoder makes of `n` tokens, unchecked, as everything on meta: checks read values."""
    return None if model.encoder is None else Source(model.encoder.unembed(model.encoder.hidden(ids(model, n))))


def logits(model, n, n_source=0, **options):
    return model.unembed(model.hidden(ids(model, n), source=source(model, n_source), **options))


# Parameters


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_equal_the_models(name):
    assert parameters(config(name)).total() == built(config(name)).n_parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_sizes(name):
    size, shape = PUBLISHED[name]
    assert parameters(Config(**shape)).total() == size


def test_active_parameters_leave_out_the_experts_a_token_does_not_meet():
    assert active_parameters(Config(**PUBLISHED["Mixtral 8x7B"][1])) == 12_879_925_248
    assert active_parameters(config("llama_grouped_tied")) == parameters(config("llama_grouped_tied")).total()
    model = built(config("mixtral"))
    for block in model.blocks:  # three of the five experts hear nothing of one token's gradient
        block.mlp.router.weight.data[:] = 0
        block.mlp.router.weight.data[:2] = 1
    model(torch.tensor([[7]])).sum().backward()
    idle = sum(int((block.mlp.gate_up.grad[i] == 0).all()) for block in model.blocks for i in range(5))
    assert idle == 3 * 3
    assert model.n_parameters - active_parameters(model.config) == idle * 3 * 36 * 50


# FLOPs


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("n", "n_source"), [(1, 3), (7, 5)])
def test_forward_flops_equal_torchs_counter(name, n, n_source):
    model = built(config(name))
    assert counted(model, lambda: logits(model, n, n_source)) == flops(model.config, n, n_source=n_source).total()


@pytest.mark.parametrize("name", DECODERS)
def test_flops_after_a_cache_equal_torchs_counter(name):
    model = built(config(name))
    cache, read = KVCache(3), source(model, 6)
    model.hidden(ids(model, 5), cache=cache, source=read)
    expected = flops(model.config, 4, past=5, n_source=6, n_answers=1)
    step = counted(model, lambda: model.unembed(model.hidden(ids(model, 4), cache=cache, source=read)[:, -1:]))
    assert step == expected.total()


@pytest.mark.parametrize("name", ["llama_grouped_tied", "gpt2", "mixtral", "bert_masked", "t5_gated_wide_heads"])
def test_each_operations_flops_equal_what_torch_counts_in_its_modules(name):
    model, n = built(config(name)), 9
    read = source(model, n)
    with FlopCounterMode(display=False, depth=5) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.unembed(model.hidden(ids(model, n), source=read))
    parts = {
        "attention: QKV": r"\.attention\.[qkv]", "attention: project": r"\.attention\.o", "feed-forward": r"\.mlp",
        "de-embed": r"Transform|Linear",
    }  # fmt: skip
    seen = Counter()
    for module, counts in counter.get_flop_counts().items():
        for operation, pattern in parts.items():
            if re.search(f"({pattern})$", module):
                seen[operation] += sum(counts.values())
    expected = flops(model.config, n, n_source=n)
    assert seen == {operation: expected[operation] for operation in parts}


@pytest.mark.parametrize("name", ["llama_grouped_tied", "gpt2", "mistral", "bert_masked", "t5_plain_tied", "mixtral"])
def test_a_training_step_counts_three_forward_passes(name):
    model, n = built(config(name)).train(), 8
    plain = contextlib.nullcontext() if model.embed.weight.is_meta else sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, plain:
        logits(model, n, n).sum().backward()
    assert counter.get_total_flops() == 3 * flops(model.config, n, n_source=n).total()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cached", [True, False])
def test_generation_flops_equal_torchs_counter(name, cached):
    model = built(config(name))

    def write():
        cache, read = KVCache(3) if cached else None, source(model, 6)
        for end in range(4, 4 + 3):
            seen = cache.length if cached else 0
            model.unembed(model.hidden(ids(model, end - seen), cache=cache, source=read)[:, -1:])

    assert counted(model, write) == generation_flops(model.config, 4, 3, n_source=6, cached=cached)


def test_generation_flops_are_those_of_generate():
    torch.manual_seed(0)
    model = Transformer(config("llama_grouped_tied")).eval()
    assert counted(model, lambda: generate(model, ids(model, 7), 9)) == generation_flops(model.config, 7, 9)


def test_generation_flops_grow_with_the_tokens_and_without_a_cache_with_their_square():
    c = Config(**LLAMA_7B)
    once, twice = (generation_flops(c, 1, n) for n in (200, 400))
    assert 1.9 < twice / once < 2.2
    once, twice = (generation_flops(c, 1, n, cached=False) for n in (200, 400))
    assert 3.8 < twice / once < 4.4
    assert generation_flops(c, 9, 0) == 0


# Kaplan's table


def test_kaplans_rows_add_up_to_his_rule():
    """N = 12 · n_layer · d_model² and C = 2 N + 2 · n_layer · n_ctx · d_model for d_ff = 4 d_model, as printed in §2.1."""
    c, n_ctx = Config(**GPT2 | BASE | {"vocab_size": 50_257, "max_positions": 1024}), 1024
    rows = {name: row for name, row in kaplan(c, n_ctx).items() if "embed" not in name}
    n = 12 * 12 * 768**2
    assert sum(parameters for parameters, _ in rows.values()) == n
    assert sum(work for _, work in rows.values()) == 2 * n + 2 * 12 * n_ctx * 768


def test_for_kaplans_own_decoder_both_columns_differ_only_where_the_text_says():
    """Biases and norms have weights, look-ups cost nothing, masked scores are computed."""
    shape = {"positions": "learned", "norm": "layer", "gated": False, "tied": True}
    c, n = Config(**BASE | shape | {"vocab_size": 50_257, "max_positions": 1024}), 1024
    rows = {row["operation"]: row for row in table(c, n)}
    for name in ("attention: QKV", "attention: project", "feed-forward", "de-embed", "embed"):
        assert rows[name]["parameters"] == rows[name]["Kaplan's parameters"]
    for name in ("attention: QKV", "attention: project", "feed-forward", "de-embed"):
        assert rows[name]["FLOPs/token"] == rows[name]["Kaplan's FLOPs/token"]
    assert rows["attention: mask"]["FLOPs/token"] == 2 * rows["attention: mask"]["Kaplan's FLOPs/token"]
    assert rows["N, C"]["Kaplan's parameters"] == 12 * 12 * 768**2
    assert rows["N, C"]["Kaplan's FLOPs/token"] == 2 * 12 * 12 * 768**2 + 2 * 12 * n * 768
    assert rows["embed"]["FLOPs/token"] == 0 and rows["norms"]["parameters"] == 25 * 2 * 768


@pytest.mark.parametrize("name", SHAPES)
def test_the_tables_totals_are_the_models(name):
    c, n = config(name), 8
    rows = {row.pop("operation"): row for row in table(c, n)}
    total, training = rows["total"], rows["training"]
    assert total["parameters"] == parameters(c).total()
    assert total["FLOPs/token"] == pytest.approx(flops(c, n, n_source=n).total() / n, abs=len(rows))
    assert training["FLOPs/token"] == 3 * total["FLOPs/token"]
    assert training["Kaplan's FLOPs/token"] == 6 * rows["N, C"]["Kaplan's parameters"]
    assert ("cross-attention" in rows) == ("encoder" in rows) == bool(c.n_encoder_layers)


def test_the_table_can_be_shown():
    _, text = table_html(table(config("gpt2"), 16))
    assert "attention: mask" in text and "Kaplan's FLOPs/token" in text


# The KV cache's bytes


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_equal_the_real_cache(name, dtype):
    model = built(config(name)).to(dtype)
    cache, batch = KVCache(3), 2
    read = None if model.encoder is None else Source(model.encoder.hidden(ids(model, 6, batch)))
    model.hidden(ids(model, 9, batch), cache=cache, source=read)
    n_source = 0 if read is None else 6
    assert cache.n_bytes == cache_bytes(model.config, 9, n_source=n_source, batch=batch, bytes_per_number=dtype.itemsize)


def test_fewer_key_heads_and_a_window_shrink_the_cache_in_proportion():
    c = Config(**LLAMA_7B)
    full = cache_bytes(c, 4096)
    assert full == 2 * 2**30  # 2 GiB in 16 bits, for one text
    assert full == 4 * cache_bytes(replace(c, n_kv_heads=8), 4096) == 32 * cache_bytes(replace(c, n_kv_heads=1), 4096)
    windowed = replace(c, window=1024)
    assert cache_bytes(windowed, 4096) == cache_bytes(windowed, 1024) == cache_bytes(c, 1024) == full // 4
