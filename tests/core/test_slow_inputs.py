"""Texts, names and patterns that someone made up to take minutes end within seconds of work.

Where it can be counted, steps are counted. Else 5 s of this thread's own time are the bound, which
other programs on the machine do not shorten; each of these inputs took minutes or longer before.
"""

import html
import random
import re
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import pairwise
from time import thread_time

import ftfy
import pytest
import torch

from minisd.adapters import lora
from minisd.checkpoints import cover, file_kinds, lora_settings
from minisd.checkpoints.names import model_rows
from minisd.cli import a1111_metadata
from minisd.config import SD15
from minisd.prompt import parse_weights, weighted_chunks
from minisd.text.added_words import LONGEST_ADDED, AddedWord
from minisd.text.long_words import merge_long_word
from minisd.text.repair import LONGEST_TEXT, fix_text, unescape
from minisd.tokenizer import Tokenizer, clip_layout, split_letters
from tests.helpers.random_texts import SNIPPETS, random_text

SECONDS = 5
ALMOST = LONGEST_TEXT - 100


@contextmanager
def soon():
    begun = thread_time()
    yield
    assert thread_time() - begun < SECONDS


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    return Tokenizer.clip()


# --- one word of many letters --------------------------------------------------------------------


class Counting(dict):
    """A dictionary that counts how often it is asked."""

    asked = 0

    def get(self, *arguments):
        self.asked += 1
        return super().get(*arguments)


def letters(count: int) -> str:
    return "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=count))


@pytest.mark.parametrize("word", [letters, lambda count: "a" * count, lambda count: "ab" * count])
def test_the_steps_of_a_word_grow_with_its_length(official, word):
    asked = []
    for count in (1000, 4000):
        tokenizer = Tokenizer(official.merges)
        tokenizer.ranks = Counting(tokenizer.ranks)
        tokenizer.bpe(word(count))
        asked.append(tokenizer.ranks.asked)
    assert asked[1] < 4.5 * asked[0]


