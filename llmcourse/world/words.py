"""The words of the town: what every slot of a sentence may hold.

Does:     the word lists, the invented names of each split, and `SLOTS`: slot name → the words it takes.
Leaves out: sentences (see `phrases`).
"""

from __future__ import annotations

import zlib

__all__ = ["CATEGORIES", "INVENTED", "SLOTS", "split_of"]

TOWN = "Larkham"


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if "," in text else tuple(text.split())


def split_of(text: str) -> str:
    """The split a text belongs to, by checksum: a tenth validation, a tenth test, the rest train."""
    return ("test", "validation", *["train"] * 8)[zlib.crc32(text.encode("utf-8")) % 10]


FIRST_NAMES = {
    "She": _words(
        "Ada Bella Clara Dora Ella Fay Greta Hanna Ida June Kate Lena Mira Nora Olga Pia Rosa Sara Tilda Vera Wilma Zoe"
    ),
    "He": _words("Adam Boris Carl David Emil Frank Gus Hugo Ivan Jack Karl Leo Max Nils Otto Paul Ralf Sam Tom Victor Will Yan"),
}
LAST_NAMES = _words(
    "Abel Baker Bell Brook Carver Cole Crane Dale Field Finch Ford Frost Gray Green Hale Hart Hill Holt Hunt King Lake Lane "
    "Marsh Mason Miller Moore Nash North Page Park Pond Reed Rose Shaw Short Stone Swift Thorn Vale Wells West White Wood York"
)
JOBS = _words(
    "baker teacher doctor farmer painter sailor tailor singer nurse cook judge miner barber clerk driver gardener printer "
    "plumber writer hunter"
)
STREETS = _words(
    "Mill Lane, Bridge Street, Church Road, Garden Row, Harbour Street, High Street, King's Road, Market Square, North Gate, "
    "Orchard Road, Park Lane, Queen's Row, River Walk, School Lane, Station Road, Tower Hill, Well Street, Willow Road"
)
FOODS = _words(
    "plum cake, fish soup, apple pie, fresh bread, goat cheese, bean stew, rice pudding, roast duck, honey toast, lentil soup, "
    "baked potatoes, nut bread, cherry jam, cold ham, mushroom pie, pear tart"
)
DRINKS = _words("black tea, cold milk, apple juice, strong coffee, hot chocolate, mint tea, ginger beer, lemon water, red wine")
COLOURS = _words("red blue green yellow black white brown purple pink grey golden violet")
HOBBIES = _words(
    "chess, fishing, dancing, knitting, rowing, singing, hiking, sewing, card games, drawing, cooking, star watching, "
    "bird watching"
)
PETS = _words("dog cat horse goat parrot rabbit turtle duck pony mouse canary hedgehog")
PET_NAMES = _words("Pip Rex Coco Bibi Moss Dot Tiger Luna Biscuit Pepper Sunny Button Ginger Nemo Olive Toffee Shadow Daisy")
VILLAGES = _words("Ashby Dunmore Elmsford Foxley Highmoor Kelby Longwater Netherby Oakham Redbourne Stanwick Thornbury")
GOODS = _words(
    "a loaf, a candle, a hat, a pair of boots, a bag of nuts, a map, a lamp, a rope, a jar of honey, a blanket, a kettle, "
    "a basket"
)
SHOPS = _words(
    "the Blue Boat, the Old Barn, the Corner Shop, the Red Lion, the Harbour Store, the Green Door, the Silver Bell, "
    "the Market Hall"
)
PLACES = _words("mill, bridge, church, school, harbour, station, library, town hall, theatre, park, tower, bakery")
HAPPENINGS = (
    "the fire at the {}", "the opening of the {}", "the flood near the {}", "the great feast at the {}", "the repair of the {}",
)  # fmt: skip
MONTHS = _words("January February March April May June July August September October November December")
THINGS = _words("apples coins books eggs stones cards pears buttons shells nuts")
CATEGORIES = {
    "fruit": _words("apple pear plum cherry lemon grape melon peach fig orange banana berry"),
    "animal": _words("dog cat horse goat parrot rabbit turtle duck pony mouse wolf bear"),
    "job": _words("baker teacher doctor farmer painter sailor tailor singer nurse cook judge miner"),
    "tool": _words("hammer saw spade knife needle drill brush axe file wrench shovel chisel"),
    "colour": COLOURS,
    "vehicle": _words("cart boat train bus ship wagon bicycle van truck ferry sledge coach"),
    "clothing": _words("hat coat scarf glove boot shirt skirt sock belt cap jacket apron"),
    "weather": _words("rain snow wind fog storm hail frost sunshine thunder drizzle breeze heat"),
    "body": _words("hand foot nose ear knee arm finger shoulder neck elbow thumb toe"),
    "instrument": _words("drum flute violin piano trumpet harp guitar horn cello organ fiddle whistle"),
}
TEAMS = _words("the Larkham Rovers, the Foxley Stars, the Kelby Lions, the Oakham Eagles, the Ashby Bears, the Netherby Wolves")
COUNTRIES = _words("Norland, Sudria, Westmark, Ostrania, Velmora, Karsia, Tolland, Brevia")
COMPANIES = _words(
    "Larkham Mills, Foxley Glass, Harbour Lines, Kelby Steel, Oakham Paper, Redbourne Foods, Stanwick Motors, Thornbury Wool"
)
SUBJECTS = _words(
    "the moon, old stars, sea ice, river fish, bees, small robots, new batteries, warm air, deep caves, wild wheat, sleep, memory"
)


