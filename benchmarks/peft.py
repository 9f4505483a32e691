"""Our LoRA against HF peft's, on a random Llama: a forward pass, a training step and its peak memory, a merge and its undoing.

Both sides adapt the same transformers model in the same places (query, key, value and output projections) with the same rank
and the same weights; outputs, losses, gradients and merged weights are asserted equal before anything is measured.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from benchmarks.race import Result, memory_race, race, report
from llmcourse.peft import lora

__all__ = ["main"]

VOCAB, RANK, CLOSE = 4096, 8, {"rtol": 1e-4, "atol": 1e-5}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def llama(width: int = 320) -> nn.Module:
    """A random Llama with grouped-query attention: 8 layers; of 320 features, 10 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "hidden_size": width, "intermediate_size": 27 * width // 10, "num_hidden_layers": 8}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True)).eval()


def contestants(width: int = 320) -> tuple[nn.Module, lora.LoRA, nn.Module]:
    """Our adapted model, its handle, and HF peft's, with the same random weights in both adapters."""
    import peft as hf_peft

    ours, theirs = llama(width), llama(width)
    handle = lora.attach(ours, lora.Config(r=RANK, alpha=16, targets=TARGETS))
    wrapped = hf_peft.get_peft_model(theirs, hf_peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=list(TARGETS)))
    values = {key: 0.1 * torch.randn_like(tensor) for key, tensor in handle.file_tensors().items()}
    handle.fill(values)
    assert not hf_peft.set_peft_model_state_dict(wrapped, values).unexpected_keys
    return ours, handle, wrapped.eval()


def forward(n_tokens: int = 512, pairs: int = 41) -> Result:
    """All logits of one text."""
    ours, _, theirs = contestants()
    ids = torch.randint(3, VOCAB, (1, n_tokens))

    @torch.inference_mode()
    def our_run() -> Tensor:
        return ours(input_ids=ids, use_cache=False).logits

    @torch.inference_mode()
    def their_run() -> Tensor:
        return theirs(input_ids=ids, use_cache=False).logits

    assert_close(our_run(), their_run(), **CLOSE)
    return race(f"LoRA forward, {n_tokens} tokens", our_run, their_run, goal=1.0, pairs=pairs)


def _step(model: nn.Module, parameters: list[nn.Parameter], ids: Tensor) -> Callable[[], Tensor]:
    model.train()
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> Tensor:
        value = model(input_ids=ids, labels=ids, use_cache=False).loss
        value.backward()
        optimiser.step()
        optimiser.zero_grad()  # last, so that a step starts and ends with nothing but weights and the optimiser's state
        return value.detach()

    return step


def training(batch: int = 8, n_tokens: int = 128, pairs: int = 21) -> list[Result]:
    """Time and peak memory of one step of the adapter alone."""
    ours, handle, theirs = contestants()
    ids = torch.randint(3, VOCAB, (batch, n_tokens))
    their_parameters = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in handle.parameters()) == sum(p.numel() for p in their_parameters)
    our_step, their_step = _step(ours, list(handle.parameters()), ids), _step(theirs, their_parameters, ids)
    for _ in range(3):
        assert_close(our_step(), their_step(), **CLOSE)
    _assert_equal_weights(handle, theirs)
    name = f"LoRA training step, {batch} × {n_tokens} tokens"
    return [
        race(name, our_step, their_step, goal=1.0, pairs=pairs),
        memory_race(f"{name}, peak memory", our_step, their_step, goal=1.0),
    ]


def _assert_equal_weights(handle: lora.LoRA, theirs: nn.Module) -> None:
    import peft as hf_peft

    trained = hf_peft.get_peft_model_state_dict(theirs)
    for key, tensor in handle.file_tensors().items():
        assert_close(tensor, trained[key], **CLOSE)


def merging(width: int = 1024, pairs: int = 31) -> Result:
    """Into the weights and out again: ours puts the kept weights back, HF peft subtracts what it added."""
    ours, handle, theirs = contestants(width)

    def our_run() -> None:
        handle.merge()
        handle.unmerge()

    def their_run() -> None:
        theirs.merge_adapter()
        theirs.unmerge_adapter()

    handle.merge()
    theirs.merge_adapter()
    for ours_layer, theirs_layer in zip(ours.model.layers, theirs.base_model.model.model.layers, strict=True):
        assert_close(ours_layer.self_attn.k_proj.weight, theirs_layer.self_attn.k_proj.weight, **CLOSE)
    handle.unmerge()
    theirs.unmerge_adapter()
    return race(f"LoRA merge and unmerge, 32 layers of width {width}", our_run, their_run, goal=1.0, pairs=pairs)


def main() -> None:
    """Run the races on one thread: a second one is worth little here and costs much on a busy machine."""
    torch.set_num_threads(1)
    report("peft", [forward(), *training(), merging()])
