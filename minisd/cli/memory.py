"""How much memory a picture takes, and one sentence where there is too little."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Measured: how many full-size maps of its widest layer the VAE's decoder holds at once. The U-Net
# takes less: torch's attention keeps no map of every place by every other (SD v1 at 512 x 512
# takes 171 MB there, and 976 MB in the decoder).
FLOATS = 3.6
# Measured under `ulimit -v`: the smallest picture takes this much, and what is freed in pieces of
# less than 32 MB stays with the process, so that a picture may take up to 2.3 times its maps.
ALWAYS = 150 * 10**6
SCATTERED = 2.5
PYTORCH = 600 * 10**6  # bytes of address space to import it; with less it aborts

# What a container may use, where there is a limit: of cgroup v2 and v1, each seen from inside.
CGROUPS = Path("/sys/fs/cgroup")
CONTAINER = CGROUPS / "memory.max"
CONTAINER_V1 = CGROUPS / "memory" / "memory.limit_in_bytes"
OWN_GROUPS = Path("/proc/self/cgroup")

TOO_LITTLE = "there is too little memory: close other programs"

# How torch says it: on the CPU (Linux and Windows), on CUDA and MPS, of more than can be counted,
# of a file that is mapped.
OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "ALLOC_FAILED",
    "could not create a primitive",
    "unable to mmap",
    "Invalid buffer size",
    "Storage size calculation overflowed",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that it was made of, says that there is no memory left.

    torch raises a RuntimeError for it everywhere: on CUDA torch.OutOfMemoryError is one. NumPy's is
    a MemoryError, the system's an OSError.
    """
    if error is None:
        return False
    own = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    said = isinstance(error, RuntimeError | OSError) and any(
        word in str(error) for word in OUT_OF_MEMORY_WORDS
    )
    return own or said or is_out_of_memory(error.__cause__)


# ---- how much there is -----------------------------------------------------------------------


def physical_memory() -> int | None:
    """In bytes, or what the container or `ulimit` lets this process use of it.

    None where the system does not say.
    """
    limits = [limit for limit, _ in limits_of_process()] + container_limits()
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def free_memory() -> int | None:
    """How many bytes this process can still get. None where the system does not say."""
    resident = statm_bytes(1)
    free = [limit - used for limit, used in limits_of_process()]
    free += [limit - resident for limit in container_limits()]
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except OSError:  # not Linux: what there is in all
        total = physical_memory()
        free += [] if total is None else [total]
    return max(0, min(free)) if free else None


def check_limits() -> None:
    """Raise ValueError where PyTorch itself would not even start: it ends the process then."""
    smallest = min((limit for limit, _ in limits_of_process()), default=PYTORCH)
    if smallest < PYTORCH:
        allowed = f"this process may use {gigabytes(smallest)} of memory, less than PyTorch needs"
        raise ValueError(f"{allowed}: raise the limit, such as by `ulimit -v unlimited`.")


