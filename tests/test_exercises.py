"""Every registered exercise accepts its reference, names every misconception, and survives whatever a learner writes."""

from pathlib import Path

import pytest

import llmcourse
from llmcourse.exercise import Exercise, all_exercises, check

PACKAGE = Path(llmcourse.__file__).parent
TOPICS = sorted(
    path.relative_to(PACKAGE).parts[0] for name in ("exercises.py", "exercises/__init__.py") for path in PACKAGE.glob(f"*/{name}")
)
EXERCISES = [exercise for topic in TOPICS for exercise in all_exercises(topic)]


def test_every_topic_registers_exercises():
    assert {exercise.id.split("/")[0] for exercise in EXERCISES} == set(TOPICS)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_exercise_grades_as_it_should(exercise: Exercise):
    assert check(exercise) == []
