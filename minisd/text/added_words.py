"""Words that were added to a vocabulary, with ids of their own, and how to find them in a text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unicodedata import normalize

import regex

LONGEST_ADDED = 255  # characters, as many as a file's name can have


@dataclass(frozen=True)
class AddedWord:
    """A word with ids of its own, and how to find it: the flags of transformers' AddedToken.

    ids: one id, or one id for each vector of a textual inversion
    normalized: whether the word is found in upper and lower case, with any spaces, and with accents
        composed or not. False: the word is found only exactly as it is written
    single_word: whether the word is found only if no letter, digit or "_" touches it. False: the
        word is also found inside longer words
    lstrip, rstrip: whether the spaces on the left or on the right belong to the word
    special: whether some programs leave out the word when they turn ids into text
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
        """The form of the word that is searched for in a text."""
        return lower_each(compose_accents(self.word)) if self.normalized else self.word


def refuse_bad_word(word: str) -> None:
    """Raise ValueError if the word is too long or empty, or if it holds half a UTF-16 character."""
    if len(word) > LONGEST_ADDED:
        what = f"the word {word[:20]!r}… has more than {LONGEST_ADDED} letters"
        raise ValueError(f"{what}. Choose another.")
    if not word.strip():
        raise ValueError(f"the word {word!r} is empty. Choose another.")
    if regex.search(r"\p{Cs}", word):
        raise ValueError(f"the word {word!r} holds half a character. Choose another.")


def compose_accents(text: str) -> str:
    """Compose accents and make every gap one space, like the first step of CLIPTokenizer."""
    composed = normalize("NFC", text).replace("\u0130", "i\u0307")  # İ is longer in lower case
    return regex.sub(r"\s+", " ", composed)


def lower_each(text: str) -> str:
    """Lower the case of each character alone. The length stays, and every Σ becomes σ."""
    return "".join(character.lower() for character in text)


class Trie:
    """A tree of the words to find, letter by letter. More words do not make the search slower.

    nodes: nested dictionaries: letter -> the dictionary of the letters that may follow. The key
        None has the word that ends at this letter
    """

    def __init__(self):
        self.nodes: dict = {}

    def set_form(self, form: str, word: AddedWord | None) -> None:
        """From now on, find this word by this form.

        word: the word to find. None: find no word by this form
        """
        node = self.nodes
        for letter in form:
            node = node.setdefault(letter, {})
        node[None] = word

    def longest_word(self, text: str, start: int) -> tuple[AddedWord | None, int]:
        """The longest word that starts at this place of a text, and the place where it ends.

        The word is None if no word starts at this place.
        """
        node, found = self.nodes, (None, start + 1)
        for at in range(start, len(text)):
            node = node.get(text[at])
            if node is None:
                break
            if word := node.get(None):
                found = word, at + 1
        return found


def split_at_words(text: str, searched: str, words: Trie) -> Iterator[str | AddedWord]:
    """Split a text into the added words and the text between them, in order.

    If several added words start at the same place, the longest word is taken.

    searched: the form of the text in which the words are searched for. It is as long as `text`
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
        """A dictionary: the form in which a word is found -> the ids of the word."""
        return {form: list(word.ids) for form, word in self.by_form.items()}

    def add(self, word: AddedWord) -> None:
        """From now on, find this word in texts.

        Raises ValueError if the word is empty, too long, taken, or holds half a UTF-16 character.
        """
        refuse_bad_word(word.word)
        if self.taken & {word.form, word.word}:
            raise ValueError(f"the word {word.word!r} is taken. Choose another.")
        self.by_form[word.form] = word
        self.taken |= {word.form, word.word}
        (self.normalized if word.normalized else self.exact).set_form(word.form, word)

    def remove(self, word: str) -> None:
        """Stop finding this word. The word must be a normalized one."""
        old = self.by_form.pop(AddedWord(word, ()).form)
        self.taken -= {old.form, old.word}
        self.normalized.set_form(old.form, None)

    def split_text(self, text: str) -> Iterator[str | AddedWord]:
        """Split a text into the added words and the text between them, in order.

        The words that are not normalized are searched first. The rest of the text is then searched
        for the normalized words.
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
