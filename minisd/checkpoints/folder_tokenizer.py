"""The tokenizer/ folder of a diffusers model, read and written as transformers' CLIPTokenizer does.

The vocabulary stands in vocab.json and merges.txt, or in the one tokenizer.json that transformers 5
writes; words that someone added to it stand in up to four places.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from minisd.checkpoints.known_settings import settings_tables
from minisd.files.json_files import LARGEST, check_value, read_at_most, read_json, shorten
from minisd.files.one_line import name_errors
from minisd.files.whole_files import make_folder, write_text
from minisd.tokenizer import BEGIN, END, AddedWord, Pair, Tokenizer, clip_layout

Settings = Mapping[str, object]

TOKENIZER_FILES = ("tokenizer_config", "special_tokens_map", "tokenizer", "added_tokens", "vocab")
MARKS = ("pad_token", "unk_token")

CONFIG_TABLE, SPECIAL_MAP_TABLE = (
    settings_tables()["tokenizer_config.json"],
    settings_tables()["special_tokens_map.json"],
)
FAST_TABLE, MODEL_TABLE = (
    settings_tables()["tokenizer.json"],
    settings_tables()["tokenizer.json under model"],
)
WORD_RULE = settings_tables()["list of added words (tokenizer)"]


# ---- reading -----------------------------------------------------------------------------------


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of such a folder, with the words that were added to it.

    Raises ValueError where a file is absent or damaged, two contradict one another, the ids leave a
    gap, or a setting is unknown here.
    """
    with name_errors(f"{path}:"):
        files = [path / f"{name}.json" for name in TOKENIZER_FILES]
        config, special, fast, listed, ids = (read_json(f) if f.exists() else {} for f in files)
        config, special = (
            CONFIG_TABLE.read(with_plain_end_marks(config)),
            SPECIAL_MAP_TABLE.read(with_plain_end_marks(special)),
        )
        fast = FAST_TABLE.read(fast)
        ids, merges = read_vocabulary(ids, read_merges(path / "merges.txt"), fast["model"])
        marks = {name: find_mark(name, config, special) for name in MARKS}
        added = added_words(config, special, fast["added_tokens"], listed, ids, marks.values())
        places = ids | {word.word: word.ids[0] for word in added}
        for name, mark in marks.items():
            if mark["content"] not in places:
                raise ValueError(f"its {name} {mark['content']!r} is not in its vocabulary")
        pad, unknown = (places[mark["content"]] for mark in marks.values())
        ordinary = {BEGIN, END, *(mark["content"] for mark in marks.values())}
        ordinary &= ids.keys() & set(clip_layout(merges))  # SD v2 pads with "!"
        words = [word for word in added if word.word not in ordinary]
        return Tokenizer(merges, pad, words, sorted(ids, key=ids.get), unknown)


def read_merges(path: Path) -> list[Pair] | None:
    if not path.exists():
        return None
    try:
        lines = read_at_most(path, LARGEST).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"its {path.name} cannot be read as text: fetch it again") from error
    return [tuple(line.split()) for line in lines if line and not line.startswith("#version")]


def as_token(one: str | dict | None) -> dict:
    """A mark is stored as its text alone, or with flags: {"content": "!", …}."""
    token = one if isinstance(one, dict) else {"content": one}
    check_value("content", token.get("content"), str | None, where=" in a list of added words")
    return {"content": None, **token}


def with_plain_end_marks(stored: Settings) -> Settings:
    """Settings with the begin and the end mark as their text alone."""
    ends = stored.keys() & {"bos_token", "eos_token"}
    return {**stored, **{key: as_token(stored[key])["content"] for key in ends}}


def read_vocabulary(
    ids: dict[str, int], merges: list[Pair] | None, model: Settings | None
) -> tuple[dict[str, int], list[Pair]]:
    """The ids of all pieces and the merges. They may stand in two places if those are alike."""
    model = MODEL_TABLE.read(model or {})
    check_value("merges", model["merges"], tuple[str | tuple[str, ...], ...])
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    slow, fast = (ids, merges), (model["vocab"], pairs)
    places = [one for one in (slow, fast) if one[0] and one[1] is not None]
    if not places:
        what = "holds neither vocab.json with merges.txt nor a tokenizer.json"
        raise ValueError(f"{what}: fetch that folder again")
    if places[0] != places[-1]:
        raise ValueError("tokenizer.json differs from its vocab.json/merges.txt: delete the older")
    ids, merges = places[0]
    integers = all(type(index) is int for index in ids.values())
    if not integers or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"the ids of its vocabulary are not 0 to {len(ids) - 1}, each once")
    return ids, merges


