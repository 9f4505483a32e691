"""Pipeline parallelism: each rank has some of the layers, and the batch flows through them in small pieces.

    3 stages, 4 micro-batches, a backward pass as long as two forward passes                time ─►

    GPipe: all forwards, then all backwards; each stage stores 4 micro-batches
    stage 0   F0 F1 F2 F3  ·  ·  ·  ·  ·  · B0 B0 B1 B1 B2 B2 B3 B3
    stage 1    · F0 F1 F2 F3  ·  ·  · B0 B0 B1 B1 B2 B2 B3 B3  ·  ·
    stage 2    ·  · F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3  ·  ·  ·  ·

    1F1B: one forward, one backward; stages store 3, 2 and 1
    stage 0   F0 F1 F2  ·  ·  ·  · B0 B0 F3 B1 B1  · B2 B2  · B3 B3
    stage 1    · F0 F1  ·  · B0 B0 F2 B1 B1 F3 B2 B2  · B3 B3  ·  ·
    stage 2    ·  · F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3  ·  ·  ·  ·

    bubble = (stages − 1) / (micro-batches + stages − 1)       of every stage's time, with either schedule, if stages are equal

Does:     both schedules as plain lists; when each action happens and how long stages idle, for any costs (`play`); the schedules
          run on our Transformer, its ends tied or not, with uneven micro-batches, gradient accumulation, recomputation, clipping,
          frozen parameters; what really happened, and when, recorded.
Leaves out: interleaved and zero-bubble schedules; stages of other models; stages balanced by cost; messages while computing.
Source:   Huang et al. 2019, "GPipe", §2; Narayanan et al. 2021, "Efficient Large-Scale Language Model Training", §2.2.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..transformer import Config, Transformer, frequencies, masks, rope_angles
from .common import ADAMW, Group, MakeOptimizer, check_clip, clip_and_step, squares
from .counting import Call
from .recompute import checkpoint
from .tensor import Wire, shares

__all__ = [
    "Action", "Pipeline", "Schedule", "Span", "Stage", "bubble", "bubble_fraction", "gpipe", "in_flight", "one_f_one_b", "play",
    "step_messages",
]  # fmt: skip


# --- schedules: what each stage does, in which order -------------------------------------------------------------------


class Action(NamedTuple):
    """Forward ("F") or backward ("B") of one micro-batch."""

    kind: str
    batch: int


Schedule = Callable[[int, int, int], list[Action]]
"""(stages, micro-batches, stage) → the stage's actions in order."""


def gpipe(stages: int, batches: int, stage: int) -> list[Action]:
    """All forwards, then all backwards: simple, but every micro-batch is stored at once."""
    return [Action(kind, i) for kind in "FB" for i in range(batches)]


def one_f_one_b(stages: int, batches: int, stage: int) -> list[Action]:
    """Forwards until the first gradient can arrive, then one forward, one backward in turn, then the backwards that are left."""
    ahead = min(batches, stages - 1 - stage)
    order = [Action("F", i) for i in range(ahead)]
    for i in range(batches - ahead):
        order += [Action("F", ahead + i), Action("B", i)]
    return order + [Action("B", i) for i in range(batches - ahead, batches)]


def in_flight(order: Sequence[Action]) -> int:
    """The most micro-batches a stage stores at once: m for GPipe, min(m, stages − stage) for 1F1B."""
    stored, most = 0, 0
    for action in order:
        stored += 1 if action.kind == "F" else -1
        most = max(most, stored)
    return most


# --- time: when it happens, and how long stages wait -------------------------------------------------------------------


class Span(NamedTuple):
    """An action and when it ran."""

    action: Action
    start: float
    end: float


def _steps(stage: int, action: Action) -> float:
    return 1.0 if action.kind == "F" else 2.0  # a backward pass multiplies two matrices where a forward pass multiplies one


