"""Tensor parallelism: every matrix is cut over the ranks, and each rank computes with its piece.

    column parallel   W by its outputs   x ─► x W₀ᵀ | x W₁ᵀ             each rank has some of the features
    row parallel      W by its inputs    h₀ W₀ᵀ + h₁ W₁ᵀ ─► y           the sum over the ranks is the message

         ┌─► f ─► q k v (rank 0's heads) ─► attention ─► o ─► g ─┐
    x ───┤                                                       ├─► the same y on both ranks
         └─► f ─► q k v (rank 1's heads) ─► attention ─► o ─► g ─┘          and likewise gate, up ─► down of the MLP

                          f forward    f backward        g forward         g backward
    tensor parallel       nothing      all-reduce        all-reduce        nothing
    sequence parallel     all-gather   reduce-scatter    reduce-scatter    all-gather

Between g and the next f all ranks do the same work on the same numbers. Under sequence parallelism each does it for its own
places only, and the messages are the two halves of an all-reduce: the same bytes, less memory.

The vocabulary is cut too: a rank looks up its own tokens, computes their logits, and the loss needs three numbers a place.

Does:     linear layers; attention (grouped heads, q/k-norm), MLP, embedding, head and loss of our Transformer, tied or not;
          shares that differ by one where a size does not divide; biases; frozen parameters; clipping; whole weights in and out.
Leaves out: encoder-decoders, experts, biases on the scores (T5, ALiBi), dropout (its masks would have to agree), fewer key heads
          than ranks, messages that hide behind the computation.
Source:   Shoeybi et al. 2019, "Megatron-LM", §3; Korthikanti et al. 2022, "Reducing Activation Recomputation", §4.2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..transformer import Block, Config, Transformer
from ..transformer.masks import Mask
from ..transformer.positions import Angles
from .common import ADAMW, Group, MakeOptimizer, all_gather, check_clip, clip_and_step, reduce_scatter, squares
from .counting import Call

__all__ = [
    "ColumnParallelLinear", "Cut", "RowParallelLinear", "SequenceParallelBlock", "TensorParallel", "VocabParallelEmbedding",
    "Wire", "cuts", "gradient_norm", "load_whole", "parallelize", "partial_sums", "shard_sums", "shares",
    "step_messages", "vocab_parallel_cross_entropy", "whole", "whole_state",
]  # fmt: skip

Stream = Float[Tensor, "batch seq d"]


# --- the cut -----------------------------------------------------------------------------------------------------------


def shares(n: int, ranks: int, what: str = "size") -> tuple[int, ...]:
    """How many of n each rank gets: the first n % ranks get one more. Raises ValueError if there is not one for each."""
    if n < ranks:
        raise ValueError(f"{what}={n} cannot be shared by {ranks} ranks; use at most {n} ranks")
    return tuple(n // ranks + (rank < n % ranks) for rank in range(ranks))


@dataclass(frozen=True)
class Cut:
    """A tensor cut along `dim` into pieces of these widths, one for each rank."""

    dim: int
    widths: tuple[int, ...]

    def piece(self, tensor: Tensor, rank: int) -> Tensor:
        """The rank's part of the whole tensor, as a view."""
        return tensor.narrow(self.dim, sum(self.widths[:rank]), self.widths[rank])

    def parameter(self, weight: nn.Parameter, rank: int) -> nn.Parameter:
        """The rank's part as a parameter of its own, frozen if the whole one was."""
        return nn.Parameter(self.piece(weight.detach(), rank).clone(), requires_grad=weight.requires_grad)


# --- the wire ----------------------------------------------------------------------------------------------------------


def _unchanged(x: Tensor, group: Group) -> Tensor:
    return x.view_as(x)


def _all_reduce(x: Tensor, group: Group) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _gather_places(x: Float[Tensor, "batch mine d"], group: Group) -> Stream:
    n = dist.get_world_size(group)
    gathered = x.new_empty(n * x.shape[0], *x.shape[1:])
    all_gather(gathered, x.contiguous(), group=group)
    return gathered.unflatten(0, (n, -1)).movedim(0, 1).flatten(1, 2)


