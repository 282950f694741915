"""Files of adapters with random weights: LoRAs as kohya's trainer writes them, ControlNets."""

import re

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from minisd.checkpoints import names
from minisd.checkpoints.controlnet_file import controlnet_rows
from tests.helpers.reference_networks import randomise

RANK, ALPHA = 3, 2.0


def some_lora(network, patterns, seed=0):
    """Random thin matrices for the layers of a diffusers network whose names match."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, layer in network.named_modules():
        if not any(re.search(pattern, name) for pattern in patterns):
            continue
        weight = layer.weight
        down = (RANK, *weight.shape[1:])
        up = (weight.shape[0], RANK, *[1] * (weight.ndim - 2))
        made[name] = (
            0.1 * torch.randn(down, generator=generator),
            0.1 * torch.randn(up, generator=generator),
        )
    return made


ATTENTION = [r"attn\d\.to_[qkv]$", r"attn\d\.to_out\.0$"]
FEED_FORWARD = [r"ff\.net\.0\.proj$", r"ff\.net\.2$", r"proj_in$", r"proj_out$"]
CONVOLUTIONS = [r"resnets\.\d\.conv[12]$", r"downsamplers\.0\.conv$", r"conv_shortcut$"]
PUBLISHED_LCM = [*ATTENTION, *FEED_FORWARD, *CONVOLUTIONS]
PUBLISHED_LCM += [r"time_emb_proj$", r"upsamplers\.0\.conv$", r"^conv_in$"]
TEXT = [r"self_attn\.(q|v|out)_proj$", r"mlp\.fc[12]$"]


def kohya(theirs, patterns, with_alpha=True):
    state = {}
    for part, network, which in (
        ("unet", theirs.unet, patterns),
        ("te", theirs.text_encoder, TEXT),
    ):
        for name, (down, up) in some_lora(network, which).items():
            name = f"text_model.{name}" if part == "te" and "text_model" not in name else name
            stem = f"lora_{part}_{name.replace('.', '_')}"
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            if with_alpha:
                state[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return state, {}


def reference_controlnet(theirs, config):
    """diffusers' ControlNet of the same sizes as its U-Net, every weight random."""
    network = ControlNetModel.from_unet(theirs.unet)
    randomise(network, gain=0.5, seed=7)
    return network.eval()


def controlnet_file(network, path, layout, config):
    """The reference's weights as a file of either layout."""
    state = network.state_dict()
    if layout == "original":
        ours = names.from_official(state, controlnet_rows(config), "diffusers")
        official = names.to_official(ours, controlnet_rows(config), "original")
        state = {f"control_model.{key}": tensor for key, tensor in official.items()}
        around = {"betas": torch.ones(9), "model.diffusion_model.out.2.bias": torch.ones(4)}
        torch.save({"state_dict": state | around}, path.with_suffix(".pth"))
        return path.with_suffix(".pth")
    save_file({k: t.contiguous() for k, t in state.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")
