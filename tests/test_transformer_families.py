"""The families beside Llama and GPT-2, each against transformers on random shapes, and the way back to transformers."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llmcourse.transformer import (
    Config,
    KVCache,
    MoE,
    Transformer,
    attention,
    generate,
    load_balancing_loss,
    masks,
    router_logits,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
DECODERS = {"mistral": MistralForCausalLM, "qwen3": Qwen3ForCausalLM, "mixtral": MixtralForCausalLM}
BERTS = {"bert_masked": BertForMaskedLM, "bert_bare": BertModel, "bert_labels": BertForSequenceClassification}
T5 = ["t5"]
CASES = [(name, seed) for name in [*DECODERS, *BERTS, *T5] for seed in range(3)]
ONE_EACH = [(name, 1) for name in [*DECODERS, *BERTS, *T5]]
CAUSAL = [(name, seed) for name, seed in CASES if name not in BERTS]


def shape(name, seed):
    """A random odd shape: heads that do not fill d_model, any bias, tied or not."""
    rng = random.Random(f"{name}{seed}")
    kv, group, yes_no = rng.choice([1, 2, 3]), rng.choice([1, 2, 3]), lambda: rng.random() < 0.5
    common = {"vocab_size": rng.randrange(41, 80), "num_hidden_layers": rng.choice([2, 3]), "num_attention_heads": kv * group}
    common |= {"hidden_size": rng.randrange(20, 50), "intermediate_size": rng.randrange(11, 60), "tie_word_embeddings": yes_no()}
    common |= {"max_position_embeddings": rng.randrange(40, 90)}
    eps, theta = 10 ** -rng.randrange(3, 7), rng.choice([10.0, 777.0, 1e6])
    if name in DECODERS:
        common |= {"num_key_value_heads": kv, "head_dim": 2 * rng.randrange(2, 9), "rms_norm_eps": eps}
        common |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, "eos_token_id": None}
    if name == "mistral":
        return MistralConfig(**common, sliding_window=rng.choice([1, 3, 5, 30, None]))
    if name == "qwen3":
        windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0} if seed else {}
        return Qwen3Config(**common, attention_bias=seed != 1, **windows)
    if name == "mixtral":
        experts, window = rng.randrange(3, 7), 4 if seed else None
        options = {"num_local_experts": experts, "num_experts_per_tok": rng.randrange(1, experts), "sliding_window": window}
        return MixtralConfig(**common, **options, experts_implementation="eager")  # its default needs aligned sizes
    if name in BERTS:
        common["hidden_size"] = kv * group * rng.randrange(3, 9)
        types, act = rng.randrange(1, 5), rng.choice(["gelu", "relu", "gelu_new", "silu"])
        return BertConfig(**common, type_vocab_size=types, hidden_act=act, layer_norm_eps=eps, num_labels=rng.randrange(2, 6))
    sizes = {"d_model": common["hidden_size"], "d_ff": common["intermediate_size"], "d_kv": rng.randrange(3, 9)}
    sizes |= {"num_heads": kv * group, "num_layers": rng.choice([1, 3]), "num_decoder_layers": 2, "layer_norm_epsilon": eps}
    buckets = {"relative_attention_num_buckets": rng.choice([4, 8, 32]), "relative_attention_max_distance": rng.choice([17, 40])}
    forward = rng.choice(["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu"])
    return T5Config(vocab_size=common["vocab_size"], **sizes, **buckets, feed_forward_proj=forward, tie_word_embeddings=yes_no())


def hf_model(name, seed=1, attn="sdpa", **changes):
    """A random transformers model whose every weight, norms and biases too, is far from its initial value."""
    torch.manual_seed(seed)
    config = shape(name, seed)
    for key, value in changes.items():
        setattr(config, key, value)
    config._attn_implementation = attn
    model = {**DECODERS, **BERTS, "t5": T5ForConditionalGeneration}[name](config)
    if name == "t5" and not config.scale_decoder_outputs:  # as T5 v1.1 is published: a head of its own
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model.eval()


def random_ids(batch=3, seq=13, vocab=41):
    return torch.randint(3, vocab, (batch, seq), generator=torch.Generator().manual_seed(seq))


def padded(side, batch=3, seq=13):
    mask = torch.ones(batch, seq, dtype=torch.long)
    for row in range(batch):
        mask[row, : 3 * row] = 0
    return {"left": mask, "right": mask.flip(1), None: None}[side]


def both(theirs, ours, ids, mask=None, **options):
    """Logits of transformers and of ours at the places that count."""
    if ours.encoder is not None:
        target = random_ids(seq=9).to(ids.device)
        expected = theirs(ids, attention_mask=mask, decoder_input_ids=target).logits
        return expected, ours(target, source=ours.encode(ids, mask))
    out = theirs(ids, attention_mask=mask, **options)
    expected = out.pooler_output if ours.config.head == "pooled" else out.logits
    got = ours(ids, mask, **({"token_types": options["token_type_ids"]} if options else {}))
    counts = slice(None) if mask is None else mask.bool() if got.ndim == 3 else mask[:, 0].bool()
    return expected[counts], got[counts]


# Loading


@pytest.mark.parametrize(("name", "seed"), CASES)
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_logits_equal_transformers_with_and_without_padding(name, seed, side):
    theirs = hf_model(name, seed)
    expected, got = both(theirs, Transformer.from_hf(theirs), random_ids(), padded(side))
    assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_logits_of_long_texts_equal_transformers(name, seed):
    """As long as the positions go; for T5 beyond the distance at which its buckets end."""
    theirs = hf_model(name, seed)
    ours = Transformer.from_hf(theirs)
    ids = random_ids(2, min(ours.config.max_positions, 60))
    if ours.encoder is None:
        assert_close(*reversed(both(theirs, ours, ids)), **CLOSE)
    else:
        expected = theirs(ids, decoder_input_ids=ids.flip(1)).logits
        assert_close(ours(ids.flip(1), source=ours.encode(ids)), expected, **CLOSE)


@pytest.mark.parametrize(("name", "seed"), CAUSAL)
@pytest.mark.parametrize("chunks", [[1] * 13, [4, 1, 8], [5, 7, 1]])
@pytest.mark.parametrize("side", [None, "left"])
def test_cached_chunks_give_the_same_logits_as_one_pass(name, seed, chunks, side):
    theirs, ids, mask = hf_model(name, seed), random_ids(), padded(side)
    ours = Transformer.from_hf(theirs)
    cache, keep = KVCache(ours.config.n_layers, capacity=3), slice(None) if mask is None else mask.bool()
    options, inputs = {}, {"input_ids": ids, "attention_mask": mask}
    if ours.encoder is not None:
        read, pad = random_ids(seq=10), padded(side, seq=10)
        options["source"] = ours.encode(read, pad)
        inputs = {"input_ids": read, "attention_mask": pad, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    parts = []
    with torch.no_grad():
        for chunk in ids.split(chunks, dim=1):
            seen = None if mask is None else mask[:, : cache.length + chunk.shape[1]]
            parts.append(ours(chunk, seen, cache=cache, **options))
        expected = theirs(**inputs).logits
    assert_close(torch.cat(parts, 1)[keep], expected[keep], **CLOSE)


def test_keys_and_values_of_the_source_are_computed_once():
    ours = Transformer.from_hf(hf_model("t5"))
    cache, source, ids = KVCache(ours.config.n_layers), ours.encode(random_ids()), random_ids(seq=4)
    with torch.no_grad():
        expected = ours(ids, source=source)
        first = ours(ids[:, :2], cache=cache, source=source)
        ours.blocks[0].cross.k.weight.zero_()
        rest = ours(ids[:, 2:], cache=cache, source=source)
    assert_close(torch.cat((first, rest), 1), expected, **CLOSE)
    c = ours.config
    assert cache.n_bytes == 2 * c.n_layers * 3 * c.n_heads * c.d_head * (4 + 13) * 4  # k and v of tokens and source, float32


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_parameter_count_equals_transformers(name, seed):
    theirs = hf_model(name, seed)
    # An untied BERT keeps a second bias that nothing reads.
    unread = theirs.config.vocab_size if name == "bert_masked" and not theirs.config.tie_word_embeddings else 0
    assert Transformer.from_hf(theirs).n_parameters == theirs.num_parameters() - unread


@pytest.mark.parametrize(("name", "seed"), ONE_EACH)
def test_gradients_equal_transformers(name, seed):
    theirs = hf_model(name, seed)
    ours = Transformer.from_hf(theirs)
    for logits in both(theirs, ours, random_ids()):
        F.cross_entropy(logits.flatten(0, -2), torch.arange(logits.flatten(0, -2).shape[0]) % logits.shape[-1]).backward()
    assert_close(ours.embed.weight.grad, theirs.get_input_embeddings().weight.grad, **CLOSE)
    if name == "t5":
        table = theirs.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        assert table.grad.abs().max() > 1e-4
        assert_close(ours.position_bias.weight.grad, table.grad, **CLOSE)
    if name == "mixtral":
        assert_close(ours.blocks[0].mlp.router.weight.grad, theirs.model.layers[0].mlp.gate.weight.grad, **CLOSE)


@pytest.mark.parametrize(("name", "seed"), [*ONE_EACH, ("t5", 0), ("t5", 2)])
def test_a_saved_directory_loads_as_the_model_in_memory_does(name, seed, tmp_path):
    theirs = hf_model(name, seed)
    theirs.save_pretrained(tmp_path)
    memory, disk = Transformer.from_hf(theirs), Transformer.from_hf(tmp_path)
    assert disk.config == memory.config
    for (key, weight), other in zip(memory.state_dict().items(), disk.state_dict().values(), strict=True):
        assert torch.equal(weight, other), key


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "bert_masked", "t5"])
def test_bfloat16_is_kept_and_stays_near_transformers(name):
    theirs = hf_model(name).bfloat16()
    expected, got = both(theirs, Transformer.from_hf(theirs), random_ids())
    assert got.dtype == torch.bfloat16
    assert_close(got.float().softmax(-1), expected.float().softmax(-1), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_directory_is_read_in_one_dtype(dtype, tmp_path):
    """transformers reads T5's `wo` as float32 from a float16 directory."""
    hf_model("t5").to(dtype).save_pretrained(tmp_path)
    ours = Transformer.from_hf(tmp_path)
    assert {weight.dtype for weight in ours.parameters()} == {dtype}
    assert ours(random_ids(), source=ours.encode(random_ids())).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "seed"), ONE_EACH)
