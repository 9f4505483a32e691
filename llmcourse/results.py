"""Files of measured results that ship with the course: where they come from, then one line a run.

    runs ─► lines(provenance(…) | plan, runs) ─► write ─► results.json ─► read ─► (heading, runs)

Does:     the command, commit, versions, machine and minutes behind a result; writing that leaves the old file or the new one,
          never half of one; reading with errors that say how to measure again; one thread while measuring.
Leaves out: what a run is, and which runs are kept: each measurement says that itself.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["damaged", "lines", "one_thread", "provenance", "read", "write"]


def provenance(command: str, minutes: float, *packages: str) -> dict[str, Any]:
    """Where results come from: what was called, on which commit, versions and machine, and how long it took."""
    return {
        "command": command,
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in (*packages, "llmcourse")},
        "machine": f"{os.cpu_count()}-core {platform.machine() or 'unknown'} CPU, 1 thread, float32",
        "minutes": round(minutes, 1),
    }


def _commit() -> str | None:
    """The commit of the checkout this package runs from, with a mark where files differ from it; None outside a checkout."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def lines(heading: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """JSON with one line for each entry of the heading and each run: readable, and differences between two files show."""
    entries = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in heading.items())
    listed = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    return f'{{\n{entries} "runs": [\n{listed}\n ]\n}}\n'


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises: OSError when it cannot be written; what stood there before still stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def read(path: Path, command: str, what: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The heading and the runs of a file of results.

    Raises: FileNotFoundError where nobody has measured `what`; ValueError for a damaged file: both say how to make it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: nobody has measured {what} yet. Measure it: `{command}`")
    with damaged(path, command):
        heading = json.loads(path.read_text(encoding="utf-8"))
        return heading, heading.pop("runs")


@contextmanager
def damaged(path: Path, command: str) -> Iterator[None]:
    """What fails while a file's content is taken apart is told as damage, with what to do about it."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from the repository, or measure again: `{command}`") from None


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, so that sums are added in the same order on every machine with the same processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
