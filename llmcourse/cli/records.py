"""Tables of what has been recorded: a learner's progress, a class's, and the claims the notebooks measured.

Does:     lays records out as rich tables, or as a file for a spreadsheet.
Leaves out: how progress is kept (`llmcourse.exercise.progress`), how claims are read and judged (`llmcourse.claims`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["claims_table", "class_tables", "own_table", "write_csv"]

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


def claims_table(rows: Iterable[Mapping[str, str]]) -> Table:
    """Lay out the ledger (`claims.ledger`): what was said, what was published, what we measured, and the rule's verdict."""
    table = _table("id", "notebook", "claim", "published", "measured", "verdict")
    for row in rows:
        table.add_row(*(_plain(row[column.header]) for column in table.columns))
    return table


def write_csv(rows: list[dict[str, str]], path: Path) -> None:
    """Write one row per learner and one column per exercise, for a spreadsheet."""
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark by which Excel recognises UTF-8
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _table(*columns: str) -> Table:
    from rich.table import Table

    return Table(*columns, box=None, header_style="bold", padding=(0, 1))


def _plain(text: str) -> str:
    """Text that rich shows as it is: names and statements may hold square brackets."""
    from rich.markup import escape

    return escape(text)
