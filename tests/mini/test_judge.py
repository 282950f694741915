"""The judge: it looks where the things are, learns what they are, and its file is checked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from minisd.mini import train_judge as judge_training
from minisd.mini.captions import NAMED_COLOURS, SPOTS, Scene
from minisd.mini.judge import (
    CROP_SIDE,
    WINDOW,
    Judge,
    accuracy,
    crops,
    load_judge,
    look,
    nearest_colour,
    save_judge,
)
from minisd.mini.scenes import (
    batch,
    compose_scene,
    is_held_out,
    middles,
    tiles_at_size,
    to_tensor,
)
from minisd.mini.train_judge import (
    NO_TINT,
    change_shades,
    decoded_crops,
    drawn_crop,
    drawn_crops,
    judge_loss,
    mixed_batch,
    move_crops,
    train_judge,
)
from minisd.training.loop import Hyperparameters

LONE = Scene(("cat",), (None,), "flat", "blue")
PAIR = Scene(("cat", "pear"), (None, "red"), "noto", "white")
SMALL = [Scene(("cat",), (None,), "flat", "blue", spot) for spot in SPOTS]


@pytest.fixture(scope="module")
def few(emoji):
    """Four things, which the judge can learn to tell apart in seconds."""
    return replace(emoji, things=emoji.things[:4], tiles=emoji.tiles[:4])


class Through:
    """An autoencoder that returns what it is given, or only the greys of it."""

    def __init__(self, grey=False):
        self.grey, self.saw = grey, []

    def encode(self, images):
        self.saw.append(images)
        self.drawn = images.mean(dim=1, keepdim=True).expand_as(images) if self.grey else images
        return self

    def mode(self):
        return self.drawn

    def decode(self, latent):
        return latent


class Fixed:
    """A judge that gives the same answer for every crop."""

    things, styles, colours = ("cat", "pear"), ("flat", "noto"), tuple(NAMED_COLOURS)

    def __call__(self, crop):
        logits = torch.zeros(len(crop), 16)
        logits[:, [1, 2, 4 + 3]] = 1
        return logits.split([2, 2, 12], dim=1)


# --- where it looks ---


def test_a_lone_large_thing_is_looked_at_whole():
    image = torch.rand(1, 3, CROP_SIDE, CROP_SIDE)
    assert torch.allclose(crops(image, [LONE]), image, atol=1e-4)


@pytest.mark.parametrize("scene", [PAIR, *SMALL], ids=lambda scene: scene.spot or "pair")
def test_a_crop_is_what_pillow_enlarges_around_the_middle(scene):
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = crops(image, [scene])
    assert len(found) == len(scene.things)
    for crop, (right, down) in zip(found, middles(scene), strict=True):
        half = WINDOW / 2
        box = tuple((at + by) * 64 for by in (-half, half) for at in (right, down))
        for channel, plane in zip(crop, image[0], strict=True):
            theirs = Image.fromarray(plane.numpy()).resize(
                (CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR, box=box
            )
            assert np.abs(np.asarray(theirs) - channel.numpy()).max() < 1e-3


def test_a_crop_shows_all_of_its_thing(emoji):
    rng = np.random.default_rng(0)
    for scene in [*SMALL, PAIR] * 3:
        masks = [compose_scene(emoji, scene, 64, rng)[1]]
        if len(scene.things) == 2:
            masks = [np.where(np.arange(64) // 32 == half, masks[0], 0) for half in (0, 1)]
        for index, mask in enumerate(masks):
            crop = crops(torch.from_numpy(mask)[None, None], [scene])[index]
            assert crop.sum() * WINDOW**2 == pytest.approx(mask.sum(), rel=0.03), scene


def test_opinions_come_in_the_order_of_scenes_and_things():
    class Bright:
        """Takes a bright crop for a pear."""

        things, styles, colours = ("cat", "pear"), ("flat",), ("red",)

        def __call__(self, crop):
            bright = crop.mean(dim=(1, 2, 3))
            return torch.stack([-bright, bright], dim=1), bright[:, None], bright[:, None]

    images = -torch.ones(3, 3, 64, 64)
    images[1, :, :, 32:] = 1  # the right one of two
    images[2] = 1
    seen = look(Bright(), images, [LONE, PAIR, LONE])
    assert [[one.thing for one in each] for each in seen] == [["cat"], ["cat", "pear"], ["pear"]]


# --- what it learns from ---


def independent_nearest(rgb):
    distances = {
        name: np.linalg.norm(np.array(NAMED_COLOURS[name]) - rgb) for name in NAMED_COLOURS
    }
    return min(distances, key=distances.get)


def test_the_nearest_colour_is_the_nearest():
    for rgb in np.random.default_rng(0).integers(0, 256, (50, 3)):
        assert nearest_colour(rgb) == independent_nearest(rgb)


def test_it_never_sees_a_held_out_pair_nor_a_tint_like_the_ground(emoji):
    rng = np.random.default_rng(0)
    grounds = set()
    for _ in range(500):
        picture, (thing, _, tint) = drawn_crop(emoji, rng)
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]] * 255
        ground = np.median(corners, axis=0).round()
        name = independent_nearest(ground)
        grounds.add(name)
        assert not is_held_out(emoji.things[thing], name)
        assert tint == NO_TINT or list(NAMED_COLOURS)[tint] != name
    assert grounds == set(NAMED_COLOURS)


def test_the_targets_tell_what_is_drawn(emoji, monkeypatch):
    """The drawing that the targets name lies somewhere in the picture, to the last shade."""
    monkeypatch.setattr(judge_training, "DRAWING_SIZES", (30,))
    monkeypatch.setattr(judge_training, "FILLS", (0.8, 0.8))
    rng = np.random.default_rng(1)
    for _ in range(20):
        picture, (thing, style, tint) = drawn_crop(emoji, rng)
        tile = tiles_at_size(emoji, 30)[thing, style]
        rows, columns = np.nonzero(tile[..., 3] == 255)
        opaque = tile[rows, columns, :3] / 255
        room = range(len(picture) - 30 + 1)
        seen = [one[y:, x:] for one in (picture, picture[:, ::-1]) for y in room for x in room]
        away = min(np.abs(one[rows, columns] - opaque).max() for one in seen)
        assert (away < 1e-6) == (tint == NO_TINT)


def test_a_batch_depends_on_seed_and_step_alone(emoji):
    first, targets = drawn_crops(emoji, 4, seed=1, step=2)
    torch.manual_seed(5)
    again, same = drawn_crops(emoji, 4, seed=1, step=2)
    assert torch.equal(first, again) and torch.equal(targets, same)
    assert first.shape == (4, 3, CROP_SIDE, CROP_SIDE)
    for seed, step in [(1, 3), (2, 2)]:
        assert not torch.equal(first, drawn_crops(emoji, 4, seed, step)[0])


def test_decoded_crops_are_what_the_autoencoder_returns_of_pairs_that_may_be_learnt(emoji):
    known, targets = decoded_crops(vae := Through(grey=True), emoji, 200, seed=5)
    scenes = [s for step in (0, 1) for s in batch(emoji, 64, 100, seed=5, step=step).scenes]
    assert torch.equal(
        known, crops(torch.cat(vae.saw).mean(1, True).expand(-1, 3, -1, -1), scenes).half()
    )
    shown = [
        (thing, s, tint) for s in scenes for thing, tint in zip(s.things, s.tints, strict=True)
    ]
    assert len(shown) == len(known) == len(targets) > 200
    for (thing, scene, tint), (a, b, c) in zip(shown, targets.tolist(), strict=True):
        assert not is_held_out(thing, scene.background)
        assert (emoji.things[a], emoji.styles[b]) == (thing, scene.style)
        assert tint == (None if c == NO_TINT else list(NAMED_COLOURS)[c])


def test_a_batch_is_half_cut_outs_and_half_decoded(emoji):
    decoded = decoded_crops(Through(), emoji, 100, seed=5)
    images, targets = mixed_batch(emoji, decoded, 9, seed=1, step=2)
    assert images.shape == (9, 3, CROP_SIDE, CROP_SIDE)
    drawn, named = drawn_crops(emoji, 5, seed=1, step=2)
    assert torch.equal(images[:5], drawn) and torch.equal(targets[:5], named)
    assert all((decoded[1] == target).all(dim=1).any() for target in targets[5:])
    torch.manual_seed(5)
    again, same = mixed_batch(emoji, decoded, 9, seed=1, step=2)
    assert torch.equal(images, again) and torch.equal(targets, same)
    for seed, step in [(1, 3), (2, 2)]:
        assert not torch.equal(images[5:], mixed_batch(emoji, decoded, 9, seed, step)[0][5:])


def test_each_crop_keeps_its_own_target(emoji):
    """The shade of each crop is its target. New shades keep the order of the old ones."""
    targets = torch.arange(100)[:, None].expand(-1, 3)
    marked = 10 * targets[:, :, None, None].expand(-1, -1, CROP_SIDE, CROP_SIDE).half()
    images, found = mixed_batch(emoji, (marked, targets), 40, seed=0, step=0)
    told = np.corrcoef(images[20:].mean(dim=(1, 2, 3)), found[20:, 0])[0, 1]
    assert told > 0.95


def test_decoded_crops_are_learnt_from_moved_and_shaded(emoji):
    """No crop stays as it was: plain crops get other shades, and grainy ones are moved."""
    targets = torch.tensor([[0, 0, NO_TINT]])
    plain = torch.full((1, 3, CROP_SIDE, CROP_SIDE), 0.5).half()
    images, _ = mixed_batch(emoji, (plain, targets), 40, seed=0, step=0)
    assert (images[20:].mean(dim=(2, 3)) - 0.5).abs().median() > 0.05
    known = torch.rand(1, 3, CROP_SIDE, CROP_SIDE, generator=torch.Generator().manual_seed(0))
    images, _ = mixed_batch(emoji, (known.half(), targets), 40, seed=0, step=0)
    for image in images[20:]:
        sides = (known[0], known[0].flip(2))
        told = [np.corrcoef(image.flatten(), one.flatten())[0, 1] for one in sides]
        assert max(told) < 0.9


def test_moved_crops_are_the_same_drawing_elsewhere():
    """Half of the spots change from right to left. Their height changes only a little."""
    spots = torch.zeros(400, 3, CROP_SIDE, CROP_SIDE)
    spots[:, :, 40:48, 44:52] = 1  # below and to the right, 12 and 16 px from the middle
    after = move_crops(spots, torch.Generator().manual_seed(0))
    assert after.min() >= 0 and after.max() <= 1
    weight = after[:, 0].sum(dim=(1, 2))
    places = torch.arange(CROP_SIDE) - 31.5
    across = (after[:, 0].sum(dim=1) * places).sum(dim=1) / weight
    down = (after[:, 0].sum(dim=2) * places).sum(dim=1) / weight
    assert 0.4 < (across > 0).float().mean() < 0.6
    assert (down > 0).float().mean() > 0.98
    for off in (across.abs() - 16, down - 12):
        assert abs(off.mean()) < 1 and 2 < off.std() < 5  # moved by a tenth of half the width
    assert 0.15 < weight.std() / weight.mean() < 0.35  # nearer or farther: areas, twice a tenth


def test_shades_change_by_channel_and_nothing_else_does():
    images = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    after = change_shades(images, torch.Generator().manual_seed(0))
    for before, now in zip(images.flatten(0, 1), after.flatten(0, 1), strict=True):
        gain, offset = np.polyfit(before.flatten(), now.flatten(), 1)
        assert torch.allclose(now, before * gain + offset, atol=1e-4)
        assert abs(gain - 1) < 0.5 and abs(offset) < 0.5
    assert (after - images).mean(dim=(2, 3)).std() > 0.05


def test_the_loss_is_the_surprise_about_thing_style_and_tint():
    targets = torch.tensor([[1, 0, 3], [0, 1, NO_TINT]])

    def ignorant(images):
        return torch.zeros(2, 115), torch.zeros(2, 4), torch.zeros(2, 12)

    terms = judge_loss(ignorant, torch.zeros(2, 3, 8, 8), targets)
    found = [terms[name].item() for name in ("thing", "style", "tint")]
    # the second picture has no tint: half of the surprise about one of twelve
    assert found == pytest.approx([np.log(115), np.log(4), np.log(12) / 2])


def test_without_any_tint_the_loss_is_a_number():
    targets = torch.tensor([[1, 0, NO_TINT]])
    terms = judge_loss(lambda x: (x, x, x), torch.zeros(1, 4), targets)
    assert terms["tint"].item() == 0


def test_it_learns_to_tell_four_things_apart(few, tmp_path):
    recipe = Hyperparameters(steps=45, warmup=5, ema=0.9, log_every=1)
    decoded = decoded_crops(Through(), few, 300, seed=5)
    judge = train_judge(few, decoded, tmp_path, recipe, batch_size=16)
    returned = decoded_crops(Through(), few, 100, seed=6)
    for images, targets in (drawn_crops(few, 64, seed=9, step=0), returned):
        with torch.no_grad():
            thing = judge(images.float())[0].argmax(dim=1)
        assert (thing == targets[:, 0]).float().mean() > 0.5  # by chance: 0.25


def test_crops_of_another_autoencoder_are_another_run(few, tmp_path):
    recipe = Hyperparameters(steps=1)
    decoded = decoded_crops(Through(), few, 100, seed=5)
    train_judge(few, decoded, tmp_path, recipe, batch_size=4, encoded_by="one")
    train_judge(few, decoded, tmp_path, recipe, batch_size=4, encoded_by="one")
    with pytest.raises(ValueError, match="encoded_by was one and is now another"):
        train_judge(few, decoded, tmp_path, recipe, batch_size=4, encoded_by="another")


def test_the_chance_of_a_thing_is_the_sum_over_its_drawings():
    torch.manual_seed(0)
    judge = Judge(("cat", "pear", "bee"), ("flat", "noto"), ("red", "blue", "pink", "grey"))
    crop = torch.randn(2, 3, CROP_SIDE, CROP_SIDE)
    said = []
    judge.conv_out.register_forward_hook(lambda module, inputs, output: said.append(output))
    thing, style, tint = judge(crop)
    drawings = said[0][:, :6, 0, 0].reshape(2, 3, 2).flatten(1).softmax(dim=1).reshape(2, 3, 2)
    assert torch.allclose(thing.softmax(dim=1), drawings.sum(dim=2), atol=1e-6)
    assert torch.allclose(style.softmax(dim=1), drawings.sum(dim=1), atol=1e-6)
    assert torch.equal(tint, said[0][:, 6:, 0, 0])


# --- its own accuracy, and its file ---


def test_accuracy_is_the_share_of_real_things_named_right(emoji):
    found = accuracy(Fixed(), emoji, count=300, split="train", seed=4)
    scenes = batch(emoji, 64, 300, seed=4, step=0, split="train").scenes
    shown = [(s, t, tint) for s in scenes for t, tint in zip(s.things, s.tints, strict=True)]
    tints = [tint for _, _, tint in shown if tint]
    assert found["thing"] == pytest.approx(sum(t == "pear" for _, t, _ in shown) / len(shown))
    assert found["style"] == pytest.approx(sum(s.style == "flat" for s, *_ in shown) / len(shown))
    assert found["tint"] == pytest.approx(tints.count("red") / len(tints))


def test_it_is_small_and_its_file_keeps_words_and_answers(emoji, tmp_path):
    torch.manual_seed(0)
    judge = Judge(emoji.things, emoji.styles, tuple(NAMED_COLOURS))
    save_judge(tmp_path / "judge.safetensors", judge, {"thing": 0.5})
    assert (tmp_path / "judge.safetensors").stat().st_size < 1.5e6
    again = load_judge(tmp_path / "judge.safetensors")
    assert (again.things, again.styles, again.colours) == (
        emoji.things,
        emoji.styles,
        tuple(NAMED_COLOURS),
    )
    picture, _ = compose_scene(emoji, LONE, 64, np.random.default_rng(0))
    with torch.no_grad():
        pairs = zip(judge(to_tensor([picture])), again(to_tensor([picture])), strict=True)
        assert all(torch.allclose(a, b, atol=0.02) for a, b in pairs)


@pytest.mark.parametrize("content", [None, b"not a judge", b""])
def test_a_file_that_is_no_judge_is_refused_in_a_sentence(content, tmp_path):
    path = tmp_path / "judge.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read a judge from .*minisd train judge"):
        load_judge(path)


def test_a_judge_of_other_words_is_refused(emoji, tmp_path):
    judge = Judge(emoji.things, emoji.styles, tuple(NAMED_COLOURS))
    judge.things = judge.things[1:]
    save_judge(tmp_path / "judge.safetensors", judge, {})
    with pytest.raises(ValueError, match="Cannot read a judge from"):
        load_judge(tmp_path / "judge.safetensors")
