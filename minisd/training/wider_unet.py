"""Train a U-Net with more input channels, for a mask and the picture around the mask, or the depth.

Stable Diffusion's inpainting and depth models were made in this way (Rombach et al. 2022, section
4.5). The first convolution gets more input channels. The weights of these channels start at zero.
Then the training goes on. minisd does not train the U-Net's decoder, so that the new file is small.
The file holds only the tensors that differ from the mini.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd.pipeline import StableDiffusion
from minisd.training.adapters import AdapterDataset, train_on
from minisd.training.loop import Hyperparameters
from minisd.unet import UNet

FROZEN = ("time", "up", "norm_out", "conv_out")  # the parts of the U-Net that are not trained


def widen(unet: UNet, in_channels: int) -> UNet:
    """A copy of the U-Net with more input channels. At first, the new channels have no effect.

    Only the encoder and the middle of the copy can be trained.
    """
    wider = UNet(replace(unet.config, in_channels=in_channels))
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    known = state["conv_in.weight"]
    zeros = known.new_zeros(known.shape[0], in_channels - known.shape[1], *known.shape[2:])
    state["conv_in.weight"] = torch.cat([known, zeros], dim=1)
    wider.load_state_dict(state)
    for name, parameter in wider.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    return wider


def train_wider(
    sd: StableDiffusion,
    unet: UNet,
    dataset: AdapterDataset,
    folder: Path,
    settings: Hyperparameters,
    batch_size: int = 16,
    seed: int = 0,
) -> UNet:
    """Train the U-Net to read the dataset's conditions as well as the latents. See train_on()."""

    def predict(x: Tensor, t: Tensor, context: Tensor, condition: Tensor) -> Tensor:
        return unet(torch.cat([x, condition], dim=1), t, context)

    return train_on(sd, unet, predict, dataset, folder, settings, batch_size, seed, unet.config)
