"""The invented town: the same on every machine, true to itself, and never telling the test in the training text."""

import hashlib
import os
import re
import subprocess
import sys
from itertools import islice

import pytest

from llmcourse.world import CUTOFF, KINDS, Draw, World, split_of
from llmcourse.world.grammar import accepts, fill, sentences, split_sentences, templates, verdicts
from llmcourse.world.kinds import facts
from llmcourse.world.phrases import RELATIONS, relation_wordings
from llmcourse.world.words import CATEGORIES, INVENTED

PLAIN = ("biography", "story", "news", "dialogue", "calculation", "review-text", "report", "post", "opinion", "topic-news")
ASKING = [kind for kind in KINDS if kind not in PLAIN]
TAUGHT = ("changes", "mayors")  # told and asked in the same words in every split: what is held out is nothing


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def test_the_text_of_seed_0_is_the_one_the_shipped_model_was_trained_on(world: World) -> None:
    text = "".join(islice(world.documents(), 300))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "e2e23167eef504c1"


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
    assert len(people) == 200
    for name, person in people.items():
        assert people[person.facts["friend"]].facts["friend"] == name
        assert people[person.facts["sibling"]].facts["sibling"] == name


def test_the_famous_are_asked_about_far_more_often_than_the_rest(world: World) -> None:
    text = "".join(world.document("closed-book", i) for i in range(500))
    counts = [text.count(person.name) for person in world.people]
    assert sum(counts[:24]) / 24 > 5 * sum(counts[-24:]) / 24


@pytest.mark.parametrize("kind", [kind for kind in ASKING if kind not in TAUGHT])
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


def _worked_out(story: str) -> int:
    """The answer of a word sum, from its sentences alone."""
    bags = re.search(r"has (\d+) bags with (\d+)|fills (\d+) boxes with (\d+)|gets (\d+) \w+ a day for (\d+) days", story)
    numbers = [int(n) for n in bags.groups() if n] if bags else [1, int(re.search(r"\d+", story)[0])]
    total, (_, *changes, _) = numbers[0] * numbers[1], split_sentences(story)
    for sentence in changes:
        loss = re.search(r"loses|sells|gives away|drops|lends|takes|gone", sentence)
        total += int(re.search(r"\d+", sentence)[0]) * (-1 if loss else 1)
    return total


@pytest.mark.parametrize("kind", ["sum-steps", "sum-direct", "sum-program"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_of_a_sum_follows_from_its_story(world: World, kind: str, split: str) -> None:
    for i in range(100):
        question = world.question(kind, i, split, size=3)
        story = question.prompt.split("\n")[0].removeprefix("Question: ")
        assert _worked_out(story) == int(question.answer)


def test_the_steps_of_a_sum_lead_to_its_answer(world: World) -> None:
    for i in range(100):
        question = world.question("sum-steps", i)
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)\.", question.work)
        assert all(eval(f"{a}{sign}{b}") == int(c) for a, sign, b, c in steps)
        assert [step[0] for step in steps[1:]] == [step[3] for step in steps[:-1]]
        assert steps[-1][3] == question.answer
        assert question.completion == f" {question.work}\nAnswer: {question.answer}\n"


def test_the_program_of_a_sum_prints_its_answer(world: World) -> None:
    for i in range(50):
        question = world.question("sum-program", i)
        said: dict[str, int] = {}
        exec(question.work.replace("print(n)", "answer = n"), {}, said)
        assert str(said["answer"]) == question.answer
        assert question.completion == f" {question.work}\n"


def test_calculations_are_right(world: World) -> None:
    for i in range(50):
        assert accepts(world.document("calculation", i).strip())
    assert not accepts("Count: 2 + 2 = 5.")


def test_sorted_words_of_a_group_share_their_label(world: World) -> None:
    group_of = {word: group for group, words in CATEGORIES.items() for word in words}
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
    assert len({question.prompt for question in asked}) == len(asked) >= 10 * len(person.facts)
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


# ---------------------------------------------------------------------------------------------------------------- wordings


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_fact_is_told_and_asked_in_ten_ways_or_more(relation: str) -> None:
    for wordings in relation_wordings(relation):
        everything = [*wordings.train, *wordings.validation, *wordings.test]
        assert len(set(everything)) == len(everything) >= 10


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_words_of_a_kept_wording_all_occur_in_training(relation: str) -> None:
    every = [wordings for name in RELATIONS for wordings in relation_wordings(name)]
    words = {word for wordings in every for text in wordings.train for word in re.findall(r"[\w{}]+", text.lower())}
    kept = [text for wordings in relation_wordings(relation) for text in (*wordings.validation, *wordings.test)]
    assert {word for text in kept for word in re.findall(r"[\w{}]+", text.lower())} <= words


# ---------------------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_grammar_accepts_whatever_the_town_writes(world: World, kind: str, split: str) -> None:
    lines = [line for i in range(4) for line in world.document(kind, i, split).splitlines()]
    assert [line for line in lines if not accepts(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "Ada Bell works as a Mill Lane.", "Ada works as a baker.", "Ada Bell works as baker.", "Steps: 3 + 4 = 8.", "",
        "Answer: of the", "- fish pie: Kodor Kodor", "Ada Bell works as a baker. She she lives in Mill Lane.",
    ],
)  # fmt: skip
def test_the_grammar_refuses_what_the_town_cannot_write(line: str) -> None:
    assert not accepts(line)


def test_each_sentence_of_a_line_is_judged_by_itself() -> None:
    assert verdicts("Ada Bell works as a baker. She lives in apple pie.") == [True, False]


def test_a_template_with_an_unknown_slot_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match='unknown slot "planet"'):
        sentences("{name} lives on {planet}.")
    assert "{name} lives on {planet}." not in templates()


