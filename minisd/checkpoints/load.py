"""From a file or folder to a model's networks: every weight in its place, or an error."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd.checkpoints.contents import Checkpoint, check_cover, empty_networks, open_checkpoint
from minisd.checkpoints.folder_settings import vae_config
from minisd.checkpoints.names import is_v2
from minisd.checkpoints.prediction import alpha_bar, with_prediction
from minisd.checkpoints.read import metadata, read_json
from minisd.checkpoints.registry import SHIPPED, local
from minisd.checkpoints.settings import from_metadata, naming
from minisd.checkpoints.vae_file import open_vae
from minisd.clip import TextTransformer
from minisd.config import WEIGHTS, ModelConfig, VAEConfig
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import VAE

# How alike a U-Net's output is to pure noise given to it at the last t. An eps network returns the
# noise, near 1; a v network returns minus the picture it imagines, near 0.
SURELY_EPS = 0.7
SURELY_V = 0.3
NOT_FINITE = "holds NaN or infinity: the file is damaged or its training failed. Get another copy."
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LITTLE_NOISE = 0.25  # of the way up to the last t: where a v network returns the noise as well


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
    vae: str | Path | None = None,
) -> Parts:
    """Read a whole model: "mini", a .safetensors or .ckpt file, or a diffusers folder.

    Of the mini there are "mini-inpaint" (9 channels) and "mini-depth" (5 channels) as well.

    dtype: one of DTYPES. With float16 the autoencoder is in float32 all the same: its feature maps
        may leave float16's range of 65,504, as the mini's do, which reach 190,000
    prediction: "eps" or "v", where the file does not say it or says it wrongly
    ema: the U-Net's averaged weights, which training checkpoints keep beside the last ones
    vae: a VAE file, a folder with one or a published name, in place of the model's own VAE, which
        some files lack

    Raises ValueError, in one sentence, for anything but a whole and healthy SD v1 or v2 model.
    """
    check_dtype(dtype)
    path = locate(source)
    other = None if vae is None else open_vae(vae, own_vae_config(path))
    return build_networks(open_checkpoint(path, prediction, ema, other), path.name, device, dtype)


def check_dtype(dtype: object) -> None:
    """Raise ValueError, with those that can, unless weights of this dtype can draw."""
    if not any(dtype is known for known in DTYPES):
        said, known = repr(dtype).splitlines()[0][:60], ", ".join(map(str, DTYPES))
        raise ValueError(f"dtype {said} cannot be used for a model: give one of {known}.")


def own_vae_config(path: Path) -> VAEConfig | None:
    """The sizes of its VAE that a file of our own, or a folder, states; None where none does."""
    stated = path / "vae" / "config.json"
    stored = read_json(stated) if stated.exists() else None
    header = metadata(path) if path.is_file() else {}
    with naming(path.name):
        if stored is not None:
            return vae_config(stored)
        return from_metadata(header)[0].vae if "minisd" in header else None


def build_networks(
    checkpoint: Checkpoint,
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Parts:
    """The networks of a checkpoint that was laid open. name: what to call it in an error."""
    networks = empty_networks(checkpoint.config)
    for part, network in networks.items():
        wide = part == "vae" and dtype is torch.float16
        own = torch.float32 if wide else dtype
        fill(network, checkpoint.parts[part], device, own, f"{name}: {part}")
    parts = Parts(checkpoint.config, checkpoint.tokenizer, **networks)
    return parts if checkpoint.known_by else try_prediction(parts, name)


def load_vae(
    path: str | Path,
    config: VAEConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VAE:
    """The autoencoder of a VAE file or folder, named as in the original or in diffusers.

    config: the sizes it must have. The scale of its latents (vae.config.scale) is that of the
        config.json in the folder or next to the file, else the config's
    Raises ValueError for any other file.
    """
    check_dtype(dtype)
    opened = open_vae(path, config)
    with torch.device("meta"):
        vae = VAE(opened.config)
    fill(vae, opened.state, device, dtype, Path(path).name)
    return vae.eval().requires_grad_(False)


def locate(source: str | Path) -> Path:
    """Where the weights lie. Raises ValueError if there is nothing."""
    path = WEIGHTS / SHIPPED[str(source)] if source in SHIPPED else local(source)
    if not path.exists():
        wanted = 'a .safetensors or .ckpt file, a diffusers folder, "mini", or a published name'
        raise ValueError(f"There is no file or folder {path}: give {wanted}.")
    return path


def fill_whole(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Give a network on the meta device all that a file of ours holds, in single precision.

    name: what to call the file in an error
    Raises ValueError for tensors that are missing, too much, of another shape or not finite.
    """
    needed = network.state_dict()
    unknown = [key for key in tensors if key not in needed]
    check_cover(name, tensors, needed, unknown, "Get another copy.")
    fill(network, tensors, "cpu", torch.float32, name)


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
    for key in network.state_dict():
        if not state[key].is_floating_point():
            what = f"{name}.{key} is {state[key].dtype}, which weights are not"
            raise ValueError(f"{what}: get another copy.")
    converted = {key: state[key].to(device, dtype) for key in network.state_dict()}
    for key, tensor in converted.items():
        if not is_finite(tensor):
            raise ValueError(f"{name}.{key} {NOT_FINITE}")
    network.load_state_dict(converted, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinity."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # 8 bits have no extrema in torch
    lowest, highest = tensor.aminmax()  # one pass without a copy; NaN comes out at both ends
    return bool(lowest.isfinite() and highest.isfinite())


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
        x = x * (1 - alpha_bar(config.schedule)[t]).sqrt().to(weight)
    x[:, 4:] = 0
    x[:, 4:5] = float(config.unet.in_channels == 9)  # the mask
    context = parts.text_encoder(parts.tokenizer("").to(weight.device))
    output = parts.unet(x, torch.tensor([t], device=weight.device), context)
    return torch.stack([noise.flatten(), output.flatten()]).float().corrcoef()[0, 1].item()
