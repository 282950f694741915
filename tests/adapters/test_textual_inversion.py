"""Textual inversion: several words in a file, words inside words, long words, what is refused."""

import itertools
import random
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from minisd.adapters.textual_inversion import Word, Words, textual_inversion
from tests.helpers.pipeline_pairs import (
    NO_FILTER,
    both_pipelines,
    drawn,
    drawn_by_diffusers,
    family_pair,
)
from tests.helpers.side_by_side import relative_error
from tests.helpers.threads import frequent_switches
from tests.helpers.tiny_models import V1

END_TO_END = 1e-4  # float32, largest error over the reference's spread
WIDTH = V1.text.width


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    return both_pipelines(V1, StableDiffusionPipeline, tmp_path_factory.mktemp("pair"), **NO_FILTER)


@pytest.fixture(scope="module")
def sd(pair_of):
    return pair_of[0]


@pytest.fixture(scope="module", params=["v1", "v2"])
def each_pair(request, tmp_path_factory):
    return family_pair(request.param, tmp_path_factory.mktemp("each"))


@pytest.fixture(autouse=True)
def nothing_left(sd):
    yield
    assert sd.tokenizer.added_words.ids == {}
    assert not sd.text_encoder.token_embedding._forward_hooks


def vectors(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def saved(path, content):
    if path.suffix == ".safetensors":
        save_file({key: tensor.clone() for key, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def looked_up(sd, text):
    with torch.no_grad():
        return sd.text_encoder.token_embedding(torch.tensor([sd.tokenizer.encode(text)]))[0]


def word_files(vectors, folder):
    """The same vectors as the three kinds of file: path -> the word it has."""
    vectors = vectors.clone()
    torch.save({"<toy>": vectors[0] if len(vectors) == 1 else vectors}, folder / "learned.bin")
    about = {"string_to_token": {"*": torch.tensor(265)}, "name": "toy", "step": 5}
    torch.save({**about, "string_to_param": {"*": vectors}}, folder / "<toy>.pt")
    save_file({"emb_params": vectors}, folder / "<toy>.safetensors")
    return [folder / name for name in ("learned.bin", "<toy>.pt", "<toy>.safetensors")]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["diffusers", "web-ui", "emb_params"])
@pytest.mark.parametrize("count", [1, 3])
def test_textual_inversion_is_that_of_diffusers(each_pair, tmp_path, kind, count):
    ours, theirs = each_pair
    vectors = torch.randn(count, ours.config.text.width, generator=torch.Generator().manual_seed(0))
    path = word_files(vectors, tmp_path)[kind]
    prompts = ["a photo of <toy> on a beach", "<toy>, <toy> and a cat"]
    plain, ids = drawn(ours, prompts), ours.tokenizer.encode("a <toy> cat")
    if count == 1:
        theirs.load_textual_inversion(str(path), token="<toy>")
        expected = drawn_by_diffusers(theirs, prompts)
    else:  # diffusers no longer splits a word of several vectors: give it as many words instead
        words = [f"<toy{i}>" for i in range(count)]
        for word, vector in zip(words, vectors, strict=True):
            theirs.load_textual_inversion({word: vector}, token=word)
        spelt = [prompt.replace("<toy>", " ".join(words)) for prompt in prompts]
        expected = drawn_by_diffusers(theirs, spelt)
    theirs.unload_textual_inversion()
    with textual_inversion(ours, path):
        assert relative_error(drawn(ours, prompts), expected) < END_TO_END
        row = ours.tokenizer.encode("<toy>")
        assert torch.equal(ours.text_encoder.token_embedding(torch.tensor([row]))[0], vectors)
        assert len(ours.tokenizer.encode("a <toy> cat")) == 2 + count
        assert ours.tokenizer.decode(ours.tokenizer.encode("a <TOY> cat")) == "a <toy> cat"
        assert relative_error(drawn(ours, prompts), plain) > 100 * END_TO_END
    assert torch.equal(drawn(ours, prompts), plain)
    assert ours.tokenizer.encode("a <toy> cat") == ids


def test_several_words_go_in_any_order(each_pair, tmp_path):
    sd, _ = each_pair
    width = sd.config.text.width
    for name in ("blorp", "zib"):
        save_file({"emb_params": torch.randn(2, width)}, tmp_path / f"{name}.safetensors")
    plain = drawn(sd, ["blorp and zib"])
    first = textual_inversion(sd, tmp_path / "blorp.safetensors")
    second = textual_inversion(sd, tmp_path / "zib.safetensors")
    assert sd.tokenizer.encode("blorps") != sd.tokenizer.encode("blorp")
    assert len(sd.tokenizer.encode("blorp, zib")) == 5
    with textual_inversion(sd, tmp_path / "blorp.safetensors", word="<b>") as marked:
        assert sd.tokenizer.added_words.ids["<b>"] == sd.tokenizer.encode("x<b>s")[1:3]
        assert marked.word == "<b>"
    with pytest.raises(ValueError, match="'zib' is already taken"):
        textual_inversion(sd, tmp_path / "zib.safetensors")
    both_words = drawn(sd, ["blorp and zib"])
    first.remove()
    assert not torch.equal(drawn(sd, ["blorp and zib"]), both_words)
    second.remove()
    second.remove()
    assert torch.equal(drawn(sd, ["blorp and zib"]), plain)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"emb_params": torch.ones(1, 7)}, "vectors of width 7, but .* has width 64"),
        ({"emb_params": torch.full((1, 64), torch.nan)}, "NaN or infinity"),
        ({"a": torch.ones(64), "<b>": torch.ones(64)}, "'a' is in the vocabulary already"),
        ({"emb_params": torch.ones(1, 2, 3)}, "holds no word"),
    ],
)
def test_a_file_without_a_word_of_this_model_is_refused(each_pair, tmp_path, content, sentence):
    sd, _ = each_pair
    save_file(content, tmp_path / "word.safetensors")
    with pytest.raises(ValueError, match=sentence):
        textual_inversion(sd, tmp_path / "word.safetensors")
    assert sd.tokenizer.added_words.ids == {}


