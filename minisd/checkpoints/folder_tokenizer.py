"""Read and write the tokenizer/ folder of a diffusers model as transformers' CLIPTokenizer does.

The vocabulary is either in vocab.json and merges.txt, or only in tokenizer.json. transformers 5
writes only tokenizer.json. Words that someone added to the vocabulary may be in four files:
tokenizer_config.json, special_tokens_map.json, tokenizer.json and added_tokens.json.

In this file, a mark is a special token, such as the begin token, the end token or the padding
token. A piece is the text of a token.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minisd.checkpoints.known_settings import settings_tables
from minisd.files.json_files import LARGEST, check_value, read_at_most, read_json, shorten
from minisd.files.one_line import name_errors
from minisd.files.whole_files import make_folder, write_text
from minisd.tokenizer import BEGIN, END, AddedWord, Pair, Tokenizer, clip_layout

Settings = dict[str, Any]

TOKENIZER_FILES = ("tokenizer_config", "special_tokens_map", "tokenizer", "added_tokens", "vocab")
MARKS = ("pad_token", "unk_token")

CONFIG_TABLE = settings_tables()["tokenizer_config.json"]
SPECIAL_MAP_TABLE = settings_tables()["special_tokens_map.json"]
FAST_TABLE = settings_tables()["tokenizer.json"]
MODEL_TABLE = settings_tables()["tokenizer.json under model"]
WORD_TABLE = settings_tables()["list of added words (tokenizer)"]


# ---- reading -----------------------------------------------------------------------------------


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer/ folder. Words that someone added to the vocabulary are also read.

    path: the path of the tokenizer/ folder

    Raises ValueError if a file is missing or damaged, if two files contradict each other, if the
    ids have a gap, or if a setting is unknown.
    """
    with name_errors(f"{path}:"):
        files = [path / f"{name}.json" for name in TOKENIZER_FILES]
        config, special, fast, listed, ids = (read_json(f) if f.exists() else {} for f in files)
        config = CONFIG_TABLE.read(with_plain_end_marks(config))
        special = SPECIAL_MAP_TABLE.read(with_plain_end_marks(special))
        fast: Settings = FAST_TABLE.read(fast)
        ids, merges = read_vocabulary(ids, read_merges(path / "merges.txt"), fast["model"])
        marks = {name: find_mark(name, config, special) for name in MARKS}
        added = added_words(config, special, fast["added_tokens"], listed, ids, marks.values())
        places = ids | {word.word: word.ids[0] for word in added}
        for name, mark in marks.items():
            if mark["content"] not in places:
                what = f"its {name} {mark['content']!r} is not in its vocabulary"
                raise ValueError(f"{what}: fetch the folder again")
        pad, unknown = (places[mark["content"]] for mark in marks.values())
        ordinary = {BEGIN, END, *(mark["content"] for mark in marks.values())}
        ordinary &= ids.keys() & set(clip_layout(merges))  # SD v2 pads with "!", an ordinary token
        words = [word for word in added if word.word not in ordinary]
        return Tokenizer(merges, pad, words, sorted(ids, key=ids.__getitem__), unknown)


def read_merges(path: Path) -> list[Pair] | None:
    """Read merges.txt: the pairs of pieces that the tokenizer joins.

    Returns None if there is no merges.txt.
    """
    if not path.exists():
        return None
    try:
        lines = read_at_most(path, LARGEST).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"its {path.name} cannot be read as text: fetch it again") from error
    return [tuple(line.split()) for line in lines if line and not line.startswith("#version")]


def token_dict(stored: str | dict | None) -> dict:
    """Turn a token into a dictionary with its text and its flags: {"content": "!", …}.

    stored: the token as it is in the file: such a dictionary, or only the text of the token
    """
    token = stored if isinstance(stored, dict) else {"content": stored}
    check_value("content", token.get("content"), str | None, where=" in a list of added words")
    return {"content": None, **token}


def with_plain_end_marks(stored: Settings) -> Settings:
    """Remove the flags of the begin token and the end token, so that each is a plain text.

    stored: the content of tokenizer_config.json or special_tokens_map.json
    """
    ends = stored.keys() & {"bos_token", "eos_token"}
    return {**stored, **{key: token_dict(stored[key])["content"] for key in ends}}


