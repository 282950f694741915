"""What a run depends on, and what of it should be mended."""

import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def examine() -> str:
    """What a run depends on, a line each, and below it what should be mended."""
    import torch

    from minisd import __version__
    from minisd.config import WEIGHTS

    mini = WEIGHTS / "mini.safetensors"
    speed = gigaflops(torch.float32)
    facts = {
        "minisd": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "float32": f"{speed:.0f} GFLOPS",
        "bfloat16": f"{gigaflops(torch.bfloat16):.0f} GFLOPS",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "mps": "yes" if torch.backends.mps.is_available() else "none",
        "mini model": f"{mini.stat().st_size / 1e6:.0f} MB" if mini.exists() else "missing",
    }
    facts |= {name: installed(name) for name in ("diffusers", "transformers", "huggingface_hub")}
    lines = [f"{name:16}{value}" for name, value in facts.items()]
    advice = to_mend(torch.__version__, speed, mini)
    return "\n".join([*lines, "", *(advice or ["Nothing to mend."])])


def installed(package: str) -> str:
    """The version of an optional package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed (optional)"


def to_mend(torch_version: str, speed: float, mini: Path) -> list[str]:
    """One sentence for each thing that stands in the way."""
    import torch

    advice = []
    if tuple(int(part) for part in torch_version.split(".")[:2]) < (2, 4):
        advice.append(f"torch {torch_version} is too old: pip install -U 'torch>=2.4'.")
    if not mini.exists():
        advice.append(f"{mini} is missing: clone the repository anew, with its weights folder.")
    if torch.get_num_threads() < (os.cpu_count() or 1) // 2:
        advice.append("torch uses few of the cores: unset OMP_NUM_THREADS.")
    if speed < 20:
        advice.append(f"{speed:.0f} GFLOPS is slow: close other programs, or lower --steps.")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        advice.append("torchvision does not match torch and breaks transformers: uninstall it.")
    return advice


def gigaflops(dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """How fast this machine multiplies matrices, in 10^9 operations a second."""
    import torch

    a = torch.randn(size, size).to(dtype)
    a @ a  # the first product also starts the threads
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        a @ a
        products += 1
    return 2 * size**3 * products / (time.perf_counter() - began) / 1e9
