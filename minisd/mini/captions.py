"""The grammar of the mini's captions. Captions look like prompts, for example "a flat blue cat".

A caption is always true, but it may be incomplete. For example, a caption may leave out the style
or the background. One caption in ten is empty, so that the model also learns to draw without a
prompt. Classifier-free guidance needs this. Captions are in lower case, because the tokenizer turns
all text into lower case.
"""

from dataclasses import dataclass, replace

import numpy as np

NAMED_COLOURS = {  # sRGB, 0..255
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "grey": (130, 130, 130),
    "red": (215, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 222, 50),
    "green": (45, 165, 70),
    "blue": (45, 90, 220),
    "purple": (125, 50, 175),
    "pink": (250, 150, 195),
    "brown": (120, 72, 36),
    "cyan": (70, 210, 225),
}

# Each entry: a word, and its synonyms.
SYNONYM_ENTRIES = """
cat: kitty, kitten, cat face; dog: puppy, doggy, dog face; rabbit: bunny, bunny rabbit; pig: piggy;
monkey: ape; horse: pony; turtle: tortoise; ladybug: ladybird; palm tree: palm; eggplant: aubergine;
hamburger: burger; doughnut: donut; ice cream: ice cream cone; coffee: cup of coffee;
man: guy, gentleman; woman: lady; man with a beard: bearded man; man with red hair: red-haired man;
woman with red hair: red-haired woman; santa: santa claus; smiley: smiling face; house: home;
car: automobile; airplane: plane; sailboat: boat; earth: globe; football: soccer ball, ball;
basketball: ball; gift: present; lamp: light bulb; grey: gray; purple: violet; cyan: turquoise
"""
SYNONYMS = {
    word.strip(): tuple(others.strip().split(", "))
    for word, others in (entry.split(":") for entry in SYNONYM_ENTRIES.split(";"))
}

WITHOUT_ARTICLE = {"grapes", "cherries", "corn", "broccoli", "cheese", "fries"}

EMPTY_SHARE = 0.10
NAMES_SIZE = 0.80
NAMES_PLACE = 0.70
NAMES_BACKGROUND = 0.85
HAS_PREFIX = 0.08
PREFIXES = ("a picture of", "an image of", "a drawing of", "an emoji of")
BACKGROUND_PHRASES = ("on {a} {colour} background",) * 16 + (
    "{colour} background",
    ", {colour} background",
    "on {colour}",
    "in front of {a} {colour} background",
)
PAIR_PHRASES = ("{left} left of {right}",) * 3 + (
    "{left} to the left of {right}",
    "{right} right of {left}",
    "{right} right of {left}",
    "{right} to the right of {left}",
    "{left} and {right}",
    "{left} next to {right}",
)

SIZE_WORDS = ("small", "small", "tiny", "little")
# A spot is a place for a small thing. The dictionary: name of a spot -> (where the middle of the
# thing is, phrases for the spot). The middle is given as (distance from the left side, distance
# from the top). Both distances are fractions of the canvas.
SPOTS = {
    "middle": ((0.5, 0.5), ("in the middle", "in the centre")),
    "left": ((0.27, 0.5), ("on the left", "at the left")),
    "right": ((0.73, 0.5), ("on the right", "at the right")),
    "top": ((0.5, 0.27), ("at the top",)),
    "bottom": ((0.5, 0.73), ("at the bottom",)),
    "top left": ((0.27, 0.27), ("in the top left corner", "at the top left")),
    "top right": ((0.73, 0.27), ("in the top right corner", "at the top right")),
    "bottom left": ((0.27, 0.73), ("in the bottom left corner", "at the bottom left")),
    "bottom right": ((0.73, 0.73), ("in the bottom right corner", "at the bottom right")),
}


@dataclass(frozen=True)
class Habits:
    """Two probabilities: that a caption names the style, and that a synonym replaces a word."""

    names_style: float = 0.85
    uses_synonym: float = 0.40


