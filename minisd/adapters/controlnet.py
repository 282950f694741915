"""ControlNet: a copy of the U-Net's way down that also sees a hint, and corrects every skip.

The copy learns while the U-Net stays frozen. Its answers pass through 1x1 convolutions that begin
at zero, so training starts from the unchanged model (Zhang et al. 2023, sections 3.1 and 3.2;
cldm/cldm.py).
"""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from inspect import signature
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import repeat
from PIL import Image
from torch import Tensor, nn

from minisd.adapters.handle import Handle
from minisd.checkpoints import names
from minisd.checkpoints.contents import cover_part
from minisd.checkpoints.kinds import refuse_other_kinds
from minisd.checkpoints.load import fill
from minisd.checkpoints.names import Row
from minisd.checkpoints.official import local
from minisd.checkpoints.read import metadata, read
from minisd.checkpoints.settings import tuples
from minisd.checkpoints.write import write_tensors, written_whole
from minisd.config import SD15, SD20_BASE, UNetConfig
from minisd.pipeline import StableDiffusion, from_pil
from minisd.unet import Down, Mid, TimeEmbedding, UNet, skip_channels

HINT_CHANNELS = (16, 16, 32, 32, 96, 96, 256)  # cldm.py; each second one halves the size
PREFIX = "control_model."  # of the original's files, in some of them
PUBLISHED = {config.unet.context_dim: config.unet for config in (SD15, SD20_BASE)}