def play(orders: Sequence[Sequence[Action]], cost: Callable[[int, Action], float] = _steps) -> list[list[Span]]:
    """When every action runs, if each stage starts the next one as soon as it is free and its input is there.

    `cost` of an action on a stage: steps by default (forward 1, backward 2), or seconds you have measured. Messages cost nothing.

    Raises:
        ValueError: orders that wait for each other for ever.
    """
    done: dict[tuple[int, Action], float] = {}
    spans: list[list[Span]] = [[] for _ in orders]
    while any(len(played) < len(order) for played, order in zip(spans, orders, strict=True)):
        before = len(done)
        for stage, order in enumerate(orders):
            _play_stage(stage, order, spans[stage], done, len(orders), cost)
        if len(done) == before:
            stuck = [f"stage {s} at {order[len(spans[s])]}" for s, order in enumerate(orders) if len(spans[s]) < len(order)]
            raise ValueError(f"the schedule never ends: {', '.join(stuck)} wait for each other")
    return spans


def _play_stage(
    stage: int, order: Sequence[Action], spans: list[Span], done: dict, stages: int, cost: Callable[[int, Action], float]
) -> None:
    """Append all actions whose input is known to arrive."""
    for action in order[len(spans) :]:
        needed = _input_of(stage, action, stages)
        if needed is not None and needed not in done:
            return
        start = max(spans[-1].end if spans else 0.0, done.get(needed, 0.0))
        spans.append(Span(action, start, start + cost(stage, action)))
        done[stage, action] = spans[-1].end


def _input_of(stage: int, action: Action, stages: int) -> tuple[int, Action] | None:
    """Which action, on which stage, makes what this one reads; None for the tokens."""
    if action.kind == "F":
        return (stage - 1, action) if stage else None
    return (stage, Action("F", action.batch)) if stage == stages - 1 else (stage + 1, action)


def bubble(spans: Sequence[Sequence[Span]]) -> float:
    """The idle part of all stages' time, from the first action's start to the last one's end."""
    every = [span for stage in spans for span in stage]
    lasted = max(span.end for span in every) - min(span.start for span in every)
    return 1 - sum(span.end - span.start for span in every) / (lasted * len(spans))


def bubble_fraction(stages: int, batches: int) -> float:
    """(p − 1) / (m + p − 1): what `bubble` must be when all stages cost the same."""
    return (stages - 1) / (batches + stages - 1)


def step_messages(
    config: Config, batch: int, seq: int, stages: int, batches: int, stage: int, *, itemsize: int = 4
) -> list[Call]:  # fmt: skip
    """The calls of one `forward_backward` and `step` on a stage, in no order: activations up, their gradients down.

    At the end the loss goes from the last stage to all, the norm is summed, and tied ends swap the gradient of their matrix.
    """
    sizes = [n * seq * config.d_model * itemsize for n in shares(batch, batches, "batch")]
    swapped = config.vocab_size * config.d_model * itemsize
    both_ways = [Call(name, size, stages) for size in sizes for name in ("send", "recv")]
    ties = [Call(name, swapped, stages) for name in ("send", "recv")] if config.tied and stage in (0, stages - 1) else []
    neighbours = (stage > 0) + (stage < stages - 1)
    return neighbours * both_ways + ties + [Call("broadcast", 4, stages), Call("all_reduce", 4, stages)]


# --- stages: a model in pieces -----------------------------------------------------------------------------------------


class Stage(nn.Module):
    """Some blocks of a Transformer, under their names; the first stage embeds, the last one has the final norm and the head.

    Raises:
        ValueError: a model with parts that a stage does not have, or fewer layers than stages.
    """

    def __init__(self, model: Transformer, stages: int, stage: int, recompute: bool = False) -> None:
        super().__init__()
        _check(model.config)
        self.config, self.recompute = model.config, recompute
        counts = shares(model.config.n_layers, stages, "n_layers")
        start = sum(counts[:stage])
        self.embed = model.embed if stage == 0 else None
        self.blocks = nn.ModuleDict({str(i): model.blocks[i] for i in range(start, start + counts[stage])})
        self.norm, self.head = (model.norm, model.head) if stage == stages - 1 else (None, None)

    def forward(
        self, x: Int[Tensor, "batch seq"] | Float[Tensor, "batch seq d_model"]
    ) -> Float[Tensor, "batch seq d_model"] | Float[Tensor, "batch seq vocab"]:
        """Tokens or the stream in; the stream or logits out."""
        c, seq = self.config, x.shape[1]
        x = x if self.embed is None else self.embed(x)
        places = torch.arange(seq, device=x.device)
        angles = None
        if c.positions == "rope":
            angles = rope_angles(places, frequencies(c.d_head, c.rope_base, c.rope_scaling, x.device), x.dtype)
        mask = masks.complete(seq, seq, encoder=not c.causal, window=c.window, device=x.device)
        for block in self.blocks.values():
            x, *_ = checkpoint(block, x, mask, angles) if self.recompute else block(x, mask, angles)
        return x if self.head is None else self.head(self.norm(x))


