"""What a single file says about eps or v and about its noise levels: in its header, by marker
tensors, in the .yaml file next to it. Programs agreed on no place, so every known one is read.

Statements that contradict each other are an error; a value unknown here is one as well.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from minisd.checkpoints.known_settings import tables
from minisd.checkpoints.names import is_v2
from minisd.config import ModelConfig, ScheduleConfig

# Published files, by their sha256. They say nothing in their headers.
PUBLISHED = {
    # sd-v1-4.ckpt, sd-v1-4-full-ema.ckpt, v1-5-pruned-emaonly (.safetensors, .ckpt)
    "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556": "eps",
    "14749efc0ae8ef0329391ad4436feb781b402f4fece4883c7ad8d10556d8a36a": "eps",
    "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa": "eps",
    "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516": "eps",
    # sd-v1-5-inpainting.ckpt, 512-inpainting-ema.ckpt
    "c6bbc15e3224e6973459ba78de4998b80b50112b0ae5b5c67113d56b4e366b19": "eps",
    "2a208a7ded5d42dcb0c0ec908b23c631002091e06afe7e76d16cd11079f8d4e3": "eps",
    # 512-base-ema.ckpt, v2-1_512-ema-pruned.safetensors
    "d635794c1fedfdfa261e065370bea59c651fc9bfa65dc6d67ad29e11869a1824": "eps",
    "df955bdf6b682338ea9b55dfc0d8f3475aadf4836e204893d28b82355e0956d2": "eps",
    # 768-v-ema.ckpt, v2-1_768-ema-pruned.safetensors
    "bfcaf0755797b0c30eb00a3787e8b423eb1f5decd8de76c4d824ac2dd27e139f": "v",
    "dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac": "v",
}

PREDICTIONS = {
    **dict.fromkeys(("eps", "epsilon"), "eps"),
    **dict.fromkeys(("v", "v_pred", "vpred", "v_prediction", "v-prediction", "velocity"), "v"),
}
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
V_FLAGS = {word: "v" if yes else "eps" for word, yes in FLAGS.items()}
UNSTATED = ("", "none", "null")
ZERO_SNR = ("zero_terminal_snr", "rescale_betas_zero_snr", "ztsnr")
SPEC = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
KOHYA = ("ss_v_parameterization", "v_parameterization", "v_pred")
# Keys of the header, of ModelSpec and kohya's trainer, ComfyUI, others: what each says, and how.
KEYS = {
    **dict.fromkeys(SPEC, ("prediction", PREDICTIONS)),
    **dict.fromkeys(KOHYA, ("prediction", V_FLAGS)),
    **dict.fromkeys(("ss_zero_terminal_snr", *ZERO_SNR), ("zero_terminal_snr", FLAGS)),
}
V_ENDINGS = {"modelspec.architecture": "-768-v", "ss_base_model_version": "_v"}  # sd_v2_v

# Tensors, mostly empty, that say something by being there (ComfyUI, SimpleTuner).
MARKERS = {"v_pred": ("prediction", "v"), "ztsnr": ("zero_terminal_snr", True)}
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")

NUMBERS = {
    **{"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "timesteps"},
    "scale_factor": "scale",
}
# CompVis' names of its rules for betas -> diffusers'
BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear"}
# "model: params:" of the .yaml that CompVis' and Stability's code is set up with. Absent settings
# are those of the published files: people write only what differs.
YAML = tables()[".yaml (model)"]


@dataclass(frozen=True)
class Statement:
    """What one place says, and which place that is."""

    where: str
    prediction: str | None = None
    zero_terminal_snr: bool | None = None


def with_stated_settings(
    config: ModelConfig,
    path: Path,
    header: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    prediction: str | None,
) -> tuple[ModelConfig, str | None]:
    """The config with what an original file, or what lies next to it, says; and who says eps or v.

    prediction: the argument, which comes first
    The second value is None where nobody says eps or v; the config then has eps.
    Raises ValueError for statements that contradict each other and values unknown here.
    """
    names = (path.with_suffix(".yaml"), path.with_suffix(".yml"))
    beside = next((name for name in names if name.exists()), None)
    said = read_yaml(beside, config) if beside else {}
    config = with_yaml_numbers(config, said)
    if "scale_factor" in tensors:
        scale = tensors["scale_factor"].double().mean().item()
        config = replace(config, vae=replace(config.vae, scale=scale))
    statements = from_header(header) + from_markers(tensors) + from_yaml(said, beside)
    table = tensors.get("alphas_cumprod")
    if table is not None and alike(table, zero_snr_table(config.schedule)):
        statements.append(Statement("its alphas_cumprod", zero_terminal_snr=True))
    zero, zero_by = agreed(statements, "zero_terminal_snr", "delete the one that is wrong")
    found, known_by = who_says(path, statements, prediction)
    if not found and zero:
        found, known_by = "v", f"{zero_by}: with no signal at the last t it must be v"
    if not found and said:
        found, known_by = "eps", f"{beside.name} beside it"  # its default
    schedule = replace(config.schedule, zero_terminal_snr=bool(zero))
    if table is not None:
        schedule = with_levels(schedule, table, path.name)
    config = with_prediction(replace(config, schedule=schedule), found)
    return replace(config, size=stated_size(header) or config.size), known_by


def with_prediction(config: ModelConfig, prediction: str | None) -> ModelConfig:
    """With what no tensor tells: the published models that predict v are made for 768 pixels."""
    schedule = replace(config.schedule, prediction=prediction or "eps")
    return replace(config, schedule=schedule, size=768 if prediction == "v" else 512)


def who_says(
    path: Path, statements: list[Statement], prediction: str | None
) -> tuple[str | None, str | None]:
    """What the U-Net predicts and by what that is known; (None, None) if by nothing.

    A file's sha256 takes some 20 s for 5 GB. It is taken only where no header and no marker says
    anything, since none of the published files has either.
    """
    if prediction:
        for other in statements:
            if other.prediction not in (None, prediction):
                warnings.warn(
                    f"{path.name} predicts {other.prediction} by {other.where}: taken as "
                    f"{prediction}, as the argument prediction= says.",
                    stacklevel=2,
                )
        return prediction, "the argument prediction="
    inside = [each for each in statements if not each.where.endswith("beside it")]
    if not any(each.prediction for each in inside):
        published = PUBLISHED.get(sha256(path))
        if published:
            return published, "its sha256, a published file's"
    return agreed(statements, "prediction", 'give prediction="eps" or prediction="v"')


def agreed(
    statements: list[Statement], field: str, mend: str
) -> tuple[str | bool | None, str | None]:
    """The one value that is stated, and where first. ValueError: two places contradict."""
    stated = [(getattr(one, field), one.where) for one in statements]
    stated = [(value, where) for value, where in stated if value is not None]
    for value, where in stated[1:]:
        first, first_where = stated[0]
        if value != first:
            name = field.replace("_", " ")
            raise ValueError(
                f"contradicts itself: the {name} is {first} by {first_where}, but {value} by "
                f"{where}: {mend}"
            )
    return stated[0] if stated else (None, None)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest()


# ---- the places ------------------------------------------------------------------------------


def from_header(header: Mapping[str, str]) -> list[Statement]:
    """What the header's keys say. Raises ValueError for a value that is none of the known."""
    said = {key: known_value(key, header.get(key), known) for key, (_, known) in KEYS.items()}
    ending = [key for key, end in V_ENDINGS.items() if header.get(key, "").endswith(end)]
    said |= dict.fromkeys(ending, "v")
    fields = {key: field for key, (field, _) in KEYS.items()}
    return [
        Statement(f"{key} in its header", **{fields.get(key, "prediction"): value})
        for key, value in said.items()
    ]