def limits_of_process() -> list[tuple[int, int]]:
    """What `ulimit -v` and `ulimit -d` allow this process, and what it uses of each."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    soft = [resource.getrlimit(one)[0] for one in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    found = zip(soft, (statm_bytes(0), statm_bytes(5)))  # address space, data and stack
    return [(limit, used) for limit, used in found if limit != resource.RLIM_INFINITY]


def statm_bytes(column: int) -> int:
    """A column of Linux's /proc/self/statm in bytes; 0 elsewhere."""
    try:
        numbers = Path("/proc/self/statm").read_text(encoding="utf-8").split()
        return int(numbers[column]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0


def container_limits() -> list[int]:
    """Of this process's control group and all around it. A group without a limit says "max"."""
    limits = []
    for path in {CONTAINER, CONTAINER_V1, *own_group_files()}:
        try:
            limits.append(int(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return limits


def own_group_files() -> list[Path]:
    """Where a limit may stand if the process sees its group from outside, as without a container.

    A line of v2 is "0::/path", of v1 "7:memory:/path".
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
    """Of the device that the model is on. None where nobody says."""
    import torch

    if sd.device.type == "cuda":
        return torch.cuda.get_device_properties(sd.device).total_memory
    return physical_memory()


def free_device_memory(sd) -> int | None:
    """What is left of it. None where nobody says."""
    import torch

    if sd.device.type == "cuda":
        unused = torch.cuda.memory_reserved(sd.device) - torch.cuda.memory_allocated(sd.device)
        return torch.cuda.mem_get_info(sd.device)[0] + unused
    return free_memory()


# ---- how much a picture takes ----------------------------------------------------------------


def bytes_needed(sd, width: int, height: int) -> int:
    """About how many bytes a picture takes: the weights, and the VAE decoder's largest maps.

    Those are at the picture's full size with the channels of the level before the last. All else
    comes before or after them and is smaller.
    """
    networks = (sd.text_encoder, sd.unet, sd.vae)
    weights = sum(p.numel() * p.element_size() for net in networks for p in net.parameters())
    return weights + bytes_of_maps(sd, width, height)


def bytes_of_maps(sd, width: int, height: int) -> int:
    """The part of it that grows with the picture."""
    channels = max(sd.config.vae.channels[:2])
    size = next(sd.vae.parameters(), sd.unet.conv_in.weight).element_size()
    return round(FLOATS * channels * width * height * size)


def check_memory(sd, width: int, height: int) -> None:
    """Raise ValueError for a picture that takes more than the whole memory."""
    limit, need = device_memory(sd), bytes_needed(sd, width, height)
    if limit is not None and need > limit:
        weights = need - bytes_of_maps(sd, width, height)
        room = room_for_maps(free_device_memory(sd), limit - weights)
        smaller = smaller_size(sd, width, height, room)
        raise ValueError(
            f"{too_large_message(limit, need, width, height)}: {memory_advice(sd, smaller)}."
        )


def check_memory_at_least(width: int, height: int) -> None:
    """The same before a model is loaded: 16 channels are the fewest of any decoder known."""
    limit, need = physical_memory(), round(FLOATS * 16 * width * height * 2)
    if limit is not None and need > limit:
        raise ValueError(f"{too_large_message(limit, need, width, height)}: ask for a smaller one.")


def too_large_message(limit: int, need: int, width: int, height: int) -> str:
    takes = f"a picture of {width} x {height} pixels needs about {gigabytes(need)} of memory"
    return f"{takes}, and there are {gigabytes(limit)}"


def smaller_size(sd, width: int, height: int, room: float) -> tuple[int, int] | None:
    """The largest size of the same shape whose maps fit into `room` bytes. None: not even one."""
    from minisd.files.pictures import size_step

    step = size_step(sd.config)
    for units in range(max(width, height) // step - 1, 0, -1):
        share = units * step / max(width, height)
        size = tuple(max(step, round(side * share / step) * step) for side in (width, height))
        if size != (width, height) and bytes_of_maps(sd, *size) <= room:
            return size
    return None


def room_for_maps(free: int | None, most: float) -> float:
    """How large the maps may be. free: bytes, if they are known    most: that they may be anyway"""
    return most if free is None else min(most, (free - ALWAYS) / SCATTERED)


def memory_advice(sd, size: tuple[int, int] | None) -> str:
    """What to do, in words. size: one that fits"""
    if size is None:
        return f"take a smaller model: not even the smallest picture of {sd.config.name} fits"
    return f"ask for a smaller picture, such as --width {size[0]} --height {size[1]}"


@contextmanager
def enough_memory(sd, width: int, height: int) -> Iterator[None]:
    """Turn a lack of memory while a picture is drawn into one ValueError, with a size that fits."""
    free = free_device_memory(sd)
    try:
        yield
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        # The size that failed takes more than it should: at most half of its pixels are proposed.
        room = room_for_maps(free, bytes_of_maps(sd, width, height) / 2)
        way = memory_advice(sd, smaller_size(sd, width, height, room))
        raise ValueError(f"{TOO_LITTLE}, or {way}.") from error


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 10e9 else f"{size / 1e9:.1f} GB"
