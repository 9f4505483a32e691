"""The invented town of Larkham: plain English text and tasks whose true answers are known.

    tables of words ──► facts about people, goods, events ──► documents (to train on)
                    └─► tasks with fresh names            └─► questions (to measure with)

Everything is drawn from `random.Random` seeded with text, so item 7 of a kind is the same item on every machine and can be made
without making items 0–6. Training, validation and test never share a question: the checksum of its text decides where it belongs,
and names invented for a context or a label belong to one split only.

Does:     biographies, stories, dated news, closed-book and context questions, lists to repeat, calculations, word sums, reviews,
          word sorting.
Leaves out: facts that change over time, multi-hop questions, instructions, preferences.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

__all__ = ["KINDS", "Entity", "Question", "Split", "World", "split_of"]

Split = Literal["train", "validation", "test"]

TOWN = "Larkham"
FAMOUS = 24  # so many of the people are asked about often; knowledge of the others is thinner and thinner

FIRST_NAMES = {
    "She": "Ada Bella Clara Dora Ella Fay Greta Hanna Ida June Kate Lena Mira Nora Olga Pia Rosa Sara Tilda Vera Wilma Zoe",
    "He": "Adam Boris Carl David Emil Frank Gus Hugo Ivan Jack Karl Leo Max Nils Otto Paul Ralf Sam Tom Victor Will Yan",
}
LAST_NAMES = (
    "Abel Baker Bell Brook Carver Cole Crane Dale Field Finch Ford Frost Gray Green Hale Hart Hill Holt Hunt King Lake Lane "
    "Marsh Mason Miller Moore Nash North Page Park Pond Reed Rose Shaw Short Stone Swift Thorn Vale Wells West White Wood York"
)
JOBS = (
    "baker teacher doctor farmer painter sailor tailor singer nurse cook judge miner barber clerk driver gardener printer "
    "plumber writer hunter"
)
STREETS = (
    "Mill Lane,Bridge Street,Church Road,Garden Row,Harbour Street,High Street,King's Road,Market Square,North Gate,Orchard Road,"
    "Park Lane,Queen's Row,River Walk,School Lane,Station Road,Tower Hill,Well Street,Willow Road"
)
FOODS = (
    "plum cake,fish soup,apple pie,fresh bread,goat cheese,bean stew,rice pudding,roast duck,honey toast,onion tart,"
    "baked potatoes,lentil soup,nut bread,cherry jam,cold ham,mushroom pie"
)
PETS = "dog cat horse goat parrot rabbit turtle duck pony mouse canary hedgehog"
PET_NAMES = "Pip Rex Coco Bibi Moss Dot Tiger Luna Biscuit Pepper Sunny Button Ginger Nemo Olive Toffee Shadow Daisy"
GOODS = "a loaf,a candle,a hat,a pair of boots,a bag of nuts,a map,a lamp,a rope,a jar of honey,a blanket,a kettle,a basket"
SHOPS = "the Blue Boat,the Old Barn,the Corner Shop,the Red Lion,the Harbour Store,the Green Door,the Silver Bell,the Market Hall"
PLACES = "mill,bridge,church,school,harbour,station,library,town hall,theatre,park,tower,bakery"
HAPPENINGS = "the fire at the {},the opening of the {},the flood near the {},the great feast at the {},the repair of the {}"
MONTHS = "January February March April May June July August September October November December"
WEATHER = (
    "It was a cold day.,It was a warm day.,It rained all morning.,The sun was out.,There was a strong wind.,"
    "Snow lay on the roofs."
)
CATEGORIES = {
    "fruit": "apple pear plum cherry lemon grape melon peach fig orange banana berry",
    "animal": "dog cat horse goat parrot rabbit turtle duck pony mouse wolf bear",
    "job": "baker teacher doctor farmer painter sailor tailor singer nurse cook judge miner",
    "tool": "hammer saw spade knife needle drill brush axe file wrench shovel chisel",
    "colour": "red blue green yellow black white brown purple pink grey golden violet",
    "vehicle": "cart boat train bus ship wagon bicycle van truck ferry sledge coach",
}
THINGS = "apples coins books eggs stones cards pears buttons shells nuts"
GAINS = "{They} buys {n} more.,{They} finds {n} more.,A friend brings {n} more.,{They} wins {n} more."
LOSSES = "{They} loses {n}.,{They} sells {n}.,{They} gives away {n}.,{They} drops {n} in the river."
NOUNS = "soup loaf room song bed drink garden view meal price waiter lunch window shop cake walk"
ADJECTIVES = {
    "positive": "good great lovely fresh kind perfect pleasant wonderful fine excellent",
    "negative": "bad awful dirty stale rude terrible nasty horrible poor dreadful",
}
PLAIN_OPINIONS = (
    "The {noun} was {word}.,I found the {noun} {word}.,What a {word} {noun} it was.,Everyone said that the {noun} was {word}."
)
NEGATED_OPINIONS = (
    "The {noun} was not {word}.,I did not find the {noun} {word}.,Nobody said that the {noun} was {word}.,"
    "The {noun} was never {word}."
)
STORY = (
    "{name} left the house in {street} early.,In the morning {name} fed the {pet} {pet_name}.,{name} the {job} had a free day.",
    "{They} walked to {shop} and bought {good} for {price} coins.,At {shop} {they} paid {price} coins for {good}.",
    "Then {they} met {friend} near the {place}.,{friend} came along and they talked about {event}.",
    "For supper {they} had {food}.,At home there was {food} for supper.,The {pet} was glad when {they} came home.",
)
NEWS = (
    "Many people came to see it.,{person} the {job} was there.,The mayor made a short speech.,{person} told us of it.",
    "The {place} stays closed for {n} days.,Repairs will cost {n} coins.,The school sent {n} children.,All went home late.",
)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One kind of fact: how it is stated and how it is asked, in several phrasings."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]


RELATIONS = {
    "job": Relation(
        statements=("{name} is a {value}.", "{name} works as a {value}.", "The {value} of our street is {name}."),
        questions=("What is the job of {name}?", "What does {name} work as?", "What does {name} do for a living?"),
    ),
    "street": Relation(
        statements=("{name} lives in {value}.", "{name} has a house in {value}.", "The home of {name} is in {value}."),
        questions=("Where does {name} live?", "In which street is the house of {name}?", "Where is the home of {name}?"),
    ),
    "food": Relation(
        statements=(
            "{name} likes {value} best.",
            "{name} eats {value} every Sunday.",
            "The favourite food of {name} is {value}.",
        ),
        questions=("What does {name} like best?", "What is the favourite food of {name}?", "What does {name} eat every Sunday?"),
    ),
    "pet": Relation(
        statements=("{name} keeps a {value}.", "{name} owns a {value}.", "The animal of {name} is a {value}."),
        questions=("Which animal does {name} keep?", "Which animal does {name} own?", "What animal is at home with {name}?"),
    ),
    "pet_name": Relation(
        statements=(
            "{name} calls the animal {value}.",
            "{name} has an animal called {value}.",
            "The animal of {name} is called {value}.",
        ),
        questions=(
            "What is the animal of {name} called?",
            "What does {name} call the animal?",
            "What is the name of the animal of {name}?",
        ),
    ),
    "born": Relation(
        statements=(
            "{name} was born in {value}.",
            "{name} came into the world in {value}.",
            "The birth year of {name} is {value}.",
        ),
        questions=("When was {name} born?", "What is the birth year of {name}?", "In which year was {name} born?"),
    ),
    "friend": Relation(
        statements=(
            "{name} is a close friend of {value}.",
            "{name} often meets {value}.",
            "The best friend of {name} is {value}.",
        ),
        questions=("Who is the best friend of {name}?", "Whom does {name} often meet?", "Who is a close friend of {name}?"),
    ),
    "sibling": Relation(
        statements=(
            "{name} grew up with {value}.",
            "{name} is family to {value}.",
            "The parents of {name} are also those of {value}.",
        ),
        questions=("Who grew up with {name}?", "Who is family to {name}?", "Who has the same parents as {name}?"),
    ),
    "price": Relation(
        statements=("The price of {name} is {value} coins.", "You pay {value} coins for {name}."),
        questions=("How many coins is {name}?", "What is the price of {name} in coins?", "How many coins do you pay for {name}?"),
    ),
    "date": Relation(
        statements=(
            "On {value} the town saw {name}.",
            "People still talk about {name} on {value}.",
            "The date of {name} was {value}.",
        ),
        questions=("On which day was {name}?", "What was the date of {name}?", "When did the town see {name}?"),
    ),
}
CONTEXT_RELATIONS = ("job", "street", "food", "pet", "pet_name", "born")


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A person, a ware or an event with its facts, by relation. `they` is the pronoun that opens a sentence."""

    name: str
    facts: dict[str, str]
    they: str = "It"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, its one right answer, and (sums with steps) the work that leads to it."""

    prompt: str
    answer: str
    work: str = ""

    @property
    def completion(self) -> str:
        """What a model should write after the prompt, its leading space included."""
        return f" {self.work}\nAnswer: {self.answer}\n" if self.work else f" {self.answer}\n"


@dataclass(frozen=True)
class Item:
    """A text followed by questions about it; either may be empty."""

    text: str
    questions: tuple[Question, ...] = ()


def split_of(text: str) -> Split:
    """The split a text belongs to, by checksum: a tenth validation, a tenth test, the rest train."""
    return ("test", "validation", *["train"] * 8)[zlib.crc32(text.encode("utf-8")) % 10]


def _words(table: str) -> list[str]:
    return table.split(",") if "," in table else table.split()


def _invented_names() -> list[str]:
    starts = "Ba Be Bo Da De Do Fa Fe Ga Go Ja Jo Ka Ke Ko La Le Lo Ma Me Na Ne Pa Po Ra Ro Sa So Ta Te Va Vo Wa Za Zo"
    middles, ends = "b d f g k l m n p r s t v z", "a e i o u an en il or us"
    return [a + b + c for a in starts.split() for b in middles.split() for c in ends.split()]


INVENTED = {split: [n for n in _invented_names() if split_of(n) == split] for split in ("train", "validation", "test")}


class World:
    """The town made from `seed`: `people` (most famous first), `wares`, `events`, and every text and task about them.

    >>> World(0).question("sum-steps", 3).answer == World(0).question("sum-steps", 3).answer
    True
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng = Random(f"world/{seed}")
        self.people = _people(rng, pairs=75)
        self.wares = _wares(rng)
        self.events = _events(rng)

    @property
    def famous(self) -> list[Entity]:
        """The people a model trained on this town should know well."""
        return self.people[:FAMOUS]

    def document(self, kind: str, index: int, split: str = "train", size: int | None = None) -> str:
        """Document number `index` of one kind: its text and its questions with their answers, ending in a newline.

        `size` sets the difficulty where the kind has one (people in a context, steps of a sum, words in a list).
        Raises ValueError for an unknown kind, split or size.
        """
        item = self._item(kind, index, split, size)
        return item.text + "".join(q.prompt + q.completion for q in item.questions)

    def question(self, kind: str, index: int, split: str = "test", size: int | None = None) -> Question:
        """Question number `index` of one kind, its prompt holding all that is needed. Raises ValueError as `document` does."""
        item = self._item(kind, index, split, size)
        if not item.questions:
            asking = ", ".join(kind for kind in KINDS if self._item(kind, 0, "train", None).questions)
            raise ValueError(f'kind "{kind}" is plain text and asks no question; choose one of {asking}')
        first = item.questions[0]
        return Question(prompt=item.text + first.prompt, answer=first.answer, work=first.work)

    def documents(self, kind: str | None = None, split: str = "train", start: int = 0) -> Iterator[str]:
        """Documents without end, from number `start`; all kinds in turn when none is named."""
        kinds = [kind] if kind else list(KINDS)
        number = start
        while True:
            yield self.document(kinds[number % len(kinds)], number, split)
            number += 1

    def facts_about(self, entity: Entity, split: str = "test") -> list[Question]:
        """Closed-book questions about one entity whose wording belongs to `split`."""
        asked = [_ask(entity, relation, wording) for relation in entity.facts for wording in RELATIONS[relation].questions]
        return [question for question in asked if split_of(question.prompt) == split]

    def _item(self, kind: str, index: int, split: str, size: int | None) -> Item:
        if kind not in KINDS:
            raise ValueError(f'unknown kind of text "{kind}"; choose one of {", ".join(KINDS)}')
        if split not in INVENTED:
            raise ValueError(f'unknown split "{split}"; choose one of {", ".join(INVENTED)}')
        make, smallest, largest = KINDS[kind]
        rng = Random(f"{self.seed}/{kind}/{split}/{index}/{size}")
        size = rng.randint(smallest, largest) if size is None else size
        if not 1 <= size <= 12:
            raise ValueError(f'size {size} of kind "{kind}" is out of range; choose 1–12 (usual: {smallest}–{largest})')
        return make(self, rng, split, size)


