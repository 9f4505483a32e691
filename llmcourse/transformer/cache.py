"""The KV cache: keys and values of the past, computed once.

    step t:  k, v of the new tokens ─► written behind the old ones ─► attention over all of them

Does:     one preallocated buffer a layer, doubled when full, so that a step copies only what is new; keys and values of an
          encoder's output, stored whole at the first step; rows reordered for beam search.
Leaves out: training through the cache (its writes are in place); eviction, paging, quantised caches.
Source:   Pope et al. 2022 §2.1.
"""

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["KVCache", "LayerCache"]

KeysValues = tuple[Float[Tensor, "batch heads key d"], Float[Tensor, "batch heads key d_v"]]


class LayerCache:
    """Keys and values of one attention layer."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity, self.length = capacity, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def stored(self) -> KeysValues:
        """All keys and values so far, old first."""
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def append(self, k: Float[Tensor, "batch heads new d"], v: Float[Tensor, "batch heads new d_v"]) -> KeysValues:
        """Store the new keys and values; return all of them, old first."""
        start, self.length = self.length, self.length + k.shape[2]
        if self.keys is None or self.length > self.capacity:
            self._grow(k, v, start)
        for buffer, new in ((self.keys, k), (self.values, v)):
            buffer.narrow(2, start, new.shape[2]).copy_(new)
        return self.stored

    def _grow(self, k: Tensor, v: Tensor, filled: int) -> None:
        old = self.keys, self.values
        self.capacity = max(self.length, 2 * self.capacity if filled else self.capacity)
        self.keys, self.values = (x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (k, v))
        if filled:
            self.keys[:, :, :filled], self.values[:, :, :filled] = (x[:, :, :filled] for x in old)


class KVCache:
    """A `LayerCache` for each of `n_layers`, and one for its cross-attention; `capacity` is the expected length, not a limit."""

    def __init__(self, n_layers: int, capacity: int = 256) -> None:
        self.layers = [LayerCache(capacity) for _ in range(n_layers)]
        self.cross = [LayerCache() for _ in range(n_layers)]

    @property
    def length(self) -> int:
        """How many tokens are stored."""
        return self.layers[0].length

    @property
    def n_bytes(self) -> int:
        """Bytes of the keys and values stored so far (the buffers may be larger)."""
        return sum(x.numel() * x.element_size() for layer in self._filled() for x in layer.stored)

    def select(self, rows: Int[Tensor, " new_batch"]) -> None:
        """Keep these rows of the batch, in this order and as often as they are named."""
        for layer in self._filled():
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def _filled(self) -> list[LayerCache]:
        return [layer for layer in self.layers + self.cross if layer.length]
