"""Greedy generation of 128 tokens after a prompt of 32, our `generate` against transformers', on a random 10 M-parameter Llama.

Both keep a KV cache, neither stops at EOS, and the tokens are asserted equal before anything is timed.
"""

import torch

from benchmarks.race import Result, race, report
from llmcourse.transformer import Transformer, generate

__all__ = ["main"]

PROMPT, NEW = 32, 128


def llama() -> torch.nn.Module:
    """A random Llama with grouped-query attention: 8 layers of 320 features."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 4096, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 8, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=4, tie_word_embeddings=True)).eval()


def generation(batch: int, pairs: int) -> Result:
    """One race, for `batch` prompts at once."""
    theirs, ids = llama(), torch.randint(3, 4096, (batch, PROMPT))
    ours = Transformer.from_hf(theirs)
    options = {"max_new_tokens": NEW, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)

    def our_run() -> torch.Tensor:
        return generate(ours, ids, NEW)

    def their_run() -> torch.Tensor:
        return theirs.generate(ids, **options)

    assert torch.equal(our_run(), their_run()), "the two sides do not generate the same tokens"
    return race(f"greedy, batch {batch}", our_run, their_run, goal=0.9, pairs=pairs)


def main() -> None:
    """Run the races on one thread: a second one is worth little here and costs much on a busy machine."""
    torch.set_num_threads(1)
    report("transformer", [generation(1, pairs=31), generation(16, pairs=21)])