def _people(rng: Random, pairs: int) -> list[Entity]:
    """Pairs of siblings share a surname; friends stand side by side in a shuffled ring."""
    firsts = [(they, first) for they, names in FIRST_NAMES.items() for first in names.split()]
    surnames = (LAST_NAMES.split() * 2)[:pairs]
    names = sorted({(f"{first} {last}", they) for last in surnames for they, first in rng.sample(firsts, 4)})
    by_surname: dict[str, list[tuple[str, str]]] = {}
    for name, they in names:
        by_surname.setdefault(name.split()[1], []).append((name, they))
    siblings = [(group[i], group[i + 1]) for group in by_surname.values() for i in range(0, len(group) - 1, 2)][:pairs]
    chosen = [(person, other[0]) for a, b in siblings for person, other in ((a, b), (b, a))]
    rng.shuffle(chosen)
    friends = {chosen[i][0][0]: chosen[i ^ 1][0][0] for i in range(len(chosen))}
    return [
        Entity(name=name, they=they, facts=_random_facts(rng) | {"friend": friends[name], "sibling": sibling})
        for (name, they), sibling in chosen
    ]


def _random_facts(rng: Random) -> dict[str, str]:
    tables = {"job": JOBS, "street": STREETS, "food": FOODS, "pet": PETS, "pet_name": PET_NAMES}
    return {relation: rng.choice(_words(table)) for relation, table in tables.items()} | {"born": str(rng.randint(1940, 2009))}


