"""What the lessons need beside the model: figures, questions to the student, notebooks."""

import os


def is_quick() -> bool:
    """Whether a lesson should take fewer steps and samples: MINISD_QUICK=1 in the environment."""
    return os.environ.get("MINISD_QUICK", "0") not in ("", "0")


def is_headless() -> bool:
    """Whether nobody sits before the notebook, so that no widget is of use: MINISD_HEADLESS=1."""
    return os.environ.get("MINISD_HEADLESS", "0") not in ("", "0")


def official(*names: str) -> str | None:
    """The first of these published models that `minisd download` has fetched; None: none of them.

    names: such as "sd15", "sd21"
    """
    from minisd.checkpoints.registry import local_path

    for name in names:
        try:
            local_path(name)
        except ValueError:
            continue
        return name
    return None
