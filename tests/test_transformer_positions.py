"""Position schemes: each against its formula or transformers, and what each promises about distances."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, T5Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from llmcourse.transformer import masks, positions
from llmcourse.transformer.positions import RopeScaling, T5Bias, frequencies, half_split, interleaved, rope_angles, rotate


def turned(x, at, layout=rotate, d_head=8):
    """The same vector at each of the positions `at`, rotated there."""
    return layout(x.expand(1, 1, len(at), d_head), rope_angles(at, frequencies(d_head, 100.0)))


# Added to the embedding


def test_sinusoidal_positions_are_the_papers_formula():
    table = positions.sinusoidal(torch.tensor([[0, 3, 500]]), 6)[0]
    for row, t in zip(table, (0, 3, 500), strict=True):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)
            assert_close(row[2 * i : 2 * i + 2], torch.tensor([math.sin(angle), math.cos(angle)]), rtol=0, atol=1e-4)


def test_sinusoidal_positions_equal_transformers_up_to_the_order_of_features():
    theirs = MarianSinusoidalPositionalEmbedding(64, 20)
    theirs.weight.data = theirs.create_weight()
    ours = positions.sinusoidal(torch.arange(64), 20)
    assert_close(half_split(ours, 20), theirs(torch.Size((1, 64))), rtol=0, atol=1e-5)


def test_the_dot_product_of_two_sinusoidal_positions_depends_on_their_distance_only():
    table = positions.sinusoidal(torch.arange(40), 16)
    products = table @ table.T
    for distance in (0, 1, 7):
        assert_close(products.diagonal(distance), products[0, distance].expand(40 - distance), rtol=1e-4, atol=1e-4)


# RoPE


@pytest.mark.parametrize("layout", [rotate, positions.rotate_interleaved])
@pytest.mark.parametrize("seed", range(5))
def test_rotated_dot_products_depend_on_the_distance_only(layout, seed):
    torch.manual_seed(seed)
    q, k, at, shift = torch.randn(8), torch.randn(8), torch.randint(0, 200, (9,)), int(torch.randint(1, 300, ()))
    products = [turned(q, x, layout) @ turned(k, x, layout).mT for x in (at, at + shift)]
    assert_close(*products, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(products[0], (q @ k).expand(9, 9), atol=1e-2)  # and they do depend on it


def test_the_interleaved_layout_is_the_half_split_one_up_to_the_order_of_features():
    torch.manual_seed(0)
    x, angles = torch.randn(2, 3, 5, 8), rope_angles(torch.arange(5), frequencies(8, 100.0))
    same = rotate(half_split(x, 8), angles)
    assert_close(half_split(positions.rotate_interleaved(x, angles), 8), same)


@pytest.mark.parametrize("batched", [False, True])
def test_interleaved_rotation_equals_transformers(batched):
    torch.manual_seed(0)
    x, at = torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 3, 4], [7, 3, 9, 1, 0]])
    theta = frequencies(8, 100.0)
    angle = (at[..., None] * theta).repeat_interleave(2, -1)
    expected, _ = apply_rotary_pos_emb(x, x, angle.cos(), angle.sin())
    if batched:
        assert_close(positions.rotate_interleaved(x, rope_angles(at, theta)), expected)
    else:
        assert_close(positions.rotate_interleaved(x[:1], rope_angles(at[0], theta)), expected[:1])


def test_reordering_a_projections_weight_and_bias_reorders_its_features_head_by_head():
    torch.manual_seed(0)
    projection, x = torch.nn.Linear(10, 24), torch.randn(4, 10)
    features = projection(x)
    reordered = torch.nn.functional.linear(x, half_split(projection.weight, 8, dim=0), half_split(projection.bias, 8, dim=0))
    assert_close(reordered, half_split(features, 8))
    assert_close(half_split(features, 8).view(4, 3, 8), half_split(features.view(4, 3, 8), 8))
    assert half_split(torch.arange(8.0), 8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_two_reorderings_undo_each_other(dim):
    x = torch.randn(12, 12, 12)
    assert torch.equal(interleaved(half_split(x, 6, dim), 6, dim), x)
    assert not torch.equal(half_split(x, 6, dim), x)


@pytest.mark.parametrize("d_head", [4, 10, 64])
def test_ntk_scaling_is_the_changed_base(d_head):
    for factor in (1.0, 2.5, 8.0):
        expected = frequencies(d_head, 500.0 * factor ** (d_head / (d_head - 2)))
        assert_close(frequencies(d_head, 500.0, RopeScaling(factor, ntk=True)), expected)


def test_ntk_scaling_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor():
    plain, scaled = frequencies(16), frequencies(16, scaling=RopeScaling(4.0, ntk=True))
    assert_close(scaled[[0, -1]], plain[[0, -1]] / torch.tensor([1.0, 4.0]))
    assert_close(frequencies(2, scaling=RopeScaling(4.0, ntk=True)), frequencies(2))  # one pair is the fastest


@pytest.mark.parametrize("seq", [64, 100, 500])
def test_ntk_scaling_equals_transformers_dynamic_kind_at_a_sequence_length(seq):
    rope = {"rope_type": "dynamic", "rope_theta": 700.0, "factor": 3.0}
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, max_position_embeddings=64, rope_parameters=rope)
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=seq)
    assert_close(frequencies(12, 700.0, RopeScaling(3.0 * seq / 64 - 2.0, ntk=True)), expected)


@pytest.mark.parametrize(("kind", "scaling"), [("linear", RopeScaling(3.0)), ("llama3", RopeScaling(3.0, 1.0, 4.0, 32))])
def test_linear_and_llama3_scaling_equal_transformers(kind, scaling):
    rope = {"rope_type": kind, "rope_theta": 700.0, "factor": 3.0}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, rope_parameters=rope)
    assert_close(frequencies(12, 700.0, scaling), ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0])


def test_an_odd_number_of_features_is_refused():
    for call in (lambda: frequencies(7), lambda: positions.sinusoidal(torch.arange(3), 7)):
        with pytest.raises(ValueError, match="7 features do not form pairs; choose an even number"):
            call()


# Added to the scores


def t5_pair(n_buckets, max_distance, bidirectional):
    """transformers' attention and our bias with the same weights."""
    torch.manual_seed(0)
    shape = {"d_model": 12, "d_kv": 4, "num_heads": 3, "is_decoder": not bidirectional}
    config = T5Config(**shape, relative_attention_num_buckets=n_buckets, relative_attention_max_distance=max_distance)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    ours = T5Bias(3, n_buckets, max_distance, bidirectional)
    ours.load_state_dict(theirs.relative_attention_bias.state_dict())
    return theirs, ours


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 20), (7, 50), (64, 33), (4, 300)])
def test_t5_bias_equals_transformers(n_buckets, max_distance, bidirectional):
    theirs, ours = t5_pair(n_buckets, max_distance, bidirectional)
    assert torch.equal(ours(torch.arange(400), torch.arange(400)), theirs.compute_bias(400, 400))


