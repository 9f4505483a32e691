"""Our NF4 against bitsandbytes, and what 4-bit weights cost a training step.

Quantise and restore a 4096 × 4096 matrix, blocks of 64, float32: codes, scales and restored weights are asserted equal before
anything is measured. Training: one AdamW step of LoRA (rank 8 on every linear layer) on 8 × 128 tokens, the base in nf4 with
double quantisation against the same base in float32, both ours.
"""

from collections.abc import Callable

import torch
from torch.testing import assert_close

from benchmarks.race import Result, memory_race, race, report
from benchmarks.transformer import VOCAB, llama
from llmcourse.peft import lora
from llmcourse.quantization import models, nf4, qlora

__all__ = ["main"]


def matrix(n: int = 4096, pairs: int = 21) -> list[Result]:
    """Quantise and dequantise, with bitsandbytes' C++ on the other side of the second."""
    import bitsandbytes.functional as bnb

    x = torch.randn(n, n, generator=torch.Generator().manual_seed(0)) * 0.02
    ours, (codes, state) = nf4.quantize(x), bnb.quantize_4bit(x, quant_type="nf4")
    assert torch.equal(ours.codes, codes.flatten()) and torch.equal(ours.scales, state.absmax)
    assert torch.equal(nf4.dequantize(ours), bnb.dequantize_4bit(codes, state))
    return [
        race(
            f"NF4 quantise {n} × {n}",
            lambda: nf4.quantize(x),
            lambda: bnb.quantize_4bit(x, quant_type="nf4"),
            goal=0.8,
            pairs=pairs,
        ),
        race(
            f"NF4 dequantise {n} × {n}",
            lambda: nf4.dequantize(ours),
            lambda: bnb.dequantize_4bit(codes, state),
            goal=2.0,
            pairs=pairs,
        ),
    ]


def _step(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> torch.Tensor:
        value = model(ids, labels=ids, use_cache=False).loss
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        return value.detach()

    return step


def training(batch: int = 8, n_tokens: int = 128, pairs: int = 21) -> list[Result]:
    """Time and peak memory of one step: QLoRA against LoRA on the dequantised base, so that both have the same losses."""
    ids = torch.randint(3, VOCAB, (batch, n_tokens))
    quantised, plain = (models.quantize_model(llama()) for _ in range(2))
    models.dequantize_model(plain)
    for model in (quantised, plain):
        torch.manual_seed(1)
        qlora.attach(model) if model is quantised else lora.attach(model, lora.Config(targets="all-linear"))
    ours, theirs = _step(quantised, ids), _step(plain, ids)
    for _ in range(3):
        assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5)
    name = f"QLoRA step against LoRA step, {batch} × {n_tokens} tokens"
    return [
        race(name, ours, theirs, goal=1.2, pairs=pairs),
        memory_race(f"{name}, peak memory", ours, theirs, goal=1.2),
    ]


def main() -> None:
    """Run the races on one thread: a second one is worth little here and costs much on a busy machine."""
    torch.set_num_threads(1)
    report("quantization", [*matrix(), *training()])
