"""Broken Unicode and HTML entities, repaired within limits: some texts would take ftfy for ever."""

import html
from io import StringIO

import ftfy
import regex

LONGEST_TEXT = 50_000  # characters: a story of 20 pages
LONGEST_RUN = 1_000  # accents on one letter: Python sorts them in a time that grows as the square
MOST_WORK = 1_500_000  # characters that ftfy may go over, each round counted: about 1 s

PLAIN = regex.compile(r"[\t\n -~--[&<]]*", regex.VERSION1)  # ftfy leaves such a line as it is


def refuse_long_text(text: str) -> None:
    """Raise ValueError for a text too long to be read in a few seconds."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"the text has {len(text):,} characters: shorten it to {LONGEST_TEXT:,} or fewer."
        )
    accents = max(map(len, regex.findall(r"\p{M}+", text)), default=0)
    if accents > LONGEST_RUN:
        what = f"the text has {accents:,} accents on one letter"
        raise ValueError(f"{what}: leave {LONGEST_RUN:,} or fewer.")


class Limits:
    """ftfy's usual settings, until it has looked them up too often.

    ftfy repairs a line again until nothing changes: "&amp;amp;amp;…" changes once for each "amp;".
    It looks up two of its settings in every round, so the rounds are counted there.
    """

    def __init__(self):
        self.usual, self.length, self.work = ftfy.TextFixerConfig(), 0, 0

    def __getattr__(self, name: str) -> object:
        if name in ("normalization", "decode_inconsistent_utf8"):
            self.work += self.length
            if self.work > MOST_WORK:
                what = "the text is garbled over and over, as & is in &amp;amp;amp;"
                raise ValueError(f"{what}: write it out in plain letters.")
        return getattr(self.usual, name)

    def _replace(self, **changes: object) -> "Limits":
        self.usual = self.usual._replace(**changes)
        return self


def fix_text(text: str) -> str:
    """What ftfy.fix_text makes of a text. Raises ValueError where that would take too long."""
    refuse_long_text(text)
    limits, fixed = Limits(), []
    for line in StringIO(text):  # ftfy, too, reads line by line
        limits.length = len(line)
        fixed.append(line if PLAIN.fullmatch(line) else ftfy.fix_text(line, limits))
    return "".join(fixed)


def unescape(text: str) -> str:
    """What html.unescape makes of a text; that knows no number of more than 4300 digits."""
    return html.unescape(regex.sub(r"&#0*([0-9]{1,8})[0-9]*", r"&#\1", text))
