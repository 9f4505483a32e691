"""Write constraints.txt: the exact version of every package in the environment that runs this.

    .venv/bin/python tools/constraints.py            or: make constraints

Does:     sorted `name==version` lines without local suffixes (`2.13.0+cpu` is `2.13.0` on other machines).
Leaves out: llmcourse itself and the installers; and a choice of versions: take the environment of the oldest Python the course
          supports, since a pin that only newer ones can install sends pip on an endless search.
"""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

LEFT_OUT = {"llmcourse", "pip", "setuptools", "wheel"}
TARGET = Path(__file__).resolve().parent.parent / "constraints.txt"


def pins() -> list[str]:
    """Return one `name==version` line for each installed distribution."""
    found = {(dist.metadata["Name"], dist.version.partition("+")[0]) for dist in distributions()}
    return [f"{name}=={version}" for name, version in sorted(found, key=lambda pin: pin[0].lower()) if name not in LEFT_OUT]


if __name__ == "__main__":
    TARGET.write_text("\n".join(pins()) + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {TARGET.name}: {len(pins())} packages")
