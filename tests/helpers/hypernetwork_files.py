"""Small networks as in a hypernetwork file of the AUTOMATIC1111 web UI."""

from itertools import pairwise

import torch


def small_network(width, structure, norm, dropout, seed):
    """A state dict as the web UI numbers it: activation, norm and dropout count as layers, too."""
    generator = torch.Generator().manual_seed(seed)
    state, number = {}, 0
    for i, (a, b) in enumerate(pairwise(structure)):
        c_in, c_out = int(width * a), int(width * b)
        state[f"linear.{number}.weight"] = 0.3 * torch.randn(c_out, c_in, generator=generator)
        state[f"linear.{number}.bias"] = 0.3 * torch.randn(c_out, generator=generator)
        number += 1 + (i < len(structure) - 2)  # there is no activation after the last layer
        if norm:
            state[f"linear.{number}.weight"] = 1 + 0.3 * torch.randn(c_out, generator=generator)
            state[f"linear.{number}.bias"] = 0.3 * torch.randn(c_out, generator=generator)
            number += 1
        number += dropout and i < len(structure) - 2
    return state
