"""Adapter files, as HF peft writes them: `adapter_config.json` beside `adapter_model.safetensors`.

    base_model.model.<layer's name>.<parameter's name> ─► tensor          one key for each trained tensor

Does:     saves any adapter; loads one into an adapter that is attached, after comparing method, settings, names and shapes; for
          methods that HF peft lacks, also the base model's fingerprint.
Leaves out: the hub, pickled files.
Source:   the format is HF peft's.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .wrapping import fingerprint, task_type

if TYPE_CHECKING:
    from .interface import Handle

__all__ = ["CONFIG_FILE", "PREFIX", "WEIGHTS_FILE", "check", "check_base", "read", "read_config", "read_tensors", "save"]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # HF peft's keys start from its wrapper around the model
# What HF peft adds to its files in some cases: the base's own weights, and heads a second time.
SURPLUS = (".base_layer.weight", ".original_module.", ".modules_to_save.")


def save(handle: "Handle", directory: str | PathLike[str]) -> None:
    """Write an adapter's two files; see `Handle.save`."""
    from safetensors.torch import save_file

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: t.detach().cpu().contiguous().clone() for key, t in handle.all_tensors().items()}
    base = {"base": fingerprint(handle.model), "base_class": type(handle.model).__name__} if handle.own_format else {}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt", **base})
    (folder / CONFIG_FILE).write_text(json.dumps(_fields(handle), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _fields(handle: "Handle") -> dict[str, Any]:
    model, heads = handle.model, list(handle.config.modules_to_save)
    task = task_type(model)
    # HF peft expects a classifier's head in the file as soon as it reads the task.
    task = None if task in ("SEQ_CLS", "TOKEN_CLS") and not heads else task
    named = {"base_model_name_or_path": getattr(model, "name_or_path", None) or None, "modules_to_save": heads or None}
    return {"peft_type": handle.peft_type, "task_type": task, "inference_mode": True, **named, **handle.file_config()}


def read(handle: "Handle", directory: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file that fits this adapter; see `Handle.load`."""
    fields, mine = read_config(directory), handle.file_config()
    if fields["peft_type"] != handle.peft_type:
        kinds = f'"{handle.name}" is {handle.method} ({handle.peft_type})'
        raise ValueError(f"{directory} holds an adapter of type {fields['peft_type']}; {kinds}")
    for name in handle.must_agree:
        if name in mine and fields.get(name, mine[name]) != mine[name]:
            theirs = f"{name}={fields[name]!r}"
            raise ValueError(f'{directory} has {theirs}, adapter "{handle.name}" {name}={mine[name]!r}; attach it with the same')
    tensors, metadata = read_tensors(directory)
    handle.check_file(tensors, metadata, directory)
    return tensors


def check(live: Mapping[str, Tensor], tensors: Mapping[str, Tensor], directory: str | PathLike[str]) -> None:
    """Compare a file's tensors with the live ones.

    Raises:
        ValueError: another shape (both are told), a value that is not finite, a tensor too few or too many.
    """
    for key, tensor in tensors.items():
        if key in live and tensor.shape != live[key].shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(live[key].shape)} here"
            raise ValueError(f"{directory} is an adapter of another model: {key} is {shapes}")
        if not tensor.isfinite().all():
            raise ValueError(f"{directory} is damaged: {key} holds values that are not finite")
    for here, there, verb in ((live, tensors, "lacks"), (tensors, live, "has, unlike this adapter,")):
        if odd := [key for key in here if key not in there and not any(part in key for part in SURPLUS)]:
            raise ValueError(f"{directory} is an adapter of another model or setting: it {verb} {odd[0]} ({len(odd)} such)")


def check_base(handle: "Handle", metadata: Mapping[str, str], directory: str | PathLike[str]) -> None:
    """Compare the base model that a file names, if it does, with the one the adapter is attached to."""
    if metadata.get("base", here := fingerprint(handle.model)) != here:
        made_for = f"{directory} was made for a {metadata.get('base_class')} with other parameter shapes"
        raise ValueError(f"{made_for} than this {type(handle.model).__name__}")


def read_config(directory: str | PathLike[str]) -> dict[str, Any]:
    """The fields of an adapter's `adapter_config.json`.

    Raises:
        ValueError: no such file, or one that is not an adapter's.
    """
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{directory} holds no adapter: there is no {CONFIG_FILE}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(fields, dict) or "peft_type" not in fields:
        raise ValueError(f'{path} is not the config of an adapter: it has no "peft_type"')
    return fields


def read_tensors(directory: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of an adapter's `adapter_model.safetensors`, and its metadata.

    Raises:
        ValueError: no such file, or a truncated or corrupted one.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{directory} holds no weights: there is no {WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); copy it again") from error
