"""The one interface of all methods: attach an adapter to a frozen model, train it, switch, merge, save, detach.

    before:   parent ─► layer                    after attach "a", then "b":   parent ─► b ─► a ─► layer
                                                                               each wrapper adds its part to what lies below

    handle = lora.attach(model, lora.Config(r=8), name="a")      handle.parameters() · enable · disable · merge · unmerge
                                                                 handle.save(dir) · load(dir) · detach()

Does:     wraps layers of any torch model in place, several named adapters on top of each other; freezes the base and restores
          it bit for bit; one choice of adapter for each row of a batch; trained copies of whole modules (a classification
          head) and biases trained in place; the file pair of HF peft, checked name by name and shape by shape.
Leaves out: adapters that live in another process or on several devices; renaming an attached adapter.
Source:   Houlsby et al. 2019 (a frozen base and small modules); the file format is HF peft's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import files
from .files import CONFIG_FILE, PREFIX, WEIGHTS_FILE, read_config, read_tensors
from .wrapping import (
    Head,
    Switch,
    Wrapper,
    attached,
    base_parameters,
    bottom,
    family,
    find,
    fingerprint,
    layers,
    named_by,
    replace,
    task_type,
)

__all__ = [
    "CONFIG_FILE", "PREFIX", "WEIGHTS_FILE", "Config", "Handle", "Head", "Switch", "Wrapper", "attached", "base_parameters",
    "bottom", "choose_rows", "family", "find", "fingerprint", "heads_from_file", "layers", "load", "read_config", "read_tensors",
    "task_type",
]  # fmt: skip

# Which of our modules reads a file, by the `peft_type` in its configuration.
METHODS = {
    "LORA": "lora", "DORA": "dora", "IA3": "ia3", "BITFIT": "bitfit", "HOULSBY": "adapters", "PARALLEL": "adapters",
    "PROMPT_TUNING": "prompt_tuning", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix",
    "MAM": "mam", "UNIPELT": "unipelt", "HYBRID": "hybrid",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every method's config has. modules_to_save: names of whole modules (a fresh head) that are trained and saved too."""

    modules_to_save: tuple[str, ...] = ()


class _Attached:
    """What a model knows of its adapters: the handles by name, and which parameters were trainable before the first."""

    def __init__(self, model: nn.Module) -> None:
        self.handles: dict[str, Handle] = {}
        self.trainable = [(p, p.requires_grad) for p in model.parameters()]


