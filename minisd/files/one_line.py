"""Foreign text made fit for a message: file names, tensor names, prompts, words of libraries."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1000  # characters of a message; the middle of a longer one is left out
# Emoji and some scripts join their letters by these two; next to ASCII they only hide.
LETTER = r"[^\x00-\xa0\u2000-\u206f]"
JOINER = re.compile(f"(?<={LETTER})[\u200c\u200d](?={LETTER})")


def one_line(text: object, longest: int = LONGEST) -> str:
    r"""The text in one line of at most `longest` characters that a terminal shows and not obeys.

    Control characters, line breaks, marks that turn the direction of writing, invisible ones and
    halves of a character become their numbers. Letters of all scripts and emoji stay.

    >>> one_line("bad\x1b[2J name\n")
    'bad\\x1b[2J name\\n'
    """
    text = without_middle(str(text), longest)
    return without_middle(re.sub("[^ -~]", visible, text), longest)


def visible(match: re.Match) -> str:
    """The character that was found, or its number where it would not be seen."""
    character = match[0]
    space = unicodedata.category(character) == "Zs"
    if character.isprintable() or space or JOINER.match(match.string, match.start()):
        return character
    return character.encode("unicode_escape").decode()


def without_middle(text: str, longest: int) -> str:
    half = longest // 2 - 1
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


@contextmanager
def name_errors(name: str) -> Iterator[None]:
    """Errors on what a file or folder says become sentences that begin with its name."""
    try:
        yield
    except (TypeError, LookupError, ArithmeticError, AttributeError) as error:
        wrong = f"{name} has a setting of a wrong kind: get another copy."
        raise ValueError(one_line(wrong)) from error
    except ValueError as error:
        raise ValueError(one_line(f"{name} {str(error).removesuffix('.')}.")) from error
