"""The training pictures: the same ones every time, captions that do not lie, pairs kept apart."""

import hashlib
import re
from itertools import islice, product

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from torch.nn.functional import interpolate

from docs.make import draw_emoji as script
from minisd.mini.captions import (
    HABITS,
    NAMED_COLOURS,
    NAMES_PLACE,
    NAMES_SIZE,
    SIZE_WORDS,
    SPOTS,
    SYNONYMS,
    WITHOUT_ARTICLE,
    Scene,
    brief_caption,
    caption,
    full_caption,
    synonym,
)
from minisd.mini.emoji import Emoji
from minisd.mini.scenes import (
    HELD_OUT_SHARE,
    JITTER,
    LARGE_WIDTH,
    SHIFT,
    SMALL_SHARE,
    SMALL_WIDTH,
    TINTED_SHARE,
    TWO_THINGS_SHARE,
    batch,
    captions,
    compose_scene,
    draw_scene,
    is_held_out,
    tiles_at_size,
    tint_tile,
    vae_batch,
)

SIZE = 64
# Pillow resizes in 8 bits, rows then columns, and clips between the two: up to 14 of 255 off at
# hard edges, 0.13 on average. Another filter, or colours not multiplied by opacity: 0.6 and more.
SHRINKING = 0.25 / 255
# Of 255, for Pillow's compositing of the same tile in 8 bits.
COMPOSING = 5 / 255


@pytest.fixture(scope="module")
def pictures(emoji):
    return batch(emoji, SIZE, 400, seed=5, step=0)


def nearest_colour(rgb) -> str:
    """The named colour closest to an sRGB colour in 0..255."""
    return min(NAMED_COLOURS, key=lambda name: np.linalg.norm(np.array(NAMED_COLOURS[name]) - rgb))


def scenes_of(emoji, split, count):
    rng = np.random.default_rng(0)
    return [draw_scene(emoji, split, rng) for _ in range(count)]


@pytest.fixture(scope="module")
def scenes(emoji):
    return scenes_of(emoji, "train", 20_000)


def corner(image: torch.Tensor) -> np.ndarray:
    return (image[:, 0, 0].numpy() + 1) * 127.5


def same(a, b) -> bool:
    equal = torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)
    return equal and a.captions == b.captions and a.scenes == b.scenes


# --- a batch is a function of (seed, step) ---


@pytest.mark.parametrize("make", [batch, vae_batch])
def test_a_batch_depends_on_seed_and_step_alone(emoji, make):
    first = make(emoji, SIZE, 8, seed=1, step=2)
    make(emoji, SIZE, 8, seed=1, step=3)
    torch.manual_seed(0)
    np.random.seed(0)
    assert same(first, make(emoji, SIZE, 8, seed=1, step=2))
    assert not same(first, make(emoji, SIZE, 8, seed=1, step=3))
    assert not same(first, make(emoji, SIZE, 8, seed=2, step=2))


@pytest.mark.parametrize("size", [64, 96])
def test_shapes_and_ranges_are_as_promised(emoji, size):
    made = batch(emoji, size, 5, seed=0, step=0)
    assert made.images.shape == (5, 3, size, size)
    assert made.masks.shape == (5, 1, size, size)
    assert made.images.dtype == made.masks.dtype == torch.float32
    assert made.images.min() >= -1 and made.images.max() <= 1
    assert set(made.masks.unique().tolist()) == {0, 1}
    assert len(made.captions) == len(made.scenes) == 5


# --- pairs held out ---


def test_training_never_shows_a_held_out_pair(scenes):
    for scene in scenes:
        assert not any(is_held_out(thing, scene.background) for thing in scene.things), scene


def test_the_held_out_split_shows_nothing_else(emoji):
    for scene in scenes_of(emoji, "heldout", 3000):
        assert all(is_held_out(thing, scene.background) for thing in scene.things), scene


def test_a_batch_keeps_to_its_split(emoji, pictures):
    apart = batch(emoji, SIZE, 100, seed=5, step=0, split="heldout")
    for made, expected in [(pictures, False), (apart, True)]:
        for scene in made.scenes:
            assert {is_held_out(thing, scene.background) for thing in scene.things} == {expected}


