"""A picture holds its settings, and --like draws it again, byte for byte.

The expected text of the web UI comes from its modules/infotext_utils.py and modules/processing.py:
names of parameters and samplers, quoting, and Clip skip, which counts from 1.
"""

import hashlib
import json
import shlex
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd import samplers, sampling
from minisd.cli import a1111_metadata, file_hashes
from minisd.config import WEIGHTS
from minisd.mini.examples import write_input_pictures
from tests.helpers.commands import run
from tests.helpers.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny random model as a file."""
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The input pictures: a photo, and the pictures of `minisd examples`."""
    folder = tmp_path_factory.mktemp("given")
    write_input_pictures(folder)
    shades = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(shades.byte().numpy()).save(folder / "photo.png")
    return folder


@pytest.fixture
def here(tiny, given, tmp_path, monkeypatch):
    """A folder with a model and pictures, where the commands run."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny, "tiny.safetensors")
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def drawn(tiny, tmp_path_factory):
    """A picture that the command PLAIN drew."""
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copy(tiny, folder / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*PLAIN) == 0
    return folder / "cat.png"


def about(path):
    with Image.open(path) as picture:
        return json.loads(picture.info["minisd"])


def rewritten(path, change, to="other.png"):
    """Write the picture with other settings. change: makes them from the old dictionary"""
    with Image.open(path) as picture:
        info = PngInfo()
        changed = change(json.loads(picture.info["minisd"]))
        info.add_text("minisd", changed if isinstance(changed, str) else json.dumps(changed))
        picture.save(to, pnginfo=info)
    return to


def with_text(text, path="web.png"):
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


PLAIN = ["generate", "a cat", "--model", "tiny.safetensors", "--steps", 2, "-o", "cat.png"]


# ---- what is written -------------------------------------------------------------------------


def test_every_setting_and_every_file_is_written(here):
    model, lora = WEIGHTS / "mini.safetensors", WEIGHTS / "mini-blueprint.safetensors"
    chosen = ["--lora", "mini-blueprint:0.5", "--control", "mini-edges:ears-edges.png:0.8"]
    chosen += ["--negative", "bad", "--seed", 5, "--steps", 2, "--scale", 2.5, "--width", 80]
    chosen += ["--sampler", "dpmpp_2m", "--spacing", "karras", "--clip-skip", 1, "--extended"]
    assert run("generate", "a (cat:1.2)", *chosen, "-o", "cat.png") == 0
    digests = {
        "mini": hashlib.sha256(model.read_bytes()).hexdigest(),
        "mini-blueprint": hashlib.sha256(lora.read_bytes()).hexdigest(),
        "mini-edges": hashlib.sha256((WEIGHTS / "mini-edges.safetensors").read_bytes()).hexdigest(),
        "ears-edges.png": hashlib.sha256(Path("ears-edges.png").read_bytes()).hexdigest(),
    }
    assert about("cat.png") == {
        "prompt": "a (cat:1.2)",
        "negative_prompt": "bad",
        "seed": 5,
        "steps": 2,
        "cfg_scale": 2.5,
        "sampler": "dpmpp_2m",
        "spacing": "karras",
        "width": 80,
        "height": 64,
        "clip_skip": 1,
        "extended": True,
        "edges": False,
        "lora": ["mini-blueprint:0.5"],
        "control": ["mini-edges:ears-edges.png:0.8"],
        "model": "mini",
        "prediction": "eps",
        "device": "cpu",
        "ema": False,
        "minisd": minisd.__version__,
        "command": "generate",
        "hashes": digests,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    text = Image.open("cat.png").info["parameters"]
    assert text == (
        "a (cat:1.2) <lora:mini-blueprint:0.5>\nNegative prompt: bad\n"
        "Steps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 2.5, Seed: 5, "
        f"Size: 80x64, Model hash: {digests['mini'][:10]}, Model: mini, Clip skip: 2, "
        f'Lora hashes: "mini-blueprint: {digests["mini-blueprint"][:10]}", RNG: CPU, '
        f"Version: minisd {minisd.__version__}"
    )


def test_a_folder_and_a_file_with_a_base_are_hashed_whole(here):
    assert run("convert", "tiny.safetensors", "folder") == 0
    first = file_hashes.hash_of("folder")
    config = Path("folder/scheduler/scheduler_config.json")
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert file_hashes.hash_of("folder") != first
    for name in ("mini-inpaint", "mini"):
        shutil.copy(WEIGHTS / f"{name}.safetensors", f"{name}.safetensors")
    assert file_hashes.hash_of("mini-inpaint.safetensors") == file_hashes.hash_of("mini-inpaint")
    with open("mini.safetensors", "ab") as file:
        file.write(b"\0")
    assert file_hashes.hash_of("mini-inpaint.safetensors") != file_hashes.hash_of("mini-inpaint")


def test_the_levels_that_a_folder_asks_for_are_written(here):
    assert run("convert", "tiny.safetensors", "folder") == 0
    path = Path("folder/scheduler/scheduler_config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}
    config = {name: value for name, value in config.items() if name != "set_alpha_to_one"}
    path.write_text(json.dumps(config), encoding="utf-8")
    plain = ["generate", "a cat", "--model", "folder", "--steps", 2, "-o"]
    assert run(*plain, "cat.png") == 0 and run(*plain, "other.png", "--spacing", "uniform") == 0
    assert about("cat.png")["schedule"] == "karras" and "schedule" not in about("other.png")
    assert "Sampler: Euler, Schedule type: Karras" in Image.open("cat.png").info["parameters"]
    assert "Schedule type: Uniform" in Image.open("other.png").info["parameters"]
    assert run("generate", "--like", "cat.png", "-o", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()


def test_a_large_file_is_hashed_once(here, monkeypatch, capsys):
    monkeypatch.setenv("MINISD_WEIGHTS", str(here / "kept"))
    monkeypatch.setattr(file_hashes, "LARGE_FILE", 0)
    first = file_hashes.hash_of("photo.png")
    assert "once" in capsys.readouterr().err
    file_hashes.cached_hash.cache_clear()  # as in another process
    assert file_hashes.hash_of("photo.png") == first and capsys.readouterr().err == ""
    Path("photo.png").write_bytes(b"another one")
    assert file_hashes.hash_of("photo.png") == hashlib.sha256(b"another one").hexdigest()
    (here / "kept" / "hashes.json").write_text("no JSON", encoding="utf-8")
    file_hashes.cached_hash.cache_clear()
    assert file_hashes.hash_of("photo.png") == hashlib.sha256(b"another one").hexdigest()


# ---- drawn again -----------------------------------------------------------------------------

LONG = "a (cat:1.3) " + "and a dog " * 40
AGAIN = {
    "plain": "generate 'a cat' --model tiny.safetensors",
    "chosen": f"generate '{LONG}' --model tiny.safetensors --extended --clip-skip 1 --seed {2**63} "
    "--negative bäd --sampler euler_ancestral --spacing trailing --scale 1.5 --width 48",
    "adapters": "generate 'a <blorp>' --embedding mini-blorp --lora mini-blueprint --vae "
    "mini-decoder --hypernetwork mini-sepia:0.3 --sampler plms --classifier mini-classifier:cat:2 "
    "--control mini-edges:photo.png:0.5 --edges",
    "img2img": "img2img 'a cat' photo.png --strength 0.4 --width 80",
    "kept": "img2img 'a cat' photo.png --strength 0",
    "inpaint": "inpaint 'a cat' photo.png hat-mask.png --paste",
    "hole": "inpaint 'a cat' photo.png hat-mask.png --model mini-inpaint",
    "depth": "depth 'a cat' photo.png --depth pair.png --model mini-depth",
    "estimated": "depth 'a cat' photo.png --model mini-depth --strength 0.6",
    "estimator": "depth 'a cat' photo.png --model mini-depth --estimator mini-depth",
    "control": "control 'a cat' mini-edges ears-edges.png --weight 0.7",
    "two": "control 'a cat' mini-edges ears.png --edges --control mini-edges:ears.png:0.2",
}


@pytest.mark.parametrize("command", AGAIN.values(), ids=AGAIN)
def test_a_picture_is_drawn_again_byte_for_byte(here, command):
    name, *words = shlex.split(command)
    assert run(name, *words, "--steps", 2, "-o", "cat.png") == 0
    assert run(name, "--like", "cat.png", "-o", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()


def test_each_of_several_is_drawn_again(here):
    assert run(*PLAIN, "-n", 2, "--every-step") == 0
    for name in ("cat-1", "cat-2", "cat-2-steps"):
        assert run("generate", "--like", f"{name}.png", "-o", "again.png", "--force") == 0
        drawn = Path(f"{name.removesuffix('-steps')}.png")
        assert Path("again.png").read_bytes() == drawn.read_bytes()
    assert run("generate", "--like", "cat-1.png", "-n", 2, "-o", "new.png") == 0
    assert Path("new-2.png").read_bytes() == Path("cat-2.png").read_bytes()


def test_as_many_threads_are_used_as_then(here, monkeypatch):
    torch.set_num_threads(2)
    try:
        assert run(*PLAIN) == 0
    finally:
        torch.set_num_threads(1)
    assert about("cat.png")["threads"] == 2
    used = []
    load = minisd.load
    monkeypatch.setattr(
        minisd, "load", lambda *a, **k: used.append(torch.get_num_threads()) or load(*a, **k)
    )
    assert run("generate", "--like", "cat.png", "-o", "again.png") == 0
    assert used == [2] and torch.get_num_threads() == 1
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()


def test_options_that_are_given_change_it(here):
    assert run(*PLAIN, "--negative", "bad", "--extended") == 0
    changed = ["--seed", 4, "--no-extended", "--negative", "", "--scale", 2]
    assert run("generate", "--like", "cat.png", "a dog", *changed, "-o", "dog.png") == 0
    plain = ["generate", "a dog", "--model", "tiny.safetensors", "--steps", 2]
    assert run(*plain, "--seed", 4, "--scale", 2, "-o", "same.png") == 0
    assert Path("dog.png").read_bytes() == Path("same.png").read_bytes()


def test_adapters_that_are_given_take_the_place_of_the_recorded(here):
    common = ["generate", "a cat", "--steps", 1, "--lora", "mini-blueprint"]
    assert run(*common, "--hypernetwork", "mini-sepia", "-o", "cat.png") == 0
    changed = ["--lora", "mini-blueprint:0.2", "--hypernetwork", ""]
    assert run("generate", "--like", "cat.png", *changed, "-o", "new.png") == 0
    new = about("new.png")
    assert new["lora"] == ["mini-blueprint:0.2"] and "hypernetwork" not in new
    assert new["hashes"].keys() == {"mini", "mini-blueprint"}


def test_a_picture_of_another_command_names_it(here, capsys):
    common = ["--steps", 1, "--model", "tiny.safetensors", "-o", "cat.png"]
    assert run("img2img", "a cat", "photo.png", *common) == 0
    capsys.readouterr()
    assert run("generate", "--like", "cat.png") == 2
    assert "another command: use minisd img2img --like cat.png" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny.safetensors", "photo.png"])
def test_another_file_of_the_same_name_is_refused(here, capsys, name):
    common = ["--steps", 1, "--model", "tiny.safetensors", "-o", "cat.png"]
    assert run("img2img", "a cat", "photo.png", *common) == 0
    if name == "photo.png":
        Image.new("RGB", (64, 64)).save(name)
    else:
        shutil.copy(WEIGHTS / "mini.safetensors", name)
    assert run("img2img", "--like", "cat.png", "-o", "again.png") == 2
    assert f"{name} is not the file that" in capsys.readouterr().err
    chosen = ["a cat", name] if name == "photo.png" else ["--model", name]
    assert run("img2img", "--like", "cat.png", *chosen, "-o", "again.png") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: "no JSON", "damaged settings"),
        (lambda s: "[1]", "damaged settings"),
        (lambda s: s | {"hashes": 1}, "damaged settings"),
        (lambda s: s | {"steps": "many"}, "damaged settings (steps is 'many')"),
        (lambda s: s | {"steps": True}, "damaged settings (steps is True)"),
        (lambda s: s | {"cfg_scale": "much"}, "damaged settings"),
        (lambda s: s | {"strength": []}, "damaged settings"),
        (lambda s: s | {"prompt": 3}, "damaged settings"),
        (lambda s: s | {"lora": "x"}, "damaged settings"),
        (lambda s: s | {"lora": [1]}, "damaged settings"),
        (lambda s: s | {"threads": 0}, "damaged settings"),
        (lambda s: s | {"threads": "all"}, "damaged settings"),
        (lambda s: s | {"tiling": True}, "the setting tiling, which this minisd does not know"),
        (lambda s: s | {"steps": 0}, "steps must be 1 to 1000"),
        (lambda s: s | {"sampler": "new"}, 'sampler "new"'),
        (lambda s: s | {"model": "gone.pt"}, "There is no file or folder gone.pt"),
        (lambda s: s | {"command": "upscale"}, "minisd upscale --like"),
    ],
)
def test_settings_that_are_no_settings_are_one_sentence(here, drawn, capsys, change, message):
    other = rewritten(drawn, change)
    capsys.readouterr()
    assert run("generate", "--like", other, "-o", "again.png") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_a_picture_of_an_older_minisd_is_drawn_again(here):
    """An older version wrote only these settings."""
    assert run(*PLAIN, "--scale", 3) == 0
    names = ("prompt", "seed", "model", "negative_prompt", "steps", "cfg_scale", "sampler")
    names += ("width", "height", "clip_skip", "extended")
    old = rewritten("cat.png", lambda s: {name: s[name] for name in names} | {"spacing": None})
    assert run("generate", "--like", old, "-o", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()


def test_another_version_is_said(here, drawn, capsys):
    other = rewritten(drawn, lambda s: s | {"torch": "2.4.0", "minisd": "0.0.1"})
    capsys.readouterr()
    assert run("generate", "--like", other, "-o", "again.png") == 0
    assert "was drawn by minisd 0.0.1 and torch 2.4.0" in capsys.readouterr().err


# ---- the web UI's text -----------------------------------------------------------------------


EXAMPLE = """girl with a beret, (blue eyes), desert scene
and a second line
Negative prompt: ugly, [blurry], (bad:1.2)
Steps: 2, Sampler: Euler a, CFG scale: 7.5, Seed: 965400086, Size: 64x48, \
Model hash: 45dee52b, Clip skip: 2, RNG: CPU"""


def test_the_web_uis_text_is_read():
    settings, warnings = a1111_metadata.settings_from_webui(EXAMPLE, {"model"})
    assert settings == {
        "prompt": "girl with a beret, (blue eyes:1.1), desert scene\nand a second line",
        "negative_prompt": "ugly, (blurry:0.9090909), (bad:1.2)",
        "steps": 2,
        "cfg_scale": 7.5,
        "seed": 965400086,
        "sampler": "euler_ancestral",
        "spacing": "uniform",
        "width": 64,
        "height": 48,
        "clip_skip": 1,
        "extended": True,
    }
    assert warnings == []
    assert a1111_metadata.settings_from_webui(EXAMPLE.replace(", RNG: CPU", ""), {"model"})[1] != []


@pytest.mark.parametrize("line", ["a" * 1000, "a: 1, " * 200, "\n" * 1000, '"'])
def test_a_web_ui_text_that_is_too_long_is_refused_before_it_is_copied(line):
    text = line * (20_000_000 // len(line))
    for read in (
        a1111_metadata.parse_parameters,
        a1111_metadata.model_hash,
        lambda text: a1111_metadata.settings_from_webui(text, {"model"}),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="at most 50,000 are allowed"):
                read(text)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


def test_a_picture_with_too_long_a_text_is_refused_by_name(here, capsys):
    path = with_text(EXAMPLE + "a" * 60_000)
    for command in (["info", path], ["generate", "--like", path, "-o", "cat.png"]):
        assert run(*command) != 0
        assert f"{path} has settings of" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_picture_of_the_web_ui_is_drawn(here, kind):
    """The comment is as piexif.helper.UserComment writes it: UNICODE, then UTF-16 big-endian."""
    if kind == "png":
        path = with_text(EXAMPLE)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + EXAMPLE.encode("utf-16-be")
        path = f"web.{kind}"
        Image.new("RGB", (64, 48)).save(path, exif=exif)
    assert run("generate", "--like", path, "--model", "tiny.safetensors", "-o", "cat.png") == 0
    expected = minisd.load("tiny.safetensors").txt2img(
        "girl with a beret, (blue eyes:1.1), desert scene\nand a second line",
        negative_prompt="ugly, (blurry:0.9090909), (bad:1.2)",
        steps=2,
        cfg_scale=7.5,
        seed=965400086,
        sampler="euler_ancestral",
        width=64,
        height=48,
        clip_skip=1,
        extended=True,
    )
    assert Image.open("cat.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("DDIM", ("ddim", None)),
        ("PLMS", ("plms", None)),
        ("LMS", ("lms", "uniform")),
        ("LMS Karras", ("lms", "karras")),
        ("Heun", ("heun", "uniform")),
        ("Euler", ("euler", "uniform")),
        ("Euler, Schedule type: Automatic", ("euler", "uniform")),
        ("Euler, Schedule type: Uniform", ("euler", "uniform")),
        ("Euler a, Schedule type: Karras", ("euler_ancestral", "karras")),
        ("DPM++ 2M", ("dpmpp_2m", "uniform")),  # until 1.8
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M, Schedule type: Automatic", ("dpmpp_2m", "karras")),  # since 1.9
        ("DPM++ 2M, Schedule type: Uniform", ("dpmpp_2m", "uniform")),
        ("DDIM, Schedule type: Automatic", ("ddim", None)),
    ],
)
def test_samplers_by_the_web_uis_names(theirs, ours):
    text = f"a cat\nSteps: 2, Sampler: {theirs}, Seed: 1"
    settings, _ = a1111_metadata.settings_from_webui(text, {"model"})
    assert (settings["sampler"], settings["spacing"]) == ours


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("Sampler: DPM++ SDE Karras", "the sampler DPM++ SDE Karras, which minisd lacks"),
        ("Sampler: UniPC", "the sampler UniPC, which minisd lacks"),
        ("Sampler: LCM", "the web UI's LCM, which uses other noise levels than minisd"),
        ("Schedule type: Exponential", "Schedule type: exponential"),
        ("Schedule type: SGM Uniform", "Schedule type: sgm uniform"),
        ("Denoising strength: 0.7", "Denoising strength: 0.7, which minisd does not have"),
        ("Hires upscale: 2", "Hires upscale: 2, which minisd does not have"),
        ("ENSD: 31337", "ENSD: 31337"),
        ("Variation seed strength: 0.1", "Variation seed strength: 0.1"),
        ('ControlNet 0: "Module: canny, Model: x"', "ControlNet 0: Module: canny, Model: x"),
        ("Token merging ratio: 0.5", "Token merging ratio"),
        ("VAE: other.vae.pt", "the VAE other.vae.pt: give that file with --vae"),
        ("Size: large", "has the invalid setting Size: large"),
        ("Seed: x", "has the invalid setting Seed: x"),
    ],
)
def test_what_the_web_ui_can_and_minisd_cannot_is_refused_by_name(here, capsys, more, message):
    name = more.partition(":")[0]
    plain = {"Steps": "2", "Sampler": "Euler", "CFG scale": "7", "Seed": "1", "Size": "64x64"}
    words = [f"{key}: {value}" for key, value in plain.items() if key != name] + [more]
    path = with_text(f"a cat\n{', '.join(words)}")
    assert run("generate", "--like", path, "--model", "tiny.safetensors") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("minisd generate: web.png")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a cat <lora:style:0.8>", "the lora style: give --lora FILE:0.8"),
        ("a cat <hypernet:old>", "the hypernetwork old: give --hypernetwork FILE"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5] in its prompt"),
        ("a [cat|dog]", "[cat|dog] in its prompt"),
        ("a cat AND a dog", "AND in its prompt"),
        ("a cat BREAK a dog", "BREAK in its prompt"),
    ],
)
def test_prompts_that_are_programs_are_refused(here, capsys, prompt, message):
    path = with_text(f"{prompt}\nSteps: 2, Sampler: Euler, Seed: 1, RNG: CPU")
    assert run("generate", "--like", path, "--model", "tiny.safetensors") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [  # from the docstring of parse_prompt_attention in the web UI's modules/prompt_parser.py
        ("normal text", "normal text"),
        ("an (important) word", "an (important:1.1) word"),
        ("(unbalanced", "(unbalanced:1.1)"),
        (r"\(literal\]", r"\(literal]"),
        ("(unnecessary)(parens)", "(unnecessaryparens:1.1)"),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            "a (house:1.573)( :1.1)on( a :1.1)(hill:0.55)(, sun, :1.1)(sky:1.4641)(.:1.1)",
        ),
        ("a ] and ) b", r"a ] and \) b"),
        ("at 5:30", "at 5:30"),
    ],
)
def test_the_web_uis_weights_are_written_out(theirs, ours):
    assert a1111_metadata.to_minisd_syntax(theirs) == ours


def test_a_lora_of_the_web_ui_may_be_given(here):
    path = with_text("a cat <lora:style:0.5>\nSteps: 1, Sampler: DDIM, Seed: 1, Size: 64x64")
    given = ["--model", "mini", "--lora", "mini-blueprint:0.5", "-o", "cat.png"]
    assert run("generate", "--like", path, *given) == 0
    assert about("cat.png")["prompt"] == "a cat"


def test_its_model_is_found_by_hash_or_asked_for(here, capsys):
    text = "a cat\nSteps: 1, Sampler: DDIM, Seed: 1, Size: 64x64, Model hash: {}, Model: {}"
    path = with_text(text.format("6ce0161689", "v1-5-pruned-emaonly"))
    assert run("generate", "--like", path) == 2
    assert "sd15 is not on this machine: download it" in capsys.readouterr().err
    path = with_text(text.format("0123456789", "anything"))
    assert run("generate", "--like", path) == 2
    assert "anything (hash 0123456789): give that file with --model" in capsys.readouterr().err
    assert run("generate", "--like", path, "--model", "tiny.safetensors") == 0
    assert "the new picture will be different" in capsys.readouterr().err


def test_what_we_write_is_read_back_the_same():
    """From the web UI's text alone, as another program may keep only that."""
    for sampler in samplers.SAMPLERS:
        for spacing in (None, *sampling.SPACINGS):
            told = {"prompt": "a, cat", "negative_prompt": "", "steps": 5, "cfg_scale": 2.25}
            told |= {"sampler": sampler, "spacing": spacing, "seed": 7, "width": 64, "height": 72}
            told |= {"clip_skip": 1, "extended": True, "model": "mini", "minisd": "0.1.0"}
            if sampler in ("ddpm", "lcm"):  # no name in the web UI; another LCM
                continue
            back, warnings = a1111_metadata.settings_from_webui(
                a1111_metadata.parameters_text(told), set()
            )
            same = (sampler, spacing or (None if sampler in ("ddim", "plms") else "uniform"))
            assert (back.pop("sampler"), back.pop("spacing")) == same and not warnings
            assert back.items() <= told.items() and back["model"] == "mini"


