"""Python's own documentation as a data set: read and never imported, the same rows each time, whole documents in one split."""

import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcourse import data, pydocs
from llmcourse.world import split_of

LIBRARY = {
    "good.py": '"""The module says something long enough."""\n'
    'raise SystemExit("imported")\n'
    "class Shown:\n"
    '    """A class whose docstring is\n\n    indented and long enough."""\n'
    '    def method(self):\n        """A method that is documented, too."""\n'
    '        def inner():\n            """Something inside a function body."""\n'
    '    def _private(self):\n        """A private method, documented all the same."""\n'
    'def short():\n    """Too short."""\n'
    'async def coroutine():\n    """A coroutine that is documented."""\n',
    "packed/__init__.py": '"""The package says something of its own."""\n',
    "packed/part.py": '"""A part of the package, long enough."""\n',
    "packed/tests/check.py": '"""A test that nobody should read here."""\n',
    "packed/_hidden.py": '"""A private part that nobody should read."""\n',
    "broken.py": '"""A module that cannot be parsed."""\ndef (:\n',
    "twice.py": '"""The module says something long enough."""\n',
    "_pygood.py": 'def added():\n    """Documented beside the module in C."""\n',
    "stranger.py": '"""Not a module of the standard library."""\n',
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing cached from before, nothing left behind."""
    pydocs.documents.cache_clear()
    data._embedded.cache_clear()
    yield
    pydocs.documents.cache_clear()
    data._embedded.cache_clear()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Path:
    """A standard library of a few files, and no topics."""
    for name, text in LIBRARY.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    names = frozenset({"good", "packed", "broken", "twice", "_pygood", "missing"})
    monkeypatch.setattr(pydocs.sys, "stdlib_module_names", names)
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    return tmp_path


def test_public_docstrings_are_read_in_the_order_of_their_modules_and_none_twice(library: Path) -> None:
    assert [(each.source, each.text) for each in pydocs.documents()] == [
        ("good.added", "Documented beside the module in C.\n"),
        ("good", "The module says something long enough.\n"),
        ("good.Shown", "A class whose docstring is\n\nindented and long enough.\n"),
        ("good.Shown.method", "A method that is documented, too.\n"),
        ("good.coroutine", "A coroutine that is documented.\n"),
        ("packed", "The package says something of its own.\n"),
        ("packed.part", "A part of the package, long enough.\n"),
    ]


def test_the_library_is_read_without_being_imported(library: Path) -> None:
    """Importing good.py would end the test."""
    assert pydocs.documents()
    assert "good" not in sys.modules


def test_a_python_without_its_documentation_says_so_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match=r"without its documentation.*Use a complete Python.*data\.load\(\"town\"\)"):
        data.load("python-docs")


def test_topics_alone_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    sources = data.load("python-docs", "train")["source"]
    assert "topics/assert" in sources[:]
    assert all(source.startswith("topics/") for source in sources)


def test_the_splits_together_hold_every_document_of_the_library(library: Path) -> None:
    found = pydocs.documents()
    rows = [row for split in {each.split for each in found} for row in data.load("python-docs", split)]
    assert sorted(row["source"] for row in rows) == sorted(each.source for each in found)


@pytest.fixture(scope="module")
def here() -> tuple[pydocs.Document, ...]:
    pydocs.documents.cache_clear()
    return pydocs.documents()


def test_this_python_has_more_than_a_megabyte_of_text(here: tuple[pydocs.Document, ...]) -> None:
    size = sum(len(each.text.encode()) for each in here)
    assert 1_000_000 < size < 4_000_000
    assert len({each.text for each in here}) == len(here)


def test_every_split_holds_topics_or_modules_and_the_training_set_most_of_them(here: tuple[pydocs.Document, ...]) -> None:
    sizes = {split: sum(len(each.text) for each in here if each.split == split) for split in data.SPLITS}
    assert min(sizes.values()) > 50_000
    assert sizes["train"] > 0.6 * sum(sizes.values())


def test_a_module_and_everything_in_it_are_in_one_split(here: tuple[pydocs.Document, ...]) -> None:
    splits = {each.split for each in here if each.source.startswith("statistics.") or each.source == "statistics"}
    assert splits == {split_of("statistics")}
    assert {each.split for each in here if each.source == "topics/assert"} == {split_of("topics/assert")}


def test_what_the_documentation_says_is_found_under_its_name(here: tuple[pydocs.Document, ...]) -> None:
    texts = {each.source: each.text for each in here}
    assert texts["textwrap.dedent"].startswith("Remove any common leading whitespace")
    assert "lambda" in texts["topics/lambda"]


def test_another_process_reads_the_same_rows_in_the_same_order(here: tuple[pydocs.Document, ...]) -> None:
    code = "from llmcourse import pydocs; import zlib; print(zlib.crc32(repr(pydocs.documents()).encode()))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"})
    assert int(run.stdout) == zlib.crc32(repr(here).encode())


def test_the_catalogue_says_which_python_it_is_and_whose_licence() -> None:
    row = next(row for row in data.catalogue() if row["name"] == "python-docs")
    assert row["columns"] == ["text", "source"]
    assert row["licence"] == "PSF-2.0"
    assert row["revision"].startswith(f"Python {sysconfig.get_python_version()}")
    assert "differs" in row["revision"]