def test_held_out_pairs_never_change():
    # A change would test a trained model on what it has seen.
    apart = {
        thing: [c for c in NAMED_COLOURS if is_held_out(thing, c)]
        for thing in ("cat", "dog", "apple")
    }
    assert apart == {"cat": ["pink"], "dog": ["grey"], "apple": ["orange"]}


def test_a_twelfth_of_the_pairs_is_held_out_and_every_thing_is_learned(emoji):
    table = np.array(
        [[is_held_out(thing, colour) for colour in NAMED_COLOURS] for thing in emoji.things]
    )
    assert abs(table.mean() - HELD_OUT_SHARE) < 0.02
    assert table.mean(axis=1).max() < 0.5, "some thing is hardly ever trained"
    assert table.any(axis=0).all(), "some background has no held-out thing"


FULL = {
    "a flat cat on a red background": Scene(("cat",), (None,), "flat", "red"),
    "a noto blue owl on an orange background": Scene(("owl",), ("blue",), "noto", "orange"),
    "glossy grapes on a white background": Scene(("grapes",), (None,), "glossy", "white"),
    "a flat small fox in the top left corner on a red background": Scene(
        ("fox",), (None,), "flat", "red", "top left"
    ),
    "twemoji small pink fries on the right on a black background": Scene(
        ("fries",), ("pink",), "twemoji", "black", "right"
    ),
    "a flat blue apple left of a flat cat on a white background": Scene(
        ("apple", "cat"), ("blue", None), "flat", "white"
    ),
}


@pytest.mark.parametrize("text", FULL)
def test_the_full_caption_names_everything(text):
    assert full_caption(FULL[text]) == text


BRIEF = {
    "a noto blue owl on an orange background": "an owl on an orange background",
    "twemoji small pink fries on the right on a black background": (
        "small fries on the right on a black background"
    ),
    "a flat blue apple left of a flat cat on a white background": (
        "an apple left of a cat on a white background"
    ),
}


@pytest.mark.parametrize("full", BRIEF)
def test_a_brief_caption_leaves_style_and_tints_to_chance(full):
    assert brief_caption(FULL[full]) == BRIEF[full]


def test_held_out_pictures_have_full_captions(emoji):
    apart = batch(emoji, SIZE, 60, seed=0, step=0, split="heldout")
    assert apart.captions == [full_caption(scene) for scene in apart.scenes]
    for scene, text in zip(apart.scenes, apart.captions, strict=True):
        words = [*scene.things, scene.style, scene.background, *filter(None, scene.tints)]
        assert all(word in text for word in words), (scene, text)
        assert ("small" in text) == (scene.spot is not None) == (named_spot(text) is not None)


def test_an_unknown_split_is_refused(emoji):
    with pytest.raises(ValueError, match=r"'test' is unknown. Choose one of train, heldout"):
        batch(emoji, SIZE, 1, 0, 0, split="test")


# --- how often what is drawn ---


def test_the_shares_of_small_tinted_and_two_things_hold(scenes):
    two = [scene for scene in scenes if len(scene.things) == 2]
    lone = [scene for scene in scenes if len(scene.things) == 1]
    assert len(two) + len(lone) == len(scenes)
    assert abs(len(two) / len(scenes) - TWO_THINGS_SHARE) < 0.01
    small = [scene for scene in lone if scene.spot]
    assert abs(len(small) / len(lone) - SMALL_SHARE) < 0.01
    tints = [tint for scene in scenes for tint in scene.tints]
    assert abs(sum(map(bool, tints)) / len(tints) - TINTED_SHARE) < 0.01


def test_no_scene_contradicts_itself(scenes):
    for scene in scenes:
        assert len(set(scene.things)) == len(scene.things) == len(scene.tints), scene
        assert scene.background not in scene.tints, scene
        assert scene.spot is None or len(scene.things) == 1, scene


