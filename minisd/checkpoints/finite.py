"""Find weights that are NaN or infinite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NOT_FINITE = "holds NaN or infinity: the file is damaged or its training failed. Get another copy."


def damaged_weight(network: nn.Module) -> str | None:
    """The name of the first weight that contains NaN or infinity. None: there is no such weight."""
    damaged = (key for key, weight in network.state_dict().items() if not is_finite(weight))
    return next(damaged, None)


def refuse_damage(network: nn.Module, name: str) -> None:
    """Raise ValueError if a weight of the network contains NaN or infinity.

    name: the network's name, for the error message
    """
    if key := damaged_weight(network):
        raise ValueError(f"{name}.{key} {NOT_FINITE}")


def explain_damage(networks: Mapping[str, nn.Module], dtype: torch.dtype) -> str:
    """Say why a model made NaN or infinity: a sentence that names the first damaged weight.

    If no weight is damaged, the sentence says what else the user can do.

    networks: name -> network    dtype: the dtype of the networks
    """
    for name, network in networks.items():
        if weight := damaged_weight(network):
            return f"The weight {name}.{weight} {NOT_FINITE}"
    if torch.finfo(dtype).bits < 32:
        return "Load the model with dtype=torch.float32."
    return "Lower cfg_scale, or check the adapters and the weights."


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor contains neither NaN nor infinity."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # torch has no aminmax for 8 bits
    lowest, highest = tensor.aminmax()  # one pass, no copy; both are NaN if any element is NaN
    return bool(lowest.isfinite() and highest.isfinite())