@pytest.mark.parametrize("count", [1, 3])
def test_a_word_touched_by_letters_is_drawn_as_by_diffusers(pair_of, tmp_path, count):
    """diffusers puts "<toy> <toy>_1 <toy>_2" into the prompt itself (maybe_convert_prompt)."""
    ours, theirs = pair_of
    path = saved(tmp_path / "toy.safetensors", {"<toy>": vectors(count)})
    plural = saved(tmp_path / "zib.safetensors", {"zib": vectors(count, 1)})
    theirs.load_textual_inversion(str(path))
    theirs.load_textual_inversion(str(plural))
    prompts = ["a<toy>b, <toy><toy>s", "zibs and a zib's <toy>"]
    expected = drawn_by_diffusers(theirs, prompts)
    theirs.unload_textual_inversion()
    with textual_inversion(ours, path), textual_inversion(ours, plural):
        assert relative_error(drawn(ours, prompts), expected) < END_TO_END
    assert relative_error(drawn(ours, prompts), expected) > 100 * END_TO_END


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_several_words_in_a_file_are_all_learnt_or_one_is_chosen(sd, tmp_path, ending):
    own = {"<a>": vectors(1, 1), "<b>": vectors(3, 2)[0], "zib": vectors(2, 3)}
    path = saved(tmp_path / f"learned_embeds.{ending}", own)
    expected = {word: own[word].reshape(-1, WIDTH) for word in own}
    with textual_inversion(sd, path) as words:
        assert isinstance(words, Words)
        assert [word.word for word in words.words] == list(own)
        for word in own:
            assert torch.equal(looked_up(sd, word), expected[word])
    with textual_inversion(sd, path, word="<b>") as word:
        assert isinstance(word, Word)
        assert list(sd.tokenizer.added_words.ids) == ["<b>"]
        assert torch.equal(looked_up(sd, "<b>"), expected["<b>"])
    with pytest.raises(ValueError, match="holds the words <a>, <b>, zib: give one of them"):
        textual_inversion(sd, path, word="<c>")
    words.remove()
    words.remove()


def test_one_word_that_cannot_be_learnt_leaves_none(sd, tmp_path):
    path = saved(tmp_path / "words.pt", {"<a>": vectors(1), "toy": vectors(1)})
    taken = r"^words\.pt .*'toy' is in the vocabulary already\. Choose another"
    with pytest.raises(ValueError, match=taken):
        textual_inversion(sd, path)
    with textual_inversion(sd, path, word="<a>"):
        assert list(sd.tokenizer.added_words.ids) == ["<a>"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("<toy>.pt", vectors(2)),
        ("<toy>.safetensors", {"clip_l": vectors(2)}),
        ("<toy>.safetensors", {"emb_params": vectors(2)}),
        ("any.pt", {"<toy>": torch.nn.Parameter(vectors(2))}),
        (
            "<toy>.pt",
            {
                "string_to_token": {"*": torch.tensor(265)},
                "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors(2))}),
                "name": "toy",
                "step": 500,
            },
        ),
    ],
)
def test_every_kind_of_file_names_its_word(sd, tmp_path, name, content):
    with textual_inversion(sd, saved(tmp_path / name, content)) as word:
        assert word.word == "<toy>"
        assert torch.equal(looked_up(sd, "a <toy>")[1:], vectors(2))


