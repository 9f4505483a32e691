"""Every registered exercise accepts its reference, names every misconception, and survives whatever a learner writes."""

from pathlib import Path

import pytest

import llmcourse
from llmcourse.exercise import Exercise, all_exercises, check

TOPICS = sorted(path.parent.name for path in Path(llmcourse.__file__).parent.glob("*/exercises.py"))
EXERCISES = [exercise for topic in TOPICS for exercise in all_exercises(topic)]


def test_every_topic_registers_exercises():
    assert {exercise.id.split("/")[0] for exercise in EXERCISES} == set(TOPICS)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_exercise_grades_as_it_should(exercise: Exercise):
    assert check(exercise) == []
