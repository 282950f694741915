"""ControlNet: files in both layouts, as diffusers reads and runs them."""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image
from safetensors.torch import save_file

from minisd.adapters.controlnet import ControlNet, control
from minisd.files.pictures import from_pil
from tests.helpers.adapter_files import controlnet_file, reference_controlnet
from tests.helpers.pipeline_pairs import NO_FILTER, all_equal, drawn, drawn_by_diffusers, states
from tests.helpers.reference_networks import ddim_scheduler
from tests.helpers.side_by_side import relative_error

END_TO_END = 1e-4  # float32, largest error over the reference's spread


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize(("scale", "hints"), [(1.0, 1), (0.5, 1), (1.0, 2)])
def test_controlnet_is_that_of_diffusers(eighth, picture, tmp_path, layout, scale, hints):
    ours, theirs = eighth
    reference = reference_controlnet(theirs, ours.config)
    path = controlnet_file(reference, tmp_path / "control", layout, ours.config.unet)
    pipeline = StableDiffusionControlNetPipeline(
        vae=theirs.vae,
        text_encoder=theirs.text_encoder,
        tokenizer=theirs.tokenizer,
        unet=theirs.unet,
        scheduler=ddim_scheduler(ours.config),
        controlnet=reference,
        **NO_FILTER,
    )
    pipeline.set_progress_bar_config(disable=True)
    pictures = [picture, picture.transpose(Image.Transpose.ROTATE_180) if hints == 2 else picture]
    expected = drawn_by_diffusers(pipeline, image=pictures, controlnet_conditioning_scale=scale)
    before, plain = states(ours), drawn(ours)
    hint = picture if hints == 1 else torch.cat([(from_pil(one) + 1) / 2 for one in pictures])
    with control(ours, ControlNet.load(path, ours.config.unet), hint, scale):
        found = drawn(ours)
    assert relative_error(found, expected) < END_TO_END
    assert relative_error(found, plain) > 100 * END_TO_END
    assert all_equal(states(ours), before)
    assert torch.equal(drawn(ours), plain)


def test_several_controlnets_add_up(eighth, picture, tmp_path):
    ours, theirs = eighth
    reference = reference_controlnet(theirs, ours.config)
    path = controlnet_file(reference, tmp_path / "control", "diffusers", ours.config.unet)
    network, plain = ControlNet.load(path, ours.config.unet), drawn(ours)
    with control(ours, network, picture):
        once = drawn(ours)
    first = control(ours, network, picture, 0.25)
    second = control(ours, network, picture, 0.75)
    assert relative_error(drawn(ours), once) < END_TO_END
    first.remove()
    second.remove()
    assert torch.equal(drawn(ours), plain)
    with control(ours, network, picture, 0.0):
        assert torch.equal(drawn(ours), plain)


def test_our_own_controlnet_file_says_its_sizes(eighth, picture, tmp_path):
    ours, _ = eighth
    torch.manual_seed(0)
    network = ControlNet(ours.config.unet)
    network.save(tmp_path / "own.safetensors")
    again = ControlNet.load(tmp_path / "own.safetensors")
    assert again.config == ours.config.unet
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name].half().float())


def test_a_hint_of_another_size_is_told(eighth, picture, tmp_path):
    ours, _ = eighth
    torch.manual_seed(0)
    with (
        control(ours, ControlNet(ours.config.unet).eval(), picture),
        pytest.raises(ValueError, match="give a hint of the picture's size"),
    ):
        ours.txt2img("a cat", steps=1, width=64, height=64)
    hints = torch.zeros(3, 3, 64, 96)
    with (
        control(ours, ControlNet(ours.config.unet).eval(), hints),
        pytest.raises(ValueError, match="there are 3 hints: give 1, or one for each sample"),
    ):
        drawn(ours)


def test_a_controlnet_of_another_model_is_refused(sd, picture, tmp_path):
    torch.manual_seed(0)
    wider = replace(sd.config.unet, context_dim=96)
    with pytest.raises(ValueError, match=r"contexts of width 96, .* contexts of width 64"):
        control(sd, ControlNet(wider), picture)
    for hint in (torch.zeros(1, 4, 64, 96), torch.full((1, 3, 64, 96), 255.0)):
        with pytest.raises(ValueError, match=r"give a tensor 1 3 h w in \[0, 1\]"):
            control(sd, ControlNet(sd.config.unet), hint)
    other = replace(sd.config.unet, channels=(64, 64))
    with pytest.raises(ValueError, match="made for another model"):
        control(sd, ControlNet(other), picture)
    ControlNet(other).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"does not (fit the U-Net|hold exactly the tensors)"):
        ControlNet.load(tmp_path / "other.safetensors", sd.config.unet)
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is not a ControlNet"):
        ControlNet.load(tmp_path / "none.safetensors")
