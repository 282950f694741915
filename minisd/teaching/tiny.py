"""A tiny model in Stable Diffusion's own layout, for whoever has no 4 GB of weights at hand.

Its weights are random, so it draws nothing; but its files have the official names, shapes and
quirks, and diffusers runs it. What diffusers made of it lies in weights/, in
tiny-by-diffusers.safetensors: numbers to compare with ours where there is no diffusers.
tests/tools/make_tiny.py writes that file.
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

# What no tensor of a file tells, such as the number of heads, is as in the published models.
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

PROMPT = "a photograph of an astronaut riding a horse"  # of diffusers' own tests
RECORDED = 64  # numbers of each tensor: enough to tell whether two tensors are the same


def model(config: ModelConfig = TINY, gain: float = 0.3) -> StableDiffusion:
    """The model, with the same random weights on every call.

    gain: 1 keeps activations near unit spread; at 0.3 they are small, and a wrong epsilon shows
    """
    networks = [TextTransformer(config.text), UNet(config.unet), VAE(config.vae)]
    for seed, network in enumerate(networks):
        randomise(network, gain, seed)
    return StableDiffusion(config, Tokenizer.clip(config.text.pad_token), *networks)


@torch.no_grad()
def randomise(network: nn.Module, gain: float, seed: int) -> None:
    """Draw every weight anew, also those that training starts at 0: behind a 0 nothing shows."""
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
    """What each network is run on: two samples, height unlike width, a t that is no integer."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    unet = [noise(2, 4, 6, 8), torch.tensor([3.0, 700.25]), noise(2, 77, sd.config.text.width)]
    vae = [noise(2, 3, 16, 24), noise(2, 4, 4, 6)]
    return {"text_encoder": [sd.tokenizer([PROMPT, "a cat"])], "unet": unet, "vae": vae}


@torch.no_grad()
def run_networks(sd: StableDiffusion) -> None:
    """Every network once, to be watched by a trace: text, U-Net, encoder, decoder."""
    given = inputs(sd)
    sd.text_encoder(*given["text_encoder"])
    sd.unet(*given["unet"])
    image, z = given["vae"]
    sd.vae.encode(image)
    sd.vae.decode(z)


def some(tensor: Tensor) -> Tensor:
    """64 numbers of a tensor, evenly picked from all of it: its fingerprint."""
    numbers = tensor.detach().float().flatten()
    places = torch.linspace(0, len(numbers) - 1, min(RECORDED, len(numbers)), dtype=torch.float64)
    return numbers[places.round().long()]


def golden_latent(size: int) -> Tensor:
    """The noise that diffusers' tests start from: numpy's, the same everywhere.

    size: of the picture    returns: 1 4 size/8 size/8
    """
    shape = (1, 4, size // 8, size // 8)
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape)).float()


def by_diffusers() -> tuple[dict[str, Tensor], dict]:
    """Fingerprints of diffusers' tensors by our names, and what else the file says of them.

    The second has "versions" and "picture": nine numbers of a picture in three steps.
    """
    with safe_open(BY_DIFFUSERS, framework="pt") as file:
        said = {key: json.loads(text) for key, text in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118