def _check(c: Config) -> None:
    for impossible, problem in (
        (c.positions not in ("rope", "none"), f"positions={c.positions!r} are known to the first stage only; use rope"),
        (c.n_encoder_layers, "an encoder-decoder cannot be cut into stages here; use a decoder"),
        (c.head != "tokens" or c.scaled_head, f'head={c.head!r}, scaled or not: a stage has only the plain "tokens" head'),
        (c.embed_norm or c.n_token_types, "token types and a norm behind the embedding are not part of a stage; leave them out"),
        (c.dropout or c.head_dropout, "dropout of embedding and head is not part of a stage; set it to 0"),
    ):
        if impossible:
            raise ValueError(problem)


# --- the wire: the schedule at work ------------------------------------------------------------------------------------


class Pipeline:
    """This rank's stage and its optimizer: `strategy.forward_backward(ids, targets)`, then `strategy.step()`.

    Every rank gives the same global batch; the first stage reads the tokens, the last one the targets. The passes cannot be told
    apart from outside, so there is no `loss.backward()` here. Call `forward_backward` several times before `step` to accumulate.
    """

    def __init__(
        self, model: Transformer, group: Group = None, *, schedule: Schedule = one_f_one_b, microbatches: int = 4,
        recompute: bool = False, optimizer: MakeOptimizer = ADAMW, clip: float | None = None,
    ) -> None:  # fmt: skip
        check_clip(clip)
        self.group, self.stages, self.index = group, Wire(group).size, Wire(group).rank
        self.stage = Stage(model, self.stages, self.index, recompute)
        self.schedule, self.microbatches, self.clip = schedule, microbatches, clip
        self.optimizer = optimizer([p for p in self.stage.parameters() if p.requires_grad])
        self.orders = [schedule(self.stages, microbatches, stage) for stage in range(self.stages)]
        self.spans: list[Span] = []

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.stages - 1

    def forward_backward(self, ids: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        """The batch's mean cross-entropy, on every rank; its gradients are added to `.grad`. Targets of −100 do not count."""
        self._cut(self.microbatches, ids, targets)
        self._run(self.orders[self.index])
        loss = torch.stack(self.losses).sum() if self.last else torch.zeros((), device=ids.device)
        return self._from_last(loss)

    @torch.no_grad()
    def logits(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        """The last stage's logits, on every rank."""
        batches = min(self.microbatches, len(ids))
        self._cut(batches, ids)
        self._run([Action("F", i) for i in range(batches)])
        dtype = next(self.stage.parameters()).dtype
        logits = torch.empty(*ids.shape, self.stage.config.vocab_size, dtype=dtype, device=ids.device)
        if self.last:
            logits = torch.cat([y for _, y in self.stored.values()])
        return self._from_last(logits)

    def step(self) -> Float[Tensor, ""]:
        """Clip, update, forget the gradients. Returns the gradient's norm before it was clipped."""
        self._tie()
        norm = self._gradient_norm()
        clip_and_step(self.stage, self.optimizer, norm, self.clip)
        return norm

    def timeline(self) -> list[list[Span]]:
        """When every stage did what in the last `forward_backward`, in seconds, for all stages, on every rank.

        The clocks of one machine's processes agree; those of several machines do not.
        """
        mine = torch.tensor([[span.start, span.end] for span in self.spans], dtype=torch.float64, device=self._device)
        every = [torch.empty_like(mine) for _ in self.orders]
        if self.stages > 1:
            dist.all_gather(every, mine, group=self.group)
        else:
            every = [mine]
        begin = min(float(times[0, 0]) for times in every)
        return [
            [Span(action, start - begin, end - begin) for action, (start, end) in zip(order, times.tolist(), strict=True)]
            for order, times in zip(self.orders, every, strict=True)
        ]

    # the run ---------------------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return next(self.stage.parameters()).device

    def _cut(self, batches: int, ids: Tensor, targets: Tensor | None = None) -> None:
        """Micro-batches of nearly equal size."""
        sizes = shares(len(ids), batches, "batch")
        self.ids, self.targets = ids.split(sizes), None if targets is None else targets.split(sizes)
        self.counted = None if targets is None else (targets != -100).sum()

    def _run(self, order: Sequence[Action]) -> None:
        """Each action with its input, and the messages between two of them."""
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}
        self.losses, self.spans, self.most_stored, sending = [], [], 0, []
        made, previous = None, None
        for action in [*order, None]:
            read = self._exchange(previous, made, action, sending)
            if action is None:
                break
            start = self._now()
            made = (self._forward if action.kind == "F" else self._backward)(action.batch, read)
            self.spans.append(Span(action, start, self._now()))
            previous = action
        for work, _ in sending:
            work.wait()

    def _forward(self, batch: int, x: Tensor | None) -> Tensor:
        x = self.ids[batch] if self.first else x.requires_grad_(torch.is_grad_enabled())
        y = self.stage(x)
        if self.last and self.targets is not None:
            y = F.cross_entropy(y.flatten(0, 1).float(), self.targets[batch].flatten(), reduction="sum") / self.counted
            self.losses.append(y.detach())
        self.stored[batch] = x, y
        self.most_stored = max(self.most_stored, len(self.stored))
        return y.detach()

    def _backward(self, batch: int, gradient: Tensor | None) -> Tensor | None:
        x, y = self.stored.pop(batch)
        if y.requires_grad:  # not if the first stage is frozen
            y.backward(gradient)
        return x.grad

    def _exchange(self, done: Action | None, made: Tensor | None, due: Action | None, sending: list) -> Tensor | None:
        """Send what the last action made, receive what the next one reads: together, so that no two ranks wait for each other."""
        read, messages = None, []
        if due is not None and (source := self._peer(due, towards=False)) is not None:
            read = torch.empty(self._shape(due.batch), dtype=next(self.stage.parameters()).dtype, device=self._device)
            messages.append(dist.P2POp(dist.irecv, read, group=self.group, group_peer=source))
        if done is not None and (target := self._peer(done, towards=True)) is not None:
            messages.append(dist.P2POp(dist.isend, made.contiguous(), group=self.group, group_peer=target))
        works = dist.batch_isend_irecv(messages) if messages else []
        if read is not None:
            works.pop(0).wait()
        sending += [(work, message.tensor) for work, message in zip(works, messages[::-1], strict=False)]
        return read

    def _peer(self, action: Action, towards: bool) -> int | None:
        """The rank an action's output goes to (or its input comes from), if it is another one."""
        up = (action.kind == "F") == towards
        if up:
            return None if self.last else self.index + 1
        return None if self.first else self.index - 1

    def _shape(self, batch: int) -> tuple[int, int, int]:
        return (*self.ids[batch].shape, self.stage.config.d_model)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()

    def _from_last(self, tensor: Tensor) -> Tensor:
        if self.stages > 1:
            dist.broadcast(tensor, group=self.group, group_src=self.stages - 1)
        return tensor

    # before the step -------------------------------------------------------------------------------------------------

    def _tie(self) -> None:
        """Where head and embedding are one matrix on two ranks, each adds the other's gradient to its own."""
        if not self.stage.config.tied or self.stages == 1 or not (self.first or self.last):
            return
        weight = self.stage.embed.weight if self.first else self.stage.head.weight
        if weight.grad is None:
            return
        other, peer = torch.empty_like(weight.grad), self.stages - 1 if self.first else 0
        ends = [(dist.irecv, other), (dist.isend, weight.grad)]
        for work in dist.batch_isend_irecv([dist.P2POp(op, t, group=self.group, group_peer=peer) for op, t in ends]):
            work.wait()
        weight.grad += other

    def _gradient_norm(self) -> Float[Tensor, ""]:
        """Of the whole model; a matrix that two stages have counts once."""
        twice = self.stage.head.weight if self.last and not self.first and self.stage.config.tied else None
        total = squares((p.grad for p in self.stage.parameters() if p is not twice), self._device)
        if self.stages > 1:
            dist.all_reduce(total, group=self.group)
        return total.sqrt()
