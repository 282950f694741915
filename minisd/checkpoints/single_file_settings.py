"""What a single file says about eps or v and about its noise levels: in its header, by marker
tensors, in the .yaml file next to it. Programs agreed on no place, so every known one is read.

Statements that contradict each other are an error; a value unknown here is one as well.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd.checkpoints.known_settings import settings_tables
from minisd.checkpoints.names import is_v2
from minisd.checkpoints.validate import validate_config
from minisd.checkpoints.yaml_files import read_yaml
from minisd.config import ModelConfig, ScheduleConfig
from minisd.files.json_files import MOST_ITEMS, check_value, shorten
from minisd.files.sha256 import file_sha256
from minisd.schedule import Schedule

# single_file_settings.json. published: files whose headers say nothing, by what they predict
# keys: of the header (ModelSpec, kohya's trainer, ComfyUI, others), of the .yaml, and tensors,
# mostly empty, that say it by being there (ComfyUI, SimpleTuner): what each speaks of, in which
# words    v_endings: how a value ends that means v    edm: tensors of models that minisd has not
# numbers: CompVis' names -> ours; its rules for betas in words -> diffusers'
PREDICTION_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
WORDS, KEYS = PREDICTION_TABLES["words"], PREDICTION_TABLES["keys"]
NUMBERS = PREDICTION_TABLES["numbers"]
PUBLISHED_PREDICTIONS = {
    sha: said for said, files in PREDICTION_TABLES["published"].items() for sha in files.values()
}
BY_ARGUMENT = "the argument prediction="
# "model: params:" of the .yaml that CompVis' and Stability's code is set up with. Absent settings
# are those of the published files: people write only what differs.
YAML_SETTINGS = settings_tables()[".yaml (model)"]


# What is spoken of (prediction, zero_terminal_snr), what is said of it, and where.
Statement = tuple[str, object, str]


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
    files = map(path.with_suffix, (".yaml", ".yml"))
    beside = next(filter(Path.exists, files), None)
    said = yaml_settings(beside, config) if beside else {}
    config = with_yaml_unet(with_yaml_numbers(config, said), said)
    if "scale_factor" in tensors:
        scale = tensors["scale_factor"].double().mean().item()
        config = replace(config, vae=replace(config.vae, scale=scale))
    statements = statements_in_header(header) + statements_in_markers(tensors)
    if said:
        statements += statements_in(said, f"{beside.name} beside it")
    table = noise_table(tensors)
    zero_snr = replace(config.schedule, zero_terminal_snr=True)
    if table is not None and is_same_table(table, Schedule(zero_snr).alpha_bar):
        statements.append(("zero_terminal_snr", True, "its alphas_cumprod"))
    zero, zero_by = single_value(statements, "zero_terminal_snr", "delete the one that is wrong")
    found, known_by = find_prediction(path, statements, prediction)
    if not found and zero:
        found, known_by = "v", f"{zero_by}: with no signal at the last t it must be v"
    if not found and said:
        found, known_by = "eps", f"{beside.name} beside it"  # its default
    schedule = replace(config.schedule, zero_terminal_snr=bool(zero))
    if table is not None:
        schedule = with_stored_levels(schedule, table, path.name)
    config = with_prediction(replace(config, schedule=schedule), found)
    return replace(config, size=stated_size(header) or config.size), known_by


def with_prediction(config: ModelConfig, prediction: str | None) -> ModelConfig:
    """With what no tensor tells: the published models that predict v are made for 768 pixels."""
    schedule = replace(config.schedule, prediction=prediction or "eps")
    return replace(config, schedule=schedule, size=768 if prediction == "v" else 512)


def find_prediction(
    path: Path, statements: list[Statement], prediction: str | None
) -> tuple[str | None, str | None]:
    """What the U-Net predicts and by what that is known; (None, None) if by nothing.

    A file's sha256 takes some 20 s for 5 GB. It is taken only where no header and no marker says
    anything, since none of the published files has either.
    """
    said = [(value, where) for field, value, where in statements if field == "prediction" and value]
    if prediction:
        for value, where in said:
            warn_of_argument(path.name, prediction, value, where)
        return prediction, BY_ARGUMENT
    silent = all(where.endswith("beside it") for _, where in said)
    if silent and (published := PUBLISHED_PREDICTIONS.get(file_sha256(path))):
        return published, "its sha256, a published file's"
    return single_value(statements, "prediction", 'give prediction="eps" or prediction="v"')


def warn_of_argument(name: str, argument: str, said: str | None, where: str) -> None:
    """Warns where a place says something else than the argument."""
    if said not in (None, argument):
        other = f"{said} by {where}: taken as {argument}, as {BY_ARGUMENT} says"
        warnings.warn(f"{name} predicts {other}.", stacklevel=2)


def single_value(statements: list[Statement], field: str, mend: str) -> tuple:
    """The one value that is stated, and where first. ValueError: two places contradict."""
    found = [(said, where) for of, said, where in statements if of == field and said is not None]
    for value, where in found[1:]:
        if value != found[0][0]:
            both = f"{' by '.join(map(str, found[0]))}, but {value} by {where}"
            raise ValueError(f"contradicts itself: the {field.replace('_', ' ')} is {both}: {mend}")
    return found[0] if found else (None, None)


# ---- the places ------------------------------------------------------------------------------


def statements_in(place: Mapping[str, object], where: str) -> list[Statement]:
    """What a place's keys say. where: with KEY for the key

    Raises ValueError for a value that is none of the known.
    """
    return [
        (field, parse_word(key, place[key], words), where.replace("KEY", key))
        for key, (field, words) in KEYS.items()
        if key in place
    ]


def statements_in_header(header: Mapping[str, str]) -> list[Statement]:
    ends = {
        key: header.get(key, "").endswith(end)
        for key, end in PREDICTION_TABLES["v_endings"].items()
    }
    return statements_in(
        {**header, **{key: "v" * v for key, v in ends.items()}}, "KEY in its header"
    )


def parse_word(key: str, value: object, words: str) -> object:
    """What a text means; None for none. Raises ValueError, naming it, if it is not known."""
    text, known = str(value).strip().lower(), WORDS[words]
    if text in PREDICTION_TABLES["unstated"]:
        return None
    if text not in known:
        what = f"{key} = {shorten(value)}, which is unknown here (known: {', '.join(known)})"
        raise ValueError(f"has {what}: get another copy, or delete that key")
    return known[text]


def statements_in_markers(tensors: Mapping[str, Tensor]) -> list[Statement]:
    """What is said by tensors that are there. Raises ValueError for those of EDM models."""
    for key in PREDICTION_TABLES["edm"]:
        if key in tensors:
            raise ValueError(f"is trained with EDM's noise levels ({key}), which minisd has not")
    there = {key: True for key in PREDICTION_TABLES["markers"] if key in tensors}
    return statements_in(there, "the marker tensor KEY")


def yaml_settings(path: Path, config: ModelConfig) -> dict:
    """The settings "model: params:" of a .yaml; {} if it is no model's.

    Raises ValueError for what is no YAML, and for settings that these networks do not have.
    """
    content = read_yaml(path)
    for name in ("model", "params"):
        content = content.get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        return {}
    said = YAML_SETTINGS.read(content)
    text = part_params(said, "cond_stage_config")
    layer = "penultimate" if is_v2(config) else "last"
    for name, value in {"layer": layer, "layer_idx": None, "clip_skip": None}.items():
        if text.get(name, value) not in (value, None):
            what = f"{name} = {shorten(text[name])} for its text transformer in {path.name}"
            raise ValueError(f"has {what}: only {value!r} is known here")
    return said


def part_params(said: Mapping[str, object], name: str) -> dict:
    """The "params:" of a part of the model; {} where there are none."""
    part = said.get(name)
    params = part.get("params") if isinstance(part, dict) else None
    check_value("params", params, dict | None, where=f" of {name} in its .yaml")
    return params or {}


def with_yaml_numbers(config: ModelConfig, said: Mapping[str, object]) -> ModelConfig:
    """The schedule and the latents' scale that a .yaml says. ValueError: impossible ones."""
    rule = parse_word("beta_schedule", said.get("beta_schedule"), "beta_schedule")
    rule = rule or config.schedule.beta_schedule
    found = {
        NUMBERS[k]: yaml_number(k, v) for k, v in said.items() if k in NUMBERS and v is not None
    }
    scale = found.pop("scale", config.vae.scale)
    schedule = replace(config.schedule, beta_schedule=rule, **found)
    return validate_config(replace(config, schedule=schedule, vae=replace(config.vae, scale=scale)))