def test_t5_bias_behind_a_cache_equals_transformers():
    theirs, ours = t5_pair(32, 128, bidirectional=False)
    assert torch.equal(ours(torch.arange(40, 43), torch.arange(43)), theirs.compute_bias(3, 43, past_seen_tokens=40))


def test_t5_bias_depends_on_the_distance_only_and_learns():
    _, ours = t5_pair(32, 128, bidirectional=True)
    near, far = (ours(torch.arange(9) + start, torch.arange(9) + start) for start in (0, 1000))
    assert torch.equal(near, far) and near.shape == (1, 3, 9, 9)
    near.sum().backward()
    assert ours.weight.grad.ne(0).any()


@pytest.mark.parametrize(("shape", "problem"), [((3, 0), "n_buckets=3 .* at least 4"), ((32, 8), "n_buckets=32 .* below 32")])
def test_t5_bias_with_no_room_for_near_or_far_buckets_is_refused(shape, problem):
    with pytest.raises(ValueError, match=problem):
        T5Bias(2, shape[0], shape[1])


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 6, 8, 12, 15, 20, 71])
def test_alibi_equals_blooms_up_to_a_constant_for_each_query(n_heads):
    theirs = build_alibi_tensor(torch.ones(1, 9, dtype=torch.long), n_heads, torch.float32).view(1, n_heads, 1, 9)
    ours = positions.alibi(n_heads, torch.arange(4, 9), torch.arange(9))
    assert ours.shape == (1, n_heads, 5, 9)
    torch.manual_seed(0)
    scores, hidden = torch.randn(2, n_heads, 5, 9), ~masks.causal(5, 9)
    weights = [(scores + bias).masked_fill(hidden, -torch.inf).softmax(-1) for bias in (ours, theirs)]
    assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_alibi_is_zero_at_the_query_and_falls_by_the_slope_a_step_on_both_sides():
    slopes, bias = positions.alibi_slopes(4), positions.alibi(4, torch.tensor([5]), torch.arange(11))[0, :, 0]
    assert_close(slopes, torch.tensor([0.25, 0.0625, 0.015625, 0.00390625]))
    assert bias[:, 5].eq(0).all() and torch.equal(bias, bias.flip(1))
    assert_close(bias[:, :6].diff(dim=1), slopes[:, None].expand(4, 5))
