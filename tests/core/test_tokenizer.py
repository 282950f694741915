"""The tokenizer against OpenAI's, open_clip's and Hugging Face's; the rest against its own word."""

import json
import random
import warnings
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer as HuggingFaceBPE
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from torch.testing import assert_close
from transformers import CLIPTokenizer

from minisd import tokenizer as module
from minisd.checkpoints.folder_tokenizer import read_tokenizer, write_tokenizer
from minisd.prompt import chunks, emphasize, parse_weights, weighted_chunks
from minisd.tokenizer import ALPHABET, Tokenizer, learn_merges
from tests.helpers.random_texts import random_text
from tests.helpers.references import clip, open_clip

STRINGS = 21_000
HARD = (
    *(
        "",
        " ",
        " \t\n ",
        "!",
        "résumé",
        "re\u0301sume\u0301",
        "it's",
        "IT’S",
        "'s",
        "''ll'",
        "rock'n'roll",
    ),
    *(
        "dreambeach",
        "dream beach",
        "Dream-Beach",
        "A PHOTO OF A CAT",
        "ПРИВЕТ мир",
        "ΣΊΣΥΦΟΣ",
        "ﬁne",
    ),
    *("猫の写真", "한국어", "ภาษาไทย", "العربية", "हिन्दी", "🐱", "👩‍🎨🏳️‍🌈", "𝔣𝔞𝔫𝔠𝔶", "½ ² Ⅳ ٣"),
    *("&lt;b&gt;", "&amp;lt;b&amp;gt;", "&amp;amp;amp;", "&copy 2022", "mojibake: Ã©tÃ©", "schÃ¶n"),
    *(
        "1 12 123 1,234.5",
        "snake_case __init__",
        "(word:1.2) [x] {y}",
        "a\x00b\x07c\x1fd\x7fe",
        "\ufeffa",
    ),
    *(
        "<|endoftext|>",
        "a <|startoftext|> b",
        "<|ENDOFTEXT|>",
        "<|endoftext|",
        "</w>",
        "<start_of_text>",
    ),
    *("a" * 300, "ab " * 200, "\u0300" * 20, "\U0010ffff\ue000", "trailing space ", "it 's", "ſ'ſ"),
)
ORDINARY = (
    "a photograph of an astronaut riding a horse",
    "Portrait of an old sailor, oil on canvas, by Rembrandt; it's 1642 (detail)",
    "the café's   résumé,\nthey'll say, isn't done: naïve façade",
    "a red fox in the snow " * 20,
    "",
)


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    return Tokenizer.clip()


@pytest.fixture(scope="module")
def openai() -> clip.simple_tokenizer.SimpleTokenizer:
    return clip.simple_tokenizer.SimpleTokenizer()


@pytest.fixture(scope="module")
def random_texts() -> list[str]:
    rng = random.Random(0)
    return [random_text(rng) for _ in range(STRINGS)]


CAPTIONS = [
    f"a {colour} {thing} on a {ground} background, it's {thing}s"
    for colour in ("red", "green", "blue", "brown")
    for thing in ("cat", "dog", "fox", "rabbit", "strawberry", "café")
    for ground in ("yellow", "grey", "white")
]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 560)


# --- ids, against OpenAI's tokenizer -------------------------------------------------------------


def test_vocabulary_is_openai_s(official, openai):
    assert official.ids == openai.encoder
    assert official.vocab_size == 49408
    assert (official.begin, official.end) == (49406, 49407)


def test_random_unicode_has_openai_s_ids(official, openai, random_texts):
    assert len(set(random_texts)) > 20_000
    differing = [text for text in random_texts if official.encode(text) != openai.encode(text)]
    assert differing == []


@pytest.mark.parametrize("text", HARD)
def test_hard_text_has_openai_s_ids(official, openai, text):
    assert official.encode(text) == openai.encode(text)


def test_random_unicode_decodes_to_openai_s_text(official, openai, random_texts):
    for text in random_texts[:2000]:
        ids = [index for index in official.encode(text) if index < official.begin]
        assert official.decode(ids) == openai.decode(ids).strip()


def test_cleaning_mends_unescapes_twice_joins_gaps_and_lowers():
    assert module.clean(" CafÃ© \n\t &amp;amp;  B\u00a0") == "café & b"


def test_accents_survive(official):
    assert official.decode(official.encode("Résumé")) == "résumé"


