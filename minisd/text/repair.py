"""Repair broken Unicode and HTML entities. Refuse texts for which ftfy would need too long."""

import html
from io import StringIO
from typing import cast

import ftfy
import regex

LONGEST_TEXT = 50_000  # characters: a story of 20 pages
LONGEST_RUN = 1_000  # accents on one letter: the time to sort n accents grows like n squared
MOST_WORK = 1_500_000  # characters that ftfy may read in all rounds together: about 1 s

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
        raise ValueError(f"{what}. Keep {LONGEST_RUN:,} or fewer.")


class Limits:
    """The usual settings of ftfy, but with a limit on ftfy's work.

    ftfy repairs a line in several rounds, until nothing changes any more. For "&amp;amp;amp;…", it
    needs one round for each "amp;". In every round, ftfy reads two of its settings. So this class
    counts how often ftfy reads them. Raises ValueError if ftfy reads them too often.

    length: the number of characters in the current line
    work: the number of characters that ftfy has read in all rounds
    """

    def __init__(self):
        self.usual, self.length, self.work = ftfy.TextFixerConfig(), 0, 0

    def __getattr__(self, name: str) -> object:
        if name in ("normalization", "decode_inconsistent_utf8"):
            self.work += self.length
            if self.work > MOST_WORK:
                what = "the text was encoded too many times, like the & in &amp;amp;amp;"
                raise ValueError(f"{what}. Write it in plain letters.")
        return getattr(self.usual, name)

    def _replace(self, **changes: object) -> "Limits":
        self.usual = self.usual._replace(**changes)
        return self


def fix_text(text: str) -> str:
    """Fix broken Unicode, as ftfy.fix_text does. Raises ValueError if this would take too long."""
    refuse_long_text(text)
    limits, fixed = Limits(), []
    for line in StringIO(text):  # ftfy also goes line by line
        limits.length = len(line)
        fixed.append(
            line
            if PLAIN_LINE.fullmatch(line)
            else ftfy.fix_text(line, cast(ftfy.TextFixerConfig, limits))
        )
    return "".join(fixed)


def unescape(text: str) -> str:
    """Replace HTML entities by their characters. For example, "&lt;" or "&#60;" becomes "<".

    An entity may have a number of any length. html.unescape alone fails if a number has more than
    4300 digits.
    """
    return html.unescape(regex.sub(r"&#0*([0-9]{1,8})[0-9]*", r"&#\1", text))
