"""News in four topics: world, sports, business, science.

    the same frames for every topic ─► only agent and affair tell; where two topics are named, one is brushed aside

Does:     news of one topic, with or without another named beside it, and details that go on with the first.
Leaves out: dates (see `kinds.prose`).
"""

from __future__ import annotations

from ..draw import Draw
from ..grammar import sentences
from ..items import Item
from ..town import Town
from .wording import pick, say, slot_table, two

__all__ = ["AFFAIRS", "AGENTS", "TOPICS", "told", "topic_item", "topic_news"]

TOPICS = ("world", "sports", "business", "science")
AGENTS = {
    "world": two(
        "the minister, the president, the king, the soldiers, the ambassador",
        "the envoy, the general, the parliament, the rebels, the diplomats, the delegation, the chancellor",
    ),
    "sports": two(
        "the team, the captain, the coach, the runners, the champion",
        "the goalkeeper, the referee, the striker, the rowers, the swimmers, the wrestler, the cyclists",
    ),
    "business": two(
        "the company, the bank, the owners, the merchants, the manager",
        "the investors, the broker, the insurer, the wholesaler, the accountant, the lender, the retailers",
    ),
    "science": two(
        "the scientists, the professor, the engineers, the inventor, the laboratory",
        "the chemist, the astronomers, the botanist, the biologists, the geologist, the physicist, the observatory",
    ),
}  # fmt: skip
AFFAIRS = {
    "world": two(
        "the peace talks, the border, the treaty, the election, the war, the new law, the army",
        "the truce, the summit, the embassy, the ceasefire, the sanctions, the refugees, the referendum, the "
        "constitution, the hostages, the throne, the armistice, the uprising",
    ),
    "sports": two(
        "the match, the final, the race, the cup, the goal, the training, the medal",
        "the penalty, the relay, the regatta, the tournament, the marathon, the league, the trophy, the foul, the "
        "javelin, the hurdles, the semifinal, the sprint",
    ),
    "business": two(
        "the price of wheat, the profit, the shares, the wages, the contract, the new shop, the loan",
        "the merger, the dividend, the invoice, the bankruptcy, the auction, the warehouse, the turnover, the "
        "mortgage, the franchise, the interest rate, the takeover, the tariff",
    ),
    "science": two(
        "the experiment, the telescope, the discovery, the medicine, the robot, the moon, the star",
        "the comet, the microscope, the fossil, the satellite, the eclipse, the molecule, the bacteria, the "
        "glacier, the particle, the magnet, the vaccine, the enzyme",
    ),
}  # fmt: skip
slot_table({
    "agent": [word for words in AGENTS.values() for word in words.all],
    "other_agent": [word for words in AGENTS.values() for word in words.all],
    "affair": [word for words in AFFAIRS.values() for word in words.all],
    "other_affair": [word for words in AFFAIRS.values() for word in words.all],
})  # fmt: skip
TOLD = sentences(  # the same frames for every topic, so that only agent and affair tell
    "{agent} spoke about {affair}.", "In {village} {agent} waited for news of {affair}.",
    "Today {affair} is the talk of {village}.",
    "{agent} came to {village} because of {affair}.", "The paper writes about {affair} on page one.",
    "{agent} asked for more time for {affair}.",
    "All eyes were on {affair}.", "{agent} thought about {affair} for {k} days.",
    "After {k} days {agent} had news of {affair}.",
    "A crowd in {village} heard about {affair}.", "{agent} did not want to talk about {affair}.",
    "Last night {agent} told the paper about {affair}.",
)  # fmt: skip
WEIGHED = sentences(
    "Not {other_affair} but {affair} is the talk of the day.",
    "While others spoke about {other_affair}, {agent} spoke about {affair}.",
    "{other_agent} came, but only to hear about {affair}.", "Nobody asked about {other_affair}, because {affair} came first.",
    "{affair}, not {other_affair}, filled the paper.", "{affair} pushed {other_affair} off page one.",
    "Less was said about {other_affair} than about {affair}.",
    "More was said about {affair} than about {other_affair}.", "{other_agent} had to wait, for {agent} spoke about {affair}.",
    "Even {other_agent} talked of nothing but {affair}.",
)  # fmt: skip
SPECIAL = {
    "world": sentences("{country} and {neighbour} signed a paper.", "{country} closed its border to {neighbour}.",
        "{country} has chosen its leaders.", "Ships of {country} were seen off {neighbour}.",
                       "{country} sent help to {neighbour}.", "{country} and {neighbour} cannot agree."),
    "sports": sentences("{team} beat {rival} by {k} points.", "{team} lost to {rival} at home.", "{team} and {rival} drew.",
        "{team} took first place.",
                        "{rival} will play without {k} of their best.", "{team} met {rival} in the rain."),
    "business": sentences("{company} will sell {product} in {village}.", "{company} bought a part of {partner}.",
        "{company} raised its prices by {n} percent.", "{company} will hire {n} people.",
                          "{company} and {partner} will share an office.", "{company} closed its shop in {village}."),
    "science": sentences("A new study looks at {subject}.", "We now know more about {subject}.",
        "A book about {subject} explains how it works.", "Students measured {subject} for {k} years.",
                         "A machine can now count {subject}.", "Nobody had looked at {subject} so closely."),
}  # fmt: skip
DETAILS = {
    "world": sentences("The people of {country} are waiting.", "{country} asked {neighbour} for an answer.",
        "Flags were raised in the capital.", "The talks were held behind closed doors.", "Troops stood at the gates.",
                       "The vote was close.", "The flags of {country} were lowered.",
                       "Letters went from capital to capital.", "Both sides laid down their arms.",
                       "The crown said nothing."),
    "sports": sentences("The fans of {team} sang all night.", "{rival} will try again next year.",
        "The score was close until the whistle.", "The crowd stood up and cheered.", "It was decided in extra time.",
                        "The players trained hard for it.", "The fans of {team} were in tears.",
                        "The ball hit the post twice.", "The winner ran a lap with the flag.", "The stadium was full."),
    "business": sentences("{company} had no comment.", "The shares of {company} moved.",
        "Buyers and sellers kept a close watch.", "It will cost millions of coins.", "The deal was signed by noon.",
                          "Customers will pay the bill.", "The books of {company} show it.", "Traders shouted all morning.",
                          "The sum was paid in coins.", "The shelves were empty by noon."),
    "science": sentences("It may help us to understand {subject}.", "The results were measured twice.",
        "The test will be done again.", "The theory was proved right.", "The data took years to collect.",
                         "Nobody had seen such a thing under the lens.", "The paper on {subject} has many authors.",
                         "It was found by chance in a tube.", "The signal came from far away.",
                         "The temperature was measured every hour."),
}  # fmt: skip


