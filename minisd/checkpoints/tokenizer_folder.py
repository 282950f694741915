"""The tokenizer/ folder of a diffusers model, read and written as transformers' CLIPTokenizer does.

The vocabulary stands in vocab.json and merges.txt, or in the one tokenizer.json that transformers 5
writes; words that someone added to it stand in up to four places.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from minisd.checkpoints.known_settings import tables
from minisd.checkpoints.read import read_json
from minisd.tokenizer import BEGIN, END, AddedWord, Pair, Tokenizer

FILES = ("tokenizer_config", "special_tokens_map", "tokenizer", "added_tokens", "vocab")
FILES = tuple(f"{name}.json" for name in FILES)

CONFIG, SPECIAL_MAP = tables()["tokenizer_config.json"], tables()["special_tokens_map.json"]
FAST, MODEL = tables()["tokenizer.json"], tables()["tokenizer.json under model"]
WORD = tables()["list of added words (tokenizer)"]

# What tokenizer.json says of CLIP's cleaning and cutting; its older files do not name the marks.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPLIT = {"type": "Split", "behavior": "Removed", "invert": True}
STAGES = {
    "normalizer": [
        [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]
    ],
    "pre_tokenizer": [
        [SPLIT | {"pattern": {"Regex": cut}}, {"type": "ByteLevel", "add_prefix_space": False}]
        for cut in (CLIP_WORDS, r"<\|startoftext\|>|<\|endoftext\|>|" + CLIP_WORDS)
    ],
    "post_processor": [
        [{"type": "RobertaProcessing", "cls": BEGIN, "sep": END, "add_prefix_space": False}]
    ],
}


# ---- reading -----------------------------------------------------------------------------------


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of such a folder, with the words that were added to it.

    Raises ValueError where a file is absent or damaged, two contradict one another, the ids are not
    laid out as CLIP's, or a setting is unknown here.
    """
    try:
        config, special, fast, listed, ids = (read_json_if_there(path / name) for name in FILES)
        merges = read_merges(path / "merges.txt")
        config = CONFIG.read(with_plain_marks(config))
        special = SPECIAL_MAP.read(with_plain_marks(special))
        stages = {name: describe_stage(fast[name], name) for name in STAGES if name in fast}
        fast = FAST.read(fast | stages)
        ids, merges = vocabulary(ids, merges, MODEL.read(fast["model"] or {}))
        marks = {name: find_mark(name, config, special) for name in ("pad_token", "unk_token")}
        words = added_words(config, special, fast, listed, ids, set(marks.values()))
        places = ids | {word.word: word.ids[0] for word in words}
        for name, content in marks.items():
            if content not in places:
                raise ValueError(f"its {name} {content!r} is not in its vocabulary")
        tokenizer = Tokenizer(merges, places[marks["pad_token"]], words)
        if tokenizer.ids != ids:
            raise ValueError("its ids are not laid out as CLIP's: characters, merges, begin, end")
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removesuffix('.')}.") from error
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{path}: a setting is of a wrong kind ({error}): fetch it again"
        ) from error
    return tokenizer