def _wares(rng: Random) -> list[Entity]:
    stock = [(good, shop) for shop in _words(SHOPS) for good in rng.sample(_words(GOODS), 4)]
    return [Entity(name=f"{good} at {shop}", facts={"price": str(rng.randint(2, 40))}) for good, shop in stock]


def _events(rng: Random) -> list[Entity]:
    names = [happening.format(place) for place in _words(PLACES) for happening in _words(HAPPENINGS)]
    dates = [f"{rng.randint(1, 28)} {rng.choice(_words(MONTHS))} {rng.randint(1960, 2024)}" for _ in names]
    pairs = list(zip(names, dates, strict=True))
    rng.shuffle(pairs)
    return [Entity(name=name, facts={"date": date}) for name, date in pairs]


def _known(rng: Random, entities: list[Entity]) -> Entity:
    """Draw an entity; the first of the list come up far more often than the last."""
    return entities[int(len(entities) * rng.random() ** 3)]


def _until(split: Split, draw: Callable[[], Question]) -> Question:
    """Draw until the question's wording belongs to the split."""
    question = draw()
    while split_of(question.prompt) != split:
        question = draw()
    return question


def _ask(entity: Entity, relation: str, wording: str) -> Question:
    return Question(prompt=f"Question: {wording.format(name=entity.name)}\nAnswer:", answer=entity.facts[relation])