def test_cuda_gives_the_same_logits(name, seed):
    theirs = hf_model(name, seed).cuda()
    expected, got = both(theirs, Transformer.from_hf(theirs), random_ids().cuda(), padded("left").cuda())
    assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_dropout_in_training_draws_what_transformers_draws():
    theirs = hf_model("bert_masked", attention_probs_dropout_prob=0.2)
    ours = Transformer.from_hf(theirs).train()
    logits = []
    for model in (theirs.train(), ours):
        torch.manual_seed(1)
        out = model(random_ids())
        logits.append(out if model is ours else out.logits)
    assert_close(*logits, **CLOSE)


def test_t5_drops_at_as_many_places_as_transformers_does(monkeypatch):
    """The kernels draw in another order, so the draws are counted, not compared."""
    theirs = hf_model("t5", dropout_rate=0.3).train()
    ours, counts, drop, ids = Transformer.from_hf(theirs).train(), [], F.dropout, random_ids()
    monkeypatch.setattr(F, "dropout", lambda x, p=0.5, *args, **options: (counts.append(p), drop(x, p, *args, **options))[1])
    theirs(ids, decoder_input_ids=ids)
    expected = counts[:]
    counts.clear()
    ours(ids, source=ours.encode(ids))
    assert counts == expected and set(counts) == {0.3} and len(counts) > 10
    assert ours.blocks[0].attention.dropout == 0.3