def known_value(key: str, value: object, known: Mapping[str, object]) -> object:
    """What a text means; None for none. Raises ValueError, naming it, if it is not known."""
    text = str(value).strip().lower()
    if text in UNSTATED:
        return None
    if text not in known:
        raise ValueError(
            f"has {key} = {value!r}, which is unknown here (known: {', '.join(known)}): "
            "get another copy, or delete that key"
        )
    return known[text]


def from_markers(tensors: Mapping[str, Tensor]) -> list[Statement]:
    """What is said by tensors that are there. Raises ValueError for those of EDM models."""
    for key in EDM:
        if key in tensors:
            raise ValueError(f"is trained with EDM's noise levels ({key}), which minisd has not")
    return [
        Statement(f"the marker tensor {key}", **{field: value})
        for name, (field, value) in MARKERS.items()
        for key in (name, f"model.{name}")
        if key in tensors
    ]


def read_yaml(path: Path, config: ModelConfig) -> dict:
    """The settings "model: params:" of a .yaml; {} if it is no model's.

    Raises ValueError for what is no YAML, and for settings that these networks do not have.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"has {path.name} beside it, which is no YAML ({reason})") from error
    for name in ("model", "params"):
        content = content.get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        return {}
    said = YAML.read(content)
    text = said["cond_stage_config"]
    text = text.get("params") if isinstance(text, dict) else None
    text = text if isinstance(text, dict) else {}
    layer = "penultimate" if is_v2(config) else "last"
    usual = {"layer": layer, "layer_idx": None, "clip_skip": None}
    for name, value in usual.items():
        if text.get(name, value) not in (value, None):
            raise ValueError(
                f"has {name} = {text[name]!r} for its text transformer in {path.name}: only "
                f"{value!r} is known here"
            )
    return said | {"parameterization": said["parameterization"] or ""}


def with_yaml_numbers(config: ModelConfig, said: Mapping[str, object]) -> ModelConfig:
    """The schedule and the latents' scale that a .yaml says."""
    rule = known_value("beta_schedule", said.get("beta_schedule"), BETA_SCHEDULES)
    numbers = {name: number(name, said[name]) for name in NUMBERS if said.get(name) is not None}
    scale = numbers.pop("scale_factor", config.vae.scale)
    fields = {NUMBERS[name]: value for name, value in numbers.items()}
    rule = rule or config.schedule.beta_schedule
    schedule = replace(config.schedule, beta_schedule=rule, **fields)
    return replace(config, schedule=schedule, vae=replace(config.vae, scale=scale))


