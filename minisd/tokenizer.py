"""Text to numbers and back: the byte-level BPE of OpenAI's CLIP, and how to train one.

The official file to match is openai/CLIP clip/simple_tokenizer.py; the algorithm is
Sennrich et al. 2016 (byte-pair encoding), on bytes as in Radford et al. 2019 (GPT-2).
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

# A word is a typed mark, an English ending such as 's, a run of letters, one digit, or a run of
# other characters without spaces. The text is in lower case already. But the pattern also ignores
# case, so that "'ſ" (with a long s) counts as "'s".
WORD_PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def byte_alphabet() -> dict[int, str]:
    """Give each of the 256 bytes a visible character, so that a vocabulary can be read as text.

    Bytes that are visible in Latin-1 stand for themselves and come first ("!" is id 0). The other
    bytes, such as the space, get the characters from U+0100 on.
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
    """The vocabulary in CLIP's order: characters, characters at a word's end, merges, two marks."""
    return [*ALPHABET, *map("".join, merges), BEGIN, END]


def clean(text: str) -> str:
    """Fix broken Unicode, resolve HTML entities, make every gap one space, and lower the case.

    Raises ValueError if the text is so long or so garbled that cleaning it would take too long.
    """
    text = fix_text(text)
    text = unescape(unescape(text))  # captions from the web are often escaped twice
    return regex.sub(r"\s+", " ", text).strip().lower()


def split_words(text: str) -> list[str]:
    """Clean a text and split it into words, written in the byte alphabet.

    Merges happen only inside a word.

    "It's a  Café" -> ["it", "'s", "a", "cafÃ©"]
    """
    return byte_words(clean(text))


def byte_words(text: str) -> list[str]:
    """The words of a clean text, written in the byte alphabet.

    The text is not cleaned again, because cleaning it twice may change it.
    """
    words = WORD_PATTERN.findall(text)
    return ["".join(BYTE_TO_CHARACTER[byte] for byte in word.encode()) for word in words]


def split_letters(word: str) -> list[str]:
    """The characters of a word, the last one with the end-of-word mark. Merges join them.

    "cat" -> ["c", "a", "t</w>"]
    """
    return [*word[:-1], word[-1] + END_OF_WORD]


def join(symbols: list[str], pair: Pair) -> list[str]:
    """Join the pair wherever it occurs, from left to right.

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
    """Join the most frequent pair of neighbours, again and again, and return the joined pairs.

    word_counts: word -> how often it occurs

    If several pairs are equally frequent, the pair with the lowest ids is joined. So the order of
    the texts does not matter. Returns fewer merges than `amount` if every word has become one
    piece.
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
    # unary + leaves out the pairs that no word holds any more
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
    """The JSON that Tokenizer.save writes.

    words: one dictionary for each added word, with the fields of AddedWord
    """

    pad_token: int
    merges: tuple[str, ...]
    words: tuple[dict, ...] = ()
    vocabulary: tuple[str, ...] | None = None
    unk_token: int | None = None


ID_RANGES: dict[str, Range] = dict.fromkeys(("pad_token", "unk_token", "ids"), (0, 10**6))
VOCABULARY_LOCK = Lock()  # threads add and remove words one after another


