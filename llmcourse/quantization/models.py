"""Whole models: every linear layer replaced by a quantised one, counted, saved and loaded.

    model ─► for each nn.Linear (or GPT-2's Conv1D) that is not skipped, not tied: quantise ─► the same model, smaller
             embeddings, norms, biases and the head stay in float: they are small, or quality hangs on them

Does:     any model of transformers and our own, in place; float models with ternary layers to train (`ternary_model`); back to
          floats (`dequantize_model`); bytes in memory and on disk, by formula and measured; one safetensors file.
Leaves out: experts stacked in one tensor (Mixtral's), embeddings, models too large for memory before they are quantised.
Source:   Dettmers et al. 2022, §2, and Dettmers et al. 2023, §3, for what is left in float.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from .bitnet import BitLinear, PackedBitLinear
from .checks import nearest, read_file
from .frozen import Frozen
from .linear import QuantConfig, quantize_linear

__all__ = [
    "SKIP",
    "dequantize_model",
    "disk_bytes",
    "expected_bytes",
    "is_quantized",
    "linears",
    "load",
    "memory_bytes",
    "pack_model",
    "quantize_model",
    "save",
    "ternary_model",
]

SKIP = ("lm_head", "head", "classifier", "score", "classification_head", "qa_outputs", "cls")
"""Names, or parts of dotted names, of what turns the last states into answers, in the models we teach."""

# ---- which layers -----------------------------------------------------------------------------------------------------


def linears(model: nn.Module, skip: Collection[str] = SKIP) -> dict[str, nn.Module]:
    """The layers to replace, by name: linear ones that no name of `skip` is part of, and whose weight no other module shares.

    Raises: ValueError for a name to skip that no module has, with the nearest; for a model without linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    _check_skip(model, skip)
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in filter(lambda p: p is not None, module._parameters.values()):
            owners.setdefault(id(parameter), set()).add(id(module))
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, BitLinear, Conv1D)
        and not set(name.split(".")) & set(skip)
        and len(owners[id(module.weight)]) == 1
    }
    if not found:
        raise ValueError(f"this {type(model).__name__} has no linear layer to quantise outside of {', '.join(skip)}")
    return found


def _check_skip(model: nn.Module, skip: Collection[str]) -> None:
    known = {part for name, _ in model.named_modules() for part in name.split(".")}
    for name in skip:
        if name not in known and name not in SKIP:
            raise ValueError(f"skip={name!r} is no part of any module's name{nearest(name, known)}")


def as_linear(layer: nn.Module) -> nn.Linear:
    """The layer itself, or Conv1D's weight turned into (out, in)."""
    if isinstance(layer, nn.Linear):
        return layer
    d_in, d_out = layer.weight.shape
    turned = nn.Linear(d_in, d_out, device="meta")
    turned.weight, turned.bias = nn.Parameter(layer.weight.detach().T.contiguous()), layer.bias
    return turned


def is_quantized(module: nn.Module) -> bool:
    """Whether this layer's weight is stored as codes, by us or by bitsandbytes."""
    return isinstance(module, Frozen) or type(module).__module__.startswith("bitsandbytes")


def _replace(model: nn.Module, make: Callable[[nn.Module], nn.Module], layers: Mapping[str, nn.Module]) -> None:
    """Put `make(layer)` wherever in the model each layer is held; nothing changes if one of them fails."""
    new = {}
    for name, layer in layers.items():
        try:
            new[layer] = make(layer).train(layer.training)
        except (ValueError, TypeError) as error:
            raise type(error)(f"layer {name!r}: {error}") from error
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in new:
                parent._modules[key] = new[child]


def _check_plain(model: nn.Module) -> None:
    """Refuse a model that is quantised already, or that has adapters."""
    done = [name for name, module in model.named_modules() if is_quantized(module)]
    if done:
        raise ValueError(
            f"this {type(model).__name__} is quantised already: {len(done)} layers, {done[0]!r} among them; "
            "load the original weights, or dequantize_model(model) first"
        )
    if "_adapters_attached" in model.__dict__:
        raise ValueError("this model has adapters attached: quantise the base first, then attach (see qlora)")


# ---- convert ----------------------------------------------------------------------------------------------------------


def quantize_model(model: nn.Module, config: QuantConfig | None = None, skip: Collection[str] = SKIP) -> nn.Module:
    """Replace the model's linear layers by quantised ones, in place; their names stay. Returns the model.

    Raises: ValueError for a model that is quantised already or has adapters, for a name to skip that nothing has, for weights
    that are empty or not finite (with layer and place); TypeError for weights of another type.
    """
    _check_plain(model)
    config = config or QuantConfig()
    _replace(model, lambda layer: quantize_linear(as_linear(layer), config), linears(model, skip))
    return model


def ternary_model(model: nn.Module, skip: Collection[str] = SKIP, *, norm: bool = False) -> nn.Module:
    """Replace the linear layers by BitLinear with the same weights, in place, to train on (or anew); returns the model.

    norm: an RMSNorm in front of each, for training from scratch; a trained model expects its inputs as they were.
    Raises: as `quantize_model`.
    """
    _check_plain(model)

    def make(layer: nn.Module) -> BitLinear:
        linear = as_linear(layer)
        bit = BitLinear(linear.in_features, linear.out_features, linear.bias is not None, norm=norm)
        bit.to(linear.weight.device, linear.weight.dtype).weight = linear.weight
        bit.bias = linear.bias
        return bit

    _replace(model, make, linears(model, skip))
    return model