def test_a_filled_template_begins_with_a_capital() -> None:
    assert fill("{ware} is sold.", ware="a hat at the Red Lion") == "A hat at the Red Lion is sold."


# ---------------------------------------------------------------------------------------------------------------- information


def test_the_bits_of_choices_are_the_logarithms_of_their_chances() -> None:
    draw = Draw("x")
    draw.one("abcd")
    draw.whole(1, 8)
    draw.some("abc", 2)
    draw.order("ab")
    assert draw.bits == pytest.approx(2 + 3 + 2.585 + 1, abs=1e-3)


def test_the_mean_bits_of_a_weighted_choice_are_its_entropy() -> None:
    draw = Draw("y")
    for _ in range(4000):
        draw.one("ab", (3, 1))
        draw.chance(0.5)
    assert draw.bits / 4000 == pytest.approx(0.8113 + 1, rel=0.03)


def test_weighted_choices_come_as_often_as_their_weights_say() -> None:
    draw = Draw("z")
    assert sum(draw.one((0, 1), (3, 1)) for _ in range(4000)) / 4000 == pytest.approx(0.25, abs=0.03)


def test_the_information_of_a_document_does_not_change_its_text(world: World) -> None:
    text, bits = world.measured("story", 3)
    assert text == world.document("story", 3)
    assert 5 < bits < 8 * len(text)


# ---------------------------------------------------------------------------------------------------------------- time


def test_later_events_and_moves_come_after_the_cutoff_and_are_in_no_training_text(world: World) -> None:
    assert all(int(event.facts["date"].split()[-1]) > CUTOFF for event in world.later_events)
    assert all(int(event.facts["date"].split()[-1]) <= CUTOFF for event in world.events)
    assert all(move.year > CUTOFF for move in world.later_moves)
    text = "".join(world.document(kind, i) for kind in ("closed-book", "news", "story", "changes", "mayors") for i in range(300))
    assert not [event.name for event in world.later_events if re.search(rf"{event.name}\b(?! of)", text)]
    assert "2025" not in text
    assert "2026" not in text


def test_somebody_who_moved_lives_where_the_move_ended(world: World) -> None:
    assert all(move.new == move.person.facts["street"] != move.old for move in world.moves)
    assert all(move.old == move.person.facts["street"] != move.new for move in world.later_moves)


def test_every_year_up_to_the_cutoff_has_one_mayor(world: World) -> None:
    for year in range(1980, CUTOFF + 1):
        assert sum(mayor.first <= year <= mayor.last for mayor in world.mayors) == 1
    assert world.later_mayors[0].first == CUTOFF + 1


def test_two_hops_lead_to_the_friends_or_siblings_fact(world: World) -> None:
    people = {person.name: person for person in world.people}
    for i in range(60):
        question = world.question("multi-hop", i, size=1)
        hop, name = re.search(r"the (best friend|brother or sister) of (\w+ \w+)", question.prompt).groups()
        other = people[people[name].facts["friend" if hop == "best friend" else "sibling"]]
        assert question.answer in [other.facts[relation] for relation in facts.CONTEXT_RELATIONS]


def test_what_is_put_aside_counts_only_once_it_is_told() -> None:
    draw = Draw("a")
    made, bits = draw.aside(lambda: draw.one("abcd"))
    with draw.unsaid():
        draw.whole(1, 1024)
    assert (made in "abcd", bits, draw.bits) == (True, 2.0, 0.0)
    draw.told(bits)
    assert draw.bits == 2.0


def test_a_context_counts_the_facts_it_tells_and_no_others(world: World) -> None:
    """Ten facts of a stranger are drawn, two or three told: all ten would make it 75 bits or more."""
    lengths = [world.measured("context", i, size=1)[1] for i in range(40)]
    assert max(lengths) < 70
