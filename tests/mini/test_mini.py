"""The shipped model: it loads, draws what it is asked for, and the README tells the truth."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import minisd
from docs.make.mini_report import fill_parts, parts
from minisd.checkpoints.load import load_vae
from minisd.config import WEIGHTS
from minisd.mini import judge
from minisd.mini.captions import NAMED_COLOURS
from minisd.mini.emoji import Emoji
from minisd.mini.evaluate import draw_scenes, examine, shares
from minisd.mini.job import train_vocabulary
from minisd.mini.scenes import batch
from minisd.training.vae import psnr

README = Path(__file__).parents[2] / "README.md"
DOCS = README.parent / "docs"


@pytest.fixture(scope="module")
def sd():
    return minisd.load("mini")


def nearest_colour(picture) -> str:
    """The name of the colour that the picture's border has on the whole."""
    pixels = np.asarray(picture, np.float32)
    border = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3)])
    middle = np.median(border, axis=0)
    return min(NAMED_COLOURS, key=lambda name: np.abs(middle - NAMED_COLOURS[name]).sum())


def test_the_background_has_the_colour_that_the_prompt_names(sd):
    prompts = [f"a cat on a {colour} background" for colour in NAMED_COLOURS]
    pictures = sd.txt2img(prompts, steps=10)
    found = [nearest_colour(picture) for picture in pictures]
    right = sum(a == b for a, b in zip(found, NAMED_COLOURS, strict=True))
    assert right >= len(NAMED_COLOURS) - 1, dict(zip(NAMED_COLOURS, found, strict=True))


def test_another_thing_is_another_picture(sd):
    """Same noise, same background: only the thing's word differs, and so does the picture."""
    cat, dog = sd.txt2img(
        ["a cat on a red background", "a banana on a red background"], seed=[1, 1]
    )
    difference = np.abs(np.asarray(cat, float) - np.asarray(dog, float)).mean()
    assert difference > 10


def test_things_styles_and_tints_are_drawn_as_the_prompt_says(sd):
    """The judge of docs/mini.md, on held-out scenes; there it is 97, 91 and 91 % of 1,000."""
    scenes = batch(Emoji.load(), sd.config.size, 64, seed=9, step=0, split="heldout").scenes
    found = shares(
        examine(judge.load_judge(), draw_scenes(sd, scenes, sd.config.cfg_scale), scenes)
    )
    assert found["background"] >= 0.98
    assert found["thing"] >= 0.85
    assert found["style"] >= 0.75
    assert found["tint"] >= 0.7


def test_what_was_shipped_keeps_its_promises(sd):
    """Fidelity of both decoders, on a quarter of docs/mini.md's pictures; the judge's accuracy."""
    unseen = batch(Emoji.load(), sd.config.size, 256, seed=2, step=0, split="heldout").images
    tuned = load_vae(WEIGHTS / "mini-decoder.safetensors", sd.config.vae)
    assert psnr(sd.vae, unseen) >= 27
    assert psnr(tuned, unseen) >= 29
    known = judge.accuracy(judge.load_judge(), Emoji.load())
    assert known["thing"] >= 0.97 and known["style"] >= 0.97 and known["tint"] >= 0.97


def test_the_page_of_figures_says_what_was_measured():
    """docs/mini.md shows its figures, except for the part that needs the pictures themselves."""
    figures = json.loads((DOCS / "mini.json").read_text(encoding="utf-8"))
    page = (DOCS / "mini.md").read_text(encoding="utf-8")
    computed = parts(figures, [])
    del computed["failures"]
    assert fill_parts(page, computed) == page


def test_the_file_is_small_and_says_what_it_is(sd):
    path = WEIGHTS / "mini.safetensors"
    assert path.stat().st_size <= 25e6
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        notes = file.metadata()
    assert {"command", "figures"} <= set(notes)
    assert sd.config.name == "mini"


def test_latents_have_unit_spread(sd):
    latent = sd.encode(batch(Emoji.load(), sd.config.size, 64, seed=5, step=0).images)
    assert latent.std().item() == pytest.approx(1, abs=0.05)


def test_the_vocabulary_can_be_learnt_again(sd):
    assert train_vocabulary(Emoji.load()).merges == sd.tokenizer.merges


def test_the_readmes_lines_run_and_say_what_they_give(tmp_path, monkeypatch):
    """Every commented value in the README's snippet is what the line gives."""
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict = {}
    exec(snippet, names)
    assert (tmp_path / "another-cat.png").exists()
    claims = re.findall(r"^(\S.*?)\s+# (.+)$", snippet, flags=re.MULTILINE)
    checked = 0
    for line, claim in claims:
        if claim.startswith("["):
            assert eval(line, names) == eval(claim)
        elif shape := re.match(r"(\d+(?: \d+)+)", claim):
            code = line.partition(" = ")[2] or line
            value = eval(code, names)
            size = tuple(value) if isinstance(value, torch.Size) else tuple(value.shape)
            assert size == tuple(int(n) for n in shape[1].split()), line
        else:
            continue
        checked += 1
    assert checked >= 3
