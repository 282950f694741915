"""Repair broken Unicode and HTML entities, and refuse texts that would take ftfy too long."""

import html
from io import StringIO
from typing import cast

import ftfy
import regex

LONGEST_TEXT = 50_000  # characters: a story of 20 pages
LONGEST_RUN = 1_000  # accents on one letter: the time to sort n accents grows like n squared
MOST_WORK = 1_500_000  # characters that ftfy may read in all its rounds, in about 1 s

PLAIN_LINE = regex.compile(r"[\t\n -~--[&<]]*", regex.VERSION1)  # ftfy does not change such a line


def refuse_long_text(text: str) -> None:
    """Raise ValueError if a text is too long to be read in a few seconds."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"the text has {len(text):,} characters. Shorten it to {LONGEST_TEXT:,} or fewer."
        )
    accents = max(map(len, regex.findall(r"\p{M}+", text)), default=0)
    if accents > LONGEST_RUN:
        what = f"the text has {accents:,} accents on one letter"
        raise ValueError(f"{what}. Leave {LONGEST_RUN:,} or fewer.")


class Limits:
    """ftfy's usual settings. They raise ValueError if ftfy looks them up too often.

    ftfy repairs a line again and again until nothing changes. "&amp;amp;amp;…" changes once for
    each "amp;". ftfy looks up two of its settings in every round, so the rounds are counted here.
    """

    def __init__(self):
        self.usual, self.length, self.work = ftfy.TextFixerConfig(), 0, 0

    def __getattr__(self, name: str) -> object:
        if name in ("normalization", "decode_inconsistent_utf8"):
            self.work += self.length
            if self.work > MOST_WORK:
                what = "the text was encoded over and over, like & in &amp;amp;amp;"
                raise ValueError(f"{what}. Write it in plain letters.")
        return getattr(self.usual, name)

    def _replace(self, **changes: object) -> "Limits":
        self.usual = self.usual._replace(**changes)
        return self


def fix_text(text: str) -> str:
    """Fix broken Unicode, as ftfy.fix_text does. Raises ValueError if it would take too long."""
    refuse_long_text(text)
    limits, fixed = Limits(), []
    for line in StringIO(text):  # as ftfy does
        limits.length = len(line)
        fixed.append(
            line
            if PLAIN_LINE.fullmatch(line)
            else ftfy.fix_text(line, cast(ftfy.TextFixerConfig, limits))
        )
    return "".join(fixed)


def unescape(text: str) -> str:
    """Resolve HTML entities, also those with numbers of more than 4300 digits.

    html.unescape would fail at such numbers.
    """
    return html.unescape(regex.sub(r"&#0*([0-9]{1,8})[0-9]*", r"&#\1", text))