def test_several_placeholders_of_one_training_are_words(sd, tmp_path):
    content = {"string_to_param": {"<a>": vectors(1), "<b>": vectors(1, 1)}}
    with textual_inversion(sd, saved(tmp_path / "embeddings.pt", content)):
        assert torch.equal(looked_up(sd, "<a><b>"), torch.cat([vectors(1), vectors(1, 1)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_vectors_of_any_dtype_are_numbers(sd, tmp_path, dtype):
    path = saved(tmp_path / "zib.pt", {"zib": (3 * vectors(2)).to(dtype)})
    with textual_inversion(sd, path):
        assert torch.equal(looked_up(sd, "zib"), (3 * vectors(2)).to(dtype).float())


@pytest.mark.parametrize(
    ("content", "word", "sentence"),
    [
        ({"<a>": vectors(1), "emb_params": vectors(1)}, None, "also unknown tensors"),
        ({"emb_params": vectors(1), "optimizer": torch.tensor(1)}, None, "also unknown tensors"),
        ({"emb_params": vectors(76)}, None, "has 76 vectors. Give it 1 to 75"),
        ({"emb_params": vectors(1)}, "<|endoftext|>", "in the vocabulary already"),
        ({"emb_params": vectors(1)}, "cat", "'cat' is in the vocabulary already"),
        ({"emb_params": vectors(1)}, "", "is empty"),
        ({"<a>": vectors(1), "<b>": torch.ones(7)}, None, "vectors of width 7"),
        ({"<a>": vectors(1), "<b>": torch.full((WIDTH,), torch.inf)}, None, "NaN or infinity"),
        ({"<a>": torch.ones(2, 2, WIDTH)}, None, "holds no word"),
        ({"string_to_token": {"*": torch.tensor(265)}}, None, "holds no word"),
        ({"lora_unet_x.lora_down.weight": vectors(4)}, None, "is a LoRA, not a textual inversion"),
        ({"768.0.linear.weight": vectors(4)}, None, "is a hypernetwork, not a textual inversion"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused(sd, tmp_path, content, word, sentence):
    path = saved(tmp_path / "zib.pt", content)
    with pytest.raises(ValueError, match=sentence):
        textual_inversion(sd, path, word)


def test_a_word_that_a_folder_added_is_taken(sd, tmp_path):
    from minisd.tokenizer import AddedWord, Tokenizer

    before = sd.tokenizer
    sd.tokenizer = Tokenizer(before.merges, None, [AddedWord("<Toy>", (before.vocab_size,))])
    path = saved(tmp_path / "<toy>.pt", vectors(1))
    try:
        with pytest.raises(ValueError, match="the word '<toy>' is already taken"):
            textual_inversion(sd, path)
        with textual_inversion(sd, path, word="zib"):
            assert sd.tokenizer.encode("<toy> zib") == [before.vocab_size, before.vocab_size + 1]
            assert re.search("<Toy>", sd.tokenizer.to_json())
            assert not re.search("zib", sd.tokenizer.to_json().partition("merges")[0])
    finally:
        sd.tokenizer = before


def test_a_long_prompt_keeps_a_word_s_vectors_together_and_weighs_all(sd, tmp_path):
    path = saved(tmp_path / "<toy>.pt", vectors(3))
    with textual_inversion(sd, path):
        moved = sd.embed("cat " * 74 + "(<toy>:1.3) dog", extended=True)
        assert moved.shape == (1, 2 * 77, WIDTH)
        alone = sd.embed("(<toy>:1.3) dog", extended=True)
        # each chunk goes through the tower by itself; the mean that emphasis keeps is the prompt's
        ratio = moved[:, 77:] / alone
        assert ratio.std() < 1e-4


# --- threads -------------------------------------------------------------------------------------

THREADS, EMBEDDINGS = 4, 400
PARTS = ["<a>", "<b>", "zib", "zibs", " a cat", " red", " (<b> big:1.3)", " (zib:0.7)"]


def jobs():
    rng = random.Random(0)
    prompts = ["".join(rng.choices(PARTS, k=rng.randint(1, 8))) for _ in range(50)]
    return [(prompt, "(" in prompt) for prompt in prompts]


def embedded(sd, job):
    prompt, extended = job
    with torch.no_grad():
        return sd.embed(prompt, extended=extended)


@pytest.mark.filterwarnings("ignore:the prompt is too long")
@pytest.mark.parametrize("another_comes_and_goes", [False, True])
def test_embeddings_in_threads_are_those_of_a_lone_run(sd, another_comes_and_goes):
    over = Event()

    def come_and_go():
        for number in itertools.count():
            if over.is_set():
                return number
            Word(sd, f"<other{number}>", vectors(3)).remove()

    with (
        Words(sd, {"<a>": vectors(1, 1), "<b>": vectors(3, 2), "zib": vectors(8, 3)}),
        frequent_switches(1e-6),
    ):
        alone = {job: embedded(sd, job) for job in jobs()}
        work = list(itertools.islice(itertools.cycle(alone), EMBEDDINGS))
        with ThreadPoolExecutor(THREADS + 1) as pool:
            other = pool.submit(come_and_go) if another_comes_and_goes else None
            try:
                together = list(pool.map(lambda job: embedded(sd, job), work))
            finally:
                over.set()
            assert other is None or other.result() > 0
    assert all(torch.equal(one, alone[job]) for one, job in zip(together, work, strict=True))


def test_words_that_threads_add_have_ids_of_their_own(sd):
    with frequent_switches(1e-6), ThreadPoolExecutor(THREADS) as pool:
        words = list(pool.map(lambda i: Word(sd, f"<new{i}>", vectors(2, i)), range(100)))
        seen = list(sd.tokenizer.added_words.ids.values())
        right = [torch.equal(looked_up(sd, f"<new{i}>"), vectors(2, i)) for i in range(0, 100, 10)]
        list(pool.map(Word.remove, words))
    assert len({index for ids in seen for index in ids}) == 200
    assert all(right)