# BERT


def test_token_types_equal_transformers_and_default_to_0():
    theirs = hf_model("bert_masked", type_vocab_size=3)
    ours, ids = Transformer.from_hf(theirs), random_ids()
    types = ids % 3
    expected, got = both(theirs, ours, ids, padded("right"), token_type_ids=types)
    assert_close(got, expected, **CLOSE)
    assert torch.equal(ours(ids), ours(ids, token_types=torch.zeros_like(ids)))
    assert not torch.allclose(ours(ids), ours(ids, token_types=types))


def test_an_encoder_sees_the_future_and_keeps_no_cache():
    ours, ids = Transformer.from_hf(hf_model("bert_masked")), random_ids()
    changed = ids.clone()
    changed[:, -1] = 1
    assert not torch.allclose(ours(ids)[:, 0], ours(changed)[:, 0])
    with pytest.raises(ValueError, match="no use for a cache"):
        ours(ids, cache=KVCache(ours.config.n_layers))


def test_the_bare_encoders_stream_is_transformers_last_hidden_state():
    theirs = hf_model("bert_bare")
    assert_close(Transformer.from_hf(theirs).hidden(random_ids()), theirs(random_ids()).last_hidden_state, **CLOSE)


# Traces


@pytest.mark.parametrize("name", ["bert_masked", "mixtral", "qwen3"])
def test_trace_equals_transformers_attentions_and_hidden_states(name):
    theirs, mask = hf_model(name, attn="eager"), padded("right")
    expected = theirs(random_ids(), attention_mask=mask, output_attentions=True, output_hidden_states=True)
    trace, counts = Transformer.from_hf(theirs).trace(random_ids(), mask), mask.bool()
    assert_close(trace.logits[counts], expected.logits[counts], **CLOSE)
    maps, expected_maps = (x.movedim(3, 2)[:, counts] for x in (trace.attention, torch.stack(expected.attentions)))
    assert_close(maps, expected_maps, **CLOSE)
    assert_close(trace.residual[:-1, counts], torch.stack(expected.hidden_states[:-1])[:, counts], **CLOSE)


