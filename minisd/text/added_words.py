"""Words that were added to a vocabulary, with ids of their own, and how to find them in a text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unicodedata import normalize

import regex

LONGEST_ADDED = 255  # characters, as many as a file's name has


@dataclass(frozen=True)
class AddedWord:
    """A word with ids of its own, and how to find it: the flags of transformers' AddedToken.

    ids: one, or one for each vector of a textual inversion
    normalized: found in any case, with any spaces and any way to compose accents; if not, found
        only as it is written
    single_word: found only if no letter, digit or "_" touches it; if not, also inside words
    lstrip, rstrip: the spaces on the left or right belong to the word
    special: some programs leave such words out when they turn ids into text
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
        """The form in which a text is searched for the word."""
        return lower_each(compose_accents(self.word)) if self.normalized else self.word


def refuse_bad_word(word: str) -> None:
    """Raise ValueError if the word is too long, empty, or holds half a UTF-16 character."""
    if len(word) > LONGEST_ADDED:
        what = f"the word {word[:20]!r}… has more than {LONGEST_ADDED} letters"
        raise ValueError(f"{what}. Choose another.")
    if not word.strip():
        raise ValueError(f"the word {word!r} is empty. Choose another.")
    if regex.search(r"\p{Cs}", word):
        raise ValueError(f"the word {word!r} holds half a character. Choose another.")


def compose_accents(text: str) -> str:
    """Compose accents and make every gap one space, as transformers' CLIPTokenizer does first."""
    composed = normalize("NFC", text).replace("\u0130", "i\u0307")  # it is longer in lower case
    return regex.sub(r"\s+", " ", composed)


def lower_each(text: str) -> str:
    """Lower the case of each character alone: the length stays, and every sigma becomes σ."""
    return "".join(character.lower() for character in text)


class Trie:
    """Words by the form in which they are found. More words do not make the search slower.

    nodes: nested dictionaries, letter -> what may follow it. The key None has the word that ends
        there
    """

    def __init__(self):
        self.nodes: dict = {}

    def set_form(self, form: str, word: AddedWord | None) -> None:
        """Find this word, or no word (None), by this form from now on."""
        node = self.nodes
        for letter in form:
            node = node.setdefault(letter, {})
        node[None] = word

    def longest_word(self, text: str, start: int) -> tuple[AddedWord | None, int]:
        """The longest word that starts at this place of a text, or None, and where it ends."""
        node, found = self.nodes, (None, start + 1)
        for at in range(start, len(text)):
            node = node.get(text[at])
            if node is None:
                break
            if word := node.get(None):
                found = word, at + 1
        return found


def split_at_words(text: str, searched: str, words: Trie) -> Iterator[str | AddedWord]:
    """The added words in a text and the text between them, in order. The longest word wins.

    searched: the form of the text that is searched, of the same length
    """
    done = end = 0
    while end < len(searched):
        start = end
        word, end = words.longest_word(searched, start)
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


class AddedWords:
    """The added words of one tokenizer.

    marks: the begin and the end mark, which are never part of an added word
    """

    def __init__(self, marks: Iterable[str]):
        self.by_form: dict[str, AddedWord] = {}
        self.taken = set(marks)
        self.exact, self.normalized = Trie(), Trie()
        for mark in marks:
            self.exact.set_form(mark, AddedWord(mark, (), normalized=False))

    @property
    def ids(self) -> dict[str, list[int]]:
        """The ids of each word, by the form in which it is found."""
        return {form: list(word.ids) for form, word in self.by_form.items()}

    def add(self, word: AddedWord) -> None:
        """Find this word in texts. Raises ValueError if it cannot be found or is taken."""
        refuse_bad_word(word.word)
        if self.taken & {word.form, word.word}:
            raise ValueError(f"the word {word.word!r} is taken. Choose another.")
        self.by_form[word.form] = word
        self.taken |= {word.form, word.word}
        (self.normalized if word.normalized else self.exact).set_form(word.form, word)

    def remove(self, word: str) -> None:
        """Stop finding this word. It must be a normalized one."""
        old = self.by_form.pop(AddedWord(word, ()).form)
        self.taken -= {old.form, old.word}
        self.normalized.set_form(old.form, None)

    def split_text(self, text: str) -> Iterator[str | AddedWord]:
        """The added words in a text and the text between them, in order.

        The exact words are searched first, then the normalized ones in what is left.
        """
        if not self.by_form:
            yield text
            return
        for part in split_at_words(text, text, self.exact):
            if isinstance(part, AddedWord):
                yield part if part.ids else part.word  # a mark has no ids here
            else:
                composed = compose_accents(part)
                yield from split_at_words(composed, lower_each(composed), self.normalized)
