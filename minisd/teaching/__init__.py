"""What the lessons need besides the model: figures, questions, puzzles and toy datasets."""

import os


def is_quick() -> bool:
    """Whether a lesson should take fewer steps and samples: MINISD_QUICK=1 in the environment."""
    return os.environ.get("MINISD_QUICK", "0") not in ("", "0")


def is_headless() -> bool:
    """Whether no person uses the notebook, so that it needs no widgets: MINISD_HEADLESS=1."""
    return os.environ.get("MINISD_HEADLESS", "0") not in ("", "0")


def official(*names: str) -> str | None:
    """The first of these published models that is on this machine. None if none is.

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
