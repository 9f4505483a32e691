"""Where the course's own files are, and which notebook a learner means by `1`, `01`, `transformer` or a path.

Does:     finds the checkout that this package was installed from, and notebooks by number, topic, stem or path.
Leaves out: downloading anything; a package installed without its checkout gets told how to obtain one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["NotFoundError", "checkout", "find", "find_all", "nearest", "notebooks"]


class NotFoundError(LookupError):
    """Something the learner named does not exist; the message says what would."""

    __str__ = Exception.__str__  # LookupError's children quote their message; this one is read by people


def checkout() -> Path:
    """Return the folder that holds pyproject.toml and notebooks/: the package's own, else the current folder's.

    Raises NotFoundError where the package was installed without its notebooks.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir():
            return root
    raise NotFoundError(
        "the notebooks are not part of the installed package; clone the course's repository and run this inside the clone"
        " (pip show llmcourse prints its address)"
    )


def notebooks(folder: Path) -> list[Path]:
    """Return the course notebooks `NN_topic.ipynb` of a folder, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def find(name: str, folder: Path) -> Path:
    """Return the notebook called `name`: a path, a number (`1`, `01`), a topic (`transformer`) or a stem (`01_transformer`).

    Raises NotFoundError with the nearest names there are.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path
    stem = path.stem if path.suffix == ".ipynb" else name
    for notebook in notebooks(folder):
        number, _, topic = notebook.stem.partition("_")
        if stem in (notebook.stem, topic) or (stem.isdecimal() and int(stem) == int(number)):
            return notebook
    raise NotFoundError(f"no notebook {name!r} in {folder}{nearest(stem, [file.stem for file in notebooks(folder)])}")


def find_all(names: Iterable[str]) -> list[Path]:
    """Return the notebook each name means (see `find`), or every notebook of the course when there are no names.

    Raises NotFoundError; a path that exists needs no checkout.
    """
    names = list(names)
    if names and all(Path(name).is_file() for name in names):
        return [Path(name) for name in names]
    folder = checkout() / "notebooks"
    return [find(name, folder) for name in names] or notebooks(folder)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: what `name` may have meant, or else everything that is known."""
    known = list(known)
    if not known:
        return "; there is none yet"
    # A learner types the topic without its number more often than they misspell the number.
    keys = {alias: full for full in known for alias in (full, full.partition("_")[2]) if alias}
    close = list(dict.fromkeys(keys[match] for match in difflib.get_close_matches(name, keys, n=3, cutoff=0.5)))
    return f"; did you mean {' or '.join(close)}?" if close else f"; choose from {', '.join(known)}"
