"""The exercises of notebook 05: each reference is the package's own function, each wrong answer one plausible edit away from it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exercise import Exercise, Misconception, register
from .bitnet import gradients, pack_base3, round_activations, round_weights, ternary
from .int8 import absmax_codes, zeropoint_codes
from .nf4 import bits_per_weight, nf4_codebook, pack

# --- absmax ----------------------------------------------------------------------------------------------------------


def _absmax_inputs(trial: int) -> tuple[Tensor, int | None]:
    x = torch.randn(3, 7) * torch.tensor([[0.1], [1.0], [5.0]])
    return -x.abs() - 0.1 if trial == 1 else x, (None, -1, -1, 0)[trial % 4]


def _largest(x: Tensor, dim: int | None) -> Tensor:
    return x.abs().amax([0, 1] if dim is None else dim, keepdim=True)


def _absmax_truncated(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    scale = _largest(x, dim) / 127
    return (x / scale).to(torch.int8), scale


def _absmax_signed_maximum(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    scale = x.amax([0, 1] if dim is None else dim, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale


def _absmax_128(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    scale = _largest(x, dim) / 128
    return (x / scale).round().clamp(-128, 127).to(torch.int8), scale


def _absmax_inverse(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    codes, scale = absmax_codes(x, dim)
    return codes, 1 / scale


def _absmax_one_for_all(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    codes, scale = absmax_codes(x)
    return codes, scale.expand_as(_largest(x, dim)).clone()


register(
    Exercise(
        id="quantization/absmax",
        title="Eight bits by the largest value",
        reference=absmax_codes,
        inputs=_absmax_inputs,
        difficulty=1,
        minutes=8,
        hints=(
            "The largest |x| shall become 127. With one scale for all, that is `x.abs().amax()`; with `dim`, one for each row along it.",
            "Keep the axes, so that it broadcasts: `x.abs().amax(dim, keepdim=True)`; for `dim=None` pass the list of all axes.",
            "`scale = largest / 127`; return `(x / scale).round().to(torch.int8), scale`.",
        ),
        misconceptions=(
            Misconception(
                _absmax_truncated, "`.to(torch.int8)` cuts decimals off, so every code errs towards 0. Call `.round()` first."
            ),
            Misconception(
                _absmax_signed_maximum,
                "You take the largest value, not the largest *absolute* value: a long negative tail is cut off.",
            ),
            Misconception(
                _absmax_128,
                "You divide by 128. An int8 ends at 127 on the positive side, so the largest value would be cut: use 127.",
            ),
            Misconception(
                _absmax_inverse,
                "Your second result is 127 / max. The scale is what a code is *multiplied* by to get x back: max / 127.",
            ),
            Misconception(
                _absmax_one_for_all, "You use one maximum for all. With `dim` every row along it has its own: pass it to `amax`."
            ),
        ),
    )
)

# --- zero point ------------------------------------------------------------------------------------------------------


def _zero_inputs(trial: int) -> tuple[Tensor, int | None]:
    shift = (0.5, 3.0, -3.0, 1.0)[trial % 4]
    return torch.rand(4, 9) * (1 + trial) + shift, (None, None, None, -1)[trial % 4]


def _zero_range(x: Tensor, dim: int | None) -> tuple[Tensor, Tensor]:
    dims = [0, 1] if dim is None else dim
    return x.amin(dims, keepdim=True).clamp_max(0), x.amax(dims, keepdim=True).clamp_min(0)


def _zero_codes(x: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = ((x / scale).round() + zero).clamp(-128, 127).to(torch.int8)
    return codes, scale, zero.to(torch.int32)


def _zero_not_contained(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    dims = [0, 1] if dim is None else dim
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    scale = (high - low) / 255
    return _zero_codes(x, scale, (-128 - low / scale).round())


def _zero_unsigned(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    low, high = _zero_range(x, dim)
    scale = (high - low) / 255
    return _zero_codes(x, scale, (-low / scale).round())


def _zero_symmetric(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale = absmax_codes(x, dim)
    return codes, scale, torch.zeros_like(scale, dtype=torch.int32)


def _zero_256(x: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    low, high = _zero_range(x, dim)
    scale = (high - low) / 256
    return _zero_codes(x, scale, (-128 - low / scale).round())


register(
    Exercise(
        id="quantization/zeropoint",
        title="A range that is not symmetric",
        reference=zeropoint_codes,
        inputs=_zero_inputs,
        difficulty=2,
        minutes=12,
        hints=(
            "256 codes have 255 steps between them: `scale = (high - low) / 255`. First widen the range to contain 0: `low.clamp_max(0)`, `high.clamp_min(0)`.",
            "`low` shall get the code -128. From `low ≈ (-128 - zero) · scale` follows `zero = (-128 - low / scale).round()`.",
            "`codes = ((x / scale).round() + zero).clamp(-128, 127).to(torch.int8)`; return codes, scale and `zero.to(torch.int32)`.",
        ),
        misconceptions=(
            Misconception(
                _zero_not_contained,
                "Your range need not contain 0, so 0 (padding, a ReLU's output) has no exact code. Widen it: `low.clamp_max(0)`, `high.clamp_min(0)`.",
            ),
            Misconception(_zero_unsigned, "This is the zero point for codes 0–255. Ours run from -128 to 127: `low` gets -128."),
            Misconception(
                _zero_symmetric,
                "This is absmax: symmetric around 0. Where all values have one sign, half of the codes are never used.",
            ),
            Misconception(_zero_256, "You divide the range by 256, the number of codes. Between them there are 255 steps."),
        ),
    )
)

# --- the NF4 codebook ------------------------------------------------------------------------------------------------


def _codebook_inputs(trial: int) -> tuple[float]:
    return ((0.9677083, 0.95, 0.99, 0.98)[trial % 4],)


def _codebook_even(tail: float = 0.9677083) -> Tensor:
    return torch.linspace(-1, 1, 16)


def _codebook_unnormalised(tail: float = 0.9677083) -> Tensor:
    return nf4_codebook(tail) * torch.special.ndtri(torch.tensor(tail))


def _codebook_turned(tail: float = 0.9677083) -> Tensor:
    return -nf4_codebook(tail).flip(0)


def _codebook_without_zero(tail: float = 0.9677083) -> Tensor:
    levels = torch.special.ndtri(torch.linspace(1 - tail, tail, 16))
    return levels / levels.max()


def _codebook_probabilities(tail: float = 0.9677083) -> Tensor:
    below, above = (torch.linspace(tail, 0.5, n + 1)[:-1] - 0.5 for n in (7, 8))
    levels = torch.cat((-below, torch.zeros(1), above.flip(0)))
    return levels / levels.max()


register(
    Exercise(
        id="quantization/nf4_codebook",
        title="Sixteen levels for normal weights",
        reference=nf4_codebook,
        inputs=_codebook_inputs,
        difficulty=3,
        minutes=15,
        hints=(
            "`torch.special.ndtri(p)` is the normal quantile: the value below which a share p of a normal distribution lies. ndtri(½) = 0.",
            "Above 0 you need 8 levels: `torch.linspace(tail, 0.5, 9)[:-1]` are their probabilities. Below 0 you need 7, with the sign turned.",
            "Join `-ndtri(…7…)`, a zero and `ndtri(…8…).flip(0)` with `torch.cat`, and divide by the largest.",
        ),
        misconceptions=(
            Misconception(
                _codebook_even,
                "These are even steps. Normal weights crowd around 0: put the levels at *quantiles* (`torch.special.ndtri`).",
            ),
            Misconception(
                _codebook_unnormalised,
                "These are the quantiles themselves. Blocks are divided by their largest value, so the levels must reach from -1 to 1: divide by the largest.",
            ),
            Misconception(
                _codebook_turned, "You have 8 levels below 0 and 7 above. NF4 has it the other way round: 7, the zero, 8."
            ),
            Misconception(
                _codebook_without_zero,
                "Your levels have no 0. An exact 0 matters (padding, pruned weights): build the two sides apart, with a zero between them.",
            ),
            Misconception(
                _codebook_probabilities,
                "You space the *probabilities* evenly and stop there. Turn them into values with `torch.special.ndtri`.",
            ),
        ),
    )
)

# --- bits a weight ---------------------------------------------------------------------------------------------------


def _bits_inputs(trial: int) -> tuple[int, bool]:
    return ((64, True), (64, False), (16, True), (256, False))[trial % 4]


def _bits_codes_only(block_size: int = 64, double: bool = False) -> float:
    return 4.0


def _bits_half_scales(block_size: int = 64, double: bool = False) -> float:
    return 4 + (8 / block_size + 32 / (block_size * 256) if double else 16 / block_size)


def _bits_no_second_scale(block_size: int = 64, double: bool = False) -> float:
    return 4 + (8 if double else 32) / block_size


def _bits_second_scale_per_weight(block_size: int = 64, double: bool = False) -> float:
    return 4 + (8 / block_size + 32 / 256 if double else 32 / block_size)


def _bits_in_bytes(block_size: int = 64, double: bool = False) -> float:
    return 4 + (1 / block_size + 4 / (block_size * 256) if double else 4 / block_size)


register(
    Exercise(
        id="quantization/bits_per_weight",
        title="What does a 4-bit weight really take?",
        reference=bits_per_weight,
        inputs=_bits_inputs,
        difficulty=1,
        minutes=6,
        hints=(
            "Each weight has 4 bits of its own, and a share of its block's scale, which `block_size` weights carry together.",
            "A plain scale is a float32: `32 / block_size` bits a weight.",
            "With double quantisation a scale has 8 bits, and 256 scales share one float32: `8 / block_size + 32 / (block_size * 256)`.",
        ),
        misconceptions=(
            Misconception(_bits_codes_only, "You count the codes alone. Each block stores its scale, too."),
            Misconception(_bits_half_scales, "Your plain scales have 16 bits; they are stored as float32."),
            Misconception(_bits_no_second_scale, "Double quantisation has scales of scales: one float32 for 256 of them."),
            Misconception(
                _bits_second_scale_per_weight,
                "One float32 serves 256 *scales*, and each scale a whole block: divide by 256 · block_size.",
            ),
            Misconception(_bits_in_bytes, "You add bytes to bits: a float32 has 32 bits, an 8-bit code 8."),
        ),
    )
)

# --- two codes a byte ------------------------------------------------------------------------------------------------


def _pack_inputs(trial: int) -> tuple[Tensor]:
    return (torch.randint(0, 16, ((8, 10, 7, 13)[trial % 4],), dtype=torch.uint8),)


def _sides(codes: Tensor) -> tuple[Tensor, Tensor]:
    codes = F.pad(codes, (0, len(codes) % 2))
    return codes[::2], codes[1::2]


def _pack_low_first(codes: Tensor) -> Tensor:
    first, second = _sides(codes)
    return second << 4 | first


def _pack_halves(codes: Tensor) -> Tensor:
    first, second = F.pad(codes, (0, len(codes) % 2)).chunk(2)
    return first << 4 | second


def _pack_unshifted(codes: Tensor) -> Tensor:
    first, second = _sides(codes)
    return first | second


def _pack_three(codes: Tensor) -> Tensor:
    first, second = _sides(codes)
    return first << 3 | second


register(
    Exercise(
        id="quantization/pack",
        title="Two codes a byte",
        reference=pack,
        inputs=_pack_inputs,
        difficulty=1,
        minutes=8,
        hints=(
            "`codes[::2]` are the first of each pair, `codes[1::2]` the second. An odd number of codes needs a 0 at the end: `F.pad(codes, (0, 1))`.",
            "The first goes into the high half of the byte: shift it left by 4 bits.",
            "`(first << 4) | second`, all in uint8.",
        ),
        misconceptions=(
            Misconception(
                _pack_low_first,
                "You put the first code into the low half. bitsandbytes has the first one high: shift `first` by 4.",
            ),
            Misconception(
                _pack_halves,
                "You pair the first half of the tensor with the second. Neighbours share a byte: `codes[::2]` and `codes[1::2]`.",
            ),
            Misconception(
                _pack_unshifted, "Both codes lie in the same four bits and overwrite each other: shift the first by 4."
            ),
            Misconception(_pack_three, "A code of 0–15 needs four bits, not three: shift by 4."),
        ),
    )
)

# --- ternary weights -------------------------------------------------------------------------------------------------


def _ternary_inputs(trial: int) -> tuple[Tensor]:
    return (torch.randn(5, 8 + trial) * (1, 0.02, 3, 0.5)[trial % 4],)


def _ternary_by_largest(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.abs().max()
    return (w / scale).round().to(torch.int8), scale


def _ternary_unclamped(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.abs().mean()
    return (w / scale).round().to(torch.int8), scale


def _ternary_signs(w: Tensor) -> tuple[Tensor, Tensor]:
    return w.sign().to(torch.int8), w.abs().mean()


def _ternary_deviation(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.std()
    return (w / scale).round().clamp(-1, 1).to(torch.int8), scale


def _ternary_truncated(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.abs().mean()
    return (w / scale).clamp(-1, 1).to(torch.int8), scale


register(
    Exercise(
        id="quantization/ternary",
        title="Weights of -1, 0 and 1",
        reference=ternary,
        inputs=_ternary_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            "The scale is the mean of |w| over the whole matrix: absmean.",
            "Divide by it, round, and keep what is left between -1 and 1.",
            "`(w / scale).round().clamp(-1, 1).to(torch.int8), scale`.",
        ),
        misconceptions=(
            Misconception(
                _ternary_by_largest,
                "You divide by the largest |w|: then nearly every weight rounds to 0. BitNet takes the *mean* of |w|.",
            ),
            Misconception(_ternary_unclamped, "Some of your codes are beyond ±1: clamp after rounding."),
            Misconception(
                _ternary_signs, "These are signs: one bit, without zeros. Small weights shall become 0: round w / mean |w|."
            ),
            Misconception(_ternary_deviation, "You divide by the standard deviation; the scale is the mean of |w|."),
            Misconception(
                _ternary_truncated, "`.to(torch.int8)` cuts decimals off: only weights of at least mean |w| survive. Round first."
            ),
        ),
    )
)

# --- straight through ------------------------------------------------------------------------------------------------


def _gradient_inputs(trial: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, d_in, d_out = ((3, 4, 5), (2, 6, 3), (7, 5, 5), (1, 8, 2))[trial % 4]
    return torch.randn(rows, d_in), torch.randn(d_out, d_in), torch.randn(rows, d_out)


def _gradient_true(x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(x), torch.zeros_like(w)


def _gradient_unrounded(x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return grad @ w, grad.T @ x


def _gradient_float_weight(x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return grad @ w, grad.T @ round_activations(x)


def _gradient_trits(x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return grad @ ternary(w)[0].float(), grad.T @ round_activations(x)


def _gradient_clipped(x: Tensor, w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return grad @ round_weights(w), (grad.T @ round_activations(x)) * (w.abs() <= w.abs().mean())


register(
    Exercise(
        id="quantization/straight_through",
        title="Straight through the rounding",
        reference=gradients,
        inputs=_gradient_inputs,
        difficulty=3,
        minutes=12,
        hints=(
            "Forward was `y = round_activations(x) @ round_weights(w).T` (both from `quantization.bitnet`). What would backward be, were these two plain tensors?",
            "For y = a bᵀ: the gradient of a is `grad @ b`, that of b is `grad.T @ a`.",
            "Straight through: pass these on to x and w unchanged. `return grad @ round_weights(w), grad.T @ round_activations(x)`.",
        ),
        misconceptions=(
            Misconception(
                _gradient_true,
                "True, the derivative of rounding is 0 almost everywhere, and nothing would ever be learned. Pretend that rounding were the identity.",
            ),
            Misconception(
                _gradient_unrounded, "You multiply by the float x and w. The output was made with the rounded ones: use those."
            ),
            Misconception(
                _gradient_float_weight,
                "For x you multiply by the float weight; forward used the ternary one, `round_weights(w)`.",
            ),
            Misconception(_gradient_trits, "You forgot the scale β: forward multiplied by β · trits, and so does backward."),
            Misconception(
                _gradient_clipped, "You stop the gradient of weights that were clamped. BitNet lets it pass everywhere."
            ),
        ),
    )
)

# --- five trits a byte -----------------------------------------------------------------------------------------------


def _base3_inputs(trial: int) -> tuple[Tensor]:
    return (torch.randint(-1, 2, ((10, 12, 5, 23)[trial % 4],), dtype=torch.int8),)


def _base3_with(trits: Tensor, weights: list[int], shift: int = 1) -> Tensor:
    digits = F.pad(trits.long() + shift, (0, -len(trits) % 5)).view(-1, 5)
    return (digits * torch.tensor(weights)).sum(1).to(torch.uint8)


def _base3_largest_first(trits: Tensor) -> Tensor:
    return _base3_with(trits, [81, 27, 9, 3, 1])


def _base3_base4(trits: Tensor) -> Tensor:
    return _base3_with(trits, [1, 4, 16, 64, 256])


def _base3_unshifted(trits: Tensor) -> Tensor:
    return _base3_with(trits, [1, 3, 9, 27, 81], shift=0)


def _base3_multiples(trits: Tensor) -> Tensor:
    return _base3_with(trits, [3, 6, 9, 12, 15])


register(
    Exercise(
        id="quantization/pack_base3",
        title="Five trits a byte",
        reference=pack_base3,
        inputs=_base3_inputs,
        difficulty=2,
        minutes=10,
        hints=(
            "3⁵ = 243 fits into a byte. Add 1 to each trit: digits 0, 1, 2 of a number in base 3.",
            "Fill up with digits 0 to a multiple of five and view as rows of five.",
            "Multiply by 1, 3, 9, 27, 81, the first trit by 1, and sum each row into a uint8.",
        ),
        misconceptions=(
            Misconception(_base3_largest_first, "Your first trit counts 81; here it counts 1, the last one 81."),
            Misconception(
                _base3_base4, "You count in base 4: the fifth trit no longer fits into the byte. The weights are 1, 3, 9, 27, 81."
            ),
            Misconception(_base3_unshifted, "Your digits are -1, 0, 1, and negative sums wrap round. Add 1 first."),
            Misconception(_base3_multiples, "These are multiples of 3, not powers: different trits get the same byte."),
        ),
    )
)
