"""A run goes on with as many threads as it began with: how sums round depends on their number."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minisd.training.parallel import from_first, place
from minisd.training.run_folder import last_state


@contextmanager
def threads_of(folder: Path) -> Iterator[int]:
    """Compute with the number of threads that the folder's run records, and give that number.

    Without a record, or with another number of processes, it is the number that is set.
    ValueError: the folder's state is damaged.
    """
    own = torch.get_num_threads()
    rank, processes = place()
    state = last_state(folder) or {}
    recorded, several = state.get("run", {}).get("threads"), state.get("processes", 1)
    threads = recorded if recorded and several == processes else int(from_first(own))
    if rank == 0 and recorded and (several, recorded) != (processes, own):
        sentence = difference(folder, (several, recorded), (processes, own))
        warnings.warn(sentence, stacklevel=4)
    torch.set_num_threads(threads)  # always: MKL may take fewer until a number is set
    try:
        yield threads
    finally:
        torch.set_num_threads(own)


def difference(folder: Path, before: tuple[int, int], now: tuple[int, int]) -> str:
    """The sentence for a run that began otherwise. before, now: processes, threads of each."""
    if before[0] == now[0]:
        return (
            f"the run in {folder} began with threads={before[1]} and so goes on, though "
            f"{now[1]} is set: the last digits of the result depend on it."
        )
    return (
        f"the run in {folder} goes on with processes={now[0]}, threads={now[1]} each, in place of "
        f"processes={before[0]}, threads={before[1]}: the last digits of the result depend on it."
    )
