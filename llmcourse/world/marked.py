"""Opinions and news with the mark they came with, as such texts do on the web: stars, an outlook, a tag, a vote, a page.

    feeling, topic, stance ─► text ─► mark        "Nobody called the acting admirable. Time stood still."  Stars: 2

A mark says in a word of its own what the text means; two words may say the same (4 and 5 stars). Half of the texts give
themselves away by more than one sentence, half are as short and as hard as the sets of `twins`. No text is in another split of
those sets.

Does:     films, meals and goods with stars, company reports with an outlook, posts with what was meant, opinions with a vote,
          news with the page they stand on.
Leaves out: wrong marks.
Source:   labels that come with the text: Go et al. 2009 (emoticons); star ratings and hashtags in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from .draw import Draw
from .items import Item, Question
from .opinions import companies, judging, remarks, stances, topics
from .town import Town
from .twins import SPLITS, TWINS, examples

__all__ = ["MARKS", "marked"]

# twin -> the mark's name, and the words for each of the twin's classes
MARKS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "twin-ag-news": ("Page", {"World": ("1",), "Sports": ("2",), "Business": ("3",), "Sci/Tech": ("4",)}),
    "twin-auditor": ("Outlook", {"negative": ("bad",), "neutral": ("open",), "positive": ("good",)}),
    "twin-imdb": ("Stars", {"neg": ("1", "2"), "pos": ("4", "5")}),
    "twin-phrasebank": ("Outlook", {"negative": ("bad",), "neutral": ("open",), "positive": ("good",)}),
    "twin-irony": ("Meant", {"non_irony": ("true",), "irony": ("joke",)}),
    "twin-stance": ("Vote", {"none": ("open",), "against": ("against",), "favor": ("for",)}),
}
# How often each kind of text is drawn: often where the class needs two things at once, as what moved and which way, or the
# argument and the question it is about.
WEIGHTS = {
    "twin-ag-news": 2, "twin-auditor": 1, "twin-imdb": 2, "twin-phrasebank": 4, "twin-irony": 2, "twin-stance": 4,
}  # fmt: skip
FEELING = {"negative": False, "neutral": None, "positive": True}
TOPIC = dict(zip(TWINS["twin-ag-news"].labels, topics.TOPICS, strict=True))
THINGS = ("film", "food", "goods")
Writer = Callable[[Draw, str, str], str]  # draw, class, split -> text

LONG: dict[str, Writer] = {
    "twin-ag-news": lambda draw, label, split: topics.topic_item(draw, TOPIC[label], split),
    "twin-auditor": lambda draw, label, split: companies.report(draw, FEELING[label], split),
    "twin-imdb": lambda draw, label, split: judging.review(draw, draw.one(THINGS), label == "pos", split),
    "twin-phrasebank": lambda draw, label, split: companies.report(draw, FEELING[label], split),
    "twin-irony": lambda draw, label, split: remarks.post(draw, label == "irony", split),
    "twin-stance": lambda draw, label, split: stances.opinion(draw, draw.one(tuple(stances.TARGETS)), label, split),
}  # fmt: skip


@cache
def _elsewhere(split: str) -> frozenset[str]:
    """The texts of the twins' other splits."""
    return frozenset(example.text for name in MARKS for other in SPLITS if other != split for example in examples(name, other))


def _text(draw: Draw, name: str, label: str, split: str) -> str:
    if draw.chance(0.5):
        return LONG[name](draw, label, split)
    twin = TWINS[name]
    weights = twin.difficulties[label]
    return twin.write(draw, label, draw.one(tuple(weights), tuple(weights.values())), split)


def _own_text(draw: Draw, name: str, label: str, split: str) -> str:
    """A text that is in no other split of a twin; those thrown away carry no information."""
    while True:
        said, bits = draw.aside(lambda: _text(draw, name, label, split))
        if said not in _elsewhere(split):
            draw.told(bits)
            return said


def marked(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` texts, each asking for its mark; all classes of a kind are equally common."""
    asked = []
    for _ in range(size):
        name = draw.one(tuple(WEIGHTS), tuple(WEIGHTS.values()))
        label = draw.one(TWINS[name].labels)
        title, words = MARKS[name]
        said = _own_text(draw, name, label, split)
        asked.append(Question(prompt=f"{said}\n{title}:", answer=draw.one(words[label])))
    return Item("", tuple(asked))
