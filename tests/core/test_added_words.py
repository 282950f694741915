"""Words added to a vocabulary: found, read, kept and written as transformers does it.

The reference is the installed CLIPTokenizer (transformers 5, tokenizers' AddedToken).
"""

import json
import random
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AddedToken, CLIPTextModel, CLIPTokenizer

from minisd.checkpoints.folder_tokenizer import (
    CONFIG_TABLE,
    FAST_TABLE,
    MODEL_TABLE,
    SPECIAL_MAP_TABLE,
    read_tokenizer,
    write_tokenizer,
)
from minisd.checkpoints.load import load
from minisd.checkpoints.write import convert
from minisd.tokenizer import AddedWord, Tokenizer
from tests.helpers.checkpoint_files import V1, V2, pipeline

PIECES = ["a", "at", "ca", "cat", "toy", "toys", "<toy>", "<cat-toy>", "1", "12", "'s", "</w>"]
PIECES += ["é", "É", "e\u0301", "E\u0301", "İ", "ı", "x", "и", "И", "猫", "猫の"]
PIECES += [" ", "  ", "\n", "\u2003", *"-_,!'<>*|"]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TEXTS = (
    "a<cat-toy>b",
    "<cat-toy>s",
    "two<cat-toy><cat-toy>",
    "A <CAT-TOY>, and a <Cat-Toy>.",
    "the <cat-toy>'s toy, toys, atoys and TOY-toy",
    "éclair É e\u0301toy cafés café",
    "<cat-toy",
    "my  big\n toy",
    "a mybig toy_2 toy2 2toy",
    "猫のtoy猫 привет ПРИВЕТтоу",
    "<|startoftext|>toy<|endoftext|>",
    "",
)
WORDS = ("<cat-toy>", "<cat-toy>s", "kittentoy", "zib", "café", "my big toy", "猫の", "привет")


@pytest.fixture(scope="module")
def small():
    return Tokenizer.train(["a cat and a dog, two toys; it's été ça"] * 3, 530)


@pytest.fixture
def folder(small, tmp_path):
    write_tokenizer(tmp_path / "small", small)
    return tmp_path / "small"


def theirs(path):
    return CLIPTokenizer.from_pretrained(path)


def ids_of(reference, text):
    return reference(text).input_ids[1:-1]


def assert_alike(ours, reference, texts=TEXTS):
    assert [ours.encode(text) for text in texts] == [ids_of(reference, text) for text in texts]


def change(path, **settings):
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(stored | settings), encoding="utf-8")


# ---- finding words in a text -------------------------------------------------------------------


@pytest.mark.parametrize("words", [WORDS, WORDS[::-1], ("zib",), ("<a>", "<a><b>", "b>")])
def test_words_are_found_as_transformers_finds_them(tmp_path, words):
    """Anywhere, also inside other words: "zib" in "zibs"; the longest that begins first wins."""
    ours = Tokenizer.clip()
    write_tokenizer(tmp_path, ours)
    reference = theirs(tmp_path)
    reference.add_tokens(list(words))
    for word in words:
        ours.add_word(word)
    texts = [*TEXTS, *(f"x{word}y" for word in words), *(word.upper() + "s" for word in words)]
    assert_alike(ours, reference, [*texts, "zibs and azib", "<a><b>b>", "<A><B>b> <a>b>"])


def random_words(rng, ids):
    words, taken = [], set()
    for _ in range(rng.randint(1, 5)):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 3)))
        special = rng.random() < 0.3
        flags = {name: rng.random() < 0.25 for name in ("single_word", "lstrip", "rstrip")}
        normalized = not special if rng.random() < 0.7 else rng.random() < 0.5
        own = len(ids) + sum(word.word not in ids for word in words)
        place = (ids.get(text, own),)
        word = AddedWord(text, place, normalized=normalized, special=special, **flags)
        if text.strip() and not {word.form, text} & taken:
            taken |= {word.form, text}
            words.append(word)
    return words


