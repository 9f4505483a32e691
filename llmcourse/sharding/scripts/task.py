"""What the scripts for real models share: their options, a model and rows of text, and what the calculator says of the run.

    --model Qwen/Qwen3-0.6B --data fancyzhx/ag_news      from the hub, by way of `zoo` and `data`
    --smoke                                              their stand-ins: tiny and random; no GPU, no network

Does:     on each machine the first rank downloads while the others wait; every rank gets rows of its own from the same order.
Leaves out: what an engine does with them (fsdp.py, with_accelerate.py, with_deepspeed.py); models that a machine's own memory
          cannot hold once for each of its ranks: load these on one rank and spread them (torchtitan shows how).
Source:   own.
"""

import argparse
import os
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmcourse.sharding import plan

__all__ = ["batch", "load", "loss_of", "options", "planned", "trained"]


def options(doc: str) -> argparse.ArgumentParser:
    """The options that all engines have."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--data", default="fancyzhx/ag_news")
    for name, default in {"steps": 100, "batch": 4, "seq": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--smoke", action="store_true", help="three steps of a tiny random model: needs no GPU and no network")
    return parser


def load(o: argparse.Namespace, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """The model in the machine's own memory, ready to train, and rows of tokens."""
    if o.smoke:
        os.environ["LLMCOURSE_STANDIN"] = "1"
        o.steps, o.seq = min(o.steps, 3), min(o.seq, 32)
    torch.manual_seed(0)  # what is random later, as LoRA's start, is the same on every rank
    model, tokenizer, texts = _first_rank_first(lambda: _fetched(o, dtype))
    model.config.use_cache = False
    return model.train(), _rows(tokenizer, texts, o)


def _fetched(o: argparse.Namespace, dtype: torch.dtype) -> tuple[nn.Module, Any, list[str]]:
    from llmcourse import data, zoo

    model, tokenizer = zoo.load(o.model, dtype=dtype, device="cpu")
    found = data.load(o.data)
    return model, tokenizer, found[found.column_names[0]][:4000]


def _first_rank_first(make: Callable[[], Any]) -> Any:
    """What `make` gives; the first rank of each machine makes it while the others wait, who then find its files in the cache."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if dist.is_initialized() and not first:
        dist.barrier()
    found = make()
    if dist.is_initialized() and first:
        dist.barrier()
    return found


def _rows(tokenizer: Any, texts: list[str], o: argparse.Namespace) -> Tensor:
    from llmcourse.pretraining import pipeline

    documents = (tokenizer(text)["input_ids"] for text in texts)
    world = dist.get_world_size() if dist.is_initialized() else 1
    rows = pipeline.pack(documents, o.seq, eos_id=tokenizer.eos_token_id)
    return torch.tensor(list(islice(rows, o.steps * o.batch * world)))


def batch(rows: Tensor, step: int, size: int, device: torch.device) -> Tensor:
    """This rank's rows of a step, from the start again where they end."""
    rank, world = dist.get_rank(), dist.get_world_size()
    places = (step * world + rank) * size + torch.arange(size)
    return rows[places % len(rows)].to(device)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy of the next tokens, the rank's own mean."""
    return model(input_ids=ids, labels=ids).loss


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def planned(model: nn.Module, o: argparse.Namespace, ranks: int, stage: int = 3, *, checkpointing: bool = False) -> plan.Plan:
    """What `plan` says of a rank; call it before the model is cut. Any precision with 16 bytes a trained parameter is "mixed"."""
    c, total = model.config, sum(p.numel() for p in model.parameters())
    shape = {"n_layers": c.num_hidden_layers, "d_model": c.hidden_size, "d_ff": c.intermediate_size, "vocab_size": c.vocab_size}
    heads = {"n_heads": c.num_attention_heads, "n_kv_heads": c.num_key_value_heads, "d_head": c.head_dim}
    share = sum(p.numel() for p in trained(model)) / total
    job = plan.Job(batch=o.batch, seq=o.seq, precision="mixed", checkpointing=checkpointing, trained=share)
    return plan.plan(plan.Model(parameters=total, **shape, **heads), plan.Layout(data=ranks, stage=stage), job)
