"""Fine-tune a real model with FSDP2, PyTorch's own ZeRO-3: bf16, activation checkpointing, LoRA.

    one machine     torchrun --standalone --nproc-per-node 8 fsdp.py --model Qwen/Qwen3-0.6B --checkpointing
    two machines    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST-MACHINE:29400 fsdp.py …
                    the same line on both
    no GPU          torchrun --standalone --nproc-per-node 2 fsdp.py --smoke

    a layer:  shards (float32) ─all-gather in bf16─► whole ─► forward, backward ─► freed;  gradients ─reduce-scatter in float32─►

Does:     all weights, or LoRA's beside frozen ones in bf16; NCCL on GPUs, gloo on CPUs; the trained weights as one file of
          safetensors; bytes of a rank, measured and planned.
Leaves out: resuming (train.py and `sharding.checkpoint` show it); float16 and its loss scaling, so that chips without bf16 (a T4)
          compute in float32; tensor parallelism.
Source:   torch.distributed.fsdp.fully_shard; Zhao et al. 2023, "PyTorch FSDP".
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from llmcourse.peft import lora
from llmcourse.sharding import zero
from llmcourse.sharding.scripts import rank, task
from llmcourse.sharding.scripts.train import state_bytes

__all__ = ["main"]


def shard(model: nn.Module, here: rank.Rank, dtype: torch.dtype) -> None:
    """Layer by layer, then the rest: so a GPU never sees more than one whole layer. Computes in dtype, adds up in float32."""
    options = {
        "mesh": init_device_mesh(here.device.type, (here.world,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
    }
    for layer in zero.units_of(model).values():
        fully_shard(layer, **options)
    fully_shard(model, **options)


def recompute(model: nn.Module) -> None:
    """Each layer forgets its activations. Within the gathered layer, so that the second run finds the weights still there."""
    for layer in zero.units_of(model).values():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def arithmetic(here: rank.Rank) -> torch.dtype:
    """bf16 on GPUs that have it, and on CPUs; else float32."""
    emulated = here.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float32 if emulated else torch.bfloat16


def fine_tune(model: nn.Module, rows: torch.Tensor, here: rank.Rank, o: argparse.Namespace) -> dict[str, Any]:
    """The steps; losses, seconds and bytes."""
    parameters = task.trained(model)
    optimizer, losses, began = torch.optim.AdamW(parameters, lr=o.lr), [], time.perf_counter()
    for step in range(o.steps):
        loss = task.loss_of(model, task.batch(rows, step, o.batch, here.device))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        held = state_bytes(model, optimizer)
        optimizer.zero_grad()
        mean = loss.detach() / here.world
        dist.all_reduce(mean)
        losses.append(mean.item())
        here.step(step + 1, o.steps, loss=losses[-1])
    peak = torch.cuda.max_memory_allocated() if here.device.type == "cuda" else None
    return {"losses": losses, "seconds": time.perf_counter() - began, "bytes": held, "peak": peak}


def save(model: nn.Module, file: Path, here: rank.Rank) -> None:
    """The trained weights, whole: every rank takes part, the first one writes."""
    from safetensors.torch import save_file

    whole = {name: p.full_tensor().cpu() for name, p in model.named_parameters() if p.requires_grad}
    if here.rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in whole.items()}, file)


def parsed() -> argparse.Namespace:
    parser = task.options(__doc__)
    parser.add_argument("--lora", type=int, default=0, help="the rank of LoRA on every linear layer; 0 trains all weights")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again")
    parser.add_argument("--save", type=Path, help="write the trained weights to this file of safetensors")
    return parser.parse_args()


def main() -> None:
    o = parsed()
    with rank.joined() as here:
        dtype = arithmetic(here)
        model, rows = task.load(o, dtype if o.lora else torch.float32)  # frozen weights need no float32 master
        if o.lora:
            lora.attach(model, lora.Config(r=o.lora, alpha=2 * o.lora, targets="all-linear"))
        if o.checkpointing:
            recompute(model)
        expected = task.planned(model, o, here.world, checkpointing=o.checkpointing)
        shard(model, here, dtype)
        found = fine_tune(model, rows, here, o)
        if o.save:
            save(model, o.save, here)
        here.result(found | {"device": here.device.type, "planned": expected.memory})


if __name__ == "__main__":
    main()
