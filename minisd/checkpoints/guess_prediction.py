"""Whether a U-Net predicts eps or v, found out by trying where no file says so."""

import warnings
from dataclasses import replace

import torch

from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.names import is_v2
from minisd.checkpoints.single_file_settings import with_prediction
from minisd.config import ModelConfig
from minisd.schedule import Schedule

# How alike a U-Net's output is to pure noise given to it at the last t. An eps network returns the
# noise, near 1; a v network returns minus the picture it imagines, near 0.
SURELY_EPS = 0.7
SURELY_V = 0.3
LITTLE_NOISE = 0.25  # of the way up to the last t: where a v network returns the noise as well


def try_prediction(parts: Parts, name: str) -> Parts:
    """Tell eps from v by calls of the U-Net on noise, and say so in a warning.

    Of v2's files with the latent alone as input, an answer unlike the noise is enough for v. Others
    nearly always predict eps, and an untrained network's answer is unlike it as well: so v must
    show, by an answer that is like the noise once there is little of it (v = signal rate * noise -
    noise rate * picture).
    """
    likeness = likeness_to_noise(parts)
    v2 = is_v2(parts.config) and parts.config.unet.in_channels == 4
    v = v2 and abs(likeness) < SURELY_V
    if not v and likeness <= SURELY_EPS:
        v = likeness_to_noise(parts, LITTLE_NOISE) > SURELY_EPS
    doubt = "" if v or likeness > SURELY_EPS else ", which decides nothing"
    prediction = "v" if v else "eps"
    tried = (
        f"{name} does not say whether it predicts eps or v. Tried on noise, its output correlates "
        f"{likeness:.2f} with it{doubt}"
    )
    advice = 'If pictures come out wrong, give prediction="eps" or "v".'
    warnings.warn(f"{tried}: taken as {prediction}. {advice}", stacklevel=4)
    config, size = with_prediction(parts.config, prediction), parts.config.size
    size = config.size if size == ModelConfig.size else size  # what the file itself states stays
    return replace(parts, config=replace(config, size=size))


@torch.no_grad()
def likeness_to_noise(parts: Parts, amount: float = 1.0) -> float:
    """The correlation of the U-Net's output with the noise in its input.

    amount: where on the way up to the last t, there pure noise; below it, noise on an empty latent
    What inpainting and depth models see besides says: all is to be drawn, and nothing is known.
    """
    config, weight = parts.config, parts.unet.conv_in.weight
    side = 4 * config.size_multiple // config.vae.factor  # small, and every level halves evenly
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