def test_random_words_with_random_flags_are_found_as_transformers_finds_them(small, folder):
    rng, found = random.Random(0), 0
    for _ in range(400):
        words = random_words(rng, small.ids)
        ours, reference = Tokenizer(small.merges, None, words), theirs(folder)
        flags = [{name: getattr(word, name) for name in FLAGS} for word in words]
        reference.add_tokens(
            [AddedToken(w.word, **own) for w, own in zip(words, flags, strict=True)]
        )
        parts = PIECES + [word.word for word in words] * 4
        texts = ["".join(rng.choices(parts, k=rng.randint(1, 8))) for _ in range(6)]
        assert_alike(ours, reference, texts)
        found += sum(i in ours.encode(text) for text in texts for w in words for i in w.ids)
    assert found > 1000


def test_an_upper_case_sigma_is_that_of_transformers_within_words_only(small, folder):
    """OpenAI's tokenizer, the reference for all other text, knows the sigma of a word's end."""
    word = AddedWord("ΣΊΣ", (530,))
    reference = theirs(folder)
    reference.add_tokens([word.word])
    ours = Tokenizer(small.merges, None, [word])
    for text in ("ΣΊΣ", "σίσ", "aΣΊΣb"):
        assert ours.encode(text) == ids_of(reference, text)
    assert ours.encode("ΣΊς") != [530]


@pytest.mark.parametrize(
    ("word", "count", "sentence"),
    [
        ("", 1, "is empty"),
        (" \n", 1, "is empty"),
        ("<toy>", 1, "is already taken"),
        ("<TOY>", 1, "is already taken"),
        ("toy", 1, "in the vocabulary already"),
        ("<|endoftext|>", 1, "in the vocabulary already"),
        ("<|EndOfText|>", 1, "is already taken"),
        ("<long>", 76, "has 76 vectors. Give it 1 to 75"),
    ],
)
def test_a_word_that_cannot_be_added_is_named(word, count, sentence):
    ours = Tokenizer.clip()
    ours.add_word("<toy>")
    before = list(ours.vocabulary), dict(ours.added_words.by_form)
    with pytest.raises(ValueError, match=sentence):
        ours.add_word(word, count)
    assert (ours.vocabulary, ours.added_words.by_form) == before


# ---- rows --------------------------------------------------------------------------------------


def test_a_word_of_several_vectors_is_not_cut_at_a_chunk_s_end():
    """As AUTOMATIC1111's web UI: what does not fit begins the next chunk, with its weight."""
    from minisd.prompt import chunks, weighted_chunks

    ours = Tokenizer.clip()
    ids = ours.add_word("<toy>", 3)
    (cat,) = ours.encode("cat")
    for before, first in {72: 75, 73: 73, 74: 74}.items():
        rows = chunks(ours, "cat " * before + "<toy> cat")
        inner = [[i for i in row if i not in (ours.begin, ours.end)] for row in rows.tolist()]
        all_ids = [*[cat] * before, *ids, cat]
        assert inner == [all_ids[:first], all_ids[first:]]
        tokens, weights = weighted_chunks(ours, "cat " * before + "(<toy>:1.5) cat")
        assert torch.equal(tokens, rows)
        assert torch.equal(weights == 1.5, torch.isin(tokens, torch.tensor(ids)))
    longest = ours.add_word("<longest>", 75)
    assert chunks(ours, "cat <longest>")[1, 1:76].tolist() == longest


def test_a_typed_end_mark_beyond_the_row_is_a_loss_too():
    with pytest.warns(UserWarning, match="too long"):
        Tokenizer.clip()("cat " * 75 + "<|endoftext|>")


def test_a_cut_word_is_named_in_the_warning():
    ours = Tokenizer.clip()
    ids = ours.add_word("<toy>", 3)
    with pytest.warns(UserWarning, match="not read: '<toy> red fox'"):
        row = ours("cat " * 74 + "<toy> red fox")[0]
    assert row[75:].tolist() == [ids[0], ours.end]


# ---- the folder --------------------------------------------------------------------------------

TOY = {"content": "<cat-toy>", "lstrip": False, "rstrip": False, "normalized": True}
TOY |= {"single_word": False, "special": False}


def in_added_tokens(path, small):
    change(path / "added_tokens.json", **{"<cat-toy>": 530, "My Big Toy": 531, "toy": 521})


def in_decoder(path, small):
    words = {530: TOY, 531: TOY | {"content": "zib", "single_word": True, "normalized": False}}
    marks = {small.begin: TOY | {"content": "<|startoftext|>", "special": True}}
    change(path / "tokenizer_config.json", added_tokens_decoder=marks | words)