def test_trace_of_t5_holds_the_decoders_and_the_cross_maps_and_the_encoder_has_its_own():
    theirs, mask, target = hf_model("t5", attn="eager"), padded("right"), random_ids(seq=7)
    options = {"output_attentions": True, "output_hidden_states": True}
    expected = theirs(random_ids(), attention_mask=mask, decoder_input_ids=target, **options)
    ours = Transformer.from_hf(theirs)
    trace, encoder = ours.trace(target, source=ours.encode(random_ids(), mask)), ours.encoder.trace(random_ids(), mask)
    assert_close(trace.attention, torch.stack(expected.decoder_attentions), **CLOSE)
    assert_close(trace.cross, torch.stack(expected.cross_attentions), **CLOSE)
    assert_close(trace.residual[:-1], torch.stack(expected.decoder_hidden_states[:-1]), **CLOSE)
    assert_close(encoder.attention, torch.stack(expected.encoder_attentions), **CLOSE)
    assert_close(encoder.logits, expected.encoder_last_hidden_state, **CLOSE)
    assert encoder.cross is None


# Mixtures of experts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", [None, "left"])
def test_router_logits_and_load_balancing_loss_equal_transformers(seed, side):
    theirs, ids, mask = hf_model("mixtral", seed), random_ids(), padded(side)
    ours, c = Transformer.from_hf(theirs), theirs.config
    with router_logits(ours) as logits:
        ours(ids, mask)
    expected = theirs(ids, attention_mask=mask, output_router_logits=True).router_logits
    for got, want in zip(logits, expected, strict=True):
        assert_close(
            got if mask is None else got[mask.flatten().bool()], want if mask is None else want[mask.flatten().bool()], **CLOSE
        )
    loss = load_balancing_loss_func(tuple(logits), c.num_local_experts, c.num_experts_per_tok, mask)
    assert_close(load_balancing_loss(logits, c.num_experts_per_tok, mask), loss, **CLOSE)


def test_the_balance_loss_is_k_for_even_routing_and_n_experts_for_one_busy_expert():
    even, one = torch.eye(4) * 50, torch.tensor([[50.0, 0, 0, 0]]).expand(4, 4)
    assert_close(load_balancing_loss([even], 1), torch.tensor(1.0))
    assert_close(load_balancing_loss([one], 1), torch.tensor(4.0))
    assert_close(load_balancing_loss([torch.zeros(4, 6)], 3), torch.tensor(3.0))


def test_routers_are_heard_only_inside_the_with_block():
    ours = Transformer.from_hf(hf_model("mixtral"))
    with router_logits(ours) as logits:
        ours(random_ids())
    ours(random_ids())
    assert len(logits) == ours.config.n_layers and logits[0].requires_grad


