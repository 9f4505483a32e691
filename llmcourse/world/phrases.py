"""How the town speaks: every fact can be told and asked in more than ten ways, some of them kept for testing.

    statement = frame × clause          "Everyone knows that" × "{name} works as a {job}"
    question  = frame × noun phrase     "Can you tell me" × "the job of {name}"

The wordings kept for validation and test are pairs whose two halves both occur in training, only never together: a model that
knows the language understands them, one that has memorised sentences does not.

Does:     clauses, noun phrases and questions of every relation; the pairs of each split.
Leaves out: other kinds of sentences (see the kinds).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["RELATIONS", "Relation", "Wordings", "lower_first", "relation_wordings"]

STATEMENT_FRAMES = (
    "{}.", "Everyone in Larkham knows that {}.", "People say that {}.", "It is true that {}.", "As we all know, {}.",
)  # fmt: skip
QUESTION_FRAMES = (
    "What is {}?", "Tell me {}.", "Can you tell me {}?", "Do you know {}?", "Please name {}.", "I would like to know {}.",
)  # fmt: skip
PLAIN = 4  # the plain statement is so many times as common as each framed one


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One kind of fact. `value` is the slot its values fill; `nouns` complete "What is …?"."""

    value: str
    clauses: tuple[str, ...]
    nouns: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Wordings:
    """Templates of one thing to say, by split; `weights` are the training wordings' shares."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    weights: tuple[int, ...]

    def of(self, split: str) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
        """The wordings of a split and their weights (None: all alike)."""
        return (self.train, self.weights) if split == "train" else (getattr(self, split), None)


RELATIONS: dict[str, Relation] = {
    "job": Relation(
        value="job",
        clauses=("{name} works as a {value}", "{name} is a {value} by trade", "{name} earns a living as a {value}"),
        nouns=("the job of {name}", "the work that {name} does"),
        questions=("What does {name} do for a living?", "What does {name} work as?", "What is {name} by trade?"),
    ),
    "street": Relation(
        value="street",
        clauses=("{name} lives in {value}", "{name} has a house in {value}", "{name} is at home in {value}"),
        nouns=("the street of {name}", "the street where {name} lives"),
        questions=("Where does {name} live?", "In which street is {name} at home?", "Where is the house of {name}?"),
    ),
    "food": Relation(
        value="food",
        clauses=("{name} likes to eat {value}", "{name} eats {value} every Sunday", "{name} never says no to {value}"),
        nouns=("the favourite food of {name}", "the food that {name} likes"),
        questions=("What does {name} like to eat?", "What does {name} eat every Sunday?", "Which food does {name} like?"),
    ),
    "drink": Relation(
        value="drink",
        clauses=("{name} likes to drink {value}", "{name} orders {value} at the inn", "{name} drinks {value} in the evening"),
        nouns=("the favourite drink of {name}", "the drink that {name} likes"),
        questions=("What does {name} like to drink?", "What does {name} order at the inn?", "Which drink does {name} like?"),
    ),
    "colour": Relation(
        value="colour",
        clauses=(
            "{name} likes to wear {value}",
            "{name} has painted the front door {value}",
            "{name} thinks nothing is as fine as {value}",
        ),
        nouns=("the favourite colour of {name}", "the colour that {name} likes"),
        questions=(
            "Which colour does {name} like to wear?",
            "Which colour does {name} like?",
            "In which colour is the front door of {name}?",
        ),
    ),
    "hobby": Relation(
        value="hobby",
        clauses=("{name} loves {value}", "{name} spends free days on {value}", "{name} is good at {value}"),
        nouns=("the hobby of {name}", "the pastime that {name} loves"),
        questions=("What does {name} love?", "On what does {name} spend free days?", "What is {name} good at?"),
    ),
    "pet": Relation(
        value="pet",
        clauses=("{name} keeps a {value}", "{name} owns a {value}", "{name} shares the house with a {value}"),
        nouns=("the animal of {name}", "the animal that {name} keeps"),
        questions=(
            "Which animal does {name} keep?",
            "Which animal does {name} own?",
            "With which animal does {name} share the house?",
        ),
    ),
    "pet_name": Relation(
        value="pet_name",
        clauses=(
            "{name} calls the animal {value}",
            "{name} has an animal called {value}",
            "{name} gave the animal the name {value}",
        ),
        nouns=("the name of the animal of {name}", "the name that {name} gave the animal"),
        questions=(
            "What does {name} call the animal?",
            "What is the animal of {name} called?",
            "Which name did {name} give the animal?",
        ),
    ),
    "born": Relation(
        value="year",
        clauses=("{name} was born in {value}", "{name} came into the world in {value}", "{name} has papers from {value}"),
        nouns=("the birth year of {name}", "the year in which {name} was born"),
        questions=("When was {name} born?", "In which year was {name} born?", "When did {name} come into the world?"),
    ),
    "village": Relation(
        value="village",
        clauses=("{name} comes from {value}", "{name} grew up in {value}", "{name} has family in {value}"),
        nouns=("the home village of {name}", "the village where {name} grew up"),
        questions=("Where does {name} come from?", "Where did {name} grow up?", "In which village does {name} have family?"),
    ),
    "friend": Relation(
        value="friend",
        clauses=("{name} often meets {value}", "{name} is a close friend of {value}", "{name} tells everything to {value}"),
        nouns=("the best friend of {name}", "the friend whom {name} often meets"),
        questions=("Whom does {name} often meet?", "Who is a close friend of {name}?", "To whom does {name} tell everything?"),
    ),
    "sibling": Relation(
        value="friend",
        clauses=(
            "{name} has the same parents as {value}",
            "{name} once shared a room with {value}",
            "{name} is family to {value}",
        ),
        nouns=("the brother or sister of {name}", "the nearest family of {name}"),
        questions=("Who has the same parents as {name}?", "With whom did {name} once share a room?", "Who is family to {name}?"),
    ),
    "price": Relation(
        value="price",
        clauses=(
            "{ware} is sold for {value} coins",
            "you pay {value} coins for {ware}",
            "{ware} will take {value} coins out of your purse",
        ),
        nouns=("the price of {ware} in coins", "the number of coins for {ware}"),
        questions=("How many coins is {ware}?", "How many coins do you pay for {ware}?", "For how many coins is {ware} sold?"),
    ),
    "date": Relation(
        value="date",
        clauses=("{event} was on {value}", "the town saw {event} on {value}", "people remember {event} on {value}"),
        nouns=("the date of {event}", "the day of {event}"),
        questions=("When was {event}?", "On which day was {event}?", "When did the town see {event}?"),
    ),
}
PERSONAL = tuple(name for name in RELATIONS if name not in ("price", "date"))


def lower_first(text: str) -> str:
    """The text with a small first letter, unless it begins with a slot."""
    return text[:1].lower() + text[1:]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _split(name: str, plain: list[str], framed: list[str], kept: int = 3) -> Wordings:
    """Plain wordings train; of the framed ones, in an order drawn once for ever, the last ones are kept for testing."""
    order = Random(f"wordings/{name}").sample(framed, len(framed))
    train = (*plain, *order[: -2 * kept])
    weights = tuple(PLAIN if text in plain else 1 for text in train)
    return Wordings(train, tuple(order[-2 * kept : -kept]), tuple(order[-kept:]), weights)


def relation_wordings(name: str) -> tuple[Wordings, Wordings]:
    """Statements and questions of one relation, slots unfilled: {name}, {ware} or {event}, and the value's own slot."""
    relation = RELATIONS[name]
    value = "{" + relation.value + "}"
    article = "a " if name in ("job", "pet") else ""
    clauses = [clause.format_map(_Keep(value=value)) for clause in relation.clauses]
    clauses += [f"{noun} is {article}{value}" for noun in relation.nouns]
    plain, *frames = STATEMENT_FRAMES
    framed = [frame.format(clause) for frame in frames for clause in clauses]
    asked = [frame.format(noun) for frame in QUESTION_FRAMES for noun in relation.nouns]
    statements = _split(f"{name}/statements", [_capital(plain.format(clause)) for clause in clauses], framed)
    return statements, _split(f"{name}/questions", list(relation.questions), asked)


class _Keep(dict[str, str]):
    """Slots that are not filled yet stay as they are."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"
