"""The sets that later lessons tune on: true to the town, checkable, each split to itself, none of it in the training text."""

import json
import os
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from llmcourse.world import Draw, World, annotated, common, drift, instructions, preferences, split_of, summaries, tools
from llmcourse.world.grammar import split_sentences, templates
from llmcourse.world.words import MONTHS

SPLITS = ("train", "validation", "test")
SETS = {
    "instructions": instructions.rows,
    "preferences": preferences.rows,
    "demonstrations": preferences.demonstration_rows,
    "annotated": annotated.rows,
    "drift": drift.rows,
    "tools": tools.rows,
    "summaries": summaries.rows,
}
WHAT_MUST_DIFFER = {
    "instructions": lambda row: row["prompt"],
    "preferences": lambda row: row["prompt"][0]["content"],
    "demonstrations": lambda row: row["messages"][0]["content"],
    "tools": lambda row: row["question"],
}


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def taken(world: World, name: str, split: str, count: int) -> list[dict]:
    return list(islice(SETS[name](world, split), count))


# ---------------------------------------------------------------------------------------------------------------- every set


@pytest.mark.parametrize("name", SETS)
def test_splits_share_no_text(world: World, name: str) -> None:
    text = WHAT_MUST_DIFFER.get(name, lambda row: row["text"])
    texts = [{text(row) for row in taken(world, name, split, 200)} for split in SPLITS]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert all(len(found) > 40 for found in texts)


@pytest.mark.parametrize("name", SETS)
def test_the_same_seed_writes_the_same_rows_and_another_seed_others(world: World, name: str) -> None:
    assert taken(world, name, "train", 60) == taken(World(0), name, "train", 60)
    assert taken(world, name, "train", 60) != taken(World(1), name, "train", 60)


def test_rows_do_not_depend_on_pythons_hash_seed() -> None:
    code = (
        "from itertools import islice\n"
        "from llmcourse.world import World, annotated, drift, instructions, preferences, summaries, tools\n"
        "sets = [m.rows for m in (annotated, drift, instructions, preferences, summaries, tools)]\n"
        "print([list(islice(rows(World(3), s), 45)) for rows in sets for s in ('train', 'test')])"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert said[0].stdout == said[1].stdout and len(said[0].stdout) > 10_000


def test_item_40_can_be_made_without_those_before_it(world: World) -> None:
    row = {name: taken(World(0), name, "test", 41)[40] for name in SETS}
    assert row["instructions"]["prompt"] == instructions.example(world, 40, "test").prompt
    assert row["preferences"]["chosen_reward"] == preferences.pair(world, 40, "test").chosen_reward
    assert row["annotated"]["text"] == annotated.annotated(world, 40, "test").text
    assert row["drift"]["text"] == drift.post(world, 40, "test").text
    assert row["tools"]["question"] == tools.task(world, 40, "test").question


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("name", SETS)
def test_every_split_can_be_drawn_in_other_towns(name: str, seed: int) -> None:
    for split in SPLITS:
        assert len(taken(World(seed), name, split, 60)) == 60


@pytest.mark.parametrize("name", SETS)
def test_an_unknown_split_is_refused_with_the_known_ones(world: World, name: str) -> None:
    with pytest.raises(ValueError, match=r'unknown split "dev"; choose one of train, validation, test'):
        taken(world, name, "dev", 1)


@pytest.mark.parametrize("name", SETS)
def test_rows_are_plain_json_with_the_same_columns_and_no_open_slot(world: World, name: str) -> None:
    rows = taken(world, name, "train", 100)
    assert len({tuple(row) for row in rows}) == 1
    assert json.loads(json.dumps(rows)) == rows
    said = json.dumps([row for row in rows if name != "tools"])
    assert not re.search(r"\{\w+\}", said)


def test_kept_wordings_are_made_of_halves_that_train_and_never_together() -> None:
    for name, kind in instructions.TYPES.items():
        words = kind.wordings
        assert len(words.train) >= 10 and len(words.validation) >= 3 and len(words.test) >= 3, name
        assert not set(words.train) & {*words.validation, *words.test} and not set(words.validation) & set(words.test), name
    cores = ("sort the words", "put them in order", "bring order to them")
    made = common.recombined("x", cores)
    for text in (*made.validation, *made.test):
        (core,) = (core for core in cores if core in text.lower())
        frame = text.lower().replace(core, "{}")
        assert any(core in other.lower() for other in made.train)
        assert any(other.lower() == frame.replace("{}", third) for third in cores for other in made.train)


def test_an_unknown_slot_in_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r'unknown slot "nobody"'):
        common.checked("{name} met {nobody}.")


def test_drawing_what_no_split_holds_stops_with_an_error() -> None:
    other = "train" if split_of("always the same") != "train" else "test"
    with pytest.raises(ValueError, match="nothing of 2000 draws"):
        common.until(other, lambda: "always the same", str)


