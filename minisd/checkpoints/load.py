"""From a file or folder to a model's networks: every weight in its place, or an error."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.checkpoints.contents import Contents, blank, cover_part, lay_open, settled
from minisd.checkpoints.kinds import refuse_other_kinds
from minisd.checkpoints.names import flat, usual_name
from minisd.checkpoints.names import vae as vae_rows
from minisd.checkpoints.official import local
from minisd.checkpoints.read import read
from minisd.clip import TextTransformer
from minisd.config import ModelConfig, VAEConfig
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

# How alike a U-Net's output is to pure noise given to it at the last t. An eps network returns the
# noise, near 1; a v network returns minus the picture it imagines, near 0.
SURELY_EPS = 0.7
SURELY_V = 0.3

VAE_PREFIX = "first_stage_model."  # of the autoencoder in whole models, and in some VAE files
ONLY_TRAINING = ("loss.", "model_ema.", "logvar")


@dataclass(frozen=True)
class Parts:
    """A model ready to run: what a pipeline is made of."""

    config: ModelConfig
    tokenizer: Tokenizer
    text_encoder: TextTransformer
    unet: UNet
    vae: VAE


def load(
    source: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str | None = None,
    ema: bool = False,
) -> Parts:
    """Read a whole model: "mini", a .safetensors or .ckpt file, or a diffusers folder.

    Of the mini there are "mini-inpaint" (9 channels) and "mini-depth" (5 channels) as well.

    prediction: "eps" or "v", where the file does not say it or says it wrongly
    ema: the U-Net's averaged weights, which training checkpoints keep beside the last ones

    Raises ValueError, in one sentence, for anything but a whole and healthy SD v1 or v2 model.
    """
    path = locate(source)
    return build(lay_open(path, prediction, ema), path.name, device, dtype)


def build(
    contents: Contents,
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Parts:
    """The networks of a checkpoint that was laid open. name: what to call it in an error."""
    networks = blank(contents.config)
    for part, network in networks.items():
        fill(network, contents.parts[part], device, dtype, f"{name}: {part}")
    parts = Parts(contents.config, contents.tokenizer, **networks)
    return parts if contents.known_by else try_prediction(parts, name)


def load_vae(
    path: str | Path,
    config: VAEConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VAE:
    """The autoencoder of a VAE file, named as in the original or in diffusers.

    config: the sizes it must have. Raises ValueError for any other file.
    """
    path = local(path)
    tensors = read(path)
    refuse_other_kinds(path.name, tensors, "VAE")
    tensors = {usual_name(key.removeprefix(VAE_PREFIX), "vae"): t for key, t in tensors.items()}
    tensors = {key: t for key, t in tensors.items() if not key.startswith(ONLY_TRAINING)}
    layout = "diffusers" if any(".down_blocks." in key for key in tensors) else "original"
    with torch.device("meta"):
        vae = VAE(config)
    state = cover_part(tensors, vae, flat(vae_rows(config)), layout, path.name)
    fill(vae, state, device, dtype, path.name)
    return vae.eval().requires_grad_(False)


def locate(source: str | Path) -> Path:
    """Where the weights lie. Raises ValueError if there is nothing."""
    path = local(source)
    if not path.exists():
        wanted = 'a .safetensors or .ckpt file, a diffusers folder, "mini", or a published name'
        raise ValueError(f"There is no file or folder {path}: give {wanted}.")
    return path


def fill(
    network: nn.Module,
    state: Mapping[str, Tensor],
    device: str | torch.device,
    dtype: torch.dtype,
    name: str,
):
    """Give the network its tensors. Those of the right dtype and device stay mapped to the file.

    name: what to call the network in an error
    Raises ValueError naming the first module with a weight that is no finite number.
    """
    converted = {}
    for key in network.state_dict():
        tensor = state[key].to(device, dtype)
        if not is_finite(tensor):
            raise ValueError(
                f"{name}.{key} holds NaN or infinity: the file is damaged or its training failed. "
                "Get another copy."
            )
        converted[key] = tensor
    network.load_state_dict(converted, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinity."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # 8 bits have no extrema in torch
    lowest, highest = tensor.aminmax()  # one pass without a copy; NaN comes out at both ends
    return bool(lowest.isfinite() and highest.isfinite())


def try_prediction(parts: Parts, name: str) -> Parts:
    """Tell eps from v by one call of the U-Net on noise, and say so in a warning."""
    likeness = likeness_to_noise(parts)
    prediction = "v" if abs(likeness) < SURELY_V else "eps"
    sure = prediction == "v" or likeness > SURELY_EPS
    outcome = f"correlates {likeness:.2f} with it" + ("" if sure else ", which decides nothing")
    warnings.warn(
        f"{name} does not say whether it predicts eps or v. Tried on noise, its output {outcome}: "
        f'taken as {prediction}. If pictures come out wrong, give prediction="eps" or "v".',
        stacklevel=4,
    )
    return replace(parts, config=settled(parts.config, prediction))


@torch.no_grad()
def likeness_to_noise(parts: Parts) -> float:
    """The correlation of the U-Net's output at the last t with its input, pure noise."""
    config, weight = parts.config, parts.unet.conv_in.weight
    side = 4 * config.size_multiple // config.vae.factor  # small, and every level halves evenly
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, config.unet.in_channels, side, side, generator=generator).to(weight)
    t = torch.tensor([config.schedule.timesteps - 1], device=weight.device)
    context = parts.text_encoder(parts.tokenizer("").to(weight.device))
    both = torch.stack([x.flatten(), parts.unet(x, t, context).flatten()])
    return both.float().corrcoef()[0, 1].item()