@contextmanager
def choose_rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Inside the block, row i of every batch goes through adapter `names[i]` alone; None: through the bare model.

    Raises:
        ValueError: an unknown name, or an adapter that is merged or whose method cannot serve some rows only.
    """
    handles = attached(model)
    for name in names:
        if name is not None and name not in handles:
            raise ValueError(f'no adapter "{name}" on this model; attached: {", ".join(handles) or "none"}')
    for handle in handles.values():
        if handle.switch.merged or not handle.mixable:
            reason = (
                "is merged: unmerge it first" if handle.switch.merged else f"is {handle.method}, which serves whole batches only"
            )
            raise ValueError(f'rows cannot be chosen while adapter "{handle.name}" {reason}')
    device = next(model.parameters()).device
    try:
        for handle in handles.values():
            mine = [i for i, n in enumerate(names) if n == handle.name]
            handle.switch.rows, handle.switch.batch = torch.tensor(mine, dtype=torch.long, device=device), len(names)
        yield
    finally:
        for handle in handles.values():
            handle.switch.rows = None


class Handle:
    """One attached adapter. A method subclasses this, and says what its parts are and how they are called in a file.

    Subclasses set `method` and `peft_type`, implement `build`, `file_tensors` and `file_config`, and override `install`
    and `uninstall` when their parts are not wrappers around layers.
    """

    method: ClassVar[str]
    peft_type: ClassVar[str]
    mergeable: ClassVar[bool] = False  # may be folded into the weights
    additive: ClassVar[bool] = False  # only adds to a layer's output, so its place among others does not matter
    mixable: ClassVar[bool] = False  # may serve some rows of a batch only
    own_format: ClassVar[bool] = False  # HF peft lacks the method, so the file also says which base it belongs to
    must_agree: ClassVar[tuple[str, ...]] = ()  # fields of the file's config that no tensor's shape gives away

    def __init__(self, model: nn.Module, config: Config, name: str = "default") -> None:
        if name in attached(model):
            raise ValueError(
                f'an adapter "{name}" is attached already ({attached(model)[name].method}); detach it, or choose another name'
            )
        if not name or "." in name:
            raise ValueError(f"adapter name {name!r} must not be empty and must not contain a dot")
        self.model, self.config, self.name, self.switch = model, config, name, Switch()
        self.tuned: dict[str, nn.Parameter] = {}  # the base's own parameters that are trained in place,
        self.aliases: dict[str, str] = {}  # and for each name one of them goes by, its name there
        self.hooks: list[Any] = []  # what `register_forward_pre_hook` and its like return
        self.parts, self.heads = self.build(), self._build_heads()  # nothing in the model changes until all is built
        tuned = self.tuned_names()
        self._check_free(tuned)
        self.tied = self._find_tied()
        self._register()
        self.install()
        replace(model, {head.base: head for head in self.heads.values()})
        self._tune(tuned)

    def build(self) -> dict[str, nn.Module]:
        """The adapter's modules by the name of the layer they belong to, on that layer's device; the model stays untouched."""
        raise NotImplementedError(f"{type(self).__name__} has no build()")

    def file_tensors(self) -> dict[str, Tensor]:
        """The live tensors by their key in the file, heads and tuned parameters not included."""
        raise NotImplementedError(f"{type(self).__name__} has no file_tensors()")

    def file_config(self) -> dict[str, Any]:
        """This method's fields in `adapter_config.json`."""
        raise NotImplementedError(f"{type(self).__name__} has no file_config()")

    def install(self) -> None:
        """Put the parts into the model: wrappers around their layers."""
        replace(self.model, {part.base: part for part in self.parts.values()})

    def uninstall(self) -> None:
        """Take the parts out again."""
        replace(self.model, {part: part.base for part in self.parts.values()})

    def _build_heads(self) -> dict[str, Head]:
        named = self.config.modules_to_save
        found = find(self.model, named, what="modules_to_save") if named else {}
        return {name: Head(module, self.switch) for name, module in found.items()}

    def _register(self) -> None:
        if "_adapters_attached" not in self.model.__dict__:
            self.model._adapters_attached = _Attached(self.model)
            for parameter, _ in self.model._adapters_attached.trainable:
                parameter.requires_grad_(False)
        self.model._adapters_attached.handles[self.name] = self

    # --- training and switching ---

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that is trained, by name: the parts' parameters, the heads', and those of the base tuned in place."""
        for place, part in [*self.parts.items(), *self.heads.items()]:
            own = part.own_parameters() if isinstance(part, Wrapper) else part.named_parameters()
            yield from ((f"{place}.{name}", p) for name, p in own)
        yield from self.tuned.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained, for the optimiser."""
        return (p for _, p in self.named_parameters())

    def tuned_names(self) -> list[str]:
        """The base's own parameters that this adapter trains in place; `disable` and `detach` put the old values back."""
        return []

    def _check_free(self, names: list[str]) -> None:
        for other in attached(self.model).values():
            if shared := [name for name in names if name in other.aliases]:
                raise ValueError(
                    f'"{shared[0]}" is tuned in place by adapter "{other.name}" already; only one adapter can do that'
                )

    def _tune(self, names: list[str]) -> None:
        known, first = dict(base_parameters(self.model)), {}
        self.aliases = {name: first.setdefault(id(known[name]), name) for name in names}
        self.tuned = {name: known[name].requires_grad_(True) for name in first.values()}
        self._elsewhere = {name: p.detach().clone() for name, p in self.tuned.items()}  # the values not in use

    def enable(self) -> None:
        """Let the adapter act (again)."""
        self._switch(True)

    def disable(self) -> None:
        """Leave the adapter attached, but without effect."""
        self._switch(False)

    def _switch(self, enabled: bool) -> None:
        self._check_attached()
        if self.switch.merged:
            raise ValueError(f'adapter "{self.name}" is merged into the weights; unmerge it before you switch it')
        if enabled != self.switch.enabled:
            self._exchange()
        self.switch.enabled = enabled

    def _exchange(self) -> None:
        for name, parameter in self.tuned.items():
            parameter.data, self._elsewhere[name] = self._elsewhere[name], parameter.data

    def detach(self) -> None:
        """Give the model back exactly as it was; the handle keeps its weights, but no longer acts."""
        self._check_attached()
        if self.switch.merged:
            self.unmerge()
        self.disable()
        self._leave({head: head.base for head in self.heads.values()})

    def merge_and_unload(self) -> None:
        """Merge for good: the wrappers go, the effect stays, also of heads and tuned biases; no old weights are kept."""
        self.merge()
        self._leave({head: head.copy for head in self.heads.values()})
        for part in self.parts.values():
            part.kept = {}

    def _leave(self, heads: Mapping[nn.Module, nn.Module]) -> None:
        for hook in self.hooks:
            hook.remove()
        self.uninstall()
        replace(self.model, heads)
        for parameter in self.tuned.values():
            parameter.requires_grad_(False)
        self._forget()

    def _forget(self) -> None:
        known = self.model._adapters_attached
        del known.handles[self.name]
        if not known.handles:
            for parameter, trainable in known.trainable:
                parameter.requires_grad_(trainable)
            del self.model._adapters_attached

    def _check_attached(self) -> None:
        if attached(self.model).get(self.name) is not self:
            raise ValueError(f'adapter "{self.name}" is not attached to the model any more')

    # --- merging ---

    def merge(self) -> None:
        """Fold the adapter into the base's weights: same outputs, nothing left to compute. The old weights are kept.

        Raises:
            ValueError: a method that cannot merge, an adapter merged already, disabled, or lying on one that is not merged.
        """
        self._check_attached()
        if not self.mergeable:
            raise ValueError(f"{self.method} cannot merge: what it adds is no change of a weight. Keep the adapter attached")
        if self.switch.merged or not self.switch.enabled:
            state = "merged already" if self.switch.merged else "disabled: enable it first"
            raise ValueError(f'adapter "{self.name}" is {state}')
        self.fold()
        self.switch.merged = True

    def unmerge(self) -> None:
        """Put the weights from before the merge back, exactly.

        Raises:
            ValueError: an adapter that is not merged, or has another one merged after it.
        """
        self._check_attached()
        if not self.switch.merged:
            raise ValueError(f'adapter "{self.name}" is not merged')
        self.unfold()
        self.switch.merged = False

    def fold(self) -> None:
        """The method's own part of `merge`: for wrappers, what each one's `merged()` says about its layer's parameters."""
        self._check_foldable()
        for part in self.parts.values():
            layer, new = bottom(part), part.merged()
            part.kept = {name: getattr(layer, name).data for name in new}
            for name, tensor in new.items():
                getattr(layer, name).data = tensor

    def unfold(self) -> None:
        """The method's own part of `unmerge`."""
        for place in self.parts:
            if above := self._others(place, above=True, merged=True):
                raise ValueError(f'adapter "{above[0].name}" was merged after "{self.name}"; unmerge it first')
        for part in self.parts.values():
            for name, old in part.kept.items():
                now = getattr(bottom(part), name)
                now.data = old.to(now)  # the model may have moved to another device since
            part.kept = {}

    def _check_foldable(self) -> None:
        for place, part in self.parts.items():
            weight = bottom(part).weight
            # a quantised layer may restore a float weight on each read, into which nothing can be written
            if "weight" not in bottom(part)._parameters or not weight.is_floating_point():
                raise ValueError(
                    f'"{place}" holds quantised weights ({weight.dtype}); dequantise the layer before merging into it'
                )
            if place in self.tied:
                raise ValueError(
                    f'"{place}" shares its weight with "{self.tied[place]}", which a merge would change too; keep it attached'
                )
            if above := self._others(place, above=True, merged=True):
                raise ValueError(f'adapter "{above[0].name}" lies on top of "{self.name}" and is merged; unmerge it first')
            if heads := [other for other in attached(self.model).values() if place in other.heads]:
                raise ValueError(
                    f'"{place}" is trained as a whole by adapter "{heads[0].name}"; detach that before merging into it'
                )
            below = self._others(place, above=False, merged=False)
            if blocking := [other for other in below if not (other.additive and self.additive)]:
                raise ValueError(f'adapter "{blocking[0].name}" lies below "{self.name}" on "{place}"; merge it first')

    def _find_tied(self) -> dict[str, str]:
        """For each layer that shares its weight with another module, the other's name."""
        holders: dict[int, dict[int, str]] = {}
        for name, module in layers(self.model):
            weight = bottom(module)._parameters.get("weight")
            if weight is not None:
                holders.setdefault(id(weight), {}).setdefault(id(bottom(module)), name)
        tied = {}
        for place, part in self.parts.items():
            layer = bottom(part)
            held = holders.get(id(layer._parameters.get("weight")), {})
            if others := [name for key, name in held.items() if key != id(layer)]:
                tied[place] = others[0]
        return tied

    def _others(self, place: str, *, above: bool, merged: bool) -> list["Handle"]:
        """The other adapters that wrap this layer, further out or further in, merged or not."""
        others = list(attached(self.model).values())
        mine = others.index(self)
        side = others[mine + 1 :] if above else others[:mine]
        return [other for other in side if place in other.parts and other.switch.merged == merged]

    # --- files ---

    def all_tensors(self) -> dict[str, Tensor]:
        """Everything a file holds, by key: the method's tensors, the heads, the parameters tuned in place."""
        heads = {f"{place}.{name}": t for place, head in self.heads.items() for name, t in head.tensors().items()}
        tuned = {self.tuned_key(name): self.tuned[mine] for name, mine in self.aliases.items()}
        return {**self.file_tensors(), **{PREFIX + key: t for key, t in (heads | tuned).items()}}

    def tuned_key(self, name: str) -> str:
        """How a parameter tuned in place is called in the file."""
        return name

    def save(self, directory: str | PathLike[str]) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, as HF peft does."""
        self._check_in_use("saved")
        files.save(self, directory)

    def load(self, directory: str | PathLike[str]) -> None:
        """Fill this adapter with the weights of a file that ours or HF peft's `save` wrote.

        Raises:
            ValueError: a file of another method, another setting, another model, or a damaged one: by name, with both shapes.
        """
        if self.switch.merged:
            raise ValueError(f'adapter "{self.name}" is merged into the weights; unmerge it before you load others')
        self._check_in_use("loaded")
        self.fill(files.read(self, directory))

    def _check_in_use(self, verb: str) -> None:
        if self.tuned and not self.switch.enabled:
            raise ValueError(f'adapter "{self.name}" tunes parameters in place and is disabled; enable it before it is {verb}')

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a checked file's tensors into the live ones."""
        with torch.no_grad():
            for key, live in self.all_tensors().items():
                live.copy_(tensors[key])

    def check_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], directory: str | PathLike[str]) -> None:
        """Compare a file's tensors with the live ones, and its base with the model's, if it names one."""
        files.check(self.all_tensors(), tensors, directory)
        files.check_base(self, metadata, directory)


