"""Company reports: good, bad or no news, told by what moved and by how the prospects are judged.

    wanted things that rise, unwanted things that fall: good        the other way round: bad        nobody knows: neither

Does:     moves, denied moves, moves against each other, open questions, plain facts, what follows from them.
Leaves out: numbers that must be compared.
"""

from __future__ import annotations

from ..draw import Draw
from ..grammar import sentences
from ..items import Item
from ..town import Town
from ..words import COMPANIES
from .judging import judge
from .wording import KEPT, Slots, Words, kept, pick, say, slot_table, two

__all__ = ["MOVED", "UNWANTED", "WANTED", "fact", "finding", "moving", "report", "reports", "unsettled"]

WANTED = two(
    "profit, income, output, sales, orders, exports",
    "turnover, revenue, earnings, market share, savings, share price, cash reserve",
)
UNWANTED = two(
    "costs, losses, debts, waste, complaints, delays", "unpaid bills, accidents, fines, theft, faults, arrears, lawsuits"
)
# past and plain form, common then rare
UP = (
    "rose/rise grew/grow climbed/climb increased/increase jumped/jump",
    "soared/soar surged/surge swelled/swell doubled/double mounted/mount",
)
DOWN = (
    "fell/fall dropped/drop sank/sink declined/decline shrank/shrink",
    "plunged/plunge dwindled/dwindle slumped/slump tumbled/tumble halved/halve",
)


def _verbs(forms: tuple[str, str], which: int) -> Words:
    common, rare = (tuple(pair.split("/")[which] for pair in part.split()) for part in forms)
    return Words(common, rare)


MOVED = {(up, form): _verbs(UP if up else DOWN, form) for up in (True, False) for form in (0, 1)}
slot_table({
    "measure": (*WANTED.all, *UNWANTED.all), "second_measure": (*WANTED.all, *UNWANTED.all),
    "moved": (*MOVED[True, 0].all, *MOVED[False, 0].all), "second_moved": (*MOVED[True, 0].all, *MOVED[False, 0].all),
    "move": (*MOVED[True, 1].all, *MOVED[False, 1].all),
})  # fmt: skip
MOVES = sentences(
    "The {measure} of {company} {moved} by {n} percent.", "The {measure} of {company} {moved} this year.",
    "At {company} {measure} {moved} again.",
    "In {month} the {measure} of {company} {moved}.", "{company} says that its {measure} {moved}.",
    "For {company} {measure} {moved} by {n} percent in {month}.",
    "The {measure} at the mill of {company} in {village} {moved}.", "The {measure} of {company} {moved} for the second time.",
)  # fmt: skip
NEGATED_MOVES = sentences(
    "The {measure} of {company} did not {move}.", "The {measure} of {company} failed to {move} this year.",
    "At {company} {measure} did not {move} in {month}.",
    "{company} says that its {measure} did not {move}.", "The {measure} of {company} would not {move}.",
    "The {measure} of {company} will hardly {move} this year.",
)  # fmt: skip
OPEN_MOVES = sentences(
    "Nobody knows whether the {measure} of {company} will {move}.", "{company} did not say whether its {measure} will {move}.",
    "The board of {company} will meet if the {measure} should {move}.",
    "It is too early to say whether the {measure} of {company} will {move}.",
    "{company} will report in {month} how far the {measure} may {move}.",
)  # fmt: skip
TWO_MOVES = sentences(
    "Although the {second_measure} {second_moved}, the {measure} of {company} {moved}.",
    "The {measure} of {company} {moved}, although the {second_measure} {second_moved}.",
    "The {second_measure} of {company} {second_moved}, but above all the {measure} {moved}.",
    "Above all the {measure} of {company} {moved}, but the {second_measure} {second_moved} too.",
    "What counts is that the {measure} of {company} {moved}, not that the {second_measure} {second_moved}.",
)  # fmt: skip
FACTS = sentences(
    "The {measure} of {company} stayed at {n} percent.", "{company} makes {product} in {village}.",
    "{company} will show its report on {weekday}.",
    "{company} has {n} workers in {village}.", "{company} and {partner} will meet in {village}.",
    "The contract of {company} runs for {k} years.",
    "{company} sells {product} to {partner}.", "{company} counts its {measure} in {month}.",
    "The mill of {company} in {village} makes {product}.",
    "The value of the {product} was not told.", "{company} has moved its office to {village}.",
    "{company} and {partner} belong to the same owners.",
    "The board of {company} has {k} members.", "The {measure} of {company} did not change this year.",
)  # fmt: skip
REPORTED = {
    True: sentences(
        "The owners are glad.", "{company} will hire {n} people.", "The board thanked everyone.",
        "There will be a gift for every worker.",
        "The bank would gladly lend more.", "{company} will open a second mill.", "People want to own a part of {company}.",
        "The workers will get more pay.", "The board raised a glass.", "This is what the owners had hoped for."),
    False: sentences(
        "The owners are angry.", "{company} will send {n} people home.", "The board blamed everyone.",
        "There will be no gift for the workers.",
        "The bank wants its money back.", "{company} will close a mill.", "People want to get rid of their part of {company}.",
        "The workers will get less pay.", "The board asked for help.", "This is what the owners had feared."),
    None: sentences(
        "The papers were signed on {weekday}.", "The details are in the report.", "The talks go on.", "No numbers were given.",
        "The next report comes in {month}.", "The office is in {village}.", "The board meets on {weekday}.",
        "The rest is as before.", "The report has {n} pages.", "Nothing else is known."),
}  # fmt: skip


