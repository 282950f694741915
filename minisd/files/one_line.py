"""Make text from strangers safe for a message: file names, tensor names, prompts, other errors."""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1000  # characters of a message; the middle of a longer message is left out
# Emoji and some scripts join letters with one of two characters, U+200C and U+200D. Next to ASCII
# letters, these two characters are invisible.
LETTER = r"[^\x00-\xa0\u2000-\u206f]"
JOINER = re.compile(f"(?<={LETTER})[\u200c\u200d](?={LETTER})")


def one_line(text: object, longest: int = LONGEST) -> str:
    r"""Put a text on one line of at most `longest` characters, without commands to the terminal.

    Some characters are replaced by their codes, such as \x1b: control characters, line breaks,
    marks that change the direction of writing, invisible characters, and halves of UTF-16 pairs.
    Emoji and the letters of all scripts are not replaced. If the line is too long, its middle is
    left out.

    >>> one_line("bad\x1b[2J name\n")
    'bad\\x1b[2J name\\n'
    """
    text = without_middle(str(text), longest)
    return without_middle(re.sub("[^ -~]", visible_form, text), longest)


def visible_form(match: re.Match) -> str:
    r"""The matched character itself if people can see it. Otherwise its code, such as "\x1b"."""
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
    """Turn each error in a `with` block into a ValueError. The new message begins with `name`.

    name: the name of the file or folder that the `with` block reads
    """
    try:
        yield
    except (TypeError, LookupError, ArithmeticError, AttributeError) as error:
        message = f"{name} has a setting of the wrong type: get another copy."
        raise ValueError(one_line(message)) from error
    except ValueError as error:
        raise ValueError(one_line(f"{name} {str(error).removesuffix('.')}.")) from error
