"""Our Transformer against transformers' Llama, on random weights: reading a prompt, a training step, greedy generation.

Prefill: 512 tokens into a KV cache, and the last token's logits. Training: loss of 8 × 128 tokens, gradients, one AdamW step.
Generation: 128 tokens after a prompt of 32, with a cache, without a stop at EOS. What both sides return is asserted equal
before anything is measured.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from benchmarks.race import Result, memory_race, race, report
from llmcourse.transformer import KVCache, Transformer, generate

__all__ = ["main"]

VOCAB, CLOSE = 4096, {"rtol": 1e-4, "atol": 1e-5}


def llama() -> torch.nn.Module:
    """A random Llama of 10 M parameters with grouped-query attention: 8 layers of 320 features."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, tie_word_embeddings=True)).eval()


def prefill(n_tokens: int = 512, pairs: int = 41) -> Result:
    """One prompt: what stands between a question and the first token of the answer."""
    theirs, ids = llama(), torch.randint(3, VOCAB, (1, n_tokens))
    ours = Transformer.from_hf(theirs)

    @torch.inference_mode()
    def our_run() -> tuple[torch.Tensor, KVCache]:
        cache = KVCache(ours.config.n_layers, capacity=n_tokens)
        return ours.unembed(ours.hidden(ids, cache=cache)[:, -1:]), cache

    @torch.inference_mode()
    def their_run() -> tuple[torch.Tensor, object]:
        out = theirs(ids, use_cache=True, logits_to_keep=1)
        return out.logits, out.past_key_values

    (our_logits, our_cache), (their_logits, their_cache) = our_run(), their_run()
    assert_close(our_logits, their_logits, **CLOSE)
    for our_layer, their_layer in zip(our_cache.layers, their_cache.layers, strict=True):
        assert_close(our_layer.keys, their_layer.keys, **CLOSE)
        assert_close(our_layer.values, their_layer.values, **CLOSE)
    return race(f"prefill, {n_tokens} tokens", our_run, their_run, goal=1.0, pairs=pairs)


def _step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> torch.Tensor:
        value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad()  # last, so that a step starts and ends with nothing but weights and the optimiser's state
        return value.detach()

    return step


def training(batch: int = 8, n_tokens: int = 128, pairs: int = 21) -> list[Result]:
    """Time and peak memory of one step; both sides take the loss of all logits but the last, and keep no cache."""
    theirs, ids = llama(), torch.randint(3, VOCAB, (batch, n_tokens))
    ours = Transformer.from_hf(theirs)
    targets = F.pad(ids[:, 1:], (0, 1), value=-100).flatten()
    our_step = _step(ours, lambda: F.cross_entropy(ours(ids).flatten(0, 1), targets))
    their_step = _step(theirs, lambda: theirs(ids, labels=ids, use_cache=False).loss)
    for _ in range(3):
        assert_close(our_step(), their_step(), **CLOSE)
    assert_close(
        ours.blocks[0].attention.q.weight.grad, theirs.model.layers[0].self_attn.q_proj.weight.grad, rtol=1e-3, atol=1e-5
    )
    name = f"training step, {batch} × {n_tokens} tokens"
    return [
        race(name, our_step, their_step, goal=1.0, pairs=pairs),
        memory_race(f"{name}, peak memory", our_step, their_step, goal=1.0),
    ]


def generation(batch: int, pairs: int, prompt: int = 32, new: int = 128) -> Result:
    """One race, for `batch` prompts at once."""
    theirs, ids = llama(), torch.randint(3, VOCAB, (batch, prompt))
    ours = Transformer.from_hf(theirs)
    options = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)

    def our_run() -> torch.Tensor:
        return generate(ours, ids, new)

    def their_run() -> torch.Tensor:
        return theirs.generate(ids, **options)

    assert torch.equal(our_run(), their_run()), "the two sides do not generate the same tokens"
    return race(f"greedy, batch {batch}", our_run, their_run, goal=0.9, pairs=pairs)


def main() -> None:
    """Run the races on one thread: a second one is worth little here and costs much on a busy machine."""
    torch.set_num_threads(1)
    report("transformer", [prefill(), *training(), generation(1, pairs=31), generation(16, pairs=21)])