def test_strangers_are_nobody_in_town_and_each_split_has_its_own(world: World) -> None:
    names = [set(common.strangers(world, split)) for split in SPLITS]
    assert all(len(found) > 100 for found in names)
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert not set.union(*names) & {person.name for person in world.people}


def test_no_instruction_is_a_sentence_of_the_training_text(world: World) -> None:
    wordings = {text for kind in instructions.TYPES.values() for split in SPLITS for text in kind.wordings.of(split)[0]}
    assert not wordings & set(templates())
    corpus = "".join(islice(world.documents(), 400))
    assert not any(instructions.example(world, i).instruction in corpus for i in range(300))


def test_messages_fit_the_chat_template_of_the_tokenizer(world: World) -> None:
    exchange = instructions.example(world, 3).messages
    assert [message["role"] for message in exchange] == ["user", "assistant"]
    assert {message["role"] for message in tools.task(world, 4).messages} == {"user", "assistant", "tool"}
    row = taken(world, "preferences", "train", 1)[0]
    assert [row[key][0]["role"] for key in ("prompt", "chosen", "rejected")] == ["user", "assistant", "assistant"]


# ---------------------------------------------------------------------------------------------------------------- instructions


def examples(world: World, name: str, split: str = "train", count: int = 30) -> list[instructions.Example]:
    return [instructions.example(world, i, split, name) for i in range(count)]


def listed(made: instructions.Example) -> list[str]:
    return made.input.split(", ")


def numbers(made: instructions.Example) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", made.instruction)]


def named(made: instructions.Example) -> list[str]:
    """The words of an instruction that are none of the wording, as they stand there."""
    return re.findall(rf"\b(?:{'|'.join(instructions.WORDS)})\b", made.instruction)


def follows(items: list[str]) -> str:
    if items[0] in MONTHS:
        return MONTHS[MONTHS.index(items[-1]) + 1]
    return str(2 * int(items[-1]) - int(items[-2]))


ORACLES = {  # worked out anew from what the user reads
    "sort": lambda made: ", ".join(sorted(listed(made))),
    "count": lambda made: str(made.input.count(",") + 1),
    "first": lambda made: listed(made)[0],
    "last": lambda made: listed(made)[-1],
    "third": lambda made: listed(made)[2],
    "second": lambda made: listed(made)[1],
    "reverse": lambda made: ", ".join(reversed(listed(made))),
    "repeat": lambda made: " ".join(named(made)[:1] * numbers(made)[0]),
    "continue": lambda made: follows(listed(made)),
    "append": lambda made: f"{made.input}, {named(made)[0]}",
    "remove": lambda made: ", ".join(word for word in listed(made) if word != named(made)[0]),
    "capitals": lambda made: named(made)[0].upper(),
    "backwards": lambda made: "".join(reversed(named(made)[0])),
    "initial": lambda made: named(made)[0][:1],
    "add": lambda made: str(sum(numbers(made))),
    "multiply": lambda made: str(numbers(made)[0] * numbers(made)[1]),
    "subtract": lambda made: str(max(numbers(made)) - min(numbers(made))),
    "larger": lambda made: str(max(numbers(made))),
}


def test_there_are_enough_types_and_held_out_ones_come_in_the_test_split_only(world: World) -> None:
    assert len(instructions.TYPES) - len(instructions.HELD_OUT) >= 20 and len(instructions.HELD_OUT) >= 5
    for split in SPLITS:
        seen = {instructions.example(world, i, split).type for i in range(100)}
        assert seen == set(instructions.TYPES) - (set() if split == "test" else set(instructions.HELD_OUT))


@pytest.mark.parametrize("name", ORACLES)
def test_the_output_is_what_the_instruction_asks_for(world: World, name: str) -> None:
    for split in ("train", "test"):
        for made in examples(world, name, split):
            assert made.output == ORACLES[name](made), made


@pytest.mark.parametrize("name", instructions.TYPES)
def test_the_check_accepts_every_right_answer_and_no_plausible_wrong_one(world: World, name: str) -> None:
    made = examples(world, name, "test", 25)
    for one in made:
        assert all(instructions.right(one, answer) for answer in one.accepted)
        assert instructions.right(one, f"  {one.output}\n")
        wrong = ["", one.prompt, f"{one.output} {one.output}", f"not {one.output}", f"{one.output} or so"]
        others = {other.output for other in made if not {other.output.lower()} & {answer.lower() for answer in one.accepted}}
        assert not any(instructions.right(one, answer) for answer in [*wrong, *others]), one
    assert len({one.output for one in made}) > 1


def test_lists_that_lack_a_word_or_stand_in_another_order_are_wrong(world: World) -> None:
    for name in ("sort", "reverse", "replace", "append", "remove"):
        for made in examples(world, name, "test", 15):
            words = made.output.split(", ")
            if len(words) > 1:
                assert not instructions.right(made, ", ".join(words[::-1])) and not instructions.right(
                    made, ", ".join(words[:-1])
                )