def test_a_word_in_one_is_not_its_halves(official):
    assert official.pieces("dreambeach") == ["dream", "beach</w>"]
    assert official.pieces("dream beach") == ["dream</w>", "beach</w>"]


# --- rows of 77 ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_rows_are_openai_s_where_padded_with_zero(random_texts):
    texts = [*HARD, *ORDINARY, *random_texts[:2000]]
    rows = Tokenizer.clip(pad_token=0)(texts)
    assert rows.shape == (len(texts), 77)
    assert rows.dtype == torch.long
    assert torch.equal(rows, clip.tokenize(texts, truncate=True).long())


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_v2_pads_with_zero():
    # open_clip spells the two marks otherwise: "<|endoftext|>" is ordinary text there.
    texts = [text for text in [*HARD, *ORDINARY] if "text" not in text.lower()]
    rows = Tokenizer.clip(pad_token=0)(texts)
    assert torch.equal(rows, open_clip.tokenize(texts))


def test_v1_pads_with_the_end_mark(official):
    row = official("a cat")
    assert row.tolist() == [[49406, 320, 2368] + [49407] * 74]


def test_too_long_a_prompt_keeps_the_end_mark_last(official):
    with pytest.warns(UserWarning, match="too long"):
        row = official("cat " * 80)[0]
    assert row.tolist() == [49406] + [2368] * 75 + [49407]


def test_the_warning_names_the_lost_words_once_per_call(official):
    with pytest.warns(UserWarning) as caught:
        official(["cat " * 75 + "Red Foxes", "short", "dog " * 75 + "in the snow"])
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line that called, where the prompt is
    assert "'red foxes | in the snow'" in str(caught[0].message)


def test_75_pieces_fit_without_a_warning(official):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = official("cat " * 75)[0]
    assert row[75:].tolist() == [2368, 49407]


# --- reading pieces and ids ----------------------------------------------------------------------


def test_pieces_show_letters_and_the_end_of_words(official):
    assert official.pieces("Café's kittens!") == ["café</w>", "'s</w>", "kittens</w>", "!</w>"]


def test_pieces_show_half_a_character_as_bytes(official):
    assert official.pieces("本") == ["\\xe6\\x9c", "\\xac</w>"]


def test_decode_stops_at_the_end_mark(official):
    row = Tokenizer.clip(pad_token=0)("A cat, 2 dogs")[0]
    assert official.decode(row) == "a cat , 2 dogs"


def test_the_cache_stays_bounded(small, monkeypatch):
    monkeypatch.setattr(module, "CACHED_WORDS", 10)
    for number in range(100):
        small.encode("x" * number)
    assert len(small.cache) <= 10


# --- learning a vocabulary -----------------------------------------------------------------------


def test_merges_are_those_of_hugging_face_s_trainer():
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshr", k=rng.randint(1, 7))) for _ in range(400)]
    counts = Counter({word: rng.randint(1, 400) for word in words})
    trainer = BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    reference = HuggingFaceBPE(BPE())
    reference.pre_tokenizer = WhitespaceSplit()
    reference.train_from_iterator([" ".join(counts.elements())], trainer)
    expected = [tuple(pair) for pair in json.loads(reference.to_str())["model"]["merges"]]
    assert len(expected) > 500
    assert learn_merges(counts, len(expected)) == expected


def test_ids_are_laid_out_as_clip_s(small, official):
    assert small.vocabulary[:512] == official.vocabulary[:512] == ALPHABET
    assert small.vocabulary[512:-2] == ["".join(pair) for pair in small.merges]
    assert small.vocabulary[-2:] == ["<|startoftext|>", "<|endoftext|>"]


def test_vocab_size_is_exact_and_includes_both_marks(small):
    assert small.vocab_size == len(small.vocabulary) == len(small.ids) == 560
    assert (small.begin, small.end, small.pad_token) == (558, 559, 559)


def test_the_order_of_the_texts_does_not_matter(small):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert Tokenizer.train(shuffled, 560).merges == small.merges


def test_frequent_words_become_one_piece(small):
    assert small.pieces("background") == ["background</w>"]


def test_any_text_can_be_written_with_any_vocabulary(small, random_texts):
    for text in [*random_texts[:1000], *HARD]:
        if "<|" not in text:
            words = [module.to_bytes(word).decode() for word in module.split_words(text)]
            assert small.decode(small.encode(text)).split() == words


def test_typed_marks_are_not_learnt_from():
    assert Tokenizer.train(["<|endoftext|> ab"], 515).pieces("ab") == ["ab</w>"]