def test_every_spot_style_and_colour_is_as_likely(emoji, scenes):
    for drawn, options in [
        ([scene.spot for scene in scenes if scene.spot], SPOTS),
        ([scene.style for scene in scenes], emoji.styles),
        ([scene.background for scene in scenes], NAMED_COLOURS),
        ([tint for scene in scenes for tint in scene.tints if tint], NAMED_COLOURS),
    ]:
        expected = len(drawn) / len(options)
        for option in options:
            assert abs(drawn.count(option) - expected) < 5 * expected**0.5, option


def test_every_thing_is_drawn_about_as_often(emoji, scenes):
    drawn = [thing for scene in scenes for thing in scene.things]
    expected = len(drawn) / len(emoji.things)
    # one that is held out on four of twelve backgrounds comes a third less often
    assert all(0.4 * expected < drawn.count(thing) < 1.6 * expected for thing in emoji.things)


# --- captions tell the truth ---


def named_background(text: str) -> str | None:
    """The colour that a caption gives the background, read without knowing the grammar."""
    found = re.search(r"(\w+) background$| on (\w+)$", text)
    word = found and (found[1] or found[2])
    return next(
        (colour for colour in NAMED_COLOURS if word in (colour, *SYNONYMS.get(colour, ()))), None
    )


def test_the_named_background_is_the_colour_in_the_corner(pictures):
    named = [named_background(text) for text in pictures.captions]
    assert sum(map(bool, named)) > 250
    for colour, image in zip(named, pictures.images, strict=True):
        assert colour in (None, nearest_colour(corner(image)))


def test_a_shade_is_never_nearer_to_another_colour():
    colours = np.array(list(NAMED_COLOURS.values()))
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert np.sort(apart, axis=1)[:, 1].min() > 2 * JITTER * 3**0.5


SPOT = re.compile(r"\b(?:in|on|at) the (middle|centre|(?:top|bottom)(?: left| right)?|left|right)")


def named_spot(text: str) -> str | None:
    """The place that a caption names, read without knowing the grammar."""
    found = SPOT.search(text)
    return found and found[1].replace("centre", "middle")


def test_size_and_place_are_said_of_small_things_alone_and_truly(scenes):
    rng = np.random.default_rng(0)
    told = [(scene.spot, text) for scene in scenes if (text := caption(scene, rng))]
    large = [text for spot, text in told if spot is None]
    assert not any(named_spot(text) or set(SIZE_WORDS) & set(text.split()) for text in large)

    small = [(spot, text) for spot, text in told if spot]
    sized = [sum(word in SIZE_WORDS for word in text.split()) for _, text in small]
    assert max(sized) == 1
    assert abs(sum(sized) / len(small) - NAMES_SIZE) < 0.05
    assert all(any(word in text.split() for _, text in small) for word in SIZE_WORDS)

    placed = [(spot, named_spot(text)) for spot, text in small if named_spot(text)]
    assert all(spot == named for spot, named in placed)
    assert abs(len(placed) / len(small) - NAMES_PLACE) < 0.05
    assert {named for _, named in placed} == set(SPOTS)


def test_all_ways_of_naming_a_spot_name_that_spot():
    for spot, (_, ways) in SPOTS.items():
        assert [named_spot(words) for words in ways] == [spot] * len(ways)


def words_for(thing: str) -> tuple[str, ...]:
    return (thing, *SYNONYMS.get(thing, ()))


def test_things_and_tints_are_always_named_unless_the_caption_is_empty(pictures):
    for scene, text in zip(pictures.scenes, pictures.captions, strict=True):
        for thing, tint in zip(scene.things, scene.tints, strict=True):
            if text:
                assert any(word in text for word in words_for(thing)), (scene, text)
                assert not tint or any(word in text for word in words_for(tint)), (scene, text)


def test_the_only_style_named_is_the_pictures(emoji, pictures):
    named = 0
    for scene, text in zip(pictures.scenes, pictures.captions, strict=True):
        styles = {style for style in emoji.styles if style in text.split()}
        assert styles <= {scene.style}, (scene, text)
        named += bool(styles)
    told = sum(map(bool, pictures.captions))
    assert abs(named / told - HABITS.names_style) < 0.1


