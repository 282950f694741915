"""Run a U-Net to find out whether it predicts eps or v. Some files do not state this."""

import warnings
from dataclasses import replace
from math import isfinite

import torch

from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.finite import refuse_damage
from minisd.checkpoints.names import is_v2
from minisd.checkpoints.single_file_settings import with_prediction
from minisd.config import ModelConfig
from minisd.schedule import Schedule

# Limits for the correlation of a U-Net's output with the noise in the U-Net's input. At the last t,
# the input is pure noise. An eps network returns the noise, so the correlation is near 1. A v
# network returns minus the predicted picture, so the correlation is near 0.
SURELY_EPS = 0.7
SURELY_V = 0.3
LITTLE_NOISE = 0.25  # at this fraction of the last t, a v network also returns nearly the noise


def try_prediction(parts: Parts, name: str) -> Parts:
    """Run the U-Net on noise to find out whether it predicts eps or v. A warning states the result.

    name: the name of the file, for the warning

    Raises ValueError if a weight of the U-Net or of the text transformer is NaN or infinite.

    Returns the model with the result in its config.

    If the U-Net predicts eps, its output for pure noise is like the noise. If it predicts v, the
    output is unlike the noise. But the output of an untrained U-Net is also unlike the noise.

    Among the SD v2 models whose U-Net reads only the latent, many predict v. So if such a model has
    an output unlike the noise, the function decides for v. Other models nearly always predict eps.
    So for other models, the function also runs the U-Net at a t with little noise. If the U-Net
    predicts v, this second output is like the noise. The reason is that v = signal rate * noise -
    noise rate * picture.
    """
    likeness = likeness_to_noise(parts)
    if not isfinite(likeness):
        refuse_damage(parts.text_encoder, f"{name}: text_encoder")
        refuse_damage(parts.unet, f"{name}: unet")
    v2 = is_v2(parts.config) and parts.config.unet.in_channels == 4
    v = v2 and abs(likeness) < SURELY_V
    if not v and likeness <= SURELY_EPS:
        v = likeness_to_noise(parts, LITTLE_NOISE) > SURELY_EPS
    doubt = "" if v or likeness > SURELY_EPS else ", so the test gave no clear result"
    prediction = "v" if v else "eps"
    unknown = f"{name} does not say whether it predicts eps or v, so minisd tested it on noise"
    found = f"The output has a correlation of {likeness:.2f} with the noise{doubt}"
    choice = f"minisd assumes that the model predicts {prediction}"
    advice = 'If the pictures look wrong, give prediction="eps" or "v".'
    warnings.warn(f"{unknown}. {found}. {choice}. {advice}", stacklevel=4)
    config, size = with_prediction(parts.config, prediction), parts.config.size
    size = config.size if size == ModelConfig.size else size  # keep a size that the file states
    return replace(parts, config=replace(config, size=size))


@torch.no_grad()
def likeness_to_noise(parts: Parts, amount: float = 1.0) -> float:
    """Run the U-Net. Returns the correlation of its output with the noise in its input.

    amount: the t of the input, as a fraction of the last t. With 1, the input is pure noise. With
        less than 1, the input is a latent of zeros plus the noise for this t

    The U-Nets for inpainting and for depth maps read extra channels. In this test, the mask says
    that the whole picture must be drawn, and all other extra channels are 0.
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