def in_tokenizer_json(path, small):
    tokenizer = theirs(path)
    tokenizer.add_tokens([AddedToken("<cat-toy>", single_word=True), "zib"])
    tokenizer.add_tokens([AddedToken("<Special>", special=True, lstrip=True)])
    tokenizer.save_pretrained(path)
    (path / "vocab.json").unlink()
    (path / "merges.txt").unlink()


def in_special_tokens_map(path, small):
    change(path / "special_tokens_map.json", additional_special_tokens=["<Toy>", "<cat-toy>"])
    change(path / "added_tokens.json", **{"<cat-toy>": 530, "zib": 531})


def in_the_config(path, small):
    change(path / "tokenizer_config.json", extra_special_tokens=["<Toy>"])
    change(path / "added_tokens.json", zib=530)


def as_the_padding(path, small):
    change(path / "tokenizer_config.json", pad_token="<pad>")
    change(path / "added_tokens.json", **{"<pad>": 530, "zib": 531})


PLACES = (
    *(in_added_tokens, in_decoder, in_tokenizer_json),
    *(in_special_tokens_map, in_the_config, as_the_padding),
)


@pytest.mark.parametrize("place", PLACES)
def test_added_words_are_read_and_kept_as_transformers_reads_them(small, folder, tmp_path, place):
    place(folder, small)
    ours, reference = read_tokenizer(folder), theirs(folder)
    texts = [*TEXTS, "<Toy><toy>", "zibs zib", "<Special> <special>", "x<pad>", "My  big toyS"]
    assert_alike(ours, reference, texts)
    assert ours.pad_token == reference.pad_token_id
    assert len(ours.vocabulary) == len(reference) > small.vocab_size == ours.vocab_size
    added = {word.word: word.ids[0] for word in ours.words}
    marks = ("<|startoftext|>", "<|endoftext|>")
    assert added == {k: v for k, v in reference.get_added_vocab().items() if k not in marks}

    write_tokenizer(tmp_path / "again", ours)
    again = theirs(tmp_path / "again")
    assert_alike(ours, again, texts)
    new = {i: token for i, token in again.added_tokens_decoder.items() if i >= 530}
    assert new == {i: t for i, t in reference.added_tokens_decoder.items() if i >= 530}
    listed = json.loads((tmp_path / "again/added_tokens.json").read_text(encoding="utf-8"))
    assert listed == added
    for copy in (read_tokenizer(tmp_path / "again"), Tokenizer.from_json(ours.to_json())):
        assert (copy.words, copy.pad_token) == (ours.words, ours.pad_token)


