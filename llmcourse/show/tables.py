"""Tables: a few rows of results, numbers to the right.

Does:     rows as dicts, sequences or a DataFrame; significant digits; the same table as aligned plain text.
Leaves out: sorting, paging, colour scales: a table that needs them should be a figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Integral, Real
from typing import Any, Literal

from .core import display, inline_html

__all__ = ["table", "table_html"]

Align = Literal["left", "right"]


def table(
    rows: Any,
    *,
    columns: Sequence[str] | None = None,
    caption: str | None = None,
    digits: int = 3,
    align: Mapping[str, Align] | None = None,
) -> None:
    """Show rows as a table.

    Args:
        rows: dicts (column → value), sequences of values, or a pandas DataFrame (its index is not shown).
        columns: names for sequences; for dicts and DataFrames, which columns to show, in which order.
        caption: a line above the table.
        digits: significant digits of fractional numbers.
        align: column → "left" or "right", where numbers-right, text-left is not wanted.

    Raises:
        ValueError: if a row's length differs from the columns', or an aligned column does not exist.
    """
    html, plain = table_html(rows, columns=columns, caption=caption, digits=digits, align=align)
    display({"text/plain": plain, "text/html": html})


def table_html(
    rows: Any,
    *,
    columns: Sequence[str] | None = None,
    caption: str | None = None,
    digits: int = 3,
    align: Mapping[str, Align] | None = None,
) -> tuple[str, str]:
    """The HTML and the plain text of `table`; see there."""
    names, values = _grid(rows, columns)
    sides = _sides(names, values, align or {})
    cells = [[_cell(value, digits) for value in row] for row in values]
    return _html(names, cells, sides, caption), _plain(names, cells, sides, caption)


def _grid(rows: Any, columns: Sequence[str] | None) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of values, whatever form the rows came in."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        columns, rows = columns or list(rows.columns), rows.to_dict("records")
    rows = list(rows)
    if rows and isinstance(rows[0], Mapping):
        names = list(columns or dict.fromkeys(key for row in rows for key in row))
        return [str(name) for name in names], [[row.get(name) for name in names] for row in rows]
    values = [list(row) for row in rows]
    names = [str(name) for name in columns or ([""] * len(values[0]) if values else [])]
    for number, row in enumerate(values, start=1):
        if len(row) != len(names):
            raise ValueError(f"table row {number} has {len(row)} values for {len(names)} columns")
    return names, values


def _sides(names: list[str], values: list[list[Any]], align: Mapping[str, Align]) -> list[Align]:
    """Each column's side: as asked, else right if all its values are numbers."""
    unknown = set(align) - set(names)
    if unknown:
        raise ValueError(f"align names unknown columns {sorted(unknown)}; the columns are {names}")
    numeric = [_is_numeric([row[i] for row in values]) for i in range(len(names))]
    return [align.get(name, "right" if right else "left") for name, right in zip(names, numeric, strict=True)]


def _is_numeric(column: list[Any]) -> bool:
    known = [_scalar(value) for value in column if value is not None]
    return bool(known) and all(isinstance(value, Real) and not isinstance(value, bool) for value in known)


def _scalar(value: Any) -> Any:
    """The Python number inside a 0-d array or tensor; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _cell(value: Any, digits: int) -> str:
    """One value as text: 0.1235, 12,345, yes, – for nothing."""
    value = _scalar(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))  # 2024 is a year, not 2,024
    if isinstance(value, Real):
        return _number(float(value), digits)
    return str(value)


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if value else f"{0:.{digits - 1}f}"


def _html(names: list[str], cells: list[list[str]], sides: list[Align], caption: str | None) -> str:
    # `align` is for pages that strip `style`; both are needed where a theme sets its own alignment.
    places = [f' align="{side}" style="text-align:{side}"' for side in sides]
    head = "".join(f'<th scope="col"{place}>{escape(name)}</th>' for name, place in zip(names, places, strict=True))
    body = "\n".join(f"<tr>{_row(row, places, sides)}</tr>" for row in cells)
    above = f'<caption style="text-align:left">{inline_html(caption)}</caption>' if caption else ""
    header = f"<thead><tr>{head}</tr></thead>" if any(names) else ""
    return f'<table style="margin-left:0">{above}{header}<tbody>\n{body}\n</tbody></table>'


def _row(row: list[str], places: list[str], sides: list[Align]) -> str:
    """A row's cells; a leading text cell names the row."""
    tags = ["td"] * len(row)
    if sides and sides[0] == "left":
        tags[0] = 'th scope="row"'
    return "".join(f"<{tag}{place}>{inline_html(cell)}</{tag[:2]}>" for tag, place, cell in zip(tags, places, row, strict=True))


def _plain(names: list[str], cells: list[list[str]], sides: list[Align], caption: str | None) -> str:
    grid = ([names] if any(names) else []) + [[" ".join(cell.split("\n")) for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in grid) for i in range(len(names))]
    pad = {"left": str.ljust, "right": str.rjust}
    lines = ["  ".join(pad[s](c, w) for c, w, s in zip(row, widths, sides, strict=True)).rstrip() for row in grid]
    if any(names):
        lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(([caption] if caption else []) + lines)
