"""Train one model with several processes. torchrun starts the processes, and gives each a rank.

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
    """Wait until every process has called barrier(). The first call connects the processes.

    Only rank 0 writes files. After a barrier, the other processes can read these files.
    """
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_initialized():
        on_cuda = torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    if dist.is_initialized():
        dist.barrier()


def rank_and_world_size() -> tuple[int, int]:
    """The index of this process, from 0, and how many processes there are.

    If there is only one process, the two numbers are 0 and 1.
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard_size(batch_size: int) -> int:
    """The number of examples in a batch that this process draws.

    Raises ValueError if the batch cannot be divided into equal parts, one for each process.
    """
    _, world_size = rank_and_world_size()
    if batch_size % world_size:
        raise ValueError(
            f"{world_size} processes cannot share a batch of {batch_size} evenly. Choose a batch "
            f"size that is a multiple of {world_size}, or another number of processes."
        )
    return batch_size // world_size


def share_gradients(module: nn.Module) -> nn.Module:
    """Wrap the module, so that backward() averages the gradients of several processes."""
    _, world_size = rank_and_world_size()
    return DistributedDataParallel(module) if world_size > 1 else module


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of the values that the processes pass in."""
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_process(*flags: bool) -> list[bool]:
    """A list that states for each flag whether the flag is set in at least one process."""
    return (mean_over_processes(torch.tensor(flags, dtype=torch.float32)) > 0).tolist()


def broadcast(number: float) -> float:
    """Give every process the number that rank 0 passes in."""
    if not dist.is_initialized():
        return number
    message = torch.tensor([number], dtype=torch.float64)
    dist.broadcast(message, src=0)
    return message.item()
