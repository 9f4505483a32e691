"""What emerges when: the loss falls smoothly, the skills do not.

    training.json of a shipped model ─► loss curve, and the share of right answers of every skill, along training

A skill "appears" where its share first passes the middle between its start and its best; it was sudden if most of its rise lies
between two measurements in a row.

Does:     any log with "losses" [[step, loss]] and "skills" [{"step": …, name: share}], as `llmcourse pretrain` writes it.
Leaves out: why. A share of exactly right answers jumps even where the probability of the answer grows steadily.
Source:   Wei et al. 2022, "Emergent abilities"; Schaeffer et al. 2023, "Are emergent abilities a mirage?" (the caution).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcourse import zoo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Appearance", "appearances", "describe", "load", "picture"]


NO_SKILLS = ("step", "validation loss")  # what else a log tells of a moment


class Appearance(NamedTuple):
    """When a skill came: the tokens read by then (None: it never rose), its first, last and best share, its largest single jump.

    jump: the share of the whole rise that falls between two measurements in a row.
    """

    skill: str
    tokens: int | None
    first: float
    last: float
    best: float
    jump: float


def load(name: str) -> dict[str, Any]:
    """The training log of the shipped model `name`.

    Raises: ValueError for a model that does not ship, or whose log holds no skills.
    """
    path = zoo.FOLDER / name / "training.json"
    if not path.is_file():
        known = ", ".join(sorted(each.parent.name for each in zoo.FOLDER.glob("*/training.json"))) or "none"
        raise ValueError(f'there is no training log of a model "{name}"; those that ship one: {known}')
    log = _read(path)
    if not log.get("losses") or not log.get("skills"):
        raise ValueError(f"{path} holds no losses or no skills along training")
    return log


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def appearances(log: Mapping[str, Any], *, smallest_rise: float = 0.1) -> list[Appearance]:
    """Every skill of a log, in the order of its appearance; those that rose by less than `smallest_rise` come last."""
    found = [_appearance(log, skill, smallest_rise) for skill in _skills(log)]
    return sorted(found, key=lambda each: (each.tokens is None, each.tokens or 0))


def _skills(log: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in log["skills"] for name in row if name not in NO_SKILLS))


def _curve(log: Mapping[str, Any], skill: str) -> list[tuple[int, float]]:
    """(tokens, share) at every measurement of the skill."""
    return [(_tokens(log, row["step"]), row[skill]) for row in log["skills"] if skill in row]


def _tokens(log: Mapping[str, Any], step: float) -> int:
    return round(log["tokens"] * step / log["steps"])


def _appearance(log: Mapping[str, Any], skill: str, smallest_rise: float) -> Appearance:
    curve = _curve(log, skill)
    shares = [share for _, share in curve]
    first, best = shares[0], max(shares)
    rise = best - first
    if rise < smallest_rise:
        return Appearance(skill, None, first, shares[-1], best, 0.0)
    tokens = next(tokens for tokens, share in curve if share >= first + rise / 2)
    largest = max(after - before for before, after in pairwise(shares))
    return Appearance(skill, tokens, first, shares[-1], best, largest / rise)


def picture(log: Mapping[str, Any], skills: Iterable[str] | None = None, *, title: str = "") -> Figure:
    """The loss above, the skills below, over the tokens read. skills: which of them; default the first six to appear.

    Raises: ValueError for a skill the log does not hold.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from llmcourse.show.pictures import style_settings

    chosen = _chosen(log, skills)
    with rc_context(style_settings()):
        fig = Figure(figsize=(7, 5.6))
        above, below = fig.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        above.plot([_tokens(log, step) / 1e6 for step, _ in log["losses"]], [loss for _, loss in log["losses"]], color="#000000")
        above.set(ylabel="training loss\n(nats per token)", title=title)
        for skill, marker in zip(chosen, "os^DvP*Xhp<>" * 9, strict=False):  # shapes, where colours are not enough
            tokens, shares = zip(*_curve(log, skill), strict=True)
            below.plot([n / 1e6 for n in tokens], shares, marker=marker, markersize=5, label=skill)
        below.set(xlabel="tokens read (millions)", ylabel="right answers", ylim=(-0.03, 1.03))
        below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize=9)
    return fig


def describe(log: Mapping[str, Any], skills: Iterable[str] | None = None) -> str:
    """The picture in words: its alt text."""
    (_, first), (_, last) = log["losses"][0], log["losses"][-1]
    by_name = {each.skill: each for each in appearances(log)}
    parts = [_in_words(by_name[skill]) for skill in _chosen(log, skills)]
    return f"Above, the training loss falls from {first:.2f} to {last:.2f} nats per token. Below, skills: {'; '.join(parts)}."


def _in_words(each: Appearance) -> str:
    if each.tokens is None:
        return f"{each.skill} stays near {each.last:.0%}"
    return f"{each.skill} rises from {each.first:.0%} to {each.best:.0%}, half of it by {each.tokens / 1e6:.1f} million tokens"


def _chosen(log: Mapping[str, Any], skills: Iterable[str] | None) -> list[str]:
    if skills is None:
        return [each.skill for each in appearances(log)[:6]]
    chosen, known = list(skills), _skills(log)
    for skill in chosen:
        if skill not in known:
            raise ValueError(f'the log holds no skill "{skill}"; choose from {", ".join(known)}')
    return chosen
