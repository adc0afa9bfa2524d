"""English-looking prose from a small grammar: the haystack where RULER takes essays (which cannot be shipped).

Every sentence is drawn anew, so that filler keys are diverse (repeated noise lines flatter diversity-based scorers such
as KeyDiff). No numbers, no hyphens and none of RULER's template words "magic" and "special" occur, so a needle is never
ambiguous.
"""

# ruff: noqa: SIM905

from __future__ import annotations

import random

PEOPLE = """
Anna Boris Clara David Elena Felix Greta Henry Irene Jonas Karen Laura Marco Nora Oscar Paula Robert Sarah Thomas
Victor
""".split()
ROLES = """
artist baker captain carpenter child clerk cook dancer doctor driver engineer farmer fisherman gardener guard guest
historian hunter judge king lawyer librarian mayor merchant miller musician neighbor nurse painter pilot poet printer
queen sailor scholar singer soldier student tailor teacher traveler watchman weaver widow writer
""".split()
THINGS = """
apple arrow bag barrel basket bell blanket boat book bottle box bread bridge broom bucket button cabinet candle card
carpet cart chain chair cheese clock coat coin cup curtain desk dish door drawer drum engine envelope fence flag flute
fork gate glass glove hammer hat kettle key kite knife ladder lamp lantern leaf letter lock machine map mask mirror
needle net newspaper oven page pan parcel pen pencil pipe plate pot purse ring rope saddle sail scarf shirt shoe
shovel spoon stone stove table thread tool towel umbrella violin wagon wallet wheel window wire
""".split()
PLACES = """
attic bakery barn bay beach border cabin canal castle cave cellar chapel church city cliff coast corner courtyard
desert factory farm field forest garden hall harbor hill hotel house inn island kitchen lake library market meadow
mill mine monastery mountain museum office orchard palace park port prison railway ridge river road school shop square
stable station street studio temple theater tower tunnel valley village wall warehouse well
""".split()
QUALITIES = """
ancient bitter black blue brave bright broken brown busy calm careful cheap clean clever cold cool cruel curious dark
deep dirty dry dusty empty famous fine foreign fresh friendly gentle golden gray green happy heavy hidden hollow
honest hot huge humble large lazy light lonely long lost loud narrow new noble old pale patient plain poor proud quiet
red rich rough round sad sharp short shy silent silver simple slow small smooth soft strange strong sweet tall thin
tired tiny warm weak wet white wide wild wise wooden yellow young
""".split()
ACTIONS = """
admired asked borrowed bought broke brought built buried carried caught chose cleaned closed collected counted covered
described discovered drew dropped examined feared fetched filled finished followed forgot found gave guarded hated
held hid ignored kept left lifted liked lost loved made mended moved needed noticed offered opened painted passed
placed praised pulled pushed raised reached received recognized refused remembered repaired replaced returned saved
saw searched sent shared showed sold stole studied threw took touched traded used valued visited wanted washed watched
wrapped
""".split()
MOTIONS = """
arrived came climbed crawled danced disappeared drove fell fled hurried jumped lived marched rested returned rode ran
sailed sang slept stayed stood stopped swam traveled waited walked wandered worked
""".split()
MANNERS = """
again alone badly carefully early easily finally gladly happily often quickly quietly rarely sadly secretly slowly
softly soon suddenly together twice
""".split()
TIMES = """
autumn breakfast dawn dinner evening harvest midnight morning night noon spring summer sunset supper winter
""".split()
OPENERS = "Later Sometimes Yesterday Afterwards Meanwhile Usually Perhaps Once Today Tonight".split()
LINKS = "although and because before but after until when while".split()
SIDES = "above across behind below beside beyond inside near outside over past through toward under".split()
GLUE = "The Every This That At the every this that his her with of was had never".split()

VOCABULARY = sorted({
    word
    for words in (
        PEOPLE, ROLES, THINGS, PLACES, QUALITIES, ACTIONS, MOTIONS, MANNERS, TIMES, OPENERS, LINKS, SIDES, GLUE,
    )
    for word in words
})  # fmt: skip
"""Every word `prose` can write, as it is written there (capitals only where a sentence may begin, and in names)."""


def _thing(rng: random.Random, words: list[str], article: str = "") -> str:
    article = article or rng.choice(("the", "the", "every", "this", "that", "his", "her"))
    if rng.random() < 0.5:
        return f"{article} {rng.choice(QUALITIES)} {rng.choice(words)}"
    return f"{article} {rng.choice(words)}"


def _somebody(rng: random.Random, start: bool) -> str:
    if rng.random() < 0.35:
        return rng.choice(PEOPLE)
    article = rng.choice(("The", "The", "Every", "This", "That") if start else ("the", "the", "every", "this", "that"))
    return _thing(rng, ROLES, article)


def _where(rng: random.Random) -> str:
    return f"{rng.choice(SIDES)} {_thing(rng, PLACES)}"


def _deed(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return f"{rng.choice(ACTIONS)} {_thing(rng, THINGS)}"
    if draw < 0.55:
        return f"{rng.choice(ACTIONS)} {_thing(rng, THINGS)} {_where(rng)}"
    if draw < 0.75:
        return f"{rng.choice(MOTIONS)} {rng.choice(MANNERS)} {_where(rng)}"
    if draw < 0.9:
        return f"{rng.choice(ACTIONS)} {_thing(rng, THINGS)} with {_thing(rng, THINGS)}"
    return f"had never {rng.choice(ACTIONS)} {_thing(rng, THINGS)} of {_somebody(rng, False)}"


def sentence(rng: random.Random) -> str:
    """One sentence of 4 to 22 words, ending in a full stop."""
    draw = rng.random()
    if draw < 0.4:
        return f"{_somebody(rng, True)} {_deed(rng)}."
    if draw < 0.55:
        return f"{_somebody(rng, True)} {_deed(rng)} {rng.choice(LINKS)} {_somebody(rng, False)} {_deed(rng)}."
    if draw < 0.7:
        return f"{rng.choice(OPENERS)} {_somebody(rng, False)} {_deed(rng)}."
    if draw < 0.85:
        return f"At {rng.choice(TIMES)} {_somebody(rng, False)} {_deed(rng)}."
    return f"{_thing(rng, THINGS, 'The')} {rng.choice(SIDES)} {_thing(rng, PLACES)} was {rng.choice(QUALITIES)}."


def prose(words: int, rng: random.Random) -> str:
    """As many whole sentences as fit into `words` words (at least one), joined by blanks. Deterministic given `rng`."""
    sentences = [sentence(rng)]
    count = len(sentences[0].split())
    while True:
        following = sentence(rng)
        count += len(following.split())
        if count > words:
            return " ".join(sentences)
        sentences.append(following)
