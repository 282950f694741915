"""Changes argparse in two ways: an error is one sentence, and words may follow options."""

import argparse
import re
from functools import partial
from itertools import zip_longest
from typing import Any, NoReturn

# An option of up to 26 letters and its help share a line, so that --help fits a screen.
HELP = partial(argparse.HelpFormatter, max_help_position=30)


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError with one sentence, and does not print the usage."""

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
    """Assign the words of the command line to their names: the prompt, then the files.

    argparse does not assign words that follow an option. This function assigns them, too.

    extra: the words that argparse did not assign
    names: the names of all words, with the prompt first
    needed: whether every name needs a word

    Raises ValueError if there is an unknown option, or if there are too many words. If `needed` is
    true, also raises ValueError if there are too few words.
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
    """The message if there are too many words. files: number of files that follow the prompt"""
    if " " in words[0]:
        return f'"{words[-1]}" is one word too many: put words that belong together in quotes.'
    split = len(words) - files
    prompt = " ".join(words[:split]).strip("'‘’“”\"")
    example = " ".join(["minisd", command, f'"{prompt}"', *words[split:]])
    return f"put the prompt in quotes: {example}"
