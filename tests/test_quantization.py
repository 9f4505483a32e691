"""Quantised tensors: int8, 4 bits and trits, against bitsandbytes, torch and transformers, and against their definitions."""

import math
from statistics import NormalDist

import bitsandbytes.functional as bnb
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers.integrations import bitnet as hf_bitnet

from llmcourse.quantization import bitnet, int8, nf4
from llmcourse.quantization.checks import check_float

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Not among them: rows that are a multiple of 16 but not of the block size, which bitsandbytes restores wrongly on a CPU.
SHAPES = [(1,), (5,), (64,), (65,), (127,), (130,), (3, 70), (33, 77), (7, 256), (40, 513), (3, 5, 64)]


@pytest.fixture(autouse=True)
def without_compiling():
    """bitsandbytes and transformers compile some functions; the numbers are the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def weights(*shape, dtype=torch.float32, seed=0):
    """Normal weights whose blocks differ in size."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * torch.rand(shape, generator=generator) * 0.1).to(dtype)


# ---- 4 bits: levels ---------------------------------------------------------------------------------------------------


def test_the_nf4_codebook_equals_bitsandbytes_sixteen_values():
    assert torch.equal(nf4.nf4_codebook(), bnb.get_4bit_type("nf4", device="cpu"))


def test_the_nf4_codebook_holds_quantiles_of_the_normal_distribution():
    """Checked by probabilities: even steps on each side of 0."""
    normal = NormalDist()
    p = torch.tensor([normal.cdf(level * normal.inv_cdf(0.9677083)) for level in nf4.nf4_codebook().tolist()])
    steps = [0.4677083 / 7] * 7 + [0.4677083 / 8] * 8
    assert p.diff().tolist() == pytest.approx(steps, abs=1e-5)


def test_the_dynamic_codebook_equals_bitsandbytes_256_values():
    assert torch.equal(nf4.dynamic_codebook(), bnb.create_dynamic_map())


@pytest.mark.parametrize("kind", nf4.CODEBOOKS)
def test_every_codebook_rises_from_minus_one_or_less_to_one(kind):
    levels = nf4.codebook(kind)
    assert (levels.diff() > 0).all() and levels[0] <= -1 and levels[-1] == 1


def test_nf4_loses_less_of_normal_weights_than_even_steps():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    lost = {kind: int8.errors(x, nf4.dequantize(nf4.quantize(x, kind=kind))).relative for kind in nf4.CODEBOOKS}
    assert lost["nf4"] < 0.95 * lost["uniform4"] < 0.95 * lost["int4"]


# ---- 4 bits: parity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block_size", [32, 64, 128, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
def test_codes_and_scales_equal_bitsandbytes_byte_for_byte(dtype, block_size, double):
    """Sizes odd, smaller than a block, and no multiple of one, are among the shapes."""
    for shape in SHAPES:
        x = weights(*shape, dtype=dtype)
        codes, state = bnb.quantize_4bit(x, blocksize=block_size, quant_type="nf4", compress_statistics=double)
        ours = nf4.quantize(x, block_size=block_size, double=double)
        assert torch.equal(ours.codes, codes.flatten()) and torch.equal(ours.scales, state.absmax)
        if double:
            assert torch.equal(ours.scale_absmax, state.state2.absmax) and torch.equal(ours.scale_mean, state.offset)


def test_quantize_nf4_of_bitsandbytes_gives_the_same_bytes():
    x = weights(50, 64)
    codes, state = bnb.quantize_nf4(x, compress_statistics=True)
    ours = nf4.quantize(x, double=True)
    assert torch.equal(ours.codes, codes.flatten()) and torch.equal(ours.scales, state.absmax)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_restored_weights_equal_bitsandbytes(dtype, double):
    for shape in [(5,), (63,), (3, 70), (33, 77), (7, 256), (40, 513), (700, 64)]:
        x = weights(*shape, dtype=dtype)
        codes, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=double)
        ours = nf4.dequantize(nf4.quantize(x, double=double))
        assert ours.dtype == dtype and torch.equal(ours, bnb.dequantize_4bit(codes, state).view(shape))


def test_more_weights_than_one_chunk_equal_bitsandbytes():
    """Two whole chunks, one that is not whole, and a rest."""
    x = weights(2 * nf4.CHUNK + 3 * 64 + 5)
    codes, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    ours = nf4.quantize(x, double=True)
    assert torch.equal(ours.codes, codes.flatten()) and torch.equal(ours.scales, state.absmax)
    assert torch.equal(nf4.dequantize(ours), bnb.dequantize_4bit(codes, state).view(-1))


