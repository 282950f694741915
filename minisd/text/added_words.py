"""Words that were added to a vocabulary, each with ids of its own, and how to find them."""

from collections.abc import Iterator
from dataclasses import dataclass
from unicodedata import normalize

import regex

LONGEST_ADDED = 255  # characters, as many as a file's name has


@dataclass(frozen=True)
class AddedWord:
    """A word with ids of its own, and how it is looked for: the flags of transformers' AddedToken.

    ids: one, or one for each vector of a textual inversion
    normalized: found whatever its case, its spaces and how accents are composed; else as it stands
    single_word: found only where no letter, digit or "_" touches it; else also inside words
    lstrip, rstrip: the spaces on that side belong to it
    special: for programs that leave such words out when they turn ids into text
    """

    word: str
    ids: tuple[int, ...]
    normalized: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    special: bool = False

    @property
    def form(self) -> str:
        """What a text is searched for."""
        return lower_each(compose(self.word)) if self.normalized else self.word


def refuse_bad_word(word: str) -> None:
    """Raise ValueError for a word that no text should be searched for."""
    if len(word) > LONGEST_ADDED:
        raise ValueError(f"the word {word[:20]!r}… has over {LONGEST_ADDED} letters: give another.")
    if not word.strip():
        raise ValueError(f"the word {word!r} is empty: give another.")
    if regex.search(r"\p{Cs}", word):
        raise ValueError(f"the word {word!r} holds half a character: give another.")


def compose(text: str) -> str:
    """Compose accents, make every gap one space: what transformers' CLIPTokenizer does first."""
    composed = normalize("NFC", text).replace("\u0130", "i\u0307")  # grows when it is lowered
    return regex.sub(r"\s+", " ", composed)


def lower_each(text: str) -> str:
    """Lower the case of each character by itself: the length stays, and every sigma is alike."""
    return "".join(character.lower() for character in text)


class Trie:
    """Words by the form that is looked for; the time to find one does not grow with their number.

    nodes: by a letter, the node of what may follow it; by None, the word that ends there
    """

    def __init__(self):
        self.nodes: dict = {}

    def put(self, form: str, word: AddedWord | None) -> None:
        """Find this word by its form from now on, or nothing (None)."""
        node = self.nodes
        for letter in form:
            node = node.setdefault(letter, {})
        node[None] = word

    def longest(self, text: str, start: int) -> tuple[AddedWord | None, int]:
        """The longest word that begins at a place of a text, and where it ends."""
        node, found = self.nodes, (None, start + 1)
        for at in range(start, len(text)):
            node = node.get(text[at])
            if node is None:
                break
            if word := node.get(None):
                found = word, at + 1
        return found


def cut_at(text: str, searched: str, words: Trie) -> Iterator[str | AddedWord]:
    """The words in a text and what is between them, in order. The longest word wins.

    searched: the text as it is compared, of the same length    words: by their form
    """
    done = end = 0
    while end < len(searched):
        start = end
        word, end = words.longest(searched, start)
        touched = searched[max(start - 1, 0) : start] + " " + searched[end : end + 1]
        if word is None or (word.single_word and regex.search(r"\w", touched)):
            continue
        first, last = start, end
        while word.lstrip and first > done and searched[first - 1].isspace():
            first -= 1
        while word.rstrip and last < len(searched) and searched[last].isspace():
            last += 1
        yield from (text[done:first], word)
        done = last
    yield text[done:]
