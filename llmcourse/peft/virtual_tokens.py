"""Virtual tokens: places in front of the text that hold learned vectors instead of words; soft prompts and prefixes share them.

    soft prompt   [p1 … pn] [x1 … xm] ─► layer 1 ─► layer 2 ─► …      learned once, in the space of the embeddings
    prefix        layer i: queries of x ─► [k1 … kn]ᵢ [keys of x]     learned keys and values, at every layer

    attention mask  1 … 1   m1 … mm          positions  0 … n-1  n … n+m-1          labels  -100 … -100  y1 … ym

Does:     lengthens mask, positions, token types and labels of every call, in training and in `generate`, on Llama, BERT, T5
          and GPT-2 of transformers and on our own Transformer; several adapters at once (the first attached stands first).
          A soft prompt enters T5's encoder, a prefix its decoder's self-attention, as in HF peft. Logits of a language model
          cover the soft prompt too, as HF peft's do (ours cover the text alone); a classifier that reads the last token
          still finds it in a batch padded on the right, which HF peft's does not.
Leaves out: four-dimensional masks and the static caches that need them; question-answering heads.
Source:   Lester et al. 2021; Li & Liang 2021.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..transformer.cache import KVCache, LayerCache
from ..transformer.model import Source, Transformer
from .interface import PREFIX, Handle, attached

__all__ = [
    "IGNORED", "KEY", "KeysValues", "PromptHandle", "Shape", "VirtualHandle", "check_room", "embedding", "extend_labels",
    "extend_mask", "shape",
]  # fmt: skip

IGNORED = -100  # the label that torch's cross-entropy skips
KEY = "prompt_embeddings"  # HF peft's name for the one tensor of its file
KeysValues = tuple[Float[Tensor, "#batch heads tokens d"], Float[Tensor, "#batch heads tokens d"]]


def extend_mask(mask: Tensor, n_tokens: int) -> Tensor:
    """The text's mask (batch, seq) behind `n_tokens` ones: every place sees the virtual tokens, wherever the padding is."""
    if mask.ndim != 2:
        raise ValueError(f"virtual tokens lengthen masks of shape (batch, seq); this one is {tuple(mask.shape)}")
    return torch.cat((mask.new_ones(len(mask), n_tokens), mask), dim=1)


def extend_labels(labels: Tensor, n_tokens: int) -> Tensor:
    """The text's labels (batch, seq) behind `n_tokens` times -100: a virtual token is nobody's answer."""
    return torch.cat((labels.new_full((len(labels), n_tokens), IGNORED), labels), dim=1)


# --- what the model is like --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes that virtual tokens must fit: `width` is that of an embedding, `kv_heads · d_head` that of a key."""

    width: int
    n_layers: int
    kv_heads: int
    d_head: int
    max_positions: float
    encoder_decoder: bool


def shape(model: nn.Module) -> Shape:
    """The sizes of a transformers model or of our own; of an encoder-decoder, the decoder's layers.

    Raises:
        TypeError: a model that is neither.
    """
    c = getattr(model, "config", None)
    if isinstance(model, Transformer):
        return Shape(c.d_model, c.n_layers, c.n_kv_heads, c.d_head, c.max_positions, model.encoder is not None)
    if not hasattr(model, "get_input_embeddings") or not hasattr(c, "num_attention_heads"):
        raise TypeError(f"virtual tokens need a model of transformers or our Transformer, not {type(model).__name__}")
    both = bool(c.is_encoder_decoder)
    layers = getattr(c, "num_decoder_layers", None) if both else None
    kv_heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    d_head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    limit = getattr(c, "max_position_embeddings", None) or torch.inf
    return Shape(c.hidden_size, layers or c.num_hidden_layers, kv_heads, d_head, limit, both)


def embedding(model: nn.Module) -> nn.Module:
    """The module that turns ids into vectors."""
    return model.embed if isinstance(model, Transformer) else model.get_input_embeddings()


def check_room(model: nn.Module, n_tokens: int) -> None:
    """Raise ValueError unless `n_tokens` virtual tokens leave at least one position for text."""
    limit = shape(model).max_positions
    if not 1 <= n_tokens < limit:
        raise ValueError(f"n_tokens={n_tokens} does not fit this model's {limit} positions; choose 1–{limit - 1}")


