"""Train the U-Net and the text transformer together, on latents of pictures with captions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from minisd.clip import TextTransformer
from minisd.config import ModelConfig
from minisd.schedule import Schedule
from minisd.training.loop import Draw, Hyperparameters, train
from minisd.unet import UNet

REPEATS = 4  # how often each picture of a batch is used, each time at another noise level
# network(x, t, tokens) returns the predicted noise.  x: r*b 4 h w    t: r*b    tokens: b 77
PredictNoise = Callable[[Tensor, Tensor, Tensor], Tensor]


class TextAndUNet(nn.Module):
    """The two networks that are trained together: the text transformer and the U-Net."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.text_encoder = TextTransformer(config.text)
        self.unet = UNet(config.unet)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Predict the noise in r noisy versions of each of b latents.

        x: r*b 4 h w    t: r*b    tokens: b 77    returns: the predicted noise, r*b 4 h w

        The text transformer reads each text only once, for all r noisy versions of the latent.
        """
        context = self.text_encoder(tokens)
        return self.unet(x, t, repeat(context, "b m c -> (r b) m c", r=len(x) // len(tokens)))


def start_at_zero(unet: UNet) -> None:
    """Set the last layers of the U-Net and of each residual branch to zero.

    A residual branch computes what is added to its input. So at first, each branch adds zero. The
    original code does the same.
    """
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


@dataclass(frozen=True)
class EncodedPictures:
    """A dataset of pictures with captions, as latents and tokens.

    Each picture is encoded only once, before the training, because the VAE is slow.

    The encoder returns a Gaussian for each picture. The latent is the mode of this Gaussian. Stable
    Diffusion is trained on samples instead of modes, but its Gaussians are narrower. The mini's
    Gaussians have a standard deviation of 0.16. If the mini's U-Net is trained on samples, it also
    generates latents with this much noise. This noise makes decoded pictures 1 dB worse.

    latents: n 4 h w, multiplied by the VAE's scale
    tokens: n 77
    encoded_by: a text that identifies the VAE and the vocabulary. A run can only be resumed with
        the same text. So the run cannot continue with latents of another VAE
    """

    latents: Tensor
    tokens: Tensor
    encoded_by: str = ""

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw batch_size latents at random. Returns the latents and their tokens."""
        picks = torch.randint(len(self.latents), (batch_size,), generator=generator)
        return self.latents[picks].float(), self.tokens[picks].long()


def stratified_timesteps(batch_size: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Draw REPEATS timesteps per picture, one in each quarter of the schedule. returns: r*b

    All timesteps are equally likely. But the timesteps of one picture are spread more evenly than
    independent random timesteps.
    """
    quarter = rearrange(torch.arange(REPEATS), "r -> r 1")
    within = torch.rand(REPEATS, batch_size, generator=generator)
    t = ((quarter + within) / REPEATS * schedule.config.timesteps).long()
    return rearrange(t, "r b -> (r b)")


def noise_loss(
    network: PredictNoise,
    schedule: Schedule,
    x0: Tensor,
    tokens: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The mean squared error of the predicted noise (Ho et al. 2020, eq. 14).

    The network predicts the noise in REPEATS noisy versions of each latent.

    x0: b 4 h w, latents without noise    tokens: b 77
    """
    t = stratified_timesteps(len(x0), schedule, generator)
    x0 = repeat(x0, "b c h w -> (r b) c h w", r=REPEATS)
    noise = torch.randn(x0.shape, generator=generator)
    eps = network(schedule.add_noise(x0, noise, t), t, tokens)
    return F.mse_loss(eps.float(), noise)


def min_snr_noise_loss(
    network: PredictNoise,
    schedule: Schedule,
    x0: Tensor,
    tokens: Tensor,
    generator: torch.Generator,
    max_snr: float,
) -> Tensor:
    """Compute noise_loss(), but with less weight for latents with little noise.

    If the signal-to-noise ratio of a noisy latent is above max_snr, the error is multiplied by
    max_snr / ratio (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting
    Strategy").
    """
    t = stratified_timesteps(len(x0), schedule, generator)
    x0 = repeat(x0, "b c h w -> (r b) c h w", r=REPEATS)
    noise = torch.randn(x0.shape, generator=generator)
    eps = network(schedule.add_noise(x0, noise, t), t, tokens)
    errors = (eps.float() - noise).square().mean(dim=(1, 2, 3))
    snr = schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])
    return (errors * (max_snr / snr).clamp(max=1)).mean()


def train_diffusion(
    pictures: EncodedPictures,
    config: ModelConfig,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 32,
    seed: int = 0,
) -> TextAndUNet:
    """Train the text transformer and the U-Net. Returns both with their EMA weights.

    If the folder holds a run, the run is resumed. Raises the same errors as train().
    """
    torch.manual_seed(seed)
    network = TextAndUNet(config)
    start_at_zero(network.unet)
    schedule = Schedule(config.schedule)

    def loss_at(draw: Draw) -> dict[str, Tensor]:
        x0, tokens = pictures.draw(draw.batch_size, draw.generator)
        return {"noise": noise_loss(network, schedule, x0, tokens, draw.generator)}

    about = {"text": asdict(config.text), "unet": asdict(config.unet), "vae": asdict(config.vae)}
    about |= {"schedule": asdict(config.schedule), "pictures": len(pictures.tokens)}
    about |= {"encoded_by": pictures.encoded_by}
    return train(network, loss_at, settings, folder, batch_size, seed, about)
