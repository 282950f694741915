"""Give memory back to the system earlier than it would go by itself (Linux only)."""

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

MAPPINGS = Path("/proc/self/maps")  # "7f00-7f08 r--p 00000000 fe:00 1234 /path" per mapping
DONTNEED = 4  # MADV_DONTNEED
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
MADVISE, MALLOC_TRIM = (getattr(LIBC, name, None) for name in ("madvise", "malloc_trim"))


def release_pages(tensor: Tensor, files: list[tuple[int, int]]) -> None:
    """Release the pages of a file that a mapped tensor has read.

    files: mapped_files(), read after the tensor was mapped

    The tensor stays usable: the system reads the file again when somebody uses the tensor. A tensor
    that is not mapped to a file is left alone. Nobody may have written into the tensor.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    inside = any(first <= start < end <= last for first, last in files)
    if inside and MADVISE is not None:
        MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED)


def mapped_files() -> list[tuple[int, int]]:
    """The first and the last address of each part of memory that is mapped to a file.

    The list is empty if the system does not say it.
    """
    if not MAPPINGS.exists():
        return []
    lines = (line.split(maxsplit=5) for line in MAPPINGS.read_text(encoding="utf-8").splitlines())
    places = [line[0].split("-") for line in lines if len(line) == 6 and line[4] != "0"]
    return [(int(first, 16), int(last, 16)) for first, last in places]


def return_freed_memory() -> None:
    """Return the memory of deleted tensors. Otherwise, the C library keeps it for new ones."""
    if MALLOC_TRIM is not None:
        MALLOC_TRIM(0)