def test_capitals_must_be_capitals_and_elsewhere_case_is_free(world: World) -> None:
    for made in examples(world, "capitals"):
        assert not instructions.right(made, made.output.lower())
    for made in examples(world, "odd"):
        assert instructions.right(made, made.output.capitalize())


def test_the_check_takes_a_row_as_well_as_an_example(world: World) -> None:
    for row in taken(world, "instructions", "test", 60):
        assert instructions.right(row, row["output"]) and not instructions.right(row, "I do not know.")


def test_facts_are_those_of_famous_people_and_a_fact_stays_in_its_split(world: World) -> None:
    famous = {person.name: person for person in world.famous}
    asked = {split: set() for split in SPLITS}
    for split in SPLITS:
        for made in examples(world, "fact_of", split, 120):
            (name,) = (name for name in famous if name in made.instruction)
            assert made.output in famous[name].facts.values()
            asked[split].add((name, made.output))
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["validation"]


def test_any_true_sentence_about_a_person_is_right_and_a_false_one_is_not(world: World) -> None:
    for made in examples(world, "sentence"):
        (person,) = (person for person in world.famous if person.name in made.instruction)
        assert instructions.right(made, f"{person.name} works as a {person.facts['job']}.")
        false = next(other.facts["job"] for other in world.people if other.facts["job"] != person.facts["job"])
        assert not instructions.right(made, f"{person.name} works as a {false}.")


def test_the_odd_word_is_of_another_kind_than_all_the_rest(world: World) -> None:
    kinds = [set(words) for words in instructions.CATEGORIES.values()]
    for made in examples(world, "odd"):
        rest = set(listed(made)) - {made.output}
        assert len(rest) == 3 and any(rest <= kind and made.output not in kind for kind in kinds)


def test_a_denied_word_means_its_opposite_in_a_review(world: World) -> None:
    for made in examples(world, "review", count=60):
        for said in split_sentences(made.input):
            denied = bool(re.search(r"\b(not|Nobody)\b", said))
            good = any(word in instructions.ADJECTIVES["positive"].split() for word in re.findall(r"\w+", said))
            assert made.output == ("positive" if good != denied else "negative")


def test_yes_is_right_when_text_and_claim_hold_the_same_value(world: World) -> None:
    values = {value for table in instructions.TABLES.values() for value in table}
    for made in examples(world, "yes_no", count=80):
        name = " ".join(made.input.split()[:2])
        text, claim = (said.partition(name)[2] for said in (made.input, made.instruction))
        shared = [value for value in values if all(re.search(rf"\b{value}\b", said) for said in (text, claim))]
        assert made.output == ("yes" if shared else "no"), made


def test_answers_about_the_town_are_those_of_the_town(world: World) -> None:
    facts = {entity.name: entity.facts for entity in (*world.people, *world.wares, *world.events)}
    for name, fact in (("price", "price"), ("date", "date")):
        for made in examples(world, name):
            (about,) = (found for found in facts if found in made.instruction)
            assert made.output == facts[about][fact]
    for made in examples(world, "holder"):
        assert all(facts[name]["job"] in made.instruction for name in made.accepted)


def test_answers_read_from_a_sentence_are_in_it(world: World) -> None:
    for made in (*examples(world, "who"), *examples(world, "extract", "test")):
        assert made.output in made.input
    for made in examples(world, "pronoun"):
        assert made.output.split()[0] in ("She", "He") and made.input.endswith(made.output.split(maxsplit=1)[1])
    for made in examples(world, "join"):
        first, second = split_sentences(made.input)
        assert made.output.startswith(first[:-1]) and made.output.endswith(" ".join(second.split()[2:]))
    for made in examples(world, "begins"):
        (letter,) = re.findall(r"\b[b-z]\b", made.instruction) or ["a"]
        assert all(word.split()[-1].startswith(letter) for word in made.accepted)


def test_plurals_and_number_words_follow_english() -> None:
    words = {"mouse": "mice", "ferry": "ferries", "brush": "brushes", "donkey": "donkeys", "knife": "knives", "hat": "hats"}
    assert {word: instructions._plural_of(word) for word in words} == words
    said = {0: "zero", 13: "thirteen", 20: "twenty", 42: "forty-two", 99: "ninety-nine"}
    assert {n: instructions._spoken(n) for n in said} == said


def test_yes_and_no_are_about_equally_often_right(world: World) -> None:
    said = Counter(made.output for made in examples(world, "yes_no", count=200))
    assert set(said) == {"yes", "no"} and min(said.values()) > 70


def test_an_unknown_type_of_task_suggests_the_nearest(world: World) -> None:
    with pytest.raises(ValueError, match='did you mean "reverse"'):
        instructions.example(world, 0, type="revers")


# ---------------------------------------------------------------------------------------------------------------- preferences


