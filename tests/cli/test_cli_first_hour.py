"""The first hour at the command line: errors are reported at once, and no file is lost."""

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import file_download
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import minisd
from minisd import samplers, sampling, strips
from minisd.adapters.controlnet import ControlNet
from minisd.checkpoints import registry as official
from minisd.cli import doctor, drawing_options, lessons, memory
from minisd.cli.option_checks import SEED_RANGE
from minisd.config import MINI, WEIGHTS, VAEConfig
from minisd.mini.examples import write_input_pictures
from minisd.pipeline import StableDiffusion
from tests.helpers.commands import run
from tests.helpers.tiny_models import V1

SCREEN = 43  # lines that --help may take at 80 columns
DRAWING = ("generate", "img2img", "inpaint", "depth", "control")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a picture, where the commands run."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("photo.png")
    return tmp_path


@pytest.fixture
def no_model(monkeypatch):
    """Fail if a command loads a model before it reports its error."""
    monkeypatch.setattr(minisd, "load", lambda *_, **__: pytest.fail("the model was loaded"))


# ---- checks come first -----------------------------------------------------------------------

NAMED = {
    "generate": [],
    "img2img": ["photo.png"],
    "inpaint": ["photo.png", "photo.png"],
    "depth": ["photo.png"],
    "control": ["mini-edges", "photo.png"],
}


