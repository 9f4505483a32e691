"""Claims: what the sources say, judged by our own numbers with a rule declared beforehand.

    claim("lora-params", measured={"full": 32_768, "lora": 4_608})
    expect("loss after training, nats", loss, high=2.0)

Does:     the ledger of claims and their rules; `claim` computes a verdict and shows it, `expect` asserts a phenomenon where it is
          shown; both leave machine-readable output in the notebook, from which the whole ledger is read back.
Leaves out: measuring (the notebooks and `llmcourse measure` do that).
Source:   own; each entry names its published number.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from llmcourse.claims.entries import LEDGER, Claim
from llmcourse.claims.records import CLAIM_MIME, EXPECT_MIME, differences, ledger, read
from llmcourse.claims.rules import Number, Quantity, Rule, Verdict, number, shown

__all__ = [
    "CLAIM_MIME",
    "EXPECT_MIME",
    "LEDGER",
    "Claim",
    "ExpectationFailed",
    "Quantity",
    "Rule",
    "UnknownClaim",
    "Verdict",
    "claim",
    "differences",
    "expect",
    "judge",
    "ledger",
    "read",
]

# A claim that does not hold here is a finding, not a fault: its card is calm.
_STATUS = {"holds": "good", "holds at this scale": "good", "does not hold here": "info", "not testable at this scale": "todo"}


class UnknownClaim(KeyError):
    """No claim of that id in the ledger; the message names the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message in quotes


class ExpectationFailed(AssertionError):
    """A phenomenon was not there, in a run where that must not pass (LLMCOURSE_STRICT=1)."""


def claim(id: str, measured: Any, *, seeds: int | Sequence[int] | None = None, because: str = "") -> None:
    """Judge one claim of the ledger by measured numbers, show the verdict, and record it in the notebook.

    Args:
        id: a key of `LEDGER`.
        measured: the numbers the claim's rule needs, by name: a number, or (mean, low, high) for an effect. One number
            alone where the rule needs only one.
        seeds: how many seeds, or which, are behind the numbers.
        because: why a claim does not hold here, in a sentence.

    Raises:
        UnknownClaim: with the nearest id.
        ValueError: naming numbers that are missing, unknown or not finite, or too few seeds.
        TypeError: naming what is not a number.
    """
    entry, values, verdict = _judged(id, measured, seeds)
    record = {
        "id": id,
        "measured": {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        "verdict": verdict,
        "seeds": seeds if seeds is None or isinstance(seeds, int) else [int(seed) for seed in seeds],
        "because": because,
        "notebook": entry.notebook,
    }
    body = _claim_text(entry, entry.rule.shown(values), verdict, record)
    _card(_STATUS[verdict], f"{id}: {verdict}", body, {CLAIM_MIME: record})


def judge(id: str, measured: Any, *, seeds: int | Sequence[int] | None = None) -> Verdict:
    """The verdict alone, without showing anything; arguments and errors as for `claim`."""
    return _judged(id, measured, seeds)[2]


def expect(name: str, value: Any, low: Any = None, high: Any = None) -> None:
    """Assert that a measured value lies in [low, high], both ends included, and show it.

    Args:
        name: what is expected, in words.
        value: a number, or a tensor, array or NumPy scalar of one element. NaN always fails.
        low, high: the range, at least one end, each a number as above; it must exclude "no effect".

    Raises:
        ExpectationFailed: if the value is outside and LLMCOURSE_STRICT=1; otherwise a card says so and the notebook goes on.
        ValueError: without any bound, with a bound that is NaN, or with low > high.
        TypeError: if the value is not one number.
    """
    low, high = (bound if bound is None else number(bound, label) for bound, label in ((low, "low"), (high, "high")))
    _check_bounds(name, low, high)
    value = number(value, name)
    passed = (low is None or value >= low) and (high is None or value <= high)  # NaN fails any comparison
    record = {"name": name, "value": _jsonable(value), "low": _jsonable(low), "high": _jsonable(high), "passed": passed}
    sentence = f"{shown(value)}, expected {_range(low, high)}"
    _card("good" if passed else "bad", name, sentence, {EXPECT_MIME: record})
    if not passed and os.environ.get("LLMCOURSE_STRICT") == "1":
        raise ExpectationFailed(f"{name}: {sentence}")


def _judged(id: str, measured: Any, seeds: int | Sequence[int] | None) -> tuple[Claim, dict[str, Any], Verdict]:
    entry = _entry(id)
    try:
        values = entry.rule.validate(measured)
    except (ValueError, TypeError) as error:
        raise type(error)(f"claim {id!r}: {error}") from None
    count = seeds if isinstance(seeds, int) else len(set(seeds or ()))
    if count < entry.rule.min_seeds:
        needed = f"≥{entry.rule.min_seeds} paired seeds"
        raise ValueError(f"claim {id!r} says that methods are equal, which needs {needed}; seeds={seeds}")
    return entry, values, entry.rule.judge(values)


def _entry(id: str) -> Claim:
    if id in LEDGER:
        return LEDGER[id]
    near = difflib.get_close_matches(id, LEDGER, n=1, cutoff=0.4)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownClaim(f"no claim {id!r} in the ledger.{meant} `claims.LEDGER` lists all {len(LEDGER)}")


def _claim_text(entry: Claim, measured: str, verdict: Verdict, record: Mapping[str, Any]) -> str:
    seeds = record["seeds"] if isinstance(record["seeds"], int) else ", ".join(map(str, record["seeds"] or ()))
    rows = {
        "Published": entry.published,
        "Measured": measured.replace("_", " "),
        "Rule": entry.rule.words.replace("_", " "),
        "Seeds": seeds,
        "Because": record["because"] or ("no explanation yet" if verdict == "does not hold here" else ""),
    }
    return "\n".join([entry.text, *(f"{label}: {text}" for label, text in rows.items() if text != "")])


def _check_bounds(name: str, low: Number | None, high: Number | None) -> None:
    if low is None and high is None:
        raise ValueError(f"expect({name!r}) has no bound; give low=, high= or both")
    if any(bound is not None and math.isnan(bound) for bound in (low, high)):
        raise ValueError(f"expect({name!r}): a bound is NaN; give numbers")
    if low is not None and high is not None and low > high:
        raise ValueError(f"expect({name!r}): low={low} exceeds high={high}; swap them")


def _range(low: Number | None, high: Number | None) -> str:
    if low is None:
        return f"≤ {shown(high)}"
    return f"≥ {shown(low)}" if high is None else f"{shown(low)} to {shown(high)}"


def _jsonable(value: Number | None) -> Number | str | None:
    """JSON knows neither NaN nor infinity: they are stored as text."""
    return value if value is None or math.isfinite(value) else str(value)


def _card(status: Any, title: str, body: str, extra: dict[str, object]) -> None:
    from llmcourse import show

    show.card(status, title, body, extra=extra)