# --- the handle --------------------------------------------------------------------------------------------------------


class VirtualHandle(Handle):
    """An adapter whose part `tokens` makes virtual tokens: a soft prompt, or keys and values."""

    @property
    def tokens(self) -> nn.Module:
        """The module that makes the virtual tokens."""
        return self.parts["tokens"]

    @property
    def n_prompt(self) -> int:
        """How many soft tokens enter with the text."""
        return 0

    @property
    def n_prefix(self) -> int:
        """How many keys and values stand in front of every layer's own."""
        return 0

    def first_place(self) -> int:
        """Where in a layer's keys this prefix begins: behind those of the active adapters attached earlier."""
        earlier = takewhile(lambda handle: handle is not self, _virtual(self.model))
        return sum(handle.n_prefix for handle in earlier if handle.switch.on)

    def prompt(self) -> Float[Tensor, "tokens width"]:
        """The soft tokens' vectors."""
        raise NotImplementedError(f"{type(self).__name__} has no soft prompt")

    def keys_values(self) -> list[KeysValues]:
        """Keys and values, layer by layer."""
        raise NotImplementedError(f"{type(self).__name__} has no prefix")

    def install(self) -> None:
        """The part becomes a child of the model, so that `.to`, `.train` and `.parameters` reach it."""
        first = not _virtual(self.model)[1:]  # this handle is among them already
        self.model.add_module(f"adapter_{self.name}", self.tokens.train(self.model.training))
        if not isinstance(self.model, Transformer):
            self.hooks += _hook(self)
        elif first:
            for part in _readers(self.model):
                part.layers = _Layers(self.model, part)

    def uninstall(self) -> None:
        """Take the part out; the last one also takes back what our Transformer was given."""
        del self.model._modules[f"adapter_{self.name}"]
        if isinstance(self.model, Transformer) and not _virtual(self.model)[1:]:
            for part in _readers(self.model):
                del part.layers

    def all_tensors(self) -> dict[str, Tensor]:
        """As for any handle, but HF peft calls the heads otherwise here: there is no tuner between its wrapper and the model."""
        return {key.replace(PREFIX, "base_model.", 1): tensor for key, tensor in super().all_tensors().items()}


class PromptHandle(VirtualHandle):
    """A soft prompt: its part, called without inputs, is the `config.n_tokens` × width table."""

    @property
    def n_prompt(self) -> int:
        """All virtual tokens are soft tokens."""
        return self.config.n_tokens

    def prompt(self) -> Float[Tensor, "tokens width"]:
        """The soft tokens' vectors."""
        return self.tokens()

    def file_tensors(self) -> dict[str, Tensor]:
        """The prompt under HF peft's name."""
        return {KEY: self.prompt()}

    def file_config(self) -> dict[str, Any]:
        """The fields that HF peft writes for every soft prompt."""
        s = shape(self.model)
        sizes = {"num_virtual_tokens": self.n_prompt, "token_dim": s.width, "num_layers": s.n_layers}
        return {**sizes, "num_transformer_submodules": 1}

    def check_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], directory: str | PathLike[str]) -> None:
        """As any handle, for the rows that are read."""
        super().check_file(self.rows_read(tensors), metadata, directory)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """As any handle, from the rows that are read."""
        super().fill(self.rows_read(tensors))

    def rows_read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """HF peft keeps twice the rows for an encoder-decoder, of which only the first half, the encoder's, is ever read."""
        table = tensors.get(KEY)
        doubled = table is not None and shape(self.model).encoder_decoder and len(table) == 2 * self.n_prompt
        return {**tensors, KEY: table[: self.n_prompt]} if doubled else dict(tensors)


def _virtual(model: nn.Module) -> list[VirtualHandle]:
    return [handle for handle in attached(model).values() if isinstance(handle, VirtualHandle)]


