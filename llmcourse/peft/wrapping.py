"""Wrappers around a model's layers, and a way to see the model as it is without them.

    before:   parent ─► layer          after "a", then "b":   parent ─► b ─► a ─► layer

    layers(model)   "layer" ─► b       the outermost wrapper, under the name the layer has in the bare model
    bottom(b)       layer

Does:     the wrapper all methods build on, one that stands for a trained copy (a classification head), and the search for layers
          by name endings or a regex.
Leaves out: what a wrapper adds (see lora, ia3, adapters), and its life on the model (see interface).
Source:   the meaning of names and patterns is HF peft's `target_modules`.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..transformer.model import Transformer

if TYPE_CHECKING:
    from .interface import Handle

__all__ = [
    "Head", "Switch", "Wrapper", "attached", "base_parameters", "bottom", "family", "find", "fingerprint", "layers", "named_by",
    "replace", "task_type",
]  # fmt: skip

# Model types of transformers that share their layers' names.
FAMILIES = {
    "llama": ("llama", "mistral", "qwen2", "qwen3", "mixtral", "gemma", "gemma2"),
    "bert": ("bert", "roberta", "xlm-roberta", "electra"),
    "t5": ("t5", "mt5", "umt5"),
    "gpt2": ("gpt2",),
}

TASKS = {
    "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS",
}  # fmt: skip


class Switch:
    """The state of one adapter, shared by all its parts: they ask it in every forward pass."""

    def __init__(self) -> None:
        self.enabled, self.merged = True, False
        self.rows: Tensor | None = None  # which rows of the batch the adapter serves; None: all of them
        self.batch = 0  # if it serves some rows only: how many the batch must have

    @property
    def on(self) -> bool:
        """Whether the parts have something to do: not disabled, and not in the weights already."""
        return self.enabled and not self.merged


class Wrapper(nn.Module):
    """A layer together with an adapter's part for it. What is not found here is looked up in the layer itself."""

    def __init__(self, base: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.base, self.switch = base, switch
        self.kept: dict[str, Tensor] = {}  # what a merge replaced in the layer
        self.training = base.training  # not `train()`, which would reach into the layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(bottom(super().__getattr__("base")), name)

    def forward(self, x: Any, *args: Any, **options: Any) -> Any:
        """The layer's output, changed by `adapt`: in the rows that this adapter serves."""
        y = self.base(x, *args, **options)
        if not self.switch.on:
            return y
        rows = self.switch.rows
        return self.adapt(x, y) if rows is None else self._adapt_rows(rows, x, y)

    def adapt(self, x: Any, y: Any) -> Any:
        """From the layer's input and output to the adapted output."""
        raise NotImplementedError(f"{type(self).__name__} has no adapt(x, y)")

    def _adapt_rows(self, rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if len(y) != self.switch.batch:
            raise ValueError(f"adapters for {self.switch.batch} rows were chosen, the batch has {len(y)}")
        return y.index_copy(0, rows, self.adapt(x[rows], y[rows])) if len(rows) else y

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's parameters by name, without the layer's."""
        return ((name, p) for name, p in self.named_parameters() if not name.startswith("base."))


class Head(Wrapper):
    """A module's trained copy, used in its place (`modules_to_save`)."""

    def __init__(self, base: nn.Module, switch: Switch) -> None:
        super().__init__(base, switch)
        self.copy = copy.deepcopy(bottom(base)).requires_grad_(True)

    def forward(self, x: Any, *args: Any, **options: Any) -> Any:
        """The copy's output; the rows of other adapters get what lies below."""
        if self.switch.enabled and self.switch.rows is None:
            return self.copy(x, *args, **options)
        return super().forward(x, *args, **options)

    def adapt(self, x: Any, y: Any) -> Any:
        """The copy's output for these rows, whatever the module said."""
        return self.copy(x)

    def tensors(self) -> dict[str, Tensor]:
        """All that belongs to the copy, buffers too, by name."""
        return self.copy.state_dict(keep_vars=True)


# --- seeing through the wrappers -----------------------------------------------------------------------------------------


def attached(model: nn.Module) -> dict[str, "Handle"]:
    """The handles of the adapters on this model, by name, in the order they were attached."""
    known = model.__dict__.get("_adapters_attached")
    return {} if known is None else dict(known.handles)


def bottom(module: nn.Module) -> nn.Module:
    """The model's own module under any number of wrappers."""
    while isinstance(module, Wrapper):
        module = module.base
    return module


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module of the base model under the name it has without adapters; a wrapped one as its outermost wrapper.

    A module with several names (T5's embedding) comes under each of them.
    """

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for key, child in bottom(module).named_children() if name else _base_children(model):
            path = f"{name}.{key}" if name else key
            yield path, child
            yield from walk(path, child)

    return walk("", model)


def _base_children(model: nn.Module) -> list[tuple[str, nn.Module]]:
    mine = {id(part) for handle in attached(model).values() for part in handle.parts.values()}
    return [
        (name, child)
        for name, child in model._modules.items()
        if child is not None and (id(child) not in mine or isinstance(child, Wrapper))
    ]


def find(
    model: nn.Module, targets: str | Sequence[str], *, what: str = "target", avoid: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """The modules named by `targets`, as HF peft reads them: a string is a regex for whole names, a list holds name endings.

    `avoid` lists endings whose modules, and all inside them, are left alone. A module with several names comes once.

    Raises:
        ValueError: a target that matches nothing, with the nearest names there are.
    """
    known = {name: module for name, module in layers(model) if not any(_inside(name, ending) for ending in avoid)}
    found: dict[int, tuple[str, nn.Module]] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        matches = [n for n in known if (re.fullmatch(target, n) if isinstance(targets, str) else named_by(n, target))]
        if not matches:
            raise ValueError(f'{what} "{target}" matches no module of this {type(model).__name__}; {_near(target, known)}')
        for name in matches:
            found.setdefault(id(known[name]), (name, known[name]))
    order = {name: i for i, name in enumerate(known)}
    return dict(sorted(found.values(), key=lambda pair: order[pair[0]]))


def named_by(name: str, ending: str) -> bool:
    """Whether a name ends in these whole words: `layers.0.attn.q` in `attn.q`, but not in `ttn.q`."""
    return name == ending or name.endswith(f".{ending}")


def _inside(name: str, ending: str) -> bool:
    parts = name.split(".")
    return any(named_by(".".join(parts[:i]), ending) for i in range(1, len(parts) + 1))


def _near(target: str, names: Iterable[str]) -> str:
    endings = dict.fromkeys(".".join(n.split(".")[-k:]) for n in names for k in (1, 2) if not n.split(".")[-1].isdigit())
    near = get_close_matches(target, endings, n=3, cutoff=0.5) or [name for name in endings if "." not in name][-8:]
    return f"the nearest names are {', '.join(near)}"


def family(model: nn.Module) -> str:
    """llama, bert, t5, gpt2, or transformer for our own: models of a family name their layers alike.

    Raises:
        ValueError: a model of another family; give the targets by name then.
    """
    if isinstance(model, Transformer):
        return "transformer"
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for name, kinds in FAMILIES.items():
        if kind in kinds:
            return name
    known = ", ".join(kind for kinds in FAMILIES.values() for kind in kinds)
    raise ValueError(
        f"no default targets for {type(model).__name__} (model type {kind}); name them in the config. Known: {known}"
    )


def task_type(model: nn.Module) -> str | None:
    """HF peft's word for what the model is for, from the name of its class; None when it has no head."""
    name = type(model).__name__
    return next((task for ending, task in TASKS.items() if name.endswith(ending)), None)


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The base model's parameters under the names they have without adapters; a shared one under each of its names."""
    for path, module in [("", model), *layers(model)]:
        for name, parameter in bottom(module)._parameters.items():
            if parameter is not None:
                yield f"{path}.{name}".lstrip("."), parameter


def fingerprint(model: nn.Module) -> str:
    """A short hash of the base model's parameter names and shapes."""
    shapes = sorted((name, tuple(p.shape)) for name, p in base_parameters(model))
    return sha256(repr(shapes).encode()).hexdigest()[:16]


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put each key's value in its place, wherever in the model it is held, and under all its names."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in new and parent is not new[child]:
                parent._modules[key] = new[child]
