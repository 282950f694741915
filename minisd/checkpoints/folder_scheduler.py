"""Read and write a diffusers folder's scheduler_config.json: the noise schedule and the sampler.

With the same folder, minisd draws the same pictures as diffusers. The pipelines of diffusers change
some settings before they use the settings, and minisd makes the same changes.

The file states a scheduler class, for example PNDMScheduler. The file may also contain settings
that only another class has, for example EulerDiscreteScheduler. These settings take effect if the
user chooses the sampler of the other class (Euler). In diffusers, the user does this with
`EulerDiscreteScheduler.from_config(pipe.scheduler.config)`. There is one difference. If the file
leaves out a setting, minisd uses the default of the class in the file (PNDMScheduler). diffusers
uses the default of the class that the user chose (EulerDiscreteScheduler).
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minisd.checkpoints.known_settings import equal_values, settings_tables
from minisd.config import ModelConfig, ScheduleConfig
from minisd.files.json_files import shorten

SCHEDULER_FILE = "scheduler/scheduler_config.json"
SCHEDULER_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SAMPLER_OF = SCHEDULER_TABLES["samplers"]  # diffusers' scheduler class -> minisd's sampler
CLASS_OF = {sampler: name for name, sampler in SAMPLER_OF.items()}
PREDICTIONS = SCHEDULER_TABLES["predictions"]
SCHEDULER_SETTINGS = {name: settings_tables()[f"{SCHEDULER_FILE} ({name})"] for name in SAMPLER_OF}


def sampler_and_schedule(
    stored: dict[str, Any], index: dict[str, Any], channels: int
) -> tuple[str, ScheduleConfig]:
    """Read the default sampler and the noise schedule of a folder.

    stored: the content of the folder's scheduler_config.json
    index: the content of the folder's model_index.json. {}: there is no such file
    channels: the number of channels of the U-Net's input. It shows which pipeline class of
        diffusers opens the folder

    Raises ValueError if minisd does not know the scheduler class, a setting or the value of a
    setting.
    """
    name = scheduler_class(stored, index)
    # diffusers' pipeline for a U-Net with this number of channels overrides these settings
    stored = stored | SCHEDULER_TABLES["pipelines"].get(str(channels), {})
    settings: dict[str, Any] = SCHEDULER_SETTINGS[name].read(stored)
    known = {setting: stored[setting] for setting in settings if setting in stored}
    refuse_unknown_values(known, f"in its {SCHEDULER_FILE}")
    if known.get("final_sigmas_type") == "sigma_min":
        where = f"with final_sigmas_type = 'sigma_min' in its {SCHEDULER_FILE}"
        refuse_unknown_values(known, where)
    betas = settings["trained_betas"]
    schedule = ScheduleConfig(
        **{field: settings[setting] for setting, field in SCHEDULER_TABLES["fields"].items()},
        prediction=PREDICTIONS[settings["prediction_type"]],
        zero_terminal_snr=settings.get("rescale_betas_zero_snr") is True,
        betas=None if betas is None else tuple(betas),
        spacing=stored.get("timestep_spacing", "default"),
        set_alpha_to_one=stored.get("set_alpha_to_one"),
        final=stored.get("final_sigmas_type"),
        karras=settings["use_karras_sigmas"] is True,
    )
    return SAMPLER_OF[name], schedule


def scheduler_class(stored: Mapping[str, Any], index: Mapping[str, Any]) -> str:
    """The name of the folder's scheduler class.

    If scheduler_config.json states no class, the class in model_index.json is used.

    stored: the content of scheduler_config.json
    index: the content of model_index.json. {}: there is no such file

    Raises ValueError if neither file states a class, or if minisd does not have the class.
    """
    listed = index.get("scheduler")
    listed = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
    name = stored.get("_class_name", listed)
    if str(name) not in SAMPLER_OF:
        short = shorten(name).strip("'")
        unknown = f"has the scheduler {short}, which minisd does not have"
        has = unknown if name else "names no scheduler"
        to_do = f"set _class_name in the folder's {SCHEDULER_FILE} to one of these"
        raise ValueError(f"{has}: {to_do}: {', '.join(SAMPLER_OF)}")
    if listed not in (None, name):
        both = f"{name} in its {SCHEDULER_FILE} and {shorten(listed)} in its model_index.json"
        what = f"This folder names two schedulers: {both}. minisd uses the first."
        warnings.warn(what, stacklevel=2)
    return name


def refuse_unknown_values(settings: Mapping[str, object], where: str) -> None:
    """Raise ValueError if a setting has a value that minisd does not know.

    settings: name of a setting -> value
    where: where the settings are, such as "in its header". The error contains this text. The text
        is also a key in folder_scheduler.json. Under this key are the values that minisd knows
    """
    for name, known in SCHEDULER_TABLES[where].items():
        if name in settings and not any(equal_values(settings[name], value) for value in known):
            has = f"has {name} = {shorten(settings[name])} {where}"
            raise ValueError(f"{has}: minisd knows only {' or '.join(map(repr, known))}")


def check_schedule(schedule: ScheduleConfig) -> None:
    """Raise ValueError if no sampler can use the schedule."""
    betas = (schedule.beta_start, schedule.beta_end) if schedule.betas is None else schedule.betas
    if not all(0 < beta < 1 for beta in betas):
        raise ValueError("has a beta that does not lie between 0 and 1: get another copy")
    if schedule.betas is not None and len(betas) != schedule.timesteps:
        count = f"{len(betas)} betas for {schedule.timesteps} timesteps"
        raise ValueError(f"has {count}: get another copy")
    refuse_unknown_values(asdict(schedule), "in its header")


def scheduler_json(config: ModelConfig) -> dict[str, Any]:
    """The content of a scheduler_config.json with which diffusers samples as `config` says.

    This is the inverse of sampler_and_schedule. If the model samples as the original code does, the
    settings are the same as in the published diffusers folders. diffusers uses its own defaults for
    all settings that are not in the file.
    """
    schedule, name = config.schedule, CLASS_OF[config.sampler]
    if schedule.zero_terminal_snr and "rescale_betas_zero_snr" in SCHEDULER_SETTINGS[name].fixed:
        name = CLASS_OF["ddim"]  # the class `name` cannot rescale betas
    spacing, clean = schedule.spacing, schedule.set_alpha_to_one
    if spacing is None:  # the noise levels of the original code
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
        **{name: getattr(schedule, ours) for name, ours in SCHEDULER_TABLES["fields"].items()},
        "clip_sample": False,
        "prediction_type": {v: k for k, v in PREDICTIONS.items()}[schedule.prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "skip_prk_steps": True,
        "trained_betas": schedule.betas,
        **{name: value for name, value in chosen.items() if value is not None},
    }
