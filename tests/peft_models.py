"""Random models of every kind that soft prompts and prefixes are tested on, and batches for them."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from llmcourse import peft

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
MODELS = {
    "llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel, "t5": T5ForConditionalGeneration, "bert": BertForSequenceClassification,
    "llama_classifier": LlamaForSequenceClassification, "gpt2_classifier": GPT2ForSequenceClassification,
}  # fmt: skip
GENERATORS = ["llama", "gpt2", "t5"]


def sizes(name, seed):
    """A random odd configuration."""
    rng = random.Random(f"{name}{seed}")
    kv, d = rng.choice([1, 2, 3]), 2 * rng.randrange(2, 6)
    heads, layers, vocab, inner = kv * rng.choice([1, 2]), rng.choice([2, 3]), rng.randrange(41, 70), rng.randrange(11, 40)
    common = {"vocab_size": vocab, "pad_token_id": 0, "num_labels": 3}
    if name.startswith("llama"):
        common |= {
            "num_key_value_heads": kv,
            "num_attention_heads": heads,
            "head_dim": d,
            "hidden_size": heads * rng.randrange(5, 11),
        }
        return LlamaConfig(**common, num_hidden_layers=layers, intermediate_size=inner, eos_token_id=None)
    if name.startswith("gpt2"):
        common |= {"n_embd": heads * d, "n_head": heads, "n_layer": layers, "n_inner": inner, "n_positions": 40}
        return GPT2Config(**common, eos_token_id=None, bos_token_id=1)
    if name == "t5":
        common |= {"d_model": rng.randrange(17, 33), "d_kv": d, "num_heads": heads, "d_ff": inner, "num_layers": layers}
        return T5Config(**common, num_decoder_layers=2, dropout_rate=0.0, eos_token_id=None, decoder_start_token_id=0)
    common |= {"hidden_size": heads * d, "num_attention_heads": heads, "num_hidden_layers": layers, "intermediate_size": inner}
    return BertConfig(**common, max_position_embeddings=40)


def make(name, seed=1, cls=None):
    """A random model in which no weight is near its initial value."""
    torch.manual_seed(seed)
    model = (cls or MODELS[name])(sizes(name, seed))
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model.eval()


def batch(name, side=None, rows=3, seq=9, labels=True):
    """Ids, mask and labels; padding (id 0) on one side."""
    rng = torch.Generator().manual_seed(seq)
    ids, mask = torch.randint(3, 41, (rows, seq), generator=rng), torch.ones(rows, seq, dtype=torch.long)
    for row in range(rows):
        mask[row, : 2 * row] = 0
    mask = {"left": mask, "right": mask.flip(1), None: torch.ones_like(mask)}[side]
    out = {"input_ids": ids * mask, "attention_mask": mask}
    if labels and name in ("llama", "gpt2"):
        out["labels"] = ids.masked_fill(mask == 0, -100)
    elif labels:
        out["labels"] = ids[:, :6].contiguous() if name == "t5" else torch.arange(rows) % 3
    return out


def task(model):
    return peft.interface.task_type(model)


# Golden vectors of the library `adapters`, made by golden/make_adapters_golden.py

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "adapters_golden.json").read_text(encoding="utf-8"))
GOLDEN_MODELS = {"bert": "Bert", "llama": "Llama", "gpt2": "GPT2", "t5": "T5"}


def bare(family: str):
    """The model without a head whose weights the golden files hold, random so far, in eval mode."""
    import transformers as hf

    torch.manual_seed(0)
    name = GOLDEN_MODELS[family]
    return getattr(hf, f"{name}Model")(getattr(hf, f"{name}Config")(**FACTS["models"][family])).eval()


def golden(family: str, method: str):
    """The base model with the file's weights, and the file's other tensors by kind."""
    tensors = load_file(GOLDEN / f"adapters_{family}_{method}.safetensors")
    kinds = {
        kind: {k.removeprefix(f"{kind}."): t for k, t in tensors.items() if k.startswith(f"{kind}.")}
        for kind in ("base", "adapter", "grad")
    }
    model = bare(family)
    result = model.load_state_dict(kinds["base"], strict=False)
    assert not result.unexpected_keys and all("embed_tokens" in key for key in result.missing_keys)
    return model, tensors, kinds
