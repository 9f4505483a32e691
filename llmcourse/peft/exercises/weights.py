"""Exercises on methods that change weights: LoRA's forward pass, its merge, its count; Houlsby's adapter; IA³'s gains."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...exercise import Exercise, Misconception, register
from ..adapters import houlsby_adapter
from ..ia3 import ia3_merge
from ..lora import lora_forward, lora_merge, n_parameters

# --- LoRA, forward ---------------------------------------------------------------------------------------------------


def _lora_inputs(trial: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    d_in, d_out, r, alpha = ((6, 5, 2, 3.0), (5, 7, 3, 8.0), (8, 8, 4, 6.0), (4, 9, 2, 5.0))[trial % 4]
    return torch.randn(3, d_in), torch.randn(d_out, d_in), torch.randn(r, d_in), torch.randn(d_out, r), alpha


def _lora_unscaled(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return lora_forward(x, W, A, B, A.shape[0])


def _lora_alpha_only(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return lora_forward(x, W, A, B, alpha * A.shape[0])


def _lora_divided_by_width(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return lora_forward(x, W, A, B, alpha * A.shape[0] / A.shape[1])


def _lora_rank_stabilised(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return lora_forward(x, W, A, B, alpha * A.shape[0] ** 0.5)


def _lora_alone(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return lora_forward(x, torch.zeros_like(W), A, B, alpha)


def _lora_all_scaled(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return alpha / A.shape[0] * lora_forward(x, W, A, B, A.shape[0])


register(
    Exercise(
        id="peft/lora_forward",
        title="LoRA: two paths to one output",
        reference=lora_forward,
        inputs=_lora_inputs,
        difficulty=1,
        minutes=6,
        hints=(
            "Two paths start from x: the frozen `F.linear(x, W)`, and a narrow one through A, then B. Their outputs are added.",
            "The narrow one is `F.linear(F.linear(x, A), B)`. It is scaled by alpha over the rank.",
            "The rank is the number of rows of A: `r = A.shape[0]`. Return `F.linear(x, W) + alpha / r * narrow`.",
        ),
        misconceptions=(
            Misconception(_lora_unscaled, "The scale is missing: the low-rank path is multiplied by α / r."),
            Misconception(_lora_alpha_only, "You multiply by α, but not by 1 / r: a higher rank would then change the output more."),
            Misconception(_lora_divided_by_width, "You divide α by the number of input features. It is the rank that divides: `A.shape[0]`."),
            Misconception(_lora_rank_stabilised, "You divide by √r. That is rsLoRA, a good idea for high ranks; LoRA itself divides by r."),
            Misconception(_lora_alone, "The frozen path is lost: LoRA adds to W x, it does not replace it."),
            Misconception(_lora_all_scaled, "The scale belongs to the low-rank path alone: W x stays as it was."),
        ),
    )
)  # fmt: skip

# --- LoRA, merged ----------------------------------------------------------------------------------------------------


def _merge_inputs(trial: int) -> tuple[Tensor, Tensor, Tensor, float]:
    d, r, scale = ((6, 2, 0.5), (5, 3, 2.0), (8, 4, 1.5), (7, 2, 0.25))[trial % 4]
    return torch.randn(d, d), torch.randn(r, d), torch.randn(d, r), scale


def _merge_transposed(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return W + scale * (B @ A).T


def _merge_unscaled(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return W + B @ A


def _merge_scaled_twice(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return W + (scale * B) @ (scale * A)


def _merge_subtracted(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return W - scale * B @ A


def _merge_replaced(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return scale * B @ A


def _merge_all_scaled(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return scale * (W + B @ A)


register(
    Exercise(
        id="peft/lora_merge",
        title="Merge LoRA into the weight",
        reference=lora_merge,
        inputs=_merge_inputs,
        difficulty=1,
        minutes=5,
        hints=(
            "Both paths are linear, so their sum is one matrix. B A x = (B A) x: which product has the shape of W?",
            "`B @ A` is d_out × d_in. Scale it, and add it to W.",
            "`W + scale * B @ A`. Return a new matrix: W itself is needed again when you unmerge.",
        ),
        misconceptions=(
            Misconception(_merge_transposed, "The correction lies on its side. The matrix is square here, so no shape warns you: it is B A, not (B A)ᵀ."),
            Misconception(_merge_unscaled, "The scale is lost: the merged layer would not do what the two paths did."),
            Misconception(_merge_scaled_twice, "You scale A and B both, so the product carries scale². Scale it once."),
            Misconception(_merge_subtracted, "This is the way back: subtracting the correction *un*merges it."),
            Misconception(_merge_replaced, "The old weight is lost. Merging adds the correction to W."),
            Misconception(_merge_all_scaled, "The scale belongs to B A alone, not to W."),
        ),
    )
)  # fmt: skip

# --- LoRA, counted ---------------------------------------------------------------------------------------------------


def _count_inputs(trial: int) -> tuple[int, int, int]:
    return ((768, 768, 8), (1024, 256, 4), (320, 864, 16), (100, 7, 1))[trial % 4]


def _count_full(d_in: int, d_out: int, r: int) -> int:
    return d_in * d_out


def _count_one_matrix(d_in: int, d_out: int, r: int) -> int:
    return r * d_in


def _count_square(d_in: int, d_out: int, r: int) -> int:
    return 2 * r * d_in


def _count_product(d_in: int, d_out: int, r: int) -> int:
    return r * d_in * d_out


def _count_core(d_in: int, d_out: int, r: int) -> int:
    return r * (d_in + d_out) + r * r


register(
    Exercise(
        id="peft/lora_count",
        title="How many numbers does LoRA train?",
        reference=n_parameters,
        inputs=_count_inputs,
        difficulty=1,
        minutes=4,
        hints=(
            "Count the entries of A and of B. W is frozen: it does not count.",
            "A has r rows of d_in numbers, B has d_out rows of r numbers.",
            "`r * (d_in + d_out)`.",
        ),
        misconceptions=(
            Misconception(_count_full, "These are W's own entries, the very ones that stay frozen."),
            Misconception(_count_one_matrix, "You counted A alone. B is trained too."),
            Misconception(_count_square, "That is right for square layers only: B is as tall as the *output*, d_out."),
            Misconception(_count_product, "You multiply where you should add: A and B are stored apart, never as their product."),
            Misconception(_count_core, "There is no r × r matrix between A and B: two factors, nothing else."),
        ),
    )
)

# --- Houlsby's adapter -----------------------------------------------------------------------------------------------


def _houlsby_inputs(trial: int) -> tuple[Tensor, Tensor, Tensor]:
    d, m = ((6, 2), (5, 3), (8, 4), (7, 7))[trial % 4]
    return torch.randn(4, d), torch.randn(m, d), torch.randn(d, m)


def _houlsby_no_residual(y: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return houlsby_adapter(y, down, up) - y


def _houlsby_linear(y: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return y + F.linear(F.linear(y, down), up)


def _houlsby_bent_late(y: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return y + torch.relu(F.linear(F.linear(y, down), up))


def _houlsby_bent_early(y: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return y + F.linear(F.linear(torch.relu(y), down), up)


def _houlsby_all_bent(y: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return torch.relu(houlsby_adapter(y, down, up))


def _houlsby_gelu(y: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return y + F.linear(F.gelu(F.linear(y, down)), up)


register(
    Exercise(
        id="peft/houlsby_adapter",
        title="A bottleneck with a way around it",
        reference=houlsby_adapter,
        inputs=_houlsby_inputs,
        difficulty=1,
        minutes=6,
        hints=(
            "Three steps inside: down to m features, ReLU, up to d again. And one way around: the input is added at the end.",
            "`narrow = torch.relu(F.linear(y, down))`: bend in the middle, where it is narrow.",
            "Return `y + F.linear(narrow, up)`. With `up` near zero the adapter starts as the identity.",
        ),
        misconceptions=(
            Misconception(_houlsby_no_residual, "The way around is missing: return y *plus* the bottleneck. Without it a fresh adapter erases the layer's output."),
            Misconception(_houlsby_linear, "Nothing bends: two linear steps in a row are one, of low rank. ReLU goes between them."),
            Misconception(_houlsby_bent_late, "ReLU comes too late: bend in the narrow middle, before `up`. So your adapter can only ever add."),
            Misconception(_houlsby_bent_early, "ReLU comes too early: squeeze first, then bend. The negative half of y is lost otherwise."),
            Misconception(_houlsby_all_bent, "You bend the sum. The way around must stay straight: ReLU only inside."),
            Misconception(_houlsby_gelu, "This bends with GELU; the exercise asks for ReLU."),
        ),
    )
)  # fmt: skip

# --- IA³ -------------------------------------------------------------------------------------------------------------


def _ia3_inputs(trial: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    d = (5, 6, 4, 7)[trial % 4]
    return torch.randn(d, d), torch.randn(d), torch.randn(d), bool(trial % 2)


def _ia3_turned(W: Tensor, b: Tensor, gain: Tensor, on_input: bool) -> tuple[Tensor, Tensor]:
    return ia3_merge(W, b, gain, not on_input)[0], ia3_merge(W, b, gain, on_input)[1]


def _ia3_bias_kept(W: Tensor, b: Tensor, gain: Tensor, on_input: bool) -> tuple[Tensor, Tensor]:
    return ia3_merge(W, b, gain, on_input)[0], b.clone()


def _ia3_bias_always(W: Tensor, b: Tensor, gain: Tensor, on_input: bool) -> tuple[Tensor, Tensor]:
    return ia3_merge(W, b, gain, on_input)[0], gain * b


def _ia3_added(W: Tensor, b: Tensor, gain: Tensor, on_input: bool) -> tuple[Tensor, Tensor]:
    return (W + gain, b.clone()) if on_input else (gain[:, None] + W, gain + b)


def _ia3_rows_always(W: Tensor, b: Tensor, gain: Tensor, on_input: bool) -> tuple[Tensor, Tensor]:
    return ia3_merge(W, b, gain, False)


register(
    Exercise(
        id="peft/ia3_merge",
        title="Merge a gain into the layer",
        reference=ia3_merge,
        inputs=_ia3_inputs,
        difficulty=2,
        minutes=8,
        hints=(
            "A gain on the output scales every output feature: which part of W makes output feature i, a row or a column?",
            "Row i makes output i, so `gain[:, None] * W`; column j reads input j, so `W * gain` for a gain on the input.",
            "On the output, the bias is scaled too: l ⊙ (W x + b) = (l ⊙ W) x + l ⊙ b. On the input, it is not.",
        ),
        misconceptions=(
            Misconception(_ia3_turned, "Rows and columns are exchanged: row i of W makes output i, column j reads input j."),
            Misconception(_ia3_bias_kept, "With the gain on the output, the bias is scaled too: it is part of that output."),
            Misconception(_ia3_bias_always, "With the gain on the input, the bias stays: it is added after W has read the scaled input."),
            Misconception(_ia3_added, "A gain multiplies; you add it. At its start, one, it must change nothing."),
            Misconception(_ia3_rows_always, "You never look at `on_input`: for a gain on the input, the columns are scaled, and the bias is not."),
        ),
    )
)  # fmt: skip