def heads_from_file(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The trained modules that an `adapter_config.json` names, for a config's `modules_to_save`."""
    return tuple(fields.get("modules_to_save") or ())


def load(model: nn.Module, directory: str | PathLike[str], name: str = "default") -> Handle:
    """Attach the adapter saved in `directory`, by us or by HF peft, with the settings and weights of its files.

    Raises:
        ValueError: a method we do not have, or whatever `attach` and `Handle.load` refuse.
    """
    fields = read_config(directory)
    kind = "DORA" if fields.get("use_dora") else fields["peft_type"]
    if kind not in METHODS:
        raise ValueError(f"{directory} holds an adapter of type {kind}; known types: {', '.join(METHODS)}")
    names = {path for path, _ in layers(model)}
    # HF peft lists the heads of all architectures; keep those that this model has.
    heads = [head for head in fields.get("modules_to_save") or () if any(named_by(path, head) for path in names)]
    method = import_module(f".{METHODS[kind]}", __package__)
    config = method.config_from_file({**fields, "modules_to_save": heads})
    try:
        handle = method.attach(model, config, name)
    except ValueError as error:
        raise ValueError(f"{directory} is an adapter of another model, or cannot be attached here: {error}") from error
    try:
        handle.load(directory)
    except BaseException:
        handle.detach()
        raise
    return handle
