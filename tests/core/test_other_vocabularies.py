"""Vocabularies whose ids are not laid out as CLIP's: those of tiny test models.

The reference is the installed CLIPTokenizer on the same folder. The tokenizers library trains the
vocabularies, as it did that of hf-internal-testing/tiny-random-clip; one is of transformers' test.
"""

import inspect
import json
import random

import diffusers
import pytest
import tokenizers
import torch
from tokenizers import normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

import minisd
from minisd.checkpoints.folder_tokenizer import read_tokenizer, write_tokenizer
from minisd.checkpoints.write import convert
from minisd.config import SD15
from minisd.tokenizer import Tokenizer
from tests.helpers.diffusers_tiny import SIDE, networks
from tests.helpers.reference_networks import ddim_scheduler, randomise
from tests.helpers.side_by_side import relative_error

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CODE = inspect.getsource(diffusers.schedulers.DDIMScheduler).splitlines()
RUNS = ["aaabbb ababab bababa abba baab aabb bbaa aaaa bbbb abb aab bba baa"[:n] for n in range(60)]
CAPTIONS = ["a cat and a dog, two toys; it's été ça 猫 猫の привет ------ 1 22"] * 3
PAD = {"__type": "AddedToken", "content": "<pad>", "lstrip": True, "normalized": True}

CLASSIC = ["l", "o", "w", "e", "r", "s", "t", "i", "d", "n", "lo", "l</w>", "w</w>", "r</w>"]
CLASSIC += ["t</w>", "low</w>", "er</w>", "lowest</w>", "newer</w>", "wider", "<unk>", BEGIN, END]
CLASSIC_MERGES = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>")]


def write(folder, vocabulary, merges, **marks):
    folder.mkdir(exist_ok=True)
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def trained(texts, size, first, whole_alphabet=False):
    """Vocabulary and merges of a BpeTrainer. first: the marks, which have the first ids."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet() if whole_alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=first,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    stored = json.loads(model.to_str())["model"]
    pieces = sorted(stored["vocab"], key=stored["vocab"].get)
    return pieces, [tuple(pair) for pair in stored["merges"]]


def classic(folder):
    return write(folder, CLASSIC, CLASSIC_MERGES, unk_token="<unk>")


def marks_first(folder):
    return write(folder, *trained(CODE, 1000, [BEGIN, END], whole_alphabet=True))


def few_characters(folder):
    return write(folder, *trained(CAPTIONS, 120, [END, "<unk>", BEGIN]), unk_token="<unk>")


def end_for_the_unknown(folder):
    return write(folder, *trained(RUNS, 60, [BEGIN, END]))


def own_padding(folder):
    marks = {"pad_token": PAD, "unk_token": "<unk>"}
    return write(folder, *trained(CAPTIONS, 150, ["<pad>", "<unk>", BEGIN, END]), **marks)


def merges_in_any_order(folder):
    pieces, merges = trained(RUNS, 60, [BEGIN, END])
    random.Random(1).shuffle(merges)
    return write(folder, pieces, merges)


def a_merge_that_an_earlier_one_uses(folder):
    """After the first "ab" of "ababb" comes the earlier merge, not the second: "aba b b</w>"."""
    pieces = ["a", "b", "a</w>", "b</w>", "ab", "aba", BEGIN, END]
    return write(folder, pieces, [("ab", "a"), ("a", "b")])


def no_merges(folder):
    return write(folder, ["a", "a</w>", "b", END, BEGIN], [])


def trained_by_transformers(folder):
    """As hf-internal-testing's own: a tokenizer.json from train_new_from_iterator."""
    old = CLIPTokenizer.from_pretrained(classic(folder))
    old.train_new_from_iterator(CODE, 1000).save_pretrained(folder)
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    path = folder / "tokenizer_config.json"
    stored = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": 77}
    path.write_text(json.dumps(stored), encoding="utf-8")
    return folder


KINDS = (classic, marks_first, few_characters, end_for_the_unknown, own_padding)
KINDS += (merges_in_any_order, a_merge_that_an_earlier_one_uses, no_merges)
KINDS += (trained_by_transformers,)


def random_texts():
    rng = random.Random(0)
    texts = ["", "lower newer low lo", "<unk>low <UNK> x<unk>y", "a <pad> <PAD>b", f"{BEGIN}a{END}"]
    texts += ["".join(rng.choices("ab", k=rng.randint(1, 12))) for _ in range(80)]
    texts += ["".join(rng.choices("abelnorstw 12-='猫é", k=rng.randint(1, 20))) for _ in range(80)]
    words = [word for line in CODE for word in line.split() if "&" not in word]
    return texts + [" ".join(rng.choices(words, k=3)) for _ in range(80)]


