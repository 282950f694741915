"""A run keeps the number of threads that it began with.

The number of threads decides how sums are rounded.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minisd.training.distributed import broadcast, rank_and_world_size
from minisd.training.run_folder import last_state


@contextmanager
def threads_of(folder: Path) -> Iterator[int]:
    """Use the number of threads that the run in the folder recorded. Yields the number.

    A new run uses the number that is set in torch. A run that is resumed with another number of
    processes does the same.

    Raises ValueError if the folder's state is damaged.
    """
    own = torch.get_num_threads()
    rank, processes = rank_and_world_size()
    state, now = last_state(folder), (processes, own)
    before = (state["processes"], state["run"]["threads"]) if state else now
    threads = before[1] if state and before[0] == processes else int(broadcast(own))
    if rank == 0 and before != now:
        warnings.warn(change_message(folder, before, now), stacklevel=6)
    torch.set_num_threads(threads)  # always, because MKL may use fewer before a number is set
    try:
        yield threads
    finally:
        torch.set_num_threads(own)


def change_message(folder: Path, before: tuple[int, int], now: tuple[int, int]) -> str:
    """The warning for a run that is resumed with other numbers of processes or threads.

    before: the numbers of processes and threads at the beginning of the run
    now: the numbers of processes and threads that are set now
    """
    if before[0] == now[0]:
        return (
            f"The run in {folder} began with threads={before[1]} and keeps them, although "
            f"threads={now[1]} is set. The last digits of the result depend on that number."
        )
    return (
        f"The run in {folder} goes on with processes={now[0]}, threads={now[1]} each, and began "
        f"with processes={before[0]}, threads={before[1]}. Other processes draw other random "
        "numbers, so the result will differ."
    )
