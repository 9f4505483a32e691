# PLACEHOLDER BY THE LEAD (your originals were overwritten by accident). Engineer C: your version wins: write __init__.py and rules.py again, delete ledger.py.
"""Claims and expectations: numbers that are judged by a rule stated beforehand, not by the sentence beside them.

    claim("lora-params", measured={…})  ──► rule of the ledger ──► verdict, card, machine-readable output
    expect("entropy falls", value, low=0.5) ──► ✓ or ✗; in CI a ✗ stops the run

Does:     verdicts, cards, and reading both back from stored notebooks (`llmcourse claims`, and CI's comparison with a fresh run).
Leaves out: the rules (`rules`) and the claims (`ledger`).
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .ledger import LEDGER, Claim
from .rules import Rule, Verdict

__all__ = [
    "CLAIM_MIME",
    "EXPECT_MIME",
    "LEDGER",
    "Claim",
    "ExpectationFailed",
    "Rule",
    "UnknownClaim",
    "Verdict",
    "claim",
    "differences",
    "expect",
    "ledger_rows",
    "read",
]

CLAIM_MIME = "application/vnd.llmcourse.claim+json"
EXPECT_MIME = "application/vnd.llmcourse.expect+json"


class UnknownClaim(KeyError):
    """No claim of that id; the message names the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message in quotes


class ExpectationFailed(AssertionError):
    """A measured value lies outside the range stated for it."""


def claim(id: str, measured: float | Mapping[str, float], *, seeds: int | None = None, because: str = "") -> Verdict:
    """Judge a claim of the ledger by its own rule, show the verdict, and record it in the cell's output.

    Args:
        measured: the numbers the rule needs, by name; a bare number where it needs only one.
        seeds: how many seeds are behind them.
        because: the explanation, where the claim does not hold.

    Raises:
        UnknownClaim: with the nearest id.
        ValueError: for missing, unknown or non-finite numbers, or an interval that does not contain its estimate.
    """
    from .. import show

    entry = _entry(id)
    numbers = _numbers(entry, measured)
    verdict = entry.rule(numbers)
    if verdict == "does not hold here":
        because = because or "no explanation yet"
    record = {"id": id, "measured": numbers, "verdict": verdict, "seeds": seeds, "because": because, "says": entry.says}
    status = "good" if verdict.startswith("holds") else "bad"
    show.card(status, f"{verdict[0].upper()}{verdict[1:]}: {id}", _told(entry, record), extra={CLAIM_MIME: record})
    return verdict


def expect(name: str, value: Any, low: float | None = None, high: float | None = None) -> None:
    """Check that `low ≤ value ≤ high` and show it.

    Args:
        value: a number, or a tensor or array that holds one.
        low, high: inclusive bounds, at least one of them; the range must leave out what would be measured if there were no effect.

    Raises:
        ExpectationFailed: outside the range, but only with LLMCOURSE_STRICT=1, as in CI; NaN is always outside.
        ValueError: without a bound, or where low exceeds high.
    """
    from .. import show

    if low is None and high is None:
        raise ValueError(f'expect("{name}") needs a range that can fail: give low, high or both')
    if low is not None and high is not None and low > high:
        raise ValueError(f'expect("{name}") got low={low:g} above high={high:g}')
    value = float(value)
    passed = (low is None or value >= low) and (high is None or value <= high) and not math.isnan(value)
    found = f"{value:.4g}, expected {_range(low, high)}"
    finite = value if math.isfinite(value) else None
    record = {"name": name, "value": finite, "low": low, "high": high, "passed": passed}
    show.card("good" if passed else "bad", name, found, extra={EXPECT_MIME: record})
    if not passed and os.environ.get("LLMCOURSE_STRICT") == "1":
        raise ExpectationFailed(f"{name}: {found}")


