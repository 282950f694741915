"""Foreign text on the terminal: in one line, and nothing in it that a terminal obeys or hides."""

import io
import json
import os
import sys
import unicodedata
import warnings

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import minisd
from minisd.adapters.controlnet import ControlNet
from minisd.adapters.lora import lora
from minisd.adapters.textual_inversion import textual_inversion
from minisd.checkpoints.info import inspect_source
from minisd.files.one_line import LONGEST, name_errors, one_line
from tests.helpers.commands import run
from tests.helpers.tiny_models import write_tiny_model

CLEAR = "\x1b[2J"  # clears a terminal
HOSTILE = f"{CLEAR}\r\n\x9b31m\x7f\u202e\u2066\u200b\u2028\ufeff\udcff"
PLAIN = "a cat, naïve Ærø, Ж, 猫です　, قطة, खु\u200dश, می\u200cخو, 👩\u200d🚀 👍🏽 ❤️ … “so” C:\\new"


def is_plain(text):
    return text == one_line(text, len(text))


def test_every_character_is_shown_or_becomes_its_number():
    for start in (*range(0, 0x3000, 0x1000), *range(0xD000, 0x12000, 0x1000), 0xE0000):
        block = " ".join(map(chr, range(start, start + 0x1000)))
        for character in one_line(block, 10**6):
            assert character.isprintable() or unicodedata.category(character) == "Zs"


def test_what_a_terminal_obeys_becomes_numbers():
    assert one_line(HOSTILE) == (r"\x1b[2J\r\n\x9b31m\x7f\u202e\u2066\u200b\u2028\ufeff\udcff")
    assert one_line("a\u200db") == r"a\u200db"  # joins nothing
    assert one_line(one_line(HOSTILE)) == one_line(HOSTILE)


def test_letters_of_all_scripts_and_emoji_stay():
    assert one_line(PLAIN) == PLAIN


def test_a_long_message_loses_its_middle():
    told = one_line("a" * 10**6 + CLEAR + "fetch it again.")
    assert len(told) <= LONGEST and told.startswith("aaa") and told.endswith("fetch it again.")
    assert len(one_line(CLEAR * 10**6)) <= LONGEST


# ---- the command line ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random model as a file."""
    return write_tiny_model(tmp_path_factory.mktemp("one_line"))


@pytest.mark.parametrize(
    "arguments",
    [
        [HOSTILE],
        ["info", HOSTILE],
        ["info", "mini", HOSTILE],
        ["info", f"--{HOSTILE}"],
        ["generate", HOSTILE, HOSTILE],
        ["generate", f"--sampler={HOSTILE}", "a cat"],
        ["generate", f"--steps={HOSTILE}", "a cat"],
        ["generate", "a cat", f"--model={HOSTILE}"],
        ["generate", "a cat", f"--output={HOSTILE}/a.png"],
        ["generate", "a cat", f"--output={HOSTILE}"],
        ["generate", f"--like={HOSTILE}.png"],
        ["generate", "a cat", f"--lora={HOSTILE}"],
        ["generate", "a cat", f"--control={HOSTILE}:{HOSTILE}"],
        ["img2img", "a cat", HOSTILE],
        ["download", HOSTILE],
        ["convert", HOSTILE, HOSTILE],
        ["train", HOSTILE],
        ["info", "a" * 5000],
    ],
    ids=lambda words: " ".join(words).replace(HOSTILE, "…")[:40],
)
def test_no_word_of_the_user_reaches_the_terminal_as_it_is(capfd, arguments):
    assert run(*arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert is_plain(err[:-1]) and len(err) <= LONGEST + 1
    assert "Errno" not in err


def test_names_of_files_are_shown_in_one_line(tmp_path, model, capfd):
    there = tmp_path / f"a{CLEAR}\n.png"
    notes = PngImagePlugin.PngInfo()
    about = {"prompt": HOSTILE[:-1], CLEAR: CLEAR, "minisd": CLEAR, "hashes": {CLEAR: CLEAR}}
    notes.add_text("minisd", json.dumps(about))
    notes.add_text("parameters", f"{CLEAR}\nSteps: 3, Sampler: {CLEAR}, Seed: 1")
    Image.new("RGB", (64, 64)).save(there, pnginfo=notes)
    assert run("info", there) == 0
    assert run("generate", "a cat", "--model", model, "--steps", 1, "-o", there) == 0
    assert run("convert", model, tmp_path / f"{CLEAR}\n.safetensors") == 0
    assert run("info", tmp_path / f"{CLEAR}\n.safetensors") == 0
    out, err = capfd.readouterr()
    assert r"exists: minisd draws a\x1b[2J\n-2.png" in err
    assert all(map(is_plain, [*out.split("\n"), *err.split("\n")]))
    rows = out.split("\n")
    assert rows[1] == r"  prompt           \x1b[2J\r\n\x9b31m\x7f\u202e\u2066\u200b\u2028\ufeff"


def test_warnings_are_shown_in_one_line(capfd, monkeypatch):
    def load(*_, **__):
        warnings.warn(f"a {HOSTILE} b", stacklevel=1)
        raise OSError(13, HOSTILE, HOSTILE)

    monkeypatch.setattr(minisd, "load", load)
    assert run("generate", "a cat") == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(map(is_plain, lines))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_the_terminal_lacks_are_no_crash(tmp_path, monkeypatch, encoding):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("minisd", json.dumps({"prompt": PLAIN}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=notes)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run("info", tmp_path / "a.png") == 0
    shown = terminal.buffer.getvalue().decode(encoding)
    assert PLAIN.encode(encoding, "backslashreplace").decode(encoding) in shown


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_bytes_that_are_no_text_are_no_crash(tmp_path, model, capfd):
    name = tmp_path / os.fsdecode(b"a\xff.png")
    assert run("generate", "a cat", "--model", model, "--steps", 1, "-o", name) == 0
    assert run("info", name) == 0
    weights = tmp_path / os.fsdecode(b"a\xff.safetensors")
    assert run("convert", model, tmp_path / "a.safetensors") == 0
    (tmp_path / "a.safetensors").rename(weights)
    assert run("info", weights) == 2
    assert "has a name that is not UTF-8" in capfd.readouterr().err
    assert run("generate", "a \udcff cat", "--model", model, "-o", tmp_path / "b.png") == 2
    assert "the prompt is not UTF-8 text" in capfd.readouterr().err


# ---- what a caller of the library reads ------------------------------------------------------


def test_no_name_of_a_tensor_reaches_an_error(tmp_path, model):
    sd, path = minisd.load(model), tmp_path / "a.safetensors"
    sets = [
        {f"{HOSTILE[:-1]}.lora_down.weight": torch.zeros(2, 2)},
        {f"emb_params{CLEAR}": torch.zeros(2, 8)},
        {f"model.diffusion_model.{CLEAR}": torch.zeros(3), "cond_stage_model.a": torch.zeros(3)},
    ]
    readers = [minisd.load, inspect_source, ControlNet.load]
    readers += [lambda path: lora(sd, path), lambda path: textual_inversion(sd, path)]
    for tensors in sets:
        save_file(tensors, path)
        for read in readers:
            with pytest.raises(ValueError) as refusal:
                read(path)
            assert is_plain(str(refusal.value))


def test_what_a_reader_says_of_a_file_is_one_line():
    for error in (ValueError(HOSTILE), KeyError(HOSTILE), TypeError(HOSTILE)):
        with pytest.raises(ValueError) as refusal, name_errors(f"{CLEAR}.json"):
            raise error
        assert is_plain(str(refusal.value))
