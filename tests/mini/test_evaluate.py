"""The evaluation: each figure on cases whose answer is known, and the page that shows them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import minisd
from docs.make import mini_report as drawing
from minisd.clip import TextTransformer
from minisd.config import MINI
from minisd.guidance import run_network
from minisd.mini import evaluate as evaluating
from minisd.mini.captions import NAMED_COLOURS, SPOTS, Scene, full_caption
from minisd.mini.evaluate import (
    backgrounds,
    check_scene,
    draw_scenes,
    examine,
    is_at_spot,
    likeness,
    overlap,
    roles,
    shares,
    silhouettes,
    word_maps,
    word_vectors,
)
from minisd.mini.judge import Seen, nearest_colour
from minisd.mini.scenes import batch, compose_scene, to_tensor
from minisd.pipeline import StableDiffusion, make_generators
from minisd.trace import trace
from minisd.unet import UNet
from minisd.vae import VAE

PAGE = Path(__file__).parents[2] / "docs/mini.md"
BLUE_CAT = Scene(("cat",), ("blue",), "flat", "white")
PLAIN_CAT = Scene(("cat",), (None,), "flat", "white")
PAIR = Scene(("cat", "pear"), (None, "red"), "noto", "white")
LITTLE_CAT = Scene(("cat",), (None,), "flat", "white", "top left")


@pytest.fixture(scope="module")
def tokenizer():
    return minisd.load("mini").tokenizer


@pytest.fixture(scope="module")
def sd(tokenizer):
    """A model that knows nothing, quickly."""
    torch.manual_seed(0)
    config = replace(
        MINI,
        text=replace(MINI.text, width=32, layers=1, heads=2),
        unet=replace(MINI.unet, channels=(32, 32), context_dim=32, head_width=16),
        vae=replace(MINI.vae, channels=(8, 8, 16, 16)),
        size=32,
    )
    text, unet, vae = TextTransformer(config.text), UNet(config.unet), VAE(config.vae)
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 5  # so that its pictures have contrast
    return StableDiffusion(config, tokenizer, text, unet, vae)


@pytest.fixture(scope="module")
def real(emoji):
    return batch(emoji, 64, 200, seed=5, step=0, split="heldout")


class Oracle:
    """A judge that answers what the scenes ask for, crop after crop."""

    def __init__(self, emoji, scenes):
        self.things, self.styles, self.colours = emoji.things, emoji.styles, tuple(NAMED_COLOURS)
        shown = [
            (s, thing, tint) for s in scenes for thing, tint in zip(s.things, s.tints, strict=True)
        ]
        words = [(thing, s.style, tint or "red") for s, thing, tint in shown]
        vocabularies = (self.things, self.styles, self.colours)
        self.answers = [
            [v.index(w) for v, w in zip(vocabularies, row, strict=True)] for row in words
        ]
        self.at = 0

    def __call__(self, crops):
        rows = [self.answers[(self.at + i) % len(self.answers)] for i in range(len(crops))]
        self.at += len(crops)
        sizes = (len(self.things), len(self.styles), len(self.colours))
        return [
            torch.eye(size)[list(of)]
            for size, of in zip(sizes, zip(*rows, strict=True), strict=True)
        ]


# --- verdicts ---


def seen(*words):
    return [Seen(*row.split()) for row in words]


EVERYTHING = torch.ones(64, 64, dtype=torch.bool)


def test_the_right_answers_are_right():
    right = check_scene(PAIR, seen("cat noto grey", "pear noto red"), "white", EVERYTHING)
    assert right["tint"] == [True]
    assert right["two things"] == [True]
    assert right["small thing"] == []
    assert all(map(all, right.values()))


@pytest.mark.parametrize(
    ("scene", "answers", "background", "wrong"),
    [
        (BLUE_CAT, seen("cat flat blue"), "grey", {"background"}),
        (BLUE_CAT, seen("dog flat blue"), "white", {"thing", "tint"}),
        (BLUE_CAT, seen("cat noto blue"), "white", {"style"}),
        (BLUE_CAT, seen("cat flat cyan"), "white", {"tint"}),
        (PLAIN_CAT, seen("cat flat cyan"), "white", set()),
        (PAIR, seen("pear noto red", "cat noto red"), "white", {"thing", "two things", "tint"}),
        (PAIR, seen("cat noto red", "pear noto grey"), "white", {"tint"}),
        (PAIR, seen("cat noto red", "pear flat red"), "white", {"style"}),
        (LITTLE_CAT, seen("cat flat red"), "white", {"small thing"}),  # it is everywhere
    ],
)
def test_what_is_wrong_is_told_apart(scene, answers, background, wrong):
    right = check_scene(scene, answers, background, EVERYTHING)
    assert {aspect for aspect, verdicts in right.items() if not all(verdicts)} == wrong


def test_a_small_thing_is_at_its_spot_and_no_other(emoji):
    rng = np.random.default_rng(0)
    for spot in SPOTS:
        scene = Scene(("dog",), (None,), "flat", "green", spot)
        picture = to_tensor([compose_scene(emoji, scene, 64, rng)[0]])
        found = [name for name in SPOTS if is_at_spot(silhouettes(picture)[0], name)]
        assert found == [spot]


def test_a_large_or_missing_thing_is_at_no_spot(emoji):
    scene = Scene(("dog",), (None,), "flat", "green")
    picture = to_tensor([compose_scene(emoji, scene, 64, np.random.default_rng(0))[0]])
    for image in (picture, torch.zeros(1, 3, 64, 64)):
        assert not any(is_at_spot(silhouettes(image)[0], name) for name in SPOTS)


def test_the_border_tells_the_background_of_real_pictures(real):
    found = [nearest_colour(shade) for shade in ((backgrounds(real.images) + 1) * 127.5).numpy()]
    assert found == [scene.background for scene in real.scenes]


def test_silhouettes_are_those_that_the_composer_knows(emoji):
    scenes = [Scene((thing,), (None,), "flat", "purple") for thing in emoji.things[:20]]
    made = [compose_scene(emoji, scene, 64, np.random.default_rng(0)) for scene in scenes]
    found = silhouettes(to_tensor([picture for picture, _ in made])).numpy()
    masks = np.stack([mask for _, mask in made]) > 0
    assert ((found & masks).sum() / (found | masks).sum()) > 0.93


# --- shares ---


def test_a_perfect_model_and_a_perfect_judge_give_all(emoji, real):
    found = shares(examine(Oracle(emoji, real.scenes), real.images, real.scenes))
    assert found.pop("pictures") == 200
    # a thing as pale as its ground has no silhouette to find it by
    assert found.pop("small thing") > 0.8
    assert found == {name: 1 for name in ("background", "thing", "style", "tint", "two things")}


def test_pictures_of_other_scenes_have_the_wrong_background(emoji, real):
    order = sorted(range(200), key=lambda i: list(NAMED_COLOURS).index(real.scenes[i].background))
    shifted = real.images[order].roll(100, dims=0)
    scenes = [real.scenes[i] for i in order]
    found = shares(examine(Oracle(emoji, scenes), shifted, scenes))
    assert found["background"] == 0
    assert found["thing"] == 1  # the oracle's answers do not depend on pictures


def test_a_share_counts_only_where_it_is_asked_for(emoji):
    scenes = [BLUE_CAT, PLAIN_CAT, PLAIN_CAT, PAIR]
    images = torch.ones(4, 3, 64, 64)  # white, as asked
    judged = examine(Oracle(emoji, [BLUE_CAT, BLUE_CAT, PLAIN_CAT, PAIR]), images, scenes)
    assert [one.is_right for one in judged] == [True, True, True, True]
    other = replace(BLUE_CAT, things=("dog",))
    judged = examine(Oracle(emoji, [BLUE_CAT, other, PLAIN_CAT, PAIR]), images, scenes)
    found = shares(judged)
    assert found["thing"] == 0.75
    assert found["tint"] == 1  # one in PAIR, one in BLUE_CAT; the dog was to have none
    assert "small thing" not in found
    assert [one.is_right for one in judged] == [True, False, True, True]


# --- drawing ---


def test_picture_i_has_seed_i_across_batches(sd, monkeypatch):
    monkeypatch.setattr(evaluating, "DDIM_STEPS", 2)
    monkeypatch.setattr(evaluating, "DRAWN_AT_ONCE", 2)
    scenes = [PLAIN_CAT, BLUE_CAT, PAIR]
    found = draw_scenes(sd, scenes, cfg_scale=3)
    for index, scene in enumerate(scenes):
        alone = sd.txt2img(full_caption(scene), steps=2, cfg_scale=3, sampler="ddim", seed=index)
        shades = ((found[index] + 1) * 127.5).round().numpy().transpose(1, 2, 0)
        assert np.abs(shades - np.asarray(alone, float)).max() <= 1


# --- word maps ---


def test_roles_name_each_position_once_and_hold_their_words(tokenizer):
    lone = Scene(("man with red hair",), ("red",), "glossy", "red")
    for scene in (lone, BLUE_CAT, PLAIN_CAT):
        found = roles(scene, tokenizer)
        row = tokenizer.row(tokenizer.encode(full_caption(scene)))
        assert sorted(i for at in found.values() for i in at) == list(range(77))
        words = {role: tokenizer.decode(row[i] for i in at) for role, at in found.items()}
        assert words["thing"] == scene.things[0]
        assert words["style"] == scene.style
        assert words.get("tint") == scene.tints[0]
        assert words["colour"] == scene.background
        assert words["background"] == "background"
        assert words["other words"] == "a on a"
        assert [row[i] for i in found["begin"] + found["end"]] == [tokenizer.begin, tokenizer.end]
        assert len(found["padding"]) == 77 - len(tokenizer.encode(full_caption(scene))) - 2


def test_overlap_of_known_maps():
    silhouette = torch.zeros(4, 4, dtype=torch.bool)
    silhouette[:2] = True
    assert overlap(silhouette.float(), silhouette) == 1
    assert overlap((~silhouette).float(), silhouette) == 0
    left = torch.zeros(4, 4)
    left[:, :2] = 1  # 4 of 8 places in common, 12 together
    assert overlap(left, silhouette) == pytest.approx(4 / 12)


def test_word_maps_are_the_averaged_weights_of_the_half_with_the_prompt(sd, monkeypatch):
    """At one step, against the U-Net run with the prompts alone."""
    monkeypatch.setattr(evaluating, "DDIM_STEPS", 1)
    prompts = ["a blue cat", "a red dog on a white background"]
    _, found = word_maps(sd, prompts)
    noise = torch.cat([torch.randn(1, 4, 4, 4, generator=each) for each in make_generators(0, 2)])
    with trace(sd, "unet.*.cross.weights") as weights:
        level = sd.schedule.leading(1)[0]
        run_network(sd.unet, noise, level, sd.embed(prompts))
    layers = []
    for (of_layer,) in weights.values():
        side = round(of_layer.shape[2] ** 0.5)
        grid = of_layer.mean(dim=1).transpose(1, 2).reshape(2, 77, side, side)
        layers.append(interpolate(grid, scale_factor=4 // side, mode="nearest"))
    assert {round(of.shape[2] ** 0.5) for (of,) in weights.values()} == {2, 4}
    assert torch.allclose(found, torch.stack(layers).mean(dim=0), atol=1e-5)
    assert torch.allclose(found.sum(dim=1), torch.ones(2, 4, 4), atol=1e-5)


def test_a_map_that_is_the_silhouette_overlaps_wholly(sd, emoji, monkeypatch):
    """Each token attends to a known place: the thing's words to the thing, the padding elsewhere.

    Some scenes have no tint. All scenes count in the shares, so the shares sum to 1.
    """

    def stub(sd, prompts):
        scenes = [by_prompt[prompt] for prompt in prompts]
        rng = np.random.default_rng(0)
        images = to_tensor([compose_scene(emoji, scene, 32, rng)[0] for scene in scenes])
        covered = silhouettes(images).reshape(-1, 4, 8, 4, 8).float().mean(dim=(2, 4)) >= 0.5
        maps = torch.zeros(len(scenes), 77, 4, 4)
        for index, scene in enumerate(scenes):
            found = roles(scene, sd.tokenizer)
            tints = found.get("tint", [])
            maps[index, tints] = 0.2 * covered[index].float() / max(1, len(tints))
            maps[index, found["thing"][0]] = (0.8 if tints else 1) * covered[index].float()
            maps[index, found["padding"]] = (~covered[index]).float() / len(found["padding"])
        return images, maps

    scenes = batch(emoji, 32, 40, evaluating.SEED, step=0, split="heldout").scenes
    by_prompt = {full_caption(scene): scene for scene in scenes}
    monkeypatch.setattr(evaluating, "word_maps", stub)
    found = evaluating.measure_attention(sd, emoji, count=20)
    assert found["overlap"]["thing"] == 1
    assert found["overlap"]["padding"] < 0.7
    assert found["behind"]["padding"] == pytest.approx(1 - found["overlap"]["padding"])
    assert sum(found["share"].values()) == pytest.approx(1)
    assert 0 < found["share"]["tint"] < 0.2 * found["share"]["thing"]
    assert 0 < found["overlap"]["by chance"] < 1
    assert found["share"]["begin"] == found["share"]["colour"] == 0


# --- words ---


def test_word_vectors_are_the_tokens_mean_and_the_last_tokens_context(sd):
    words = ["cat", "ice cream cone"]
    found = word_vectors(sd, words)
    ids = sd.tokenizer.encode("ice cream cone")
    table = sd.text_encoder.token_embedding.weight
    assert len(ids) > 2
    assert torch.allclose(found["embeddings"][1], sum(table[i] for i in ids) / len(ids))
    cut = torch.tensor([[sd.tokenizer.begin, *sd.tokenizer.encode("a ice cream cone")]])
    assert torch.allclose(found["contexts"][1], sd.text_encoder(cut)[0, -1], atol=1e-5)
    mean = found["contexts"].mean(dim=0)
    assert torch.equal(found["contexts less their mean"], found["contexts"] - mean)


def test_synonyms_that_point_the_same_way_are_one_nearer_than_strangers():
    words = ["cat", "kitty", "kitten", "cat face", "dog", "puppy", "doggy", "dog face"]
    vectors = torch.eye(2)[[0, 0, 0, 0, 1, 1, 1, 1]] * 5
    assert likeness(vectors, words, ("cat", "dog")) == {"synonyms": 1, "unrelated": 0, "gap": 1}


# --- sheets and page ---


def test_a_sheet_shows_pictures_in_their_frames():
    image = torch.full((3, 8, 8), -1.0)
    image[0, 0, 0] = 1
    page = drawing.sheet([drawing.Cell(image, "a b", drawing.RED)] * 3, columns=2)
    frame = drawing.FRAME
    width, height = page.width // 2, page.height // 2
    for left, top in [(0, 0), (width, 0), (0, height)]:
        assert page.getpixel((left, top)) == drawing.RED
        assert page.getpixel((left + frame + 1, top + frame + 1)) == (255, 0, 0)  # twice as large
        assert page.getpixel((left + frame + 2, top + frame + 2)) == (0, 0, 0)
        below = page.crop((left, top + 2 * frame + 16, left + width, top + height))
        assert below.convert("L").getextrema()[0] < 100  # the words
    assert page.crop((width, height, 2 * width, 2 * height)).getcolors() == [
        (width * height, drawing.WHITE)
    ]


def test_the_nearest_of_a_training_picture_is_itself(emoji):
    trained = batch(emoji, 32, 100, seed=0, step=100)
    image = trained.images[7]
    noisy = image + 2 / 127.5
    for of, expected in [(image, 0), (noisy, 2)]:
        ((distance, found, scene),) = drawing.nearest_pictures(of[None], emoji, count=200)
        assert distance == pytest.approx(expected, abs=0.05)
        assert torch.equal(found, image) and scene == trained.scenes[7]


def test_the_things_taken_for_others_are_counted(emoji):
    def one(thing, taken):
        return evaluating.Judged(
            None, replace(PLAIN_CAT, things=(thing,)), seen(f"{taken} flat red"), "white", {}
        )

    drawn = [one("cat", "dog"), one("cat", "cat"), one("cat", "fox"), one("cat", "fox")]
    drawn += [one("pear", "apple"), one("bee", "bee")]
    assert drawing.confusions(drawn) == ["cat (3 of 4: fox 2, dog 1)", "pear (1 of 1: apple 1)"]


@pytest.mark.parametrize(
    ("sign", "found", "answer"),
    [
        ("≥", 0.3, "yes"),
        ("≥", 0.29, "**no**"),
        ("≤", 0.3, "yes"),
        ("≤", 0.31, "**no**"),
        ("≥", None, "not measured"),
    ],
)
def test_a_promise_is_kept_or_not(sign, found, answer):
    assert drawing.target_status(sign, 0.3, found) == answer


def test_a_page_without_a_place_for_a_part_is_refused():
    page = "words\n<!-- a -->\nold\n<!-- end -->\nmore\n"
    assert drawing.fill_parts(page, {"a": "new"}) == (
        "words\n<!-- a -->\n\nnew\n\n<!-- end -->\nmore\n"
    )
    with pytest.raises(ValueError, match="no place for the computed part 'b'"):
        drawing.fill_parts(page, {"b": "new"})


def test_one_call_renews_page_figures_and_sheets(sd, emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "DDIM_STEPS", 2)
    words = PAGE.read_text(encoding="utf-8")
    (tmp_path / "mini.md").write_text(words, encoding="utf-8")
    judge = Oracle(emoji, [BLUE_CAT])
    figures = drawing.write_report(tmp_path, sd, judge, emoji, count=12, others=4, neighbours=100)
    page = (tmp_path / "mini.md").read_text(encoding="utf-8")

    assert json.loads((tmp_path / "mini.json").read_text(encoding="utf-8")) == figures
    computed = re.compile(r"(<!-- (?!end)\w+ -->\n).*?(<!-- end -->)", re.DOTALL)
    assert computed.sub("", page) == computed.sub("", words), "words by hand are kept"
    assert f"{figures['psnr']['model']:.3g}" in page
    rows = figures["right"]["heldout"]
    own = f"scale {sd.config.cfg_scale:g}"
    scales = {"scale 0", "scale 1", "scale 3", "scale 5", "scale 7.5", own}
    assert list(rows) == ["real", "autoencoder", *sorted(scales)]
    assert [rows[name]["pictures"] for name in ("real", own, "scale 5")] == [12, 12, 4]
    assert rows["real"]["background"] == 1
    for link in re.findall(r"\]\((images/.*?)\)", page):
        with Image.open(tmp_path / link) as picture:
            assert min(picture.size) > 100, link
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        columns = {line.count("|") for line in table.splitlines()}
        assert len(columns) == 1, table