def test_scales_on_a_wide_range_equal_bitsandbytes():
    """Many groups, and scales of very different sizes, which fall on many of the 256 levels."""
    x = weights(1, 64 * 3000).view(3000, 64) * torch.logspace(-4, 1, 3000)[:, None]
    _, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    assert torch.equal(nf4.quantize(x, double=True).scales, state.absmax)


def test_ties_go_to_the_lower_level_as_in_bitsandbytes():
    levels = nf4.codebook("nf4")
    x = torch.cat((torch.ones(1), nf4.midpoints(levels), torch.zeros(48)))
    ours = nf4.quantize(x)
    assert nf4.unpack(ours.codes, 16)[1:].tolist() == list(range(15))
    assert torch.equal(ours.codes, bnb.quantize_4bit(x, quant_type="nf4")[0].flatten())


def test_the_last_short_block_is_divided_and_not_multiplied_as_in_bitsandbytes():
    """On weights so close to a midpoint that the two ways of rounding fall on different sides of it."""
    largest = torch.rand(200_000, generator=torch.Generator().manual_seed(6)) + 0.5
    bound = nf4.midpoints(nf4.codebook("nf4"))[9]
    x = bound * largest
    close = ((x / largest > bound) != (x * (1 / largest) > bound)).nonzero().view(-1)[:20]
    assert len(close) == 20
    for pair in torch.stack((largest, x), 1)[close]:
        assert torch.equal(nf4.quantize(pair).codes, bnb.quantize_4bit(pair, quant_type="nf4")[0].flatten())


def test_zeros_stay_zeros_and_have_bitsandbytes_bytes():
    for n in (64, 70, 256):
        codes, state = bnb.quantize_4bit(torch.zeros(n), quant_type="nf4", compress_statistics=True)
        ours = nf4.quantize(torch.zeros(n), double=True)
        assert torch.equal(ours.codes, codes.flatten()) and torch.equal(ours.scales, state.absmax)
        assert_close(nf4.dequantize(ours), torch.zeros(n), rtol=0, atol=1e-30)


# ---- 4 bits: by definition --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", nf4.CODEBOOKS)
@pytest.mark.parametrize("shape", [(8, 96), (11, 13), (2, 2, 33)])
def test_every_weight_is_restored_as_the_nearest_level_times_its_blocks_largest(kind, shape):
    """Also for rows that are a multiple of 16 but not of the block, where bitsandbytes' CPU kernel is wrong."""
    x, size = weights(*shape), 32
    blocks = F.pad(x.flatten(), (0, -x.numel() % size)).view(-1, size)
    absmax = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks[..., None] / absmax[..., None] - nf4.codebook(kind)).abs().argmin(-1)
    expected = (nf4.codebook(kind)[nearest] * absmax).flatten()[: x.numel()].view(shape)
    assert_close(nf4.dequantize(nf4.quantize(x, kind=kind, block_size=size)), expected)


def test_int4_codes_are_the_integers_from_minus_seven_to_seven():
    codes = nf4.quantize(weights(1000, 64), kind="int4").codes
    assert set(nf4.unpack(codes, 64_000).tolist()) == set(range(1, 16))


def test_the_first_code_lies_in_the_high_half_of_its_byte():
    assert nf4.pack(torch.tensor([2, 8, 10, 15], dtype=torch.uint8)).tolist() == [0x28, 0xAF]


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_unpack_undoes_pack(n):
    codes = torch.randint(0, 16, (n,), dtype=torch.uint8)
    assert torch.equal(nf4.unpack(nf4.pack(codes), n), codes)