class _Front:
    """All that stands in front of a model's text at this moment."""

    def __init__(self, model: nn.Module, prompts: bool = True, prefixes: bool = True) -> None:
        active = [handle for handle in _virtual(model) if handle.switch.on]
        self.prompts = [handle for handle in active if handle.n_prompt and prompts]
        self.prefixes = [handle for handle in active if handle.n_prefix and prefixes]
        self.n_prompt = sum(handle.n_prompt for handle in self.prompts)
        self.n_prefix = sum(handle.n_prefix for handle in self.prefixes)
        self.n_tokens, self.dtype = self.n_prompt + self.n_prefix, embedding(model).weight.dtype

    def prompt(self) -> Float[Tensor, "tokens width"]:
        return torch.cat([handle.prompt() for handle in self.prompts]).to(self.dtype)

    def keys_values(self) -> list[KeysValues]:
        """Layer by layer, one adapter's behind the other's."""
        layers = zip(*(handle.keys_values() for handle in self.prefixes), strict=True)
        return [tuple(torch.cat(part, dim=2).to(self.dtype) for part in zip(*layer, strict=True)) for layer in layers]


# --- models of transformers --------------------------------------------------------------------------------------------


def _hook(handle: VirtualHandle) -> list[Any]:
    """Hooks on what reads the text, on what writes (T5's decoder), and on the whole model for the labels."""
    model = handle.model

    def before(module: nn.Module, change: Any) -> Any:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            if _leads(handle):
                inputs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
                change(model, inputs)
                return (), inputs
            return None

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    if shape(model).encoder_decoder:
        return [before(model.get_encoder(), _before_encoder), before(model.get_decoder(), _before_decoder)]
    # The labels are those of the outermost call, so they are lengthened before the text is.
    hooks = [before(model, _before_head), before(model.base_model, _before_text)]
    if type(model).__name__.endswith("ForSequenceClassification"):
        hooks.append(model.base_model.register_forward_hook(lambda _, __, out: _text_only(handle, out)))
    return hooks


def _leads(handle: VirtualHandle) -> bool:
    """Whether this is the first active handle of its model: it acts for all of them."""
    return next((other for other in _virtual(handle.model) if other.switch.on), None) is handle


def _before_encoder(model: nn.Module, inputs: dict[str, Any]) -> None:
    _enter(model, inputs, _Front(model, prefixes=False))


def _before_decoder(model: nn.Module, inputs: dict[str, Any]) -> None:
    _enter(model, inputs, _Front(model, prompts=False))
    mask, states = inputs.get("encoder_attention_mask"), inputs.get("encoder_hidden_states")
    if mask is not None and states is not None:
        inputs["encoder_attention_mask"] = extend_mask(mask, states.shape[1] - mask.shape[1])


def _before_text(model: nn.Module, inputs: dict[str, Any]) -> None:
    _enter(model, inputs, _Front(model))


def _before_head(model: nn.Module, inputs: dict[str, Any]) -> None:
    """One label more for every soft token, where there is one label for every token."""
    front, labels = _Front(model, prefixes=False), inputs.get("labels")
    if labels is not None and not type(model).__name__.endswith("ForSequenceClassification"):
        inputs["labels"] = extend_labels(labels, front.n_prompt)


def _text_only(handle: VirtualHandle, out: Any) -> Any:
    """The states of the text: a classifier looks for the last token at the place where the ids have it."""
    front = _Front(handle.model, prefixes=False)
    if _leads(handle) and front.n_prompt:
        out.last_hidden_state = out.last_hidden_state[:, front.n_prompt :]
    return out


def _enter(model: nn.Module, inputs: dict[str, Any], front: _Front) -> None:
    """Put the virtual tokens in front of a call's inputs; those of a later step of generation are in the cache already."""
    if not front.n_tokens:
        return
    ids, text = inputs.get("input_ids"), inputs.get("inputs_embeds")
    batch, seq = (ids if text is None else text).shape[:2]
    cache = inputs.get("past_key_values")
    _check_cache(model, cache, front)
    past = 0 if cache is None else int(cache.get_seq_length())
    _check_length(model, seq + (past or front.n_tokens), front.n_tokens)
    if inputs.get("attention_mask") is not None:
        inputs["attention_mask"] = extend_mask(inputs["attention_mask"], front.n_tokens)
    if inputs.get("position_ids") is not None:
        inputs["position_ids"] = inputs["position_ids"] + front.n_tokens
    if past:
        return
    if front.n_prefix:
        inputs["past_key_values"] = _filled(cache, front.keys_values(), batch, shape(model).encoder_decoder)
    if front.n_prompt:
        text = embedding(model)(ids) if text is None else text
        prompt = front.prompt().expand(batch, -1, -1)
        inputs |= {"input_ids": None, "inputs_embeds": torch.cat((prompt, text), dim=1)}
        _stand_before(inputs, front)


