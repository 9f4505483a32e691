"""Rules: small functions, declared before measuring, that turn measured numbers into a verdict.

    rule = every(at_most("share", 5, unit="%"), not_worse("f1_adapter_minus_full", 2, unit="points"))

Does:     exact counts, bounds, ratios, effects with an interval, equivalence within a margin, and their combinations. A rule
          knows which numbers it needs, in which unit, and refuses others.
Leaves out: computing intervals. An effect arrives as (mean, low, high), the 95 % interval over paired seeds.
Source:   equivalence and non-inferiority as in Schuirmann 1987, "two one-sided tests".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "Number",
    "Quantity",
    "Rule",
    "Verdict",
    "at_least",
    "at_most",
    "between",
    "every",
    "exactly",
    "falls",
    "not_worse",
    "number",
    "provided",
    "ratio_at_least",
    "rises",
    "shown",
    "stays_below",
    "within_margin",
]

Verdict = Literal["holds", "holds at this scale", "does not hold here", "not testable at this scale"]
Number = int | float
Value = Number | tuple[Number, Number, Number]  # a number, or an effect: mean, low end, high end

# Where several rules must hold, the verdict furthest down this list decides.
WORSE: tuple[Verdict, ...] = ("holds", "holds at this scale", "not testable at this scale", "does not hold here")
PAIRED_SEEDS = 5  # fewer cannot show that two methods are equal


@dataclass(frozen=True)
class Quantity:
    """What a rule needs under one name."""

    unit: str
    effect: bool = False  # (mean, low, high) in place of one number
    exact: bool = False  # a count: CI compares it without tolerance


@dataclass(frozen=True)
class Rule:
    """How to judge: the quantities needed, the rule in words, the function itself, and the fewest seeds it accepts."""

    needs: Mapping[str, Quantity]
    words: str
    judge: Callable[[Mapping[str, Any]], Verdict]
    min_seeds: int = 0

    def validate(self, measured: Any) -> dict[str, Value]:
        """`measured` as plain numbers under exactly the names this rule needs.

        Raises:
            ValueError: naming what is missing, unknown, not finite, or not an ordered (mean, low, high).
            TypeError: naming what is not a number.
        """
        if not isinstance(measured, Mapping):
            measured = self._under_its_only_name(measured)
        missing, unknown = self.needs.keys() - measured.keys(), measured.keys() - self.needs.keys()
        if missing or unknown:
            kinds = (("missing", missing), ("unknown", unknown))
            found = "; ".join(f"{label} {', '.join(sorted(map(repr, names)))}" for label, names in kinds if names)
            raise ValueError(f"{found}; needed are {self._wanted()}")
        return {name: _value(name, quantity, measured[name]) for name, quantity in self.needs.items()}

    def shown(self, values: Mapping[str, Value]) -> str:
        """Validated values for reading, with their units: "full 32,768 parameters · lora 4,608 parameters"."""
        return " · ".join(f"{name} {shown(value)} {self.needs[name].unit}".rstrip() for name, value in values.items())

    def _under_its_only_name(self, value: Any) -> dict[str, Any]:
        if len(self.needs) != 1:
            raise ValueError(f"one number is not enough; give a dict with {self._wanted()}")
        return {next(iter(self.needs)): value}

    def _wanted(self) -> str:
        kinds = {name: (q.unit or "number") + (", as (mean, low, high)" if q.effect else "") for name, q in self.needs.items()}
        return ", ".join(f"{name!r} ({kind})" for name, kind in kinds.items())


def number(value: Any, name: str) -> Number:
    """A Python number from an int, a float, or a tensor, array or NumPy scalar of one element.

    Raises:
        TypeError: for anything else.
    """
    try:
        plain = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):
        raise TypeError(f"{name!r} is a {type(value).__name__} of several elements; give one number, such as its mean") from None
    if not isinstance(plain, (int, float)):
        raise TypeError(f"{name!r} is a {type(value).__name__}; give one number")
    return plain


def shown(value: Value) -> str:
    """A value for reading: "32,768", "0.0123", "3.2 [1.1, 5.3]"."""
    if isinstance(value, tuple):
        mean, low, high = map(shown, value)
        return f"{mean} [{low}, {high}]"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _value(name: str, quantity: Quantity, value: Any) -> Value:
    if not quantity.effect:
        return _finite(number(value, name), name)
    try:
        mean, low, high = value
    except (TypeError, ValueError):
        raise ValueError(f"{name!r} is an effect; give (mean, low, high), its 95 % interval over seeds") from None
    mean, low, high = (_finite(number(each, name), name) for each in (mean, low, high))
    if not low <= mean <= high:
        raise ValueError(f"{name!r} is {(mean, low, high)}; the order is (mean, low, high) with low ≤ mean ≤ high")
    return mean, low, high


def _finite(value: Number, name: str) -> Number:
    if not math.isfinite(value):
        raise ValueError(f"{name!r} is {value}; a claim needs finite numbers, so find out why the measurement failed")
    return value


def _one(
    name: str,
    quantity: Quantity,
    words: str,
    test: Callable[[Any], bool],
    *,
    success: Verdict = "holds at this scale",
    seeds: int = 0,
) -> Rule:
    """A rule about one quantity."""
    return Rule({name: quantity}, words.rstrip(), lambda measured: _either(test(measured[name]), success), seeds)


def _either(passed: bool, success: Verdict) -> Verdict:
    return success if passed else "does not hold here"


# ---- counts and bounds ------------------------------------------------------------------------------------------------


def exactly(name: str, value: int, *, unit: str = "") -> Rule:
    """The count is this one. Arithmetic does not depend on scale, so success is a plain "holds"."""
    return _one(name, Quantity(unit, exact=True), f"{name} = {shown(value)} {unit}", lambda x: x == value, success="holds")


def at_least(name: str, value: Number, *, unit: str = "") -> Rule:
    """The number reaches `value`."""
    return _one(name, Quantity(unit), f"{name} ≥ {shown(value)} {unit}", lambda x: x >= value)


def at_most(name: str, value: Number, *, unit: str = "") -> Rule:
    """The number stays at or under `value`."""
    return _one(name, Quantity(unit), f"{name} ≤ {shown(value)} {unit}", lambda x: x <= value)


def between(name: str, low: Number, high: Number, *, unit: str = "") -> Rule:
    """The number lies in [low, high]."""
    return _one(name, Quantity(unit), f"{shown(low)} ≤ {name} ≤ {shown(high)} {unit}", lambda x: low <= x <= high)


def ratio_at_least(name: str, other: str, factor: Number, *, unit: str = "") -> Rule:
    """`name` is at least `factor` times `other`, and more than nothing."""

    def judge(measured: Mapping[str, Any]) -> Verdict:
        return _either(measured[name] > 0 and measured[name] >= factor * measured[other], "holds at this scale")

    return Rule({name: Quantity(unit), other: Quantity(unit)}, f"{name} ≥ {shown(factor)} × {other}", judge)


# ---- effects ----------------------------------------------------------------------------------------------------------


def rises(name: str, *, above: Number = 0, unit: str = "points") -> Rule:
    """The whole interval of the effect lies above `above`."""
    return _one(name, Quantity(unit, effect=True), f"interval of {name} above {shown(above)} {unit}", lambda x: x[1] > above)


def falls(name: str, *, below: Number = 0, unit: str = "points") -> Rule:
    """The whole interval of the effect lies below `below`."""
    return _one(name, Quantity(unit, effect=True), f"interval of {name} below {shown(below)} {unit}", lambda x: x[2] < below)


def stays_below(name: str, limit: Number, *, unit: str = "points") -> Rule:
    """No relevant gain: the whole interval lies below `limit`, the smallest gain that would matter."""
    words = f"interval of {name} below {shown(limit)} {unit}"
    return _one(name, Quantity(unit, effect=True), words, lambda x: x[2] < limit, seeds=PAIRED_SEEDS)


def within_margin(name: str, margin: Number, *, unit: str = "points") -> Rule:
    """On a par: the whole interval of the difference lies inside ±margin."""
    words = f"interval of {name} within ±{shown(margin)} {unit}"
    return _one(name, Quantity(unit, effect=True), words, lambda x: -margin < x[1] and x[2] < margin, seeds=PAIRED_SEEDS)


def not_worse(name: str, margin: Number, *, unit: str = "points") -> Rule:
    """Near or better: the whole interval of the difference lies above −margin."""
    words = f"interval of {name} above −{shown(margin)} {unit}"
    return _one(name, Quantity(unit, effect=True), words, lambda x: x[1] > -margin, seeds=PAIRED_SEEDS)


# ---- combinations -----------------------------------------------------------------------------------------------------


def every(*rules: Rule) -> Rule:
    """All must hold; the worst verdict counts."""
    words = "; ".join(rule.words for rule in rules)
    return _combined(rules, words, lambda measured: max((rule.judge(measured) for rule in rules), key=WORSE.index))


def provided(condition: Rule, rule: Rule) -> Rule:
    """`rule`, where `condition` holds; otherwise there is nothing to test at this scale."""

    def judge(measured: Mapping[str, Any]) -> Verdict:
        met = condition.judge(measured) in ("holds", "holds at this scale")
        return rule.judge(measured) if met else "not testable at this scale"

    return _combined((condition, rule), f"provided {condition.words}: {rule.words}", judge)


def _combined(rules: tuple[Rule, ...], words: str, judge: Callable[[Mapping[str, Any]], Verdict]) -> Rule:
    needs: dict[str, Quantity] = {}
    for rule in rules:
        for name, quantity in rule.needs.items():
            if needs.setdefault(name, quantity) != quantity:
                raise ValueError(f"{name!r} is declared twice with different units or kinds")
    return Rule(needs, words, judge, max(rule.min_seeds for rule in rules))
