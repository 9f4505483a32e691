"""Fine-tune a real model with `accelerate`: one loop, and a file that says how its states are cut.

    one machine     accelerate launch --config_file accelerate.yaml with_accelerate.py --model Qwen/Qwen3-0.6B
    two machines    accelerate launch --config_file accelerate.yaml --num_machines 2 --num_processes 16 --machine_rank 0
                        --main_process_ip FIRST-MACHINE --main_process_port 29400 with_accelerate.py …
                    and the same with --machine_rank 1 on the other
    no GPU          torchrun --standalone --nproc-per-node 2 with_accelerate.py --smoke

Does:     FSDP2 in bf16 with activation checkpointing, as accelerate.yaml says; on CPUs plain DDP, since accelerate has FSDP for
          accelerators only.
Leaves out: LoRA, whose layers must be wrapped before `prepare` (fsdp.py has it); saving (`accelerator.save_state`).
Source:   huggingface.co/docs/accelerate.
"""

import time

import torch

from llmcourse.sharding.scripts import rank, task

__all__ = ["main"]


def main() -> None:
    from accelerate import Accelerator

    o = task.options(__doc__).parse_args()
    rank.end_with_the_launcher()
    accelerator = Accelerator(cpu=o.smoke)
    model, rows = task.load(o)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=o.lr))
    accelerator.print(f"{accelerator.num_processes} ranks, {accelerator.distributed_type.value}")
    began = time.perf_counter()
    for step in range(o.steps):
        loss = task.loss_of(model, task.batch(rows, step, o.batch, accelerator.device))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = accelerator.reduce(loss.detach(), reduction="mean").item()
        accelerator.print(f"step {step + 1} of {o.steps}: loss {mean:.4f}, {time.perf_counter() - began:.0f} s")
    accelerator.end_training()


if __name__ == "__main__":
    main()