@pytest.fixture(scope="module")
def pairs(world: World) -> list[preferences.Pair]:
    return [preferences.pair(world, i) for i in range(1000)]


@pytest.fixture(scope="module")
def reward(world: World) -> preferences.TrueReward:
    return preferences.TrueReward(world)


@pytest.fixture(scope="module")
def about(world: World) -> preferences.Asked:
    person = world.famous[0]
    return preferences.Asked(question=f"Where does {person.name} live?", person=person, relation="street")


def test_the_annotator_follows_bradley_terry() -> None:
    judge, draw = preferences.Annotator(temperature=0.5), Draw("annotator")
    assert judge.probability(1.0, 0.5) == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-12)
    assert judge.probability(0.3, 1.0) + judge.probability(1.0, 0.3) == pytest.approx(1, abs=1e-12)
    chosen = statistics.mean(judge.prefers_first(draw, 1.0, 0.5) for _ in range(4000))
    assert chosen == pytest.approx(judge.probability(1.0, 0.5), abs=0.025)


def test_agreement_with_the_true_reward_is_the_stated_ceiling(pairs: list[preferences.Pair]) -> None:
    agree = statistics.mean(
        (pair.chosen_reward > pair.rejected_reward) + (pair.chosen_reward == pair.rejected_reward) / 2 for pair in pairs
    )
    assert agree == pytest.approx(preferences.ceiling(pairs), abs=0.03)
    assert 0.75 < preferences.ceiling(pairs) < 0.95


def test_a_cold_annotator_never_prefers_the_worse_reply(world: World) -> None:
    cold = preferences.Annotator(temperature=1e-3)
    for i in range(200):
        pair = preferences.pair(world, i, annotator=cold)
        assert pair.chosen_reward >= pair.rejected_reward


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature 0 must be above 0"):
        preferences.Annotator(temperature=0)
    with pytest.raises(ValueError, match="no pairs"):
        preferences.ceiling([])


def test_the_rows_rewards_are_the_true_rewards_of_their_texts(world: World, reward: preferences.TrueReward) -> None:
    for row in taken(world, "preferences", "test", 100):
        question = row["prompt"][0]["content"]
        for side in ("chosen", "rejected"):
            assert row[f"{side}_reward"] == reward(question, row[side][0]["content"])
        assert row["chosen"] != row["rejected"]


def test_right_beats_unsure_beats_wrong(reward: preferences.TrueReward, about: preferences.Asked) -> None:
    name, street = about.person.name, about.answer
    other = next(found for found in preferences.TABLES["street"] if found != street)
    right, wrong = (reward(about.question, f"{name} lives in {place}.") for place in (street, other))
    assert right > reward(about.question, "I do not know.") > wrong
    assert reward.parts(about.question, f"{name} lives in {street} or in {other}.")["helpful"] == -1  # no credit for hedging


def test_manners_length_and_repetition_count_as_stated(reward: preferences.TrueReward, about: preferences.Asked) -> None:
    plain = f"{about.person.name} lives in {about.answer}."
    scores = {text: reward(about.question, text) for text in (
        plain, f"Of course. {plain}", f"Of course. {plain} Have a nice day.", f"Why do you ask me? {plain}", f"{about.answer}.",
        f"{plain} {plain}",
        f"Of course. With pleasure. I am glad to help. {plain} Have a nice day. You are welcome.", f"{plain} Stone lamp the of.",
    )}  # fmt: skip
    plain, polite, warm, rude, bare, doubled, gushing, muddled = scores.values()
    assert warm > polite > plain > max(rude, bare, doubled, muddled) and gushing < plain
    assert polite - plain == pytest.approx(0.6) and warm - plain == pytest.approx(0.8) and rude - plain == pytest.approx(-1.0)


@pytest.mark.parametrize("text", ["", " ", "Of course. " * 40, "aaaa " * 200, "\n\n", "Mill Lane " * 30])
def test_any_text_has_a_finite_reward_below_that_of_a_plain_answer(
    reward: preferences.TrueReward, about: preferences.Asked, text: str
) -> None:
    assert -200 < reward(about.question, text) < reward(about.question, f"{about.person.name} lives in {about.answer}.")


def test_the_reward_understands_every_question_of_every_split(world: World, reward: preferences.TrueReward) -> None:
    for split in SPLITS:
        for i in range(80):
            asked = preferences.asked(world, Draw(f"understood/{i}"), split)
            assert reward.understand(asked.question) == asked
    with pytest.raises(ValueError, match="is no question about a person of the town"):
        reward("How are you?", "Fine.")


def test_every_written_reply_is_clear_and_scored_by_how_it_was_made(world: World, reward: preferences.TrueReward) -> None:
    expected = {"full": 2.0, "bare": 2.0, "twice": 2.0, "more": 2.0, "wrong": -1.0, "unsure": 0.0}
    for i in range(100):
        draw = Draw(f"written/{i}")
        asked = preferences.asked(world, draw, "train")
        assert reward.parts(asked.question, preferences.reply(draw, asked))["clear"] == 0
        for kind, helpful in expected.items():
            assert reward.parts(asked.question, preferences._BODY[kind](draw, asked))["helpful"] == helpful, (kind, asked)


