"""Find out whether a U-Net predicts eps or v by running it, for files that do not say."""

import warnings
from dataclasses import replace

import torch

from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.names import is_v2
from minisd.checkpoints.single_file_settings import with_prediction
from minisd.config import ModelConfig
from minisd.schedule import Schedule

# The correlation of a U-Net's output with its input, which is pure noise at the last t. An eps
# network returns the noise: near 1. A v network returns minus the picture that it predicts: near 0.
SURELY_EPS = 0.7
SURELY_V = 0.3
LITTLE_NOISE = 0.25  # a t, as a fraction of the last one, where a v network returns the noise too


def try_prediction(parts: Parts, name: str) -> Parts:
    """Tell eps from v by running the U-Net on noise. A warning says what it found.

    Many SD v2 files predict v, so for v2 files with only the latent as input, an output unlike the
    noise is enough for v. Other files nearly always predict eps, and an untrained network's output
    is unlike the noise, too. So they need a second sign of v: an output like the noise at a t with
    little noise (v = signal rate * noise - noise rate * picture).
    """
    likeness = likeness_to_noise(parts)
    v2 = is_v2(parts.config) and parts.config.unet.in_channels == 4
    v = v2 and abs(likeness) < SURELY_V
    if not v and likeness <= SURELY_EPS:
        v = likeness_to_noise(parts, LITTLE_NOISE) > SURELY_EPS
    doubt = "" if v or likeness > SURELY_EPS else ", which decides nothing"
    prediction = "v" if v else "eps"
    unknown = f"{name} does not say whether it predicts eps or v, so minisd tried it on noise"
    found = f"Its output has a correlation of {likeness:.2f} with the noise{doubt}"
    choice = f"minisd takes it as {prediction}"
    advice = 'If the pictures look wrong, give prediction="eps" or "v".'
    warnings.warn(f"{unknown}. {found}. {choice}. {advice}", stacklevel=4)
    config, size = with_prediction(parts.config, prediction), parts.config.size
    size = config.size if size == ModelConfig.size else size  # a size that the file states stays
    return replace(parts, config=replace(config, size=size))


@torch.no_grad()
def likeness_to_noise(parts: Parts, amount: float = 1.0) -> float:
    """The correlation of the U-Net's output with the noise in its input.

    amount: the t, as a fraction of the last t. The input is pure noise at the last t, and below it
        a latent of zeros with noise added
    The extra channels of inpainting and depth models say that the whole picture is to be drawn and
    nothing is known about it.
    """
    config, weight = parts.config, parts.unet.conv_in.weight
    side = 4 * config.size_multiple // config.vae.factor  # small, but every level can halve it
    shape = (1, config.unet.in_channels, side, side)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight)
    noise = x[:, : config.unet.out_channels]
    t = round(amount * (config.schedule.timesteps - 1))
    if amount < 1:
        x = x * (1 - Schedule(config.schedule).alpha_bar[t]).sqrt().to(weight)
    x[:, 4:] = 0
    x[:, 4:5] = float(config.unet.in_channels == 9)  # the mask
    context = parts.text_encoder(parts.tokenizer("").to(weight.device))
    output = parts.unet(x, torch.tensor([t], device=weight.device), context)
    return torch.stack([noise.flatten(), output.flatten()]).float().corrcoef()[0, 1].item()
