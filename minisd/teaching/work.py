"""Count the multiplications of a network, by kind of layer."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from minisd.attention import Attention
from minisd.checkpoints.cover import without_numbers
from minisd.config import UNetConfig
from minisd.trace import trace
from minisd.unet import UNet
from minisd.vae import SpatialAttention

LAYER_KINDS = ("convolution", "linear layers", "cross-attention", "self-attention")


def count_multiplications(network: nn.Module, *inputs: Tensor) -> dict[str, int]:
    """How many multiplications one evaluation takes. Returns kind of layer -> number.

    Works on the device "meta", where tensors have a shape but no numbers.
    """
    modules = dict(network.named_modules())
    counts: dict[str, int] = dict.fromkeys(LAYER_KINDS, 0)
    with trace(network) as made:  # the output of every module
        network(*inputs)
    for name, (out,) in made.items():  # each module ran once
        module = modules[name]
        if isinstance(module, nn.Conv2d):  # each number is a sum of c_in * k * k products
            counts["convolution"] += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            counts["linear layers"] += out.numel() * module.in_features
        elif isinstance(module, Attention):  # n x m scores, and n x m weights: d products each
            cross = name.endswith("cross")
            m = inputs[2].shape[1] if cross else out.shape[1]
            counts["cross-attention" if cross else "self-attention"] += 2 * m * out.numel()
        elif isinstance(module, SpatialAttention):
            counts["self-attention"] += 2 * out[0, 0].numel() * out.numel()
    return counts


def unet_multiplications(config: UNetConfig, channels: int, side: int) -> dict[str, int]:
    """The same for one sample of a U-Net, whose x has this many channels and places per side."""
    with without_numbers():
        network = UNet(replace(config, in_channels=channels, out_channels=channels))
        x, context = torch.empty(1, channels, side, side), torch.empty(1, 77, config.context_dim)
        return count_multiplications(network, x, torch.empty(1), context)
