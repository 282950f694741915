"""Train the noise predictor and the text transformer together, on latents of captioned pictures."""

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from tqdm import tqdm

from minisd.clip import TextTransformer
from minisd.config import ModelConfig
from minisd.mini.emoji import Emoji, batch
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from minisd.training.loop import Recipe, fast_precision, generator_at, train
from minisd.training.parallel import share
from minisd.training.run_folder import fingerprint
from minisd.unet import UNet
from minisd.vae import VAE

LEVELS = 4  # noise levels at which each picture of a step is seen


class Conditioned(nn.Module):
    """The two networks that learn together: the text transformer, and the U-Net that reads it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.text_encoder = TextTransformer(config.text)
        self.unet = UNet(config.unet)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """x: r*b 4 h w    t: r*b    tokens: b 77    returns: the predicted noise, r*b 4 h w.

        The text is read once, for all r noisy versions of its latent.
        """
        context = self.text_encoder(tokens)
        return self.unet(x, t, repeat(context, "b m c -> (r b) m c", r=len(x) // len(tokens)))


def start_at_zero(unet: UNet) -> None:
    """Zero the last layer of every branch, as the original does: at first each adds nothing."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class LatentBank:
    """Many captioned pictures, encoded once: the VAE is far slower than looking latents up.

    latents: n 4 h w, scaled, each the likeliest of its Gaussian. Stable Diffusion's training draws
    from it, but its encoder is surer: the mini's has a spread of 0.16, and a U-Net that learns from
    draws makes latents as noisy as they are, which cost 1 dB when they are decoded.
    tokens: n 77
    encoded_by: which VAE and which vocabulary made them, so that no run goes on with others'
    """

    latents: Tensor
    tokens: Tensor
    encoded_by: str = ""

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """batch_size latents at random, and their tokens."""
        picks = torch.randint(len(self.latents), (batch_size,), generator=generator)
        return self.latents[picks].float(), self.tokens[picks].long()


@torch.no_grad()
def encode_bank(
    emoji: Emoji,
    vae: VAE,
    tokenizer: Tokenizer,
    config: ModelConfig,
    count: int,
    seed: int,
    split: str = "train",
) -> LatentBank:
    """Compose `count` pictures and encode them. Half precision: a bank of 100,000 takes 80 MB."""
    latents, tokens = [], []
    for step in tqdm(range(0, count, 100), desc="encoding pictures", mininterval=5):
        pictures = batch(emoji, config.size, 100, seed, step, split)
        with fast_precision():
            z = vae.encode(pictures.images).mode()
        latents.append((z.float() * config.vae.scale).half())
        tokens.append(tokenizer(pictures.captions).int())
    vocabulary = hashlib.sha256(repr(tokenizer.merges).encode()).hexdigest()[:8]
    encoded_by = f"{fingerprint(vae)} {vocabulary}"
    return LatentBank(torch.cat(latents), torch.cat(tokens), encoded_by)


def noise_loss(
    network: Conditioned,
    schedule: Schedule,
    x0: Tensor,
    tokens: Tensor,
    generator: torch.Generator,
    max_snr: float = math.inf,
) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, eq. 14), t uniform.

    Each picture is noised once in every quarter of the schedule: that spreads t more evenly, and
    reading the text, a third of a step's work, then serves four.

    x0: b 4 h w    tokens: b 77. Of several processes each sees its share of what is drawn for all.
    max_snr: where the signal-to-noise ratio is larger, the error counts max_snr / ratio times (Hang
        et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy")
    """
    quarter = rearrange(torch.arange(LEVELS), "r -> r 1")
    within = torch.rand(LEVELS, len(x0), generator=generator)
    t = ((quarter + within) / LEVELS * schedule.config.timesteps).long()
    noise = torch.randn(LEVELS, *x0.shape, generator=generator)
    x0, tokens = share(x0), share(tokens)
    t, noise = (rearrange(share(all.swapaxes(0, 1)), "b r ... -> (r b) ...") for all in (t, noise))
    x = schedule.add_noise(repeat(x0, "b c h w -> (r b) c h w", r=LEVELS), noise, t)
    with fast_precision():
        eps = network(x, t, tokens)
    errors = (eps.float() - noise).square().mean(dim=(1, 2, 3))
    snr = schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])
    return (errors * (max_snr / snr).clamp(max=1)).mean()


def train_diffusion(
    bank: LatentBank,
    config: ModelConfig,
    folder: Path,
    recipe: Recipe,
    batch_size: int = 32,
    seed: int = 0,
) -> Conditioned:
    """Returns the averaged networks. Resumes from the folder, where it also keeps its log."""
    torch.manual_seed(seed)
    network = Conditioned(config)
    start_at_zero(network.unet)
    schedule = Schedule(config.schedule)

    def loss_at(step: int) -> dict[str, Tensor]:
        generator = generator_at(seed, step)
        x0, tokens = bank.draw(batch_size, generator)
        return {"noise": noise_loss(network, schedule, x0, tokens, generator)}

    about = {"text": asdict(config.text), "unet": asdict(config.unet), "vae": asdict(config.vae)}
    about |= {"schedule": asdict(config.schedule), "pictures": len(bank.tokens)}
    about |= {"batch_size": batch_size, "seed": seed, "encoded_by": bank.encoded_by}
    return train(network, loss_at, recipe, folder, about)