def merged_one_by_one(word: str, ranks: dict) -> list[str]:
    """The definition: of all pairs the one learnt first, and of alike pairs the leftmost."""
    pieces = split_letters(word)
    while found := [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        at = min(found)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


@pytest.mark.parametrize("seed", range(40))
def test_the_pieces_are_those_of_the_definition(seed):
    """Also where a merge is learnt before one that makes a part of it."""
    rng = random.Random(seed)
    made = ["a", "b", "c", "a</w>", "b</w>", "c</w>"]
    merges = []
    while len(merges) < 15:
        one, two = rng.choice(made), rng.choice(made)
        if one + two not in made and "</w>" not in one and len(one + two) < 12:
            merges.append((one, two))
            made.append(one + two)
    tokenizer = Tokenizer(rng.sample(merges, 15), vocabulary=clip_layout(merges))
    for _ in range(50):
        word = "".join(rng.choices("abc", k=rng.randint(1, 40)))
        pieces = merged_one_by_one(word, tokenizer.ranks)
        assert (
            tokenizer.bpe(word) == merge_long_word(split_letters(word), tokenizer.ranks) == pieces
        )


def test_a_long_word_is_not_kept(official):
    official.encode("a " + letters(5000))
    assert max(map(len, official.cache)) <= 100


# --- whole texts ---------------------------------------------------------------------------------

SLOW = {
    "letters": letters(ALMOST),
    "nested entities": "&" + "amp;" * (ALMOST // 4),
    "nested mojibake": "Â" * (ALMOST - 1) + "©",
    "the same, not Latin": "Â" * (ALMOST - 2) + "©猫",
    "accents": "a" + "\u0300\u0316" * (ALMOST // 2),
    "accents as entities": "a" + "&#768;&#790;" * (ALMOST // 12),
    "accents as mojibake": "a" + "Ì\u0080Ì\u0096" * (ALMOST // 4),
    "entities": "&#x300;" * (ALMOST // 7),
    "unclosed entities": "&#" * (ALMOST // 2),
    "a long number": "&#" + "1" * ALMOST + ";",
    "zeros": "&#" + "0" * ALMOST + "65;",
    "lines": "\n" * ALMOST,
    "lines of accents": "é\n" * (ALMOST // 2),
    "emoji": "\U0001f431" * ALMOST,
    "ligatures": "\ufdfa" * ALMOST,
    "escapes": "\x1b[" + "1;" * (ALMOST // 2),
    "half characters": "\ud800" * ALMOST,
    "brackets": "(" * ALMOST,
    "pairs": "(" * (ALMOST // 2) + ")" * (ALMOST // 2),
    "weights": "(a:1.2)" * (ALMOST // 7),
    "a long weight": "(a:" + "1" * ALMOST,
    "colons": "(a" + ":1" * (ALMOST // 2),
    "gaps": "(a:" + " " * ALMOST,
    "escaped": "(" + "\\(" * (ALMOST // 2),
    "a million": "cat dog " * 125_000,
}


def is_sentence(error: ValueError) -> bool:
    return len(str(error)) < 300 and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore:the prompt is too long")
@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_a_slow_prompt_is_read_or_refused_soon(official, text):
    read = weighted_chunks if "(" in text else Tokenizer.__call__
    with soon():
        try:
            rows = read(official, text)
        except ValueError as error:
            assert is_sentence(error)
        else:
            tokens = rows[0] if isinstance(rows, tuple) else rows
            assert tokens.shape[1] == 77


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a" * 50_001, "has 50,001 characters. Shorten it to 50,000 or fewer"),
        ("a" + "\u0300\u0316" * 501, "has 1,002 accents on one letter. Keep 1,000 or fewer"),
        ("&" + "amp;" * 10_000, "encoded too many times.*. Write it in plain letters"),
        ("(a:1001)", "the weight 1001 is too large"),
        ("(a:" + "9" * 400 + ")", "the weight 9{20} is too large"),
    ],
)
def test_the_limits_are_said(official, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        weighted_chunks(official, text)


def test_at_the_limits_a_text_is_read(official):
    accents = official.encode("a" + "\u0300\u0316" * 500)
    assert accents == official.encode("a" + "\u0316" * 500 + "\u0300" * 500)
    assert official.encode("&" + "amp;" * 300) == official.encode("&")
    assert official.encode("Â" * 300 + "©") == official.encode("©")
    assert official.decode(official.encode("cat " * 12_500)) == "cat " * 12_499 + "cat"
    assert parse_weights("(a:1000)") == [("a", 1000)]


def test_repaired_texts_are_ftfy_s():
    rng = random.Random(1)
    garbled = [*SNIPPETS, "Â", "Ã", "<", "&", "amp;", "\n", "\r\n", "\x1b[1m", "\ud83d", "\udc31"]
    texts = [random_text(rng) for _ in range(2000)]
    texts += ["".join(rng.choices(garbled, k=rng.randint(1, 30))) for _ in range(2000)]
    texts += ["".join(map(chr, rng.choices(range(128), k=40))) for _ in range(500)]
    assert [text for text in texts if fix_text(text) != ftfy.fix_text(text)] == []


@pytest.mark.parametrize(
    "digits", ["0", "00", "065", "65", "000128", "1114111", "1114112", "9" * 30]
)
@pytest.mark.parametrize("end", ["", ";", "a", "8"])
def test_numbers_of_characters_are_html_s(digits, end):
    assert unescape(f"&#{digits}{end}") == html.unescape(f"&#{digits}{end}")


def test_numbers_too_long_for_python_are_read():
    assert unescape("&#" + "0" * 9000 + "65;") == "A"
    assert unescape("&#" + "1" * 9000 + ";") == "\ufffd"


# --- added words ---------------------------------------------------------------------------------


def test_thousands_of_words_are_found_soon():
    tokenizer = Tokenizer([])
    with soon():
        ids = {word: tokenizer.add_word(word) for word in (f"<w{i}>" for i in range(3000))}
        expected = [*ids["<w77>"], *ids["<w777>"], *ids["<w2999>"]]
        assert tokenizer.encode("<w77><w777> <w2999>") == expected
        tokenizer.encode("<w" * (ALMOST // 2))
        for word in ids:
            tokenizer.remove_word(word)
    assert not tokenizer.added_words.ids


@pytest.mark.parametrize("flags", [{}, {"lstrip": True, "rstrip": True}, {"single_word": True}])
def test_words_that_nearly_fit_everywhere_are_found_soon(flags):
    tokenizer = Tokenizer([])
    size = len(tokenizer.vocabulary)
    for index, word in enumerate(["a" * (LONGEST_ADDED - 1) + "b", "c!", "a" * 20, "..(|*"]):
        tokenizer._add(AddedWord(word, (size + index,), **flags))
    with soon():
        for text in ("a" * ALMOST, "c!" * 20_000, "c!" + " " * ALMOST + "c!", "..(|*" * 5000):
            tokenizer.encode(text)
        tokenizer.encode("<|startoftext|>c!" * 2500)


@pytest.mark.parametrize("word", ["a" * 256, " \n ", "", "a\ud800"])
def test_a_word_that_cannot_be_typed_is_refused(word):
    with pytest.raises(ValueError, match="Choose another") as error:
        Tokenizer([]).add_word(word)
    assert is_sentence(error.value)


# --- the web UI's text ---------------------------------------------------------------------------

LONG = a1111_metadata.LONGEST_WEBUI_TEXT - 100
SLOW_PARAMETERS = {
    "a name": "a" * LONG,
    "names": "a:" * (LONG // 2),
    "quotes": 'a: "' * (LONG // 4),
    "escaped quotes": 'a: "\\"' * (LONG // 6),
    "tags": "<lora:a:" * (LONG // 8),
    "tags with one end": "<lora:a:" * (LONG // 8) + ">",
    "open brackets": "(a" * (LONG // 2),
    "deep brackets": "(" * 50 + "a:" * (LONG // 2 - 50),
    "bracket pairs": "[" * (LONG // 2) + "]" * (LONG // 2),
    "alternatives": "[" + ":" * LONG,
    "weights": "(a:" + "1" * LONG + ")",
    "points": "(a:1..1)",
    "a million": "a: 1, " * 170_000,
}


@pytest.mark.parametrize("text", SLOW_PARAMETERS.values(), ids=SLOW_PARAMETERS)
def test_another_program_s_text_is_read_or_refused_soon(text):
    with soon():
        for read in (
            lambda: a1111_metadata.parse_parameters(f"a cat\n{text}"),
            lambda: a1111_metadata.prompt_of(text, {"lora", "hypernetwork"}),
            lambda: a1111_metadata.settings_from_webui(text, set()),
        ):
            try:
                read()
            except ValueError as error:
                assert "could not convert" not in str(error) and "4300" not in str(error)


def test_small_weights_are_written_as_we_read_them():
    ours = a1111_metadata.to_minisd_syntax("(cat:0.00001) (dog:20000000)")
    assert ours == "(cat:0.00001) (dog:20000000)"


# --- names and patterns of files -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "block.transformer_blocks.1." * 18,
        "block" * 30 + ".transformer_blocks.1" * 8 + "." * 100,
        "attn2" * 30 + "to_k." * 30 + "lora_" * 30,
        "lora_unet_" + "_transformer_blocks_" * 20,
        "1" * 480,
    ],
)
def test_made_up_names_of_tensors_are_looked_through_soon(name):
    named = {f"{name}{i}": torch.zeros(1, 2) for i in range(200)}
    with soon():
        file_kinds.find_kind(named)
        lora.describe_contexts(named, SD15)
        assert not [key for key in named if cover.why_unneeded(key, SD15)]


def test_a_file_of_too_many_names_is_refused():
    with pytest.raises(ValueError, match=r"100,000 tensors .*: get another copy"):
        file_kinds.find_kind([f"tensor.{i}" for i in range(100_000)])


def test_purposes_are_those_of_the_list():
    layers = str(SD15.text.layers)
    for what, names in cover.NOT_NEEDED.items():
        for name in names:
            key = name.replace("LAST", layers).replace("*", "x\n.y")
            first = next(w for w, ns in cover.NOT_NEEDED.items() if matches(key, ns, layers))
            assert cover.why_unneeded(key, SD15) == first, what
    for key in ("model.diffusion_model.out.2.weight", "betas2", "xbetas", "loss", ""):
        assert cover.why_unneeded(key, SD15) is None


def matches(key: str, names: list[str], layers: str) -> bool:
    return any(fnmatchcase(key, name.replace("LAST", layers)) for name in names)


LAYERS = [row.diffusers for rows in model_rows(SD15).values() for row in rows]
SLOW_PATTERN = r"(.*)(.*)(.*)(.*)\1\2\3\4(.*)(.*)\5\6x"
HOSTILE = {
    "target_modules": [
        rf"(.*\.)?({SLOW_PATTERN})$",
        "(" * 3000,
        "a" * 20_000,
        "a{99999999999}",
    ],
    "rank_pattern": [
        {r".*(a|t|e)+1(.*)*\2$": 4},
        {SLOW_PATTERN: 4},
        {"(?x) a # b": 4},
        {f"layer{i}": 4 for i in range(100_000)},
    ],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values]
)
def test_hostile_patterns_are_refused_soon(key, value):
    with soon(), pytest.raises(ValueError) as error:
        settings = lora_settings.parse_lora_config({"r": 4, "lora_alpha": 4, key: value})
        for layer in LAYERS:
            lora_settings.value_for_layer(settings.rank_pattern, layer, 4, settings.matcher)
            lora_settings.is_among(settings.target_modules, layer, settings.matcher)
    assert is_sentence(error.value)


def test_patterns_mean_what_they_mean_to_peft():
    """peft.utils.other.get_pattern_key, one pattern for each layer among them."""
    patterns = {"attn2.to_.": 1, r"\d+\.proj_in": 2, "(conv1|conv2)": 3, "to_q": 4, ".*mlp.*": 5}
    patterns |= {layer: 100 + index for index, layer in enumerate(LAYERS[::2])}
    settings = lora_settings.parse_lora_config({"r": 4, "lora_alpha": 4, "rank_pattern": patterns})
    for layer in LAYERS[::5]:
        spelt = lora_settings.spellings(layer)
        fits = (
            v for p, v in patterns.items() if any(re.match(rf"(.*\.)?({p})$", n) for n in spelt)
        )
        found = lora_settings.value_for_layer(patterns, layer, 4, settings.matcher)
        assert found == next(fits, 4)
