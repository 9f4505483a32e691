"""Fine-tune a real model with DeepSpeed's ZeRO; zero3.json says which stage, and in which precision.

    one machine     deepspeed --num_gpus 8 with_deepspeed.py --model Qwen/Qwen3-0.6B
    two machines    deepspeed --hostfile HOSTS with_deepspeed.py …          HOSTS: a line `NAME slots=8` for each machine
    or              torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST-MACHINE:29400
                        with_deepspeed.py … on both

Does:     the stage, precision and clipping of the file; before the first step, what `plan` says that a rank will hold.
Leaves out: CPUs (DeepSpeed compiles its own kernels where it is installed, and is not part of the course's installation);
          offloading, for which the file would get "offload_optimizer" and "offload_param".
Source:   deepspeed.ai/docs/config-json; Rajbhandari et al. 2020, "ZeRO".
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from llmcourse.sharding import plan
from llmcourse.sharding.scripts import rank, task

__all__ = ["CONFIG", "layout_and_precision", "main"]

CONFIG = Path(__file__).with_name("zero3.json")
MISSING = (
    "DeepSpeed is not installed here, and the course does not bring it: it compiles kernels for the GPU it finds. On a machine "
    "with NVIDIA GPUs and CUDA's compiler: pip install deepspeed. Without GPUs, fsdp.py --smoke runs the same stage in PyTorch."
)


def layout_and_precision(config: dict[str, Any], ranks: int) -> tuple[plan.Layout, str]:
    """The calculator's words for what the file asks for. Raises ValueError for float16, which `plan` does not know."""
    if config.get("fp16", {}).get("enabled"):
        raise ValueError("fp16 needs loss scaling and is not planned here; use bf16")
    mixed = config.get("bf16", {}).get("enabled", False)
    return plan.Layout(data=ranks, stage=config["zero_optimization"]["stage"]), "mixed" if mixed else "float32"


def main() -> None:
    parser = task.options(__doc__)
    parser.add_argument("--local_rank", type=int, help="set by the launcher `deepspeed`")
    o = parser.parse_args()
    if find_spec("deepspeed") is None:
        sys.exit(MISSING)
    import deepspeed

    rank.end_with_the_launcher()
    deepspeed.init_distributed()
    config = json.loads(CONFIG.read_text(encoding="utf-8")) | {"train_micro_batch_size_per_gpu": o.batch}
    config["optimizer"]["params"]["lr"] = o.lr
    model, rows = task.load(o)
    report(model, config)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=task.trained(model), config=config)
    for step in range(o.steps):
        loss = task.loss_of(engine, task.batch(rows, step, o.batch, engine.device))
        engine.backward(loss)
        engine.step()
        if engine.global_rank == 0:
            print(f"step {step + 1} of {o.steps}: loss of rank 0 {loss.item():.4f}", flush=True)


def report(model: nn.Module, config: dict[str, Any]) -> None:
    """What the states of a rank will take."""
    import torch.distributed as dist

    layout, precision = layout_and_precision(config, dist.get_world_size())
    parameters = sum(p.numel() for p in model.parameters())
    held = plan.state_bytes(parameters, layout.data, layout.stage, precision)
    if dist.get_rank() == 0:
        print(f"planned: {sum(held.values()) / 1e9:.2f} GB of states on each of {layout.data} ranks", flush=True)


if __name__ == "__main__":
    main()