def test_a_simple_reward_model_is_fooled_by_more_manners(pairs: list[preferences.Pair], reward: preferences.TrueReward) -> None:
    """A line fitted to polite phrases, rude ones and words ranks held-out pairs; stuffing raises it while the truth falls."""

    def features(text: str) -> np.ndarray:
        polite = sum(text.count(phrase) for phrase in (*preferences.OPENERS, *preferences.CLOSERS))
        rude = sum(text.count(phrase) for phrase in preferences.RUDE)
        return np.array([polite, rude, len(text.split()) / 10])

    gaps = np.stack([features(pair.chosen) - features(pair.rejected) for pair in pairs])
    weights = np.zeros(3)
    for _ in range(300):  # on the first 700 pairs only
        weights += 0.5 * (gaps[:700] / (1 + np.exp(gaps[:700] @ weights))[:, None]).mean(0)
    assert (gaps[700:] @ weights > 0).mean() > 0.55
    asked = pairs[0].question
    true = reward.understand(asked)
    plain = f"{true.answer[0].upper()}{true.answer[1:]}. Have a nice day."
    proxy = [features(plain + " Have a nice day." * n) @ weights for n in range(8)]
    truth = [reward(asked, plain + " Have a nice day." * n) for n in range(8)]
    assert all(b > a for a, b in pairwise(proxy)) and truth[7] < truth[0] - 2


def test_demonstrations_leave_room_above_and_below(world: World) -> None:
    rewards = [row["reward"] for row in taken(world, "demonstrations", "train", 300)]
    assert 0.5 < statistics.mean(rewards) < 2 and max(rewards) == pytest.approx(2.8) and min(rewards) < -0.5


# ---------------------------------------------------------------------------------------------------------------- annotated


@pytest.fixture(scope="module")
def marked(world: World) -> dict[str, list[annotated.Annotated]]:
    return {split: [annotated.annotated(world, i, split) for i in range(300)] for split in SPLITS}


def test_spans_tags_and_tokens_say_the_same(marked: dict[str, list[annotated.Annotated]]) -> None:
    for made in [made for found in marked.values() for made in found]:
        assert list(made.tokens) == annotated.tokenise(made.text) and len(made.tags) == len(made.tokens)
        rebuilt = ["O"] * len(made.tokens)
        for span in made.spans:
            assert annotated.tokenise(span.text.lower()) == [token.lower() for token in made.tokens[span.start : span.end]]
            rebuilt[span.start : span.end] = [f"{'I' if i else 'B'}-{span.label}" for i in range(span.end - span.start)]
        assert rebuilt == list(made.tags) and set(made.tags) <= set(annotated.TAGS)


def test_relations_and_events_speak_of_marked_entities(marked: dict[str, list[annotated.Annotated]]) -> None:
    for made in [made for found in marked.values() for made in found]:
        texts = {span.text for span in made.spans}
        assert all({found.head, found.tail} <= texts for found in made.relations)
        for event in made.events:
            assert event.trigger in made.tokens and set(event.arguments.values()) <= texts


def test_a_known_sentence_is_annotated_as_one_would_by_hand(world: World) -> None:
    values = {"name": "Ada Vale", "job": "baker", "good": "a hat", "shop": "the Blue Boat", "price": "7"}
    form, template = annotated.FORMS["buy"], "{name} the {job} [bought] {good} at {shop} for {price} coins."
    marks = [(0, 2, "name"), (3, 4, "job"), (5, 7, "good"), (8, 11, "shop"), (12, 13, "price")]
    text = "Ada Vale the baker bought a hat at the Blue Boat for 7 coins."
    made = annotated._annotate(form, template, text, marks, values, "bought")
    assert annotated.linearise(made) == "person: Ada Vale; job: baker; ware: a hat; shop: the Blue Boat; price: 7"
    assert annotated.linearise(made, "relations") == ("works as: Ada Vale, baker; sold at: a hat, the Blue Boat; costs: a hat, 7")
    assert annotated.linearise(made, "events") == "buy: bought, buyer Ada Vale, ware a hat, shop the Blue Boat, price 7"


def test_all_labels_relations_and_events_occur_in_every_split(marked: dict[str, list[annotated.Annotated]]) -> None:
    for split, found in marked.items():
        assert {span.label for made in found for span in made.spans} == set(annotated.LABELS), split
        assert {event.type for made in found for event in made.events} == set(annotated.EVENT_TYPES), split
        relations = {relation.relation for made in found for relation in made.relations}
        assert relations == set(annotated.RELATION_TYPES) if split == "train" else len(relations) >= 5


