"""How much memory a picture takes, and one sentence where there is too little."""

import os
from pathlib import Path

# Measured: how many full-size maps of its widest layer the VAE's decoder holds at once.
FLOATS = 3.6
CONTAINER = Path("/sys/fs/cgroup/memory.max")  # what a container may use, where there is a limit

# How torch says it: on the CPU (Linux and Windows), on CUDA and MPS, of more than can be counted.
WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "Invalid buffer size",
    "Storage size calculation overflowed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """torch raises a RuntimeError for it everywhere: on CUDA torch.OutOfMemoryError is one."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in WORDS)


def physical_memory() -> int | None:
    """In bytes, or what the container may use of it. None where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    try:
        return min(total, int(CONTAINER.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such file, or "max"
        return total


def memory_of(sd) -> int | None:
    """Of the device that the model is on. None where nobody says."""
    import torch

    if sd.device.type == "cuda":
        return torch.cuda.get_device_properties(sd.device).total_memory
    return physical_memory()


def needed(sd, width: int, height: int) -> int:
    """About how many bytes a picture takes: the weights, and the VAE decoder's largest maps.

    Those are at the picture's full size with the channels of the level before the last. All else
    comes before or after them and is smaller.
    """
    networks = (sd.text_encoder, sd.unet, sd.vae)
    weights = sum(p.numel() * p.element_size() for net in networks for p in net.parameters())
    channels = max(sd.config.vae.channels[:2])
    size = sd.vae.decoder.conv_in.weight.element_size()
    return weights + round(FLOATS * channels * width * height * size)


def check_memory(sd, width: int, height: int) -> None:
    """Raise ValueError for a picture that takes more than the whole memory."""
    refuse_above(memory_of(sd), needed(sd, width, height), width, height)


def check_memory_at_least(width: int, height: int) -> None:
    """The same before a model is loaded: 16 channels are the fewest of any decoder known."""
    refuse_above(physical_memory(), round(FLOATS * 16 * width * height * 2), width, height)


def refuse_above(limit: int | None, need: int, width: int, height: int) -> None:
    if limit is not None and need > limit:
        raise ValueError(
            f"a picture of {width} x {height} pixels needs about {gigabytes(need)} of memory, and "
            f"there are {gigabytes(limit)}: ask for a smaller one."
        )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 10e9 else f"{size / 1e9:.1f} GB"
