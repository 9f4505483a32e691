"""Progress: one small JSON file per learner that says what has been tried, hinted and solved.

Does:     lives in `$LLMCOURSE_HOME` (default `~/.llmcourse`); safe when several kernels write at once (lock, re-read, change,
          atomic replace); export and import for machines whose disk vanishes; one table of many learners for an
          instructor. A damaged file is moved aside; a folder that cannot be written is mentioned once and never stops a notebook.
Leaves out: the learner's code, accounts, any network.
Source:   own.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

__all__ = ["Progress", "ProgressError", "Record", "State", "home"]

State = Literal["untouched", "wrong", "solved"]

VERSION = 1
RANK = {"untouched": 0, "wrong": 1, "solved": 2}
ID = re.compile(r"[a-z][a-z0-9_]{0,49}/[a-z][a-z0-9_-]{0,79}")
MAX_BYTES, MAX_EXERCISES, MAX_COUNT, MAX_NAME = 2_000_000, 5_000, 1_000_000, 100
LOCK_SECONDS = 5.0


class ProgressError(ValueError):
    """A progress file that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Record:
    """What is known of one exercise. Times are UTC, ISO 8601."""

    state: State = "untouched"
    attempts: int = 0
    hints: int = 0
    solution_seen: bool = False
    first: str | None = None  # the first attempt
    solved: str | None = None  # the first success

    def attempted(self, state: State, now: str) -> Record:
        """This record after one graded attempt; a solved exercise stays solved."""
        solved = self.solved or (now if state == "solved" else None)
        return replace(self, state=_better(self.state, state), attempts=self.attempts + 1, first=self.first or now, solved=solved)

    def joined(self, other: Record) -> Record:
        """The best of two records of the same exercise, as import and merge need it (joining twice changes nothing)."""
        return Record(
            state=_better(self.state, other.state),
            attempts=max(self.attempts, other.attempts),
            hints=max(self.hints, other.hints),
            solution_seen=self.solution_seen or other.solution_seen,
            first=min(filter(None, (self.first, other.first)), default=None),
            solved=min(filter(None, (self.solved, other.solved)), default=None),
        )


Records = dict[str, Record]


def home() -> Path:
    """The learner's folder: `$LLMCOURSE_HOME`, else `~/.llmcourse`."""
    given = os.environ.get("LLMCOURSE_HOME")
    return Path(given).expanduser() if given else Path.home() / ".llmcourse"


class Progress:
    """The progress store of one learner.

    Args:
        path: the file; default `progress.json` in `home()`.
    """

    _noted: set[str] = set()  # notes already given in this process: once is calm, every cell is not  # noqa: RUF012

    def __init__(self, path: str | Path | None = None) -> None:
        self._given = path

    @property
    def path(self) -> Path:
        """Where the store lives; asked anew each time, since the environment may change."""
        return Path(self._given) if self._given else home() / "progress.json"

    def read(self) -> Records:
        """Every record by exercise id; empty when there is no file, or none that can be read."""
        return self._locked(lambda: self._load(), default={}) if self._exists() else {}

    def attempt(self, exercise: str, state: State) -> None:
        """Count one graded attempt. An untouched exercise is no attempt."""
        if state != "untouched":
            self._change(exercise, lambda record: record.attempted(state, _now()))

    def hint(self, exercise: str, opened: int) -> None:
        """Remember that the first `opened` hints have been read."""
        self._change(exercise, lambda record: replace(record, hints=max(record.hints, opened)))

    def solution(self, exercise: str) -> None:
        """Remember that the solution has been seen."""
        self._change(exercise, lambda record: replace(record, solution_seen=True))

    def export(self, path: str | Path, learner: str | None = None) -> Path:
        """Write a copy that another machine, or an instructor, can read.

        Args:
            learner: the name in the copy; default the operating system's user.

        Raises:
            OSError: if `path` cannot be written.
        """
        target = Path(path)
        _write(target, self.read(), learner=_short(learner or _user()))
        return target

    def import_(self, path: str | Path) -> int:
        """Add an exported copy to this store; where both know an exercise, the better state wins.

        Returns:
            The number of exercises in the copy.

        Raises:
            ProgressError: if the copy is not a progress file of this version, or this store cannot be written.
        """
        _, theirs = _read(Path(path))
        if self._locked(lambda: self._save(_joined(self._load(), theirs)) or True, default=False):
            return len(theirs)
        raise ProgressError(f"{self.path} cannot be written, so nothing was imported; set LLMCOURSE_HOME to a folder of your own")

    @staticmethod
    def merge(paths: Iterable[str | Path]) -> list[dict[str, str]]:
        """One row per learner: `{"learner": name, exercise id: state, …}`, every row with every exercise.

        Two files of one name are joined. The names come from files: escape them wherever they are shown as HTML.

        Raises:
            ProgressError: naming the file that cannot be used.
        """
        learners: dict[str, Records] = {}
        for path in map(Path, paths):
            name, records = _read(path)
            name = name or path.stem
            learners[name] = _joined(learners.get(name, {}), records)
        ids = sorted({id for records in learners.values() for id in records})
        return [
            {"learner": name, **{id: records.get(id, Record()).state for id in ids}} for name, records in sorted(learners.items())
        ]

    # ---- inside ----

    def _change(self, exercise: str, change: Callable[[Record], Record]) -> None:
        def update() -> None:
            records = self._load()
            self._save(records | {exercise: change(records.get(exercise, Record()))})

        self._locked(update, default=None)

    def _exists(self) -> bool:
        try:
            return self.path.exists()
        except (OSError, RuntimeError):  # RuntimeError: no home directory at all
            return False

    def _locked(self, action: Callable[[], Any], default: Any) -> Any:
        """Run `action` while no other kernel touches the file; on trouble give one note and the default."""
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS):
                return action()
        except (OSError, RuntimeError, Timeout, ProgressError) as error:
            advice = "Everything else works. Set `LLMCOURSE_HOME` to a folder you can write."
            self._note("Progress is not being saved", f"{error}\n{advice}")
            return default

    def _load(self) -> Records:
        """The records on disk; call under the lock. A damaged file is moved aside, a newer one is left alone."""
        try:
            return _read(self.path)[1]
        except FileNotFoundError:
            return {}
        except _NewerVersion:
            raise
        except ProgressError as error:
            aside = self.path.with_name(f"progress.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.json")
            os.replace(self.path, aside)
            self._note("Progress starts afresh", f"{error}\nThe damaged file was kept as `{aside.name}`.", once=False)
            return {}

    def _save(self, records: Records) -> None:
        _write(self.path, records)

    def _note(self, title: str, body: str, *, once: bool = True) -> None:
        if once and title in self._noted:
            return
        self._noted.add(title)
        from llmcourse import show

        show.card("info", title, body)


