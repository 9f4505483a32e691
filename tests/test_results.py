"""Files of measured results: whole or not at all, readable by eye, and clear about where they come from."""

import json

import pytest
import torch

from llmcourse import results

RUNS = [{"seed": 0, "f1": 61.5}, {"seed": 1, "f1": 60.0}]


def test_a_file_gives_back_the_heading_and_the_runs_that_were_written(tmp_path):
    """What `lines` and `write` put down, `read` returns."""
    path = tmp_path / "r.json"
    results.write(path, results.lines({"plan": {"steps": 3}}, RUNS))
    assert results.read(path, "measure it", "the runs") == ({"plan": {"steps": 3}}, RUNS)


def test_each_entry_and_each_run_has_a_line():
    """So that two versions of a file can be compared line by line."""
    text = results.lines({"a": [1, 2], "b": {"c": 3}}, RUNS)
    assert [line.strip().rstrip(",") for line in text.splitlines()[1:6]] == [
        '"a": [1, 2]',
        '"b": {"c": 3}',
        '"runs": [',
        *map(json.dumps, RUNS),
    ]


def test_a_failed_write_leaves_what_stood_there(tmp_path, monkeypatch):
    """A full disk must not cost the old results."""
    path = tmp_path / "r.json"
    results.write(path, "old")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space"):
        results.write(path, "new")
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == "old"


def test_a_missing_file_names_what_is_missing_and_the_command(tmp_path):
    """The reader is told how to make it."""
    with pytest.raises(FileNotFoundError, match=r"nobody has measured the runs yet\..*`llmcourse measure x`"):
        results.read(tmp_path / "r.json", "llmcourse measure x", "the runs")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plan": {}}', "3"])
def test_a_damaged_file_names_the_way_out(tmp_path, text):
    """Empty, cut short, of another shape: all are damage."""
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"r\.json is damaged .*`llmcourse measure x`"):
        results.read(path, "llmcourse measure x", "the runs")


def test_provenance_says_what_was_called_where_and_with_what():
    """Command, versions and minutes as given; the commit of a checkout is twelve hex digits."""
    heading = results.provenance("llmcourse measure x", 1.26, "torch")
    assert (heading["command"], heading["minutes"]) == ("llmcourse measure x", 1.3)
    assert heading["versions"]["torch"] == torch.__version__
    assert {"python", "llmcourse"} <= heading["versions"].keys()
    if heading["commit"] is not None:
        assert int(heading["commit"].removesuffix("-dirty"), 16) >= 0


def test_threads_are_given_back_after_measuring_even_when_it_fails():
    """One thread inside, as many as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), results.one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