DECODER = {"added_tokens_decoder": {"530": TOY}}


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"added_tokens": {"<a>": 531}}, "'<a>' has the id 531, but the next free id is 530"),
        ({"added_tokens": {"<a>": 530, "<b>": 530}}, "'<b>' has the id 530, .* is 531"),
        ({"added_tokens": {"<a>": 530, "<A>": 531}}, "'<A>' is already taken"),
        ({"added_tokens": {"toy": 530}}, "'toy' has the id 530, but the id 521 in vocab.json"),
        ({"added_tokens": {"<a>": "530"}}, "of the wrong type"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"530": TOY | {"lstrip": "no"}}}},
            "lstrip = 'no' in its list of added words",
        ),
        ({"added_tokens": {"<cat-toy>": 531}, "tokenizer_config": DECODER}, "contradict"),
        ({"added_tokens": {"<a>": 531}, "tokenizer_config": DECODER}, "'<a>' is not in added_tok"),
        ({"tokenizer_config": {"added_tokens_decoder": {"530": TOY | {"odd": 1}}}}, "odd = 1"),
        ({"tokenizer_config": {"additional_special_tokens": {"a": "b"}}}, "or are damaged"),
        (
            {
                "tokenizer_config": {"additional_special_tokens": ["<a>"]},
                "special_tokens_map": {"additional_special_tokens": ["<b>"]},
            },
            "lists of special tokens differ or are damaged",
        ),
        (
            {"tokenizer_config": DECODER, "special_tokens_map": {"pad_token": "!"}},
            r"pad_token is '<\|endoftext\|>' in .*, but '!' in",
        ),
        ({"tokenizer_config": {"unk_token": "<unk>"}}, "unk_token '<unk>' is not in its voc"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(folder, files, sentence):
    for name, settings in files.items():
        change(folder / f"{name}.json", **settings)
    with pytest.raises(ValueError, match=sentence):
        read_tokenizer(folder)


def test_two_vocabularies_in_a_folder_must_be_alike(small, folder):
    theirs(folder).save_pretrained(folder)  # a tokenizer.json next to vocab.json and merges.txt
    assert read_tokenizer(folder).ids == small.ids
    change(folder / "vocab.json", cat=7)
    with pytest.raises(ValueError, match=r"tokenizer\.json differs from vocab"):
        read_tokenizer(folder)


def token(content):
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": content, **flags}


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PUBLISHED_V2 = {
    "add_prefix_space": False,
    "bos_token": {"__type": "AddedToken", **token(BEGIN)},
    "do_lower_case": True,
    "eos_token": {"__type": "AddedToken", **token(END)},
    "errors": "replace",
    "model_max_length": 77,
    "name_or_path": "hf-models/stable-diffusion-v2-768x768/tokenizer",
    "pad_token": END,
    "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": {"__type": "AddedToken", **token(END)},
}
PUBLISHED_TURBO = {
    "add_prefix_space": False,
    "added_tokens_decoder": {
        "0": token("!") | {"normalized": False, "special": True},
        "49406": token(BEGIN) | {"special": True},
        "49407": token(END) | {"special": True},
    },
    "additional_special_tokens": [],
    "bos_token": BEGIN,
    "clean_up_tokenization_spaces": True,
    "do_lower_case": True,
    "eos_token": END,
    "errors": "replace",
    "extra_special_tokens": {},
    "model_max_length": 77,
    "pad_token": "!",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": END,
}


@pytest.mark.parametrize("settings", [PUBLISHED_V2, PUBLISHED_TURBO], ids=["sd2", "sd-turbo"])
def test_the_settings_of_published_folders_are_known(tmp_path, settings):
    write_tokenizer(tmp_path, Tokenizer.clip())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    marks = {"bos_token": token(BEGIN), "eos_token": token(END), "unk_token": token(END)}
    change(tmp_path / "special_tokens_map.json", **marks, pad_token="!")
    ours, reference = read_tokenizer(tmp_path), theirs(tmp_path)
    assert ours.pad_token == reference.pad_token_id == 0
    assert ours.words == []
    texts = [text for text in TEXTS if "!" not in text and "<|" not in text]
    assert_alike(ours, reference, texts)


TABLES = {
    "tokenizer_config": CONFIG_TABLE,
    "special_tokens_map": SPECIAL_MAP_TABLE,
    "tokenizer": FAST_TABLE,
}
ODD = {
    "normalizer": {"type": "NFKC"},
    "pre_tokenizer": None,
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
    "model_max_length": 1000000000000000019884624838656,
    "tokenizer_class": "BertTokenizer",
    "bos_token": {"content": "!", "special": True},
}


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, table in TABLES.items() for name in table.fixed]
)
def test_a_setting_that_would_change_the_ids_is_refused_by_name(folder, file, name):
    reference = theirs(folder)
    if file == "tokenizer":
        reference.save_pretrained(folder)
    path = folder / f"{file}.json"
    absent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    absent.pop(name, None)
    path.write_text(json.dumps(absent), encoding="utf-8")
    before = read_tokenizer(folder)
    assert_alike(before, reference)  # an absent setting means the reference's default
    change(path, **{name: ODD.get(name, "odd")})
    with pytest.raises(ValueError, match=f"has {name} = .* in its {file}.json: minisd knows only "):
        read_tokenizer(folder)


@pytest.mark.parametrize("file", TABLES)
def test_settings_that_cannot_matter_are_ignored_and_unknown_ones_refused(folder, file):
    reference = theirs(folder)
    if file == "tokenizer":
        reference.save_pretrained(folder)
    path = folder / f"{file}.json"
    change(path, **{name: None for name in TABLES[file].ignored}, _note="x", other=None)
    assert_alike(read_tokenizer(folder), reference)
    change(path, strip_accents=True)
    with pytest.raises(
        ValueError, match=f"has the unknown setting strip_accents = True in its {file}.json"
    ):
        read_tokenizer(folder)


