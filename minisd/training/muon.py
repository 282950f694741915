"""The optimizer of the hidden layers: every update turns its matrix by the same amount.

Adam scales each number by itself; a layer is a matrix, and the few directions that dominate its
gradient would drown the rest. Muon levels them: it replaces the momentum by a matrix of the same
directions, whose singular values are all about 1 (Jordan 2024, "Muon: an optimizer for hidden
layers in neural networks"). The mini's autoencoder learns some five times faster with it
(docs/mini.md).
"""

import torch
from torch import Tensor, nn

# The quintic a x + b x^3 + c x^5 that drives singular values towards 1 fastest (Jordan 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)


def levelled(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix with all its singular values brought near 1 (Newton-Schulz iteration).

    matrix: n m    returns: n m, singular values within about 0.7 ... 1.2
    """
    a, b, c = QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    x = x.T if x.shape[0] > x.shape[1] else x  # the smaller Gram matrix
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov's), levelled, times the rate.

    A convolution counts as the matrix "c_out (c_in h w)". A matrix with more rows than columns
    gets a larger step, sqrt(rows / columns) times, so that its output changes as much as a
    square one's.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
        stretch = max(1, ahead.shape[0] / ahead.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(levelled(ahead).view_as(parameter), alpha=-group["lr"] * stretch)


# Layers at the border to numbers with a meaning of their own, where levelling does harm.
AT_THE_BORDER = ("conv_in.weight", "conv_out.weight", "embedding.weight", "position_embedding")


def split_for_muon(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices of hidden layers, and all else (biases, norms, embeddings, first, last)."""
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim >= 2 and not name.endswith(AT_THE_BORDER)
        (hidden if inside else others).append(parameter)
    return hidden, others