def number(name: str, value: object) -> float:
    """YAML takes 1e-4 for a text. Raises ValueError for what is none."""
    try:
        return int(value) if name == "timesteps" else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"has {name} = {value!r} in its .yaml, which is no number") from error


def from_yaml(said: Mapping[str, object], path: Path | None) -> list[Statement]:
    """What a .yaml says of eps, v and zero terminal SNR. An absent parameterization is no word."""
    if not said:
        return []
    value = known_value("parameterization", said["parameterization"], PREDICTIONS)
    statements = [Statement(f"{path.name} beside it", prediction=value)]
    for key in ZERO_SNR:
        value = known_value(key, said[key], FLAGS)
        statements.append(Statement(f"{key} in {path.name} beside it", zero_terminal_snr=value))
    return statements


def stated_size(header: Mapping[str, str]) -> int | None:
    """The native size in pixels that ModelSpec states; None for none, or one that is no square."""
    match = re.fullmatch(r"(\d+)x\1", header.get("modelspec.resolution", ""))
    return int(match[1]) if match and int(match[1]) % 64 == 0 else None


# ---- the table of noise levels that a file may hold --------------------------------------------


def with_levels(schedule: ScheduleConfig, stored: Tensor, name: str) -> ScheduleConfig:
    """The schedule that the stored alphas_cumprod belongs to: ours, or its own, with a warning."""
    zero = schedule.zero_terminal_snr
    if alike(stored, zero_snr_table(schedule) if zero else alpha_bar(schedule)):
        return schedule
    table = stored.double().flatten()
    steps = torch.cat([torch.ones(1, dtype=table.dtype), table])
    falls = table.numel() > 1 and bool((steps.diff() < 0).all()) and bool(table[-1] >= 0)
    outcome = "is obeyed" if falls else "does not fall from 1 to 0, and is ignored"
    if zero and alike(stored, alpha_bar(schedule)):
        falls, outcome = False, "is ignored, since the file states a zero terminal SNR"
    what = "an alphas_cumprod other than the one that its other settings give"
    warnings.warn(f"{name} holds {what}: it {outcome}.", stacklevel=2)
    if not falls:
        return schedule
    betas = (1 - steps[1:] / steps[:-1]).clamp(max=1 - 1e-9)  # 1 would leave nothing to divide by
    betas = tuple(betas.tolist())
    zero = zero or bool(table[-1] == 0)
    return replace(schedule, betas=betas, timesteps=len(betas), zero_terminal_snr=zero)


def alike(stored: Tensor, ours: Tensor) -> bool:
    """Whether a table is ours, up to the rounding of the precision that it went through."""
    if stored.shape != ours.shape:
        return False
    coarse = torch.equal(stored, stored.to(torch.bfloat16).to(stored.dtype))
    rounding = torch.finfo(torch.bfloat16 if coarse else torch.float16).eps
    return torch.allclose(stored.double(), ours, rtol=rounding, atol=1e-6)


def alpha_bar(schedule: ScheduleConfig) -> Tensor:
    """The table of schedule.Schedule, which may not be imported here: files come before it."""
    power = 2 if schedule.beta_schedule == "scaled_linear" else 1
    ends = schedule.beta_start ** (1 / power), schedule.beta_end ** (1 / power)
    betas = torch.linspace(*ends, schedule.timesteps, dtype=torch.float64) ** power
    if schedule.betas is not None:
        betas = torch.tensor(schedule.betas, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def zero_snr_table(schedule: ScheduleConfig) -> Tensor:
    rates = alpha_bar(schedule).sqrt()
    return ((rates - rates[-1]) * rates[0] / (rates[0] - rates[-1])) ** 2
