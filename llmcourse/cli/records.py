"""Tables of what has been recorded: a learner's progress, a class's, and the claims the notebooks measured.

Does:     reads progress files and committed notebooks, and lays them out as rich tables.
Leaves out: how progress is stored (`llmcourse.progress`) and how a verdict is reached (`llmcourse.claims`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CLAIM", "claims_table", "class_tables", "measured_claims", "own_table", "write_csv"]

CLAIM = "application/vnd.llmcourse.claim+json"
SIGNS = {"solved": "[green]✓[/]", "wrong": "[red]✗[/]", "untouched": "[dim]○[/]"}


def own_table(exercises: Iterable[str], records: Mapping[str, Any]) -> Table:
    """Lay out one learner's `records` (`Progress.read()`) over all `exercises`; recorded ones that no longer exist come last."""
    table = _table("exercise", "", "attempts", "hints", "solution")
    ids = list(dict.fromkeys([*exercises, *records]))
    for id in ids:
        record = records.get(id)
        state = record.state if record else "untouched"
        row = [str(record.attempts), str(record.hints), "seen" if record.solution_seen else ""] if record else ["", "", ""]
        table.add_row(id, f"{SIGNS[state]} {state}", *row)
    solved = sum(record.state == "solved" for record in records.values())
    table.caption = f"{solved} of {len(ids)} solved"
    return table


def class_tables(rows: list[dict[str, str]]) -> tuple[Table, Table]:
    """Lay out a class (`Progress.merge`): solved per learner and topic, and per exercise how many solved it or are stuck."""
    ids = [id for id in rows[0] if id != "learner"] if rows else []
    topics = Counter(id.partition("/")[0] for id in ids)
    learners = _table("learner", *topics, "solved")
    for row in rows:
        solved = Counter(id.partition("/")[0] for id in ids if row[id] == "solved")
        learners.add_row(_plain(row["learner"]), *(f"{solved[topic]}/{topics[topic]}" for topic in topics), str(solved.total()))
    exercises = _table("exercise", "solved", "wrong so far", "not tried")
    for id in ids:
        states = Counter(row[id] for row in rows)
        exercises.add_row(id, *(str(states[state]) for state in ("solved", "wrong", "untouched")))
    return learners, exercises


def measured_claims(notebooks: Iterable[Path]) -> list[dict[str, Any]]:
    """Return every claim stored in the outputs of the notebooks, in order, each with the `notebook` it stands in."""
    return [{"notebook": path.stem, **claim} for path in notebooks for claim in _claims(path)]


def claims_table(claims: Iterable[Mapping[str, Any]]) -> Table:
    """Lay out claims as the ledger: what was said, what was measured, and the verdict of the rule."""
    table = _table("notebook", "claim", "stated", "measured", "verdict")
    for claim in claims:
        row = [claim["notebook"], claim["id"], claim.get("statement", ""), claim.get("measured", ""), claim.get("verdict", "")]
        table.add_row(*map(_plain, row))
    return table


def _claims(path: Path) -> Iterator[dict[str, Any]]:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if CLAIM in output.get("data", {}):
                yield output["data"][CLAIM]


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, box=None, header_style="bold", padding=(0, 1))


def _plain(value: object) -> str:
    """Text that rich shows as it is: names and statements may hold square brackets."""
    from rich.markup import escape

    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def write_csv(rows: list[dict[str, str]], path: Path) -> None:
    """Write one row per learner and one column per exercise, for a spreadsheet."""
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark by which Excel recognises UTF-8
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