def _check_cache(model: nn.Module, cache: Any, front: _Front) -> None:
    """Raise ValueError where the keys and values in front would not fit into the cache, or never be read from it."""
    if getattr(cache, "is_compileable", False):
        raise ValueError(f"virtual tokens need a cache that grows, not a {type(cache).__name__} of a fixed length")
    if front.n_prefix and model.training and getattr(model, "is_gradient_checkpointing", False):
        raise ValueError("a prefix lives in the cache, which gradient checkpointing leaves out: disable one of the two")


def _stand_before(inputs: dict[str, Any], front: _Front) -> None:
    """Positions and token types of the soft tokens themselves."""
    if (positions := inputs.get("position_ids")) is not None:
        own = torch.arange(front.n_prefix, front.n_tokens, device=positions.device)
        inputs["position_ids"] = torch.cat((own.expand(len(positions), -1), positions), dim=1)
    if (types := inputs.get("token_type_ids")) is not None:
        inputs["token_type_ids"] = F.pad(types, (front.n_prompt, 0))


def _filled(cache: Any, prefix: list[KeysValues], batch: int, encoder_decoder: bool) -> Any:
    """A cache of transformers that begins with the prefix, as if its tokens had been read."""
    from transformers import DynamicCache, EncoderDecoderCache

    if cache is None:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if encoder_decoder else DynamicCache()
    for i, kv in enumerate(prefix):
        getattr(cache, "self_attention_cache", cache).update(*(x.expand(batch, -1, -1, -1) for x in kv), i)
    return cache


def _check_length(model: nn.Module, n: int, n_tokens: int) -> None:
    """Raise ValueError where a model that learned its positions, so that there are no others, would run out of them."""
    tables = ("wpe", "position_embeddings", "position")
    table = next((m for name, m in model.named_modules() if name.split(".")[-1] in tables and isinstance(m, nn.Embedding)), None)
    if table is not None and n > table.num_embeddings:
        room = table.num_embeddings - n_tokens
        raise ValueError(f"the text has {n - n_tokens} tokens, but {n_tokens} virtual ones leave room for {room} here")


# --- our own Transformer -----------------------------------------------------------------------------------------------


def _readers(model: Transformer) -> list[Transformer]:
    return [model] if model.encoder is None else [model, model.encoder]


class _LayerBehind(LayerCache):
    """One layer's cache that shows virtual keys and values in front of the text's, and stores only the latter, if asked to."""

    def __init__(self, front: KeysValues, text: LayerCache | None) -> None:
        self.front, self.text = front, text

    @property
    def length(self) -> int:
        """How many keys precede those to come."""
        return self.front[0].shape[2] + (self.text.length if self.text else 0)

    def append(self, k: Tensor, v: Tensor) -> KeysValues:
        """All keys and values: virtual, old, new. Nothing is written over, so gradients reach the virtual ones."""
        text = self.text.append(k, v) if self.text else (k, v)
        return tuple(torch.cat((own.expand(len(k), -1, -1, -1), x), dim=2) for own, x in zip(self.front, text, strict=True))


class _CacheBehind(KVCache):
    """A `_LayerBehind` for each layer; a cross-attention keeps its own cache, if there is one."""

    def __init__(self, front: list[KeysValues], cache: KVCache | None) -> None:
        texts = cache.layers if cache else [None] * len(front)
        self.layers = [_LayerBehind(kv, text) for kv, text in zip(front, texts, strict=True)]
        self.cross = cache.cross if cache else [None] * len(front)