class _NewerVersion(ProgressError):
    """A file written by a later llmcourse: not damaged, only unreadable here."""


# ---- files ------------------------------------------------------------------------------------------------------------


def _write(path: Path, records: Records, learner: str | None = None) -> None:
    """Replace `path` in one step, so that a crash leaves either the old file or the new one."""
    exercises = {id: asdict(record) for id, record in sorted(records.items())}
    content = {"version": VERSION, "learner": learner, "exercises": exercises}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[str | None, Records]:
    """Learner and records of a file, every field checked: it may come from anyone.

    Raises:
        FileNotFoundError, ProgressError.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ProgressError(f"{path.name} has {size:,} bytes, more than the {MAX_BYTES:,} of a progress file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        why = f"{path.name} is not valid JSON ({error}); export it again with `llmcourse progress export`"
        raise ProgressError(why) from None
    if not isinstance(content, dict) or not isinstance(content.get("exercises"), dict):
        raise ProgressError(f'{path.name} is not a progress file: it has no "exercises"')
    _check_version(path, content.get("version"))
    return _learner(path, content.get("learner")), _records(path, content["exercises"])


def _check_version(path: Path, version: object) -> None:
    if type(version) is int and version > VERSION:
        raise _NewerVersion(f"{path.name} was written by a newer llmcourse (file version {version}, here {VERSION}); upgrade it")
    if type(version) is not int or version != VERSION:
        raise ProgressError(f"{path.name} has file version {str(version)[:20]!r}; this llmcourse reads version {VERSION}")


def _learner(path: Path, name: object) -> str | None:
    if name is None or (isinstance(name, str) and len(name) <= MAX_NAME):
        return _short(name) if name else None
    raise ProgressError(f"{path.name}: the learner's name must be text of at most {MAX_NAME} characters")


def _records(path: Path, exercises: dict[str, object]) -> Records:
    if len(exercises) > MAX_EXERCISES:
        raise ProgressError(f"{path.name} lists {len(exercises):,} exercises, more than the {MAX_EXERCISES:,} allowed")
    for id, entry in exercises.items():
        fits = ID.fullmatch(id) and isinstance(entry, dict)
        if problem := _wrong_field(entry) if fits else "is not an exercise's entry":
            raise ProgressError(f"{path.name}: {id[:60]!r}: {problem}")
    return {id: Record(**entry) for id, entry in exercises.items()}


def _wrong_field(entry: dict[str, object]) -> str | None:
    """The name of the first field that is missing, unknown or holds what it cannot; None when all is well."""

    def count(value: object) -> bool:
        return type(value) is int and 0 <= value <= MAX_COUNT

    tests: dict[str, Callable[[Any], bool]] = {
        "state": lambda value: isinstance(value, str) and value in RANK,
        "attempts": count,
        "hints": count,
        "solution_seen": lambda value: isinstance(value, bool),
        "first": _is_time,
        "solved": _is_time,
    }
    if unknown := sorted(entry.keys() ^ tests.keys()):
        return f"field {unknown[0][:40]!r} is missing or unknown"
    return next((f"field {name!r} holds an impossible value" for name, test in tests.items() if not test(entry[name])), None)


def _is_time(value: object) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, str) and len(value) <= 40 and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _joined(ours: Records, theirs: Records) -> Records:
    return ours | {id: ours.get(id, Record()).joined(record) for id, record in theirs.items()}


def _better(one: State, other: State) -> State:
    return max(one, other, key=RANK.__getitem__)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no user database: some containers, some Windows set-ups
        return "learner"


def _short(name: str) -> str:
    """The name on one line, without control characters."""
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", name).strip()[:MAX_NAME]