@pytest.mark.parametrize("command", DRAWING)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--steps", 0], "steps must be 1 to 1000, got 0"),
        (["--steps", 1001], "steps must be 1 to 1000, got 1001"),
        (["--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--sampler", "dpm3"], "choose one of ddpm, ddim"),
        (["--spacing", "even"], "choose one of leading, linspace"),
        (["--prediction", "x0"], "choose one of eps, v"),
        (["--scale", "nan"], "--scale must be a finite number, got nan"),
        (["--scale", "inf"], "--scale must be a finite number, got inf"),
        (["--seed", 2**64], "seeds go from -2**63 to 2**64 - 1, got 18446744073709551616"),
        (["--seed", -(2**63) - 1], "seeds go from -2**63 to 2**64 - 1"),
        (["--seed", 2**64 - 1, "-n", 2], "picture 2 would have 18446744073709551616"),
        (["-n", 0], "number of pictures must be 1 or more"),
        (["--width", 0], "--width 0 is too small"),
        (["--height", 7], "--height 7 is too small"),
        (["--height", -64], "--height -64 is too small"),
        (["--width", 640000, "--height", 640000], "of memory, but there are only"),
        (["-o", "cat.jpg"], "name the output cat.png"),
        (["-o", "nowhere/cat.png"], "no file can be written into the folder nowhere"),
        (["--model", "gone.safetensors"], "There is no file or folder gone.safetensors"),
        (["--lora", "gone.safetensors"], "There is no file or folder gone.safetensors"),
        (["--lora", "mini-blueprint:nan"], "has the scale nan: give a finite number"),
        (["--embedding", "gone.pt"], "There is no file or folder gone.pt"),
        (["--hypernetwork", "gone.pt:0.5"], "There is no file or folder gone.pt"),
        (["--hypernetwork", "mini-sepia:inf"], "has the scale inf"),
        (["--vae", "gone.pt"], "There is no file or folder gone.pt"),
        (["--classifier", "mini-classifier"], "names no thing"),
        (["--classifier", "gone.pt:cat"], "There is no file or folder gone.pt"),
        (["--control", "gone.pth:photo.png"], "There is no file gone.pth"),
        (["--control", "mini-edges:gone.png"], "There is no file or folder gone.png"),
        (["--stepz", 3], "there is no option --stepz"),
        (["--like", "photo.png"], "photo.png does not say how it was drawn"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    here, no_model, capsys, command, wrong, message
):
    assert run(command, "a cat", *NAMED[command], "-o", "out.png", *wrong) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith(f"minisd {command}: ")
    assert "\n" not in error and not list(here.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["control", "a cat", "gone.pth", "photo.png"], "There is no file or folder gone.pth"),
        (["control", "a cat", "mini-edges", "gone.png"], "gone.png cannot be read as a picture"),
        (["control", "a cat", "mini-edges", "photo.png", "--weight", "nan"], "--weight must be"),
        (["img2img", "a cat", "gone.png"], "gone.png cannot be read as a picture"),
        (["img2img", "a cat", "photo.png", "--strength", 1.5], "strength must be 0"),
        (["inpaint", "a cat", "photo.png", "gone.png"], "gone.png cannot be read as a picture"),
        (["inpaint", "a cat", "photo.png", "photo.png", "--strength", -1], "strength must be 0"),
        (["depth", "a cat", "photo.png", "--depth", "gone.png"], "gone.png cannot be read"),
        (["depth", "a cat", "photo.png", "--estimator", "gone.pt"], "There is no file or folder"),
        (["depth", "a cat", "photo.png", "--strength", "nan"], "strength must be 0"),
        (["generate", "a cat", "--clip-skip", -1], "--clip-skip must be 0 or more"),
        (["img2img", "a cat"], "the image is missing: write minisd img2img PROMPT IMAGE"),
        (["inpaint", "a cat", "photo.png"], "the mask is missing"),
        (["control", "a cat"], "the network and hint are missing"),
        (["generate"], "the prompt is missing"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_each_command_says_what_it_lacks(here, no_model, capsys, arguments, message):
    assert run(*arguments, "-o", "out.png") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate", "a", "cat"], 'minisd generate "a cat"'),
        (["generate", "a", "cat", "--steps", 5, "sleeps"], 'minisd generate "a cat sleeps"'),
        (["generate", "'a", "cat'"], 'minisd generate "a cat"'),
        (["generate", "“a", "cat”"], 'minisd generate "a cat"'),
        (["img2img", "a", "cat", "photo.png"], 'minisd img2img "a cat" photo.png'),
        (
            ["inpaint", "a", "big", "cat", "a.png", "b.png"],
            'minisd inpaint "a big cat" a.png b.png',
        ),
        (["depth", "a", "cat", "photo.png"], 'minisd depth "a cat" photo.png'),
        (["control", "a", "cat", "net", "p.png"], 'minisd control "a cat" net p.png'),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_prompt_without_quotes_gets_a_hint(here, no_model, capsys, arguments, told):
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip()
    told = f"there are too many words: put the prompt in quotes, as in {told}"
    assert error == f"minisd {arguments[0]}: {told}"


def test_other_words_too_many_get_a_hint_of_their_own(here, no_model, capsys):
    assert run("generate", "a cat", "--negative", "bad", "drawing") == 2
    assert '"drawing" is one word too many' in capsys.readouterr().err
    assert (
        run("inpaint", "a", "cat", "photo.png") == 2
    )  # so the image is "cat", and the mask is "photo.png"
    assert "put a prompt of several words in quotes" in capsys.readouterr().err
    assert run("a cat") == 2
    assert 'Did you mean minisd generate "a cat"?' in capsys.readouterr().err
    assert run("info", "mini", "more") == 2
    assert "'more' is one word too many" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["a cat", "photo.png", "--steps", 1],
        ["--steps", 1, "a cat", "photo.png"],
        ["a cat", "--steps", 1, "photo.png"],
        ["--steps", 1, "a cat", "--seed", 0, "photo.png"],
    ],
    ids=str,
)
def test_options_may_stand_anywhere(here, model, arguments):
    assert run("img2img", *arguments, "--model", model, "-o", "out.png") == 0


# ---- nothing is lost -------------------------------------------------------------------------


def drawn(folder):
    return sorted(path.name for path in folder.glob("c*.png"))


def test_a_picture_that_is_there_stays(here, model, capsys):
    Path("cat.png").write_bytes(b"mine")
    plain = ["generate", "a cat", "--model", model, "--steps", 1, "-o", "cat.png"]
    assert run(*plain) == 0
    told = capsys.readouterr()
    assert told.out == "cat-2.png\n"
    assert told.err == "minisd: cat.png exists: minisd draws cat-2.png (--force overwrites).\n"
    assert run(*plain) == 0
    assert drawn(here) == ["cat-2.png", "cat-3.png", "cat.png"]
    assert Path("cat.png").read_bytes() == b"mine"
    assert run(*plain, "--force") == 0
    assert drawn(here) == ["cat-2.png", "cat-3.png", "cat.png"]
    assert Path("cat.png").read_bytes() == Path("cat-2.png").read_bytes()


