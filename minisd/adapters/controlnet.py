"""ControlNet: a copy of the U-Net's encoder that also reads a hint, such as a picture of edges.

The outputs of the copy are added to the skip connections of the U-Net.

The copy is trained while the U-Net stays frozen. Its outputs pass through 1x1 convolutions that
begin at zero, so training starts from the unchanged model (Zhang et al. 2023, sections 3.1 and 3.2;
cldm/cldm.py).
"""

import copy
from collections.abc import Callable
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from einops import reduce, repeat
from PIL import Image
from torch import Tensor, nn

from minisd.adapters.handle import Handle, refuse_non_finite
from minisd.checkpoints import names
from minisd.checkpoints.controlnet_file import (
    DIFFERENCE,
    controlnet_rows,
    published_config,
    strip_prefix,
)
from minisd.checkpoints.controlnet_settings import (
    DEFAULT_HINT,
    HintSettings,
    read_controlnet_settings,
    settings_to_header,
)
from minisd.checkpoints.cover import cover_network, without_numbers
from minisd.checkpoints.file_kinds import refuse_other_kinds
from minisd.checkpoints.finite import refuse_damage
from minisd.checkpoints.folder import weight_files
from minisd.checkpoints.load import fill
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.registry import local_path
from minisd.checkpoints.write import write_tensors
from minisd.config import UNetConfig
from minisd.files.pictures import from_pil
from minisd.files.whole_files import written_whole
from minisd.guidance import unconditional_rows
from minisd.pipeline import StableDiffusion
from minisd.unet import Down, Mid, TimeEmbedding, UNet, skip_channels


