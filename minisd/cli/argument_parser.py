"""Changes argparse in two ways: an error is one sentence, and files may follow options.

An example of the second change: `minisd img2img "a cat" --steps 20 photo.png`.
"""

import argparse
import re
from functools import partial
from itertools import zip_longest
from typing import Any, NoReturn

# An option of up to 26 letters is on the same line as its help text, so that --help fits a screen.
HELP = partial(argparse.HelpFormatter, max_help_position=30)


class Parser(argparse.ArgumentParser):
    """A parser of the command line. Errors become a ValueError, and the usage is not printed."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=HELP, **settings)

    def error(self, message: str) -> NoReturn:
        raise ValueError(plain_error(message))


def plain_error(message: str) -> str:
    """Rewrite argparse's message as one plain sentence.

    >>> plain_error("argument --sampler: invalid choice: 'dpm' (choose from 'ddim', 'euler')")
    '--sampler has no choice "dpm": choose one of ddim, euler.'
    """
    choice = r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)"
    if match := re.fullmatch(choice, message, flags=re.DOTALL):
        name, given, known = match.groups()
        known = known.replace("'", "")
        if name == "COMMAND":
            example = f' Did you mean minisd generate "{given}"?' if " " in given else ""
            return f"there is no command {given!r}: choose one of {known}.{example}"
        return f'{name} has no choice "{given}": choose one of {known}.'
    return message.removeprefix("argument ").rstrip(".") + "."


def place_words(
    options: argparse.Namespace, extra: list[str], names: list[str], needed: bool
) -> None:
    """Store the words of the command line in `options`: first the prompt, then the files.

    argparse does not store words that follow an option. This function stores these words, too.

    extra: the words that argparse did not store
    names: the names under which the words are stored, such as "prompt", "image", "mask"
    needed: whether the user must give a word for every name

    Raises ValueError if there is an unknown option, if there are too many words, or if a needed
    word is missing.
    """
    unknown = [word for word in extra if word.startswith("-") and word != "-"]
    if unknown:
        raise ValueError(f"there is no option {unknown[0]}: see minisd {options.command} --help.")
    words = [getattr(options, name) for name in names]
    words = [word for word in words if word is not None] + extra
    if len(words) > len(names):
        raise ValueError(too_many_words(options.command, words, len(names) - 1))
    absent = names[len(words) :]
    if needed and absent:
        verb = "is" if len(absent) == 1 else "are"
        usage = " ".join(["minisd", options.command, *(name.upper() for name in names)])
        raise ValueError(f"the {' and '.join(absent)} {verb} missing: write {usage}.")
    for name, word in zip_longest(names, words):
        setattr(options, name, word)


def too_many_words(command: str, words: list[str], files: int) -> str:
    """The error message if there are too many words on the command line.

    files: how many files the command has after the prompt
    """
    if " " in words[0]:
        return f'"{words[-1]}" is one word too many: put words that belong together in quotes.'
    split = len(words) - files
    prompt = " ".join(words[:split]).strip("'‘’“”\"")
    example = " ".join(["minisd", command, f'"{prompt}"', *words[split:]])
    return f"there are too many words: put the prompt in quotes, as in {example}"
