"""Our own models are written as folders and get other VAEs. They stay what they are."""

import json

import pytest
import torch

import minisd
from minisd.adapters.vae_file import swap_vae
from minisd.checkpoints.write import convert
from minisd.samplers import SAMPLERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mini"
    convert("mini", path)
    return path


def last(sd, sampler):
    return list(sd.txt2img_steps("a cat", steps=4, sampler=sampler))[-1].x


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_the_mini_from_a_folder_walks_as_the_mini(folder, sampler):
    sd, again = minisd.load("mini"), minisd.load(folder)
    assert again.config.cfg_scale == sd.config.cfg_scale
    assert torch.equal(last(sd, sampler), last(again, sampler))


def test_a_changed_scheduler_of_such_a_folder_is_obeyed(folder, tmp_path):
    path = folder / "scheduler" / "scheduler_config.json"
    before = path.read_text(encoding="utf-8")
    try:
        stored = json.loads(before) | {"timestep_spacing": "trailing"}
        path.write_text(json.dumps(stored), encoding="utf-8")
        assert minisd.load(folder).config.schedule.spacing == "trailing"
    finally:
        path.write_text(before, encoding="utf-8")


def test_a_model_of_our_own_takes_another_vae_of_its_sizes(folder):
    sd = minisd.load("mini")
    swap_vae(sd, "mini-decoder")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for source in ("mini", folder):
        other = minisd.load(source, vae="mini-decoder")
        assert torch.equal(other.decode(z), sd.decode(z))
