"""Turn text into numbers and back, with the byte-level BPE (byte-pair encoding) of OpenAI's CLIP.

The algorithm is from Sennrich et al. 2016. Here, it works on bytes, as in Radford et al. 2019
(GPT-2). The results must match the official file: openai/CLIP clip/simple_tokenizer.py.
"""

import gzip
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, islice, pairwise, takewhile
from math import inf
from pathlib import Path
from threading import Lock

import regex
import torch
from torch import Tensor

from minisd.config import WEIGHTS, TextConfig
from minisd.files.json_files import LARGEST, Range, build_dataclass, parse_json, read_at_most
from minisd.files.whole_files import write_text
from minisd.text.added_words import AddedWord, AddedWords
from minisd.text.long_words import merge_long_word
from minisd.text.repair import fix_text, refuse_long_text, unescape

Pair = tuple[str, ...]  # two neighbouring pieces

CLIP_MERGES = 49152 - 256 - 2  # the official file holds more merges than CLIP uses
CACHED_WORDS = 100_000  # the cache is emptied at this size, so that it cannot fill the memory
LONGEST_CACHED = 100  # characters
LONG_WORD = 200  # characters. In longer words, a heap finds the next merge faster

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"  # distinguishes "cat</w>" from the start of "cats</w>"

# A word is a mark (if the text contains one), an English ending such as 's, a run of letters, one
# digit, or a run of other characters without spaces. The text is already in lower case. But the
# pattern also ignores case, so that "'ſ" (with a long s) counts as "'s".
WORD_PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def byte_alphabet() -> dict[int, str]:
    """Give each of the 256 bytes a visible character, so that people can read a vocabulary.

    If a byte stands for a visible character in Latin-1, it gets this character. These bytes come
    first ("!" has the id 0). The other bytes, such as the space, get the characters from U+0100 on.
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
    """List the vocabulary in CLIP's order.

    First come all characters, then all characters with the end-of-word mark, then the results of
    the merges, then the begin mark and the end mark.
    """
    return [*ALPHABET, *map("".join, merges), BEGIN, END]


def clean(text: str) -> str:
    """Repair Unicode and HTML entities, replace runs of spaces by one space, and use lower case.

    Raises ValueError if it would take too long to clean the text.
    """
    text = fix_text(text)
    text = unescape(unescape(text))  # captions from the web are often escaped twice
    return regex.sub(r"\s+", " ", text).strip().lower()


def split_words(text: str) -> list[str]:
    """Clean a text and split it into words, written in the byte alphabet.

    Later, pieces are merged only inside a word.

    "It's a  Café" -> ["it", "'s", "a", "cafÃ©"]
    """
    return byte_words(clean(text))


def byte_words(text: str) -> list[str]:
    """Split a clean text into words, written in the byte alphabet.

    This function does not clean the text, because cleaning a text twice may change the text again.
    """
    words = WORD_PATTERN.findall(text)
    return ["".join(BYTE_TO_CHARACTER[byte] for byte in word.encode()) for word in words]


def split_letters(word: str) -> list[str]:
    """Split a word into its characters. The last character gets the end-of-word mark.

    "cat" -> ["c", "a", "t</w>"]
    """
    return [*word[:-1], word[-1] + END_OF_WORD]


def join(symbols: list[str], pair: Pair) -> list[str]:
    """Join a pair of neighbouring pieces wherever the pair occurs, from left to right.

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
    """Join the most frequent pair of neighbouring pieces, again and again. Returns these pairs.

    word_counts: word -> how often it occurs
    amount: how many pairs to join. There are fewer if every word has become one piece

    If several pairs are equally frequent, the pair with the lowest ids is joined. So the order of
    the texts does not matter.
    """
    ids = {piece: index for index, piece in enumerate(ALPHABET)}
    words = {word: split_letters(word) for word in word_counts}
    counts: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[str]] = defaultdict(set)  # pair -> the words that hold it

    def tally(word: str, times: int) -> None:
        for pair in pairwise(words[word]):
            counts[pair] += times
            holders[pair].add(word)

    for word, times in word_counts.items():
        tally(word, times)
    merges: list[Pair] = []
    # the + before counts leaves out the pairs that no word holds any more
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
    """The content of a JSON file that Tokenizer.save wrote. The fields are Tokenizer's arguments.

    merges: each merge is two pieces, separated by a space
    words: one dictionary for each added word, with the fields of AddedWord
    """

    pad_token: int
    merges: tuple[str, ...]
    words: tuple[dict, ...] = ()
    vocabulary: tuple[str, ...] | None = None
    unk_token: int | None = None


ID_RANGES: dict[str, Range] = dict.fromkeys(("pad_token", "unk_token", "ids"), (0, 10**6))
VOCABULARY_LOCK = Lock()  # only one thread at a time may add or remove words


