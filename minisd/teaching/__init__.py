"""What the lessons need besides the model: figures, questions, puzzles and toy datasets."""

import os


def is_quick() -> bool:
    """Whether a lesson should take fewer steps and samples. MINISD_QUICK=1 asks for this."""
    return os.environ.get("MINISD_QUICK", "0") not in ("", "0")


def is_headless() -> bool:
    """Whether a program runs the notebook, so no widgets are needed. MINISD_HEADLESS=1 says so."""
    return os.environ.get("MINISD_HEADLESS", "0") not in ("", "0")


def official(*names: str) -> str | None:
    """The first of these published models that is on this machine, or None.

    names: names of `minisd download`, such as "sd15", "sd21"
    """
    from minisd.checkpoints.registry import local_path

    for name in names:
        try:
            local_path(name)
        except ValueError:
            continue
        return name
    return None