def pack_model(model: nn.Module) -> nn.Module:
    """Replace every trained BitLinear by its packed form, in place: the same outputs, 1.6 bits a weight.

    Raises: ValueError where there is none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    if not found:
        raise ValueError(f"this {type(model).__name__} has no BitLinear to pack; ternary_model(model) makes them")
    _replace(model, PackedBitLinear, found)
    return model


def dequantize_model(model: nn.Module) -> nn.Module:
    """Replace the quantised layers by nn.Linear with the restored weights, in place: what the codes say, not what was before.

    A model that had Conv1D has nn.Linear now. Raises: ValueError where nothing is quantised by this package.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Frozen)}
    if not found:
        raise ValueError(f"this {type(model).__name__} has no quantised layer of this package")
    if ternary := [name for name, module in found.items() if isinstance(module, PackedBitLinear)]:
        raise ValueError(f"layer {ternary[0]!r} rounds its inputs too, which no nn.Linear does; it cannot be dequantised")
    _replace(model, lambda layer: linear_of(layer.weight, layer.bias), found)
    return model


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """An nn.Linear with copies of these, frozen."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


# ---- bytes ------------------------------------------------------------------------------------------------------------


def memory_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def disk_bytes(model: nn.Module) -> int:
    """Bytes of the file `save` writes, its header included, without writing it."""
    from safetensors.torch import save as to_bytes

    return len(to_bytes(_tensors(model), _metadata(model)))


def expected_bytes(model: nn.Module, config: QuantConfig, skip: Collection[str] = SKIP) -> int:
    """By formula, before anything is quantised: what `memory_bytes` will be afterwards."""
    layers = [as_linear(layer) for layer in linears(model, skip).values()]
    saved = sum(layer.weight.nbytes - _layer_bytes(*layer.weight.shape, config) for layer in layers)
    return memory_bytes(model) - saved


def _layer_bytes(rows: int, columns: int, c: QuantConfig) -> int:
    n = rows * columns
    if c.method == "ternary":
        return -(-n // 5) + 4
    if c.method == "int8":
        return n + 4 * rows
    blocks = -(-n // c.block_size)
    return -(-n // 2) + (blocks + 4 * -(-blocks // 256) + 4 if c.double else 4 * blocks)


# ---- files ------------------------------------------------------------------------------------------------------------


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write all weights, quantised and not, to one safetensors file, with what is needed to read it."""
    from safetensors.torch import save_file

    save_file(_tensors(model), path, metadata=_metadata(model))


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Fill a float model of the same architecture, random or trained, with what `save` wrote: its layers are replaced.

    Raises: ValueError for a file that is missing, damaged, of another model (a name or a shape is told), or a model that is
    quantised already.
    """
    tensors, about = read_file(path, "quantized_model")
    _check_plain(model)
    modules = dict(model.named_modules())
    if lost := [name for name in about if name not in modules]:
        raise ValueError(f"{path} is of another model: this {type(model).__name__} has no {lost[0]!r}{nearest(lost[0], modules)}")
    for name, config in about.items():
        _replace(model, lambda layer, c=config: quantize_linear(as_linear(layer), QuantConfig(**c)), {name: modules[name]})
    try:
        _fill(model, tensors, path)
    except ValueError:
        for name in about:
            model.set_submodule(name, modules[name])
        raise
    return model


def _fill(model: nn.Module, tensors: dict[str, Tensor], path: Any) -> None:
    wanted = model.state_dict()
    for name, tensor in tensors.items():
        if name not in wanted or wanted[name].shape != tensor.shape:
            here = f"is {tuple(wanted[name].shape)} here" if name in wanted else "does not exist here"
            raise ValueError(f"{path} is of another model: {name} is {tuple(tensor.shape)} in the file and {here}")
    shared = {tensor.data_ptr() for name, tensor in wanted.items() if name in tensors}
    if lost := [name for name, tensor in wanted.items() if name not in tensors and tensor.data_ptr() not in shared]:
        raise ValueError(f"{path} is of another model: it lacks {lost[0]} ({len(lost)} such)")
    model.load_state_dict(tensors, strict=False)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state, a tensor with several names under the first."""
    unique: dict[tuple[int, torch.Size], str] = {}
    state = model.state_dict()
    names = {unique.setdefault((tensor.data_ptr(), tensor.shape), name) for name, tensor in state.items()}
    return {name: state[name].contiguous() for name in state if name in names}


def _metadata(model: nn.Module) -> dict[str, str]:
    return {"quantized_model": json.dumps({n: _config(m) for n, m in model.named_modules() if isinstance(m, Frozen)})}


def _config(layer: Frozen) -> dict[str, Any]:
    return asdict(QuantConfig(method="ternary") if isinstance(layer, PackedBitLinear) else layer.config)
