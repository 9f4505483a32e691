"""The transformer: each part against its equation, the whole against transformers on copied weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llmcourse.transformer import (
    MLP,
    Attention,
    Config,
    KVCache,
    LayerNorm,
    RMSNorm,
    RopeScaling,
    Transformer,
    attention,
    fast_attention,
    generate,
    masks,
    probabilities,
    softmax,
)
from llmcourse.transformer.attention import _check as check_attention
from llmcourse.transformer.positions import frequencies, rope_angles, rotate

CLOSE = {"rtol": 1e-4, "atol": 1e-5}

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMAS = {
    "multi_head": {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 50},
    "grouped_biased_wide_heads": {
        "hidden_size": 42, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "intermediate_size": 31,
        "attention_bias": True, "mlp_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
    },
    "multi_query_tied_gelu": {
        "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "intermediate_size": 64, "hidden_act": "gelu",
        "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
    },
    "linear_rope": {
        "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 33,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0},
    },
    "llama3_rope": {
        "hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 47,
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16},
    },
}  # fmt: skip
GPT2S = {
    "gpt2": {"n_embd": 36, "n_head": 3},
    "gpt2_untied_narrow": {"n_embd": 40, "n_head": 5, "n_inner": 17, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    "gpt2_unscaled_relu": {"n_embd": 30, "n_head": 2, "scale_attn_weights": False, "activation_function": "relu"},
}


def hf_model(name, **changes):
    """A small random transformers model whose every weight, norms and biases too, is far from its initial value."""
    torch.manual_seed(sum(map(ord, name)))
    if name in LLAMAS:
        shape = {"vocab_size": 61, "num_hidden_layers": 3, "max_position_embeddings": 64, **LLAMAS[name]}
        model = LlamaForCausalLM(LlamaConfig(**{**shape, "eos_token_id": 2, **changes}))
    else:
        shape = {"vocab_size": 61, "n_layer": 3, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2, **GPT2S[name]}
        model = GPT2LMHeadModel(GPT2Config(**{**shape, **changes}))
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    return model.eval()


def random_ids(batch=3, seq=11, vocab=61):
    return torch.randint(3, vocab, (batch, seq), generator=torch.Generator().manual_seed(seq))


def padded(side, batch=3, seq=11):
    """0/1 masks with 0, 2, 4 … padded places at one side."""
    mask = torch.ones(batch, seq, dtype=torch.long)
    for row in range(batch):
        mask[row, : 2 * row] = 0
    return mask if side == "left" else mask.flip(1)


EVERY = [*LLAMAS, *GPT2S]
TWO = ["grouped_biased_wide_heads", "gpt2"]


def tiny(**changes):
    shape = {"vocab_size": 23, "d_model": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 40, "max_positions": 32}
    torch.manual_seed(0)
    return Transformer(Config(**{**shape, **changes})).eval()


# Softmax and attention


def test_softmax_equals_torch_even_for_huge_scores():
    scores = torch.tensor([[1e4, 1e4 - 1, -1e4], [-3e38, -3e38, -3e38], [0.0, 1.0, 2.0]])
    assert_close(softmax(scores), scores.softmax(-1))


def test_softmax_of_a_fully_masked_row_is_zero_with_finite_gradient():
    scores = torch.randn(2, 4, requires_grad=True)
    weights = softmax(scores, torch.tensor([[True, True, False, True], [False] * 4]))
    weights.square().sum().backward()
    assert weights[1].eq(0).all() and weights[0, 2] == 0 and scores.grad.isfinite().all()
    assert_close(weights[0].sum(), torch.tensor(1.0))


def test_softmax_gradient_equals_torch():
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, (scores,))


@pytest.mark.parametrize("n_kv", [6, 3, 2, 1])
@pytest.mark.parametrize("n_queries", [7, 3, 1])
@pytest.mark.parametrize("kind", ["none", "causal", "window", "padded", "causal_padded", "per_head"])
def test_fast_attention_equals_the_readable_one(n_kv, n_queries, kind):
    torch.manual_seed(n_queries)
    q, k, v = torch.randn(2, 6, n_queries, 8), torch.randn(2, n_kv, 7, 8), torch.randn(2, n_kv, 7, 8)
    pad = masks.padding(torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7]))
    mask = {
        "window": masks.sliding_window(n_queries, 7, 2)[None, None],
        "padded": pad,
        "causal_padded": pad,
        "per_head": torch.rand(2, 6, n_queries, 7) < 0.5,
    }.get(kind)
    slow, weights = attention(q, k, v, mask, causal="causal" in kind, scale=0.3)
    assert_close(fast_attention(q, k, v, mask, causal="causal" in kind, scale=0.3), slow, rtol=1e-4, atol=1e-6)
    assert weights.shape == (2, 6, n_queries, 7)


def test_both_attentions_give_zeros_where_every_key_is_masked():
    q, k, v = (torch.randn(2, 2, 3, 4) for _ in "qkv")
    mask = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    mask[1] = True
    for output in (attention(q, k, v, mask)[0], fast_attention(q, k, v, mask)):
        assert output[0].eq(0).all() and output[1].ne(0).all()


def test_attention_is_the_equation():
    q, k, v = (torch.randn(1, 1, 3, 4) for _ in "qkv")
    expected = torch.softmax(q[0, 0] @ k[0, 0].T / math.sqrt(4), -1) @ v[0, 0]
    assert_close(attention(q, k, v)[0][0, 0], expected)


def test_grouped_query_attention_is_multi_head_with_repeated_keys_and_values():
    torch.manual_seed(0)
    grouped, full = Attention(24, 6, n_kv_heads=2), Attention(24, 6)
    weights = grouped.state_dict()
    for name in ("k.weight", "v.weight"):
        weights[name] = weights[name].view(2, 1, 4, 24).expand(2, 3, 4, 24).reshape(24, 24)
    full.load_state_dict(weights)
    x = torch.randn(2, 5, 24)
    assert_close(grouped(x)[0], full(x)[0], **CLOSE)


def test_attention_module_equals_torch_multihead_attention():
    torch.manual_seed(0)
    theirs, ours = torch.nn.MultiheadAttention(24, 4, batch_first=True), Attention(24, 4, bias=True, causal=False)
    parts = zip("qkv", theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True)
    weights = {f"{name}.{kind}": x for name, w, b in parts for kind, x in (("weight", w), ("bias", b))}
    ours.load_state_dict({**weights, "o.weight": theirs.out_proj.weight, "o.bias": theirs.out_proj.bias})
    x = torch.randn(2, 5, 24)
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    for got, want in zip(ours(x, return_weights=True), (expected, weights), strict=True):
        assert_close(got, want, **CLOSE)


@pytest.mark.parametrize(
    ("q", "k", "v", "mask", "named"),
    [
        ((2, 4, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8), None, ["q", "(2, 4, 5, 8)", "(2, 3, 5, 8)"]),
        ((2, 4, 5, 8), (2, 4, 5, 6), (2, 4, 5, 6), None, ["q", "(2, 4, 5, 6)"]),
        ((2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 5, 8), None, ["v", "(2, 4, 6, 8)", "(2, 4, 5, 8)"]),
        ((2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8), (2, 1, 5, 5), ["mask", "(2, 1, 5, 5)", "(2, 4, 5, 6)"]),
        ((2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8), (5, 6), ["mask", "(5, 6)", "(2, 4, 5, 6)"]),
    ],
)
def test_wrong_attention_shapes_are_refused_by_name_with_both_shapes(q, k, v, mask, named):
    with pytest.raises(ValueError) as error:
        check_attention(*(None if shape is None else torch.zeros(shape) for shape in (q, k, v, mask)))
    assert all(part in str(error.value) for part in named)


# Masks


def picture(mask):
    return ["".join("x" if cell else "." for cell in row) for row in mask.reshape(-1, mask.shape[-1])]


def test_masks_are_the_pictures_in_the_docstring():
    assert picture(masks.causal(4, 4)) == ["x...", "xx..", "xxx.", "xxxx"]
    assert picture(masks.sliding_window(4, 4, 2)) == ["x...", "xx..", ".xx.", "..xx"]
    assert picture(masks.prefix_lm(4, 4, torch.tensor([2]))) == ["xx..", "xx..", "xxx.", "xxxx"]
    assert picture(masks.padding(torch.tensor([[0, 0, 1, 1]]))) == ["..xx"]


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("past", [0, 1, 4])
def test_a_chunks_mask_is_the_last_rows_of_the_whole_mask(window, past):
    pad, n = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6]), 6
    whole = masks.causal(n, n) if window is None else masks.sliding_window(n, n, window)
    expected = (whole & masks.padding(pad))[:, :, past:]
    got = masks.complete(n - past, n, pad, window=window)
    assert torch.equal(got.expand_as(expected), expected)


def test_plain_causal_and_single_steps_need_no_mask():
    assert masks.complete(5, 5) is None and masks.complete(1, 9) is None and masks.complete(1, 9, window=9) is None
    assert masks.complete(5, 5, torch.ones(2, 5, dtype=torch.long)) is None and masks.complete(5, 5, encoder=True) is None
    assert picture(masks.complete(1, 4, window=2)) == ["..xx"]
    assert picture(masks.complete(2, 4)) == ["xxx.", "xxxx"]


# Positions, norms, MLP


def test_rotation_keeps_lengths_and_makes_dot_products_depend_on_distance_only():
    theta = frequencies(8, 100.0)
    q, k = torch.randn(1, 1, 1, 8).expand(1, 1, 6, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 6, 8)
    scores = []
    for start in (0, 17):
        angles = rope_angles(torch.arange(start, start + 6), theta)
        turned = rotate(q, angles), rotate(k, angles)
        assert_close(turned[0].norm(dim=-1), q.norm(dim=-1))
        scores.append(turned[0] @ turned[1].transpose(-1, -2))
    assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    assert_close(scores[0][0, 0].diagonal(2), scores[0][0, 0, 0, 2].expand(4), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[0][0, 0, 0, 1], scores[0][0, 0, 0, 2])


def test_rotation_turns_each_half_split_pair_by_its_angle():
    x, angle = torch.randn(1, 1, 1, 2), 3 * frequencies(2)[0]
    a, b = x.flatten()
    expected = torch.stack((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))
    assert_close(rotate(x, rope_angles(torch.tensor([3]), frequencies(2))).flatten(), expected)


def test_llama3_scaling_keeps_fast_frequencies_and_slows_slow_ones():
    plain, scaled = frequencies(64), frequencies(64, scaling=RopeScaling(8.0, 1.0, 4.0, 256))
    assert_close(scaled[:4], plain[:4])
    assert_close(scaled[-4:], plain[-4:] / 8)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_norms_equal_torch(shape):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape) + 1
    layer, rms = LayerNorm(5, 1e-3), RMSNorm(5, 1e-3)
    for weight in (layer.weight, layer.bias, rms.weight):
        torch.nn.init.normal_(weight)
    assert_close(layer(x), F.layer_norm(x, (5,), layer.weight, layer.bias, 1e-3))
    assert_close(rms(x), F.rms_norm(x, (5,), rms.weight, 1e-3))


def test_norms_of_bfloat16_are_computed_in_float32():
    x = (1000 + torch.randn(4, 64)).bfloat16()
    for norm in (LayerNorm(64), RMSNorm(64)):
        assert torch.equal(norm.bfloat16()(x), norm.float()(x.float()).bfloat16())


def test_mlp_is_the_equation_plain_and_gated():
    torch.manual_seed(0)
    x, plain, gated = torch.randn(2, 6), MLP(6, 9, activation="gelu_tanh", gated=False, bias=True), MLP(6, 9)
    bent = plain.up(x)
    bent = 0.5 * bent * (1 + torch.tanh(math.sqrt(2 / math.pi) * (bent + 0.044715 * bent**3)))
    assert_close(plain(x), plain.down(bent))
    gate = gated.gate(x)
    assert_close(gated(x), gated.down(gate * gate.sigmoid() * gated.up(x)))
    exact = MLP(6, 9, activation="gelu")
    assert_close(exact.act(x), x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))


# The whole model against transformers


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_logits_equal_transformers_with_and_without_padding(name, side):
    theirs, ids = hf_model(name), random_ids()
    mask = None if side is None else padded(side)
    ours = Transformer.from_hf(theirs)
    counts = torch.ones_like(ids, dtype=torch.bool) if side is None else mask.bool()
    assert_close(ours(ids, mask)[counts], theirs(ids, attention_mask=mask).logits[counts], **CLOSE)


@pytest.mark.parametrize("name", EVERY)
def test_given_positions_equal_transformers(name):
    theirs, ids, mask = hf_model(name), random_ids(), padded("left")
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(Transformer.from_hf(theirs)(ids, mask, positions=positions)[mask.bool()], expected[mask.bool()], **CLOSE)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("chunks", [[11], [1] * 11, [4, 1, 6], [5, 6]])
@pytest.mark.parametrize("side", [None, "left"])
def test_cached_chunks_give_the_same_logits_as_one_pass(name, chunks, side):
    theirs, ids = hf_model(name), random_ids()
    mask = torch.ones_like(ids) if side is None else padded(side)
    ours, cache, parts = Transformer.from_hf(theirs), KVCache(3, capacity=4), []
    with torch.no_grad():
        for chunk in ids.split(chunks, dim=1):
            end = cache.length + chunk.shape[1]
            parts.append(ours(chunk, None if side is None else mask[:, :end], cache=cache))
    assert cache.length == 11
    assert_close(torch.cat(parts, 1)[mask.bool()], theirs(ids, attention_mask=mask).logits[mask.bool()], **CLOSE)


@pytest.mark.parametrize("name", TWO)
def test_a_saved_directory_loads_as_the_model_in_memory_does(name, tmp_path):
    theirs, ids = hf_model(name), random_ids()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    for directory in (tmp_path, str(tmp_path)):
        assert torch.equal(Transformer.from_hf(directory)(ids), Transformer.from_hf(theirs)(ids))


@pytest.mark.parametrize("name", EVERY)
def test_gradients_equal_transformers(name):
    theirs, ids = hf_model(name), random_ids()
    ours = Transformer.from_hf(theirs)
    F.cross_entropy(ours(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs(ids, labels=ids).loss.backward()
    reference = theirs.get_input_embeddings().weight.grad
    assert_close(ours.embed.weight.grad, reference, **CLOSE)
    first = theirs.model.layers[0].mlp.up_proj if name in LLAMAS else theirs.transformer.h[0].mlp.c_fc
    assert_close(ours.blocks[0].mlp.up.weight.grad, first.weight.grad if name in LLAMAS else first.weight.grad.T, **CLOSE)


def test_dropout_in_training_draws_what_transformers_draws():
    theirs, ids = hf_model("gpt2", resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.2), random_ids()
    ours = Transformer.from_hf(theirs).train()
    torch.manual_seed(1)
    expected = theirs.train()(ids).logits
    torch.manual_seed(1)
    assert_close(ours(ids), expected, **CLOSE)


@pytest.mark.parametrize("name", TWO)
def test_bfloat16_is_kept_and_stays_near_transformers(name):
    theirs, ids = hf_model(name).bfloat16(), random_ids()
    ours = Transformer.from_hf(theirs)
    assert ours(ids).dtype == torch.bfloat16
    assert_close(ours(ids).float().softmax(-1), theirs(ids).logits.float().softmax(-1), rtol=0.1, atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EVERY)
def test_cuda_gives_the_same_logits_and_greedy_tokens(name):
    theirs, ids = hf_model(name).cuda(), random_ids().cuda()
    ours = Transformer.from_hf(theirs)
    assert_close(ours(ids), theirs(ids).logits, rtol=1e-3, atol=1e-3)
    assert generate(ours, ids, 5).device.type == "cuda"


def test_loaded_weights_are_copies():
    theirs, ids = hf_model("gpt2"), random_ids()
    ours = Transformer.from_hf(theirs)
    before = ours(ids)
    for weight in theirs.parameters():
        weight.data.zero_()
    assert torch.equal(ours(ids), before)


@pytest.mark.parametrize("name", EVERY)
def test_parameter_count_equals_transformers(name):
    theirs = hf_model(name)
    assert Transformer.from_hf(theirs).n_parameters == theirs.num_parameters()


def test_trace_equals_transformers_attentions_and_hidden_states():
    theirs, ids, mask = hf_model("grouped_biased_wide_heads", attn_implementation="eager"), random_ids(), padded("right")
    expected = theirs(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    trace = Transformer.from_hf(theirs).trace(ids, mask)
    assert_close(trace.logits, expected.logits, **CLOSE)
    assert_close(trace.attention, torch.stack(expected.attentions), **CLOSE)
    assert_close(trace.residual[:-1], torch.stack(expected.hidden_states[:-1]), **CLOSE)


def test_logit_lens_of_the_last_layer_is_the_output():
    model, ids = tiny(), random_ids(vocab=23)
    trace = model.trace(ids)
    assert_close(model.unembed(trace.residual)[-1], model(ids))


def test_post_norm_block_equals_torch_encoder_layer():
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(24, 4, 40, dropout=0.0, batch_first=True, layer_norm_eps=1e-3)
    options = {"n_kv_heads": 4, "pre_norm": False, "norm": "layer", "norm_eps": 1e-3, "positions": "learned", "gated": False}
    block = tiny(**options, activation="relu", attention_bias=True, mlp_bias=True).blocks[0]
    theirs_attention = theirs.self_attn
    for name, w, b in zip("qkv", theirs_attention.in_proj_weight.chunk(3), theirs_attention.in_proj_bias.chunk(3), strict=True):
        getattr(block.attention, name).load_state_dict({"weight": w, "bias": b})
    pairs = [(block.attention.o, theirs_attention.out_proj), (block.mlp.up, theirs.linear1), (block.mlp.down, theirs.linear2)]
    for ours, other in [*pairs, (block.norm1, theirs.norm1), (block.norm2, theirs.norm2)]:
        torch.nn.init.normal_(other.weight, std=0.3)
        ours.load_state_dict(other.state_dict())
    x = torch.randn(2, 5, 24)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5)
    assert_close(block(x)[0], theirs(x, src_mask=causal), **CLOSE)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_no_position_sees_the_future(positions):
    model, ids = tiny(positions=positions), random_ids(vocab=23)
    changed = ids.clone()
    changed[:, 6:] = 1
    assert_close(model(ids)[:, :6], model(changed)[:, :6])
    assert not torch.allclose(model(ids)[:, 6:], model(changed)[:, 6:])


def test_a_window_hides_what_lies_further_back_with_and_without_cache():
    model, ids = tiny(window=3, n_layers=1), random_ids(vocab=23)
    changed = ids.clone()
    changed[:, :4] = 1
    assert_close(model(ids)[:, 6:], model(changed)[:, 6:])
    assert not torch.allclose(model(ids)[:, 5], model(changed)[:, 5])
    cache = KVCache(1)
    with torch.no_grad():
        steps = [model(ids[:, t : t + 1], cache=cache) for t in range(11)]
    assert_close(torch.cat(steps, 1), model(ids), **CLOSE)


def test_what_stands_in_padding_changes_nothing():
    model, ids, mask = tiny(), random_ids(vocab=23), padded("left")
    changed = torch.where(mask.bool(), ids, 1)
    assert_close(model(ids, mask)[mask.bool()], model(changed, mask)[mask.bool()])


def test_a_fresh_model_starts_near_the_uniform_distribution_and_learns():
    model, ids = tiny(dropout=0.0).train(), random_ids(vocab=23)
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(30):
        losses.append(F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert abs(losses[0] - math.log(23)) < 0.2 and losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_dropout_falls_on_the_embedding_and_on_each_block_while_training(positions):
    trace = tiny(positions=positions, dropout=0.5).train().trace(random_ids(vocab=23))
    assert 0.3 < trace.residual[0].eq(0).float().mean() < 0.7
    assert 0.1 < trace.residual.diff(dim=0)[0].eq(0).float().mean() < 0.4  # both parts of the block dropped


def test_projections_into_the_stream_start_smaller_by_the_root_of_their_number():
    model = tiny(n_layers=8, d_ff=200)
    assert_close(model.blocks[3].mlp.up.weight.std().item(), 0.02, rtol=0.05, atol=0)
    assert_close(model.blocks[3].mlp.down.weight.std().item(), 0.02 / 4, rtol=0.05, atol=0)
    assert_close(model.blocks[3].attention.o.weight.std().item(), 0.02 / 4, rtol=0.1, atol=0)


def test_a_tied_model_has_one_matrix_for_embedding_and_head():
    model = tiny(tied=True)
    assert model.head.weight is model.embed.weight
    assert tiny().n_parameters - model.n_parameters == 23 * 24


# The cache


def test_cache_grows_beyond_its_capacity_and_keeps_what_it_holds():
    cache, stored = KVCache(1, capacity=2), torch.randn(1, 2, 9, 4)
    for part in stored.split([1, 4, 1, 3], dim=2):
        k, v = cache.layers[0].append(part, -part)
    assert torch.equal(k, stored) and torch.equal(v, -stored)


def test_cache_within_its_capacity_is_never_copied():
    layer = KVCache(1, capacity=8).layers[0]
    layer.append(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4))
    before = layer.keys.data_ptr()
    layer.append(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4))
    assert layer.keys.data_ptr() == before


def test_cache_bytes_are_two_tensors_a_layer_of_the_key_value_heads_only():
    model, cache = tiny(), KVCache(2)
    assert cache.n_bytes == 0
    with torch.no_grad():
        model(random_ids(3, 5, 23), cache=cache)
    assert cache.n_bytes == 2 * 2 * 3 * 2 * 5 * 6 * 4  # k and v · layers · batch · key heads · tokens · d_head · bytes


# What from_hf refuses


def test_an_unsupported_architecture_is_refused_with_the_supported_ones(tmp_path):
    config = GPTNeoXConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = GPTNeoXForCausalLM(config)
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="not supported; supported: LlamaForCausalLM, GPT2LMHeadModel"):
            Transformer.from_hf(source)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        Transformer.from_hf(tmp_path / "nothing")


def test_a_directory_that_lacks_a_weight_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    hf_model("multi_head").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights: lm_head\.weight"):
        Transformer.from_hf(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("multi_head", {"pretraining_tp": 2}, "pretraining_tp=2"),
        ("multi_head", {"hidden_act": "mish"}, '"mish"'),
        ("multi_head", {"sliding_window": 8}, "sliding_window=8"),
        ("multi_head", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10.0, "factor": 2.0}}, '"yarn"'),
        ("multi_head", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10.0, "factor": 2.0}}, '"dynamic"'),
        (
            "multi_head",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("gpt2", {"activation_function": "quick_gelu"}, '"quick_gelu"'),
        ("gpt2", {"embd_pdrop": 0.5}, "embd_pdrop=0.5"),
    ],
)
def test_a_config_feature_that_is_not_implemented_is_refused_by_name(name, change, named):
    with pytest.raises(ValueError) as error:
        Transformer.from_hf(hf_model(name, **change))
    assert named in str(error.value)


def test_a_field_known_not_to_matter_can_be_ignored_by_name():
    theirs, ids = hf_model("multi_head", made_up_field="yes"), random_ids()
    with pytest.raises(ValueError, match=r'ignore=\("made_up_field",\)'):
        Transformer.from_hf(theirs)
    assert_close(Transformer.from_hf(theirs, ignore=("made_up_field",))(ids), theirs(ids).logits, **CLOSE)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"n_heads": 5}, "d_model=24 is not a multiple of n_heads=5"),
        ({"n_kv_heads": 3}, "n_kv_heads=3 must divide n_heads=4"),
        ({"d_head": 5}, "d_head=5 must be even"),
        ({"activation": "mish"}, "activation='mish' is unknown; choose one of relu, silu"),
        ({"norm": "batch"}, "norm='batch' is unknown; choose one of rms, layer"),
    ],
)
def test_an_impossible_config_is_refused(change, problem):
    with pytest.raises(ValueError, match=problem):
        tiny(**change)


# What the model refuses


@pytest.mark.parametrize(
    ("ids", "options", "problem"),
    [
        (torch.zeros(3, dtype=torch.long), {}, r"ids \(3,\) must have shape \(batch, seq\)"),
        (torch.zeros(3, 0, dtype=torch.long), {}, r"ids \(3, 0\)"),
        (torch.full((1, 2), 23), {}, "ids hold 23, outside the vocabulary 0–22"),
        (torch.full((1, 2), -1), {}, "ids hold -1, outside"),
        (torch.zeros(1, 33, dtype=torch.long), {}, "position 32 is beyond the model's 32"),
        (torch.zeros(2, 4, dtype=torch.long), {"attention_mask": torch.ones(2, 5)}, r"attention_mask \(2, 5\) .* \(2, 4\)"),
        (torch.zeros(2, 4, dtype=torch.long), {"positions": torch.ones(2, 5)}, r"positions \(2, 5\) .* \(2, 4\)"),
        (torch.zeros(1, 2, dtype=torch.long), {"positions": torch.tensor([[0, 40]])}, "positions hold 40, outside"),
    ],
)
def test_inputs_the_model_cannot_read_are_refused(ids, options, problem):
    with pytest.raises(ValueError, match=problem):
        tiny().check(ids, **options)


def test_forward_and_trace_check_their_inputs():
    for call in (tiny(), tiny().trace):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            call(torch.full((1, 2), 99))


def test_the_cached_tokens_count_towards_the_positions_and_the_mask():
    model, cache = tiny(), KVCache(2)
    with torch.no_grad():
        model(torch.zeros(1, 30, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match="position 32 is beyond"):
            model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match=r"\(1, 2\) must be \(batch, cached \+ seq\) = \(1, 32\)"):
            model(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long), cache=cache)


# Generation


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("side", [None, "left"])
def test_greedy_tokens_equal_transformers(name, side):
    theirs, ids = hf_model(name), random_ids()
    mask = torch.ones_like(ids) if side is None else padded(side)
    options = {"attention_mask": mask, "max_new_tokens": 20}
    expected = theirs.generate(ids, **options, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generate(Transformer.from_hf(theirs), ids, **options), expected)


@pytest.mark.parametrize("name", TWO)
def test_rows_that_met_eos_are_padded_and_generation_stops_when_all_have(name):
    theirs, ids, mask = hf_model(name), random_ids(), padded("left")
    ours = Transformer.from_hf(theirs)
    free = generate(ours, ids, 20, attention_mask=mask)[:, 11:]
    stops = [int(free[0, 2]), int(free[1, 5]), int(free[2, 9])]
    for eos in (stops[:1], stops):
        expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=eos, pad_token_id=0)
        got = generate(ours, ids, 20, attention_mask=mask, eos_id=eos if len(eos) > 1 else eos[0], pad_id=0)
        assert torch.equal(got, expected)
    assert got.shape[1] < 31 and (got[:, 11:] == 0).any()


def test_without_a_pad_id_finished_rows_repeat_eos():
    model, ids = tiny(), random_ids(2, vocab=23)
    eos = int(generate(model, ids, 1)[0, -1])
    row = generate(model, ids, 6, eos_id=eos)[0, 11:]
    assert row.eq(eos).all()


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.6}, {"top_k": 99}, {"top_p": 1.0}, {"top_p": 1e-9}]
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_sampling_distribution_equals_transformers_processors(options, temperature):
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 3
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if "top_k" in options:
        scores = TopKLogitsWarper(options["top_k"])(None, scores)
    if "top_p" in options:
        scores = TopPLogitsWarper(options["top_p"])(None, scores)
    assert torch.equal(probabilities(logits, temperature, **options), scores.softmax(-1))


@pytest.mark.parametrize("options", [{"top_k": 8, "temperature": 1.3}, {"top_p": 0.8}, {"temperature": 0.7}])
def test_sampled_tokens_equal_transformers_under_the_same_seed(options):
    theirs, ids = hf_model("grouped_biased_wide_heads"), random_ids()
    torch.manual_seed(5)
    settings = {"top_k": 0, "eos_token_id": None, "pad_token_id": 0, **options}
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=15, do_sample=True, **settings)
    torch.manual_seed(5)
    assert torch.equal(generate(Transformer.from_hf(theirs), ids, 15, **{"temperature": 1.0, **options}), expected)


def test_a_generator_makes_sampling_repeatable_without_touching_the_global_one():
    model, ids, state = tiny(), random_ids(vocab=23), torch.get_rng_state()
    draws = [generate(model, ids, 8, temperature=2.0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_token_is_streamed_as_it_is_made():
    seen, ids = [], random_ids(vocab=23)
    tokens = generate(tiny(), ids, 4, stream=seen.append)
    assert torch.equal(torch.stack(seen, 1), tokens[:, 11:])


def test_no_new_tokens_returns_the_prompt():
    ids = random_ids(vocab=23)
    assert torch.equal(generate(tiny(), ids, 0), ids)


def test_generated_tokens_can_be_trained_on():
    model = tiny()
    model(generate(model, random_ids(vocab=23), 3)).sum().backward()
    assert model.embed.weight.grad is not None


def test_generation_may_use_every_position_and_not_one_more():
    theirs, ids = hf_model("gpt2"), random_ids(1, 60)
    ours = Transformer.from_hf(theirs)
    expected = theirs.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generate(ours, ids, 5), expected)
    with pytest.raises(ValueError, match="60 tokens and 6 new ones exceed the model's 64 positions"):
        generate(ours, ids, 6)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"attention_mask": padded("right")}, "pad on the left"),
        ({"attention_mask": torch.ones(3, 9, dtype=torch.long)}, r"attention_mask \(3, 9\) must be .* \(3, 11\)"),
        ({"ids": torch.full((1, 2), 99)}, "outside the vocabulary"),
        ({"ids": torch.zeros(1, 0, dtype=torch.long)}, r"ids \(1, 0\)"),
    ],
)
def test_generation_refuses_bad_input(options, problem):
    with pytest.raises(ValueError, match=problem):
        generate(**{"model": tiny(), "ids": random_ids(vocab=23), "max_new_tokens": 2, **options})
