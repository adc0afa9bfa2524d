"""How a needle is said and asked for. Each wording draws its needles anew, so that no model knows them by heart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from evals.ruler.prose import PEOPLE, ROLES
from evals.ruler.templates import NEEDLE, NIAH, NIAH_PREFIX
from evals.ruler.words import needle_words

CITIES = """
Athens Bergen Bilbao Boston Bremen Cairo Dakar Denver Dublin Geneva Ghent Hanoi Havana Krakow Lima Lisbon Lyon Malmo
Milan Mumbai Nairobi Naples Osaka Oslo Porto Prague Quito Riga Seoul Seville Sofia Tallinn Toronto Tunis Turin Vilnius
""".split()  # noqa: SIM905
SURNAMES = """
Adler Baxter Brandt Calder Dalton Ellery Fenwick Garner Hadley Irving Jarvis Kessler Lambert Mercer Norwood Osborne
Prescott Quinn Ramsey Sutton Thorne Upton Vance Whitlock Yardley
""".split()  # noqa: SIM905
DISHES = [
    *("almond cake", "apple pie", "bean stew", "carrot soup", "cheese toast", "cherry tart", "chestnut bread"),
    *("corn fritters", "cucumber salad", "fig jam", "fish soup", "ginger biscuits", "goat cheese", "leek pie"),
    *("lemon ice", "lentil soup", "mushroom rice", "onion soup", "orange cake", "pear dumplings", "plum pudding"),
    *("potato pancakes", "pumpkin bread", "spinach omelette", "tomato salad", "walnut cookies"),
]
SIGHTS = [
    *("old harbor", "botanical garden", "stone bridge", "clock tower", "north pier", "rose garden", "town hall"),
    *("castle wall", "music pavilion", "river bank", "windmill", "bell tower", "opera house", "fish market"),
    *("lighthouse", "duck pond", "railway museum", "tram depot", "cathedral steps", "water tower", "city gate"),
    *("flower market", "observatory", "marble fountain", "fortress hill", "boat house"),
]
WEATHER = "sunny rainy foggy snowy windy cloudy frosty stormy".split()  # noqa: SIM905
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()  # noqa: SIM905


@dataclass(frozen=True)
class Hidden:
    """One needle. key: what the question names. text: the sentence in the haystack. facts: what an answer is to say."""

    key: str
    text: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Phrases:
    """before: what stands in front of the haystack. question and answer_prefix have {query}, the keys asked for."""

    before: str
    question: str
    answer_prefix: str


@dataclass(frozen=True)
class Wording:
    """needle: has {key} and the name of each fact. one, many: what is said around one needle, and around several.

    key, facts: random numbers -> a text.
    """

    needle: str
    one: Phrases
    many: Phrases
    key: Callable[[Random], str]
    facts: Mapping[str, Callable[[Random], str]]

    def draw(self, count: int, rng: Random) -> list[Hidden]:
        """So many needles with different keys."""
        needles: dict[str, Hidden] = {}
        while len(needles) < count:
            key = self.key(rng)
            facts = {name: draw(rng) for name, draw in self.facts.items()}
            needles.setdefault(key, Hidden(key, self.needle.format(key=key, **facts), tuple(facts.values())))
        return list(needles.values())

    def phrases(self, needles: Sequence[Hidden]) -> Phrases:
        """The texts around these needles, with their keys."""
        said = self.one if len(needles) == 1 else self.many
        *first, last = (needle.key for needle in needles)
        query = f"{', '.join(first)}, and {last}" if first else last
        return Phrases(said.before, said.question.format(query=query), said.answer_prefix.format(query=query))


def read_ruler(one: bool) -> Phrases:
    """The words of RULER's niah tasks, which it makes singular by replacing letters."""
    text = NIAH + NIAH_PREFIX
    kind = "numbers"
    if one:
        text, kind = text.replace("Some", "A").replace("are all", "is").replace("are", "is"), "number"
    before, _, after = text.replace("{type_needle_v}", kind).partition("{context}")
    question, mark, prefix = after.removeprefix("\n").partition("? ")
    return Phrases(before, question + mark, prefix)


def pick(words: Sequence[str]) -> Callable[[Random], str]:
    return lambda rng: rng.choice(words)


READ = "Read the following text with care. I will ask you about it afterwards.\n"

WORDINGS: Mapping[str, Wording] = {
    "number": Wording(
        NEEDLE.replace("{type_needle_v}", "numbers").replace("{value}", "{number}"),
        read_ruler(one=True),
        read_ruler(one=False),
        key=lambda rng: rng.choice(needle_words()),
        facts={"number": lambda rng: str(rng.randint(1_000_000, 9_999_999))},
    ),
    "outing": Wording(
        "The best thing to do in {key} is to eat {dish} at the {sight} on a {weather} day.",
        Phrases(READ, "What is the best thing to do in {query}? ", "The best thing to do in {query} is to"),
        Phrases(READ, "What are the best things to do in {query}? ", "The best things to do in {query} are to"),
        key=pick(CITIES),
        facts={"dish": pick(DISHES), "sight": pick(SIGHTS), "weather": pick(WEATHER)},
    ),
    "meeting": Wording(
        "{key} will meet the {role} on {day} at {time}.",
        Phrases(READ, "Whom will {query} meet, and when? ", "{query} will meet the"),
        Phrases(READ, "Whom will {query} meet, and when? ", "Each of {query} will meet somebody:"),
        key=lambda rng: f"{rng.choice(PEOPLE)} {rng.choice(SURNAMES)}",
        facts={
            "role": pick(ROLES),
            "day": pick(DAYS),
            "time": lambda rng: f"{rng.randint(8, 19)}:{rng.randint(10, 59)}",
        },
    ),
}
"""number: RULER's words, one fact. outing: the form of Kamradt's first needle, three facts. meeting: three facts."""
