"""How much memory a picture needs, and one error message if there is too little."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Measured: at its peak, the VAE's decoder holds FLOATS times as many numbers as its largest feature
# map, which has the picture's full size. If the map is large, minisd computes it in strips.
# The U-Net needs less memory, because torch's attention never stores the whole matrix of scores.
# For SD v1 at 512 x 512, the U-Net needs 171 MB, and the decoder needs 450 MB.
FLOATS = 3.6
FLOATS_IN_STRIPS = 1.8
# Measured under `ulimit -v`: even the smallest picture needs ALWAYS bytes. Memory that is freed in
# pieces of less than 32 MB stays with the process. So a picture may need 2.3 times as much memory
# as its feature maps.
ALWAYS = 150 * 10**6
SCATTERED = 2.5
# Bytes of address space that importing torch needs. With less, the process aborts.
PYTORCH = 600 * 10**6

# The files in which the processes of a container find its memory limit: cgroup v2 and v1.
CGROUPS = Path("/sys/fs/cgroup")
CONTAINER = CGROUPS / "memory.max"
CONTAINER_V1 = CGROUPS / "memory" / "memory.limit_in_bytes"
OWN_GROUPS = Path("/proc/self/cgroup")

TOO_LITTLE = "there is too little memory: close other programs"

# Words in torch's error messages when memory runs out on the CPU (Linux and Windows), on CUDA or on
# MPS, when a size overflows, or when a file cannot be mapped into memory.
OUT_OF_MEMORY_WORDS = re.compile(
    "can't allocate memory|Cannot allocate memory|not enough memory|out of memory|bad_alloc"
    "|bad allocation|ALLOC_FAILED|could not create a primitive|unable to mmap|Invalid buffer size"
    "|Storage size calculation overflowed"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or another error that caused it, means that there is no memory left.

    If memory runs out, torch raises a RuntimeError (on CUDA its subclass torch.OutOfMemoryError).
    NumPy raises a MemoryError. A call to the operating system raises an OSError.
    """
    if error is None:
        return False
    own = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    says_so = isinstance(error, RuntimeError | OSError) and OUT_OF_MEMORY_WORDS.search(str(error))
    return bool(own or says_so) or is_out_of_memory(error.__cause__)


# ---- how much memory there is ----------------------------------------------------------------


def physical_memory() -> int | None:
    """How much memory this process may use, in bytes.

    This is the memory of the machine, or a lower limit that a container or `ulimit` sets.
    None: the system does not say how much memory there is.
    """
    limits = [limit for limit, _ in limits_of_process()] + container_limits()
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def free_memory() -> int | None:
    """How many more bytes this process can get. None: the system does not say how many."""
    resident = statm_bytes(1)
    free = [limit - used for limit, used in limits_of_process()]
    free += [limit - resident for limit in container_limits()]
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except OSError:  # not Linux: take the whole memory
        total = physical_memory()
        free += [] if total is None else [total]
    return max(0, min(free)) if free else None


def check_limits() -> None:
    """Raise ValueError if the memory limit is too small to import PyTorch.

    Without this check, the process would abort.
    """
    smallest = min((limit for limit, _ in limits_of_process()), default=PYTORCH)
    if smallest < PYTORCH:
        allowed = f"this process may use {gigabytes(smallest)} of memory, less than PyTorch needs"
        raise ValueError(f"{allowed}: raise the limit, for example by `ulimit -v unlimited`.")


def limits_of_process() -> list[tuple[int, int]]:
    """The limits that `ulimit -v` and `ulimit -d` set, as pairs of limit and use, in bytes.

    The use is how many bytes of the limit this process uses already.
    """
    try:
        import resource
    except ImportError:  # Windows
        return []
    # column 0 is the address space, and column 5 is data and stack
    kinds = [(resource.RLIMIT_AS, statm_bytes(0)), (resource.RLIMIT_DATA, statm_bytes(5))]
    found = [(resource.getrlimit(kind)[0], used) for kind, used in kinds]
    return [(limit, used) for limit, used in found if limit != resource.RLIM_INFINITY]