def _describe(rng: Random, entity: Entity, relations: list[str], pronouns: float) -> str:
    """One sentence for each relation; after the first, a pronoun may stand for the name."""
    sentences = []
    for relation in relations:
        wording = rng.choice(RELATIONS[relation].statements)
        stands_in = sentences and wording.startswith("{name}") and rng.random() < pronouns
        sentences.append(wording.format(name=entity.they if stands_in else entity.name, value=entity.facts[relation]))
    return " ".join(sentences)


def _biography(world: World, rng: Random, split: Split, size: int) -> Item:
    person = _known(rng, world.people)
    relations = rng.sample(list(person.facts), min(size, len(person.facts)))
    return Item(_describe(rng, person, relations, pronouns=0.7) + "\n")


def _story(world: World, rng: Random, split: Split, size: int) -> Item:
    person, ware = _known(rng, world.people), _known(rng, world.wares)
    good, shop = ware.name.split(" at ")
    slots = person.facts | ware.facts | {"name": person.name, "They": person.they, "they": person.they.lower()}
    slots |= {"good": good, "shop": shop, "place": rng.choice(_words(PLACES)), "event": _known(rng, world.events).name}
    sentences = [rng.choice(_words(WEATHER)), *(rng.choice(_words(choices)) for choices in STORY)]
    return Item(" ".join(sentences).format(**slots) + "\n")