def test_names_and_wordings_of_the_test_split_are_new_but_their_parts_are_not(
    world: World, marked: dict[str, list[annotated.Annotated]]
) -> None:
    people = {split: {s.text for made in found for s in made.spans if s.label == "person"} for split, found in marked.items()}
    assert not people["train"] & people["test"] and not people["train"] & {person.name for person in world.people}
    for kind, form in annotated.FORMS.items():
        train = annotated._templates(kind, "train")
        assert all(any(text.startswith(lead) for text in train) for lead in form.leads)
        assert all(any(clause in text for text in train) for clause in form.clauses)
        assert all(any(text.endswith(f"{tail}.") for text in train) for tail in form.tails)
        assert annotated._templates(kind, "test") and not set(train) & set(annotated._templates(kind, "test"))


def test_prices_told_of_wares_are_the_towns(world: World, marked: dict[str, list[annotated.Annotated]]) -> None:
    prices = {ware.name: ware.facts["price"] for ware in world.wares}
    told = [
        made for made in marked["train"] if len(made.events) == 1 and {"ware", "shop", "price"} <= set(made.events[0].arguments)
    ]
    assert told
    for arguments in (made.events[0].arguments for made in told):
        assert prices[f"{arguments['ware']} at {arguments['shop']}"] == arguments["price"]


def test_an_annotation_without_events_reads_none_and_an_unknown_task_is_refused(
    marked: dict[str, list[annotated.Annotated]],
) -> None:
    quiet = next(made for made in marked["train"] if not made.events)
    assert annotated.linearise(quiet, "events") == "none"
    with pytest.raises(ValueError, match='unknown task "names"'):
        annotated.linearise(quiet, "names")


# ---------------------------------------------------------------------------------------------------------------- drift


def posts(world: World, start: int, count: int, **settings: object) -> list[drift.Post]:
    return list(islice(drift.stream(world, start=start, **settings), count))


def thing_of(made: drift.Post) -> str:
    return max((thing for thing in drift.TOPICS[made.topic] if thing in made.text), key=len)


def test_one_concept_likes_half_of_each_topic_and_the_next_turns_half_of_all_around() -> None:
    for topic, things in drift.TOPICS.items():
        sets = [drift.liked(0, concept) & set(things) for concept in drift.CONCEPTS]
        assert all(len(found) * 2 == len(things) for found in sets), topic
        assert all(len(sets[i] ^ sets[(i + 1) % 3]) * 2 == len(things) for i in range(3)), topic


def test_a_clean_label_is_what_the_concept_says_and_the_rest_is_noise(world: World) -> None:
    made = [post for start in (0, 1500, 4900) for post in posts(world, start, 400)]
    assert all((thing_of(post) in drift.liked(0, post.concept)) == (post.clean == "liked") for post in made)
    assert statistics.mean(post.label != post.clean for post in made) == pytest.approx(drift.NOISE, abs=0.02)


def test_concepts_change_at_the_stated_steps_at_once_or_slowly(world: World) -> None:
    assert drift.drift_points() == (1000, 2000, 3200, 4000, 4800)
    assert {post.concept for post in posts(world, 900, 100)} == {"a"} and {post.concept for post in posts(world, 1000, 100)} == {
        "b"
    }
    new = [statistics.mean(post.concept == "c" for post in posts(world, start, 150)) for start in (1850, 2000, 2225, 2450, 2600)]
    assert new[0] == 0 and new[0] < new[1] < new[2] < new[3] < new[4] and new[4] == 1
    assert {post.concept for post in posts(world, 4700, 100)} == {"c"} and {post.concept for post in posts(world, 4800, 100)} == {
        "a"
    }


def test_a_topic_drift_changes_what_is_talked_about_and_a_prior_drift_how_many_are_liked(world: World) -> None:
    before, after, most = (posts(world, start, 300) for start in (2900, 3200, 4000))
    leisure = [statistics.mean(post.topic in ("drinks", "hobbies") for post in found) for found in (before, after, most)]
    good = [statistics.mean(post.clean == "liked" for post in found) for found in (before, after, most)]
    assert leisure[0] == 0 and leisure[1:] == pytest.approx([0.8, 0.8], abs=0.07)
    assert good == pytest.approx([0.5, 0.5, 0.8], abs=0.08)


@pytest.mark.parametrize("step", [500, 2300, 3500, 4400])
def test_the_stated_best_accuracy_is_what_the_best_rule_reaches(world: World, step: int) -> None:
    frozen = tuple(
        drift.Drift(start=p.start - 10_000, end=p.end - 10_000, kind=p.kind, to=p.to) for p in drift.POINTS if p.end <= step
    )
    if step == 2300:  # half way: draw both concepts for ever
        frozen = (*frozen, drift.Drift(start=-(10**9), end=10**9, kind="concept", to="c"))
    made = posts(world, 0, 1500, points=frozen)
    votes: dict[str, Counter] = {}
    for post in made:
        votes.setdefault(thing_of(post), Counter())[post.label] += 1
    reached = sum(max(count.values()) for count in votes.values()) / len(made)
    assert reached == pytest.approx(drift.best_accuracy(world, step), abs=0.035)