def read_vocabulary(
    ids: dict[str, int], merges: list[Pair] | None, model: Settings | None
) -> tuple[dict[str, int], list[Pair]]:
    """Find the vocabulary, which is a dictionary (piece -> id), and the merges.

    ids: the content of vocab.json. {}: there is no vocab.json
    merges: the content of merges.txt. None: there is no merges.txt
    model: the content of "model" in tokenizer.json. None: there is no "model"

    Raises ValueError if the folder holds no vocabulary, if tokenizer.json contradicts the other
    files, or if the ids are not 0, 1, 2 and so on.
    """
    settings: Settings = MODEL_TABLE.read(model or {})
    if not all(map(is_merge, settings["merges"])):
        raise ValueError("its merges are not texts or lists of texts: fetch the folder again")
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in settings["merges"]]
    both = (ids, merges), (settings["vocab"], pairs)
    places = [(numbers, joins) for numbers, joins in both if numbers and joins is not None]
    if not places:
        what = "the folder must hold tokenizer.json, or vocab.json and merges.txt"
        raise ValueError(f"{what}: fetch the folder again")
    if places[0] != places[-1]:
        what = "tokenizer.json differs from vocab.json or merges.txt"
        raise ValueError(f"{what}: delete the older files")
    found, joined = places[0]
    integers = all(type(index) is int for index in found.values())
    if not integers or sorted(found.values()) != list(range(len(found))):
        what = f"its vocabulary does not have each id from 0 to {len(found) - 1} exactly once"
        raise ValueError(f"{what}: fetch it again")
    return found, joined


def is_merge(stored: object) -> bool:
    """Whether a merge in tokenizer.json is a text ("a b"), or a list of texts (["a", "b"])."""
    return isinstance(stored, str) or (isinstance(stored, list) and {*map(type, stored)} == {str})


def find_mark(name: str, config: Settings, special: Settings) -> dict:
    """Find the padding token, or the token for unknown text. The default is the end token.

    name: "pad_token" or "unk_token"
    config: the content of tokenizer_config.json
    special: the content of special_tokens_map.json

    The two files may state different tokens, as in SD v2's official folder. In this case, the token
    in special_tokens_map.json (the older format) is right. But if tokenizer_config.json has an
    added_tokens_decoder, transformers does not read special_tokens_map.json.

    Raises ValueError if the two tokens differ and there is an added_tokens_decoder.
    """
    newer = token_dict(config[name] or special[name] or END)
    older = token_dict(special[name] or config[name] or END)
    if newer["content"] != older["content"] and config["added_tokens_decoder"] is not None:
        first = f"its {name} is {newer['content']!r} in tokenizer_config.json"
        second = f"{older['content']!r} in special_tokens_map.json"
        raise ValueError(f"{first}, but {second}: delete the wrong one")
    return older


def added_words(
    config: Settings,
    special: Settings,
    fast: list[dict],
    listed: Mapping[str, int],
    ids: Mapping[str, int],
    marks: Iterable[dict],
) -> list[AddedWord]:
    """Find all words that someone added to the vocabulary. They are sorted by their ids.

    config: the content of tokenizer_config.json
    special: the content of special_tokens_map.json
    fast: the list added_tokens in tokenizer.json
    listed: the content of added_tokens.json: word -> id
    ids: the vocabulary: piece -> id
    marks: the padding token and the token for unknown text

    The files list some words as special tokens, without an id. If no other list contains such a
    word, it gets the next free id.

    Raises ValueError if two files contradict each other.
    """
    # additional_special_tokens in special_tokens_map.json does not make a word of `listed` special
    # (as in transformers 5)
    seen = special_tokens(config, special | {"additional_special_tokens": None})
    specials = {token["content"] for token in [*seen, *marks]}
    found = stated_words(config["added_tokens_decoder"], fast, listed, specials)
    after = max([len(ids) - 1, *(token["id"] for token in found.values())])
    own = [mark for mark in marks if mark["content"] in ids]
    for token in [*special_tokens(config, special), *own]:
        word = token["content"]
        if word not in found:
            after += word not in ids
            found[word] = WORD_TABLE.read({"special": True, **token, "id": ids.get(word, after)})
    words = []
    for word, token in sorted(found.items(), key=lambda item: item[1]["id"]):
        flags = {name: flag for name, flag in token.items() if name not in ("content", "id")}
        if token["id"] != ids.get(word, token["id"]):
            what = f"has the id {token['id']}, but the id {ids[word]} in vocab.json"
            raise ValueError(f"its word {word!r} {what}: delete the wrong one")
        if flags["normalized"] is None:
            flags["normalized"] = not flags["special"]
        words.append(AddedWord(word, (token["id"],), **flags))
    return words


