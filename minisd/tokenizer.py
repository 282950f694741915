"""Text to numbers and back: the byte-level BPE of OpenAI's CLIP, and how to learn such a one.

The official file to match is openai/CLIP clip/simple_tokenizer.py; the algorithm is
Sennrich et al. 2016 (byte-pair encoding), on bytes as in Radford et al. 2019 (GPT-2).
"""

import gzip
import html
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice, pairwise, takewhile
from math import inf
from pathlib import Path

import ftfy
import regex
import torch
from einops import rearrange, reduce
from torch import LongTensor, Tensor

from minisd.config import WEIGHTS, TextConfig

Pair = tuple[str, str]

CLIP_MERGES = 49152 - 256 - 2  # the official file holds more than CLIP uses
CACHED_WORDS = 100_000  # then the cache starts afresh, so that a long run cannot fill the memory

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


def clean(text: str) -> str:
    """Mend broken Unicode, resolve HTML entities, make every gap one space, lower the case."""
    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))  # captions off the web are often escaped twice
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
    return bytes(CHARACTER_TO_BYTE[character] for character in piece)


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
    while len(merges) < amount:
        present = +counts  # without the pairs that have been joined away
        if not present:
            break
        best = min(present, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids["".join(best)] = len(ids)
        for word in holders.pop(best):
            tally(word, -word_counts[word])
            words[word] = join(words[word], best)
            tally(word, word_counts[word])
    return merges


def standing_alone(word: str) -> str:
    """A pattern that finds the word, but not as a part of a longer one: "toy" not in "toys"."""
    before = r"(?<!\w)" if regex.match(r"\w", word) else ""
    after = r"(?!\w)" if regex.match(r"\w", word[-1]) else ""
    return before + regex.escape(word) + after


class Tokenizer:
    """Turns a prompt into the ids of its pieces, and ids into text.

    merges: pairs in the order learnt. The ids: 256 characters, the same 256 with the end-of-word
    mark, one per merge, then the begin and the end mark.
    pad_token: fills a row up to max_length; None = the end mark (SD v1), 0 in SD v2.
    Raises ValueError for merges that do not build on one another, or a pad_token out of range.
    """

    max_length = TextConfig.max_length
    room = max_length - 2  # for pieces, beside the begin and the end mark

    def __init__(self, merges: Iterable[Pair], pad_token: int | None = None):
        self.merges = [tuple(pair) for pair in merges]
        self.ids = {piece: index for index, piece in enumerate(ALPHABET)}
        for pair in self.merges:
            piece = "".join(pair)
            if len(pair) != 2 or piece in self.ids or not self.ids.keys() >= set(pair):
                raise ValueError(f"merge {pair} must join two earlier pieces into a new one")
            self.ids[piece] = len(self.ids)
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.begin = self.ids[BEGIN] = len(self.ids)
        self.end = self.ids[END] = len(self.ids)
        self.vocabulary = list(self.ids)
        self.vocab_size = len(self.vocabulary)
        self.pad_token = self.end if pad_token is None else pad_token
        if not 0 <= self.pad_token < self.vocab_size:
            raise ValueError(f"pad_token {pad_token} is no id: they go from 0 to {self.end}")
        self.cache: dict[str, list[str]] = {}
        self.added: dict[str, list[int]] = {}  # words of textual inversion and their ids

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
        """Apply the merges to a word, the earliest learnt first: "beach" -> ["beach</w>"]."""
        symbols = spell(word)
        while len(symbols) > 1:
            first = min(pairwise(symbols), key=lambda pair: self.ranks.get(pair, inf))
            if first not in self.ranks:
                break
            symbols = join(symbols, first)
        return symbols

    def add_word(self, word: str, count: int = 1) -> list[int]:
        """Let the word be `count` ids of its own wherever it stands, whatever its letters.

        The ids lie beyond the vocabulary: someone must know vectors for them (textual inversion).
        Raises ValueError for a word that is empty or added already.
        """
        word = clean(word)
        if not word or word in self.added:
            raise ValueError(f"the word {word!r} is {'taken' if word else 'empty'}: give another.")
        ids = [len(self.vocabulary) + i for i in range(count)]
        piece = "".join(BYTE_TO_CHARACTER[byte] for byte in word.encode()) + END_OF_WORD
        self.vocabulary += [piece] + [""] * (count - 1)
        self.added[word] = ids
        return ids

    def remove_word(self, word: str) -> None:
        """Undo add_word. The ids are not given out again."""
        del self.added[clean(word)]

    def _parts(self, text: str) -> list[str]:
        """The text cut at the added words, these by themselves."""
        text = clean(text)
        if not self.added:
            return [text]
        longest_first = sorted(self.added, key=len, reverse=True)
        return regex.split("(" + "|".join(map(standing_alone, longest_first)) + ")", text)

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces alone, without begin and end mark, however many there are."""
        ids = []
        for part in self._parts(text):
            ids += self.added.get(part) or [self.ids[piece] for piece in self._pieces(part)]
        return ids

    def _pieces(self, text: str) -> list[str]:
        pieces = []
        for word in spelt(text):
            if word not in self.cache:
                if len(self.cache) >= CACHED_WORDS:
                    self.cache.clear()
                self.cache[word] = [word] if word in (BEGIN, END) else self.bpe(word)
            pieces += self.cache[word]
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
        ids = [self.encode(text) for text in texts]
        lost = [self.decode(one[self.room :]) for one in ids if len(one) > self.room]
        if lost:
            words = " | ".join(dict.fromkeys(lost))
            warnings.warn(f"the prompt is too long, its end is not read: {words!r}", stacklevel=2)
        return torch.tensor([self.row(one) for one in ids])

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
        stored = {"pad_token": self.pad_token, "merges": merges}
        return json.dumps(stored, ensure_ascii=False, indent=0)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Tokenizer":
        """Undo to_json. Raises ValueError for anything else."""
        try:
            stored = json.loads(text)
            merges = [tuple(merge.split(" ")) for merge in stored["merges"]]
            pad_token = int(stored["pad_token"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no tokenizer as Tokenizer.save writes it ({error!r})") from error
        return cls(merges, pad_token)

    def save(self, path: str | Path) -> None:
        """Write one small JSON file that load reads."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a file that save wrote, or the tokenizer/ folder of a diffusers model.

        Raises ValueError where the file or folder holds something else.
        """
        path = Path(path)
        try:
            return read_folder(path) if path.is_dir() else cls.from_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save_folder(self, path: str | Path) -> None:
        """Write a diffusers model's tokenizer/ folder, which transformers' CLIPTokenizer opens."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        merges = ["#version: 0.2", *(" ".join(pair) for pair in self.merges), ""]
        (path / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.max_length,
            "bos_token": BEGIN,
            "eos_token": END,
            "unk_token": END,
            "pad_token": self.vocabulary[self.pad_token],
        }
        for name, content in {"vocab": self.ids, "tokenizer_config": settings}.items():
            text = json.dumps(content, ensure_ascii=False, indent=2)
            (path / f"{name}.json").write_text(text, encoding="utf-8")


def read_folder(path: Path) -> Tokenizer:
    """Read vocab.json and merges.txt, or the one tokenizer.json that transformers 5 writes.

    Raises ValueError where both are absent, or the ids are not laid out as CLIP's.
    """
    if (path / "merges.txt").exists():
        ids = _read_json(path / "vocab.json")
        lines = (path / "merges.txt").read_text(encoding="utf-8").strip().split("\n")
        merges = [tuple(line.split()) for line in lines if not line.startswith("#version")]
    else:
        model = _read_json(path / "tokenizer.json").get("model", {})
        ids, merges = model.get("vocab"), model.get("merges", [])
        merges = [tuple(m.split(" ")) if isinstance(m, str) else m for m in merges]
    if not ids:
        raise ValueError("holds neither vocab.json with merges.txt nor a tokenizer.json")
    marks = _read_json(path / "tokenizer_config.json")
    # Where the two differ, as in the official folder of SD v2, this older file is the right one.
    marks = marks | _read_json(path / "special_tokens_map.json")
    pad = marks.get("pad_token") or END
    pad = pad["content"] if isinstance(pad, dict) else pad
    if pad not in ids:
        raise ValueError(f"its pad_token {pad!r} is not in its vocabulary")
    tokenizer = Tokenizer(merges, ids[pad])
    if tokenizer.ids != ids:
        raise ValueError("its ids are not laid out as CLIP's: characters, merges, begin, end")
    return tokenizer


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def chunks(tokenizer: Tokenizer, text: str) -> LongTensor:
    """A prompt of any length as several full rows, 75 pieces in each; nothing is cut.

    returns: chunk 77, at least one row. Each row goes through the text tower by itself; the
    contexts are then laid end to end: rearrange(context, "chunk m c -> 1 (chunk m) c").
    """
    ids = tokenizer.encode(text)
    return torch.tensor([tokenizer.row(part) for part in _split(ids, tokenizer.room)])


def _split(values: list, size: int) -> list[list]:
    return [values[start : start + size] for start in range(0, max(len(values), 1), size)]


# A backslash before a parenthesis makes it an ordinary character.
_LETTERS = r"(?:\\[()]|[^()])+"
_NUMBER = r"[+-]?\d*\.?\d+"
WEIGHTED = regex.compile(rf"\(({_LETTERS}):\s*({_NUMBER})\s*\)|({_LETTERS})|([()].{{0,20}})")


def parse_weights(text: str) -> list[tuple[str, float]]:
    r"""Split "a (red:1.3) cat" into [("a ", 1.0), ("red", 1.3), (" cat", 1.0)].

    Raises ValueError for any other parenthesis, unbalanced, nested or without a number; those
    meant as text are written \( and \).
    """
    parts = []
    for words, number, plain, wrong in WEIGHTED.findall(text):
        if wrong:
            raise ValueError(
                rf"cannot read the weight at {wrong!r}: write (words:1.2), and \( \) for"
                " parentheses that are part of the text"
            )
        letters = regex.sub(r"\\([()])", r"\1", words or plain)
        parts.append((letters, float(number or 1)))
    return parts


def weighted(tokenizer: Tokenizer, text: str) -> tuple[LongTensor, Tensor]:
    """The rows of chunks() for a text with (words:1.2) in it, and the weight of every token.

    returns: tokens, chunk 77, and weights, chunk 77: 1 on plain words, marks and padding.
    Raises ValueError as parse_weights does.
    """
    ids, weights = [], []
    for words, weight in parse_weights(text):
        part = tokenizer.encode(words)
        ids += part
        weights += [weight] * len(part)
    tokens = [tokenizer.row(part) for part in _split(ids, tokenizer.room)]
    ones = [1.0] * tokenizer.max_length
    rows = [[1.0, *part, *ones][: tokenizer.max_length] for part in _split(weights, tokenizer.room)]
    return torch.tensor(tokens), torch.tensor(rows)


def emphasize(context: Tensor, weights: Tensor) -> Tensor:
    """Scale each token's context by its weight, then the whole back to the mean it had.

    context: b m c    weights: b m    returns: b m c
    The convention of AUTOMATIC1111's web UI, except that the mean is each prompt's own and not
    the batch's, so that a prompt's context does not depend on its neighbours.
    """
    louder = context * rearrange(weights, "b m -> b m 1").to(context)
    mean = reduce(context, "b m c -> b 1 1", "mean")
    louder_mean = reduce(louder, "b m c -> b 1 1", "mean")
    ratio = torch.where(mean == louder_mean, 1, mean / louder_mean)  # a mean may be 0
    return louder * ratio