def told(draw: Draw, topic: str, manner: str, split: str, rarity: str = "any") -> str:
    """A piece of news. manner: "plain", "mixed" (another topic is named, but this one counts) or "special" (its own frames)."""
    if manner == "special":
        return say(draw, draw.one(SPECIAL[topic]))
    frame = draw.one(WEIGHED if manner == "mixed" else TOLD)
    other = draw.one([name for name in TOPICS if name != topic]) if manner == "mixed" else topic
    lists = {"affair": AFFAIRS[topic], "agent": AGENTS[topic], "other_affair": AFFAIRS[other], "other_agent": AGENTS[other]}
    named = {name: words for name, words in lists.items() if f"{{{name}}}" in frame}
    return say(draw, frame, {name: pick(draw, frame, words, split, rarity) for name, words in named.items()})


def topic_item(draw: Draw, topic: str, split: str) -> str:
    """One to three sentences of one topic."""
    said = [told(draw, topic, draw.one(("plain", "mixed", "special"), (5, 3, 2)), split)]
    said += [told(draw, topic, "plain", split)] if draw.chance(0.3) else []
    said += [say(draw, draw.one(DETAILS[topic]))] if draw.chance(0.8) else []
    return " ".join(said)


def topic_news(town: Town, draw: Draw, split: str, size: int) -> Item:
    """`size` pieces of news, each of one topic."""
    return Item("".join(f"News: {topic_item(draw, draw.one(TOPICS), split)}\n" for _ in range(size)))