class Tokenizer:
    """Turns a prompt into the ids of its pieces, and ids into text.

    merges: the pairs of pieces to join, in the order in which they were learnt
    pad_token: the id that fills a row up to max_length. None: the id of the end mark, as in SD v1.
        (SD v2 uses 0)
    words: added words that belong to the tokenizer. Their ids come after the ids of the vocabulary
    vocabulary: every piece, in the order of the ids. None: CLIP's vocabulary, in this order: 256
        characters, the same 256 characters with the end-of-word mark, one piece for each merge, the
        begin mark, the end mark
    unk_token: the id of pieces that are not in the vocabulary. None: the id of the end mark

    Raises ValueError if a merge does not join two earlier pieces, if the vocabulary has a piece
    twice, if it has no begin mark or no end mark, if there is a gap between the ids of the words,
    or if pad_token or unk_token is not an id of the tokenizer.
    """

    max_length = TextConfig.max_length
    places = max_length - 2  # for pieces. The begin mark and the end mark take the other two

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
        rule = "join two earlier pieces into a new piece"
        for pair in self.merges:
            if len(pair) != 2 or not self.ids.keys() >= {*pair, "".join(pair)}:
                raise ValueError(f"the merge {pair} does not {rule}")
        if len(self.ids) < self.vocab_size or not self.ids.keys() >= {BEGIN, END}:
            raise ValueError(f"the vocabulary has a piece twice, or {BEGIN} or {END} is missing")
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.begin, self.end = self.ids[BEGIN], self.ids[END]
        self.cache: dict[str, list[str]] = {}
        self.words = list(words)
        self.added_words = AddedWords(marks=(BEGIN, END))  # also those of textual inversion
        for word in self.words:
            self._add(word)
        self.pad_token = self.end if pad_token is None else pad_token
        self.unk_token = self.end if unk_token is None else unk_token
        last = len(self.vocabulary) - 1
        for name, index in {"pad_token": self.pad_token, "unk_token": self.unk_token}.items():
            if not 0 <= index <= last:
                raise ValueError(f"the {name} is {index}, but the ids go from 0 to {last}")

    @classmethod
    def clip(cls, pad_token: int | None = None) -> "Tokenizer":
        """Make the official tokenizer, with a vocabulary of 49408 pieces.

        pad_token: None for SD v1, 0 for SD v2

        If a prompt contains a mark, such as <|endoftext|>, the mark becomes one id, as in OpenAI's
        tokenizer. SD v2 was trained with the tokenizer of open_clip, which spells the marks in
        another way: <start_of_text> and <end_of_text>.
        """
        with gzip.open(WEIGHTS / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
            lines = islice(file, 1, 1 + CLIP_MERGES)  # the first line is a title
            return cls([tuple(line.split()) for line in lines], pad_token)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, pad_token: int | None = None
    ) -> "Tokenizer":
        """Learn a vocabulary of exactly vocab_size pieces. This number includes the two marks.

        Raises ValueError if the texts cannot give exactly so many pieces. The message states the
        nearest possible size.
        """
        words = [word for text in texts for word in split_words(text) if word not in (BEGIN, END)]
        fixed = len(ALPHABET) + 2
        merges = learn_merges(Counter(words), vocab_size - fixed)
        possible = fixed + len(merges)
        if possible != vocab_size:
            raise ValueError(f"the texts cannot give {vocab_size} pieces. Choose {possible}.")
        return cls(merges, pad_token)

    def bpe(self, word: str) -> list[str]:
        """Split a word into letters, and merge them into pieces: "beach" -> ["beach</w>"].

        The pair that was learnt first is joined first. If this pair occurs several times, the
        leftmost pair is joined first.
        """
        pieces = split_letters(word)
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

    def add_word(self, word: str, count: int = 1) -> list[int]:
        """Add a word with `count` new ids. Returns these ids.

        The word is found in upper and lower case. It is also found inside longer words, as in
        transformers: "zib" is found in "zibs". The new ids come after all other ids. So the text
        transformer needs a vector for each new id (textual inversion).

        Raises ValueError if the word is empty or too long, if it is already taken, or if `count`
        ids do not fit into a row.
        """
        if word in self.ids:
            what = f"the word {word!r} is in the vocabulary already"
            raise ValueError(f"{what}. Choose another word, such as '<{word}>'.")
        if not 0 < count <= self.places:
            raise ValueError(f"the word {word!r} has {count} vectors. Give it 1 to {self.places}.")
        with VOCABULARY_LOCK:
            ids = range(len(self.vocabulary), len(self.vocabulary) + count)
            self._add(AddedWord(word, tuple(ids)))
        return list(ids)

    def _add(self, word: AddedWord) -> None:
        self.added_words.add(word)
        if word.word not in self.ids:
            first = len(self.vocabulary)
            if word.ids != tuple(range(first, first + len(word.ids))):
                has = f"the word {word.word!r} has the id {word.ids[0]}"
                raise ValueError(f"{has}, but the next free id is {first}")
            letters = "".join(BYTE_TO_CHARACTER[byte] for byte in word.form.encode())
            self.vocabulary += [letters + END_OF_WORD] + [""] * (len(word.ids) - 1)

    def remove_word(self, word: str) -> None:
        """Undo add_word. The ids of the word are not used again."""
        with VOCABULARY_LOCK:
            self.added_words.remove(word)

    def encode(self, text: str) -> list[int]:
        """Turn a text into the ids of its pieces. No begin mark and no end mark is added.

        Raises ValueError if it would take too long to read the text.
        """
        return list(chain(*self.id_groups(text)))

    def id_groups(self, text: str) -> list[list[int]]:
        """Turn a text into groups of ids: one group for each piece, and one for each added word.

        For example, if the second of three words is an added word with two ids, the groups are
        [[320], [49408, 49409], [2368]].

        Raises what encode() raises.
        """
        refuse_long_text(text)
        groups = []
        for part in self.added_words.split_text(text):
            if isinstance(part, AddedWord):
                groups.append(list(part.ids))
            else:
                pieces = self._merged_pieces(clean(part))
                groups += [[self.ids.get(piece, self.unk_token)] for piece in pieces]
        return groups

    def _merged_pieces(self, text: str) -> list[str]:
        pieces = []
        for word in byte_words(text):
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
        """Make a row for the text transformer: begin mark, the first 75 ids, end mark, padding."""
        row = [self.begin, *ids[: self.places], self.end]
        return row + [self.pad_token] * (self.max_length - len(row))

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Turn each text into a row of ids.

        If a text is too long, its end is cut off, and a warning shows this end.

        returns: b 77

        Raises ValueError if `texts` is an empty list. Also raises what encode() raises.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not texts:
            raise ValueError("there is no text. Give one or more.")
        groups = [self.id_groups(text) for text in texts]
        beyond = filter(None, (ids_beyond(one, self.places) for one in groups))
        if lost := [self.decode(ids) for ids in beyond]:
            words = " | ".join(dict.fromkeys(lost))
            warnings.warn(
                f"the prompt is too long, so its end is not read: {words!r}", stacklevel=2
            )
        return torch.tensor([self.row(list(chain(*one))) for one in groups])

    def pieces(self, text: str) -> list[str]:
        """Split a text into pieces that people can read: "my kitten" -> ["my</w>", "kitten</w>"].

        If a piece holds only some bytes of a character, it shows their numbers, as in \\xf0\\x9f.
        """
        pieces = [self.vocabulary[index] for index in self.encode(text)]
        return [to_bytes(piece).decode(errors="backslashreplace") for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text, up to the first end mark. The text contains no marks.

        The words are separated by spaces. If some bytes of a character are missing, the text has
        U+FFFD instead of this character.

        ids: a list, or one row of a tensor
        """
        inner = takewhile(lambda index: index != self.end, (int(index) for index in ids))
        pieces = "".join(self.vocabulary[index] for index in inner if index != self.begin)
        return to_bytes(pieces).decode(errors="replace").replace(END_OF_WORD, " ").strip()

    def to_json(self) -> str:
        """The whole tokenizer as JSON, for example for the metadata of a checkpoint."""
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
        """Make a tokenizer from the text that to_json() returned.

        Raises ValueError if the text is anything else.
        """
        try:
            stored = build_dataclass(StoredTokenizer, parse_json(text), ID_RANGES)
            merges = [tuple(merge.split(" ")) for merge in stored.merges]
            words = [build_dataclass(AddedWord, word, ID_RANGES) for word in stored.words]
            return cls(merges, stored.pad_token, words, stored.vocabulary, stored.unk_token)
        except ValueError as error:
            raise ValueError(f"holds no tokenizer that Tokenizer.save wrote ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file that load() can read.

        Raises ValueError if the file cannot be written.
        """
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer from a file that save() wrote.

        checkpoints/folder_tokenizer.py reads the tokenizer/ folder of a diffusers model.

        Raises ValueError if the file cannot be read, or if save() did not write it.
        """
        try:
            return cls.from_json(read_at_most(Path(path), LARGEST))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise ValueError(f"{path} {error}.") from error


def ids_beyond(groups: list[list[int]], places: int) -> list[int]:
    """List the ids that do not fit into a row with room for only `places` ids.

    If the row has room for only some ids of a group, all ids of this group are listed.
    """
    ends = accumulate(map(len, groups))
    return [
        index for group, end in zip(groups, ends, strict=True) if end > places for index in group
    ]