def moving(draw: Draw, good: bool | None, manner: str, split: str, rarity: str = "any", slots: Slots | None = None) -> str:
    """A sentence on how a company does: wanted things that rise and unwanted ones that fall are good; None: neither.

    manner: "plain", "negated" (it did not happen), "mixed" (something else speaks against it), "open" (nobody knows).
    """
    slots = {} if slots is None else slots
    frame = draw.one({"plain": MOVES, "negated": NEGATED_MOVES, "open": OPEN_MOVES, "mixed": TWO_MOVES}[manner])
    up = draw.chance(0.5)
    wanted = draw.chance(0.5) if good is None else up == (good != (manner == "negated"))
    verb = "moved" if "{moved}" in frame else "move"
    chosen: Slots = {
        verb: pick(draw, frame, MOVED[up, int(verb == "move")], split, rarity),
        "measure": pick(draw, f"{frame}/measure", _measures(wanted), split, rarity),
    }
    if manner == "mixed":
        second = draw.chance(0.5)
        others = [word for word in _measures(second != good).common if word != chosen["measure"]]
        chosen |= {"second_moved": draw.one(MOVED[second, 0].common), "second_measure": draw.one(others)}
    return _keeping(draw, frame, slots, chosen)


def _measures(wanted: bool) -> Words:
    return WANTED if wanted else UNWANTED


def _keeping(draw: Draw, frame: str, slots: Slots, chosen: Slots) -> str:
    """Say it with the chosen words, remembering only what the whole text keeps to."""
    both = slots | chosen
    text = say(draw, frame, both)
    slots.update({name: both[name] for name in KEPT if name in both})
    return text


def fact(draw: Draw, split: str, slots: Slots | None = None) -> str:
    """A sentence about a company that is neither good nor bad news."""
    slots = {} if slots is None else slots
    frame = draw.one(FACTS)
    chosen: Slots = {}
    if "{company}" in frame and "company" not in slots:
        chosen["company"] = draw.one(kept(frame, COMPANIES, split))
    if "{measure}" in frame:
        chosen["measure"] = pick(draw, f"{frame}/measure", _measures(draw.chance(0.5)), split)
    return _keeping(draw, frame, slots, chosen)


def unsettled(draw: Draw, split: str, rarity: str = "any", slots: Slots | None = None) -> str:
    """A sentence full of good or bad words that leaves the matter open."""
    if draw.chance(0.5):
        return moving(draw, None, "open", split, rarity, slots)
    return judge(draw, "prospect", draw.chance(0.5), "open", split, rarity, slots)


def finding(draw: Draw, good: bool, manner: str, split: str, rarity: str = "any", slots: Slots | None = None) -> str:
    """Good or bad news about a company. manner: "plain", "pair", "negated", "mixed"."""
    if manner == "pair" or (manner != "mixed" and draw.chance(0.35)):
        return judge(draw, "prospect", good, manner, split, rarity, slots)
    return moving(draw, good, manner, split, rarity, slots)


def report(draw: Draw, good: bool | None, split: str) -> str:
    """One to three sentences on one company that agree."""
    slots: Slots = {}
    if good is None:
        told = [fact(draw, split, slots) if draw.chance(0.6) else unsettled(draw, split, slots=slots)]
        told += [fact(draw, split, slots)] if draw.chance(0.4) else []
    else:
        manners = [draw.one(("plain", "pair", "negated", "mixed"), (40, 20, 25, 15)) for _ in range(draw.one((1, 2), (6, 4)))]
        told = [finding(draw, good, manner, split, slots=slots) for manner in manners]
    if draw.chance(0.75):
        told.append(say(draw, draw.one(REPORTED[good]), slots))
    return " ".join(told)


def reports(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` reports on companies."""
    return Item("".join(f"Report: {report(draw, draw.one((True, False, None)), split)}\n" for _ in range(size)))
