"""Records: reading claims and expectations back from executed notebooks, and comparing two runs.

Does:     extracts the machine-readable outputs, lays out the whole ledger with what has been measured, lists where a fresh run
          disagrees with the committed one.
Leaves out: printing tables (the command line does), executing notebooks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcourse.claims.entries import LEDGER, Claim
from llmcourse.claims.rules import shown

__all__ = ["CLAIM_MIME", "EXPECT_MIME", "differences", "ledger", "read"]

CLAIM_MIME = "application/vnd.llmcourse.claim+json"
EXPECT_MIME = "application/vnd.llmcourse.expect+json"
_KINDS = {CLAIM_MIME: "claim", EXPECT_MIME: "expect"}

Record = dict[str, Any]


def read(notebook: str | Path | Mapping[str, Any]) -> list[Record]:
    """Every claim and expectation in a notebook's outputs, in order.

    Args:
        notebook: a path, or the notebook already loaded.

    Returns:
        What `claim` and `expect` recorded, each with its "kind" ("claim" or "expect") and the number of its "cell", from 0; for a
        path, "notebook" is the file's name without ending.

    Raises:
        ValueError: if the file is not a notebook.
    """
    if isinstance(notebook, Mapping):
        return list(_records(notebook))
    path = Path(notebook)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [{**record, "notebook": path.stem} for record in _records(content)]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is not a notebook: {error}") from None


def ledger(paths: Iterable[str | Path]) -> list[dict[str, str]]:
    """The whole ledger as rows of text: id, notebook, claim, published, measured, verdict.

    A claim measured in several notebooks has a row for each; one measured nowhere says "not measured yet".
    """
    found = defaultdict(list)
    for record in (record for path in paths for record in read(path)):
        if record["kind"] == "claim":
            found[record.get("id")].append(record)
    return [row for entry in LEDGER.values() for row in (_measured_rows(entry, found[entry.id]) or [_open_row(entry)])]


def differences(committed: Sequence[Mapping[str, Any]], fresh: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a fresh run disagrees with the committed one, a sentence each; an empty list is agreement.

    Claims must agree in id and verdict, in counts exactly, in other numbers within the claim's tolerance (relative; an effect may
    also lie inside the committed interval). Expectations must agree in name and outcome.
    """
    old, new = _by_name(committed), _by_name(fresh)
    return [
        *(f"{_called(key)} is committed but did not come out" for key in old if key not in new),
        *(f"{_called(key)} came out but is not committed" for key in new if key not in old),
        *(problem for key in old if key in new for problem in _disagreements(_called(key), old[key], new[key])),
    ]


def _records(notebook: Mapping[str, Any]) -> Iterator[Record]:
    for number, cell in enumerate(notebook["cells"]):
        for output in cell.get("outputs", []):
            for mime, kind in _KINDS.items():
                record = output.get("data", {}).get(mime)
                if isinstance(record, Mapping):
                    yield {**record, "kind": kind, "cell": number}


def _measured_rows(entry: Claim, records: list[Record]) -> list[dict[str, str]]:
    def row(record: Record) -> dict[str, str]:
        return _row(entry, record["notebook"], _measured_text(entry, record.get("measured")), str(record.get("verdict")))

    return list(map(row, records))


def _open_row(entry: Claim) -> dict[str, str]:
    return _row(entry, entry.notebook, "", "not measured yet")


def _row(entry: Claim, notebook: str, measured: str, verdict: str) -> dict[str, str]:
    cells = {"id": entry.id, "notebook": notebook, "claim": entry.text, "published": entry.published}
    return {**cells, "measured": measured, "verdict": verdict}


def _measured_text(entry: Claim, measured: object) -> str:
    try:
        return entry.rule.shown(entry.rule.validate(measured))
    except (ValueError, TypeError):  # recorded under an earlier rule
        return str(measured)


Key = tuple[str, int]  # a name, and which occurrence of it


def _by_name(records: Sequence[Mapping[str, Any]]) -> dict[Key, Mapping[str, Any]]:
    seen: dict[str, int] = defaultdict(int)
    found = {}
    for record in records:
        name = str(record.get("id") or record.get("name"))
        seen[name] += 1
        found[name, seen[name]] = record
    return found


def _called(key: Key) -> str:
    return f"{key[0]!r}" if key[1] == 1 else f"{key[0]!r} (number {key[1]})"


def _disagreements(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    outcome = "passed" if "passed" in old or "passed" in new else "verdict"
    if old.get(outcome) != new.get(outcome):
        yield f"{name}: {outcome} was {old.get(outcome)!r}, now {new.get(outcome)!r}"
    if outcome == "verdict":
        yield from _number_disagreements(name, old, new)


def _number_disagreements(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    entry = LEDGER.get(str(old.get("id")))
    if entry is None:
        yield f"{name} is not in the ledger"
        return
    try:
        before, after = (entry.rule.validate(record.get("measured")) for record in (old, new))
    except (ValueError, TypeError) as error:
        yield f"{name}: a record does not fit its rule: {error}"
        return
    if entry.rule.judge(before) != old.get("verdict"):
        yield f"{name}: the committed numbers give {entry.rule.judge(before)!r}, not the committed {old.get('verdict')!r}"
    for key, quantity in entry.rule.needs.items():
        tolerance = 0.0 if quantity.exact else entry.tolerance
        if not _close(before[key], after[key], tolerance):
            yield f"{name}: {key} was {shown(before[key])}, now {shown(after[key])} (tolerance {tolerance:.0%})"


def _close(before: Any, after: Any, tolerance: float) -> bool:
    if isinstance(before, tuple):
        return before[1] <= after[0] <= before[2] or _close(before[0], after[0], tolerance)
    return abs(after - before) <= tolerance * abs(before)
