"""Text to numbers and back: the byte-level BPE of OpenAI's CLIP, and how to learn such a one.

The official file to match is openai/CLIP clip/simple_tokenizer.py; the algorithm is
Sennrich et al. 2016 (byte-pair encoding), on bytes as in Radford et al. 2019 (GPT-2).
"""

import gzip
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import accumulate, chain, islice, pairwise, takewhile
from math import inf
from pathlib import Path
from threading import Lock
from types import ModuleType

import regex
import torch
from torch import LongTensor

from minisd.config import WEIGHTS, TextConfig
from minisd.files.json_files import LARGEST, build, parse_json, read_at_most
from minisd.files.whole_files import write_text
from minisd.text.added_words import AddedWord, Trie, compose, cut_at, lower_each, refuse_bad_word
from minisd.text.long_words import merge_long_word
from minisd.text.repair import fix_text, refuse_long_text, unescape

Pair = tuple[str, str]

CLIP_MERGES = 49152 - 256 - 2  # the official file holds more than CLIP uses
CACHED_WORDS = 100_000  # then the cache starts again, so that a long run cannot fill the memory
LONGEST_CACHED = 100  # characters
LONG_WORD = 200  # characters: from here on a heap finds the next merge sooner

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"  # tells "cat</w>" from the beginning of "cats</w>"

