"""What the lessons need besides the model: figures, questions and toy datasets."""

import os


def is_quick() -> bool:
    """Whether the environment has MINISD_QUICK=1. Lessons then use fewer steps and samples."""
    return os.environ.get("MINISD_QUICK", "0") not in ("", "0")


def is_headless() -> bool:
    """Whether the environment has MINISD_HEADLESS=1. Lessons then show no buttons or sliders."""
    return os.environ.get("MINISD_HEADLESS", "0") not in ("", "0")


def official(*names: str) -> str | None:
    """The first of these published models that is on this machine. None: none of them is.

    names: names that `minisd download` knows, for example "sd15", "sd21"
    """
    from minisd.checkpoints.registry import local_path

    for name in names:
        try:
            local_path(name)
        except ValueError:
            continue
        return name
    return None