def with_yaml_unet(config: ModelConfig, said: Mapping[str, object]) -> ModelConfig:
    """The U-Net's heads, which no tensor shows; its sizes, the tensors tell."""
    stated = part_params(said, "unet_config")
    stated = {name: value for name, value in stated.items() if value not in (None, -1)}
    heads = {
        ours: stated[name]
        for name, ours in PREDICTION_TABLES["unet_heads"].items()
        if name in stated
    }
    heads = {"head_width": None, **heads} if heads else {}
    return replace(config, unet=replace(config.unet, **heads))


def yaml_number(name: str, value: object) -> object:
    """YAML takes 1e-4 for a text. Raises ValueError for what is none."""
    try:
        return value if name == "timesteps" else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"has {name} = {shorten(value)} in its .yaml, which is no number"
        ) from error


def stated_size(header: Mapping[str, str]) -> int | None:
    """The native size in pixels that ModelSpec states; None for none, or one that is no square."""
    match = re.fullmatch(r"(\d{1,5})x\1", header.get("modelspec.resolution", ""))
    return int(match[1]) if match and int(match[1]) % 64 == 0 else None


# ---- the table of noise levels that a file may hold --------------------------------------------


def noise_table(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The stored alphas_cumprod, or what the stored betas make of it. ValueError: of no use."""
    for name in ("alphas_cumprod", "betas"):
        stored = tensors.get(name)
        if stored is not None and (stored.ndim != 1 or not 1 < len(stored) <= MOST_ITEMS):
            raise ValueError(f"holds {name} in the impossible shape {tuple(stored.shape)}")
    if "alphas_cumprod" in tensors or "betas" not in tensors:
        return tensors.get("alphas_cumprod")
    return (1 - tensors["betas"].double()).cumprod(0)


def with_stored_levels(schedule: ScheduleConfig, stored: Tensor, name: str) -> ScheduleConfig:
    """The schedule that the stored alphas_cumprod belongs to: ours, or its own, with a warning."""
    if is_same_table(stored, Schedule(schedule).alpha_bar):
        return schedule
    zero = schedule.zero_terminal_snr
    table = stored.double().flatten()
    steps = torch.cat([torch.ones(1, dtype=table.dtype), table])
    falls = table.numel() > 1 and bool((steps.diff() < 0).all()) and bool(table[-1] >= 0)
    outcome = "is obeyed" if falls else "does not fall from 1 to 0, and is ignored"
    if zero and is_same_table(
        stored, Schedule(replace(schedule, zero_terminal_snr=False)).alpha_bar
    ):
        falls, outcome = False, "is ignored, since the file states a zero terminal SNR"
    what = "an alphas_cumprod other than the one that its other settings give"
    warnings.warn(f"{name} holds {what}: it {outcome}.", stacklevel=2)
    if not falls:
        return schedule
    # 1 would leave nothing to divide by
    betas = tuple((1 - steps[1:] / steps[:-1]).clamp(max=1 - 1e-9).tolist())
    zero = zero or bool(table[-1] == 0)
    return replace(schedule, betas=betas, timesteps=len(betas), zero_terminal_snr=zero)


def is_same_table(stored: Tensor, ours: Tensor) -> bool:
    """Whether a table is ours, up to the rounding of the precision that it went through."""
    if stored.shape != ours.shape:
        return False
    coarse = torch.equal(stored, stored.to(torch.bfloat16).to(stored.dtype))
    rounding = torch.finfo(torch.bfloat16 if coarse else torch.float16).eps
    return torch.allclose(stored.double(), ours, rtol=rounding, atol=1e-6)
