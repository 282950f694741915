"""Find added words in a text. An added word has its own ids, and is not split into pieces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unicodedata import normalize

import regex

LONGEST_ADDED = 255  # characters. The name of a file may have as many


@dataclass(frozen=True)
class AddedWord:
    """A word with its own ids. The flags say how to find the word, as in transformers' AddedToken.

    ids: one id, or one id for each vector of a textual inversion
    normalized: if True, the search ignores upper and lower case, the number of spaces, and whether
        an accent is a separate character. If False, only the exact spelling is found
    single_word: if True, the word is found only if no letter, digit or "_" is directly before or
        after the word. If False, the word is also found inside longer words
    lstrip: whether spaces before the word are removed from the text, together with the word
    rstrip: whether spaces after the word are removed from the text, together with the word
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
        """The spelling to search for. If the word is normalized, the spelling is in lower case."""
        return lower_each(compose_accents(self.word)) if self.normalized else self.word


def refuse_bad_word(word: str) -> None:
    """Raise ValueError if the word is too long, if it is empty, or if it is not valid Unicode."""
    if len(word) > LONGEST_ADDED:
        what = f"the word {word[:20]!r}… has more than {LONGEST_ADDED} letters"
        raise ValueError(f"{what}. Choose another word.")
    if not word.strip():
        raise ValueError(f"the word {word!r} is empty. Choose another word.")
    if regex.search(r"\p{Cs}", word):
        raise ValueError(f"the word {word!r} holds half a character. Choose another word.")


def compose_accents(text: str) -> str:
    """Write letters with accents as one character, and replace each run of spaces by one space.

    The first step of transformers' CLIPTokenizer does the same.
    """
    composed = normalize("NFC", text).replace("\u0130", "i\u0307")  # İ is longer in lower case
    return regex.sub(r"\s+", " ", composed)


def lower_each(text: str) -> str:
    """Turn every character into lower case, one by one.

    So every Σ becomes σ. (In "ΟΣ".lower(), the Σ at the end of the word becomes ς.) The length of
    the text does not change.
    """
    return "".join(character.lower() for character in text)


class Trie:
    """A tree that finds words in a text, letter by letter. Many words are found as fast as few.

    nodes: dictionaries inside dictionaries. A letter leads to the dictionary of the next letters.
        Where a word ends, the key None leads to the word. For example, the words A = "a" and
        B = "at" give {"a": {None: A, "t": {None: B}}}
    """

    def __init__(self):
        self.nodes: dict = {}

    def set_form(self, form: str, word: AddedWord | None) -> None:
        """Put a word into the tree, or remove a word from the tree.

        form: the spelling of the word in the text
        word: the word that is found where the text has this spelling. None: no word is found there
        """
        node = self.nodes
        for letter in form:
            node = node.setdefault(letter, {})
        node[None] = word

    def longest_word(self, text: str, start: int) -> tuple[AddedWord | None, int]:
        """The longest word that begins at text[start], and the index of the character after it.

        If no word begins at text[start], returns None and start + 1.
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
    """Yield the added words in a text, and the pieces of text between them, in order.

    If several added words begin at the same character, only the longest of them is yielded.

    searched: the text to search in, for example `text` in lower case. It has the length of `text`
    words: the words to find
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

    marks: the begin mark and the end mark of the tokenizer. Inside a mark, no added word is found
    """

    def __init__(self, marks: Iterable[str]):
        self.by_form: dict[str, AddedWord] = {}
        self.taken = set(marks)
        self.exact, self.normalized = Trie(), Trie()
        for mark in marks:
            self.exact.set_form(mark, AddedWord(mark, (), normalized=False))

    @property
    def ids(self) -> dict[str, list[int]]:
        """A dictionary: the spelling to search for -> the ids of the word."""
        return {form: list(word.ids) for form, word in self.by_form.items()}

    def add(self, word: AddedWord) -> None:
        """Add a word, so that split_text() finds it.

        Raises ValueError if the word is empty or too long, if it is already added, if it is a mark,
        or if it is not valid Unicode.
        """
        refuse_bad_word(word.word)
        if self.taken & {word.form, word.word}:
            raise ValueError(f"the word {word.word!r} is already taken. Choose another word.")
        self.by_form[word.form] = word
        self.taken |= {word.form, word.word}
        (self.normalized if word.normalized else self.exact).set_form(word.form, word)

    def remove(self, word: str) -> None:
        """Remove a word, so that split_text() does not find it any more.

        This is possible only for a normalized word.
        """
        old = self.by_form.pop(AddedWord(word, ()).form)
        self.taken -= {old.form, old.word}
        self.normalized.set_form(old.form, None)

    def split_text(self, text: str) -> Iterator[str | AddedWord]:
        """Yield the added words in a text, and the pieces of text between them, in order.

        Words that are not normalized are found first. After that, the normalized words are found in
        the rest of the text.
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