class Hint(nn.Module):
    """Brings the hint, a picture, to the size and width of the U-Net's first feature map.

    hint: b 3 8h 8w in [0, 1]    returns: b channels h w
    """

    def __init__(self, channels: int):
        super().__init__()
        widths = [3, *HINT_CHANNELS]
        halves = [False, False, True, False, True, False, True]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=2 if half else 1)
            for a, b, half in zip(widths, HINT_CHANNELS, halves)
        )
        self.conv_out = nn.Conv2d(HINT_CHANNELS[-1], channels, 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        x = hint
        for conv in self.convs:
            x = F.silu(conv(x))
        return self.conv_out(x)


class ControlNet(nn.Module):
    """Tells the U-Net, skip by skip, how to follow the hint.

    x: b 4 h w    t: b    context: b m c    hint: b 3 8h 8w in [0, 1], not [-1, 1]
    returns: one tensor for each skip, then one for the middle: the U-Net's `control`
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        channels = config.channels
        last = len(channels) - 1
        self.config = config
        self.time = TimeEmbedding(channels[0])
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.hint = Hint(channels[0])
        c_in = [channels[0], *channels]
        self.down = nn.ModuleList(
            Down(c_in[i], channels[i], config, config.attention[i], last=i == last)
            for i in range(len(channels))
        )
        self.mid = Mid(channels[last], config)
        self.zero = nn.ModuleList(nn.Conv2d(c, c, 1) for c in skip_channels(config))
        self.zero_mid = nn.Conv2d(channels[last], channels[last], 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        time = self.time(t)
        x = self.conv_in(x) + self.hint(hint)
        x, skips = UNet.encode(self, x, time, context)  # the same way down, with our own weights
        return [zero(skip) for zero, skip in zip(self.zero, skips)] + [self.zero_mid(x)]

    @classmethod
    def load(cls, path: str | Path, config: UNetConfig | None = None) -> "ControlNet":
        """Read a file of the original's (.pth, .safetensors), of diffusers' layout, or our own.

        config: sizes of the U-Net it belongs to. None: as the file's header says, else those of
            SD v1 or v2, by the width of the context
        Raises ValueError for a file that is no ControlNet or does not fit the config.
        """
        path = local(path)
        tensors = read(path)
        refuse_other_kinds(path.name, tensors, "ControlNet")
        tensors = inside(tensors)
        config = config or config_of(path, tensors)
        with torch.device("meta"):
            network = cls(config)
        layout = "diffusers" if "controlnet_mid_block.weight" in tensors else "original"
        state = cover_part(tensors, network, rows(config), layout, path.name)
        fill(network, state, "cpu", torch.float32, path.name)
        return network.eval().requires_grad_(False)

    def save(self, path: str | Path, notes: dict[str, str] | None = None) -> None:
        """Write it in half precision under the original's names, its config in the header."""
        state = names.to_official(self.state_dict(), rows(self.config), "original")
        header = {"controlnet": json.dumps(asdict(self.config)), **(notes or {})}
        with written_whole(Path(path)) as unfinished:
            write_tensors(unfinished, state, header, torch.float16)


def control(
    sd: StableDiffusion, network: ControlNet, hint: Image.Image | Tensor, scale: float = 1.0
) -> Handle:
    """Let the network lead the U-Net along the hint, until the handle is removed.

    hint: a picture, or 1 3 h w in [0, 1], of the size that will be drawn, for every sample the
        same; or b 3 h w, one for each
    Several at once add up. Raises ValueError for a network of another model, and later, when
    something is drawn, for hints of another size or number.
    """
    if sizes(network.config) != sizes(sd.config.unet):
        raise ValueError(
            f"this ControlNet is for a U-Net with {sizes(network.config)}, and {sd.config.name} "
            f"has {sizes(sd.config.unet)}: it is made for another model."
        )
    if scale == 0:
        return Handle([])
    shown = (from_pil(hint) + 1) / 2 if isinstance(hint, Image.Image) else hint
    if shown.ndim != 4 or shown.shape[1] != 3 or shown.min() < 0 or shown.max() > 1:
        raise ValueError(
            f"the hint has shape {tuple(shown.shape)}, its values go from {shown.min():g} to "
            f"{shown.max():g}: give 1 3 h w in [0, 1]."
        )
    network = copy.deepcopy(network).to(sd.device, sd.dtype)
    hook = leading(network, shown.to(sd.device, sd.dtype), scale, sd.config.vae.factor)
    return Handle([sd.unet.register_forward_pre_hook(hook, with_kwargs=True)])


def leading(network: ControlNet, hint: Tensor, scale: float, factor: int) -> Callable:
    """A hook that hands the U-Net the network's corrections, on top of what there are."""

    def hook(unet: UNet, inputs: tuple, more: dict) -> tuple[tuple, dict]:
        given = signature(unet.forward).bind(*inputs, **more).arguments
        x, t, context, before = (given.get(name) for name in ("x", "t", "context", "control"))
        height, width = factor * x.shape[2], factor * x.shape[3]
        if tuple(hint.shape[2:]) != (height, width):
            raise ValueError(
                f"the hint has shape {tuple(hint.shape)} and the picture is {width} x {height}: "
                "give a hint of the picture's size."
            )
        if len(x) % len(hint):
            raise ValueError(f"there are {len(hint)} hints: give 1, or one for each sample.")
        beside = repeat(hint, "b c h w -> (times b) c h w", times=len(x) // len(hint))
        latent = x[:, : network.config.in_channels]  # an inpainting U-Net sees more
        corrections = [scale * one for one in network(latent, t, context, beside)]
        if before is not None:
            corrections = [a + b for a, b in zip(before, corrections, strict=True)]
        return (x, t, context, corrections), {}

    return hook


# ---- files -----------------------------------------------------------------------------------


def inside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ControlNet's own; original files may hold a whole model and its schedule around it."""
    within = {key: tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    return {key.removeprefix(PREFIX): tensor for key, tensor in (within or tensors).items()}


def sizes(config: UNetConfig) -> str:
    """What a ControlNet and its U-Net must have in common, in words."""
    return f"channels {config.channels}, contexts {config.context_dim} wide"


def config_of(path: Path, tensors: dict[str, Tensor]) -> UNetConfig:
    """The sizes of the U-Net that the file is made for. ValueError: neither said nor known."""
    stored = metadata(path).get("controlnet")
    if stored:
        try:
            return UNetConfig(**tuples(json.loads(stored)))
        except (ValueError, TypeError, AttributeError) as error:
            what = "a damaged header, or one of another version of minisd"
            raise ValueError(f"{path.name} has {what}: get another copy.") from error
    widths = {t.shape[1] for key, t in tensors.items() if key.endswith("attn2.to_k.weight")}
    known = [PUBLISHED[width] for width in widths if width in PUBLISHED]
    if len(widths) != 1 or not known:
        raise ValueError(f"{path.name} is no ControlNet for Stable Diffusion v1 or v2.")
    return known[0]


def rows(config: UNetConfig) -> list[Row]:
    """The table of a ControlNet: the U-Net's way down, the hint's convolutions, the zero ones."""
    shared = [
        row for row in names.unet(config) if not row.ours.startswith(("up.", "norm_", "conv_o"))
    ]
    embedding, last = "controlnet_cond_embedding", len(HINT_CHANNELS)
    theirs = ["conv_in", *(f"blocks.{i}" for i in range(last - 1)), "conv_out"]
    ours = [*(f"convs.{i}" for i in range(last)), "conv_out"]
    hint = [
        Row(f"hint.{name}", f"input_hint_block.{2 * i}", f"{embedding}.{official}")
        for i, (name, official) in enumerate(zip(ours, theirs, strict=True))
    ]
    zero = [
        Row(f"zero.{i}", f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}")
        for i in range(len(skip_channels(config)))
    ]
    middle = Row("zero_mid", "middle_block_out.0", "controlnet_mid_block")
    return names.flat([*shared, *hint, *zero, middle])