def test_scales_in_eight_bits_are_close_to_the_plain_ones():
    x = weights(500, 64)
    plain, double = nf4.quantize(x), nf4.quantize(x, double=True)
    assert_close(nf4.dequantize_scales(double), nf4.dequantize_scales(plain), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block_size", [16, 64, 1024])
def test_bits_per_weight_are_the_bytes_of_a_large_tensor(block_size, double):
    x = torch.zeros(1024, 2048)
    q = nf4.quantize(x, block_size=block_size, double=double)
    assert q.nbytes - 4 * double == nf4.bits_per_weight(block_size, double) * x.numel() / 8  # 4: the mean


def test_weights_that_are_no_contiguous_memory_are_quantised_in_their_order():
    x = weights(33, 64).T
    assert torch.equal(nf4.quantize(x).codes, nf4.quantize(x.contiguous()).codes)


def test_another_dtype_may_be_asked_for():
    assert nf4.dequantize(nf4.quantize(weights(3, 64)), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("double", [False, True])
def test_a_saved_tensor_comes_back(tmp_path, double):
    q = nf4.quantize(weights(9, 33, dtype=torch.bfloat16), kind="uniform4", block_size=32, double=double)
    q.save(tmp_path / "w.safetensors")
    loaded = nf4.Quantized4bit.load(tmp_path / "w.safetensors")
    assert (loaded.shape, loaded.dtype, loaded.kind, loaded.block_size) == ((9, 33), torch.bfloat16, "uniform4", 32)
    assert torch.equal(nf4.dequantize(loaded), nf4.dequantize(q))


# ---- what is refused --------------------------------------------------------------------------------------------------

QUANTISERS = [nf4.quantize, int8.absmax, int8.zeropoint, bitnet.ternary]


@pytest.mark.parametrize("quantize", QUANTISERS)
def test_an_empty_tensor_is_refused(quantize):
    with pytest.raises(ValueError, match=r"\(0, 4\) is empty"):
        quantize(torch.zeros(0, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(1, 2), (4, 32)])
@pytest.mark.parametrize("quantize", QUANTISERS)
def test_a_value_that_is_not_finite_is_refused_with_its_place(quantize, place, bad):
    """Also in the last, shorter block."""
    x = weights(5, 33)
    x[place] = bad
    with pytest.raises(ValueError, match=rf"1 values that are not finite.* at \[{place[0]}, {place[1]}\]"):
        quantize(x)


def test_codes_are_refused_as_quantised_already():
    for dtype in (torch.uint8, torch.int8):
        with pytest.raises(TypeError, match="is it quantised already"):
            check_float(torch.zeros(4, dtype=dtype))


def test_a_wrong_dtype_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r"float64; quantise float32.*x\.float\(\)"):
        nf4.quantize(torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("block_size", [0, -64, 8, 48, 65, 8192])
def test_a_block_size_that_is_no_power_of_two_in_range_is_refused(block_size):
    with pytest.raises(ValueError, match=f"block_size is {block_size}; choose a power of two from 16 to 4096"):
        nf4.quantize(torch.ones(64), block_size=block_size)


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"kind 'nf5' is unknown .did you mean 'nf4'"):
        nf4.quantize(torch.ones(64), kind="nf5")


def test_an_unknown_granularity_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"per 'rows' is unknown .did you mean 'row'"):
        int8.absmax(torch.ones(4, 4), "rows")
    with pytest.raises(ValueError, match="has no columns"):
        int8.absmax(torch.ones(4), "column")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    if damage == "truncated":
        nf4.quantize(weights(9, 33)).save(path)
        path.write_bytes(path.read_bytes()[:-20])
    if damage == "foreign":
        save_file({"x": torch.ones(2)}, path)
    said = {"missing": "does not exist", "truncated": "is damaged", "foreign": "not one that this package saved"}
    with pytest.raises(
        ValueError, match=rf"w\.safetensors {said[damage]}|w\.safetensors is a safetensors file, but {said[damage]}"
    ):
        nf4.Quantized4bit.load(path)


# ---- int8 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
def test_absmax_equals_torchs_fake_quantisation(per):
    x = weights(13, 37)
    q = int8.absmax(x, per)
    scale, zero = q.scale.flatten(), torch.zeros(q.scale.numel(), dtype=torch.int32)
    if per == "tensor":
        expected = torch.fake_quantize_per_tensor_affine(x, scale.item(), 0, -127, 127)
    else:
        expected = torch.fake_quantize_per_channel_affine(x, scale, zero, 0 if per == "row" else 1, -127, 127)
    assert_close(int8.dequantize(q), expected, **CLOSE)
    assert q.codes.abs().max() == 127 and q.scale.numel() == {"tensor": 1, "row": 13, "column": 37}[per]


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
def test_zeropoint_equals_torchs_fake_quantisation(per):
    x = weights(13, 37) + 0.07
    q = int8.zeropoint(x, per)
    scale, zero = q.scale.flatten(), q.zero.flatten()
    if per == "tensor":
        expected = torch.fake_quantize_per_tensor_affine(x, scale.item(), zero.item(), -128, 127)
    else:
        expected = torch.fake_quantize_per_channel_affine(x, scale, zero, 0 if per == "row" else 1, -128, 127)
    assert_close(int8.dequantize(q), expected, **CLOSE)


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_zeropoint_spans_the_range_and_keeps_zero_exact(shift):
    x = torch.cat((torch.rand(50) + shift, torch.zeros(1)))
    q = int8.zeropoint(x)
    restored = int8.dequantize(q)
    assert restored[-1] == 0 and (restored - x).abs().max() <= q.scale.item() * 0.51
    assert q.codes.max() - q.codes.min() == 255


