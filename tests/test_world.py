"""The invented town: the same on every machine, true to itself, and never telling the test in the training text."""

import hashlib
import os
import re
import subprocess
import sys
from itertools import islice

import pytest

from llmcourse.world import INVENTED, KINDS, World, split_of

ASKING = [kind for kind in KINDS if kind not in ("biography", "story", "news", "calculation")]
OPPOSITE = {"positive": "negative", "negative": "positive"}


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_the_text_of_seed_0_is_the_one_the_shipped_model_was_trained_on(world: World) -> None:
    text = "".join(islice(world.documents(), 300))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "1d6142bc53a74a98"


def test_the_text_does_not_depend_on_pythons_hash_seed() -> None:
    code = "from llmcourse.world import World, KINDS; print([World(3).document(kind, 5) for kind in KINDS])"
    said = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert said[0].stdout == said[1].stdout


def test_another_seed_is_another_town(world: World) -> None:
    assert [person.facts for person in World(1).people] != [person.facts for person in world.people]


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_can_be_made_without_those_before_it(world: World, kind: str) -> None:
    assert list(islice(world.documents(kind, start=40), 3)) == [world.document(kind, 40 + i) for i in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_a_kind_differ_and_end_with_a_newline(world: World, kind: str) -> None:
    texts = [world.document(kind, i) for i in range(50)]
    assert len(set(texts)) > 40
    assert all(text.endswith("\n") and "{" not in text for text in texts)


def test_people_have_distinct_names_and_know_one_another(world: World) -> None:
    people = {person.name: person for person in world.people}
    assert len(people) == 150
    for name, person in people.items():
        assert people[person.facts["friend"]].facts["friend"] == name
        assert people[person.facts["sibling"]].facts["sibling"] == name


def test_the_famous_are_asked_about_far_more_often_than_the_rest(world: World) -> None:
    text = "".join(world.document("closed-book", i) for i in range(500))
    counts = [text.count(person.name) for person in world.people]
    assert sum(counts[:24]) / 24 > 5 * sum(counts[-24:]) / 24


@pytest.mark.parametrize("kind", ASKING)
def test_no_test_question_is_asked_in_the_training_text(world: World, kind: str) -> None:
    trained = "".join(world.document(kind, i) for i in range(400))
    asked = [world.question(kind, i, "test") for i in range(100)]
    assert not [question.prompt for question in asked if question.prompt in trained]


def test_invented_names_belong_to_one_split_only() -> None:
    assert not set(INVENTED["train"]) & set(INVENTED["test"])
    assert not set(INVENTED["validation"]) & (set(INVENTED["train"]) | set(INVENTED["test"]))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_context_names_everyone_asked_about_and_holds_the_answer(world: World, size: int) -> None:
    for i in range(50):
        question = world.question("context", i, size=size)
        text, asked = question.prompt.split("\nQuestion:")
        names = [name for name in INVENTED["test"] if f" {name} " in text or f" {name}." in text]
        assert len(names) == size
        assert any(name in asked for name in names)
        assert question.answer in text


@pytest.mark.parametrize("kind", ["sum-steps", "sum-direct"])
def test_the_answer_of_a_sum_follows_from_its_story(world: World, kind: str) -> None:
    signs = {"buys": 1, "finds": 1, "brings": 1, "wins": 1, "loses": -1, "sells": -1, "gives away": -1, "drops": -1}
    for i in range(100):
        question = world.question(kind, i, size=3)
        start, *changes = re.findall(r"(has|buys|finds|brings|wins|loses|sells|gives away|drops) (\d+)", question.prompt)
        assert int(start[1]) + sum(signs[verb] * int(n) for verb, n in changes) == int(question.answer)
        assert len(changes) == 3


def test_the_steps_of_a_sum_lead_to_its_answer(world: World) -> None:
    for i in range(100):
        question = world.question("sum-steps", i)
        steps = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", question.work)
        assert all(int(a) + int(sign + b) == int(c) for a, sign, b, c in steps)
        assert [step[0] for step in steps[1:]] == [step[3] for step in steps[:-1]]
        assert steps[-1][3] == question.answer
        assert question.completion == f" {question.work}\nAnswer: {question.answer}\n"


def test_calculations_are_right(world: World) -> None:
    for i in range(50):
        sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", world.document("calculation", i))
        assert len(sums) >= 4
        assert all(int(a) + int(sign + b) == int(c) for a, sign, b, c in sums)


def test_a_negation_turns_the_feeling_of_a_sentence(world: World) -> None:
    from llmcourse.world import ADJECTIVES

    feeling_of = {word: feeling for feeling, words in ADJECTIVES.items() for word in words.split()}
    for i in range(200):
        question = world.question("review", i, size=1)
        for sentence in re.findall(r"[^.:]+\.", question.prompt.removeprefix("Review:")):
            (feeling,) = {feeling_of[word] for word in re.findall(r"[a-z]+", sentence) if word in feeling_of}
            negated = any(word in sentence for word in (" not ", " never ", "Nobody"))
            assert (OPPOSITE[feeling] if negated else feeling) == question.answer


def test_sorted_words_of_a_group_share_their_label(world: World) -> None:
    from llmcourse.world import CATEGORIES

    group_of = {word: group for group, words in CATEGORIES.items() for word in words.split()}
    for i in range(50):
        question = world.question("sorting", i, size=8)
        pairs = re.findall(r"- (\w+): (\w+)\n", question.prompt + question.completion)
        assert len(pairs) == 9
        groups = {group_of[word] for word, _ in pairs}
        assert len(groups) == 2
        assert all(len({label for word, label in pairs if group_of[word] == group}) == 1 for group in groups)


def test_a_list_is_repeated_word_for_word(world: World) -> None:
    question = world.question("copy", 0, size=7)
    assert question.prompt == f"Repeat: {question.answer}\nAgain:"
    assert len(question.answer.split(", ")) == 7


def test_closed_book_answers_are_the_persons_facts(world: World) -> None:
    person = world.people[0]
    asked = [question for split in ("train", "validation", "test") for question in world.facts_about(person, split)]
    assert len(asked) == 3 * len(person.facts)
    assert {question.answer for question in asked} == set(person.facts.values())


def test_about_a_tenth_of_all_texts_belongs_to_the_test_split() -> None:
    splits = [split_of(str(i)) for i in range(2000)]
    assert 0.08 < splits.count("test") / 2000 < 0.12
    assert 0.08 < splits.count("validation") / 2000 < 0.12


def test_an_unknown_kind_is_refused_with_the_list_of_kinds(world: World) -> None:
    with pytest.raises(ValueError, match='unknown kind of text "poem"; choose one of biography, story'):
        world.document("poem", 0)


def test_an_unknown_split_is_refused_with_the_list_of_splits(world: World) -> None:
    with pytest.raises(ValueError, match='unknown split "dev"; choose one of train, validation, test'):
        world.document("story", 0, "dev")


@pytest.mark.parametrize("size", [0, 13])
def test_a_size_out_of_range_is_refused_with_the_range(world: World, size: int) -> None:
    with pytest.raises(ValueError, match=f'size {size} of kind "copy" is out of range; choose 1–12'):
        world.document("copy", 0, size=size)


def test_a_kind_without_questions_says_which_kinds_have_some(world: World) -> None:
    with pytest.raises(ValueError, match='"story" is plain text and asks no question; choose one of closed-book'):
        world.question("story", 0)
