"""minisd trace, compare and verify, as a user runs them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import minisd
from minisd.cli import main
from minisd.compare.trace_file import statistics

PORT = """
import minisd
from torch import nn

class Mine(nn.Module):
    def __init__(self, theirs, scale):
        super().__init__()
        self.q, self.k, self.v, self.out = (theirs.to_q, theirs.to_k, theirs.to_v, theirs.to_out)
        self.heads, self.scale = theirs.heads, scale

    def forward(self, x, words):
        parts = [
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, words), (self.v, words))
        ]
        scores = parts[0] @ parts[1].mT * parts[0].shape[-1] ** self.scale
        return self.out((scores.softmax(-1) @ parts[2]).transpose(1, 2).flatten(2))

def right():
    return Mine(minisd.load("mini").unet.mid.attn.cross, -0.5)

def wrong():
    return Mine(minisd.load("mini").unet.mid.attn.cross, -1.0)
"""


@pytest.fixture
def port(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "port.py").write_text(PORT)


def test_the_exit_status_says_whether_a_port_is_right(port, capsys, tmp_path):
    assert main(["compare", "mini", "port.py:right"]) == 0
    assert "no module differs" in capsys.readouterr().out
    assert main(["compare", "mini", "port.py:wrong", "--json", "r.json", "--html", "r.html"]) == 1
    printed = capsys.readouterr().out
    assert "The first module that differs is unet.mid.attn.cross" in printed
    assert "attention scaled by 1 / width of a head" in printed
    assert json.loads((tmp_path / "r.json").read_text())["equal"] is False
    assert "unet.mid.attn.cross" in (tmp_path / "r.html").read_text()
    assert main(["compare", "mini", "absent.py:right"]) == 2


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "run.safetensors"
    assert main(["trace", "a cat", "-o", str(path), "--inputs"]) == 0
    return path


def test_a_trace_of_the_same_model_is_equal(trace, capsys):
    assert main(["compare", "mini", str(trace)]) == 0
    assert "no module differs" in capsys.readouterr().out


def test_a_wrong_tensor_in_a_trace_is_found(trace, tmp_path, capsys):
    tensors = load_file(trace)
    from minisd.checkpoints.header import read_metadata

    key = next(key for key in tensors if key.endswith("unet.mid.attn.cross/out0"))
    tensors[key] = tensors[key] * 1.5
    save_file(tensors, tmp_path / "wrong.safetensors", read_metadata(trace))
    assert main(["compare", "mini", str(tmp_path / "wrong.safetensors")]) == 1
    printed = capsys.readouterr().out
    assert "The first module that differs is unet.mid.attn.cross " in printed
    assert "an output that is 1.5 times ours" in printed


def test_bad_traces_are_one_sentence(trace, tmp_path, capsys):
    short = tmp_path / "short.safetensors"
    short.write_bytes(trace.read_bytes()[:-1000])
    assert main(["compare", "mini", str(short)]) == 2
    assert "was cut off" in capsys.readouterr().err
    save_file(
        {"00000/a/out0": torch.zeros(2)}, tmp_path / "a.safetensors", {"trace": "minisd-trace 1"}
    )
    assert main(["compare", "mini", str(tmp_path / "a.safetensors")]) == 2
    assert "does not say what it was run on" in capsys.readouterr().err


def test_statistics_are_small(tmp_path):
    path = tmp_path / "stats.safetensors"
    assert main(["trace", "a cat", "-o", str(path), "--stats", "--only", "*.weights"]) == 0
    maps = [tensor for name, tensor in load_file(path).items() if "weights" in name]
    sd = minisd.load("mini")
    assert {tensor.shape[1] for tensor in maps} == {12}
    assert sd.config.text.heads in {tensor.shape[0] for tensor in maps}


def test_maps_are_measured_head_by_head(monkeypatch):
    """The same numbers as from the whole maps, although no whole map of the U-Net is computed."""
    from minisd.cli import record_run as module

    sd, only = minisd.load("mini"), ("unet.*.weights",)
    largest = []

    def measure(name, tensor):
        largest.append(tensor.shape)
        return statistics(name, tensor)

    def draw():
        return sd.txt2img("a cat", steps=2, cfg_scale=3.0)

    whole, _ = module.record_run(sd, draw, only)
    monkeypatch.setattr(module, "statistics", measure)
    few, _ = module.record_run(sd, draw, only, stats=True)
    assert {shape[1] for shape in largest if len(shape) == 4} == {1}
    assert [(one.name, one.number) for one in few] == [(one.name, one.number) for one in whole]
    for one, other in zip(few, whole, strict=True):
        torch.testing.assert_close(one.outputs[0], statistics(one.name, other.outputs[0]))


def test_verify_checks_the_mini(capsys):
    assert main(["verify", "mini"]) == 0
    printed = capsys.readouterr().out
    assert "unet, cpu, float32: off by" in printed
    assert "WRONG" not in printed


def test_verify_notices_a_changed_weight(monkeypatch):
    from minisd.cli.known_numbers import verify_mini

    sd = minisd.load("mini")
    sd.unet.mid.attn.norm.weight.data[3] += 0.1
    assert not all(check.is_ok for check in verify_mini(sd, "changed"))


def record(tmp_path, said, **settings):
    """A trace of a drawing that was made with `settings`, although its header says `said`."""
    from minisd.cli.record_run import record_run
    from minisd.compare.trace_file import trace_tensors, write_trace

    sd = minisd.load("mini")
    calls, inputs = record_run(sd, lambda: sd.txt2img("a cat", **settings), ("unet.mid",))
    write_trace(tmp_path / "port.safetensors", trace_tensors(calls, inputs), said, {})
    return str(tmp_path / "port.safetensors")


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m", "heun"])
def test_a_right_run_is_equal_from_step_to_step(sampler, tmp_path, capsys):
    said = {"steps": 4, "sampler": sampler, "cfg_scale": 3.0}
    assert main(["compare", "mini", record(tmp_path, said, **said)]) == 0


def test_other_timesteps_are_found(tmp_path, capsys):
    said = {"steps": 4, "sampler": "ddim"}
    path = record(tmp_path, said, **said, spacing="trailing")
    assert main(["compare", "mini", path]) == 1
    printed = capsys.readouterr().out
    assert "The first module that differs is timesteps" in printed
    assert "the timesteps of the spacing trailing" in printed


def test_another_guidance_is_found(tmp_path, capsys):
    said = {"steps": 4, "sampler": "ddim", "cfg_scale": 2.0}
    path = record(tmp_path, said, **(said | {"cfg_scale": 3.0}))
    assert main(["compare", "mini", path]) == 1
    printed = capsys.readouterr().out
    assert "The first module that differs is step 0" in printed
    assert "guidance with a scale that is one larger" in printed


def test_statistics_of_a_large_tensor():
    """float32 cannot count to the last of 2^25 values."""
    few = statistics("any", torch.arange(2**25) % 7)
    assert few[0, 4] == 0
    assert few[0, -1] == (2**25 - 1) % 7