def _scatter_places(x: Stream, group: Group) -> Float[Tensor, "batch mine d"]:
    n = dist.get_world_size(group)
    if x.shape[1] % n:
        raise ValueError(f"seq={x.shape[1]} cannot be cut into {n} equal parts; pad it to a multiple of {n}")
    parts = x.unflatten(1, (n, -1)).movedim(1, 0).contiguous()
    mine = torch.empty_like(parts[0])
    reduce_scatter(mine, parts.flatten(0, 1), group=group)
    return mine


class _Message(torch.autograd.Function):
    """One message for the activations and another for their gradient: as linear maps, each is the other's transpose."""

    @staticmethod
    def forward(ctx, x, forward, backward, group):
        ctx.backward_message, ctx.group = backward, group
        return forward(x, group)

    @staticmethod
    def backward(ctx, grad):
        return ctx.backward_message(grad, ctx.group), None, None, None


@dataclass(frozen=True)
class Wire:
    """How activations get into the parallel parts (the paper's f) and out of them (its g)."""

    group: Group = None
    sequence: bool = False

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group) if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group) if dist.is_initialized() else 0

    def enter(self, x: Float[Tensor, "*own_places d"]) -> Float[Tensor, "*places d"]:
        """f: every rank is about to use all of x, so its gradient is a sum over the ranks."""
        return self._send(x, _gather_places, _scatter_places) if self.sequence else self._send(x, _unchanged, _all_reduce)

    def leave(self, x: Float[Tensor, "*places d"]) -> Float[Tensor, "*own_places d"]:
        """g: every rank has a summand of x, so each of them has the gradient of the sum."""
        return self._send(x, _scatter_places, _gather_places) if self.sequence else self._send(x, _all_reduce, _unchanged)

    def _send(self, x: Tensor, forward: Callable, backward: Callable) -> Tensor:
        return x if self.size == 1 else _Message.apply(x, forward, backward, self.group)


# --- layers ------------------------------------------------------------------------------------------------------------


