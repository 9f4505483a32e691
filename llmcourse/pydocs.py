"""Real text that is on every machine: the documentation inside the reader's own Python.

    pydoc_data.topics                         "topics/lambda"                the language reference, a topic a document
    docstrings of the standard library        "json.decoder.JSONDecoder"     a documented object each, read with `ast`

Does:     public modules, classes and functions; a stable order; whole modules and topics in one split, by the checksum of their
          name; no text twice, whichever splits it would fall into.
Leaves out: importing what is read (a module may act on import), tests, private names, docstrings of code written in C. It differs
          a little from one Python version to the next.
Source:   Python's own documentation, licensed PSF-2.0.
"""

from __future__ import annotations

import ast
import inspect
import platform
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from llmcourse.world import split_of

__all__ = ["LICENCE", "REVISION", "Document", "documents"]

LICENCE = "PSF-2.0"
REVISION = f"Python {platform.python_version()} (differs a little by version)"
SHORTEST = 20  # characters; below it docstrings say "See above."
# no public documentation: tools and tests that live beside the library, and generated tables
SKIPPED = {"antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Document(NamedTuple):
    """A text, where it stands in Python, and the split it belongs to."""

    text: str
    source: str
    split: str


@cache
def documents() -> tuple[Document, ...]:
    """Every document, topics first, then the files of the library in order; read once in a process.

    Raises: FileNotFoundError where this Python was installed without topics and without the sources of its library.
    """
    found: dict[str, Document] = {}
    for whole, source, text in [*_topics(), *_docstrings(Path(sysconfig.get_path("stdlib")))]:
        found.setdefault(text, Document(text, source, split_of(whole)))
    if not found:
        raise FileNotFoundError(
            f"this Python ({sys.executable}) was installed without its documentation: neither pydoc_data nor the sources of the "
            'standard library are there. Use a complete Python (python.org, conda, uv), or data.load("town")'
        )
    return tuple(found.values())


def _topics() -> Iterator[tuple[str, str, str]]:
    """(what must stay together, source, text) of the language reference, which `help("lambda")` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(topics):
        yield f"topics/{name}", f"topics/{name}", topics[name].strip() + "\n"


def _docstrings(library: Path) -> Iterator[tuple[str, str, str]]:
    for path in _files(library):
        module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        module = _twin(module) or module
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):  # a deliberately broken example, or an unreadable file
            continue
        for source, text in _documented(tree, module):
            yield module, source, text


def _files(library: Path) -> list[Path]:
    """The sources of the library's public modules."""
    files = [library / f"{name}.py" for name in sys.stdlib_module_names]
    for name in sys.stdlib_module_names:
        files += (library / name).rglob("*.py")
    return sorted(path for path in files if path.is_file() and _is_public(path.relative_to(library).with_suffix("").parts))


def _is_public(parts: tuple[str, ...]) -> bool:
    return all(_twin(part) or part == "__init__" or not (part in SKIPPED or part == "tests" or part[0] == "_") for part in parts)


def _twin(module: str) -> str | None:
    """The public module, written in C, that a private one repeats in Python, docstrings included: _pydecimal is decimal."""
    public = module.removeprefix("_py")
    return public if public != module and public in sys.stdlib_module_names else None


def _documented(node: Documented, name: str) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a module or class and of the public names it holds; not of what hides inside functions."""
    text = ast.get_docstring(node, clean=False)
    if text and len(text := inspect.cleandoc(text)) >= SHORTEST:
        yield name, text + "\n"
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in node.body:
            if isinstance(child, Documented) and not child.name.startswith("_"):
                yield from _documented(child, f"{name}.{child.name}")