def test_brackets_that_mean_nothing_are_escaped_and_values_quoted():
    told = {"prompt": r"a (cat) [x] \ ", "negative_prompt": "(no)", "steps": 5, "cfg_scale": 2.0}
    told |= {"sampler": "ddim", "seed": 7, "width": 64, "height": 64, "minisd": "0.1.0"}
    told |= {"model": "C:/a, b/my, model: x.ckpt", "vae": ["a.pt", "b.pt"]}
    prompt, negative, last = a1111_metadata.parameters_text(told).split("\n")
    assert prompt == r"a \(cat\) \[x\] \\ " and negative == r"Negative prompt: \(no\)"
    assert 'VAE: "a.pt, b.pt"' in last and "Model: my model x," in last
    assert a1111_metadata.parse_parameters("a cat\n" + last)["VAE"] == "a.pt, b.pt"


# ---- minisd info -----------------------------------------------------------------------------


def test_info_shows_it(here, capsys):
    assert run(*PLAIN) == 0
    capsys.readouterr()
    assert run("info", "cat.png") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"cat.png: 64 x 64 pixels, drawn by minisd {minisd.__version__}\n")
    assert "prompt" in told and "a cat" in told and "threads" in told
    assert file_hashes.hash_of("tiny.safetensors") in told
    assert "minisd generate --like cat.png" in told
    assert run("info", with_text(EXAMPLE)) == 0
    told = capsys.readouterr().out
    assert "settings of another program" in told and "Euler a" in told and "965400086" in told
    assert run("info", "photo.png") == 0
    assert "does not say how it was drawn" in capsys.readouterr().out
    assert run("info", "tiny.safetensors") == 0
    assert "Stable Diffusion" in capsys.readouterr().out