def _invented() -> list[str]:
    starts = "Ba Be Bo Da De Do Fa Fe Ga Go Ja Jo Ka Ke Ko La Le Lo Ma Me Na Ne Pa Po Ra Ro Sa So Ta Te Va Vo Wa Za Zo"
    middles, ends = "b d f g k l m n p r s t v z", "a e i o u an en il or us"
    return [a + b + c for a in starts.split() for b in middles.split() for c in ends.split()]


INVENTED: dict[str, tuple[str, ...]] = {
    split: tuple(name for name in _invented() if split_of(name) == split) for split in ("train", "validation", "test")
}

FULL_NAMES = tuple(f"{first} {last}" for names in FIRST_NAMES.values() for first in names for last in LAST_NAMES)
EVENTS = tuple(happening.format(place) for place in PLACES for happening in HAPPENINGS)

# Slot → the words it may hold; "#" is a whole number, "$" a first and a last name, "@" an invented name, "&" another's friend,
# brother or sister. Grammar and text share this table.
SLOTS: dict[str, tuple[str, ...]] = {
    "name": ("$", "@", "&", "She", "He"),
    "friend": ("$",),
    "person": ("$",),
    "first": (*FIRST_NAMES["She"], *FIRST_NAMES["He"]),
    "They": ("She", "He"),
    "they": ("she", "he"),
    "their": ("her", "his"),
    "Their": ("Her", "His"),
    "them": ("her", "him"),
    "event": EVENTS,
    "date": tuple(f"# {month} #" for month in MONTHS),
    "month": MONTHS,
    "year": ("#",),
    "n": ("#",),
    "m": ("#",),
    "k": ("#",),
    "price": ("#",),
    "ware": tuple(f"{good} at {shop}" for good in GOODS for shop in SHOPS),
    "job": JOBS,
    "street": STREETS,
    "old_street": STREETS,
    "food": FOODS,
    "drink": DRINKS,
    "colour": COLOURS,
    "hobby": HOBBIES,
    "pet": PETS,
    "pet_name": PET_NAMES,
    "village": VILLAGES,
    "good": GOODS,
    "shop": SHOPS,
    "place": PLACES,
    "things": THINGS,
    "team": TEAMS,
    "rival": TEAMS,
    "country": COUNTRIES,
    "neighbour": COUNTRIES,
    "company": COMPANIES,
    "subject": SUBJECTS,
}