def test_places_are_said_from_the_right_side(emoji):
    rng = np.random.default_rng(0)
    scene = Scene(("fox", "panda"), (None, None), "flat", "white")
    texts = [text for text in (caption(scene, rng) for _ in range(300)) if text]
    for words, first in [("left of", "fox"), ("right of", "panda")]:
        said = [text.split(words)[0] for text in texts if words in text]
        assert len(said) > 50 and all(first in before for before in said)


def test_left_and_right_are_where_the_caption_says(emoji):
    scene = Scene(("apple", "cat"), ("blue", "green"), "flat", "white")
    assert "blue apple left of a flat green cat" in full_caption(scene)
    picture, _ = compose_scene(emoji, scene, SIZE, np.random.default_rng(0))
    red, green, blue = picture[:, : SIZE // 2].mean(axis=(0, 1))
    assert blue > max(red, green)
    red, green, blue = picture[:, SIZE // 2 :].mean(axis=(0, 1))
    assert green > max(red, blue)


def test_a_tenth_of_the_captions_is_empty(emoji):
    texts = list(captions(emoji, 5000))
    assert abs(texts.count("") / len(texts) - 0.10) < 0.015


def test_the_plain_form_is_the_most_common(emoji):
    plain = re.compile(r"(an? )?[\w' -]+ on an? \w+ background")
    texts = [text for text in islice(captions(emoji, 3000), 3000) if text]
    share = sum(bool(plain.fullmatch(text)) for text in texts) / len(texts)
    assert share > 0.5


def test_articles_fit_the_word_after_them(emoji):
    for text in captions(emoji, 3000):
        for found, word in re.findall(r"\b(an?) (\w+)", text):
            assert (found == "an") == (word[0] in "aeiou" and word != "unicorn"), text


def test_words_without_article_and_synonyms_name_things_that_exist(emoji):
    assert set(emoji.things) >= WITHOUT_ARTICLE
    assert set(emoji.things) | set(NAMED_COLOURS) >= set(SYNONYMS)


def test_no_synonym_is_the_name_of_something_else(emoji):
    names = {*emoji.things, *NAMED_COLOURS, *emoji.styles}
    assert not names & {word for words in SYNONYMS.values() for word in words}


@pytest.mark.parametrize("word", SYNONYMS)
def test_every_synonym_is_said_now_and_then(word):
    rng = np.random.default_rng(0)
    said = [synonym(word, rng) for _ in range(600)]
    assert set(said) == set(words_for(word))
    assert abs(1 - said.count(word) / len(said) - HABITS.uses_synonym) < 0.06


def test_what_has_no_synonym_keeps_its_name(emoji):
    rng = np.random.default_rng(0)
    for word in {*emoji.things, *NAMED_COLOURS} - set(SYNONYMS):
        assert {synonym(word, rng) for _ in range(50)} == {word}


# --- pictures ---


def test_shrinking_agrees_with_torch(emoji):
    rgba = torch.from_numpy(emoji.tiles[::10]).float() / 255
    rgba = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1)
    rgba = rearrange(rgba, "thing style h w c -> (thing style) c h w")
    theirs = interpolate(rgba, (51, 51), mode="bicubic", antialias=True).clamp(0, 1)
    theirs = rearrange(theirs, "(thing style) c h w -> thing style h w c", style=4)
    ours = torch.from_numpy(tiles_at_size(emoji, 51)[::10]).float() / 255
    assert (ours - theirs).abs().mean() < SHRINKING


@pytest.mark.parametrize(
    ("thing", "style", "spot", "widths"),
    [
        ("heart", "noto", None, (48, 50, 51, 52, 54)),
        ("ghost", "glossy", None, (50, 51, 52)),
        ("cat", "flat", "top right", (27, 28, 29)),
    ],
)
def test_composing_agrees_with_pillow(emoji, thing, style, spot, widths):
    scene = Scene((thing,), (None,), style, "blue", spot)
    picture, silhouette = compose_scene(emoji, scene, SIZE, np.random.default_rng(3))
    ground = tuple((picture[0, 0] * 255).round().astype(int))
    tile = Image.fromarray(emoji.tiles[emoji.things.index(thing), emoji.styles.index(style)])
    agreeing = 0
    for pixels in widths:  # one size and one place must give the picture, and only one
        small = tile.resize((pixels, pixels), Image.Resampling.BICUBIC)
        for top, left in product(range(SIZE - pixels + 1), repeat=2):
            canvas = Image.new("RGBA", (SIZE, SIZE), (*ground, 255))
            canvas.alpha_composite(small, (left, top))
            theirs = np.asarray(canvas)[..., :3] / 255
            if np.abs(theirs - picture).max() < COMPOSING:
                agreeing += 1
                alone = Image.new("RGBA", (SIZE, SIZE))
                alone.alpha_composite(small, (left, top))
                assert np.array_equal(silhouette, np.asarray(alone)[..., 3] >= 127.5)
    assert agreeing == 1


@pytest.fixture(scope="module")
def block() -> Emoji:
    """One thing that fills its tile: its silhouette is the tile, whole or cut off."""
    tiles = np.full((1, 1, 104, 104, 4), 255, np.uint8)
    return Emoji(("block",), ("flat",), {}, {}, tiles)


def box(silhouette: np.ndarray) -> np.ndarray:
    """Where a filled rectangle is: its middle (right, down) and its sides (width, height)."""
    rows, columns = np.flatnonzero(silhouette.any(axis=1)), np.flatnonzero(silhouette.any(axis=0))
    assert silhouette.sum() == len(rows) * len(columns)
    middle = [(edges[0] + edges[-1] + 1) / 2 for edges in (columns, rows)]
    return np.array([*middle, len(columns), len(rows)])


@pytest.mark.parametrize("size", [32, 64, 96, 256])
@pytest.mark.parametrize("spot", [None, *SPOTS])
def test_a_thing_is_near_its_middle_and_never_cut_off(block, size, spot):
    rng = np.random.default_rng(0)
    scene = Scene(("block",), (None,), "flat", "blue", spot)
    boxes = np.array([box(compose_scene(block, scene, size, rng)[1]) for _ in range(60)])
    assert (boxes[:, 2:] == round((SMALL_WIDTH if spot else LARGE_WIDTH) * size)).all()
    off = boxes[:, :2] / size - (SPOTS[spot][0] if spot else 0.5)
    assert np.abs(off).max() <= SHIFT + 1 / size  # rounded to whole pixels
    assert np.abs(off.mean(axis=0)).max() < 0.01
    assert np.ptp(off, axis=0).min() >= 1.5 * SHIFT - 1 / size


@pytest.mark.parametrize("size", [32, 64, 96, 256])
def test_two_things_stand_side_by_side_and_hardly_overlap(block, size):
    rng = np.random.default_rng(0)
    scene = Scene(("block", "block"), ("red", "green"), "flat", "blue")
    pixels = round(SMALL_WIDTH * size)
    for _ in range(50):
        picture, _ = compose_scene(block, scene, size, rng)
        shades = [np.array(NAMED_COLOURS[colour]) / 255 for colour in ("red", "green")]
        red, green = (np.abs(picture - shade).max(axis=2) < 0.02 for shade in shades)
        right, down, *sides = box(green)
        assert sides == [pixels, pixels]
        assert red.sum() >= 0.88 * pixels**2  # the second stands in front
        assert red.nonzero()[1].mean() < size / 2 < right
        assert abs(down / size - 0.5) <= SHIFT + 1 / size


@pytest.mark.parametrize("thing", ["cat", "guitar", "rainbow", "key"])
def test_a_small_thing_is_where_its_caption_says(emoji, thing):
    """Seen on real cut-outs: the middle of what shows lies in the named part of the picture."""
    rng = np.random.default_rng(0)
    for spot, style in product(SPOTS, emoji.styles):
        scene = Scene((thing,), (None,), style, "pink", spot)
        _, silhouette = compose_scene(emoji, scene, SIZE, rng)
        rows, columns = silhouette.any(axis=1).nonzero()[0], silhouette.any(axis=0).nonzero()[0]
        assert max(len(rows), len(columns)) < SIZE / 2
        words = named_spot(full_caption(scene)).split()
        for lines, before, after in [(columns, "left", "right"), (rows, "top", "bottom")]:
            middle = (lines[0] + lines[-1] + 1) / 2 / SIZE
            seen = before if middle < 0.4 else after if middle > 0.6 else None
            assert (seen in words) if seen else not {before, after} & set(words), (spot, style)


# --- the optional mirror ---


def shown(picture: np.ndarray, silhouette: np.ndarray) -> np.ndarray:
    """The part of the picture that the thing takes."""
    rows, columns = silhouette.any(axis=1).nonzero()[0], silhouette.any(axis=0).nonzero()[0]
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class OneShade:
    """The usual random numbers, but the background has exactly the shade of its colour."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.random, self.uniform = rng.random, rng.uniform

    def integers(self, *_):
        return np.zeros(3, int)


def test_mirrored_things_are_turned_half_of_the_time_and_stay_in_their_place(emoji):
    scene = Scene(("snail",), (None,), "noto", "white", "left")
    plain = [compose_scene(emoji, scene, SIZE, OneShade(seed)) for seed in range(60)]
    mirrored = [
        compose_scene(emoji, scene, SIZE, OneShade(seed), mirror=True) for seed in range(60)
    ]
    as_drawn = shown(*plain[0])
    turned = as_drawn[:, ::-1]
    assert not np.array_equal(as_drawn, turned)
    assert all(np.array_equal(shown(*made), as_drawn) for made in plain)
    kept = [np.array_equal(shown(*made), as_drawn) for made in mirrored]
    assert [np.array_equal(shown(*made), turned) for made in mirrored] == [not k for k in kept]
    assert 15 < sum(kept) < 45
    assert all(mask.nonzero()[1].mean() < 0.4 * SIZE for _, mask in mirrored)


def test_a_batch_is_mirrored_only_where_asked(emoji):
    plain = batch(emoji, SIZE, 20, seed=1, step=2)
    assert same(plain, batch(emoji, SIZE, 20, seed=1, step=2, mirror=False))
    assert not same(plain, batch(emoji, SIZE, 20, seed=1, step=2, mirror=True))


def test_the_silhouette_is_where_the_picture_is_not_background(pictures):
    ground = pictures.images[:, :, :1, :1]
    differs = (pictures.images - ground).abs().amax(dim=1, keepdim=True)
    outside = differs[pictures.masks == 0]
    assert outside.max() <= 1  # at most half of the thing shows there: half of 1 - (-1)
    assert (outside > 0.1).float().mean() < 0.05  # only soft borders and shadows
    shown = (differs > 0.1).float()
    both = (shown * pictures.masks).sum(dim=(1, 2, 3))
    either = torch.maximum(shown, pictures.masks).sum(dim=(1, 2, 3))
    assert (both / either).median() > 0.93


def test_a_tinted_thing_has_the_tints_colour(emoji):
    for thing in ("cat", "penguin", "ghost", "book", "tree"):
        tile = tiles_at_size(emoji, 51)[emoji.things.index(thing), 0].astype(np.float32) / 255
        for colour in NAMED_COLOURS:
            shaded = tint_tile(tile, colour)
            average = shaded[..., :3].sum(axis=(0, 1)) / shaded[..., 3].sum() * 255
            if colour in ("white", "black", "grey"):
                assert np.ptp(average) < 1  # of 255
            else:
                assert nearest_colour(average) == colour, (thing, colour, average)


def test_some_autoencoder_pictures_are_altered(emoji):
    plain = batch(emoji, SIZE, 400, seed=7, step=0)
    mixed = vae_batch(emoji, SIZE, 400, seed=7, step=0)
    changed = (plain.images != mixed.images).flatten(1).any(dim=1)
    assert abs(changed.float().mean().item() - 0.15) < 0.05
    assert mixed.images.min() >= -1 and mixed.images.max() <= 1
    holes = mixed.images[changed]
    one_colour = (holes == holes[:, :, :1, :1]).flatten(1).all(dim=1)
    assert one_colour.any() and not one_colour.all()


# --- the shipped file ---


def test_the_file_holds_what_the_script_chooses(emoji):
    chosen = {thing: category for thing, (category, _) in script.all_things().items()}
    assert emoji.categories == chosen
    assert emoji.styles == tuple(script.STYLES)
    assert emoji.tiles.shape == (len(chosen), 4, script.TILE, script.TILE, 4)


def test_the_file_holds_those_cut_outs_and_no_others():
    entries = ",".join(script.THINGS.values()).split(",")
    words = {entry.partition("=")[0].strip() for entry in entries}
    assert len(words) == len(entries)
    with safe_open(script.WEIGHTS / "emoji.safetensors", framework="np") as file:
        names = set(file.keys())
    assert names == {f"{word}/{style}" for word in words for style in script.STYLES}


def test_every_style_says_its_source_and_licence(emoji):
    licences = {style: source["licence"] for style, source in emoji.sources.items()}
    assert licences == {
        "noto": "Apache-2.0",
        "twemoji": "CC-BY-4.0",
        "flat": "MIT",
        "glossy": "MIT",
    }
    for source in emoji.sources.values():
        assert re.fullmatch(r"[0-9a-f]{64}", source["sha256"])
        assert source["package"].startswith("@iconify-json/") and source["version"]


def test_every_cut_out_is_trimmed_centred_and_not_empty(emoji):
    visible = emoji.tiles[..., 3] >= script.VISIBLE
    rows, columns = visible.any(axis=3), visible.any(axis=2)
    longest = np.maximum(rows.sum(axis=2), columns.sum(axis=2))
    assert longest.min() > 0.9 * script.TILE
    for lines in (rows, columns):
        before = lines.argmax(axis=2)
        after = lines[..., ::-1].argmax(axis=2)
        assert np.abs(before - after).max() <= 6


def test_no_two_cut_outs_are_the_same(emoji):
    small = torch.from_numpy(tiles_at_size(emoji, 13)).float() / 255
    small = rearrange(small, "thing style h w c -> (thing style) (h w c)")
    distance = torch.cdist(small, small, p=1) / small.shape[1]
    others = ~torch.eye(len(small), dtype=torch.bool)
    assert distance[others].min() > 0.01


def test_the_readme_states_the_files_size_hash_and_number_of_things(emoji):
    content = (script.WEIGHTS / "emoji.safetensors").read_bytes()
    readme = (script.WEIGHTS / "README.md").read_text(encoding="utf-8")
    section = " ".join(readme.split("## emoji.safetensors")[1].split("\n## ")[0].split())
    assert hashlib.sha256(content).hexdigest() in section
    assert f"{len(content) / 1e6:.1f} MB" in section
    assert f"{len(emoji.things)} things in {len(emoji.styles)} styles" in section


def test_the_script_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"holds 0 files named iconify-json-noto-\*.tgz.*npm pack"):
        script.build(tmp_path)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    said = r"Cannot read the emoji cut-outs from .*nowhere.safetensors .* Restore the file"
    with pytest.raises(ValueError, match=said):
        Emoji.load(tmp_path / "nowhere.safetensors")


PAIR = {"things": '{"cat": "animal"}', "styles": '{"noto": {}}'}
NO_PICTURE = np.zeros(4, np.uint8)


def cut_short(path):
    path.write_bytes((script.WEIGHTS / "emoji.safetensors").read_bytes()[:100_000])


FLOAT8 = torch.float8_e4m3fn  # which numpy lacks
SPOILT = {
    "cut short": cut_short,
    "no header": lambda path: save_file({"cat/noto": NO_PICTURE}, path),
    "other header": lambda path: save_file({"cat/noto": NO_PICTURE}, path, {"format": "pt"}),
    "no picture": lambda path: save_file({"cat/noto": NO_PICTURE}, path, PAIR),
    "no tile": lambda path: save_file({"dog/noto": NO_PICTURE}, path, PAIR),
    "8 bits": lambda path: save_torch({"cat/noto": torch.ones(2).to(FLOAT8)}, path, PAIR),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_corrupt_file_is_one_clear_error(tmp_path, kind):
    path = tmp_path / "emoji.safetensors"
    SPOILT[kind](path)
    with pytest.raises(ValueError, match="Cannot read the emoji cut-outs from"):
        Emoji.load(path)