# Typed marks, English clitics, runs of letters, single digits, runs of anything else but spaces.
# Case is ignored even though the text is lower case by then: "'ſ" (a long s) counts as "'s".
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def byte_alphabet() -> dict[int, str]:
    """Give each of the 256 bytes a visible character, so that a vocabulary can be read as text.

    Bytes that are visible in Latin-1 stand for themselves and come first ("!" is id 0); the others,
    the space among them, borrow the characters from U+0100 on.
    """
    runs = "!~", "¡¬", "®ÿ"
    visible = [byte for first, last in runs for byte in range(ord(first), ord(last) + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = [*map(chr, visible), *map(chr, range(256, 256 + len(hidden)))]
    return dict(zip(visible + hidden, characters, strict=True))


BYTE_TO_CHARACTER = byte_alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
ALPHABET = [*CHARACTER_TO_BYTE, *(character + END_OF_WORD for character in CHARACTER_TO_BYTE)]


def clip_layout(merges: Iterable[Pair]) -> list[str]:
    """The vocabulary as CLIP orders it: characters, the same at a word's end, merges, marks."""
    return [*ALPHABET, *map("".join, merges), BEGIN, END]


def clean(text: str) -> str:
    """Mend broken Unicode, resolve HTML entities, make every gap one space, lower the case."""
    text = fix_text(text)
    text = unescape(unescape(text))  # captions off the web are often escaped twice
    return regex.sub(r"\s+", " ", text).strip().lower()


def split_words(text: str) -> list[str]:
    """Cut a text into the words within which merges happen, spelt in the byte alphabet.

    "It's a  Café" -> ["it", "'s", "a", "cafÃ©"]
    """
    return spelt(clean(text))


def spelt(text: str) -> list[str]:
    """The same for a text that is clean already: to clean it again might change it."""
    words = WORD.findall(text)
    return ["".join(BYTE_TO_CHARACTER[byte] for byte in word.encode()) for word in words]


def spell(word: str) -> list[str]:
    """Begin with single characters, the last of them marked: "cat" -> ["c", "a", "t</w>"]."""
    return [*word[:-1], word[-1] + END_OF_WORD]


def join(symbols: list[str], pair: Pair) -> list[str]:
    """Put the pair together wherever it stands, from left to right.

    join(["l", "o", "o", "o", "k"], ("o", "o")) -> ["l", "oo", "o", "k"]
    """
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def to_bytes(piece: str) -> bytes:
    r"""Undo the byte alphabet: "cafÃ©</w>" -> b"caf\xc3\xa9</w>"."""
    pairs = ((CHARACTER_TO_BYTE.get(character), character) for character in piece)
    return b"".join(c.encode() if byte is None else bytes([byte]) for byte, c in pairs)


def learn_merges(word_counts: dict[str, int], amount: int) -> list[Pair]:
    """Join the most frequent pair of neighbours, again and again: the joins are the vocabulary.

    Of equally frequent pairs the one with the lower ids wins, so the order of the texts is
    without influence. Returns fewer merges than asked for if every word has become one piece.
    """
    ids = {piece: index for index, piece in enumerate(ALPHABET)}
    words = {word: spell(word) for word in word_counts}
    counts: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[str]] = defaultdict(set)  # only these words need a recount

    def tally(word: str, times: int) -> None:
        for pair in pairwise(words[word]):
            counts[pair] += times
            holders[pair].add(word)

    for word, times in word_counts.items():
        tally(word, times)
    merges: list[Pair] = []
    # + leaves out the pairs that have been joined away
    while len(merges) < amount and (present := +counts):
        best = min(present, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids["".join(best)] = len(ids)
        for word in holders.pop(best):
            tally(word, -word_counts[word])
            words[word] = join(words[word], best)
            tally(word, word_counts[word])
    return merges


@dataclass(frozen=True)
class StoredTokenizer:
    """The JSON that Tokenizer.save writes. words: the fields of AddedWord"""

    pad_token: int
    merges: tuple[str, ...]
    words: tuple[dict, ...] = ()
    vocabulary: tuple[str, ...] | None = None
    unk_token: int | None = None


ID_RANGES = dict.fromkeys(("pad_token", "unk_token", "ids"), (0, 10**6))
MARKS = {mark: AddedWord(mark, (), normalized=False) for mark in (BEGIN, END)}
CHANGES = Lock()  # threads add and remove words one after another


class Tokenizer:
    """Turns a prompt into the ids of its pieces, and ids into text.

    merges: pairs in the order learnt
    pad_token: fills a row up to max_length; None = the end mark (SD v1), 0 in SD v2.
    words: added to the vocabulary for good, with the ids that follow it
    vocabulary: every piece in the order of the ids; None = as CLIP: 256 characters, the same 256
    with the end-of-word mark, one piece per merge, then the begin and the end mark.
    unk_token: stands for a character that the vocabulary lacks; None = the end mark
    Raises ValueError for merges that do not build on one another or on the vocabulary, a vocabulary
    with a piece twice or without the marks, words whose ids leave a gap, or a pad_token or
    unk_token out of range.
    """

    max_length = TextConfig.max_length
    room = max_length - 2  # for pieces, beside the begin and the end mark

    def __init__(
        self,
        merges: Iterable[Pair],
        pad_token: int | None = None,
        words: Iterable[AddedWord] = (),
        vocabulary: Iterable[str] | None = None,
        unk_token: int | None = None,
    ):
        self.merges = [tuple(pair) for pair in merges]
        self.vocabulary = list(clip_layout(self.merges) if vocabulary is None else vocabulary)
        self.vocab_size = len(self.vocabulary)
        self.ids = {piece: index for index, piece in enumerate(self.vocabulary)}
        rule = "join two earlier pieces into a new one"
        for pair in self.merges:
            if len(pair) != 2 or not self.ids.keys() >= {*pair, "".join(pair)}:
                raise ValueError(f"merge {pair} must {rule}")
        if len(self.ids) < self.vocab_size or not self.ids.keys() >= {BEGIN, END}:
            raise ValueError(f"a piece is there twice, or {BEGIN} or {END} is not: merges {rule}")
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.begin, self.end = self.ids[BEGIN], self.ids[END]
        self.cache: dict[str, list[str]] = {}
        self.words = list(words)
        self.words_by_form: dict[str, AddedWord] = {}  # these and those of textual inversion
        self.taken, self.exact, self.others = {*MARKS}, Trie(), Trie()
        for mark, word in MARKS.items():
            self.exact.put(mark, word)
        for word in self.words:
            self._add(word)
        self.pad_token = self.end if pad_token is None else pad_token
        self.unk_token = self.end if unk_token is None else unk_token
        last = len(self.vocabulary) - 1
        for name, index in {"pad_token": self.pad_token, "unk_token": self.unk_token}.items():
            if not 0 <= index <= last:
                raise ValueError(f"{name} {index} is no id: they go from 0 to {last}")

    @classmethod
    def clip(cls, pad_token: int | None = None) -> "Tokenizer":
        """The official vocabulary of 49408, as both SD v1 (pad_token=None) and v2 (0) use it.

        A mark typed into a prompt becomes its id, as in OpenAI's tokenizer; open_clip, SD v2's own,
        listens to <start_of_text> and <end_of_text> there.
        """
        with gzip.open(WEIGHTS / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
            lines = islice(file, 1, 1 + CLIP_MERGES)  # the first line is a title
            return cls([tuple(line.split()) for line in lines], pad_token)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, pad_token: int | None = None
    ) -> "Tokenizer":
        """Learn a vocabulary of exactly vocab_size entries, both marks included.

        Raises ValueError naming the nearest possible size where these texts cannot give that.
        """
        words = [word for text in texts for word in split_words(text) if word not in (BEGIN, END)]
        fixed = len(ALPHABET) + 2
        merges = learn_merges(Counter(words), vocab_size - fixed)
        possible = fixed + len(merges)
        if possible != vocab_size:
            raise ValueError(f"these texts give no vocab_size {vocab_size}: ask for {possible}")
        return cls(merges, pad_token)

    def bpe(self, word: str) -> list[str]:
        """Apply the merges to a word, the earliest learnt first: "beach" -> ["beach</w>"].

        Of alike pairs the leftmost comes first.
        """
        pieces = spell(word)
        if len(pieces) > LONG_WORD:
            return merge_long_word(pieces, self.ranks)
        while len(pieces) > 1:
            ranks = [self.ranks.get(pair, inf) for pair in pairwise(pieces)]
            earliest = min(ranks)
            if earliest == inf:
                break
            at = ranks.index(earliest)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return pieces

    @property
    def added(self) -> dict[str, list[int]]:
        """The added words as they are looked for, and their ids."""
        return {form: list(word.ids) for form, word in self.words_by_form.items()}

    def add_word(self, word: str, count: int = 1) -> list[int]:
        """Let the word be `count` ids of its own wherever its letters stand, in any case.

        It is found inside longer words, too, as transformers finds it: "zib" in "zibs".
        The ids lie beyond the vocabulary: someone must know vectors for them (textual inversion).
        Raises ValueError for a word that is empty, taken or longer than a row.
        """
        named = f"the word {word!r}"
        if word in self.ids:
            raise ValueError(f"{named} is in the vocabulary already: give another, as '<{word}>'.")
        if not 0 < count <= self.room:
            raise ValueError(f"{named} has {count} vectors: a row has {self.room} places.")
        with CHANGES:
            ids = range(len(self.vocabulary), len(self.vocabulary) + count)
            self._add(AddedWord(word, tuple(ids)))
        return list(ids)

    def _add(self, word: AddedWord) -> None:
        refuse_bad_word(word.word)
        named = f"the word {word.word!r}"
        if self.taken & {word.form, word.word}:
            raise ValueError(f"{named} is taken: give another.")
        if word.word not in self.ids:
            new = tuple(range(len(self.vocabulary), len(self.vocabulary) + len(word.ids)))
            if word.ids != new:
                one = f"{named} has the id {word.ids[0]}"
                raise ValueError(f"{one}, and its place in the vocabulary is {new[0]}")
            spelt_out = "".join(BYTE_TO_CHARACTER[byte] for byte in word.form.encode())
            self.vocabulary += [spelt_out + END_OF_WORD] + [""] * (len(new) - 1)
        self.words_by_form[word.form] = word
        self.taken |= {word.form, word.word}
        (self.others if word.normalized else self.exact).put(word.form, word)

    def remove_word(self, word: str) -> None:
        """Undo add_word. The ids are not given out again."""
        with CHANGES:
            gone = self.words_by_form.pop(AddedWord(word, ()).form)
            self.taken -= {gone.form, gone.word}
            self.others.put(gone.form, None)

    def _parts(self, text: str) -> Iterator[str | AddedWord]:
        """The text cut at the added words: at those that are looked for as they stand, first."""
        if not self.words_by_form:
            yield text
            return
        for part in cut_at(text, text, self.exact):
            if isinstance(part, AddedWord):
                yield part if part.ids else part.word
            else:
                same = compose(part)
                yield from cut_at(same, lower_each(same), self.others)

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces alone, without begin and end mark, however many there are."""
        return list(chain(*self.units(text)))

    def units(self, text: str) -> list[list[int]]:
        """The ids of a text, those of one added word together: [[320], [49408, 49409], [2368]].

        Raises ValueError for a text too long, or too garbled, to be read in a few seconds.
        """
        refuse_long_text(text)
        units = []
        for part in self._parts(text):
            if isinstance(part, AddedWord):
                units.append(list(part.ids))
            else:
                pieces = self._pieces(clean(part))
                units += [[self.ids.get(piece, self.unk_token)] for piece in pieces]
        return units

    def _pieces(self, text: str) -> list[str]:
        pieces = []
        for word in spelt(text):
            found = self.cache.get(word)
            if found is None:
                found = [word] if word in (BEGIN, END) else self.bpe(word)
                if len(self.cache) >= CACHED_WORDS:
                    self.cache.clear()
                if len(word) <= LONGEST_CACHED:
                    self.cache[word] = found
            pieces += found
        return pieces

    def row(self, ids: list[int]) -> list[int]:
        """Begin mark, at most 75 ids, end mark, padding: what the text tower reads."""
        row = [self.begin, *ids[: self.room], self.end]
        return row + [self.pad_token] * (self.max_length - len(row))

    def __call__(self, texts: str | list[str]) -> LongTensor:
        """One row per text; what is too long is cut, the end mark stays last, a warning names it.

        returns: b 77
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not texts:
            raise ValueError("there is no text: give one or more.")
        units = [self.units(text) for text in texts]
        too_long = filter(None, (ids_beyond(one, self.room) for one in units))
        if lost := [self.decode(ids) for ids in too_long]:
            words = " | ".join(dict.fromkeys(lost))
            warnings.warn(f"the prompt is too long, its end is not read: {words!r}", stacklevel=2)
        return torch.tensor([self.row(list(chain(*one))) for one in units])

    def pieces(self, text: str) -> list[str]:
        """The pieces as one reads them: "my kitten" -> ["my</w>", "kitten</w>"].

        Bytes that make no whole character are shown as \\xf0\\x9f.
        """
        pieces = [self.vocabulary[index] for index in self.encode(text)]
        return [to_bytes(piece).decode(errors="backslashreplace") for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first end mark, without the marks: cleaned, a space after each word.

        ids: a list or one row of a tensor; bytes that make no whole character become U+FFFD.
        """
        inner = takewhile(lambda index: index != self.end, (int(index) for index in ids))
        pieces = "".join(self.vocabulary[index] for index in inner if index != self.begin)
        return to_bytes(pieces).decode(errors="replace").replace(END_OF_WORD, " ").strip()

    def to_json(self) -> str:
        """The whole tokenizer as text, one merge a line, e.g. for a checkpoint's metadata."""
        merges = [" ".join(pair) for pair in self.merges]
        words = {"words": [asdict(word) for word in self.words]} if self.words else {}
        stored = {"pad_token": self.pad_token, **words, "merges": merges}
        if self.unk_token != self.end:
            stored["unk_token"] = self.unk_token
        if self.vocabulary[: self.vocab_size] != clip_layout(self.merges):
            stored["vocabulary"] = self.vocabulary[: self.vocab_size]
        return json.dumps(stored, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Tokenizer":
        """Undo to_json. Raises ValueError for anything else."""
        try:
            stored = build(StoredTokenizer, parse_json(text), ID_RANGES)
            merges = [tuple(merge.split(" ")) for merge in stored.merges]
            words = [build(AddedWord, word, ID_RANGES) for word in stored.words]
            return cls(merges, stored.pad_token, words, stored.vocabulary, stored.unk_token)
        except ValueError as error:
            what = "holds no tokenizer as Tokenizer.save writes it"
            raise ValueError(f"{what}: it {error}") from error

    def save(self, path: str | Path) -> None:
        """Write one small JSON file that load reads. ValueError: it cannot be written."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a file that save wrote, or the tokenizer/ folder of a diffusers model.

        Raises ValueError where the file or folder holds something else.
        """
        path = Path(path)
        if path.is_dir():
            return folder_code().read_tokenizer(path)
        try:
            return cls.from_json(read_at_most(path, LARGEST))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise ValueError(f"{path} {error}.") from error

    def save_folder(self, path: str | Path) -> None:
        """Write a diffusers model's tokenizer/ folder, which transformers' CLIPTokenizer opens."""
        folder_code().write_tokenizer(Path(path), self)


def ids_beyond(units: list[list[int]], room: int) -> list[int]:
    """The ids of what does not fit into the room, words that are cut included."""
    ends = accumulate(map(len, units))
    return [index for unit, end in zip(units, ends) if end > room for index in unit]


def folder_code() -> ModuleType:
    """The code for other programs' folders; it builds on this file, so it is imported late."""
    return import_module("minisd.checkpoints.tokenizer_folder")


def __getattr__(name: str) -> object:
    """Prompt weights moved to minisd/prompt.py; they are still found here."""
    if name in ("chunks", "parse_weights", "weighted", "emphasize", "WEIGHTED"):
        return getattr(import_module("minisd.prompt"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
