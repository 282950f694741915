"""A diffusers folder's scheduler_config.json: how noise grows, and how the samplers walk.

What diffusers draws with the folder is right. Its pipelines change some settings before they use
them, and so do we. A setting that only another class knows holds once a sampler of that class is
chosen, as with `X.from_config(pipe.scheduler.config)`. Settings that the file leaves out keep the
default of the file's own class then, where from_config takes that of the other class.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from minisd.checkpoints.known_settings import equal_values, settings_tables
from minisd.config import ModelConfig, ScheduleConfig
from minisd.files.json_files import shorten

SCHEDULER_FILE = "scheduler/scheduler_config.json"
SCHEDULER_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SAMPLER_OF = SCHEDULER_TABLES[
    "samplers"
]  # the scheduler's class -> the sampler that walks as it does
CLASS_OF = {sampler: name for name, sampler in SAMPLER_OF.items()}
PREDICTIONS = SCHEDULER_TABLES["predictions"]
SCHEDULER_SETTINGS = {name: settings_tables()[f"{SCHEDULER_FILE} ({name})"] for name in SAMPLER_OF}


def sampler_and_schedule(
    stored: dict[str, object], index: dict[str, object], channels: int
) -> tuple[str, ScheduleConfig]:
    """The default sampler and the schedule of a folder.

    index: its model_index.json, empty where there is none
    channels: the U-Net's, which decide the pipeline that diffusers opens the folder with
    Raises ValueError for a class or a setting that minisd lacks, by its name.
    """
    name = scheduler_class(stored, index)
    # what the pipeline for a U-Net of so many channels sets in place of what the file says
    stored = stored | SCHEDULER_TABLES["pipelines"].get(str(channels), {})
    said = SCHEDULER_SETTINGS[name].read(stored)
    known = {setting: stored[setting] for setting in said if setting in stored}
    refuse_unknown_values(known, f"in its {SCHEDULER_FILE}")
    if known.get("final_sigmas_type") == "sigma_min":
        refuse_unknown_values(
            known, f"with final_sigmas_type = 'sigma_min' in its {SCHEDULER_FILE}"
        )
    betas = said["trained_betas"]
    schedule = ScheduleConfig(
        **{field: said[setting] for setting, field in SCHEDULER_TABLES["fields"].items()},
        prediction=PREDICTIONS[said["prediction_type"]],
        zero_terminal_snr=said.get("rescale_betas_zero_snr") is True,
        betas=None if betas is None else tuple(betas),
        spacing=stored.get("timestep_spacing", "default"),
        set_alpha_to_one=stored.get("set_alpha_to_one"),
        final=stored.get("final_sigmas_type"),
        karras=said["use_karras_sigmas"] is True,
    )
    return SAMPLER_OF[name], schedule


def scheduler_class(stored: Mapping[str, object], index: Mapping[str, object]) -> str:
    """The scheduler's class, by its own file or else by the folder's index."""
    listed = index.get("scheduler")
    listed = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
    name = stored.get("_class_name", listed)
    if name == "LCMScheduler":
        lcm = "is an LCM model, which needs its own sampler, and minisd does not have it yet"
        raise ValueError(f"{lcm}: load the model that it was made from")
    if str(name) not in SAMPLER_OF:
        short = shorten(name).strip("'")
        has = f"has the scheduler {short}, which minisd lacks" if name else "names no scheduler"
        classes = ", ".join(SAMPLER_OF)
        raise ValueError(f"{has}: write one of {classes} as _class_name into its {SCHEDULER_FILE}")
    if listed not in (None, name):
        both = f"{name} in its {SCHEDULER_FILE}, which is used, and {shorten(listed)} in its"
        warnings.warn(f"This folder names two schedulers: {both} model_index.json.", stacklevel=2)
    return name


def refuse_unknown_values(said: Mapping[str, object], where: str) -> None:
    """Raise ValueError for a value that minisd lacks, by its name. where: which of KNOWN."""
    for name, known in SCHEDULER_TABLES[where].items():
        if name in said and not any(equal_values(said[name], value) for value in known):
            value, choice = shorten(said[name]), " or ".join(map(repr, known))
            has = f"has {name} = {value} {where}"
            raise ValueError(f"{has}: minisd lacks {value}, it knows {choice}")


def check_schedule(schedule: ScheduleConfig) -> None:
    """Raise ValueError for a schedule that no walk can be computed with."""
    betas = (schedule.beta_start, schedule.beta_end) if schedule.betas is None else schedule.betas
    if not all(0 < beta < 1 for beta in betas):
        raise ValueError("has a beta that does not lie between 0 and 1: get another copy")
    if schedule.betas is not None and len(betas) != schedule.timesteps:
        count = f"{len(betas)} betas for {schedule.timesteps} timesteps"
        raise ValueError(f"has {count}: get another copy")
    refuse_unknown_values(asdict(schedule), "in its header")


def scheduler_json(config: ModelConfig) -> dict[str, object]:
    """The settings that make diffusers walk as `config` does. Undoes sampler_and_schedule.

    What the model does not decide stays absent; the walks of the original code are written as the
    published folders have them.
    """
    schedule, name = config.schedule, CLASS_OF[config.sampler]
    if schedule.zero_terminal_snr and "rescale_betas_zero_snr" in SCHEDULER_SETTINGS[name].fixed:
        name = CLASS_OF["ddim"]  # that class cannot say it
    spacing, clean = schedule.spacing, schedule.set_alpha_to_one
    if spacing is None:  # the walks of the original code
        trailing = schedule.zero_terminal_snr and config.sampler in ("ddim", "ddpm")
        spacing, clean = "trailing" if trailing else None, bool(clean)
    chosen = {
        "timestep_spacing": None if spacing == "default" else spacing,
        "set_alpha_to_one": clean,
        "final_sigmas_type": schedule.final,
        "use_karras_sigmas": schedule.karras or None,
    }
    return {
        "_class_name": name,
        **{
            setting: getattr(schedule, field)
            for setting, field in SCHEDULER_TABLES["fields"].items()
        },
        "clip_sample": False,
        "prediction_type": {v: k for k, v in PREDICTIONS.items()}[schedule.prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "skip_prk_steps": True,
        "trained_betas": schedule.betas,
        **{name: value for name, value in chosen.items() if value is not None},
    }