def test_experts_that_no_token_chose_are_not_computed():
    torch.manual_seed(0)
    layer, x = MoE(6, 9, n_experts=5, top_k=2), torch.randn(1, 1, 6)
    expected, chosen = layer(x), layer.router(x).topk(2).indices.flatten()
    others = [i for i in range(5) if i not in chosen.tolist()]
    with torch.no_grad():
        layer.gate_up[others] = torch.nan
    assert torch.equal(layer(x), expected)


def test_a_mixture_is_the_weighted_sum_of_its_experts():
    torch.manual_seed(0)
    layer, x = MoE(6, 9, n_experts=4, top_k=3), torch.randn(2, 5, 6)
    p, expected = layer.router(x).softmax(-1), torch.zeros(2, 5, 6)
    for b, t in [(b, t) for b in range(2) for t in range(5)]:
        top = p[b, t].topk(3)
        for w, i in zip(top.values / top.values.sum(), top.indices, strict=True):
            gate, up = (layer.gate_up[i] @ x[b, t]).chunk(2)
            expected[b, t] += w * (layer.down[i] @ (F.silu(gate) * up))
    assert_close(layer(x), expected, **CLOSE)


# Positions in the model


def fresh(**changes):
    options = {"vocab_size": 41, "d_model": 24, "n_layers": 2, "n_heads": 4, "d_ff": 40}
    torch.manual_seed(0)
    model = Transformer(Config(**{**options, **changes})).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("positions", ["rope", "sinusoidal", "alibi", "t5"])
@pytest.mark.parametrize("chunks", [[1] * 13, [6, 7]])
def test_every_scheme_of_positions_tells_order_and_works_behind_a_cache(positions, chunks):
    model, ids, cache = fresh(positions=positions), random_ids(), KVCache(2)
    with torch.no_grad():
        parts = [model(chunk, cache=cache) for chunk in ids.split(chunks, 1)]
        assert_close(torch.cat(parts, 1), model(ids), **CLOSE)
        swapped = ids[:, [1, 0, *range(2, 13)]]
        assert not torch.allclose(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-4)


def test_without_positions_the_order_of_the_past_is_lost():
    model, ids = fresh(positions="none", n_layers=1), random_ids()
    assert_close(model(ids)[:, -1], model(ids[:, [1, 0, *range(2, 13)]])[:, -1], **CLOSE)


@pytest.mark.parametrize("positions", ["alibi", "t5", "sinusoidal"])
def test_no_position_sees_the_future_or_padding(positions):
    model, ids, mask = fresh(positions=positions), random_ids(), padded("left")
    changed = torch.where(mask.bool(), ids, 1)
    changed[:, 9:] = 2
    assert_close(model(ids, mask)[:, :9][mask[:, :9].bool()], model(changed, mask)[:, :9][mask[:, :9].bool()], **CLOSE)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_all_masked_rows_give_zeros_and_finite_gradients(kind):
    q, k, v = (torch.randn(2, 2, 3, 4, requires_grad=True) for _ in "qkv")
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[0] = False
    mask = mask if kind == "bool" else masks.join(torch.zeros(1, 2, 3, 3), mask)
    out, weights = attention(q, k, v, mask)
    out.sum().backward()
    assert out[0].eq(0).all() and weights[0].eq(0).all() and out[1].ne(0).all() and q.grad.isfinite().all()


@pytest.mark.parametrize("name", ["bert_masked", "t5"])
def test_a_text_that_is_all_padding_stays_finite_and_disturbs_no_other(name):
    ours, ids, mask = Transformer.from_hf(hf_model(name)), random_ids(), padded("right")
    mask[1] = 0
    model = ours if ours.encoder is None else ours.encoder
    assert model(ids, mask).isfinite().all()
    assert model.trace(ids, mask).attention[:, 1].eq(0).all()
    assert_close(model(ids, mask)[:1], model(ids[:1], mask[:1]), **CLOSE)


