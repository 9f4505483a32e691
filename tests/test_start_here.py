"""Notebook 00's own code: temperature, and the map of the course."""

import pytest
import torch

from llmcourse import start_here
from llmcourse.exercise import all_exercises, exercise, get


def test_temperature_one_is_the_plain_softmax():
    logits = torch.randn(3, 5)
    torch.testing.assert_close(start_here.softmax_with_temperature(logits, 1.0), logits.softmax(-1))


def test_low_temperature_approaches_the_likeliest_token():
    logits = torch.tensor([[0.0, 1.0, 0.5]])
    torch.testing.assert_close(start_here.softmax_with_temperature(logits, 0.01), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float):
    with pytest.raises(ValueError, match="must be positive"):
        start_here.softmax_with_temperature(torch.zeros(1, 2), temperature)


def test_map_names_every_notebook(capsys: pytest.CaptureFixture[str]):
    start_here.course_map()
    shown = capsys.readouterr().out
    assert all(notebook.stem in shown for notebook in start_here.NOTEBOOKS)


def test_map_counts_a_solved_exercise(capsys: pytest.CaptureFixture[str]):
    exercise("start_here/temperature")(get("start_here/temperature").reference)
    capsys.readouterr()
    start_here.course_map()
    row = next(line for line in capsys.readouterr().out.splitlines() if "00_start_here" in line)
    assert "1 of 1" in row


def test_every_ready_notebook_has_exercises():
    assert all(all_exercises(notebook.topic) for notebook in start_here.NOTEBOOKS if notebook.ready)