TEXTS = random_texts()


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_are_those_of_transformers(kind, tmp_path):
    """Also after a folder or a file of our own was written and read."""
    ours = read_tokenizer(kind(tmp_path / "a"))
    reference = CLIPTokenizer.from_pretrained(tmp_path / "a")
    marks = [reference.bos_token_id, reference.eos_token_id]
    marks += [reference.pad_token_id, reference.unk_token_id]
    assert [ours.begin, ours.end, ours.pad_token, ours.unk_token] == marks
    assert ours.ids == reference.get_vocab()
    expected = [reference(text).input_ids[1:-1] for text in TEXTS]
    write_tokenizer(tmp_path / "b", ours)
    ours.save(tmp_path / "c.json")
    stored = json.loads((tmp_path / "b/vocab.json").read_text(encoding="utf-8"))
    assert stored == ours.ids
    again = CLIPTokenizer.from_pretrained(tmp_path / "b")
    assert [again(text).input_ids[1:-1] for text in TEXTS] == expected
    for copy in (ours, read_tokenizer(tmp_path / "b"), Tokenizer.load(tmp_path / "c.json")):
        assert [copy.encode(text) for text in TEXTS] == expected
        assert copy.to_json() == ours.to_json()
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    assert torch.equal(ours(TEXTS[:5]), reference(TEXTS[:5], **settings).input_ids)
    assert ours.pieces("low") and ours.decode(ours.encode("low")) is not None


def test_the_words_can_be_read_again(tmp_path):
    ours = read_tokenizer(marks_first(tmp_path / "a"))
    assert (ours.begin, ours.end) == (0, 1)
    text = "the prediction is a tensor"
    assert ours.decode(ours(text)[0]) == text
    assert ours.pieces("the") == ["the</w>"]


@pytest.mark.parametrize(
    ("pieces", "merges", "sentence"),
    [
        (["a", "b</w>", BEGIN, END], [("a", "b</w>")], "merge .* does not join two earlier pieces"),
        (["b</w>", "ab</w>", BEGIN, END], [("a", "b</w>")], "merge .* does not join two earlier"),
        (["a", "b</w>", END], [], "startoftext.* is missing"),
        (["a", "b</w>", BEGIN], [], "pad_token '<.endoftext.>' is not in its vocabulary"),
    ],
)
def test_a_vocabulary_without_what_it_needs_is_refused(tmp_path, pieces, merges, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_tokenizer(write(tmp_path / "a", pieces, merges))


@pytest.mark.parametrize("ids", [(0, 1, 1), (0, 1, 3), (-1, 0, 1), (0, 1, 2.5)])
def test_ids_with_a_gap_or_twice_are_refused(tmp_path, ids):
    folder = write(tmp_path / "a", [], [])
    (folder / "vocab.json").write_text(
        json.dumps(dict(zip(["a", BEGIN, END], ids, strict=True))), encoding="utf-8"
    )
    with pytest.raises(
        ValueError, match="vocabulary does not have each id from 0 to 2 exactly once"
    ):
        read_tokenizer(folder)


@pytest.mark.filterwarnings("ignore:.*no word uses the last 907")
@pytest.mark.parametrize("kind", [marks_first, few_characters, trained_by_transformers])
def test_a_tiny_pipeline_draws_what_diffusers_draws(tmp_path, kind):
    parts = networks(4, False)
    for seed, network in enumerate(parts.values()):
        randomise(network.eval(), gain=1.0, seed=seed)
    tokenizer = CLIPTokenizer.from_pretrained(kind(tmp_path / "tokenizer"))
    scheduler = ddim_scheduler(SD15)
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = diffusers.StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=scheduler, **none
    )
    pipe.save_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    texts, size = ("a cat, two toys", "猫 blurry"), {"height": SIDE, "width": SIDE}
    theirs = pipe(
        texts[0],
        negative_prompt=texts[1],
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **size,
    ).images
    convert(tmp_path / "pipe", tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "back")
    for name in ("pipe", "ours.safetensors", "back"):
        sd = minisd.load(tmp_path / name)
        *_, step = sd.txt2img_steps(*texts, steps=3, cfg_scale=7.5, seed=3, sampler="ddim", **size)
        assert relative_error(step.x, theirs) < 1e-4
