"""The models that adapters are put on, ours and diffusers', and what several tests need."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.adapter_files import ATTENTION, some_lora
from tests.helpers.pipeline_pairs import eighth_pair, family_pair


@pytest.fixture(scope="module", params=["v1", "v2"])
def pair_of(request, tmp_path_factory):
    return family_pair(request.param, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def sd(pair_of):
    return pair_of[0]


@pytest.fixture(scope="module", params=["v1", "v2"])
def eighth(request, tmp_path_factory):
    return eighth_pair(request.param, tmp_path_factory.mktemp("eighth"))


@pytest.fixture(scope="module")
def picture():
    shades = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(shades).resize((96, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def lora_files(pair_of, tmp_path):
    _, theirs = pair_of
    paths = []
    for seed in (0, 1):
        state = {}
        for name, (down, up) in some_lora(theirs.unet, ATTENTION, seed).items():
            stem = f"lora_unet_{name.replace('.', '_')}"
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(state, paths[-1])
    return paths
