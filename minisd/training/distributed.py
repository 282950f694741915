"""Train one model with several processes. torchrun starts them and numbers them by rank.

torchrun --nproc-per-node 2 -m minisd train vae

Each process draws its own part of every batch. torch's DistributedDataParallel averages the
gradients, so all processes take the same step.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def barrier() -> None:
    """Wait until every process is here. The first call connects the processes of torchrun.

    Only rank 0 writes files: after a barrier the others can read what it wrote.
    """
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_initialized():
        on_cuda = torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    if dist.is_initialized():
        dist.barrier()


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process, and how many there are: 0 and 1 for a process alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard_size(batch_size: int) -> int:
    """How many examples of a batch this process draws.

    Raises ValueError if the processes cannot have equal parts.
    """
    _, world_size = rank_and_world_size()
    if batch_size % world_size:
        raise ValueError(
            f"{world_size} processes cannot share a batch of {batch_size} evenly. Choose a batch "
            f"size that is a multiple of {world_size}, or another number of processes."
        )
    return batch_size // world_size


def share_gradients(module: nn.Module) -> nn.Module:
    """The module, wrapped so that backward() averages the gradients of several processes."""
    _, world_size = rank_and_world_size()
    return DistributedDataParallel(module) if world_size > 1 else module


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of what every process passes in."""
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process."""
    return (mean_over_processes(torch.tensor(flags, dtype=torch.float32)) > 0).tolist()


def broadcast(number: float) -> float:
    """Give every process the number that rank 0 passes in."""
    if not dist.is_initialized():
        return number
    message = torch.tensor([number], dtype=torch.float64)
    dist.broadcast(message, src=0)
    return message.item()