def statm_bytes(column: int) -> int:
    """Read a column of /proc/self/statm, which says how much memory this process uses.

    Returns the number of bytes. If the system is not Linux, the result is 0.
    """
    try:
        numbers = Path("/proc/self/statm").read_text(encoding="utf-8").split()
        return int(numbers[column]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0


def container_limits() -> list[int]:
    """The memory limits, in bytes, of the control groups (cgroups) that contain this process."""
    limits = []
    for path in {CONTAINER, CONTAINER_V1, *own_group_files()}:
        with suppress(OSError, ValueError):  # no such file, or "max", which means no limit
            limits.append(int(path.read_text(encoding="utf-8")))
    return limits


def own_group_files() -> list[Path]:
    """The files that state the memory limits of this process's control groups.

    Outside a container, each control group has its own folder in /sys/fs/cgroup. The path of the
    folder is in /proc/self/cgroup. A line of this file is "0::/path" in version 2 of control
    groups, and "7:memory:/path" in version 1.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        limit = CONTAINER_V1 if controllers else CONTAINER
        group = limit.parent / path.strip("/")
        around = [group, *group.parents]
        inside = [folder for folder in around if folder.is_relative_to(limit.parent)]
        files += [folder / limit.name for folder in inside]
    return files


def device_memory(sd) -> int | None:
    """The memory of the model's device in bytes. None: the system does not say how much."""
    import torch

    if sd.device.type == "cuda":
        return torch.cuda.get_device_properties(sd.device).total_memory
    return physical_memory()


def free_device_memory(sd) -> int | None:
    """The free memory of the model's device in bytes. None: the system does not say how much."""
    import torch

    if sd.device.type == "cuda":
        unused = torch.cuda.memory_reserved(sd.device) - torch.cuda.memory_allocated(sd.device)
        return torch.cuda.mem_get_info(sd.device)[0] + unused
    return free_memory()


# ---- how much memory a picture needs ---------------------------------------------------------


def bytes_needed(sd, width: int, height: int) -> int:
    """About how many bytes a picture needs: the weights, and the decoder's largest feature maps.

    An engine has its own copy of the weights.

    The other feature maps are not counted. They are smaller, and they are never in memory together
    with the largest feature maps.
    """
    networks = (sd.text_encoder, sd.unet, sd.vae)
    weights = sum(p.numel() * p.element_size() for net in networks for p in net.parameters())
    copies = 1 if sd.engine is None else 2
    return copies * weights + bytes_of_maps(sd, width, height)


def bytes_of_maps(sd, width: int, height: int) -> int:
    """About how many bytes the largest feature maps of the VAE's decoder need.

    These feature maps have the picture's full size. They have as many channels as the decoder has
    before its last level.
    """
    from minisd import strips

    numbers = max(sd.config.vae.channels[:2]) * width * height
    size = next(sd.vae.parameters(), sd.unet.conv_in.weight).element_size()
    in_strips = sd.engine is None and numbers > strips.LARGE
    return round((FLOATS_IN_STRIPS if in_strips else FLOATS) * numbers * size)


def check_memory(sd, width: int, height: int) -> None:
    """Raise ValueError if a picture of this size needs more memory than the model's device has."""
    limit, need = device_memory(sd), bytes_needed(sd, width, height)
    if limit is not None and need > limit:
        weights = need - bytes_of_maps(sd, width, height)
        room = room_for_maps(free_device_memory(sd), limit - weights)
        smaller = smaller_size(sd, width, height, room)
        raise ValueError(
            f"{too_large_message(limit, need, width, height)}: {memory_advice(sd, smaller)}."
        )


def check_memory_at_least(width: int, height: int) -> None:
    """Raise ValueError if a picture of this size needs too much memory with every model.

    This check is made before a model is loaded, so the model's sizes are not known yet. The check
    assumes a decoder with 16 channels. No known decoder has fewer channels.
    """
    limit, need = physical_memory(), round(FLOATS_IN_STRIPS * 16 * width * height * 2)
    if limit is not None and need > limit:
        raise ValueError(f"{too_large_message(limit, need, width, height)}: draw a smaller one.")


def too_large_message(limit: int, need: int, width: int, height: int) -> str:
    """The message about a size that needs too much memory.

    limit: how many bytes there are
    need: how many bytes the picture needs
    """
    takes = f"a picture of {width} x {height} pixels needs about {gigabytes(need)} of memory"
    return f"{takes}, but there are only {gigabytes(limit)}"


def smaller_size(sd, width: int, height: int, room: float) -> tuple[int, int] | None:
    """Find a smaller size with the same proportions: the largest that fits into the memory.

    A size fits if its feature maps need at most `room` bytes. None: no size fits.
    """
    from minisd.files.pictures import size_step

    step = size_step(sd.config)
    for units in range(max(width, height) // step - 1, 0, -1):
        share = units * step / max(width, height)
        wide, tall = (max(step, round(side * share / step) * step) for side in (width, height))
        if (wide, tall) != (width, height) and bytes_of_maps(sd, wide, tall) <= room:
            return wide, tall
    return None


def room_for_maps(free: int | None, most: float) -> float:
    """How many bytes the decoder's feature maps may take.

    free: the number of free bytes. None: unknown
    most: the largest number that may be returned
    """
    return most if free is None else min(most, (free - ALWAYS) / SCATTERED)


def memory_advice(sd, size: tuple[int, int] | None) -> str:
    """The part of an error message that says what the user can do.

    size: width and height that fit into the memory. None: no size fits
    """
    if size is None:
        return f"use a smaller model: not even the smallest picture of {sd.config.name} fits"
    return f"ask for a smaller picture, such as --width {size[0]} --height {size[1]}"


@contextmanager
def enough_memory(sd, width: int, height: int) -> Iterator[None]:
    """Raise ValueError if memory runs out in a `with` block. The message names a size that fits."""
    free = free_device_memory(sd)
    try:
        yield
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        # This size needs more memory than expected, so propose a size with at most half the pixels.
        room = room_for_maps(free, bytes_of_maps(sd, width, height) / 2)
        advice = memory_advice(sd, smaller_size(sd, width, height, room))
        raise ValueError(f"{TOO_LITTLE}, or {advice}.") from error


def gigabytes(size: int) -> str:
    """A number of bytes as text, in GB."""
    return f"{size / 1e9:,.0f} GB" if size >= 10e9 else f"{size / 1e9:.1f} GB"