class Hint(nn.Module):
    """Turns the hint (a picture) into a feature map with the size of the U-Net's first feature map.

    widths: the channels of the feature maps inside, such as (16, 32, 96, 256) in cldm.py. Each
        feature map is half as high and half as wide as the one before
    hint: b 3 8h 8w in [0, 1]    returns: b channels h w
    """

    def __init__(self, channels: int, widths: tuple[int, ...]):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, widths[0], 3, padding=1)])
        for width, wider in pairwise(widths):
            self.convs.append(nn.Conv2d(width, width, 3, padding=1))
            self.convs.append(nn.Conv2d(width, wider, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        x = hint
        for conv in self.convs:
            x = F.silu(conv(x))
        return self.conv_out(x)


class ControlNet(nn.Module):
    """Computes corrections for the U-Net, so that its picture follows the hint.

    x: b 4 h w    t: b    context: b m c    hint: b 3 8h 8w in [0, 1], not [-1, 1]
    returns: the corrections: one tensor for each skip connection, then one tensor for the middle
        block. They are passed to the U-Net as the argument `control`

    is_difference: whether the weights are only the difference from a U-Net's weights. If so,
        control() adds the weights of the model's U-Net
    """

    def __init__(self, config: UNetConfig, settings: HintSettings = DEFAULT_HINT):
        super().__init__()
        channels = config.channels
        last = len(channels) - 1
        self.config, self.settings, self.is_difference = config, settings, False
        self.time = TimeEmbedding(channels[0])
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.hint = Hint(channels[0], settings.widths)
        c_in = [channels[0], *channels]
        self.down = nn.ModuleList(
            Down(c_in[i], channels[i], config, config.attention[i], last=i == last)
            for i in range(len(channels))
        )
        self.mid = Mid(channels[last], config)
        self.zero = nn.ModuleList(nn.Conv2d(c, c, 1) for c in skip_channels(config))
        self.zero_mid = nn.Conv2d(channels[last], channels[last], 1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> list[Tensor]:
        if self.is_difference:
            what = "this ControlNet holds only the difference from a U-Net's weights"
            raise ValueError(f"{what}: give it to control(), which adds those weights.")
        if self.settings.channel_order == "bgr":
            hint = hint.flip(1)
        time = self.time(t)
        x = self.conv_in(x) + self.hint(hint)
        as_unet = cast(UNet, self)  # a ControlNet has all attributes that encode() reads
        x, skips = UNet.encode(as_unet, x, time, context)
        corrections = [zero(skip) for zero, skip in zip(self.zero, skips, strict=True)]
        corrections = [*corrections, self.zero_mid(x)]
        if self.settings.pools:
            corrections = [reduce(one, "b c h w -> b c 1 1", "mean") for one in corrections]
        return corrections

    @classmethod
    def load(cls, path: str | Path, config: UNetConfig | None = None) -> "ControlNet":
        """Read a ControlNet from a file.

        The file has the layout of the original or of diffusers, or save() wrote the file.

        path: the file, or the folder into which diffusers wrote the file
        config: the sizes of the ControlNet's U-Net. None: the sizes are read from the settings in
            the file's header or next to the file. If there are no settings, the sizes are those of
            SD v1 or SD v2. The width of the context shows which of the two

        Raises ValueError if the file is not a ControlNet, does not fit the config, or has an
        unknown setting.
        """
        path = local_path(path)
        files = weight_files(path) if path.is_dir() else [path]
        stored = {key: tensor for file in files for key, tensor in read_tensors(file).items()}
        refuse_other_kinds(path.name, stored, "ControlNet")
        tensors = strip_prefix(stored, path.name)
        is_difference = tensors.pop(DIFFERENCE, None) is not None
        layout = "diffusers" if "controlnet_mid_block.weight" in tensors else "original"
        stated, settings = read_controlnet_settings(files[0], layout, config)
        config = config or stated or published_config(path, tensors)
        with without_numbers():
            network = cls(config, settings)
        state = cover_network(
            tensors, network, controlnet_rows(config, settings), layout, path.name
        )
        fill(network, state, "cpu", torch.float32, path.name)
        refuse_damage(network, path.name)
        network.is_difference = is_difference
        return network.eval().requires_grad_(False)

    def save(self, path: str | Path, notes: dict[str, str] | None = None) -> None:
        """Write the ControlNet in half precision. The tensors have the names of the original.

        The header of the file holds the settings and the notes.

        notes: more facts for the header: name -> text
        """
        table = controlnet_rows(self.config, self.settings)
        state = names.to_official(self.state_dict(), table, "original")
        if self.is_difference:
            state[DIFFERENCE] = torch.ones(1)
        header = {**settings_to_header(self.config, self.settings), **(notes or {})}
        with written_whole(Path(path)) as unfinished:
            write_tensors(unfinished, state, header, torch.float16)


def control(
    sd: StableDiffusion, network: ControlNet, hint: Image.Image | Tensor, scale: float = 1.0
) -> Handle:
    """Add a ControlNet to the model, so that pictures follow the hint.

    The ControlNet stays until the returned handle is removed.

    hint: a picture or a tensor in [0, 1], in the size of the picture to draw. A PIL picture, or a
        tensor 1 3 h w, is the hint of every sample. A tensor b 3 h w has one hint for each sample.
        A pixel that is -1 in all three channels is masked (ControlNet v1.1 for inpainting)
    scale: the corrections of the ControlNet are multiplied by this number

    If several ControlNets are used at once, their corrections are added.

    Raises ValueError if the network is made for another model, if the hint is not valid, or if the
    scale is not finite. The size and the number of the hints are checked later: drawing raises
    ValueError if they do not fit the pictures.
    """
    refuse_non_finite(scale, "scale")
    needs, has = describe_widths(network.config), describe_widths(sd.config.unet)
    if needs != has:
        what = f"is for a U-Net with {needs}, but {sd.config.name} has {has}"
        raise ValueError(f"this ControlNet {what}: it is made for another model.")
    shown = (from_pil(hint) + 1) / 2 if isinstance(hint, Image.Image) else hint
    refuse_bad_hint(shown)
    shrinks, factor = 2 ** (len(network.settings.widths) - 1), sd.config.vae.factor
    if shrinks != factor:
        times = f"{shrinks} times smaller, but {sd.config.name} makes its pictures {factor} times"
        what = f"makes its hint {times} smaller"
        raise ValueError(f"this ControlNet {what}: it is made for another model.")
    network = copy.deepcopy(network)
    if network.is_difference:
        add_unet(network, sd)
    run = sd.runner(network.to(sd.device, sd.dtype))
    hook = control_hook(run, network, shown.to(sd.device, sd.dtype), scale, factor)
    return Handle([sd.unet.register_forward_pre_hook(hook, with_kwargs=True)])


def refuse_bad_hint(hint: Tensor) -> None:
    """Raise ValueError if the hint is not b 3 h w, or if a pixel has wrong values.

    The three values of a pixel must all be in [0, 1], or all be -1 (a masked pixel).
    """
    shape, values = tuple(hint.shape), ""
    good = hint.ndim == 4 and shape[1] == 3 and hint.numel() > 0
    if good:
        masked = (hint == -1).all(dim=1, keepdim=True)
        good = (masked | ((hint >= 0) & (hint <= 1))).all()
        values = f" and values from {hint.min():g} to {hint.max():g}"
    if not good:
        way = "give a tensor 1 3 h w in [0, 1]; -1 in all three channels marks a masked pixel"
        raise ValueError(f"the hint has shape {shape}{values}: {way}.")


def add_unet(network: ControlNet, sd: StableDiffusion) -> None:
    """Add the model's U-Net to a network that holds only the difference from a U-Net's weights.

    Raises ValueError if the model's U-Net has another number of input channels than the network.
    """
    own, theirs = network.state_dict(), sd.unet.state_dict()
    if own["conv_in.weight"].shape != theirs["conv_in.weight"].shape:
        needs, has = network.config.in_channels, sd.config.unet.in_channels
        what = f"is the difference from a U-Net with {needs} input channels, not {has}"
        raise ValueError(f"this ControlNet {what}: use a model with {needs} input channels.")
    shared = {name: own[name] + theirs[name].to(own[name]) for name in own if name in theirs}
    network.load_state_dict(own | shared)
    network.is_difference = False


def control_hook(
    run: Callable, network: ControlNet, hint: Tensor, scale: float, factor: int
) -> Callable:
    """A hook that runs the network and passes the network's corrections to the U-Net.

    If another ControlNet has passed corrections before, the sum of all corrections is passed on.

    run: a function that computes network(x, t, context, hint)
    hint: b 3 factor*h factor*w, for latents b 4 h w
    scale: the corrections are multiplied by this number
    """

    def hook(unet: UNet, inputs: tuple, more: dict) -> tuple[tuple, dict]:
        given = signature(unet.forward).bind(*inputs, **more)
        given.apply_defaults()
        x, t, context, before = given.args
        height, width = factor * x.shape[2], factor * x.shape[3]
        if tuple(hint.shape[2:]) != (height, width):
            both = f"has shape {tuple(hint.shape)}, but the picture is {width} x {height}"
            raise ValueError(f"the hint {both}: give a hint of the picture's size.")
        free = unconditional_rows(context) if network.settings.pools else 0
        led = len(x) - free  # this many samples, the last ones, follow the hint
        if led == 0:
            return (x, t, context, before), {}
        if led % len(hint):
            raise ValueError(f"there are {len(hint)} hints: give 1, or one for each sample.")
        hints = repeat(hint, "b c h w -> (times b) c h w", times=led // len(hint))
        latent = x[free:, : network.config.in_channels]  # an inpainting U-Net reads more
        corrections = run(latent, t[-led:], context[free:], hints)
        corrections = [F.pad(scale * one, (0, 0, 0, 0, 0, 0, free, 0)) for one in corrections]
        if before is not None:
            corrections = [a + b for a, b in zip(before, corrections, strict=True)]
        return (x, t, context, corrections), {}

    return hook


def describe_widths(config: UNetConfig) -> str:
    """A text that states the sizes which a ControlNet and its U-Net must have in common."""
    return f"the channels {config.channels} and contexts of width {config.context_dim}"