def read(notebook: str | Path | Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims a notebook (its path, or its parsed JSON) has stored in its outputs, in order."""
    import json

    if not isinstance(notebook, Mapping):
        notebook = json.loads(Path(notebook).read_text(encoding="utf-8"))
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    return [output["data"][CLAIM_MIME] for output in outputs if CLAIM_MIME in output.get("data", {})]


def ledger_rows(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """One row for every claim of the ledger: id, notebook, claim, rule, measured, verdict ("not measured yet" where nothing is stored).

    A claim measured in several notebooks takes the one it belongs to.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in map(Path, paths):
        for record in read(path):
            owned = path.name[:2] in _entry(record["id"]).notebooks
            if owned or record["id"] not in found:
                found[record["id"]] = {**record, "measured in": path.stem}
    return [_row(entry, found.get(id, {})) for id, entry in LEDGER.items()]


def differences(stored: Iterable[Mapping[str, Any]], fresh: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a fresh run says otherwise than the stored outputs: other claims, another verdict, a number beyond the claim's drift."""
    old, new = {c["id"]: c for c in stored}, {c["id"]: c for c in fresh}
    told = [f"{id} is stored, but a fresh run does not measure it" for id in old if id not in new]
    told += [f"{id} is measured by a fresh run, but not stored" for id in new if id not in old]
    for id in (id for id in old if id in new):
        told.extend(_changes(_entry(id), old[id], new[id]))
    return told


def _entry(id: str) -> Claim:
    if id in LEDGER:
        return LEDGER[id]
    near = difflib.get_close_matches(id, LEDGER, n=1, cutoff=0.0)[0]
    raise UnknownClaim(f'no claim "{id}" in the ledger; the nearest is "{near}". All: {", ".join(LEDGER)}')


def _numbers(entry: Claim, measured: float | Mapping[str, float]) -> dict[str, float]:
    needs = entry.rule.needs
    if not isinstance(measured, Mapping):
        if len(needs) != 1:
            raise ValueError(f'claim "{entry.id}" needs {len(needs)} numbers by name: measured={{{", ".join(needs)}}}')
        measured = {needs[0]: measured}
    missing, unknown = [n for n in needs if n not in measured], [n for n in measured if n not in needs]
    if missing or unknown:
        lacks = f"lacks {', '.join(missing)}" if missing else f"does not know {', '.join(unknown)}"
        raise ValueError(f'claim "{entry.id}" {lacks}; its rule is: {entry.rule.says}. It needs {", ".join(needs)}')
    numbers = {name: float(measured[name]) for name in needs}
    infinite = [name for name, number in numbers.items() if not math.isfinite(number)]
    if infinite:
        raise ValueError(f'claim "{entry.id}": {", ".join(infinite)} is not a finite number; nothing can be judged by it')
    return {name: int(number) if number.is_integer() else number for name, number in numbers.items()}


def _told(entry: Claim, record: Mapping[str, Any]) -> str:
    measured = ", ".join(f"{name} {_short(number)}" for name, number in record["measured"].items())
    lines = [entry.says, f"Measured: {measured}" + (f" ({record['seeds']} seeds)" if record["seeds"] else "")]
    lines.append(f"Rule, stated before measuring: {entry.rule.says}")
    return "\n".join(lines + ([f"Because: {record['because']}"] if record["because"] else []))


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.4g}"


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _row(entry: Claim, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": entry.id,
        "notebook": record.get("measured in", ", ".join(entry.notebooks)),
        "says": entry.says,
        "rule": entry.rule.says,
        "measured": record.get("measured", {}),
        "verdict": record.get("verdict", "not measured yet"),
    }


def _changes(entry: Claim, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[str]:
    if old["verdict"] != new["verdict"]:
        yield f"{entry.id}: stored verdict {old['verdict']!r}, fresh verdict {new['verdict']!r}"
    for name, before in old["measured"].items():
        after = new["measured"].get(name, math.nan)
        if not math.isclose(before, after, rel_tol=entry.drift, abs_tol=0.0):
            yield f"{entry.id}: {name} was {before:g} and is now {after:g}, beyond the {entry.drift:.0%} this claim may move"