# The way back


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_to_hf_gives_the_same_class_and_logits_and_the_same_model_again(name, seed):
    theirs = hf_model(name, seed)
    ours = Transformer.from_hf(theirs)
    back = ours.to_hf(**({"experts_implementation": "eager"} if name == "mixtral" else {}))
    assert type(back) is type(theirs) or ours.config.window is None  # without its window Mistral is a Llama
    assert_close(*both(back, ours, random_ids(), padded("left")), **CLOSE)
    again = Transformer.from_hf(back)
    assert again.config == ours.config
    for (key, weight), other in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(weight, other), key


GPT2_PARTS = {"norm": "layer", "gated": False, "attention_bias": True, "mlp_bias": True, "positions": "learned"}
BERT_PARTS = {**GPT2_PARTS, "max_positions": 30, "causal": False, "pre_norm": False, "embed_norm": True, "n_token_types": 2}
FRESH = {
    "LlamaForCausalLM": {"max_positions": 30, "n_kv_heads": 2, "tied": True, "activation": "gelu_tanh"},
    "MistralForCausalLM": {"max_positions": 30, "d_model": 22, "d_head": 6},  # transformers' Llama wants heads that fill d_model
    "GPT2LMHeadModel": {**GPT2_PARTS, "max_positions": 30, "activation": "relu", "attention_scale": 1.0, "dropout": 0.1},
    "Qwen3ForCausalLM": {"max_positions": 30, "qk_norm": True, "window": 3},
    "MixtralForCausalLM": {"max_positions": 30, "n_experts": 8, "d_model": 32, "d_ff": 32, "experts_per_token": 3},
    "BertForMaskedLM": {**BERT_PARTS, "head": "masked", "activation": "gelu", "tied": True},
    "BertModel": {**BERT_PARTS, "head": "pooled"},
    "BertForSequenceClassification": {**BERT_PARTS, "head": "labels", "n_labels": 7, "head_dropout": 0.3},
    "T5ForConditionalGeneration": {"positions": "t5", "attention_scale": 1.0, "n_encoder_layers": 1, "gated": False},
}


@pytest.mark.parametrize("name", FRESH)
def test_a_model_of_our_own_is_published_as_the_class_that_fits(name, tmp_path):
    ours = fresh(**FRESH[name])
    theirs = ours.to_hf(eos_token_id=5)
    assert type(theirs).__name__ == name and theirs.config.eos_token_id == 5 and not theirs.training
    assert_close(*both(theirs, ours, random_ids()), **CLOSE)
    theirs.save_pretrained(tmp_path)
    saved = Transformer.from_hf(tmp_path)
    assert saved.config == ours.config
    assert_close(*(model.state_dict() for model in (saved, ours)), rtol=0, atol=0)


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "factor": 3.0}, "llama3"])
def test_scaled_rope_survives_the_way_back(scaling):
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {**(llama3 | {"original_max_position_embeddings": 16} if scaling == "llama3" else scaling), "rope_theta": 500.0}
    sizes = {"vocab_size": 41, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    ours = Transformer.from_hf(LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope)))
    assert ours.to_hf().config.rope_parameters == rope


def test_copies_are_independent_and_keep_dtype_and_mode():
    ours = fresh(max_positions=30).bfloat16().train()
    theirs = ours.to_hf()
    assert theirs.training and theirs.dtype == torch.bfloat16
    before = theirs.model.embed_tokens.weight.clone()
    ours.embed.weight.data.zero_()
    assert torch.equal(theirs.model.embed_tokens.weight, before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"positions": "alibi"}, "positions='alibi'"),
        ({"norm": "layer"}, "norm='layer'"),
        ({"n_experts": 4, "d_ff": 32, "attention_bias": True}, "LlamaForCausalLM, does not have n_experts=4"),
        ({"mlp_dropout": 0.5}, "mlp_dropout=0.5"),
    ],
)
def test_a_combination_without_a_transformers_class_is_refused_with_what_is_in_the_way(change, named):
    with pytest.raises(ValueError, match="no transformers class") as error:
        fresh(**{"max_positions": 30, **change}).to_hf()
    assert named in str(error.value) and "d_model" not in str(error.value)


