"""The progress store: what it keeps, and that it survives kernels, damage and hostile files."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from llmcourse import show
from llmcourse.exercise.progress import Progress, ProgressError, Record

ID = "demo/softmax"


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    """Every card shown, as (title, body)."""
    monkeypatch.setattr(Progress, "_noted", set())
    seen = []
    monkeypatch.setattr(show, "card", lambda status, title, body="", *, extra=None: seen.append((title, body)))
    return seen


def entry(**fields):
    return {"state": "wrong", "attempts": 1, "hints": 0, "solution_seen": False, "first": None, "solved": None} | fields


def exported(path, learner="Ada", version=1, **exercises):
    content = {
        "version": version,
        "learner": learner,
        "exercises": {id.replace("__", "/"): each for id, each in exercises.items()},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


# ---- keeping ----


def test_the_store_lives_in_the_learners_folder(learner_home):
    Progress().attempt(ID, "wrong")
    assert Progress().path == learner_home / "progress.json" and Progress().path.exists()


def test_reading_creates_nothing(learner_home):
    assert Progress().read() == {} and not learner_home.exists()


def test_attempts_are_counted_with_the_times_of_the_first_and_the_success():
    store = Progress()
    store.attempt(ID, "wrong")
    first = store.read()[ID]
    assert (first.state, first.attempts, first.solved) == ("wrong", 1, None) and first.first
    store.attempt(ID, "solved")
    second = store.read()[ID]
    assert (second.state, second.attempts, second.first) == ("solved", 2, first.first) and second.solved


def test_an_untouched_exercise_is_no_attempt():
    Progress().attempt(ID, "untouched")
    assert Progress().read() == {}


def test_what_was_solved_stays_solved():
    for state in ("solved", "wrong"):
        Progress().attempt(ID, state)
    assert Progress().read()[ID].state == "solved"


def test_the_time_of_the_first_success_stays():
    once = Record().attempted("solved", "2026-01-01T00:00:00+00:00")
    assert once.attempted("solved", "2026-01-02T00:00:00+00:00").solved == once.solved == once.first


def test_hints_and_the_solution_are_remembered_beside_the_attempts():
    store = Progress()
    store.attempt(ID, "wrong")
    store.hint(ID, 2)
    store.hint(ID, 1)
    store.solution(ID)
    record = store.read()[ID]
    assert (record.hints, record.solution_seen, record.attempts) == (2, True, 1)


def _attempts(home, number, count):
    os.environ["LLMCOURSE_HOME"] = home
    for _ in range(count):
        Progress().attempt(ID, "wrong")
        Progress().attempt(f"demo/of_{number}", "solved")


def test_nothing_is_lost_when_kernels_write_at_once(learner_home):
    context = multiprocessing.get_context("spawn")
    kernels = [context.Process(target=_attempts, args=(str(learner_home), number, 15)) for number in range(3)]
    for kernel in kernels:
        kernel.start()
    for kernel in kernels:
        kernel.join()
    records = Progress().read()
    assert records[ID].attempts == 45 and {id for id in records if id != ID} == {f"demo/of_{number}" for number in range(3)}


def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(monkeypatch, learner_home):
    Progress().attempt(ID, "wrong")
    before = Progress().path.read_bytes()
    monkeypatch.setattr(json, "dump", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Progress().attempt(ID, "solved")
    assert Progress().path.read_bytes() == before and not list(learner_home.glob("*.tmp"))


# ---- trouble ----


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"version": 1}', '{"version": 1, "exercises": {"demo/x": {}}}', "\x00" * 10]
)
def test_a_damaged_file_is_moved_aside_and_said_so(damage, learner_home, notes):
    learner_home.mkdir()
    Progress().path.write_text(damage, encoding="utf-8")
    Progress().attempt(ID, "wrong")
    aside = list(learner_home.glob("progress.damaged-*.json"))
    assert Progress().read()[ID].attempts == 1
    assert [file.read_text(encoding="utf-8") for file in aside] == [damage] and aside[0].name in notes[0][1]


def test_a_file_of_a_newer_version_is_left_alone(learner_home, notes):
    learner_home.mkdir()
    newer = json.dumps({"version": 2, "exercises": {}})
    Progress().path.write_text(newer, encoding="utf-8")
    Progress().attempt(ID, "wrong")
    assert Progress().path.read_text(encoding="utf-8") == newer
    assert "newer llmcourse" in notes[0][1]


def test_a_folder_that_cannot_be_written_gives_one_note_and_no_error(monkeypatch, tmp_path, notes):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("LLMCOURSE_HOME", str(tmp_path / "file" / "home"))
    for _ in range(3):
        Progress().attempt(ID, "wrong")
        Progress().hint(ID, 1)
    assert Progress().read() == {}
    assert len(notes) == 1 and "LLMCOURSE_HOME" in notes[0][1]


def test_a_machine_without_a_home_gives_one_note_and_no_error(monkeypatch, notes):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LLMCOURSE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    Progress().attempt(ID, "wrong")
    assert Progress().read() == {} and len(notes) == 1


# ---- moving and merging ----


def test_an_export_imported_elsewhere_gives_the_same_records(tmp_path, monkeypatch):
    Progress().attempt(ID, "solved")
    Progress().hint("demo/other", 2)
    before = Progress().read()
    copy = Progress().export(tmp_path / "ada.json", learner="Ada")
    monkeypatch.setenv("LLMCOURSE_HOME", str(tmp_path / "elsewhere"))
    assert Progress().import_(copy) == 2
    assert Progress().read() == before
    assert json.loads(copy.read_text(encoding="utf-8"))["learner"] == "Ada"


def test_an_export_bears_the_users_name_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "grace")
    assert json.loads(Progress().export(tmp_path / "x.json").read_text(encoding="utf-8"))["learner"] == "grace"


def test_an_export_works_where_the_system_knows_no_user(tmp_path, monkeypatch):
    def nobody():
        raise OSError("no user")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert json.loads(Progress().export(tmp_path / "x.json").read_text(encoding="utf-8"))["learner"] == "learner"


def test_the_better_of_two_records_wins_either_way_round():
    early = Record("solved", 1, 0, False, "2026-01-02T00:00:00+00:00", "2026-01-05T00:00:00+00:00")
    late = Record("wrong", 7, 2, True, "2026-01-01T00:00:00+00:00", None)
    best = Record("solved", 7, 2, True, "2026-01-01T00:00:00+00:00", "2026-01-05T00:00:00+00:00")
    assert early.joined(late) == late.joined(early) == best
    assert best.joined(early) == best


def test_an_import_never_lowers_what_is_there(tmp_path):
    Progress().attempt(ID, "solved")
    Progress().import_(exported(tmp_path / "old.json", demo__softmax=entry(attempts=9)))
    assert (Progress().read()[ID].state, Progress().read()[ID].attempts) == ("solved", 9)


def test_merging_gives_a_row_per_learner_and_a_column_per_exercise(tmp_path):
    ada = exported(tmp_path / "a.json", "Ada", demo__x=entry(state="solved"))
    bob = exported(tmp_path / "b.json", "Bob", demo__y=entry())
    assert Progress.merge([bob, ada]) == [
        {"learner": "Ada", "demo/x": "solved", "demo/y": "untouched"},
        {"learner": "Bob", "demo/x": "untouched", "demo/y": "wrong"},
    ]


def test_two_files_of_one_learner_become_one_row(tmp_path):
    files = [
        exported(tmp_path / f"{state}.json", "Ada", demo__x=entry(state=state)) for state in ("wrong", "solved", "untouched")
    ]
    assert Progress.merge(files) == [{"learner": "Ada", "demo/x": "solved"}]


def test_a_file_without_a_name_goes_by_its_own(tmp_path):
    assert Progress.merge([exported(tmp_path / "seat7.json", None, demo__x=entry())])[0]["learner"] == "seat7"


def test_a_name_cannot_break_the_line(tmp_path):
    assert Progress.merge([exported(tmp_path / "a.json", "A\nB\x1b[31m\u2028C")])[0]["learner"] == "A B [31m C"


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", 'no "exercises"'),
        ('{"version": 1, "exercises": []}', 'no "exercises"'),
        ('{"version": 2, "exercises": {}}', "newer llmcourse"),
        ('{"version": true, "exercises": {}}', "file version"),
        ('{"version": "1", "exercises": {}}', "file version"),
        ('{"version": 1, "learner": 3, "exercises": {}}', "learner's name"),
        (json.dumps({"version": 1, "learner": "x" * 101, "exercises": {}}), "learner's name"),
        (json.dumps({"version": 1, "exercises": {f"demo/x{i}": 0 for i in range(5_001)}}), "5,001 exercises"),
        (" " * 2_000_001, "2,000,001 bytes"),
    ],
)
def test_a_file_that_is_no_progress_file_is_refused_by_name(content, words, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ProgressError, match=rf"odd\.json.*{words}"):
        Progress().import_(path)
    with pytest.raises(ProgressError, match=r"odd\.json"):
        Progress.merge([path])


@pytest.mark.parametrize(
    "field, value",
    [
        ("state", "best"),
        ("state", ["solved"]),
        ("attempts", -1),
        ("attempts", True),
        ("attempts", 1.5),
        ("attempts", 10**9),
        ("hints", "2"),
        ("solution_seen", 1),
        ("first", "yesterday"),
        ("first", "2026-01-01T00:00:00"),
        ("solved", 5),
        ("extra", 1),
    ],
)
def test_an_impossible_field_is_refused_by_name(field, value, tmp_path):
    with pytest.raises(ProgressError, match=f"'demo/x': field '{field}'"):
        Progress().import_(exported(tmp_path / "a.json", demo__x=entry(**{field: value})))


def test_a_missing_field_is_refused_by_name(tmp_path):
    incomplete = {name: value for name, value in entry().items() if name != "hints"}
    with pytest.raises(ProgressError, match="field 'hints' is missing"):
        Progress().import_(exported(tmp_path / "a.json", demo__x=incomplete))


@pytest.mark.parametrize("id", ["<script>", "demo", "demo/<b>", "Demo/x", "demo/x/y", "demo/" + "x" * 100])
def test_an_id_that_is_none_is_refused(id, tmp_path):
    with pytest.raises(ProgressError, match="is not an exercise's entry"):
        Progress().import_(exported(tmp_path / "a.json", **{id: entry()}))


def test_an_import_into_a_folder_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    copy = exported(tmp_path / "a.json", demo__x=entry())
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("LLMCOURSE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ProgressError, match="nothing was imported"):
        Progress().import_(copy)


def test_an_export_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OSError):
        Progress().export(tmp_path / "missing" / "x.json")