@pytest.mark.parametrize("name", [*MODEL_TABLE.fixed, "odd"])
def test_another_kind_of_merging_is_refused_by_name(folder, name):
    theirs(folder).save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(folder / "tokenizer.json", model=stored["model"] | {name: "odd"})
    with pytest.raises(ValueError, match=f" {name} = 'odd' in its tokenizer.json under model"):
        read_tokenizer(folder)


# ---- a whole model -----------------------------------------------------------------------------


def with_words(config, path, **words):
    """A diffusers folder whose words have vectors of their own, as diffusers' script saves it."""
    pipe = pipeline(config, path / "tokenizer-of-its-own")
    pipe.tokenizer.add_tokens([AddedToken(word, **flags) for word, flags in words.items()])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    table = pipe.text_encoder.get_input_embeddings().weight.data
    table[-len(words) :] = torch.randn(len(words), table.shape[1])
    pipe.text_encoder.config.eos_token_id = pipe.tokenizer.eos_token_id
    pipe.save_pretrained(path / "model")
    return path / "model", pipe


@torch.no_grad()
def contexts(pipe, texts):
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = pipe.tokenizer(texts, **settings).input_ids
    return ids, pipe.text_encoder(ids).last_hidden_state


SENTENCES = ["a<cat-toy>b on a beach", "<cat-toy> zibs ZIB"]


@pytest.mark.parametrize("config", [V1, V2], ids=["v1", "v2"])
def test_a_model_s_added_words_have_their_vectors_and_survive_convert(config, tmp_path):
    words = {"<cat-toy>": {}, "zib": {"special": True, "single_word": True}}
    source, pipe = with_words(config, tmp_path, **words)
    ids, expected = contexts(pipe, SENTENCES)
    convert(source, tmp_path / "folder")
    convert(source, tmp_path / "original.safetensors")
    convert(tmp_path / "folder", tmp_path / "ours.safetensors", "ours")
    convert(tmp_path / "ours.safetensors", tmp_path / "back")
    convert(tmp_path / "original.safetensors", tmp_path / "back-too")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in (source, *(tmp_path / f"{kind}.safetensors" for kind in ("original", "ours"))):
            parts = load(path)
            assert torch.equal(parts.tokenizer(SENTENCES), ids)
            found = parts.text_encoder(ids)
            assert (found - expected).abs().max() < 1e-5 * expected.std() * 10
    for path in (tmp_path / "folder", tmp_path / "back", tmp_path / "back-too"):
        tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer")
        tower = CLIPTextModel.from_pretrained(path / "text_encoder")
        pipe.register_modules(tokenizer=tokenizer, text_encoder=tower)
        assert torch.equal(contexts(pipe, SENTENCES)[0], ids)
        assert torch.equal(contexts(pipe, SENTENCES)[1], expected)
        stored = json.loads((path / "text_encoder/config.json").read_text(encoding="utf-8"))
        assert (stored["bos_token_id"], stored["eos_token_id"]) == (49406, 49407)
        assert stored["vocab_size"] == 49410


def test_vectors_without_a_word_and_words_without_a_vector_are_named(tmp_path):
    source, _ = with_words(V1, tmp_path, **{"<a>": {}, "<b>": {}})
    convert(source, tmp_path / "file.safetensors")
    fast = source / "tokenizer/tokenizer.json"
    stored = json.loads(fast.read_text(encoding="utf-8"))
    extra = {"id": 49410, "content": "<c>", "special": False}
    change(fast, added_tokens=[*stored["added_tokens"], extra])
    missing = "for 49410 tokens, .* has 49411 tokens: the words '<c>' have no vector"
    with pytest.raises(ValueError, match=missing):
        load(source)
    change(fast, added_tokens=stored["added_tokens"][:-1])
    unused = "49410 tokens, .* has only 49409 tokens: no word uses the last 1"
    with pytest.warns(UserWarning, match=unused):
        assert load(source).tokenizer.encode("<a>") == [49408]
    tensors = load_file(tmp_path / "file.safetensors")
    save_file(tensors, tmp_path / "plain.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="no word uses the last 2"):
        load(tmp_path / "plain.safetensors", prediction="eps")