class ColumnParallelLinear(nn.Linear):
    """Some of the outputs of a linear layer: W_r, its rows. `unit` features stay together (a head's).

    `wire=None` for one of several layers that share an input: whoever holds them lets it enter once.
    """

    def __init__(self, layer: nn.Linear, at: Wire, wire: Wire | None = None, unit: int = 1, what: str = "outputs") -> None:
        cut = Cut(0, tuple(unit * n for n in shares(layer.out_features // unit, at.size, what)))
        super().__init__(layer.in_features, cut.widths[at.rank], bias=False, device="meta")
        self.wire, self.cuts = wire, {"weight": cut} | ({} if layer.bias is None else {"bias": cut})
        self.weight = cut.parameter(layer.weight, at.rank)
        self.bias = None if layer.bias is None else cut.parameter(layer.bias, at.rank)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*all_places mine"]:
        """x W_rᵀ + b_r."""
        return F.linear(x if self.wire is None else self.wire.enter(x), self.weight, self.bias)


class RowParallelLinear(nn.Linear):
    """Some of the inputs of a linear layer: W_r, its columns. `wire=None` leaves the sum, and the bias, to `finish`."""

    def __init__(self, layer: nn.Linear, at: Wire, wire: Wire | None = None, unit: int = 1, what: str = "inputs") -> None:
        cut = Cut(1, tuple(unit * n for n in shares(layer.in_features // unit, at.size, what)))
        super().__init__(cut.widths[at.rank], layer.out_features, bias=False, device="meta")
        self.wire, self.cuts = wire, {"weight": cut}
        self.weight, self.bias = cut.parameter(layer.weight, at.rank), layer.bias

    def forward(self, x: Float[Tensor, "*batch mine"]) -> Float[Tensor, "*own_places d_out"]:
        """x_r W_rᵀ, this rank's summand; with a wire of its own, the sum."""
        summand = F.linear(x, self.weight)
        return summand if self.wire is None else self.finish(summand, self.wire)

    def finish(self, summand: Tensor, wire: Wire) -> Tensor:
        """The sum over the ranks, then the bias, which must be added once."""
        y = wire.leave(summand)
        return y if self.bias is None else y + self.bias


class VocabParallelEmbedding(nn.Embedding):
    """Some rows of an embedding: a token that another rank has counts as zeros, and the sum over the ranks is the embedding."""

    def __init__(self, layer: nn.Embedding, wire: Wire) -> None:
        cut = Cut(0, shares(layer.num_embeddings, wire.size, "vocab_size"))
        super().__init__(cut.widths[wire.rank], layer.embedding_dim, device="meta")
        self.wire, self.cuts, self.start = wire, {"weight": cut}, sum(cut.widths[: wire.rank])
        self.weight = cut.parameter(layer.weight, wire.rank)

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch own_places d"]:
        row = ids - self.start
        elsewhere = (row < 0) | (row >= self.num_embeddings)
        mine = F.embedding(row.masked_fill(elsewhere, 0), self.weight).masked_fill(elsewhere[..., None], 0)
        return self.wire.leave(mine)


class SequenceParallelBlock(nn.Module):
    """A block whose stream is cut by places: norms and sums are for this rank's places, attention and MLP enter and leave."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.pre_norm, self.norm1, self.attention = block.pre_norm, block.norm1, block.attention
        self.norm2, self.mlp = block.norm2, block.mlp

    def forward(
        self, x: Float[Tensor, "batch mine d_model"], mask: Mask | None = None, angles: Angles | None = None,
        cache: None = None, return_weights: bool = False, *cross: None,
    ) -> tuple[Float[Tensor, "batch mine d_model"], Tensor | None, None]:  # fmt: skip
        """As a block's; the mask and the angles are those of all places."""
        mixed, weights = self.attention(self.norm1(x) if self.pre_norm else x, mask, angles, cache, return_weights)
        x = self._add(x, mixed, self.norm1)
        return self._add(x, self.mlp(self.norm2(x) if self.pre_norm else x), self.norm2), weights, None

    def _add(self, x: Tensor, part: Tensor, norm: nn.Module) -> Tensor:
        return x + part if self.pre_norm else norm(x + part)


# --- the loss ----------------------------------------------------------------------------------------------------------


def shard_sums(
    logits: Float[Tensor, "*batch mine"], targets: Int[Tensor, "*batch"], start: int, top: Float[Tensor, "*batch"]
) -> Float[Tensor, "2 *batch"]:
    """This rank's summands of Σ exp(z − top) and of the target's z − top, when its logits are those from `start` on."""
    shifted, row = logits.float() - top[..., None], targets - start
    mine = (row >= 0) & (row < logits.shape[-1])
    picked = shifted.gather(-1, row.masked_fill(~mine, 0)[..., None])[..., 0].masked_fill(~mine, 0)
    return torch.stack((shifted.exp().sum(-1), picked))


def vocab_parallel_cross_entropy(
    logits: Float[Tensor, "*batch mine"], targets: Int[Tensor, "*batch"], vocab_size: int, group: Group = None,
    *, ignore_index: int = -100,
) -> Float[Tensor, ""]:  # fmt: skip
    """log Σ exp z − z_target, the mean over all places that count, without the logits of the other ranks.

    Two messages: the largest logit, then both sums at once.
    """
    wire = Wire(group)
    start = sum(shares(vocab_size, wire.size, "vocab_size")[: wire.rank])
    top = logits.detach().float().amax(-1)
    if wire.size > 1:
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
    total, picked = wire.leave(shard_sums(logits, targets, start, top))
    counts = targets != ignore_index
    return (total.log() - picked).masked_fill(~counts, 0).sum() / counts.sum()


# --- the model ---------------------------------------------------------------------------------------------------------


def parallelize(model: Transformer, group: Group = None, *, sequence: bool = False) -> Transformer:
    """Cut a model that is whole on every rank, in place: afterwards it gives the logits of this rank's part of the vocabulary.

    `sequence`: between the parallel parts each rank has its share of the places; their number must be a multiple of the ranks.
    Gradients are complete once they are in `.grad`: those of parameters that every rank has are summed on the way.

    Raises:
        ValueError: a part of the model that cannot be cut, or a size with less than one unit for each rank.
    """
    wire, c = Wire(group, sequence), model.config
    _check(c, sequence)
    model.embed = VocabParallelEmbedding(model.embed, wire)
    for i, block in enumerate(model.blocks):
        _cut_attention(block.attention, wire, c.n_heads // c.n_kv_heads)
        _cut_mlp(block.mlp, wire)
        model.blocks[i] = SequenceParallelBlock(block) if sequence else block
    model.head = ColumnParallelLinear(model.head, wire, wire, what="vocab_size")
    model.tie()
    if wire.size > 1:
        for weight in partial_sums(model, sequence):
            weight.register_hook(partial(_all_reduce, group=group))
    return model


def _cut_attention(part: nn.Module, wire: Wire, group_size: int) -> None:
    """Heads are shared out; a key head stays with the query heads that read it."""
    d = part.d_head
    part.q = ColumnParallelLinear(part.q, wire, unit=d * group_size, what="n_kv_heads")
    part.k, part.v = (ColumnParallelLinear(layer, wire, unit=d, what="n_kv_heads") for layer in (part.k, part.v))
    part.o = RowParallelLinear(part.o, wire, unit=d * group_size, what="n_kv_heads")
    _enter_and_leave(part, wire, part.o)


def _cut_mlp(part: nn.Module, wire: Wire) -> None:
    """Each rank has some of the hidden features."""
    part.up = ColumnParallelLinear(part.up, wire, what="d_ff")
    part.gate = None if part.gate is None else ColumnParallelLinear(part.gate, wire, what="d_ff")
    part.down = RowParallelLinear(part.down, wire, what="d_ff")
    _enter_and_leave(part, wire, part.down)


def _enter_and_leave(part: nn.Module, wire: Wire, last: RowParallelLinear) -> None:
    """f before the part and g behind it, as hooks: the part's own code, and the names of its weights, stay as they are."""

    def leave(_: nn.Module, inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return (last.finish(output[0], wire), *output[1:]) if isinstance(output, tuple) else last.finish(output, wire)

    part.register_forward_pre_hook(lambda _, inputs: (wire.enter(inputs[0]), *inputs[1:]))
    part.register_forward_hook(leave)


def _check(c: Config, sequence: bool) -> None:
    dropouts = ("dropout", "attention_dropout", "mlp_dropout", "head_dropout")
    for impossible, problem in (
        (c.n_encoder_layers, "an encoder-decoder cannot be cut here; use a decoder"),
        (c.n_experts, f"n_experts={c.n_experts}: experts cannot be cut here; use a dense MLP"),
        (c.head != "tokens", f'head={c.head!r} cannot be cut here; use head="tokens"'),
        (c.positions in ("alibi", "t5"), f"positions={c.positions!r} add a bias for all heads to every rank's; use rope"),
        (sequence and c.positions in ("learned", "sinusoidal"), f"positions={c.positions!r} need all places; set sequence=False"),
        (any(getattr(c, name) for name in dropouts), "dropout would differ between the ranks; set it to 0"),
    ):
        if impossible:
            raise ValueError(problem)


def cuts(model: nn.Module) -> dict[str, Cut]:
    """Which weights are cut and how, by name; all others are whole on every rank."""
    return {
        f"{place}.{name}".lstrip("."): cut
        for place, module in model.named_modules()
        for name, cut in getattr(module, "cuts", {}).items()
    }


def partial_sums(model: nn.Module, sequence: bool) -> list[nn.Parameter]:
    """The whole parameters of which a rank sees only some uses: its places' (sequence parallelism), or its heads' (q/k-norm)."""
    cut = cuts(model)
    return [
        weight
        for name, weight in model.named_parameters()
        if name not in cut and weight.requires_grad and (sequence or ".q_norm." in name or ".k_norm." in name)
    ]


# --- whole weights, in and out -----------------------------------------------------------------------------------------


@torch.no_grad()
def whole(mine: Tensor, cut: Cut, group: Group = None) -> Tensor:
    """All ranks' pieces in one tensor, on every rank. Each is broadcast, since they may differ in width."""
    wire, pieces = Wire(group), []
    for rank, width in enumerate(cut.widths):
        shape = list(mine.shape)
        shape[cut.dim] = width
        piece = mine.detach().contiguous() if rank == wire.rank else mine.new_empty(shape)
        if wire.size > 1:
            dist.broadcast(piece, group=group, group_src=rank)
        pieces.append(piece)
    return torch.cat(pieces, cut.dim)


def whole_state(model: nn.Module, group: Group = None) -> dict[str, Tensor]:
    """The state dict the model had before it was cut, trained since."""
    cut = cuts(model)
    return {name: whole(t, cut[name], group) if name in cut else t.detach().clone() for name, t in model.state_dict().items()}


def load_whole(model: nn.Module, state: dict[str, Tensor], group: Group = None) -> None:
    """This rank's part of the weights of a whole model."""
    cut, rank = cuts(model), Wire(group).rank
    model.load_state_dict({name: cut[name].piece(t, rank) if name in cut else t for name, t in state.items()})


# --- theory ------------------------------------------------------------------------------------------------------------


def step_messages(config: Config, batch: int, seq: int, ranks: int, *, sequence: bool = False, itemsize: int = 4) -> list[Call]:
    """The calls of one `loss(…).backward()` and `step()`, in no order, for a model without q/k-norm or biases, all of it trained.

    Each layer has two parts, attention and MLP, the embedding is only left and the head only entered: as many f as g.
    """
    each_way, stream = 2 * config.n_layers + 1, batch * seq * config.d_model * itemsize
    loss = [Call("all_reduce", batch * seq * 4, ranks), Call("all_reduce", 2 * batch * seq * 4, ranks)]
    norm = [Call("all_reduce", 4, ranks)]
    if not sequence:
        return 2 * each_way * [Call("all_reduce", stream, ranks)] + loss + norm
    whole_weights = each_way * [Call("all_reduce", config.d_model * itemsize, ranks)]  # the norms', which see some places only
    return 2 * each_way * [Call("all_gather", stream, ranks), Call("reduce_scatter", stream, ranks)] + whole_weights + loss + norm


# --- the strategy ------------------------------------------------------------------------------------------------------


def gradient_norm(model: nn.Module, group: Group = None) -> Float[Tensor, ""]:
    """The norm of the gradient of the whole model: pieces are summed over the ranks, whole parameters counted once."""
    cut = cuts(model)
    pieces = squares((p.grad for name, p in model.named_parameters() if name in cut), next(model.parameters()).device)
    if Wire(group).size > 1:
        dist.all_reduce(pieces, group=group)
    return (pieces + squares(p.grad for name, p in model.named_parameters() if name not in cut)).sqrt()


class TensorParallel:
    """A cut model with its optimizer: `strategy.loss(ids, targets).backward()`, then `strategy.step()`. All ranks read it all."""

    def __init__(
        self, model: Transformer, group: Group = None, *, sequence: bool = False, optimizer: MakeOptimizer = ADAMW,
        clip: float | None = None,
    ) -> None:  # fmt: skip
        check_clip(clip)
        self.model, self.group, self.clip = parallelize(model, group, sequence=sequence), group, clip
        self.optimizer = optimizer([p for p in model.parameters() if p.requires_grad])

    def loss(self, ids: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        """Cross-entropy, the same on every rank; targets of −100 do not count."""
        return vocab_parallel_cross_entropy(self.model(ids), targets, self.model.config.vocab_size, self.group)

    @torch.no_grad()
    def logits(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """Those of the whole vocabulary, on every rank."""
        return whole(self.model(ids), Cut(-1, self.model.head.cuts["weight"].widths), self.group)

    def step(self) -> Float[Tensor, ""]:
        """Clip, update, forget the gradients. Returns the gradient's norm before it was clipped."""
        norm = gradient_norm(self.model, self.group)
        clip_and_step(self.model, self.optimizer, norm, self.clip)
        return norm