def test_zeropoint_widens_a_range_of_one_sign_to_contain_zero():
    assert int8.zeropoint(torch.rand(50) + 3).zero.item() == -128
    assert int8.zeropoint(-torch.rand(50) - 3).zero.item() == 127


def test_zeropoint_loses_less_than_absmax_where_all_values_have_one_sign():
    x = torch.rand(1000) + 0.1
    lost = [int8.errors(x, int8.dequantize(method(x))).relative for method in (int8.zeropoint, int8.absmax)]
    assert lost[0] < 0.6 * lost[1]


def test_zeros_are_restored_as_zeros():
    for method in (int8.absmax, int8.zeropoint):
        assert not int8.dequantize(method(torch.zeros(3, 4), "row")).any()


@pytest.mark.parametrize("per_a", ["tensor", "row"])
@pytest.mark.parametrize("per_b", ["tensor", "row"])
@pytest.mark.parametrize("method_a", [int8.absmax, int8.zeropoint])
@pytest.mark.parametrize("method_b", [int8.absmax, int8.zeropoint])
def test_the_product_of_codes_equals_that_of_restored_tensors(method_a, method_b, per_a, per_b):
    a, b = method_a(weights(5, 37) + 0.05, per_a), method_b(weights(11, 37) - 0.02, per_b)
    assert_close(int8.matmul(a, b), int8.dequantize(a) @ int8.dequantize(b).T, **CLOSE)


def test_a_scale_per_column_cannot_be_multiplied():
    good, bad = int8.absmax(weights(5, 7), "row"), int8.absmax(weights(5, 7), "column")
    with pytest.raises(ValueError, match="b has one scale per column"):
        int8.matmul(good, bad)


def test_integer_products_are_exact():
    a, b = (torch.randint(-127, 128, (n, 2000), dtype=torch.int8) for n in (3, 5))
    assert torch.equal(int8.int_matmul(a, b).long(), a.long() @ b.long().T)


