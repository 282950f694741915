"""The tiny model of lesson 17 gives the numbers that diffusers gave, and errors are visible."""

import pytest
import torch

from minisd.teaching import tiny
from minisd.trace import trace
from tests.tools.make_tiny import fingerprints, picture

CLOSE = 5e-5  # relative to a tensor's standard deviation; the right network reaches 2e-5 in float32


@pytest.fixture(scope="module")
def stored():
    return tiny.by_diffusers()


def errors(sd, theirs) -> dict[str, float]:
    with trace(sd) as ours:
        tiny.run_networks(sd)
    found = {}
    for name, (made,) in ours.items():
        if name in theirs:
            first = made[0] if isinstance(made, tuple) else made  # x, of what Down returns
            error = (tiny.sample_numbers(first) - theirs[name]).abs().max()
            found[name] = (error / first.std()).item()
    return found


def test_the_file_is_what_diffusers_says_today(stored):
    sd, (theirs, said) = tiny.model(), stored
    today = fingerprints(sd)
    assert today.keys() == theirs.keys()
    for name, tensor in today.items():
        assert torch.allclose(tensor, theirs[name], rtol=0, atol=CLOSE * tensor.std()), name
    assert picture(tiny.model(gain=1.0)) == pytest.approx(said["picture"], abs=1e-5)


def test_ours_agrees_at_every_tensor(stored):
    found = errors(tiny.model(), stored[0])
    assert found.keys() == stored[0].keys()
    assert max(found.values()) < CLOSE


def test_a_wrong_epsilon_parts_first_where_it_is(stored):
    sd = tiny.model()
    sd.unet.mid.attn.norm.eps = 1e-5
    off = [name for name, error in errors(sd, stored[0]).items() if error > CLOSE]
    assert off[0] == "unet.mid.attn.norm"


@torch.no_grad()
def test_the_picture_is_diffusers(stored):
    sd = tiny.model(gain=1.0)
    *_, last = sd.txt2img_steps(tiny.PROMPT, steps=3, cfg_scale=7.5, latent=tiny.golden_latent(64))
    nine = (sd.decode(last.x) / 2 + 0.5).clamp(0, 1)[0, -1, -3:, -3:].flatten()
    assert nine.tolist() == pytest.approx(stored[1]["picture"], abs=1e-4)