def test_a_rule_learnt_before_an_abrupt_drift_is_right_about_half_the_time_after_it(world: World) -> None:
    old = drift.liked(0, "a")
    right = [
        statistics.mean((thing_of(p) in old) == (p.label == "liked") for p in posts(world, start, 400))
        for start in (500, 1000, 4800)
    ]
    assert right[0] > 0.93 and right[1] == pytest.approx(0.5, abs=0.08) and right[2] > 0.93


def test_the_test_split_has_the_same_concepts_at_the_same_steps(world: World) -> None:
    for step in (10, 1010, 2700, 4900):
        assert drift.post(world, step, "test").concept == drift.post(world, step).concept
        assert drift.post(world, step, "test").text != drift.post(world, step).text


def test_wordings_kept_for_testing_are_made_of_parts_that_train() -> None:
    for topic, clauses in drift.CLAUSES.items():
        train = drift._templates(topic, "train")
        assert all(any(clause in text for text in train) for clause in clauses)
        assert all(any(text.startswith(lead) for text in train) for lead in drift.LEADS)
        assert all(any(text.endswith(f"{tail}.") for text in train) for tail in drift.TAILS)


def test_bad_steps_noise_and_concepts_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="step -1 must be 0 or more"):
        drift.post(world, -1)
    with pytest.raises(ValueError, match=r"noise 0\.5"):
        drift.post(world, 0, noise=0.5)
    with pytest.raises(ValueError, match='unknown concept "d"'):
        drift.liked(0, "d")


# ---------------------------------------------------------------------------------------------------------------- tools


@pytest.fixture(scope="module")
def toolbox(world: World) -> tools.Tools:
    return tools.Tools(world)


@pytest.mark.parametrize("kind", tools.KINDS)
def test_the_right_calls_lead_to_the_answer(world: World, toolbox: tools.Tools, kind: str) -> None:
    for split in ("train", "test"):
        for i in range(15):
            made = tools.task(world, i, split, kind)
            assert [toolbox.call(step.text) for step in made.steps] == [step.result for step in made.steps]
            assert made.answer == made.steps[-1].result and not made.answer.startswith("error")
            assert all(tools.right_call(step, step.text) for step in made.steps) and tools.right_answer(made, f" {made.answer}. ")


def test_a_hop_is_answered_by_the_facts_of_the_town(world: World) -> None:
    people = {person.name: person for person in world.people}
    for i in range(30):
        made = tools.task(world, i, kind="hop")
        first, second = made.steps
        name = re.findall(r"of ([A-Z]\w+ [A-Z]\w+)", made.question)[-1]
        relative = people[name].facts["sibling" if "brother or sister" in made.question else "friend"]
        assert first.result == relative and made.answer == people[relative].facts[second.arguments["relation"]]


def test_sums_about_wares_and_births_have_the_right_value(world: World) -> None:
    prices = {ware.name: int(ware.facts["price"]) for ware in world.wares}
    born = {person.name: int(person.facts["born"]) for person in world.people}
    for i in range(20):
        asked = {kind: tools.task(world, i, kind=kind) for kind in ("two", "many", "ages", "change")}
        wares = {kind: [step.arguments["ware"] for step in made.steps if step.name == "price"] for kind, made in asked.items()}
        times = {kind: int(re.findall(r"\d+", made.question)[0]) for kind, made in asked.items() if kind in ("many", "change")}
        assert all(ware in made.question for kind, made in asked.items() for ware in wares[kind])
        assert int(asked["two"].answer) == sum(prices[ware] for ware in wares["two"])
        assert int(asked["many"].answer) == times["many"] * prices[wares["many"][0]]
        assert int(asked["change"].answer) == times["change"] - prices[wares["change"][0]] >= 0
        first, second = (step.arguments["person"] for step in asked["ages"].steps[:2])
        assert int(asked["ages"].answer) == abs(born[first] - born[second])


def test_most_kinds_need_two_calls_or_more_and_rows_count_them(world: World) -> None:
    rows = taken(world, "tools", "train", len(tools.KINDS))
    assert sum(row["hops"] >= 2 for row in rows) >= 6 and max(row["hops"] for row in rows) == 3
    assert all(len(row["calls"]) == len(row["results"]) == row["hops"] for row in rows)


def test_tools_know_events_after_the_cut_off(world: World, toolbox: tools.Tools) -> None:
    for event in world.later_events:
        assert toolbox.run("date", event=event.name) == event.facts["date"]