def special_tokens(*files: Settings) -> list[dict]:
    """The list of additional special tokens. Each token is a dictionary (see token_dict).

    files: the contents of tokenizer_config.json and special_tokens_map.json. Each file may have
        such a list. The name of the list depends on the version of transformers

    Raises ValueError if the lists differ.
    """
    names = ("additional_special_tokens", "extra_special_tokens")
    lists = [stored[name] for stored in files for name in names if stored[name]]
    if any(one != lists[0] or not isinstance(one, list) for one in lists):
        what = f"its lists of special tokens differ or are damaged: {shorten(lists)}"
        raise ValueError(f"{what}. Delete the wrong list")
    return [token_dict(one) for one in (lists or [[]])[0]]


def stated_words(
    decoder: dict[str, dict] | None, fast: list[dict], listed: Mapping[str, int], specials: set[str]
) -> dict[str, dict]:
    """Find the added words for which a file states the id.

    decoder: the table added_tokens_decoder in tokenizer_config.json: id -> token
    fast: the list added_tokens in tokenizer.json
    listed: the content of added_tokens.json: word -> id
    specials: the words that are special tokens

    Returns a dictionary: word -> a dictionary with the id and the flags of the word.

    Raises ValueError if two of the three files contradict each other.
    """
    for index, token in (decoder or {}).items():
        if not (re.fullmatch("[0-9]{1,7}", index) and isinstance(token, dict)):
            what = f"its added_tokens_decoder contains {shorten(index)}: {shorten(token)}"
            raise ValueError(f"{what}. This is not an id with a word: fetch the folder again")
    first = [token | {"id": int(index)} for index, token in (decoder or {}).items()]
    last = [{"content": word, "id": index} for word, index in listed.items()]  # without flags
    found: dict[str, dict] = {}
    for one in map(token_dict, [*first, *fast, *last]):
        word = one["content"]
        token = WORD_TABLE.read(found.get(word, {"special": word in specials}) | one)
        if found.setdefault(word, token) != token:
            both = f"{shorten(found[word])} and {shorten(token)}"
            raise ValueError(f"its files contradict each other: {both}. Delete the wrong one")
    known = found if decoder is None else {BEGIN, END, *(one["content"] for one in first)}
    if missing := found.keys() - known:
        where = "added_tokens_decoder in tokenizer_config.json"
        what = f"its word {min(missing)!r} is not in {where}, and transformers ignores other lists"
        raise ValueError(f"{what}: add the word to added_tokens_decoder")
    return found


# ---- writing -----------------------------------------------------------------------------------


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer/ folder in the format of transformers' CLIPTokenizer.

    transformers has a slow and a fast CLIPTokenizer. This function writes the format of the slow
    CLIPTokenizer. Words that were added to the vocabulary are also written.

    Raises ValueError if the folder cannot be written.
    """
    make_folder(path)
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges), ""]
    write_text(path / "merges.txt", "\n".join(merges))
    places = {word.word: word.ids[0] for word in tokenizer.words}
    named = {index: word for word, index in (tokenizer.ids | places).items()}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.max_length,
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": named[tokenizer.unk_token],
        "pad_token": named[tokenizer.pad_token],
    }
    files = {"vocab": tokenizer.ids, "tokenizer_config": settings}
    if places:
        files["added_tokens"] = places
        settings["added_tokens_decoder"] = {
            word.ids[0]: token_flags(word) for word in tokenizer.words
        }
    for name, content in files.items():
        write_text(path / f"{name}.json", json.dumps(content, ensure_ascii=False, indent=2))


def token_flags(word: AddedWord) -> dict[str, object]:
    """Turn an added word into a dictionary, as transformers' AddedToken does."""
    stored = asdict(word)
    return {"content": stored.pop("word"), **{k: v for k, v in stored.items() if k != "ids"}}