def find_mark(name: str, config: Settings, special: Settings) -> dict:
    """Which token pads, or stands for what is unknown: by default the end mark.

    Where the two files differ, as in SD v2's official folder, the older special_tokens_map.json is
    right; but next to added_tokens_decoder transformers does not read it.
    """
    said = as_token(config[name] or special[name] or END)
    older = as_token(special[name] or config[name] or END)
    if said["content"] != older["content"] and config["added_tokens_decoder"] is not None:
        two = f"{said['content']!r} and {older['content']!r}, in tokenizer_config.json and"
        raise ValueError(f"its {name} is {two} special_tokens_map.json: delete the wrong one")
    return older


def added_words(
    config: Settings,
    special: Settings,
    fast: list[dict],
    listed: Mapping[str, int],
    ids: Mapping[str, int],
    marks: Iterable[dict],
) -> list[AddedWord]:
    """Every word that was added, by its id. Raises ValueError where two places contradict.

    A word that only a list of special tokens names has the next id.
    """
    # transformers 5 overlooks this one list when it asks whether a listed word is special
    seen = special_tokens(config, special | {"additional_special_tokens": None})
    specials = {token["content"] for token in [*seen, *marks]}
    found = stated_words(config["added_tokens_decoder"], fast, listed, specials)
    after = max([len(ids) - 1, *(token["id"] for token in found.values())])
    own = [mark for mark in marks if mark["content"] in ids]
    for token in [*special_tokens(config, special), *own]:
        word = token["content"]
        if word not in found:
            after += word not in ids
            found[word] = WORD_RULE.read({"special": True, **token, "id": ids.get(word, after)})
    words = []
    for word, token in sorted(found.items(), key=lambda item: item[1]["id"]):
        flags = {name: flag for name, flag in token.items() if name not in ("content", "id")}
        if token["id"] != ids.get(word, token["id"]):
            said = f"has the id {token['id']} and, in vocab.json, {ids[word]}"
            raise ValueError(f"its word {word!r} {said}")
        if flags["normalized"] is None:
            flags["normalized"] = not flags["special"]
        words.append(AddedWord(word, (token["id"],), **flags))
    return words


def special_tokens(*files: Settings) -> list[dict]:
    """The special tokens beyond the marks. transformers 5 gave the list another name."""
    names = ("additional_special_tokens", "extra_special_tokens")
    lists = [stored[name] for stored in files for name in names if stored[name]]
    if any(one != lists[0] or not isinstance(one, list) for one in lists):
        raise ValueError(f"its lists of special tokens differ, or are none: {shorten(lists)}")
    return [as_token(one) for one in (lists or [[]])[0]]


def stated_words(
    decoder: dict[str, dict] | None, fast: list[dict], listed: Mapping[str, int], specials: set[str]
) -> dict[str, dict]:
    """The words whose ids are said, with their flags, from the three places."""
    for index, token in (decoder or {}).items():
        if not (re.fullmatch("[0-9]{1,7}", index) and isinstance(token, dict)):
            said = f"has {shorten(index)}: {shorten(token)} among its added_tokens_decoder"
            raise ValueError(f"{said}, which is no id with a word: fetch it again")
    first = [token | {"id": int(index)} for index, token in (decoder or {}).items()]
    last = [{"content": word, "id": index} for word, index in listed.items()]  # without flags
    found: dict[str, dict] = {}
    for one in map(as_token, [*first, *fast, *last]):
        word = one["content"]
        token = WORD_RULE.read(found.get(word, {"special": word in specials}) | one)
        if found.setdefault(word, token) != token:
            both = f"{shorten(found[word])}, but {shorten(token)}"
            raise ValueError(f"its files contradict one another: {both}")
    known = found if decoder is None else {BEGIN, END, *(one["content"] for one in first)}
    if lacking := found.keys() - known:
        alone = "added_tokens_decoder in tokenizer_config.json, which transformers reads alone"
        raise ValueError(f"its word {min(lacking)!r} is not in {alone}: add it there")
    return found


# ---- writing -----------------------------------------------------------------------------------


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write such a folder as transformers' slow tokenizers do, with the words added for good.

    ValueError: it cannot be written.
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
    """As transformers' AddedToken stores them."""
    stored = asdict(word)
    return {"content": stored.pop("word"), **{k: v for k, v in stored.items() if k != "ids"}}