def _news(world: World, rng: Random, split: Split, size: int) -> Item:
    event, person = _known(rng, world.events), _known(rng, world.people)
    slots = person.facts | {"person": person.name, "place": rng.choice(_words(PLACES)), "n": str(rng.randint(2, 90))}
    rest = [rng.choice(_words(choices)).format(**slots) for choices in NEWS]
    report = [_describe(rng, event, ["date"], pronouns=0.0), rng.choice(_words(WEATHER)), *rest]
    return Item(f"{TOWN} News, {event.facts['date']}. " + " ".join(report) + "\n")


def _closed_book(world: World, rng: Random, split: Split, size: int) -> Item:
    def draw() -> Question:
        entity = _known(rng, rng.choices([world.people, world.wares, world.events], [8, 1, 1])[0])
        relation = rng.choice(list(entity.facts))
        return _ask(entity, relation, rng.choice(RELATIONS[relation].questions))

    return Item("", tuple(_until(split, draw) for _ in range(size)))


def _context(world: World, rng: Random, split: Split, size: int) -> Item:
    """`size` strangers, two or three facts each, then questions about all of them in mixed order."""
    relations = rng.sample(CONTEXT_RELATIONS, rng.randint(2, 3))
    strangers = [
        Entity(name=name, they=rng.choice(["She", "He"]), facts=_random_facts(rng)) for name in rng.sample(INVENTED[split], size)
    ]
    text = " ".join(_describe(rng, stranger, rng.sample(relations, len(relations)), pronouns=0.3) for stranger in strangers)
    asked = [(stranger, relation) for stranger in strangers for relation in relations]
    rng.shuffle(asked)
    return Item(f"Text: {text}\n", tuple(_ask(who, what, rng.choice(RELATIONS[what].questions)) for who, what in asked[:5]))


def _copy(world: World, rng: Random, split: Split, size: int) -> Item:
    pool = [word for words in CATEGORIES.values() for word in words.split()] + rng.sample(INVENTED[split], 60)
    words = ", ".join(rng.sample(pool, size) if rng.random() < 0.8 else [str(rng.randint(0, 99)) for _ in range(size)])
    return Item(f"Repeat: {words}\n", (Question(prompt="Again:", answer=words),))


