"""The command line: it writes pictures with their settings inside, and one sentence per error."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import minisd
from minisd import cli
from minisd.adapters.classifier import load_classifier
from minisd.adapters.controlnet import ControlNet
from minisd.checkpoints import write
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.load import load_vae
from minisd.cli import doctor
from minisd.clip import TextTransformer
from minisd.config import WEIGHTS
from minisd.depth.small import load_estimator
from minisd.files.pictures import to_pil
from minisd.mini import judge
from minisd.mini.recipes import RECIPES
from minisd.tasks.depth2img import depth2img
from minisd.tasks.img2img import img2img
from minisd.tokenizer import Tokenizer
from minisd.training.run_folder import last_state, log_records
from minisd.unet import UNet
from minisd.vae import VAE
from tests.helpers.commands import run
from tests.helpers.tiny_models import V1


def test_generate_writes_the_picture_of_txt2img_with_its_settings(model, tmp_path, capsys):
    out = tmp_path / "cat.png"
    settings = ["--steps", 2, "--scale", 3, "--seed", 7, "--width", 80, "--sampler", "euler"]
    assert run("generate", "a cät", "-o", out, "--model", model, *settings) == 0
    assert capsys.readouterr().out.strip() == str(out)
    sd = minisd.load(model)
    expected = sd.txt2img("a cät", steps=2, cfg_scale=3, seed=7, width=80, sampler="euler")
    with Image.open(out) as picture:
        assert picture.tobytes() == expected.tobytes()
        about = json.loads(picture.text["minisd"])
    told = {"prompt": "a cät", "seed": 7, "steps": 2, "cfg_scale": 3, "sampler": "euler"}
    assert about.items() >= (told | {"width": 80, "height": 64, "negative_prompt": ""}).items()


def test_generate_writes_several_pictures_with_neighbouring_seeds(model, tmp_path):
    assert run("generate", "a cat", "-o", tmp_path / "c.png", "--model", model, "-n", 2) == 0
    seeds = []
    for i in (1, 2):
        with Image.open(tmp_path / f"c-{i}.png") as picture:
            seeds.append(json.loads(picture.text["minisd"])["seed"])
    assert seeds == [0, 1]


def test_every_step_writes_the_strip_of_guesses(model, tmp_path):
    out = tmp_path / "c.png"
    assert run("generate", "a cat", "-o", out, "--model", model, "--steps", 3, "--every-step") == 0
    sd = minisd.load(model)
    first = next(iter(sd.txt2img_steps("a cat", steps=3)))
    with Image.open(tmp_path / "c-steps.png") as strip:
        assert strip.size == (3 * 64, 64)
        guess = to_pil(sd.decode(first.prediction.x0))[0]
        assert strip.crop((0, 0, 64, 64)).tobytes() == guess.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{tmp}/cat.jpg"], "name the output cat.png"),
        (["-o", "{tmp}/nowhere/cat.png"], "no file can be written into the folder"),
        (["-o", "/proc/cat.png"], "no file can be written into the folder /proc"),
        (["-n", "0"], "number of pictures must be 1 or more"),
        (["-n", "99999999999"], "one command draws at most 10,000 pictures"),
        (["--steps", "0"], "steps must be 1 to 1000"),
        (["--sampler", "dpm3"], "choose one of ddpm, ddim"),
        (["--width", "100"], "multiples of 8"),
        (["--width", "0"], "larger multiple of 8"),
        (["--device", "warp"], "device 'warp' cannot be used"),
        (["--model", "{tmp}/gone.safetensors"], "There is no file or folder"),
    ],
)
def test_a_mistake_gets_one_sentence_and_no_picture(model, tmp_path, capsys, arguments, message):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    given = ["--model", model, "-o", tmp_path / "cat.png", *arguments]
    assert run("generate", "a cat", *given) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("minisd generate: ")
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_asked_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(minisd, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert run("generate", "a cat", "-o", tmp_path / "nowhere" / "cat.png") == 2


def test_every_name_is_asked_before_the_work(model, tmp_path, capsys):
    """The names of numbered pictures and of strips are checked too, before anything is drawn."""
    (tmp_path / "c-2.png").mkdir()
    assert run("generate", "a cat", "-o", tmp_path / "c.png", "--model", model, "-n", 2) == 2
    assert "c-2.png is a folder" in capsys.readouterr().err
    (tmp_path / "d-steps.png").mkdir()
    given = ["-o", tmp_path / "d.png", "--model", model]
    assert run("generate", "a cat", *given, "--every-step") == 2
    assert not (tmp_path / "c-1.png").exists() and not (tmp_path / "d.png").exists()


def test_a_warning_is_one_line(model, tmp_path, capsys):
    long = " ".join(["cat"] * 80)
    given = ["-o", tmp_path / "c.png", "--model", model, "--steps", 1]
    assert run("generate", long, *given) == 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "minisd: the prompt is too long, so its end is not read: 'cat cat cat cat cat'"


def test_convert_and_info(model, tmp_path, capsys):
    single = tmp_path / "single.safetensors"
    assert run("convert", model, single) == 0
    assert run("convert", single, tmp_path / "folder") == 0
    assert (tmp_path / "folder" / "model_index.json").exists()
    assert run("info", single) == 0
    told = capsys.readouterr().out
    assert "v1" in told and "float32" in told


def test_doctor_tells_versions_and_speed(capsys):
    assert run("doctor") == 0
    told = capsys.readouterr().out
    assert torch.__version__ in told and "GFLOPS" in told


def test_doctor_says_what_to_fix(tmp_path):
    advice = doctor.advice_on_machine("2.3.1+cpu", speed=5, mini=tmp_path / "mini.safetensors")
    assert "pip install -U 'torch>=2.4'" in advice[0]
    assert any("clone the repository" in line for line in advice)
    assert any("5 GFLOPS" in line for line in advice)


def test_help_and_import_stay_light():
    """Neither of them loads torch, which takes most of the time of a start."""
    code = "import sys, minisd.cli; minisd.cli.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- from a picture, and with adapters -------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    shades = torch.randint(0, 256, (8, 12, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(shades.byte().numpy()).resize((96, 64), Image.Resampling.BICUBIC)
    picture.save(path)
    return path


def test_img2img_writes_the_picture_of_the_task(model, photo, tmp_path):
    out = tmp_path / "out.png"
    settings = ["--steps", 4, "--strength", 0.5, "--seed", 7]
    assert run("img2img", "a cat", photo, "-o", out, "--model", model, *settings) == 0
    expected = img2img(minisd.load(model), "a cat", Image.open(photo), 0.5, steps=4, seed=7)
    with Image.open(out) as picture:
        assert picture.tobytes() == expected.tobytes()
        about = json.loads(picture.text["minisd"])
    assert about.items() >= {"prompt": "a cat", "strength": "0.5", "seed": 7}.items()


def test_inpaint_keeps_the_pixels_outside_the_mask(model, photo, tmp_path):
    mask = Image.new("L", (96, 64))
    mask.paste(255, (16, 16, 64, 48))
    mask.save(tmp_path / "mask.png")
    given = ["--model", model, "-o", tmp_path / "out.png", "--steps", 2, "--paste"]
    assert run("inpaint", "a cat", photo, tmp_path / "mask.png", *given) == 0
    with Image.open(tmp_path / "out.png") as drawn, Image.open(photo) as before:
        assert drawn.crop((64, 0, 96, 64)).tobytes() == before.crop((64, 0, 96, 64)).tobytes()
        assert drawn.crop((16, 16, 64, 48)).tobytes() != before.crop((16, 16, 64, 48)).tobytes()


def test_a_picture_of_another_size_is_made_to_fit_and_that_is_said(model, photo, tmp_path, capsys):
    Image.open(photo).resize((50, 67)).save(photo)
    given = ["--model", model, "-o", tmp_path / "out.png", "--force", "--steps", 2]
    assert run("img2img", "a cat", photo, *given) == 0
    assert "resized from 50 x 67 to 48 x 64" in capsys.readouterr().err
    assert Image.open(tmp_path / "out.png").size == (48, 64)
    assert run("img2img", "a cat", photo, *given, "--width", 80, "--height", 64) == 0
    assert Image.open(tmp_path / "out.png").size == (80, 64)


def test_control_follows_a_hint(photo, tmp_path):
    eighth = replace(V1, vae=replace(V1.vae, channels=(32, 32, 64, 64)))
    torch.manual_seed(0)
    networks = TextTransformer(eighth.text), UNet(eighth.unet), VAE(eighth.vae)
    write.save(tmp_path / "m.safetensors", Parts(eighth, Tokenizer.clip(), *networks))
    ControlNet(eighth.unet).save(tmp_path / "net.safetensors")
    common = ["--model", tmp_path / "m.safetensors", "--steps", 2, "--width", 96, "--height", 64]
    seen = set()
    for name, more in {"hint": [], "edges": ["--edges"], "none": ["--weight", 0]}.items():
        out = tmp_path / f"{name}.png"
        net = tmp_path / "net.safetensors"
        assert run("control", "a cat", net, photo, "-o", out, *common, *more) == 0
        seen.add(Image.open(out).tobytes())
    assert run("generate", "a cat", "-o", tmp_path / "plain.png", *common) == 0
    plain = Image.open(tmp_path / "plain.png").tobytes()
    assert len(seen) == 3 and plain in seen


def test_depth_draws_with_a_given_depth(photo, tmp_path):
    deep = replace(V1, unet=replace(V1.unet, in_channels=5))
    torch.manual_seed(0)
    networks = TextTransformer(deep.text), UNet(deep.unet), VAE(deep.vae)
    write.save(tmp_path / "m.safetensors", Parts(deep, Tokenizer.clip(), *networks))
    given = ["--depth", photo, "--model", tmp_path / "m.safetensors", "--steps", 2, "--seed", 3]
    assert run("depth", "a cat", photo, "-o", tmp_path / "out.png", *given) == 0
    sd, image = minisd.load(tmp_path / "m.safetensors"), Image.open(photo)
    expected = depth2img(sd, "a cat", image, image, steps=2, seed=3)
    assert Image.open(tmp_path / "out.png").tobytes() == expected.tobytes()


def test_adapters_are_put_on(model, photo, tmp_path):
    torch.manual_seed(0)
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    thin = {
        f"{stem}.lora_down.weight": torch.randn(2, 64),
        f"{stem}.lora_up.weight": torch.ones(64, 2),
    }
    save_file(thin, tmp_path / "style.safetensors")
    save_file({"emb_params": torch.randn(1, 64)}, tmp_path / "blorp.safetensors")
    write.save_vae(tmp_path / "vae.safetensors", VAE(V1.vae))
    net = {"linear.0.weight": torch.randn(64, 64), "linear.0.bias": torch.randn(64)}
    torch.save({64: [net, net]}, tmp_path / "sepia.pt")
    plain = ["generate", "a blorp", "--model", model, "--steps", 2, "--force"]
    assert run(*plain, "-o", tmp_path / "plain.png") == 0
    seen = {Image.open(tmp_path / "plain.png").tobytes()}
    for name, value in (
        ("lora", "style.safetensors:0.5"),
        ("lora", "style.safetensors"),
        ("embedding", "blorp.safetensors"),
        ("hypernetwork", "sepia.pt:0.5"),
        ("hypernetwork", "sepia.pt"),
        ("vae", "vae.safetensors"),
    ):
        out = tmp_path / "out.png"
        assert run(*plain, f"--{name}", f"{tmp_path}/{value}", "-o", out) == 0
        with Image.open(out) as picture:
            seen.add(picture.tobytes())
            assert json.loads(picture.text["minisd"])[name] == [f"{tmp_path}/{value}"]
    assert len(seen) == 7
    assert run(*plain, "--hypernetwork", f"{tmp_path}/sepia.pt:0", "-o", out) == 0
    assert Image.open(out).tobytes() in seen


@pytest.mark.parametrize("channels", [4, 5, 9])
def test_every_task_takes_every_adapter(photo, tmp_path, channels):
    """This includes ControlNets on the U-Nets for inpainting and depth, which have more inputs."""
    config = replace(
        V1,
        unet=replace(V1.unet, in_channels=channels),
        vae=replace(V1.vae, channels=(32, 32, 64, 64)),
    )
    torch.manual_seed(0)
    networks = TextTransformer(config.text), UNet(config.unet), VAE(config.vae)
    write.save(tmp_path / "m.safetensors", Parts(config, Tokenizer.clip(), *networks))
    ControlNet(V1.unet).save(tmp_path / "net.safetensors")
    save_file({"emb_params": torch.randn(1, 64)}, tmp_path / "blorp.safetensors")
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    ends = {"lora_down": torch.randn(2, 128), "lora_up": torch.ones(128, 2)}
    thin = {f"{stem}.{end}.weight": matrix for end, matrix in ends.items()}
    save_file(thin, tmp_path / "style.safetensors")
    net = {"linear.0.weight": torch.randn(64, 64), "linear.0.bias": torch.randn(64)}
    torch.save({64: [net, net]}, tmp_path / "sepia.pt")
    write.save_vae(tmp_path / "vae.safetensors", VAE(config.vae))
    Image.new("L", (96, 64), 255).save(tmp_path / "mask.png")
    tasks = {
        4: (["img2img", "a blorp", photo], ["inpaint", "a blorp", photo, tmp_path / "mask.png"]),
        5: (["depth", "a blorp", photo, "--depth", photo],),
        9: (["inpaint", "a blorp", photo, tmp_path / "mask.png"],),
    }
    given = {
        "plain": [],
        "lora": ["--lora", tmp_path / "style.safetensors"],
        "embedding": ["--embedding", tmp_path / "blorp.safetensors"],
        "hypernetwork": ["--hypernetwork", tmp_path / "sepia.pt"],
        "vae": ["--vae", tmp_path / "vae.safetensors"],
        "control": ["--control", f"{tmp_path}/net.safetensors:{photo}"],
        "less": ["--control", f"{tmp_path}/net.safetensors:{photo}:0.5"],
    }
    common = ["--model", tmp_path / "m.safetensors", "--steps", 2, "-o", tmp_path / "out.png"]
    common += ["--force"]
    for task in tasks[channels]:
        seen = set()
        for more in given.values():
            assert run(*task, *more, *common) == 0
            seen.add(Image.open(tmp_path / "out.png").tobytes())
        assert len(seen) == len(given), task[0]
        nothing = ["--control", f"{tmp_path}/net.safetensors:{photo}:0"]
        assert run(*task, *nothing, *common) == 0
        assert Image.open(tmp_path / "out.png").tobytes() in seen


def test_depth_estimates_with_the_file_that_is_named(tmp_path, photo):
    """The depth model of the mini holds an estimator, which other models can use as well."""
    weights = WEIGHTS / "mini-depth.safetensors"
    common = ["--model", "mini-depth", "--steps", 2, "-o", tmp_path / "out.png", "--force"]
    drawn = []
    for more in ([], ["--estimator", weights]):
        assert run("depth", "a cat", photo, *common, *more) == 0
        drawn.append(Image.open(tmp_path / "out.png").tobytes())
    sd, image, estimate = minisd.load("mini-depth"), Image.open(photo), load_estimator(weights)
    expected = depth2img(sd, "a cat", image, estimator=estimate, steps=2)
    assert drawn == [expected.tobytes()] * 2


def test_a_classifier_leads(tmp_path):
    weights = WEIGHTS / "mini-classifier.safetensors"
    common = ["generate", "", "--steps", 2, "--scale", 1, "-o", tmp_path / "out.png", "--force"]
    seen = set()
    for more in ([], [":tree:0"], [":tree:8"], [":man with a beard:8"], [":tree"]):
        assert run(*common, *[f"--classifier={weights}{one}" for one in more]) == 0
        with Image.open(tmp_path / "out.png") as picture:
            seen.add(picture.tobytes())
    assert len(seen) == 4
    assert json.loads(picture.text["minisd"])["classifier"] == [f"{weights}:tree"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["img2img", "a cat", "{tmp}/gone.png"], "cannot be read as a picture"),
        (["img2img", "a cat", "{photo}", "--strength", 2], "strength must be 0"),
        (["img2img", "a cat", "{photo}", "--lora", "{photo}"], "is a picture, not a file"),
        (["depth", "a cat", "{photo}", "--depth", "{photo}"], "Load a depth model"),
        (["depth", "a cat", "{photo}"], "Load a depth model"),
        (["depth", "a cat", "{photo}", "--depth", "{photo}", "--estimator", "x"], "exclude each"),
        (["inpaint", "a cat", "{photo}", "{small}"], "give a mask of the picture's size"),
        (["img2img", "a cat", "{photo}", "--width", 0], "larger multiple of 8"),
        (
            ["control", "a cat", "{tmp}/gone.pth", "{photo}"],
            "There is no file or folder {tmp}/gone.pth",
        ),
        (["generate", "a cat", "--vae", "{tmp}/gone.safetensors"], "There is no file"),
        (["generate", "a cat", "--classifier", "here.safetensors"], "names no thing"),
        (["generate", "a cat", "--classifier", "{photo}:cat"], "is a picture, not"),
        (["generate", "a cat", "--hypernetwork", "{photo}"], "is a picture, not"),
    ],
)
def test_a_mistake_with_a_picture_gets_one_sentence(
    model, photo, tmp_path, capsys, command, message
):
    small = tmp_path / "small.png"
    Image.new("L", (16, 16)).save(small)
    command = [str(word).format(tmp=tmp_path, photo=photo, small=small) for word in command]
    assert run(*command, "--model", model, "-o", tmp_path / "out.png", "--steps", 1) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    message = message.format(tmp=tmp_path)
    assert message in error and error.startswith(f"minisd {command[0]}: ")
    assert not (tmp_path / "out.png").exists()


def test_every_stage_of_training_can_be_asked_for():
    assert {*cli.STAGES} == {"tokenizer", "export", *RECIPES} - {"estimator"}
    for stage in cli.STAGES:
        assert cli.build_parser().parse_args(["train", stage]).stage == stage


def test_from_nothing_to_a_model_that_draws(tmp_path):
    """Every stage runs at full size, but for so few steps that it learns nothing."""
    runs = tmp_path / "runs"

    def stage(name, *more):
        written = ["-o", tmp_path / f"{name}.safetensors"] if more else []
        assert run("train", name, "--folder", runs, "--seed", 3, *more, *written) == 0

    short = ("--minutes", 0.01)
    assert run("train", "vae", "--folder", runs, "--seed", 3, "--minutes", 0.15) == 0
    assert run("train", "diffusion", "--folder", runs, "--seed", 3, *short) == 0
    stage("export", *short)
    for name in ("decoder", "classifier", "judge"):
        stage(name, *short)
    first, *_, last = log_records(runs / "vae")
    assert last["pixels"] < first["pixels"] and last["edges"] < 0.5 * first["edges"]
    sd = minisd.load(tmp_path / "export.safetensors")
    assert sd.txt2img("a cat", steps=2).size == (64, 64)
    load_vae(tmp_path / "decoder.safetensors", sd.config.vae)
    assert load_classifier(tmp_path / "classifier.safetensors").config.things
    told = judge.load_judge(tmp_path / "judge.safetensors")
    assert len(told.things) == 115
    for name in ("vae", "diffusion", "decoder", "classifier", "judge"):
        begun = last_state(runs / name)["run"]
        assert begun["seed"] == 3 and begun["commit"]


@pytest.mark.parametrize(
    ("stage", "more", "message"),
    [
        ("tokenizer", ["-o", "none.json"], "leave out -o"),
        ("vae", ["-o", "none.safetensors"], "leave out -o"),
        ("judge", ["--steps", 0], "Cannot train for 0 steps"),
        ("judge", ["--steps", 5], "Run `minisd train vae` first"),
        ("vae", ["--steps", -5], "Cannot train for -5 steps"),
        ("vae", ["--minutes", 0], "Cannot train for 0.0 minutes"),
        ("diffusion", ["--minutes", 1], "Run `minisd train vae` first"),
    ],
)
def test_an_order_that_cannot_be_is_refused_before_the_work(tmp_path, capsys, stage, more, message):
    assert run("train", stage, "--folder", tmp_path / "runs", *more) == 2
    assert message in capsys.readouterr().err


def test_a_cut_tokenizer_says_how_to_go_on(tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text('{"merges": [', encoding="utf-8")
    assert run("train", "tokenizer", "--folder", tmp_path) == 2
    assert "tokenizer.json is damaged. Delete it" in capsys.readouterr().err