class Tokenizer:
    """Turns a prompt into the ids of its pieces, and ids into text.

    merges: pairs in the order in which they were learnt
    pad_token: the id that fills a row up to max_length. None: the end mark (SD v1). SD v2 uses 0
    words: added words that belong to the tokenizer. Their ids follow those of the vocabulary
    vocabulary: every piece in the order of the ids. None: CLIP's order. This order is 256
        characters, the same 256 with the end-of-word mark, one piece per merge, the begin mark and
        the end mark
    unk_token: the id for characters that the vocabulary lacks. None: the end mark

    Raises ValueError if a merge does not join two earlier pieces, if the vocabulary has a piece
    twice or lacks a mark, if the ids of the words leave a gap, or if pad_token or unk_token is
    not an id.
    """

    max_length = TextConfig.max_length
    places = max_length - 2  # for pieces; the begin and the end mark take the other two

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
                raise ValueError(f"the merge {pair} must {rule}")
        if len(self.ids) < self.vocab_size or not self.ids.keys() >= {BEGIN, END}:
            raise ValueError(f"a piece occurs twice, or {BEGIN} or {END} is missing: merges {rule}")
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.begin, self.end = self.ids[BEGIN], self.ids[END]
        self.cache: dict[str, list[str]] = {}
        self.words = list(words)
        self.added_words = AddedWords(marks=(BEGIN, END))  # also the words of textual inversion
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
        """The official vocabulary of 49408 pieces, for SD v1 (pad_token=None) and SD v2 (0).

        If a mark is typed into a prompt, the mark becomes its own id, as in OpenAI's tokenizer. SD
        v2 was trained with open_clip's tokenizer. In that tokenizer, the marks are <start_of_text>
        and <end_of_text>.
        """
        with gzip.open(WEIGHTS / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
            lines = islice(file, 1, 1 + CLIP_MERGES)  # the first line is a title
            return cls([tuple(line.split()) for line in lines], pad_token)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, pad_token: int | None = None
    ) -> "Tokenizer":
        """Learn a vocabulary of exactly vocab_size pieces, both marks included.

        Raises ValueError if these texts cannot give so many pieces. The message names the nearest
        possible size.
        """
        words = [word for text in texts for word in split_words(text) if word not in (BEGIN, END)]
        fixed = len(ALPHABET) + 2
        merges = learn_merges(Counter(words), vocab_size - fixed)
        possible = fixed + len(merges)
        if possible != vocab_size:
            raise ValueError(f"the texts cannot give vocab_size {vocab_size}. Ask for {possible}.")
        return cls(merges, pad_token)

    def bpe(self, word: str) -> list[str]:
        """Apply the merges to a word, in the order of learning: "beach" -> ["beach</w>"].

        If a pair occurs several times, the leftmost pair is joined first.
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
        """Add a word with `count` ids of its own. Returns the ids.

        The word is found in upper and lower case. It is also found inside longer words, as in
        transformers: "zib" in "zibs". The ids come after those of the vocabulary, so the text
        transformer needs vectors for these ids (textual inversion).

        Raises ValueError if the word is empty, too long or taken, or if `count` ids do not fit into
        a row.
        """
        if word in self.ids:
            what = f"the word {word!r} is in the vocabulary already"
            raise ValueError(f"{what}. Choose another, such as '<{word}>'.")
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
        """The ids of all pieces of a text, without the begin and the end mark.

        Raises ValueError if the text is so long or so garbled that reading it would take too long.
        """
        return list(chain(*self.id_groups(text)))

    def id_groups(self, text: str) -> list[list[int]]:
        """The ids of a text in groups: one group for each piece, and one for each added word.

        For example, the groups are [[320], [49408, 49409], [2368]] if the second of three words is
        an added word with two ids.

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
        """A row for the text transformer: the begin mark, at most 75 ids, the end mark, padding."""
        row = [self.begin, *ids[: self.places], self.end]
        return row + [self.pad_token] * (self.max_length - len(row))

    def __call__(self, texts: str | list[str]) -> Tensor:
        """Turn each text into a row of ids. If a text is too long, its end is cut off.

        A warning then shows the end that was cut off.

        returns: b 77

        Raises ValueError if there is no text. Also raises what encode() raises.
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
        """The pieces as readable text: "my kitten" -> ["my</w>", "kitten</w>"].

        Bytes that are only a part of a character are shown as \\xf0\\x9f.
        """
        pieces = [self.vocabulary[index] for index in self.encode(text)]
        return [to_bytes(piece).decode(errors="backslashreplace") for piece in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into clean text, up to the first end mark.

        The text has no marks. After each word, there is a space.

        ids: a list or one row of a tensor. Bytes that are only a part of a character become U+FFFD.
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
        """Read the text that to_json() returned. Raises ValueError if the text is anything else."""
        try:
            stored = build_dataclass(StoredTokenizer, parse_json(text), ID_RANGES)
            merges = [tuple(merge.split(" ")) for merge in stored.merges]
            words = [build_dataclass(AddedWord, word, ID_RANGES) for word in stored.words]
            return cls(merges, stored.pad_token, words, stored.vocabulary, stored.unk_token)
        except ValueError as error:
            raise ValueError(f"holds no tokenizer that Tokenizer.save wrote ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write one small JSON file for load(). Raises ValueError if the file cannot be written."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a file that save() wrote. checkpoints/folder_tokenizer.py reads tokenizer/ folders.

        Raises ValueError if the file cannot be read or holds something else.
        """
        try:
            return cls.from_json(read_at_most(Path(path), LARGEST))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise ValueError(f"{path} {error}.") from error


def ids_beyond(groups: list[list[int]], places: int) -> list[int]:
    """The ids that do not fit into `places` places.

    If only a part of a group fits, all ids of the group are returned.
    """
    ends = accumulate(map(len, groups))
    return [
        index for group, end in zip(groups, ends, strict=True) if end > places for index in group
    ]
