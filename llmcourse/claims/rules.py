# PLACEHOLDER BY THE LEAD (your originals were overwritten by accident). Engineer C: your version wins: write __init__.py and rules.py again, delete ledger.py.
"""Rules: from measured numbers to a verdict, declared before anything is measured.

    measured {"difference": …, "low": …, "high": …} ──► rule ──► "holds at this scale" | "does not hold here"

Does:     exact counts, limits, effects whose 95 % interval must exclude zero, equivalence within a margin, and several at once.
Leaves out: how the numbers and their intervals are measured: that is the notebook's work.
Source:   Schuirmann 1987 (equivalence: the whole interval lies within the margin).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Rule", "Verdict", "all_of", "at_least", "at_most", "exactly", "positive", "within"]

Verdict = Literal["holds", "holds at this scale", "does not hold here", "not testable at this scale"]


@dataclass(frozen=True)
class Rule:
    """`needs` names the numbers, `says` states the rule in words, `passes` judges; `scale` marks what larger models may change."""

    needs: tuple[str, ...]
    says: str
    passes: Callable[[Mapping[str, float]], bool]
    scale: bool = True

    def __call__(self, measured: Mapping[str, float]) -> Verdict:
        if not self.passes(measured):
            return "does not hold here"
        return "holds at this scale" if self.scale else "holds"


def exactly(**values: float) -> Rule:
    """Counts that must be equal to the digit."""
    says = ", ".join(f"{name} = {value:,}" for name, value in values.items())
    return Rule(tuple(values), says, lambda m: all(m[name] == value for name, value in values.items()), scale=False)


def at_least(name: str, limit: float, *, scale: bool = True) -> Rule:
    """A number that must reach a limit; of a measured effect, give the lower end of its interval."""
    return Rule((name,), f"{name} ≥ {limit:g}", lambda m: m[name] >= limit, scale)


def at_most(name: str, limit: float, *, scale: bool = True) -> Rule:
    """A number that must stay below a limit; of a measured effect, give the upper end of its interval."""
    return Rule((name,), f"{name} ≤ {limit:g}", lambda m: m[name] <= limit, scale)


def positive(effect: str) -> Rule:
    """An effect whose 95 % interval, `effect_low` to `effect_high`, lies above zero."""
    low, high = f"{effect}_low", f"{effect}_high"
    return Rule((effect, low, high), f"95 % interval of {effect} above 0", lambda m: low_to_high(m, effect) and m[low] > 0)


def within(difference: str, margin: float) -> Rule:
    """Equivalence: the whole 95 % interval of a difference lies within ± margin."""
    low, high = f"{difference}_low", f"{difference}_high"
    says = f"95 % interval of {difference} within ±{margin:g}"
    return Rule((difference, low, high), says, lambda m: low_to_high(m, difference) and -margin <= m[low] and m[high] <= margin)


def all_of(*rules: Rule) -> Rule:
    """Every rule must pass."""
    needs = tuple(dict.fromkeys(name for rule in rules for name in rule.needs))
    says = "; ".join(rule.says for rule in rules)
    return Rule(needs, says, lambda m: all(rule.passes(m) for rule in rules), any(rule.scale for rule in rules))


def low_to_high(measured: Mapping[str, float], name: str) -> bool:
    """Raise ValueError unless the interval is one and holds its estimate; else True."""
    low, value, high = measured[f"{name}_low"], measured[name], measured[f"{name}_high"]
    if not low <= value <= high:
        raise ValueError(f"the interval of {name}, {low:g} to {high:g}, must contain its estimate {value:g}")
    return True
