"""Use the same number of threads in all parts of a run that is stopped and resumed.

The number of threads decides in which order numbers are added. The order decides how the sums are
rounded.
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

    If the run is new, use the number that is set in torch. If the run is resumed with another
    number of processes, also use the number that is set in torch.

    Raises ValueError if the folder's state is damaged.
    """
    own = torch.get_num_threads()
    rank, processes = rank_and_world_size()
    state, now = last_state(folder), (processes, own)
    before = (state["processes"], state["run"]["threads"]) if state else now
    threads = before[1] if state and before[0] == processes else int(broadcast(own))
    if rank == 0 and before != now:
        warnings.warn(change_message(folder, before, now), stacklevel=6)
    # set the number even if it is the same, because MKL may use fewer threads until a number is set
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(own)


def change_message(folder: Path, before: tuple[int, int], now: tuple[int, int]) -> str:
    """The warning for a run that is resumed with another number of processes or threads.

    before: the number of processes and the number of threads when the run began
    now: the number of processes and the number of threads that are set now
    """
    if before[0] == now[0]:
        return (
            f"The run in {folder} began with threads={before[1]}, so it goes on with the same "
            f"number, although threads={now[1]} is set. Otherwise the result would change slightly."
        )
    return (
        f"The run in {folder} began with processes={before[0]}, threads={before[1]} each. It goes "
        f"on with processes={now[0]}, threads={now[1]} each. The result will differ, because "
        "another number of processes draws other random numbers."
    )
