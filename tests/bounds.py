"""The oldest versions that pyproject.toml admits, as a pip constraints file.

    python tests/bounds.py [EXTRA…] [--keep NAME==VERSION] > oldest.txt
    pip install -e . -c oldest.txt

Does:     one `name==lower bound` line per direct requirement of the package and of the named extras.
Leaves out: what the requirements themselves require; pip chooses those.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["oldest", "requirements"]

ROOT = Path(__file__).resolve().parent.parent


def requirements(extras: Iterable[str] = (), root: Path = ROOT) -> list[str]:
    """Return the requirement strings of the package and of `extras`, with `llmcourse[a,b]` unfolded."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            nested = re.fullmatch(rf"{project['name']}\[(.+)\]", line)
            found += requirements(nested[1].split(","), root) if nested else [line]
    return list(dict.fromkeys(found))


def oldest(extras: Iterable[str] = (), keep: Mapping[str, str] | None = None, root: Path = ROOT) -> list[str]:
    """Return `name==lower` for each requirement, the highest bound where several name it.

    `keep` pins a name to another version instead (`{"torch": "2.13.0"}`).
    Raises ValueError for a requirement without a lower bound: the course promises one for each.
    """
    pins = {}
    for line in requirements(extras, root):
        bound = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*>=\s*([0-9][^,;\s]*)", line)
        if bound is None:
            raise ValueError(f"requirement {line!r} in pyproject.toml has no lower bound; write it as name>=version")
        pins[bound[1]] = max(pins.get(bound[1], bound[2]), bound[2], key=_order)
    pins |= dict(keep or {})
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def main() -> None:
    """Print the constraints for the extras named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--keep", action="append", default=[], metavar="NAME==VERSION")
    options = parser.parse_args()
    print("\n".join(oldest(options.extras, dict(pin.split("==") for pin in options.keep))))


if __name__ == "__main__":
    main()