def test_too_few_words_name_the_largest_vocabulary():
    with pytest.raises(ValueError, match=r"cannot give 1024 pieces. Choose 516"):
        Tokenizer.train(["cat cat"], 1024)
    assert Tokenizer.train(["cat cat"], 516).pieces("cat") == ["cat</w>"]


def test_the_alphabet_and_the_marks_are_the_smallest_vocabulary():
    with pytest.raises(ValueError, match=r"cannot give 513 pieces. Choose 514"):
        Tokenizer.train(["cat cat"], 513)
    assert Tokenizer.train(["cat cat"], 514).pieces("cat") == ["c", "a", "t</w>"]


# --- storing -------------------------------------------------------------------------------------


def assert_same(one: Tokenizer, other: Tokenizer) -> None:
    assert one.merges == other.merges
    assert one.ids == other.ids
    assert one.pad_token == other.pad_token


@pytest.mark.parametrize("pad_token", [None, 0])
def test_json_round_trip(pad_token):
    tokenizer = Tokenizer.train(CAPTIONS, 540, pad_token)
    assert_same(Tokenizer.from_json(tokenizer.to_json()), tokenizer)


def test_file_round_trip(small, tmp_path):
    small.save(tmp_path / "small.json")
    assert_same(Tokenizer.load(tmp_path / "small.json"), small)


@pytest.mark.parametrize(
    "content",
    [b"\x00\xff", b"{}", b"[]", b'{"pad_token": 0, "merges": [1]}', b'{"pad_token": null}'],
)
def test_a_file_that_is_no_tokenizer_is_named(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.json holds no tokenizer"):
        Tokenizer.load(tmp_path / "x.json")


@pytest.mark.parametrize("merges", [[("ab", "c")], [("a", "b"), ("a", "b")], [("a", "b", "c")]])
def test_merges_must_build_on_one_another(merges):
    with pytest.raises(ValueError, match=r"two earlier pieces|a piece twice"):
        Tokenizer(merges)


@pytest.mark.parametrize("pad_token", [-1, 514])
def test_the_pad_token_must_be_an_id(pad_token):
    with pytest.raises(ValueError, match="from 0 to 513"):
        Tokenizer([], pad_token)


# --- Hugging Face's folder -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, 0], ids=["v1", "v2"])
def folder(request, tmp_path_factory):
    tokenizer = Tokenizer.clip(request.param)
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path, tokenizer)
    return tokenizer, path, CLIPTokenizer.from_pretrained(path)


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_hugging_face_reads_our_folder_with_the_same_rows(folder):
    tokenizer, _, reference = folder
    assert reference.pad_token_id == tokenizer.pad_token
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    rows = reference(list(ORDINARY), **settings).input_ids
    assert torch.equal(tokenizer(list(ORDINARY)), rows)


def test_we_read_our_folder(folder):
    tokenizer, path, _ = folder
    assert_same(read_tokenizer(path), tokenizer)


def test_we_read_hugging_face_s_folder(folder, tmp_path):
    tokenizer, _, reference = folder
    reference.save_pretrained(tmp_path)
    assert_same(read_tokenizer(tmp_path), tokenizer)


def test_an_own_vocabulary_goes_through_hugging_face(small, tmp_path):
    write_tokenizer(tmp_path, small)
    reference = CLIPTokenizer.from_pretrained(tmp_path)
    row = reference(CAPTIONS[0], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(small(CAPTIONS[0]), row)


def test_v2_s_exclamation_mark_is_read_as_open_clip_reads_it():
    # Hugging Face takes the padding mark "!" out of the text first: id 0 in place of 256.
    row = Tokenizer.clip(pad_token=0)("a cat!")
    assert torch.equal(row, open_clip.tokenize("a cat!"))
    assert row[0, 3] == 256


def test_the_official_v2_folder_contradicts_itself_and_pads_with_zero(small, tmp_path):
    write_tokenizer(tmp_path, small)
    assert read_tokenizer(tmp_path).pad_token == small.end
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "!"}), encoding="utf-8"
    )
    assert read_tokenizer(tmp_path).pad_token == 0
    (tmp_path / "special_tokens_map.json").write_text(
        '{"pad_token": {"content": "\\""}}', encoding="utf-8"
    )
    assert read_tokenizer(tmp_path).pad_token == 1