def test_several_pictures_keep_their_numbers_together(here, model, capsys):
    plain = ["generate", "a cat", "--model", model, "--steps", 1, "-o", "c.png", "-n", 2]
    assert run(*plain) == 0 and drawn(here) == ["c-1.png", "c-2.png"]
    Path("c-1.png").unlink()
    assert run(*plain) == 0  # number 1 is free, but 2 is not
    assert drawn(here) == ["c-2.png", "c-3.png", "c-4.png"]
    assert "c-2.png exists: minisd draws c-3.png to c-4.png" in capsys.readouterr().err


def test_a_strip_that_is_there_stays_as_well(here, model):
    Path("c-steps.png").write_bytes(b"mine")
    plain = ["generate", "a cat", "--model", model, "--steps", 1, "-o", "c.png", "--every-step"]
    assert run(*plain) == 0
    assert drawn(here) == ["c-2-steps.png", "c-2.png", "c-steps.png"]


@pytest.mark.parametrize("command", DRAWING[1:])
def test_every_command_keeps_what_is_there(here, model, command):
    write_input_pictures(here)
    Path("out.png").write_bytes(b"mine")
    own = {"control": [], "depth": ["--model", "mini-depth"]}
    given = [*NAMED[command], *own.get(command, ["--model", model])]
    assert run(command, "a cat", *given, "-o", "out.png", "--steps", 1) == 0
    assert Path("out.png").read_bytes() == b"mine" and Path("out-2.png").exists()


# ---- every shipped file has a name -----------------------------------------------------------


def test_every_file_of_the_mini_has_a_name():
    files = {path.name for path in WEIGHTS.glob("mini*")}
    assert files == set(official.SHIPPED.values())
    for name, file in official.SHIPPED.items():
        assert official.local_path(name) == WEIGHTS / file
        assert file.startswith(f"{name}.")
    assert not official.SHIPPED.keys() & official.OFFICIAL.keys()


