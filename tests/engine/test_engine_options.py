"""--engine and --dtype: recorded in the picture, drawn again by --like, obeyed or refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import minisd
from minisd.cli import doctor
from tests.helpers.commands import run
from tests.helpers.engines import needs_openvino
from tests.helpers.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def draw(path, model, *more):
    return run("generate", "a cat", "--steps", 2, "--model", model, "-o", path, *more)


def recorded(path):
    with Image.open(path) as picture:
        return json.loads(picture.info["minisd"])


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture, int)


@needs_openvino
def test_the_engine_is_recorded_and_used_again(tiny, capsys, monkeypatch):
    assert draw("plain.png", tiny) == 0
    assert draw("engine.png", tiny, "--engine", "openvino") == 0
    assert np.abs(pixels("plain.png") - pixels("engine.png")).max() <= 1
    about = recorded("engine.png")
    assert about["engine"] == "openvino" and about["openvino"] and about["dtype"] == "float32"
    assert not {"engine", "openvino"} & recorded("plain.png").keys()
    assert run("generate", "--like", "engine.png", "-o", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("engine.png").read_bytes()
    assert run("generate", "--like", "engine.png", "--engine", "pytorch", "-o", "torch.png") == 0
    assert np.array_equal(pixels("torch.png"), pixels("plain.png"))
    assert run("info", "engine.png") == 0 and "openvino" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run("generate", "--like", "engine.png", "-o", "elsewhere.png") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(
        "Run `pip install openvino`, or use PyTorch (--engine pytorch, engine=None)."
    )


@pytest.mark.parametrize("name, dtype", [("bf16", "bfloat16"), ("fp16", "float16")])
def test_the_dtype_is_recorded_and_used_again(tiny, name, dtype):
    assert draw("half.png", tiny, "--dtype", name) == 0
    assert recorded("half.png")["dtype"] == dtype
    expected = minisd.load(tiny, dtype=getattr(torch, dtype))
    drawn = np.asarray(expected.txt2img("a cat", steps=2), int)
    assert np.array_equal(pixels("half.png"), drawn)
    assert run("generate", "--like", "half.png", "-o", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("half.png").read_bytes()
    assert run("generate", "--like", "half.png", "--dtype", "fp32", "-o", "wide.png") == 0
    assert recorded("wide.png")["dtype"] == "float32"


@needs_openvino
def test_engine_and_dtype_together(tiny):
    assert draw("both.png", tiny, "--engine", "openvino", "--dtype", "bf16") == 0
    assert draw("plain.png", tiny) == 0
    assert np.abs(pixels("both.png") - pixels("plain.png")).mean() < 8


REFUSED = [
    (["--dtype", "fp8"], "'fp8' is none of fp32, bf16, fp16"),
    (
        ["--engine", "tensorrt"],
        '--engine has no choice "tensorrt": choose one of pytorch, openvino',
    ),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_an_unknown_name_is_refused(tiny, options, message, capsys):
    assert draw("cat.png", tiny, *options) == 2
    assert message in capsys.readouterr().err


@needs_openvino
def test_float16_with_the_engine_is_refused(tiny, capsys):
    assert draw("cat.png", tiny, "--dtype", "fp16", "--engine", "openvino") == 2
    assert "OpenVINO computes with float32 or bfloat16, not float16" in capsys.readouterr().err
    assert not Path("cat.png").exists()


@pytest.mark.parametrize("name, value", [("dtype", "int8"), ("engine", "abacus")])
def test_an_unknown_name_in_a_picture_is_refused(tiny, name, value, capsys):
    assert draw("cat.png", tiny) == 0
    info = PngInfo()
    info.add_text("minisd", json.dumps(recorded("cat.png") | {name: value}))
    with Image.open("cat.png") as picture:
        picture.save("other.png", pnginfo=info)
    assert run("generate", "--like", "other.png", "-o", "new.png") == 2
    assert f"there is no {name} '{value}'. Choose another with --{name}." in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--engine", "openvino"], ["--dtype", "bf16"]])
def test_own_parts_run_only_in_pytorch_and_float32(tiny, option, capsys, tmp_path):
    assert draw("cat.png", tiny, "--mine", tmp_path, *option) == 2
    says = f"--mine draws with PyTorch in float32. Leave out --mine or {option[0]}."
    assert says in capsys.readouterr().err


def test_the_doctor_says_what_this_machine_gains():
    first, second, _ = doctor.advice_on_speed(2.5, "not installed (optional)")
    assert "pip install openvino, then minisd generate --engine openvino" in first
    assert "2.5 times as fast" in second and "--dtype bf16" in second
    lines = doctor.advice_on_speed(1.0, "2026.4.1")
    assert "pip" not in lines[0] and not any("bf16" in line for line in lines)
