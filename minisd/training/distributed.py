"""Train one model with several processes. torchrun starts the processes.

torchrun --nproc-per-node 2 -m minisd train vae

torchrun also gives each process a number, the rank. The first rank is 0.

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

    Only the process of rank 0 writes files. After a barrier, the other processes can read them.
    """
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_initialized():
        on_cuda = torch.cuda.is_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    if dist.is_initialized():
        dist.barrier()


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process, and the world size (the number of processes).

    If there is only one process, its rank is 0 and the world size is 1.
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def shard_size(batch_size: int) -> int:
    """The number of examples that this process draws for each batch.

    batch_size: the number of examples that all processes together draw

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
    """Wrap the module, so that backward() averages the gradients over all processes."""
    _, world_size = rank_and_world_size()
    return DistributedDataParallel(module) if world_size > 1 else module


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a value over all processes. Each process passes in its own value."""
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def any_process(*flags: bool) -> list[bool]:
    """Combine the flags of all processes. A flag becomes true if one process has set it."""
    return (mean_over_processes(torch.tensor(flags, dtype=torch.float32)) > 0).tolist()


def broadcast(number: float) -> float:
    """Send the number of rank 0 to every process. Returns this number."""
    if not dist.is_initialized():
        return number
    message = torch.tensor([number], dtype=torch.float64)
    dist.broadcast(message, src=0)
    return message.item()
