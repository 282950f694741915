"""Muon, the optimizer of the hidden layers. Its updates are about equally large in all directions.

Adam scales the change of each weight separately. But the weights of a layer are a matrix, and a few
directions dominate the gradient of the matrix. So the matrix hardly changes in the other
directions. Muon takes the momentum, and replaces it by a matrix with the same singular vectors. All
singular values of the new matrix are about 1 (Jordan 2024, "Muon: an optimizer for hidden layers in
neural networks"). With Muon, the mini's autoencoder trains about five times faster (docs/mini.md).
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

# The polynomial a x + b x^3 + c x^5 that brings singular values near 1 fastest (Jordan 2024).
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values of the matrices near 1 (Newton-Schulz iteration).

    matrices: ... n m    returns: ... n m, singular values within about 0.7 ... 1.2
    """
    a, b, c = QUINTIC
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    x = x if wide else x.mT  # so that the Gram matrix is as small as possible
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """At each step, change each matrix by its orthogonalized Nesterov momentum, times the rate.

    The weight of a convolution counts as the matrix "c_out (c_in h w)". If a matrix has more rows
    than columns, its change is multiplied by sqrt(rows / columns). Then the output of the layer
    changes as much as the output of a layer with a square matrix.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)  # so that one product handles many matrices
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.flatten(1).shape].append(parameter)
            for parameters in by_shape.values():
                self.update(parameters, group)

    def update(self, parameters: list[Tensor], group: dict) -> None:
        """Change several parameters at once. As matrices, all of them must have the same shape."""
        ahead = torch.stack([self.ahead(parameter, group["momentum"]) for parameter in parameters])
        stretch = max(1, ahead.shape[1] / ahead.shape[2]) ** 0.5
        for parameter, matrix in zip(parameters, orthogonalize(ahead), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(matrix.view_as(parameter), alpha=-group["lr"] * stretch)

    def ahead(self, parameter: Tensor, keep: float) -> Tensor:
        """Update the momentum of a parameter with its gradient.

        Returns the Nesterov momentum (the momentum one step ahead), as a matrix.

        keep: the share of the old momentum that stays
        """
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None, "step() leaves out parameters without a gradient"
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - keep)
        return gradient.lerp(momentum, keep).flatten(1)


# The first layers, the last layers and the embeddings. For these, Muon makes the training worse.
AT_THE_BORDER = (
    "conv_in.weight",
    "conv_out.weight",
    "embedding.weight",
    "position_embedding",
    "vectors",  # of a new word
)


def split_for_muon(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Split the parameters into two lists: the matrices of hidden layers, and all others.

    The others are biases, norms, embeddings, and the first and last layers.
    """
    hidden, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim >= 2 and not name.endswith(AT_THE_BORDER)
        (hidden if inside else others).append(parameter)
    return hidden, others
