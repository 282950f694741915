"""A diffusers folder's scheduler_config.json: how noise grows, and how the samplers walk.

What diffusers draws with the folder is right. Its pipelines change some settings before they use
them, and so do we. A setting that only another class knows holds once a sampler of that class is
chosen, as `X.from_config(pipe.scheduler.config)` has it.
"""

import warnings
from collections.abc import Mapping

from minisd.checkpoints.known_settings import same, tables
from minisd.config import ModelConfig, ScheduleConfig

FILE = "scheduler/scheduler_config.json"
# The scheduler's class -> the sampler that walks as it does.
SAMPLER_OF = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "plms",
    "LMSDiscreteScheduler": "lms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DDPMScheduler": "ddpm",
}
CLASS_OF = {sampler: name for name, sampler in SAMPLER_OF.items()}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "linspace", "trailing")
FINALS = ("zero", "sigma_min")

LAST_STEP = {"euler_at_final": False, "lower_order_final": True}  # DPM++'s usual way to end
NO = (False, None)
SETTINGS = {name: tables()[f"{FILE} ({name})"] for name in SAMPLER_OF}
# What the pipeline for a U-Net of so many channels sets in place of what the file says.
PIPELINE_SETS = {
    4: {"clip_sample": False, "steps_offset": 1},
    9: {"skip_prk_steps": True, "steps_offset": 1},
}


def sampler_and_schedule(
    stored: dict[str, object], index: dict[str, object], channels: int
) -> tuple[str, ScheduleConfig]:
    """The default sampler and the schedule of a folder.

    index: its model_index.json, empty where there is none
    channels: the U-Net's, which decide the pipeline that diffusers opens the folder with
    Raises ValueError for a class or a setting that minisd lacks, by its name.
    """
    name = class_of(stored, index)
    stored = stored | PIPELINE_SETS.get(channels, {})
    said = SETTINGS[name].read(stored)
    refuse_unknown_values({name: stored[name] for name in said if name in stored})
    betas = said["trained_betas"]
    schedule = ScheduleConfig(
        timesteps=said["num_train_timesteps"],
        beta_start=said["beta_start"],
        beta_end=said["beta_end"],
        prediction=PREDICTIONS[said["prediction_type"]],
        zero_terminal_snr=said.get("rescale_betas_zero_snr") is True,
        beta_schedule=said["beta_schedule"],
        betas=None if betas is None else tuple(betas),
        spacing=stored.get("timestep_spacing", "default"),
        steps_offset=said["steps_offset"],
        set_alpha_to_one=stored.get("set_alpha_to_one"),
        final=stored.get("final_sigmas_type"),
        karras=said["use_karras_sigmas"] is True,
    )
    return SAMPLER_OF[name], schedule


def class_of(stored: Mapping[str, object], index: Mapping[str, object]) -> str:
    """The scheduler's class, by its own file or else by the folder's index."""
    listed = index.get("scheduler")
    listed = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
    name = stored.get("_class_name", listed)
    if name == "LCMScheduler":
        raise ValueError(
            "is an LCM model, which needs its own sampler, and minisd does not have it yet: load "
            "the model that it was made from"
        )
    if name not in SAMPLER_OF:
        has = f"has the scheduler {name}, which minisd lacks" if name else "names no scheduler"
        classes = ", ".join(SAMPLER_OF)
        raise ValueError(f"{has}: write one of {classes} as _class_name into its {FILE}")
    if listed not in (None, name):
        both = f"{name} in its {FILE}, which is used, and {listed} in its model_index.json"
        warnings.warn(f"This folder names two schedulers: {both}.", stacklevel=2)
    return name


def refuse_unknown_values(said: Mapping[str, object]) -> None:
    """Raise ValueError for a value that minisd lacks, by its name. said: what the file says."""
    allowed = {
        "prediction_type": tuple(PREDICTIONS),
        "beta_schedule": BETA_SCHEDULES,
        "timestep_spacing": SPACINGS,
        "final_sigmas_type": FINALS,
        "set_alpha_to_one": (True, False),
        "use_karras_sigmas": (True, *NO),
        "rescale_betas_zero_snr": (True, *NO),
    }
    for name, values in allowed.items():
        if name in said and not any(same(said[name], value) for value in values):
            known = " or ".join(repr(value) for value in values)
            has = f"has {name} = {said[name]!r} in its {FILE}"
            raise ValueError(f"{has}: minisd lacks {said[name]!r}, it knows {known}")
    if said.get("final_sigmas_type") == "sigma_min":
        for name, usual in LAST_STEP.items():
            if said.get(name, usual) is not usual:
                has = f"has {name} = {said[name]!r} with final_sigmas_type = 'sigma_min'"
                raise ValueError(f"{has} in its {FILE}: only {usual!r} is known here")


def check_schedule(schedule: ScheduleConfig) -> None:
    """Raise ValueError for a schedule that no walk can be computed with."""
    betas = (schedule.beta_start, schedule.beta_end) if schedule.betas is None else schedule.betas
    if not all(type(beta) in (int, float) and 0 < beta < 1 for beta in betas):
        raise ValueError("has a beta that does not lie between 0 and 1: get another copy")
    if schedule.betas is not None and len(betas) != schedule.timesteps:
        count = f"{len(betas)} betas for {schedule.timesteps} timesteps"
        raise ValueError(f"has {count}: get another copy")
    if type(schedule.steps_offset) is not int or schedule.steps_offset < 0:
        raise ValueError(f"has steps_offset = {schedule.steps_offset!r}: 0 and 1 are usual")
    known = {
        "beta_schedule": BETA_SCHEDULES,
        "spacing": (None, "default", *SPACINGS),
        "final": (None, *FINALS),
        "set_alpha_to_one": (None, True, False),
        "karras": (True, False),
    }
    for name, values in known.items():
        if not any(same(getattr(schedule, name), value) for value in values):
            raise ValueError(f"has {name} = {getattr(schedule, name)!r}: get another copy")


def scheduler_json(config: ModelConfig) -> dict[str, object]:
    """The settings that make diffusers walk as `config` does. Undoes sampler_and_schedule.

    What the model does not decide stays absent; the walks of the original code are written as the
    published folders have them.
    """
    schedule, name = config.schedule, CLASS_OF[config.sampler]
    if schedule.zero_terminal_snr and "rescale_betas_zero_snr" in SETTINGS[name].fixed:
        name = CLASS_OF["ddim"]  # that class cannot say it
    original = schedule.spacing is None
    chosen = {
        "timestep_spacing": None if schedule.spacing == "default" else schedule.spacing,
        "set_alpha_to_one": False if original else schedule.set_alpha_to_one,
        "final_sigmas_type": schedule.final,
        "use_karras_sigmas": schedule.karras or None,
    }
    if original and schedule.zero_terminal_snr and config.sampler in ("ddim", "ddpm"):
        chosen["timestep_spacing"] = "trailing"
    return {
        "_class_name": name,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "clip_sample": False,
        "num_train_timesteps": schedule.timesteps,
        "prediction_type": {v: k for k, v in PREDICTIONS.items()}[schedule.prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "skip_prk_steps": True,
        "steps_offset": schedule.steps_offset,
        "trained_betas": schedule.betas,
        **{name: value for name, value in chosen.items() if value is not None},
    }
