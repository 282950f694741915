"""minisd doctor: prints facts about this machine, and says what to fix."""

import os
import sys
import timeit
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # the share of the cores that a container may use


def doctor_lines() -> list[str]:
    """Check this machine. Returns lines to print: the facts first, then what to fix."""
    import torch

    from minisd import __version__
    from minisd.config import WEIGHTS

    mini = WEIGHTS / "mini.safetensors"
    load = system_load()  # before the speed test, which causes load itself
    speed, speed16 = (measure_gigaflops(dtype) for dtype in (torch.float32, torch.bfloat16))
    facts = {
        "minisd": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()}, on {usable_cores()} cores",
        "load": "unknown" if load is None else f"{load:.1f} processes want a core",
        "float32": f"{speed:.0f} GFLOPS",
        "bfloat16": f"{speed16:.0f} GFLOPS ({bf16_units() or 'no special units'})",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "mps": "yes" if torch.backends.mps.is_available() else "none",
        "mini model": f"{mini.stat().st_size / 1e6:.0f} MB" if mini.exists() else "missing",
    }
    optional = ("openvino", "diffusers", "transformers", "huggingface_hub")
    facts |= {name: package_version(name) for name in optional}
    lines = [f"{name:16}{value}" for name, value in facts.items()]
    advice = advice_on_machine(torch.__version__, speed, mini)
    advice += advice_on_threads(torch.get_num_threads(), usable_cores(), load)
    faster = advice_on_speed(speed16 / speed, package_version("openvino"))
    return [*lines, "", *(advice or ["Nothing to fix."]), "", *faster]


def package_version(package: str) -> str:
    """The version of an optional package, or a text if the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed (optional)"


def advice_on_machine(torch_version: str, speed: float, mini: Path) -> list[str]:
    """A list with one sentence for each problem of this machine.

    speed: in 10^9 operations per second
    mini: the path of the mini's weights
    """
    advice = []
    if tuple(int(part) for part in torch_version.split(".")[:2]) < (2, 4):
        advice.append(f"torch {torch_version} is too old: run pip install -U 'torch>=2.4'.")
    if not mini.exists():
        advice.append(f"{mini} is missing: clone the repository again, with its weights folder.")
    if speed < 20:
        advice.append(f"{speed:.0f} GFLOPS is slow: close other programs, or use fewer --steps.")
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports] - it is optional
    except ImportError:
        pass
    except RuntimeError:
        advice.append("torchvision does not match torch and breaks transformers: uninstall it.")
    return advice


def bf16_units() -> str:
    """The instructions of this processor for bfloat16, or "" if it has none or does not say so."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:  # not Linux
        return ""
    return ", ".join(name for name in ("avx512_bf16", "amx_bf16") if name in words)


def advice_on_speed(gain: float, openvino: str) -> list[str]:
    """Sentences that say what makes pictures faster on this machine.

    gain: how many times as fast products of matrices are in bfloat16 as in float32
    openvino: its version, or a text that begins with "not installed"
    """
    way = "pip install openvino, then " if openvino.startswith("not") else ""
    lines = [f"Faster pictures on the CPU: {way}minisd generate --engine openvino."]
    if gain > 1.3:
        lines.append(f"16 bits are {gain:.1f} times as fast here: add --dtype bf16.")
    return [*lines, "docs/speed.md says how much faster, and how the pictures change."]


def usable_cores() -> int:
    """How many cores this process may use. A container or a batch job may allow only some cores."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    try:  # "150000 100000" in this file means 1.5 cores
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max 100000"
        return cores


def system_load() -> float | None:
    """The mean number of processes that wanted a core in the last minute. None on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def advice_on_threads(threads: int, cores: int, load: float | None) -> list[str]:
    """A list of 0 or 1 sentences: advice if the number of threads does not suit the free cores.

    If there are more threads than free cores, the threads wait for each other at every step.

    load: how many processes want a core. None: unknown
    """
    good = max(1, cores - round(load or 0))  # the cores that other processes leave free
    if threads > good:
        others = f", where {load:.1f} other processes run" if threads <= cores else ""
        return [
            f"{threads} threads are too many for {cores} cores{others}: set "
            f"OMP_NUM_THREADS={good} before Python starts. On a shared machine, see docs/setup.md."
        ]
    if threads < good // 2:
        return [f"torch uses {threads} of {good} free cores: set OMP_NUM_THREADS={good}."]
    return []


def measure_gigaflops(dtype, size: int = 1024) -> float:
    """Measure how fast this machine multiplies matrices, in 10^9 operations per second."""
    import torch

    a = torch.randn(size, size).to(dtype)
    torch.matmul(a, a)  # the first product also starts the threads
    products, seconds = timeit.Timer(lambda: torch.matmul(a, a)).autorange()
    return 2 * size**3 * products / seconds / 1e9
