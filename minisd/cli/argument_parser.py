"""Words of a command line: read by argparse, with one sentence for each mistake."""

import argparse
import re


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are a ValueError of one sentence, without the usage."""

    def __init__(self, *arguments: object, **more: object):
        more.setdefault("formatter_class", Help)
        super().__init__(*arguments, **more)

    def error(self, message: str):
        raise ValueError(plain_error(message))


class Help(argparse.HelpFormatter):
    """Names of up to 26 letters share a line with what they mean: help fits a screen."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)


def plain_error(message: str) -> str:
    """argparse's message in our words.

    >>> in_a_sentence("argument --sampler: invalid choice: 'dpm' (choose from 'ddim', 'euler')")
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
    """Give the words that are no options their places: the prompt, then the files.

    argparse leaves those that follow an option over where it need not find any. names: of the
    places, the prompt first    needed: every place has to be filled
    Raises ValueError for an unknown option, too many words and, where they are needed, too few.
    """
    unknown = [word for word in extra if word.startswith("-") and word != "-"]
    if unknown:
        raise ValueError(f"there is no option {unknown[0]}: see minisd {options.command} --help.")
    words = [getattr(options, name) for name in names]
    words = [word for word in words if word is not None] + extra
    if len(words) > len(names):
        raise ValueError(too_many_words(options.command, words, len(names) - 1))
    if needed and len(words) < len(names):
        absent = " and ".join(names[len(words) :])
        usage = " ".join(["minisd", options.command, *(name.upper() for name in names)])
        raise ValueError(f"the {absent} is missing: write {usage}.")
    for name, word in zip(names, [*words, *[None] * len(names)]):
        setattr(options, name, word)


def too_many_words(command: str, words: list[str], files: int) -> str:
    """What to say of more words than places. files: how many words follow the prompt"""
    if " " in words[0]:
        return f'"{words[-1]}" is one word too many: put what belongs together in quotes.'
    split = len(words) - files
    prompt = " ".join(words[:split]).strip("'‘’“”\"")
    example = " ".join(["minisd", command, f'"{prompt}"', *words[split:]])
    return f"put the prompt in quotes: {example}"