@pytest.mark.parametrize("threshold", [0.0, 2.0, 100.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_vectorwise_codes_scales_and_outliers_equal_bitsandbytes(dtype, threshold):
    x = torch.randn(37, 51, generator=torch.Generator().manual_seed(3)).to(dtype)
    codes, largest, columns = bnb.int8_vectorwise_quant(x.clone(), threshold)
    ours = int8.vectorwise(x, threshold)
    assert torch.equal(ours[0], codes) and torch.equal(ours[1], largest)
    assert ours[2].tolist() == ([] if columns is None else columns.tolist())


def test_an_input_of_exactly_the_threshold_is_an_outlier():
    assert int8.vectorwise(torch.tensor([[1.0, -6.0, 5.9]]), 6.0)[2].tolist() == [1]


@pytest.mark.parametrize("threshold", [0.0, 2.5])
def test_the_mixed_product_equals_bitsandbytes(threshold):
    x, w = weights(9, 64) * 30, weights(11, 64)
    codes, largest, _ = int8.vectorwise(w)
    x_codes, x_largest, columns = bnb.int8_vectorwise_quant(x.clone(), threshold)
    theirs, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(x, x_codes, codes, x_largest, largest, columns, None)
    assert_close(int8.mixed_matmul(x, codes, largest, threshold), theirs, **CLOSE)


def test_outliers_kept_apart_save_the_product():
    x, w = weights(16, 64) * 20, weights(11, 64)
    x[:, 7] *= 100
    codes, largest, _ = int8.vectorwise(w)
    lost = [int8.errors(x @ w.T, int8.mixed_matmul(x, codes, largest, threshold)).relative for threshold in (6.0, 0.0)]
    assert lost[0] < 0.5 * lost[1]


def test_errors_are_what_they_are_called():
    found = int8.errors(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert found == pytest.approx((0.25, 0.5, 0.1, 20.0))


# ---- trits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 1e-5, 0.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rounded_weights_and_activations_equal_transformers(dtype, size):
    """Also where nearly all is zero."""
    x = weights(7, 33, dtype=dtype) * size
    assert torch.equal(bitnet.round_weights(x), hf_bitnet.WeightQuant.apply(x))
    assert torch.equal(bitnet.round_activations(x), hf_bitnet.ActQuant.apply(x))


def test_trits_times_their_scale_are_the_rounded_weights():
    x = weights(7, 33)
    trits, scale = bitnet.ternary(x)
    assert set(trits.unique().tolist()) == {-1, 0, 1}
    assert scale == pytest.approx(x.abs().mean().item())
    assert_close(trits * scale, bitnet.round_weights(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_bitlinear_equals_transformers_autobitlinear_forward_and_backward(norm, bias):
    ours = bitnet.BitLinear(33, 17, bias, norm=norm)
    theirs = hf_bitnet.AutoBitLinear(33, 17, bias, online_quant=True, use_rms_norm=norm)
    theirs.load_state_dict({name.replace("norm.", "rms_norm."): tensor for name, tensor in ours.state_dict().items()})
    inputs = [torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(4)).requires_grad_() for _ in "ab"]
    outputs = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
    assert_close(*outputs, **CLOSE)
    for y in outputs:
        y.square().sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, **CLOSE)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_the_written_out_gradients_are_those_of_bitlinear():
    layer, x, grad = bitnet.BitLinear(6, 4, bias=False), torch.randn(3, 6, requires_grad=True), torch.randn(3, 4)
    layer(x).backward(grad)
    for ours, autograd in zip(bitnet.gradients(x, layer.weight, grad), (x.grad, layer.weight.grad), strict=True):
        assert_close(ours, autograd, **CLOSE)


def test_straight_through_gives_the_gradient_to_the_float_tensor_alone():
    x, rounded = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    y = bitnet.straight_through(x, rounded)
    y.backward(torch.arange(5.0))
    assert torch.equal(y, rounded) and x.grad.tolist() == [0, 1, 2, 3, 4] and rounded.grad is None


def test_bitlinear_learns_from_scratch():
    torch.manual_seed(0)
    target, layer = torch.randint(-1, 2, (4, 16)).float(), bitnet.BitLinear(16, 4, bias=False)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(200):
        x = torch.randn(64, 16)
        losses.append(F.mse_loss(layer(x), x @ target.T))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("shape", [(8, 3), (4,), (12, 5)])
def test_two_bit_packing_equals_transformers(shape):
    trits = torch.randint(-1, 2, shape, dtype=torch.int8)
    packed = bitnet.pack_two_bits(trits)
    assert torch.equal(packed, hf_bitnet.pack_weights(trits.clone()))
    assert torch.equal(bitnet.unpack_two_bits(packed, len(trits)), hf_bitnet.unpack_weights(packed, torch.int8))


@pytest.mark.parametrize("rows", [1, 3, 6, 9])
def test_two_bit_unpacking_undoes_packing_for_any_number_of_rows(rows):
    trits = torch.randint(-1, 2, (rows, 3), dtype=torch.int8)
    assert torch.equal(bitnet.unpack_two_bits(bitnet.pack_two_bits(trits), rows), trits)


@pytest.mark.parametrize("n", [1, 5, 7, 243])
def test_base_three_unpacking_undoes_packing(n):
    trits = torch.randint(-1, 2, (n,), dtype=torch.int8)
    packed = bitnet.pack_base3(trits)
    assert len(packed) == math.ceil(n / 5) and torch.equal(bitnet.unpack_base3(packed, n), trits)


def test_the_first_trit_counts_one_and_the_last_eighty_one():
    assert bitnet.pack_base3(torch.tensor([1, -1, -1, -1, 0], dtype=torch.int8)).tolist() == [2 + 81]


def test_five_trits_a_byte_come_within_one_percent_of_the_bound():
    assert pytest.approx(math.log2(3)) == bitnet.TRIT_BITS
    assert bitnet.TRIT_BITS < 8 / 5 < 1.01 * bitnet.TRIT_BITS


def test_the_entropy_of_trits_is_the_bound_when_all_are_as_frequent_and_less_otherwise():
    even, uneven = torch.tensor([-1, 0, 1] * 4, dtype=torch.int8), torch.tensor([0, 0, 0, 1], dtype=torch.int8)
    assert bitnet.trit_entropy(even) == pytest.approx(bitnet.TRIT_BITS)
    assert bitnet.trit_entropy(uneven) == pytest.approx(-0.75 * math.log2(0.75) + 0.5)


@pytest.mark.parametrize("norm", [True, False])
def test_the_packed_layer_gives_the_trained_ones_outputs_and_input_gradient(norm):
    layer = bitnet.BitLinear(33, 17, norm=norm)
    packed = bitnet.PackedBitLinear(layer)
    inputs = [torch.randn(2, 5, 33, generator=torch.Generator().manual_seed(5)).requires_grad_() for _ in "ab"]
    outputs = [module(x) for module, x in zip((layer, packed), inputs, strict=True)]
    assert_close(*outputs, **CLOSE)
    for y in outputs:
        y.square().sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, **CLOSE)
    assert packed.trits.numel() == math.ceil(33 * 17 / 5) and not any(p.requires_grad for p in packed.parameters())
