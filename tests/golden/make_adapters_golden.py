"""Golden outputs and gradients of the library `adapters` 1.3, which pins a transformers too old to stand beside ours.

    python -m venv adp && adp/bin/pip install "adapters==1.3.*" torch
    adp/bin/python tests/golden/make_adapters_golden.py

For each tiny random model and method it writes `adapters_<model>_<method>.safetensors`: the base's weights ("base."), the
adapter's under the library's names ("adapter."), token ids, the last hidden states, and the gradients of a fixed loss
("grad."); beside them, `adapters_golden.json` with versions, shapes and settings.
"""

import json
from importlib.metadata import version
from pathlib import Path

import adapters
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
MODELS = {
    "bert": ("Bert", {"vocab_size": 23, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "intermediate_size": 26, "max_position_embeddings": 16}),
    "llama": ("Llama", {"vocab_size": 23, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
                        "num_key_value_heads": 1, "intermediate_size": 26, "max_position_embeddings": 16}),
    "gpt2": ("GPT2", {"vocab_size": 23, "n_embd": 20, "n_layer": 2, "n_head": 4, "n_positions": 16}),
    "t5": ("T5", {"vocab_size": 23, "d_model": 20, "d_ff": 26, "d_kv": 5, "num_heads": 3, "num_layers": 2}),
}  # fmt: skip
METHODS = {
    "houlsby": adapters.DoubleSeqBnConfig(reduction_factor=4, non_linearity="swish"),
    "parallel": adapters.ParBnConfig(reduction_factor=5, scaling=3.0),
    "mam": adapters.MAMConfig(
        adapters.PrefixTuningConfig(bottleneck_size=9, prefix_length=3, dropout=0.0), adapters.ParBnConfig(reduction_factor=4)
    ),
    "unipelt": adapters.UniPELTConfig(
        adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=9, dropout=0.0, use_gating=True),
        adapters.SeqBnConfig(reduction_factor=4, use_gating=True, original_ln_before=False),
        adapters.LoRAConfig(r=2, use_gating=True),
    ),
}
CASES = [("bert", method) for method in METHODS] + [(model, "houlsby") for model in ("llama", "gpt2", "t5")]


def build(model: str, method: str) -> torch.nn.Module:
    """The model with the adapter active, every weight of both random, in eval mode."""
    name, shape = MODELS[model]
    torch.manual_seed(0)
    built = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**shape))
    adapters.init(built)
    built.add_adapter("x", config=METHODS[method])
    built.train_adapter("x")
    for parameter in built.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (parameter.ndim == 1)
    return built.eval()


def make(model: str, method: str) -> dict[str, torch.Tensor]:
    """One file's tensors."""
    built = build(model, method)
    torch.manual_seed(1)
    ids = torch.randint(1, 23, (2, 6))
    inputs = {"decoder_input_ids": ids.flip(1)} if model == "t5" else {}
    out = built(input_ids=ids, **inputs).last_hidden_state
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    trained = {name: p for name, p in built.named_parameters() if p.requires_grad}
    base = {name.replace(".base_layer", ""): p for name, p in built.named_parameters() if name not in trained}
    tensors = {"ids": ids, "output": out, **{f"base.{name}": p for name, p in base.items()}}
    tensors |= {f"adapter.{name}": p for name, p in trained.items()}
    tensors |= {f"grad.{name}": p.grad for name, p in trained.items() if p.grad is not None}
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    """Write all files."""
    for model, method in CASES:
        save_file(make(model, method), HERE / f"adapters_{model}_{method}.safetensors")
    versions = {name: version(name) for name in ("adapters", "transformers", "torch")}
    settings = {name: config.to_dict() for name, config in METHODS.items()}
    facts = {"versions": versions, "models": {name: shape for name, (_, shape) in MODELS.items()}, "methods": settings}
    (HERE / "adapters_golden.json").write_text(json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
