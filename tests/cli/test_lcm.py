"""minisd generate --lcm and the other drawing commands: 4 steps with the LCM-LoRA of the model."""

import json

import pytest
from PIL import Image

import minisd
from minisd.adapters.lora import lora
from minisd.checkpoints.folder_scheduler import SCHEDULER_FILE
from minisd.checkpoints.write import convert
from minisd.cli.lcm import lcm_lora_of
from minisd.config import MINI, SD15, SD15_INPAINT, SD21
from minisd.mini.examples import write_input_pictures
from tests.helpers.commands import run
from tests.helpers.tiny_models import write_tiny_model


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_input_pictures(tmp_path)
    return tmp_path


def about(path):
    with Image.open(path) as picture:
        return json.loads(picture.info["minisd"])


def test_lcm_draws_4_steps_with_the_lora_of_the_mini(here):
    assert run("generate", "a cat", "--lcm", "--seed", 2, "-o", "a.png") == 0
    told = about("a.png")
    chosen = [told[name] for name in ("sampler", "steps", "cfg_scale", "lora")]
    assert chosen == ["lcm", 4, 1.0, ["mini-lcm"]] and "mini-lcm" in told["hashes"]
    sd = minisd.load("mini")
    with lora(sd, "mini-lcm"):
        drawn = sd.txt2img("a cat", sampler="lcm", steps=4, cfg_scale=1, seed=2)
    with Image.open("a.png") as picture:
        assert picture.tobytes() == drawn.tobytes()
    longhand = ["--sampler", "lcm", "--steps", 4, "--scale", 1, "--lora", "mini-lcm"]
    for name, more in {"b.png": ["--lcm", "--lora", "mini-lcm"], "c.png": longhand}.items():
        assert run("generate", "a cat", *more, "--seed", 2, "-o", name) == 0
    assert run("generate", "--like", "a.png", "-o", "d.png") == 0
    assert run("generate", "--like", "a.png", "--lcm", "-o", "e.png") == 0
    files = [(here / f"{name}.png").read_bytes() for name in "abcde"]
    assert len(set(files)) == 1


def test_what_is_given_wins(here):
    more = ["--steps", 2, "--scale", 1.5, "--lora", "mini-blueprint:0.5", "--negative", "dog"]
    assert run("generate", "a cat", "--lcm", *more, "-o", "a.png") == 0
    told = about("a.png")
    assert (told["steps"], told["cfg_scale"]) == (2, 1.5)
    assert told["lora"] == ["mini-blueprint:0.5", "mini-lcm"]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("img2img", ["santa.png"]),
        ("inpaint", ["santa.png", "hat-mask.png"]),
        ("inpaint", ["santa.png", "hat-mask.png", "--model", "mini-inpaint"]),
        ("depth", ["santa.png", "--model", "mini-depth"]),
        ("control", ["mini-edges", "ears-edges.png"]),
    ],
)
def test_the_other_commands_take_it_too(here, command, more):
    assert run(command, "a cat", *more, "--lcm", "-o", "a.png") == 0
    told = about("a.png")
    assert (told["sampler"], told["steps"], told["lora"]) == ("lcm", 4, ["mini-lcm"])
    assert run(command, "--like", "a.png", "-o", "b.png") == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sampler", "ddim"], "--lcm and --sampler ddim exclude each other: give only one"),
        (["--negative", "dog"], "draws without guidance, so a negative prompt has no effect"),
        (["--steps", 51], "lcm takes at most 50 steps, got 51. Give fewer steps"),
        (
            ["--model", "tiny.safetensors"],
            "knows no LCM-LoRA for tiny.safetensors: give one with --lora, and --sampler lcm",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(here, capsys, more, message):
    write_tiny_model(here)
    assert run("generate", "a cat", "--lcm", *more, "-o", "a.png") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (here / "a.png").exists()


def test_a_distilled_model_needs_no_lora(here):
    convert("mini", here / "folder")
    path = here / "folder" / SCHEDULER_FILE
    stored = json.loads(path.read_text(encoding="utf-8")) | {"_class_name": "LCMScheduler"}
    path.write_text(json.dumps(stored), encoding="utf-8")
    index = here / "folder" / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("DDIM", "LCM"), encoding="utf-8")
    assert run("generate", "a cat", "--model", "folder", "--lcm", "-o", "a.png") == 0
    assert "lora" not in about("a.png")
    assert about("a.png")["sampler"] == "lcm"


def test_the_published_lora_is_for_models_of_v1():
    assert lcm_lora_of("my.safetensors", SD15) == "lcm-lora-sd15"
    assert lcm_lora_of("my.safetensors", SD15_INPAINT) == "lcm-lora-sd15"
    assert lcm_lora_of("mini-depth", MINI) == "mini-lcm"
    for config in (SD21, MINI):  # MINI: another model of its size, whose name is a path
        with pytest.raises(ValueError, match=r"LCM-LoRA for my\.safetensors"):
            lcm_lora_of("my.safetensors", config)
