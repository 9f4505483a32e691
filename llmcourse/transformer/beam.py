"""Beam search: follow the n likeliest texts at once instead of one.

    n texts ─► model ─► log p(text) + log p(token) for all of them ─► the 2n best ─┬─► not ended: the next n texts ─┐
       ▲                                                                           └─► ended: keep the n best       │
       └────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
    an ended text's score = log p(its new tokens) / length^α         α = length_penalty; above 0 it favours long texts

Does:     the n best texts of every prompt, best first, as transformers' beam search finds them. It knows nothing about models: it
          asks a function for log-probabilities.
Leaves out: sampled, diverse and constrained beams.
Source:   Graves 2012 §2.2 (the search); Wu et al. 2016 §7 (α; here the length alone is its base, as in transformers).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["beam_search"]


class _Texts(NamedTuple):
    tokens: Int[Tensor, "batch n total"]
    scores: Float[Tensor, "batch n"]

    def best(self, n: int) -> tuple["_Texts", Int[Tensor, "batch n"]]:
        """The n best of each prompt, best first, and which of the texts they are."""
        scores, index = self.scores.topk(n)
        return _Texts(self.tokens.take_along_dim(index[..., None], 1), scores), index


def beam_search(
    step: Callable[[Tensor, int, Tensor | None], Tensor], tokens: Int[Tensor, "batch total"], start: int,
    num_beams: int, stops: Int[Tensor, " stops"], length_penalty: float = 1.0, early_stopping: bool | str = False,
) -> Int[Tensor, "batch num_beams total"]:  # fmt: skip
    """The best texts, written from column `start` on until one of `stops` or the last column ends them.

    `step(tokens, end, rows)` returns log p of column `end` of every text (texts × vocab); text k continues text `rows[k]` of the
    call before. `early_stopping`: True closes a prompt at its n-th ended text; False once its best open text, ended now, would
    not enter the n best; "never" once it would not even if the rest of its tokens were certain.
    """
    n, rows, longest = num_beams, None, tokens.shape[1] - start
    running = _Texts(tokens[:, None], torch.zeros(len(tokens), 1, device=tokens.device))
    done = _Texts(tokens[:, None].repeat(1, n, 1), running.scores.new_full((len(tokens), n), -torch.inf))
    closed = running.scores > 0
    for length in range(1, longest + 1):
        end = start + length - 1
        log_p = step(running.tokens.flatten(0, 1), end, rows)
        found, rows = _extend(running, log_p, end, keep=(1 + max(1, len(stops))) * n)  # of which n or more have not ended
        ended = torch.isin(found.tokens[..., end], stops) | (length == longest)
        final = (found.scores / length**length_penalty).masked_fill(closed | ~ended, -torch.inf)
        done, _ = _Texts(torch.cat((done.tokens, found.tokens[:, :n]), 1), torch.cat((done.scores, final[:, :n]), 1)).best(n)
        running, index = found._replace(scores=found.scores.masked_fill(ended, -torch.inf)).best(n)
        rows = rows.gather(1, index).flatten()
        reach = longest if early_stopping == "never" and length_penalty > 0 else length
        worst, hope = done.scores[:, -1:], running.scores[:, :1] / reach**length_penalty
        closed |= (worst > -torch.inf) & ((hope <= worst) | (early_stopping is True))
        if closed.all():
            break
    return done.tokens


def _extend(running: _Texts, log_p: Tensor, end: int, keep: int) -> tuple[_Texts, Int[Tensor, "batch keep"]]:
    """The `keep` best continuations by one token, and the row of the text each continues."""
    batch, n, _ = running.tokens.shape
    scores, index = (running.scores[..., None] + log_p.view(batch, n, -1)).flatten(1).topk(keep)
    rows = index // log_p.shape[-1] + n * torch.arange(batch, device=index.device)[:, None]
    tokens = running.tokens.flatten(0, 1)[rows]
    tokens[..., end] = index % log_p.shape[-1]
    return _Texts(tokens, scores), rows