def _change(rng: Random, total: int) -> tuple[int, bool, str]:
    """A number to add to `total` (True) or to take from it, never below zero, and the calculation in writing."""
    n, gain = rng.randint(1, 9), rng.random() < 0.5
    gain = gain or n > total
    return n, gain, f"{total} {'+' if gain else '-'} {n} = {total + n if gain else total - n}."


def _calculation(world: World, rng: Random, split: Split, size: int) -> Item:
    sums = [_change(rng, rng.randint(0, 30))[2] for _ in range(size)]
    return Item(f"Count: {' '.join(sums)}\n")


def _sum(rng: Random, size: int, steps: bool) -> Question:
    """A word sum of `size` additions and subtractions, never below zero."""
    they = rng.choice(list(FIRST_NAMES))
    name, things = rng.choice(FIRST_NAMES[they].split()), rng.choice(_words(THINGS))
    total = rng.randint(2, 12)
    told, work = [f"{name} has {total} {things}."], []
    for _ in range(size):
        n, gain, calculation = _change(rng, total)
        told.append(rng.choice(_words(GAINS if gain else LOSSES)).format(They=they, n=n))
        work.append(calculation)
        total += n if gain else -n
    problem = f"Question: {' '.join(told)} How many {things} does {name} have now?\n"
    return Question(prompt=problem + ("Steps:" if steps else "Answer:"), answer=str(total), work=" ".join(work) if steps else "")


def _sum_steps(world: World, rng: Random, split: Split, size: int) -> Item:
    return Item("", (_until(split, lambda: _sum(rng, size, steps=True)),))


def _sum_direct(world: World, rng: Random, split: Split, size: int) -> Item:
    return Item("", (_until(split, lambda: _sum(rng, size, steps=False)),))


def _opinion(rng: Random, feeling: str, negated: bool) -> str:
    opposite = {"positive": "negative", "negative": "positive"}
    word = rng.choice(ADJECTIVES[opposite[feeling] if negated else feeling].split())
    return rng.choice(_words(NEGATED_OPINIONS if negated else PLAIN_OPINIONS)).format(noun=rng.choice(NOUNS.split()), word=word)


def _review(world: World, rng: Random, split: Split, size: int) -> Item:
    """`size` reviews of one or two sentences that agree; three sentences in ten say it with a negation.

    Were it half of them, the adjective alone would tell nothing, and a small model would not begin to learn.
    """

    def draw() -> Question:
        feeling = rng.choice(list(ADJECTIVES))
        sentences = [_opinion(rng, feeling, negated=rng.random() < 0.3) for _ in range(rng.randint(1, 2))]
        return Question(prompt=f"Review: {' '.join(sentences)}\nFeeling:", answer=feeling)

    return Item("", tuple(_until(split, draw) for _ in range(size)))


def _sorting(world: World, rng: Random, split: Split, size: int) -> Item:
    """`size` shots of words sorted into two groups under invented label words, then one more word to sort."""
    groups = rng.sample(list(CATEGORIES), 2)
    labels = dict(zip(groups, rng.sample(INVENTED[split], 2), strict=True))
    words = [(word, labels[group]) for group in groups for word in CATEGORIES[group].split()]
    *shots, (asked, answer) = rng.sample(words, size + 1)
    text = "Sort:\n" + "".join(f"- {word}: {label}\n" for word, label in shots)
    return Item(text, (Question(prompt=f"- {asked}:", answer=answer),))


# kind -> how an item is made, and the smallest and largest size drawn when none is asked for
KINDS: dict[str, tuple[Callable[[World, Random, Split, int], Item], int, int]] = {
    "biography": (_biography, 3, 8),
    "story": (_story, 1, 1),
    "news": (_news, 1, 1),
    "closed-book": (_closed_book, 3, 5),
    "context": (_context, 1, 3),
    "copy": (_copy, 3, 12),
    "calculation": (_calculation, 4, 10),
    "sum-steps": (_sum_steps, 2, 4),
    "sum-direct": (_sum_direct, 2, 4),
    "review": (_review, 3, 5),
    "sorting": (_sorting, 5, 12),
}