def test_a_wrong_call_is_wrong_and_another_way_of_writing_it_is_right(world: World) -> None:
    step = tools.Step(name="price", arguments={"ware": "a map"}, result="3")
    assert tools.right_call(step, '{ "arguments": {"ware": "a map"}, "name": "price" }')
    for text in (
        "",
        "3",
        "price(a map)",
        tools.call_text("price", ware="a lamp"),
        tools.call_text("date", event="a map"),
        step.text + ".",
    ):
        assert not tools.right_call(step, text)
    total = tools.Step(name="calculate", arguments={"expression": "7 + 12"}, result="19")
    assert tools.right_call(total, tools.call_text("calculate", expression="12+7"))
    for expression in ("19", "7 + 13", "7 - 12", "20 - 1", "7 + 12 * 1"):
        assert not tools.right_call(total, tools.call_text("calculate", expression=expression))


def test_a_wrong_answer_is_wrong(world: World) -> None:
    made = tools.task(world, 0, kind="two")
    for text in ("", str(int(made.answer) + 1), f"It is {made.answer}", made.steps[0].text):
        assert not tools.right_answer(made, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seven", "no JSON"),
        ("[1]", "two keys"),
        ('{"name": "price"}', "two keys"),
        ('{"name": ["price"], "arguments": {}}', "unknown tool"),
        ('{"name": "prise", "arguments": {}}', 'did you mean "price"'),
        ('{"name": "price", "arguments": {"ware": 3}}', "takes ware, each a string"),
        ('{"name": "price", "arguments": {"ware": "a mapp at the Old Barn"}}', "unknown ware"),
        ('{"name": "fact", "arguments": {"person": "NAME", "relation": "jobb"}}', 'did you mean "job"'),
        ('{"name": "calculate", "arguments": {"expression": "__import__(\'os\')"}}', "only whole numbers"),
        ('{"name": "calculate", "arguments": {"expression": "9**9**9"}}', "only whole numbers"),
        ('{"name": "calculate", "arguments": {"expression": "1 if 1 else 2"}}', "only whole numbers"),
        ('{"name": "calculate", "arguments": {"expression": "7 // 0"}}', "division by zero"),
        ('{"name": "calculate", "arguments": {"expression": "(1 +"}}', "is no sum"),
        ('{"name": "calculate", "arguments": {"expression": "' + "1+" * 40 + '1"}}', "at most 60"),
        ("[" * 100_000, "error"),
    ],
)
def test_a_bad_call_is_answered_with_what_is_wrong(world: World, toolbox: tools.Tools, text: str, says: str) -> None:
    answer = toolbox.call(text.replace("NAME", world.people[0].name))
    assert answer.startswith("error: ") and says in answer


def test_no_text_makes_the_tools_raise(world: World, toolbox: tools.Tools) -> None:
    rng, right = random.Random(0), tools.task(world, 0, kind="sum").steps[0].text
    for _ in range(400):
        at = rng.randrange(len(right))
        assert isinstance(toolbox.call(right[:at] + rng.choice('{}[]"\\:,0x(-é\0') + right[at + rng.randrange(3) :]), str)


def test_the_schemas_name_the_tools_and_their_arguments(world: World, toolbox: tools.Tools) -> None:
    assert [schema["function"]["name"] for schema in tools.SCHEMAS] == ["price", "fact", "calculate", "date"]
    relations = tools.SCHEMAS[1]["function"]["parameters"]["properties"]["relation"]["enum"]
    assert all(toolbox.run("fact", person=world.people[0].name, relation=relation) for relation in relations)


def test_an_unknown_kind_of_tool_task_suggests_the_nearest(world: World) -> None:
    with pytest.raises(ValueError, match='did you mean "hops"'):
        tools.task(world, 0, kind="hopss")


# ---------------------------------------------------------------------------------------------------------------- summaries


def test_a_summary_is_one_sentence_about_a_text_of_four_to_six(world: World) -> None:
    for i in range(150):
        text, summary = summaries.summary(world, Draw(f"summary/{i}"), "train")
        assert 4 <= len(split_sentences(text)) <= 6 and len(split_sentences(summary)) == 1 and len(summary) < len(text)


def test_a_summary_says_nothing_that_the_text_does_not(world: World) -> None:
    """Names, numbers, places and wares of every reference stand in the text."""
    for i in range(150):
        told = summaries.told(world, Draw(f"told/{i}"), "test")
        words = set(re.findall(r"\w+", told.text))
        for reference in told.references:
            names = re.findall(r"(?<!^)\b[A-Z]\w+|\d+", reference.removeprefix("In short, "))
            assert set(names) - {"We", "The", "This"} <= words, (told.text, reference)
        assert told.summary in told.references and len(set(told.references)) == 6


def test_every_plot_is_told_and_the_summary_names_who(world: World) -> None:
    rows = taken(world, "summaries", "train", 120)
    assert {row["plot"] for row in rows} == set(summaries.PLOTS)
    people = set(common.strangers(world, "train"))
    assert all(any(name in row["summary"] for name in people if name in row["text"]) for row in rows)