def test_a_folder_s_unknown_pad_token_is_refused(small, tmp_path):
    write_tokenizer(tmp_path, small)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"pad_token '\[PAD\]' is not in its vocabulary"):
        read_tokenizer(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the folder must hold tokenizer.json, or vocab.json"):
        read_tokenizer(tmp_path)


def test_another_layout_of_ids_is_read_as_it_is(small, tmp_path):
    write_tokenizer(tmp_path, small)
    ids = small.ids | {"a": small.ids["b"], "b": small.ids["a"]}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    other, reference = read_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    assert other.ids == ids
    assert other.encode("abc") == reference("abc").input_ids[1:-1] != small.encode("abc")


# --- longer prompts and weights ------------------------------------------------------------------


@pytest.mark.parametrize(("words", "rows"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunks_hold_every_piece_between_their_own_marks(official, words, rows):
    text = " ".join(random.Random(words).choices(["cat", "dog", "fox"], k=words))
    tokens = chunks(official, text)
    assert tokens.shape == (rows, 77)
    inner = [index for row in tokens.tolist() for index in row if index < official.begin]
    assert inner == official.encode(text)
    assert tokens[:, 0].tolist() == [official.begin] * rows
    assert tokens[:, -1].tolist() == [official.end] * rows


def test_a_short_prompt_is_one_ordinary_row(official):
    assert torch.equal(chunks(official, "a cat"), official("a cat"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a cat", [("a cat", 1.0)]),
        ("a (red:1.3) cat", [("a ", 1.0), ("red", 1.3), (" cat", 1.0)]),
        ("(a: b:.5)(c:-2)", [("a: b", 0.5), ("c", -2.0)]),
        (r"\(photo\) (a\)b:2)", [("(photo) ", 1.0), ("a)b", 2.0)]),
        (r"back\slash 16:9", [(r"back\slash 16:9", 1.0)]),
    ],
)
def test_weights_are_read(text, parts):
    assert parse_weights(text) == parts


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a (cat", "(cat"),
        ("a cat) b", ") b"),
        ("(cat)", "(cat)"),
        ("(cat:much)", "(cat:much)"),
        ("(cat:1,2)", "(cat:1,2)"),
        ("((a:1.1) b:1.2)", "((a:1.1) b:1.2)"),
        ("(:1.2)", "(:1.2)"),
    ],
)
def test_a_weight_that_cannot_be_read_is_named(text, wrong):
    with pytest.raises(ValueError, match=r"Write \(words:1.2\)") as error:
        parse_weights(text)
    assert repr(wrong) in str(error.value)


def test_each_token_has_the_weight_of_its_words(official):
    tokens, weights = weighted_chunks(official, "a (dreambeach fox:1.5) runs")
    assert torch.equal(tokens, official("a dreambeach fox runs"))
    assert weights.shape == (1, 77)
    assert weights[0, :7].tolist() == [1, 1, 1.5, 1.5, 1.5, 1, 1]
    assert weights[0, 7:].unique().tolist() == [1]


def test_weights_run_on_over_chunks(official):
    tokens, weights = weighted_chunks(official, "cat " * 74 + "(red fox:0.5) dog")
    assert torch.equal(tokens, chunks(official, "cat " * 74 + "red fox dog"))
    assert weights.shape == (2, 77)
    assert weights[0, 74:].tolist() == [1, 0.5, 1]
    assert weights[1, :4].tolist() == [1, 0.5, 1, 1]


@pytest.mark.parametrize("text", ["", "a red fox"])
def test_without_weights_nothing_changes(official, text):
    tokens, weights = weighted_chunks(official, text)
    assert torch.equal(tokens, official(text))
    context = torch.randn(1, 77, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(emphasize(context, weights), context)


def test_emphasis_keeps_each_prompt_s_mean_and_the_ratio_of_its_tokens():
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(2, 5, 8, generator=generator, dtype=torch.float64)
    weights = torch.tensor([[1, 2, 0.5, 1, 1], [1, 1, 1, 0, 1]])
    result = emphasize(context, weights)
    assert_close(result.mean(dim=(1, 2)), context.mean(dim=(1, 2)))
    plain = (result / context)[:, :, 0]
    assert_close(plain / plain[:, :1], weights.double())
    assert_close(emphasize(context[1:], weights[1:]), result[1:])


def test_emphasis_bears_a_mean_of_zero():
    context = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    assert torch.equal(emphasize(context, torch.ones(1, 2)), context)
    assert emphasize(context, torch.tensor([[1.0, 1.5]])).isfinite().all()