def read_json_if_there(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def read_merges(path: Path) -> list[Pair]:
    lines = path.read_text(encoding="utf-8").strip().split("\n") if path.exists() else []
    return [tuple(line.split()) for line in lines if line and not line.startswith("#version")]


def with_plain_marks(stored: Mapping[str, object]) -> dict[str, object]:
    """Settings with each mark as its text alone: {"content": "!", …} becomes "!"."""
    marks = {key: one for key, one in stored.items() if key.endswith("_token")}
    return {**stored, **{key: one["content"] for key, one in marks.items() if type(one) is dict}}


def describe_stage(content: dict | None, name: str) -> str:
    """One stage of a tokenizer.json in a word: "CLIP's", or all of it."""
    steps = content or {}
    steps = steps.get("normalizers") or steps.get("pretokenizers") or [steps]
    plain = [
        {key: one[0] if key in ("cls", "sep") else one for key, one in step.items()}  # not its id
        for step in steps
    ]
    for step in plain:
        for key in ("trim_offsets", "use_regex"):  # which say where in the text a piece stood
            step.pop(key, None)
    return "CLIP's" if plain in STAGES[name] else json.dumps(content)


def vocabulary(
    ids: dict[str, int], merges: list[Pair], model: Mapping[str, object]
) -> tuple[dict[str, int], list[Pair]]:
    """The ids of all pieces and the merges. They may stand in two places if those are alike."""
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    slow, fast = (ids, merges), (model["vocab"], pairs)
    if not (ids and merges) and not model["vocab"]:
        what = "holds neither vocab.json with merges.txt nor a tokenizer.json"
        raise ValueError(f"{what}: fetch that folder again")
    if ids and merges and model["vocab"] and slow != fast:
        raise ValueError(
            "its tokenizer.json differs from its vocab.json and merges.txt: delete what is outdated"
        )
    return fast if model["vocab"] else slow


def find_mark(name: str, config: Mapping[str, object], special: Mapping[str, object]) -> str:
    """Which token pads, or stands for what is unknown: by default the end mark.

    Where the two files differ, as in SD v2's official folder, the older special_tokens_map.json is
    right; but next to added_tokens_decoder transformers does not read it.
    """
    said, older = config[name], special[name]
    if said and older and said != older and config["added_tokens_decoder"] is not None:
        files = "tokenizer_config.json and special_tokens_map.json"
        raise ValueError(f"its {name} is {said!r} and {older!r} in {files}: delete the wrong one")
    return older or said or END


def added_words(
    config: Mapping[str, object],
    special: Mapping[str, object],
    fast: Mapping[str, object],
    listed: Mapping[str, int],
    ids: Mapping[str, int],
    marks: set[str],
) -> list[AddedWord]:
    """Every word that was added, by its id. Raises ValueError where two places contradict.

    A word that only a list of special tokens names has the next id.
    """
    extra = special_tokens(config, special)
    # transformers 5 overlooks this one list when it asks whether a listed word is special
    overlooked = special["additional_special_tokens"] and extra != special_tokens(config, {})
    specials = marks | (set() if overlooked else {token["content"] for token in extra})
    found = stated_words(config, fast, listed, specials)
    tokens = sorted(found.values(), key=lambda token: token["id"])
    after = max([len(ids) - 1, *(token["id"] for token in tokens)])
    for token in extra:
        if token["content"] not in found and token["content"] not in marks & ids.keys():
            after += token["content"] not in ids
            place = ids.get(token["content"], after)
            tokens.append(WORD.read({"special": True, **token, "id": place}))
    words = []
    for token in tokens:
        word, place = token.pop("content"), token.pop("id")
        if place != ids.get(word, place):
            raise ValueError(
                f"its word {word!r} has the id {place} and, in vocab.json, {ids[word]}"
            )
        if word not in marks | {BEGIN, END} or word not in ids:
            if token["normalized"] is None:
                token["normalized"] = not token["special"]
            if not all(isinstance(flag, bool) for flag in token.values()):
                raise ValueError(f"its word {word!r} has flags that are not true or false: {token}")
            words.append(AddedWord(word, (place,), **token))
    return words


def special_tokens(config: Mapping[str, object], special: Mapping[str, object]) -> list[dict]:
    """The special tokens beyond the marks. transformers 5 gave the list another name."""
    names = ("additional_special_tokens", "extra_special_tokens")
    lists = [stored[name] for stored in (config, special) for name in names if stored.get(name)]
    if any(one != lists[0] or not isinstance(one, list) for one in lists):
        raise ValueError(f"its lists of special tokens differ, or are none: {lists}")
    return [one if isinstance(one, dict) else {"content": one} for one in (lists or [[]])[0]]


def stated_words(
    config: Mapping[str, object],
    fast: Mapping[str, object],
    listed: Mapping[str, int],
    specials: set[str],
) -> dict[str, dict[str, object]]:
    """The words whose ids are said, with their flags, from the three places."""
    decoder = config["added_tokens_decoder"]
    found: dict[str, dict[str, object]] = {}
    for place, tokens in {
        "tokenizer_config.json": [one | {"id": int(i)} for i, one in (decoder or {}).items()],
        "tokenizer.json": fast["added_tokens"],
        "added_tokens.json": [{"content": word, "id": i} for word, i in listed.items()],
    }.items():
        for token in map(WORD.read, tokens):
            word = token["content"]
            if place == "added_tokens.json":  # which says no flags
                flags = found.get(word, token | {"special": word in specials})
                token = flags | {"id": token["id"]}
            if found.setdefault(word, token) != token:
                raise ValueError(f"its files contradict one another: {found[word]}, but {token}")
    if decoder is not None:
        for word in found.keys() - {one["content"] for one in decoder.values()} - {BEGIN, END}:
            raise ValueError(
                f"its word {word!r} is not in added_tokens_decoder in its tokenizer_config.json, "
                "which transformers reads alone: add it there, or delete added_tokens_decoder"
            )
    return found


# ---- writing -----------------------------------------------------------------------------------


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write such a folder as transformers' slow tokenizers do, with the words added for good."""
    path.mkdir(parents=True, exist_ok=True)
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges), ""]
    (path / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    places = {word.word: word.ids[0] for word in tokenizer.words}
    named = {index: word for word, index in (tokenizer.ids | places).items()}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.max_length,
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": END,
        "pad_token": named[tokenizer.pad_token],
    }
    files = {"vocab": tokenizer.ids, "tokenizer_config": settings}
    if places:
        files["added_tokens"] = places
        settings["added_tokens_decoder"] = {word.ids[0]: flags(word) for word in tokenizer.words}
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (path / f"{name}.json").write_text(text, encoding="utf-8")


def flags(word: AddedWord) -> dict[str, object]:
    """As transformers' AddedToken stores them."""
    stored = asdict(word)
    return {"content": stored.pop("word"), **{k: v for k, v in stored.items() if k != "ids"}}
