"""Run all races, or those named: `python -m benchmarks transformer`."""

import importlib
import sys
from pathlib import Path

HARNESS = {"__init__", "__main__", "race"}


def main(names: list[str]) -> None:
    """Import `benchmarks.NAME` and call its `main`, for each name."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HARNESS)
    for name in names or known:
        if name not in known:
            raise SystemExit(f'no race "{name}"; choose from: {", ".join(known)}')
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