@pytest.mark.parametrize(
    ("by_name", "by_path"),
    [
        (["generate", "a cat", "--lora", "mini-blueprint:0.5"], "mini-blueprint.safetensors:0.5"),
        (["generate", "a <blorp>", "--embedding", "mini-blorp"], "mini-blorp.safetensors"),
        (["generate", "a cat", "--hypernetwork", "mini-sepia"], "mini-sepia.pt"),
        (["generate", "a cat", "--vae", "mini-decoder"], "mini-decoder.safetensors"),
        (
            ["generate", "", "--classifier", "mini-classifier:cat:8"],
            "mini-classifier.safetensors:cat:8",
        ),
        (
            ["generate", "a cat", "--control", "mini-edges:photo.png:0.5"],
            "mini-edges.safetensors:photo.png:0.5",
        ),
        (["generate", "a cat", "--model", "mini"], "mini.safetensors"),
        (["depth", "a cat", "photo.png", "--model", "mini-depth"], "mini-depth.safetensors"),
        (
            ["depth", "a cat", "photo.png", "--model", "mini-depth", "--estimator", "mini-depth"],
            "mini-depth.safetensors",
        ),
        (
            ["inpaint", "a cat", "photo.png", "photo.png", "--model", "mini-inpaint"],
            "mini-inpaint.safetensors",
        ),
        (["control", "a cat", "mini-edges", "photo.png"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_name_draws_what_its_path_draws(here, by_name, by_path):
    common = ["--steps", 1, "-o"]
    assert run(*by_name, *common, "name.png") == 0
    if by_path:
        path = [*by_name[:-1], WEIGHTS / by_path]
    else:
        path = [*by_name[:2], WEIGHTS / "mini-edges.safetensors", *by_name[3:]]
    assert run(*path, *common, "path.png") == 0
    assert Image.open("name.png").tobytes() == Image.open("path.png").tobytes()


def test_the_functions_take_names_too():
    from minisd.adapters.classifier import load_classifier
    from minisd.adapters.hypernetwork import hypernetwork
    from minisd.adapters.lora import lora
    from minisd.adapters.textual_inversion import textual_inversion
    from minisd.adapters.vae_file import swap_vae
    from minisd.depth.small import load_estimator

    sd = minisd.load("mini")
    for put_on, name in (
        (lora, "mini-blueprint"),
        (hypernetwork, "mini-sepia"),
        (textual_inversion, "mini-blorp"),
        (swap_vae, "mini-decoder"),
    ):
        put_on(sd, name).remove()
    assert ControlNet.load("mini-edges").config.channels == MINI.unet.channels
    assert load_classifier("mini-classifier").config.things
    assert load_estimator("mini-depth")


def test_info_and_download_know_the_names(capsys):
    for name in official.SHIPPED:
        assert run("info", name) == 0
        assert official.SHIPPED[name] in capsys.readouterr().out
        assert run("download", name) == 0
        told = capsys.readouterr()
        assert told.out.strip() == str(official.local_path(name)) and "came with" in told.err
    assert run("download") == 0
    assert "mini-blueprint" in capsys.readouterr().err


def test_a_name_means_the_shipped_file_and_a_path_the_one_here(here):
    assert official.local_path("mini") == WEIGHTS / "mini.safetensors"
    assert official.local_path("./mini") == Path("./mini") and official.local_path(
        Path("mini")
    ) == Path("mini")


def test_examples_are_written_once(here, capsys):
    assert run("examples") == 0
    names = [Path(line) for line in capsys.readouterr().out.split()]
    assert len(names) == 9 and all(name.parent == Path("examples") for name in names)
    assert all(Image.open(name).size == (64, 64) for name in names)
    Path("examples/hat-mask.png").write_bytes(b"mine")
    Path("examples/pair.png").unlink()
    assert run("examples") == 0
    assert Path("examples/hat-mask.png").read_bytes() == b"mine"
    assert Path("examples/pair.png").exists()


# ---- memory ----------------------------------------------------------------------------------


def exhausted(error):
    def steps(*_, **__):
        raise error

    return steps


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 1 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("Invalid buffer size: 8.00 GB"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_too_little_memory_is_one_sentence(here, model, capsys, monkeypatch, error):
    monkeypatch.setattr(StableDiffusion, "txt2img_steps", exhausted(error))
    assert run("generate", "a cat", "--model", model) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("minisd generate: there is too little memory: close other programs, or ")
    assert "ask for a smaller picture" in told
    assert "\n" not in told


def proposed(told):
    """The width and height that a message proposes."""
    return tuple(map(int, re.search(r"such as --width (\d+) --height (\d+)\.$", told).groups()))


def test_the_size_that_is_proposed_fits_and_has_the_same_shape(here, model, capsys, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "txt2img_steps", exhausted(MemoryError()))
    asked = ["generate", "a cat", "--model", model, "--width", 2048, "--height", 1024]
    free = memory.ALWAYS + 100 * 10**6
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    assert run(*asked) == 2
    width, height = proposed(capsys.readouterr().err.strip())
    assert width % 8 == height % 8 == 0 and width == pytest.approx(2 * height, abs=8)
    sd = minisd.load(model)
    room = 100 * 10**6 / memory.SCATTERED
    assert (
        memory.bytes_of_maps(sd, width, height)
        <= room
        < memory.bytes_of_maps(sd, width + 16, height + 8)
    )
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # Windows
    assert run(*asked) == 2
    width, height = proposed(capsys.readouterr().err.strip())
    assert 0.45 < width * height / (2048 * 1024) <= 0.5
    monkeypatch.setattr(memory, "free_memory", lambda: memory.ALWAYS)
    assert run(*asked) == 2
    assert "not even the smallest picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory", "model.safetensors"),
        RuntimeError("unable to mmap 4265 bytes from file <a.ckpt>: Cannot allocate memory (12)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_reader_that_lacks_memory_does_not_call_the_file_damaged(
    here, capsys, monkeypatch, error
):
    def read(*_, **__):
        raise ValueError("mini.safetensors is damaged: get another copy.") from error

    monkeypatch.setattr(minisd, "load", read)
    assert run("generate", "a cat") == 2
    told = capsys.readouterr().err.strip()
    assert told == "minisd generate: there is too little memory: close other programs."


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and ulimit -v")
def test_under_ulimit_the_proposed_size_is_drawn(here):
    """The limit is 200 MB above the address space of a process that has drawn a small picture."""
    code = """
import resource, sys
from minisd.cli import main, memory
if sys.argv[1] == "measure":
    main("generate cat --steps 1 -o small.png".split())
    print(memory.statm_bytes(0) + 200 * 10**6)
else:
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert memory.physical_memory() <= limit
    sys.exit(main(["generate", "cat", "--steps", "1", *sys.argv[2:]]))
"""

    def process(*arguments):
        command, settings = [sys.executable, "-c", code], os.environ | {"OMP_NUM_THREADS": "1"}
        command += map(str, arguments)
        return subprocess.run(command, env=settings, capture_output=True, text=True)

    limit = process("measure").stdout.split()[-1]
    refused = process(limit, "--width", 1024, "--height", 512)
    told = refused.stderr.splitlines()[-1]
    assert (
        told.startswith("minisd generate: there is too little memory") and refused.returncode == 2
    )
    width, height = proposed(told)
    assert width > height > 64
    drawn = process(limit, "--width", width, "--height", height)
    assert drawn.returncode == 0, drawn.stderr


def test_a_limit_below_pytorchs_own_needs_is_said(here, capsys, monkeypatch):
    monkeypatch.setattr(memory, "limits_of_process", lambda: [(300 * 10**6, 0)])
    assert run("info", "mini") == 2
    told = "minisd info: this process may use 0.3 GB of memory, less than PyTorch needs: raise"
    assert capsys.readouterr().err.startswith(told)


def test_a_picture_far_larger_than_the_models_is_warned_of_first(here, model, capsys, monkeypatch):
    for width, warned in ((128, True), (120, False)):  # of a model for 64 x 64
        for command in ("generate", "img2img"):
            name = "decode" if command == "generate" else "encode"
            monkeypatch.setattr(StableDiffusion, name, exhausted(ValueError("the work.")))
            size = ["--width", width, "--height", 128, "--steps", 1]
            assert run(command, "a cat", *NAMED[command], "--model", model, *size) == 2
            told = capsys.readouterr().err
            about = "128 x 128 pixels is 4 times as large as the 64 x 64 pictures that"
            assert (told.count(about), told.count("several times")) == (warned, warned), told
            assert told.index("the work") > told.find(about)


def test_another_runtime_error_is_no_lack_of_memory(here, model, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "txt2img_steps", exhausted(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        run("generate", "a cat", "--model", model)


@pytest.mark.parametrize("command", DRAWING)
def test_a_picture_that_cannot_fit_is_refused_before_it_is_drawn(
    here, capsys, monkeypatch, command
):
    """The decoder of the mini needs 31 GB for 8192 x 16384 pixels. The system would kill it."""
    monkeypatch.setattr(memory, "physical_memory", lambda: 16 * 10**9)
    models = {"depth": "mini-depth", "inpaint": "mini-inpaint"}
    more = ["--model", models.get(command, "mini"), "--width", 8192, "--height", 16384]
    assert run(command, "a cat", *NAMED[command], *more) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "8192 x 16384 pixels needs about 31 GB of memory, but there are only 16 GB" in told


@pytest.mark.parametrize("in_strips", [False, True])
def test_the_estimate_is_what_the_decoder_takes(in_strips, monkeypatch):
    """It is within 20 % of the memory peak of a process that decodes, measured from outside."""
    limit = 2**20 if in_strips else 2**30
    code = f"""
import torch
from minisd import strips
from minisd.config import VAEConfig
from minisd.fast import fast_copy
from minisd.vae import VAE
strips.LARGE, strips.STRIP = {limit}, 2**17
decoder = VAE(VAEConfig(channels=(32, 64, 64, 64), res_blocks=2)).requires_grad_(False).decoder
decode = fast_copy(decoder)
peak = lambda: int(open("/proc/self/status", encoding="ascii").read().split("VmHWM:")[1].split()[0])
decode(torch.zeros(1, 4, 8, 8))
before = peak()
decode(torch.zeros(1, 4, 56, 56))
print((peak() - before) * 1024)
"""
    settings = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "1000000"
    }  # freed memory goes back to the system at once
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    monkeypatch.setattr(strips, "LARGE", limit)
    config = replace(V1, vae=VAEConfig(channels=(32, 64, 64, 64), res_blocks=2))
    nothing, unet = nn.Module(), nn.Module()  # leave the weights out
    unet.conv_in = nn.Conv2d(1, 1, 1)
    sd = SimpleNamespace(text_encoder=nothing, vae=nothing, unet=unet, config=config, engine=None)
    assert memory.bytes_needed(sd, 448, 448) == pytest.approx(int(done.stdout), rel=0.2)


def test_a_container_has_less_than_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "memory.max")
    whole = memory.physical_memory()
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert memory.physical_memory() == whole
    (tmp_path / "memory.max").write_text("1000000\n", encoding="utf-8")
    assert memory.physical_memory() == 1000000


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/user/mine\n", "user/mine/memory.max"),
        ("0::/user/mine\n", "user/memory.max"),
        ("3:cpu,cpuacct:/a\n2:memory:/user/mine\n", "memory/user/memory.limit_in_bytes"),
        ("2:memory:/\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_every_control_group_around_counts(tmp_path, monkeypatch, groups, file):
    (tmp_path / "groups").write_text(groups, encoding="utf-8")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "memory.max")
    monkeypatch.setattr(memory, "CONTAINER_V1", tmp_path / "memory" / "memory.limit_in_bytes")
    whole = memory.physical_memory()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{2**30}\n", encoding="utf-8")
    assert memory.physical_memory() == 2**30 < whole
    assert memory.free_memory() < 2**30


def test_seeds_at_both_ends_draw(here, model):
    for seed in (SEED_RANGE[0], SEED_RANGE[-1]):
        given = ["--seed", seed, "--model", model, "--steps", 1, "-o", f"at{seed}.png"]
        assert run("generate", "a cat", *given) == 0


# ---- other commands --------------------------------------------------------------------------


def unreachable(cause):
    """A function that raises as the hub's library does: its own error, caused by the system's."""

    def look(*_, **__):
        try:
            raise cause
        except OSError as error:
            raise RuntimeError("the hub's own words") from error

    return look


@pytest.mark.parametrize(
    "cause",
    [socket.gaierror(-2, "Name or service not known"), OSError(errno.ENETUNREACH, "unreachable")],
    ids=str,
)
def test_no_network_is_said(here, capsys, monkeypatch, cause):
    monkeypatch.setenv("MINISD_WEIGHTS", str(here / "kept"))
    monkeypatch.setattr(file_download, "get_hf_file_metadata", unreachable(cause))
    assert run("download", "sd15") == 2
    told = capsys.readouterr().err.strip()
    assert "there is no network to download v1-5-pruned-emaonly.safetensors" in told
    assert "\n" not in told
    part = here / "kept/sd15/v1-5-pruned-emaonly.safetensors.from-stable-diffusion-v1-5-stable-"
    Path(f"{part}diffusion-v1-5.part").write_bytes(b"begun")
    assert run("download", "sd15") == 2  # the download was cut off; the next call continues it
    assert "minisd kept 5 bytes" in capsys.readouterr().err


@pytest.fixture
def course(here, monkeypatch):
    (here / "course").mkdir()
    (here / "course/00_tour.ipynb").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(lessons, "NOTEBOOKS", here / "course")
    monkeypatch.setattr(lessons, "find_spec", lambda name: name == "jupyterlab" or None)


@pytest.mark.parametrize(
    ("arguments", "passed_on"),
    [
        ([], ["minisd-lessons"]),
        (["mine"], ["mine"]),
        (["--port", "9999", "--no-browser"], ["minisd-lessons", "--port", "9999", "--no-browser"]),
        (["mine", "--port=9999"], ["mine", "--port=9999"]),
        (["mine", "--", "--port", "9999"], ["mine", "--port", "9999"]),
        (["--", "-y"], ["minisd-lessons", "-y"]),
    ],
)
def test_options_of_jupyter_are_passed_on(course, monkeypatch, arguments, passed_on):
    ran = []
    monkeypatch.setattr(lessons.subprocess, "run", lambda command, check: ran.append(command))
    assert run("lessons", *arguments) == 0
    assert ran[0][1:] == ["-m", "jupyterlab", *passed_on]


def test_jupyter_that_does_not_start_is_said(course, capsys, monkeypatch):
    monkeypatch.setattr(lessons.sys, "executable", shutil.which("false"))
    assert run("lessons", "mine") == 2
    told = capsys.readouterr().err
    assert "the lessons are in mine, but Jupyter stopped with exit status 1" in told


@pytest.mark.parametrize(
    ("threads", "cores", "load", "advice"),
    [
        (2, 2, 0.0, None),
        (2, 2, 0.4, None),
        (1, 2, 0.0, None),
        (2, 2, 1.0, "too many for 2 cores, where 1.0 other processes run: set OMP_NUM_THREADS=1 "),
        (8, 8, 20.0, "set OMP_NUM_THREADS=1 "),
        (8, 8, 3.0, "set OMP_NUM_THREADS=5 "),
        (8, 2, None, "8 threads are too many for 2 cores: set OMP_NUM_THREADS=2"),
        (1, 8, 0.0, "torch uses 1 of 8 free cores: set OMP_NUM_THREADS=8"),
        (1, 8, 6.9, None),
        (8, 8, None, None),
    ],
)
def test_the_doctor_recommends_a_number_of_threads(threads, cores, load, advice):
    told = doctor.advice_on_threads(threads, cores, load)
    assert told == [] if advice is None else advice in told[0] and len(told) == 1


def test_the_doctor_shows_load_and_the_cores_of_a_container(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "QUOTA", tmp_path / "cpu.max")
    free = doctor.usable_cores()
    for text, cores in (("max 100000", free), ("100000 100000", 1), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text, encoding="utf-8")
        assert doctor.usable_cores() == cores
    monkeypatch.setattr(doctor, "system_load", lambda: 0.0)
    assert run("doctor") == 0
    told = capsys.readouterr().out
    assert "0.0 processes want a core" in told and f"{torch.get_num_threads()}, on 1 cores" in told


# ---- help ------------------------------------------------------------------------------------


def test_the_choices_are_those_of_the_samplers():
    assert tuple(samplers.SAMPLERS) == drawing_options.SAMPLER_CHOICES
    assert tuple(sampling.SPACINGS) == drawing_options.SPACING_CHOICES


COMMANDS = (*DRAWING, "convert", "info", "download", "lessons", "examples", "doctor", "train")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen_and_lists_the_choices(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        run(*[command] * bool(command), "--help")
    assert ended.value.code == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert len(lines) <= SCREEN and all(len(line) <= 80 for line in lines)
    words = {*samplers.SAMPLERS, *sampling.SPACINGS} if command in DRAWING else set()
    assert not [word for word in words if word not in told]


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"minisd {minisd.__version__}\n"


def test_no_command_shows_the_help(capsys):
    assert run() == 0
    assert "generate" in capsys.readouterr().out


def test_a_damaged_model_is_read_once_although_a_vae_is_given(here, capsys, monkeypatch):
    read = []

    def load(model, **_):
        read.append(model)
        raise ValueError("mini.safetensors is damaged: get another copy.")

    monkeypatch.setattr(minisd, "load", load)
    assert run("generate", "a cat", "--vae", "mini-decoder") == 2
    assert read == ["mini"] and "is damaged" in capsys.readouterr().err


def test_a_model_without_a_vae_takes_one(here, model, capsys):
    """A checkpoint may hold only the U-Net and the text transformer."""
    assert run("convert", model, "whole.safetensors") == 0
    tensors = load_file("whole.safetensors")
    vae = {key: tensor for key, tensor in tensors.items() if key.startswith("first_stage_model.")}
    save_file({k: t for k, t in tensors.items() if k not in vae}, "without.safetensors")
    save_file(vae, "vae.safetensors")
    plain = ["generate", "a cat", "--steps", 1, "--width", 64, "--height", 64, "--scale", 2, "-o"]
    assert run(*plain, "no.png", "--model", "without.safetensors") == 2
    assert "--vae" in capsys.readouterr().err
    given = ["--model", "without.safetensors", "--vae", "vae.safetensors"]
    assert run(*plain, "with.png", *given) == 0
    assert run(*plain, "whole.png", "--model", "whole.safetensors") == 0
    both = zip(Image.open("with.png").tobytes(), Image.open("whole.png").tobytes(), strict=True)
    assert (
        max(abs(a - b) for a, b in both) <= 1
    )  # the order of a file's tensors changes the last bit
