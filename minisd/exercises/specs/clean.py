"""Clean a prompt before it is split into words."""

import html

import ftfy
import regex

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, draw_choice


def clean(text):
    """Repair a text, and write it in lower case with single spaces.

    text: a string    returns: a string
    """
    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    text = regex.sub(r"\s+", " ", text)
    return text.strip().lower()


def without_repair(text):
    text = html.unescape(html.unescape(text))
    return regex.sub(r"\s+", " ", text).strip().lower()


def unescape_once(text):
    text = html.unescape(ftfy.fix_text(text))
    return regex.sub(r"\s+", " ", text).strip().lower()


def lower_first(text):
    return clean(text.lower())


def spaces_first(text):
    text = ftfy.fix_text(regex.sub(r"\s+", " ", text))
    return html.unescape(html.unescape(text)).strip().lower()


def no_entities(text):
    return regex.sub(r"\s+", " ", ftfy.fix_text(text)).strip().lower()


def capitals(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip()


def outer_spaces(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).lower()


def only_spaces(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(" +", " ", text).strip().lower()


def one_for_one(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s", " ", text).strip().lower()


def no_spaces(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", "", text).lower()


def word(g):
    return draw_choice(g, ["cat", "dog", "owl", "apple", "house", "tulip", "robot"])


EXERCISE = Exercise(
    name="clean",
    lesson="05",
    place=1,
    title="Clean a prompt",
    question=(
        "Write `clean(text)`. First repair broken letters with `ftfy.fix_text`. Then replace "
        "HTML entities such as `&lt;` with `html.unescape`. Call it twice, because captions from "
        "the web are often escaped twice. Then replace each run of spaces, tabs and line ends by "
        "one space, remove the spaces at both ends, and use lower case."
    ),
    solution=clean,
    stages=(
        Stage("spaces and capitals", 1, lambda g: [f"  A  {word(g).upper()}\t\n a {word(g)}\n "]),
        Stage("broken letters", 1, lambda g: [f"{word(g)} in a CAFÃ‰, a Ｃａｔ, {word(g)}"]),
        Stage(
            "entities that were escaped twice",
            1,
            lambda g: [f"1 &lt; 2 < {word(g)} &amp;amp; {word(g)}&nbsp;&nbsp;{word(g)}"],
        ),
    ),
    hints=(
        "Follow the order of the question: repair, entities, spaces, lower case.",
        "regex.sub(r'\\s+', ' ', text) replaces each run of spaces, tabs and line ends.",
        "html.unescape(html.unescape(text)) replaces the entities. At the end, text.strip() "
        "removes the outer spaces, and .lower() gives lower case.",
    ),
    mistakes={
        "ftfy.fix_text is missing, so broken letters and wide letters stay.": without_repair,
        "html.unescape runs only once. Entities that were escaped twice need it twice.": (
            unescape_once
        ),
        "The entities are not replaced. Call html.unescape twice.": no_entities,
        "You used lower case before ftfy.fix_text. Then ftfy cannot repair the letters.": (
            lower_first
        ),
        "Replace the entities before the spaces, because &nbsp; becomes a space.": (spaces_first),
        "The text is not in lower case.": capitals,
        "There are still spaces at the ends. Use strip().": outer_spaces,
        "Replace tabs and line ends, too. The pattern \\s+ finds all of them.": only_spaces,
        r"Each space became one space. Replace a whole run, with the pattern \s+.": one_for_one,
        "You removed all spaces. One space should stay between two words.": no_spaces,
    },
    passing="Every prompt goes through this function before it is split into words.",
    difficulty=1,
    minutes=10,
    given="import html\n\nimport ftfy\nimport regex",
    replaces={"minisd.tokenizer.clean": lambda answer: answer},
    draw=draw_cat,
)
