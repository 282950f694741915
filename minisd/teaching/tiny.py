"""A tiny model in the layout of Stable Diffusion, for lessons and tests without 4 GB of weights.

The model's weights are random, so its pictures mean nothing. But its files have the same form and
the same names of tensors as the official files, and diffusers can run the model. The file
weights/tiny-by-diffusers.safetensors holds numbers that diffusers computed with this model. If
diffusers is not installed, the tests compare minisd's numbers with the numbers in this file.
tests/tools/make_tiny.py writes the file.
"""

import json
from dataclasses import replace
from math import sqrt

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from minisd.clip import TextTransformer
from minisd.config import OPENCLIP_H, WEIGHTS, ModelConfig, TextConfig, UNetConfig, VAEConfig
from minisd.pipeline import StableDiffusion
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

# Some settings do not change the shape of any tensor, for example how attention is divided into
# heads. For these settings, the tiny models follow the published models.
TINY = ModelConfig(
    name="tiny",
    text=TextConfig(width=64, layers=2, heads=1),
    unet=UNetConfig(channels=(32, 64), attention=(True, False), context_dim=64),
    vae=VAEConfig(channels=(32, 32, 32, 64), res_blocks=1),
)
TINY_V2 = replace(
    TINY,
    name="tiny-v2",
    text=replace(OPENCLIP_H, width=64, layers=2, heads=1),
    unet=replace(TINY.unet, channels=(64, 64), head_width=64, linear_projection=True),
)
BY_DIFFUSERS = WEIGHTS / "tiny-by-diffusers.safetensors"

PROMPT = "a photograph of an astronaut riding a horse"  # from the tests of diffusers
RECORDED = 64  # numbers per tensor: enough to see whether two tensors are the same


def model(config: ModelConfig = TINY, gain: float = 0.3) -> StableDiffusion:
    """Build the tiny model. Its random weights are the same on every call.

    gain: the scale of the weights. At 1, the activations have a variance near 1. At 0.3, the
        activations are so small that the eps of the norms changes the output
    """
    networks = [TextTransformer(config.text), UNet(config.unet), VAE(config.vae)]
    for seed, network in enumerate(networks):
        randomise(network, gain, seed)
    return StableDiffusion(config, Tokenizer.clip(config.text.pad_token), *networks)


@torch.no_grad()
def randomise(network: nn.Module, gain: float, seed: int) -> None:
    """Fill every weight with random numbers. Weights that start at 0 would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        norm = isinstance(module, nn.GroupNorm | nn.LayerNorm)
        table = isinstance(module, nn.Embedding | TextTransformer)
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if norm:
                parameter.copy_(0.3 * noise + (name == "weight"))
            elif table or parameter.ndim == 1:
                parameter.copy_(0.3 * gain * noise)
            else:
                parameter.copy_(gain / sqrt(parameter[0].numel()) * noise)


def inputs(sd: StableDiffusion) -> dict[str, list[Tensor]]:
    """Draw inputs for each network, two samples each. Returns a dictionary: network -> its inputs.

    The heights differ from the widths, and one t is not a whole number.
    """
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    unet = [noise(2, 4, 6, 8), torch.tensor([3.0, 700.25]), noise(2, 77, sd.config.text.width)]
    vae = [noise(2, 3, 16, 24), noise(2, 4, 4, 6)]
    return {"text_encoder": [sd.tokenizer([PROMPT, "a cat"])], "unet": unet, "vae": vae}


@torch.no_grad()
def run_networks(sd: StableDiffusion) -> None:
    """Run the text encoder, the U-Net, the VAE's encoder and its decoder once, to trace them."""
    given = inputs(sd)
    sd.text_encoder(*given["text_encoder"])
    sd.unet(*given["unet"])
    image, z = given["vae"]
    sd.vae.encode(image)
    sd.vae.decode(z)


def sample_numbers(tensor: Tensor) -> Tensor:
    """64 numbers of a tensor, at even distances. If it has fewer numbers, all of them."""
    numbers = tensor.detach().float().flatten()
    places = torch.linspace(0, len(numbers) - 1, min(RECORDED, len(numbers)), dtype=torch.float64)
    return numbers[places.round().long()]


def golden_latent(size: int) -> Tensor:
    """The noise from which the tests of diffusers start. It is the same on every machine.

    size: the picture's size, in pixels
    returns: 1 4 size/8 size/8
    """
    shape = (1, 4, size // 8, size // 8)
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape)).float()


def by_diffusers() -> tuple[dict[str, Tensor], dict]:
    """Read the file of numbers that diffusers computed. Returns two dictionaries.

    The first one: minisd's name of a tensor -> 64 numbers of the tensor
    The second one: "versions" -> versions of the packages; "picture" -> nine numbers of a picture
        that was drawn in three steps
    """
    with safe_open(BY_DIFFUSERS, framework="pt") as file:
        notes = {key: json.loads(text) for key, text in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118