class _Layers:
    """Takes the place of a Transformer's `layers`: the same stream, of the text alone, with virtual tokens in front of it.

    In a decoder nothing before a token depends on what follows, so a soft prompt is read once, for all rows of the batch; its
    keys and values then serve as a prefix. In an encoder it is read along with every row.
    """

    def __init__(self, model: Transformer, part: Transformer) -> None:
        self.model, self.part, self.original = model, part, part.layers

    def __call__(self, ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None,
                 cache: KVCache | None = None, token_types: Tensor | None = None, source: Source | None = None,
                 return_weights: bool = False) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:  # fmt: skip
        """As `Transformer.layers`."""
        front = self._front()
        n = front.n_tokens
        options = {"token_types": token_types, "source": _lengthened(source), "return_weights": return_weights}
        if not n:
            return self.original(ids, attention_mask, positions, cache, **options)
        _check_length(self.part, ids.shape[1] + n + (cache.length if cache else 0), n)
        mask = None if attention_mask is None else extend_mask(attention_mask, n)
        positions = None if positions is None else positions + n
        if front.n_prompt and not self.part.config.causal:
            return self._along(front, ids, mask, positions, options)
        return self.original(ids, mask, positions, _CacheBehind(self._in_front(front, cache), cache), **options)

    def _front(self) -> _Front:
        if self.model.encoder is None:
            return _Front(self.model)
        return _Front(self.model, prompts=self.part is not self.model, prefixes=self.part is self.model)

    def _in_front(self, front: _Front, cache: KVCache | None) -> list[KeysValues]:
        """Keys and values of the virtual tokens; a cache remembers them from its first step on."""
        if cache is None:
            return self._read(front)
        if not hasattr(cache, "in_front"):
            cache.in_front = self._read(front)
        return cache.in_front

    def _read(self, front: _Front) -> list[KeysValues]:
        prefix = front.keys_values()
        if not front.n_prompt:
            return prefix
        read = KVCache(self.part.config.n_layers, capacity=front.n_prompt)
        ids = torch.zeros(1, front.n_prompt, dtype=torch.long, device=self.part.embed.weight.device)
        for _ in self._embedded(front, ids, cache=_CacheBehind(prefix, read) if prefix else read):
            pass
        own = [layer.stored for layer in read.layers]
        return [tuple(map(_behind, *pair)) for pair in zip(prefix, own, strict=True)] if prefix else own

    def _embedded(self, front: _Front, ids: Tensor, *inputs: Any, **options: Any) -> Iterator[tuple]:
        """The original's stream, with the soft prompt where the first ids stand."""
        steps = self.original(ids, *inputs, **options)
        with _starting_with(self.part.embed, front.prompt()):
            first = next(steps)
        yield first
        yield from steps

    def _along(self, front: _Front, ids: Tensor, mask: Tensor | None, positions: Tensor | None, options: dict) -> Iterator[tuple]:
        n, types = front.n_prompt, options["token_types"]
        if positions is not None:
            own = torch.arange(front.n_prefix, front.n_tokens, device=ids.device)
            positions = torch.cat((own.expand(len(ids), -1), positions), dim=1)
        options = {**options, "token_types": None if types is None else F.pad(types, (n, 0))}
        cache = _CacheBehind(front.keys_values(), None) if front.n_prefix else None
        # A head that reads the first place reads a soft token there, as in HF peft; T5's decoder attends to all of them.
        keep = self.part is not self.model or self.part.config.head in ("pooled", "labels")
        for x, *weights in self._embedded(front, F.pad(ids, (n, 0)), mask, positions, cache, **options):
            yield x if keep else x[:, n:], *weights


def _behind(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat((first, second), dim=2)


def _lengthened(source: Source | None) -> Source | None:
    """The encoder's output with a mask as long as it is."""
    if source is None or source.mask is None:
        return source
    return source._replace(mask=F.pad(source.mask, (source.states.shape[1] - source.mask.shape[-1], 0), value=True))


@contextmanager
def _starting_with(embed: nn.Module, prompt: Float[Tensor, "tokens width"]) -> Iterator[None]:
    def replace(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return torch.cat((prompt.expand(len(out), -1, -1), out[:, len(prompt) :]), dim=1)

    hook = embed.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
