"""Several processes train one model: each takes a part of every batch, and gradients are averaged.

torchrun --nproc-per-node 2 -m minisd train vae

Everyone draws whatever is random for the whole batch, and takes a share of it afterwards: so the
numbers of a run do not depend on how many processes computed it.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def meet() -> None:
    """Join the other processes, if torchrun started us (it sets these variables), and wait for all.

    They wait because the first alone writes: what it wrote is there when anyone reads it.
    """
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_initialized():
        on_cuda = torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    if dist.is_initialized():
        dist.barrier()


def place() -> tuple[int, int]:
    """Which process this is, and of how many: 0 and 1 when it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(whole: Tensor) -> Tensor:
    """This process's part of what was drawn for the whole batch: b ... -> b/processes ...

    ValueError: the processes' parts would not be equal.
    """
    rank, processes = place()
    if len(whole) % processes:
        raise ValueError(
            f"a batch of {len(whole)} cannot be shared evenly by {processes} processes: "
            f"choose a multiple of {processes} as its size, or another number of processes."
        )
    return whole[rank::processes]


def averaged(own: Tensor) -> Tensor:
    """The mean of what every process has here."""
    if not dist.is_initialized():
        return own
    total = own.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def average_gradients(model: nn.Module) -> None:
    """Give every process the gradient of the whole batch, in one message."""
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        mean = averaged(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def anyone(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process."""
    return (averaged(torch.tensor(flags, dtype=torch.float32)) > 0).tolist()


def from_first(number: float) -> float:
    """The first process's number, for everyone."""
    if not dist.is_initialized():
        return number
    message = torch.tensor([number], dtype=torch.float64)
    dist.broadcast(message, src=0)
    return message.item()