# What is refused


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1"),
        ("mixtral", {"hidden_act": "mish"}, '"mish"'),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ("bert_masked", {"is_decoder": True}, "is_decoder=True"),
        ("bert_masked", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("t5", {"made_up": 3}, "made_up=3"),
    ],
)
def test_a_config_feature_that_is_not_implemented_is_refused_by_name(name, change, named):
    theirs = hf_model(name)
    for key, value in change.items():
        setattr(theirs.config, key, value)
    with pytest.raises(ValueError) as error:
        Transformer.from_hf(theirs)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"positions": "clock"}, "positions='clock' is unknown; choose one of rope, learned"),
        ({"head": "two"}, "head='two' is unknown"),
        ({"positions": "learned"}, "needs max_positions"),
        ({"causal": False, "window": 3}, "window=3 needs a decoder"),
        ({"n_encoder_layers": 2, "window": 3}, "window=3 needs a decoder without an encoder"),
        ({"causal": False, "n_encoder_layers": 2}, "adds an encoder to a decoder"),
        ({"head": "labels", "tied": True}, "no matrix to tie"),
        ({"n_experts": 4, "mlp_bias": True}, "experts are gated"),
        ({"n_experts": 2, "experts_per_token": 3}, "at most n_experts=2"),
    ],
)
def test_an_impossible_config_is_refused(change, problem):
    with pytest.raises(ValueError, match=problem):
        fresh(**change)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"token_types": torch.full((3, 13), 2)}, "token_types hold 2, outside the token types 0–1"),
        ({"token_types": torch.zeros(3, 4, dtype=torch.long)}, r"token_types \(3, 4\) must be shaped as ids \(3, 13\)"),
        ({"positions": torch.full((3, 13), -1)}, "positions hold -1, outside the positions 0–29"),
        ({"attention_mask": torch.ones(3, 12, dtype=torch.long)}, r"attention_mask \(3, 12\) must be .* \(3, 13\)"),
    ],
)
def test_inputs_an_encoder_cannot_read_are_refused(options, problem):
    model = fresh(**BERT_PARTS, head="masked")
    for call in (model, model.trace):
        with pytest.raises(ValueError, match=problem):
            call(random_ids(), **options)


def test_a_source_is_asked_for_and_refused_by_name():
    t5, plain, ids = fresh(positions="t5", n_encoder_layers=1), fresh(), random_ids()
    with pytest.raises(ValueError, match=r"the decoder needs source=model\.encode\(ids\)"):
        t5(ids)
    with pytest.raises(ValueError, match="no encoder here reads a source"):
        plain(ids, source=t5.encode(ids))
    with pytest.raises(ValueError, match=r"source \(3, 13, 24\) must have the batch of ids \(2, 13\)"):
        t5(ids[:2], source=t5.encode(ids))
    with pytest.raises(ValueError, match="this model has no token types"):
        plain(ids, token_types=torch.zeros_like(ids))


def test_an_encoder_decoder_starts_near_the_uniform_distribution_with_shared_embeddings():
    torch.manual_seed(0)
    model = Transformer(Config(vocab_size=41, d_model=24, n_layers=2, n_heads=4, n_encoder_layers=2, positions="t5", tied=True))
    assert model.encoder.embed.weight is model.embed.weight is model.head.weight
    assert model(random_ids(), source=model.encode(random_ids())).softmax(-1).sub(1 / 41).abs().max() < 0.02
    assert replace(model.config, tied=False).n_encoder_layers == len(model.encoder.blocks) == 2


# The cache, and tokens


def test_selected_rows_of_a_cache_go_on_as_those_rows_would():
    model, ids, rows = fresh(n_encoder_layers=1, positions="t5"), random_ids(), torch.tensor([2, 0, 0, 1])
    cache, source = KVCache(2), model.encode(random_ids(seq=5))
    with torch.no_grad():
        model(ids[:, :8], cache=cache, source=source)
        cache.select(rows)
        chosen = type(source)(source.states[rows], source.mask)
        got, expected = model(ids[rows, 8:], cache=cache, source=chosen), model(ids[rows], source=chosen)[:, 8:]
    assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for name in DECODERS for seed in range(2)])
def test_greedy_tokens_equal_transformers(name, seed):
    theirs, ids, mask = hf_model(name, seed), random_ids(), padded("left")
    options = {"attention_mask": mask, "max_new_tokens": 20}
    expected = theirs.generate(ids, **options, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generate(Transformer.from_hf(theirs), ids, **options), expected)