HABITS = Habits()
# The tokenizer is trained on captions with fewer style names and synonyms. So these words are rare,
# and the tokenizer splits them into several tokens. CLIP's tokenizer also splits rare words.
PLAIN_HABITS = Habits(names_style=0.50, uses_synonym=0.15)


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing, or two things from left to right.

    tints: the colour of each thing; None: the thing has its natural colours
    spot: the place of a small thing, a key of SPOTS. None: the scene has one large thing in the
        middle, or two things
    """

    things: tuple[str, ...]
    tints: tuple[str | None, ...]
    style: str
    background: str
    spot: str | None = None


def pick(options, rng: np.random.Generator):
    """Pick one of the options. All options are equally likely."""
    return options[int(rng.random() * len(options))]


def article(word: str) -> str:
    """The article for a word: "an" before a vowel sound, else "a"."""
    return "an" if word[0] in "aeiou" and not word.startswith("uni") else "a"


def synonym(word: str, rng: np.random.Generator, habits: Habits = HABITS) -> str:
    """The word itself, or sometimes a synonym of the word."""
    other = word in SYNONYMS and rng.random() < habits.uses_synonym
    return pick(SYNONYMS[word], rng) if other else word


def noun_phrase(words: list[str], thing: str, rng: np.random.Generator) -> str:
    """Join words, and put an article before them: "a flat blue cat".

    Sometimes the article is "the", and sometimes there is no article.

    words: the words of the phrase. The last word is `thing` or a synonym of `thing`
    thing: the name of the thing, as in Scene.things
    """
    phrase = " ".join(words)
    draw = rng.random()
    if draw < 0.10:
        return phrase
    if draw < 0.16:
        return f"the {phrase}"
    return phrase if thing in WITHOUT_ARTICLE else f"{article(phrase)} {phrase}"


def things_phrase(scene: Scene, style: str | None, rng: np.random.Generator, habits: Habits) -> str:
    """A random phrase for all things of the scene, for example "a small cat on the left".

    The phrase names the things and their tints. The phrase may also name the size and the spot of a
    small thing.

    style: the style that the phrase names; None: the phrase does not name the style
    """
    size = pick(SIZE_WORDS, rng) if scene.spot and rng.random() < NAMES_SIZE else None
    phrases = []
    for thing, tint in zip(scene.things, scene.tints, strict=True):
        colour = tint and synonym(tint, rng, habits)
        words = [word for word in (style, size, colour, synonym(thing, rng, habits)) if word]
        phrases.append(noun_phrase(words, thing, rng))
    if len(phrases) == 2:
        return pick(PAIR_PHRASES, rng).format(left=phrases[0], right=phrases[1])
    if scene.spot and rng.random() < NAMES_PLACE:
        return f"{phrases[0]} {pick(SPOTS[scene.spot][1], rng)}"
    return phrases[0]


def caption(scene: Scene, rng: np.random.Generator, habits: Habits = HABITS) -> str:
    """A random caption of the scene: true, often incomplete, sometimes empty."""
    if rng.random() < EMPTY_SHARE:
        return ""
    style = scene.style if rng.random() < habits.names_style else None
    words = things_phrase(scene, style, rng, habits)
    if rng.random() < HAS_PREFIX:
        words = f"{pick(PREFIXES, rng)} {words}"
    if rng.random() < NAMES_BACKGROUND:
        colour = synonym(scene.background, rng, habits)
        where = pick(BACKGROUND_PHRASES, rng).format(a=article(colour), colour=colour)
        words = f"{words} {where}".replace(" ,", ",")
    return words


def full_caption(scene: Scene) -> str:
    """A caption that names everything in the scene: "a flat blue cat on a red background"."""
    size = "small" if scene.spot else ""
    phrases = []
    for thing, tint in zip(scene.things, scene.tints, strict=True):
        phrase = " ".join(word for word in (scene.style, size, tint, thing) if word)
        phrases.append(phrase if thing in WITHOUT_ARTICLE else f"{article(phrase)} {phrase}")
    words, colour = " left of ".join(phrases), scene.background
    if scene.spot:
        words = f"{words} {SPOTS[scene.spot][1][0]}"
    return f"{words} on {article(colour)} {colour} background"


def brief_caption(scene: Scene) -> str:
    """The full caption without style and tints: "a cat on a red background"."""
    return full_caption(replace(scene, style="", tints=(None,) * len(scene.things)))
