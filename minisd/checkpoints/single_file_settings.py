"""Find out whether an original single file predicts eps or v, and which noise levels it has.

Programs store these settings in different places: in the header, in a .yaml file next to the
checkpoint, or as a marker tensor. A marker tensor states a setting by its name. For example, if a
file holds a tensor with the name "v_pred", the model predicts v. minisd reads all these places, and
refuses a file if two places contradict each other, or if a value is unknown.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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

# The tables in single_file_settings.json:
# published: prediction -> sha256 of published files that do not state their prediction
# keys: key -> the setting that the key states, and the name of a table in `words`. A key comes from
#     the header (ModelSpec, kohya's trainer, ComfyUI and others) or from the .yaml, or it is the
#     name of a marker tensor
# markers: names of marker tensors (from ComfyUI and SimpleTuner). Most of these tensors are empty
# words: name of a table -> the table. Each table translates stored values to minisd's values
# unstated: stored values that mean that the setting is not stated
# v_endings: key of the header -> how the value of this key ends if the model predicts v
# edm: names of tensors in models with EDM's noise levels. minisd does not have these levels
# numbers, unet_heads: CompVis' name of a setting -> minisd's name
PREDICTION_TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
WORDS, KEYS = PREDICTION_TABLES["words"], PREDICTION_TABLES["keys"]
NUMBERS = PREDICTION_TABLES["numbers"]
PUBLISHED_PREDICTIONS = {
    sha: prediction
    for prediction, files in PREDICTION_TABLES["published"].items()
    for sha in files.values()
}
BY_ARGUMENT = "the argument prediction="
IN_YAML = "next to it"  # if a place is a .yaml, its description ends with these words
# The settings under "model: params:" in a .yaml for the code of CompVis or Stability. If a setting
# is missing, the value of the published files is used, because people leave out usual values.
YAML_SETTINGS = settings_tables()[".yaml (model)"]


# The setting ("prediction" or "zero_terminal_snr"), its value, and where the file states it.
Statement = tuple[str, Any, str]


def with_stated_settings(
    config: ModelConfig,
    path: Path,
    header: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    prediction: str | None,
) -> tuple[ModelConfig, str | None]:
    """Put the settings that an original file or its .yaml states into the config.

    header: the entries of the file's header
    prediction: "eps" or "v", which overrides what the file states. None: the prediction that the
        file states is used

    Returns the config, and a text that names the place that states eps or v. If no place states eps
    or v, the text is None, and the config has eps.

    Raises ValueError if two places contradict each other, or if a value is unknown.
    """
    yaml_path = next(filter(Path.exists, map(path.with_suffix, (".yaml", ".yml"))), None)
    settings = yaml_settings(yaml_path, config) if yaml_path else {}
    in_yaml = f"{yaml_path.name} {IN_YAML}" if yaml_path else ""
    config = with_yaml_unet(with_yaml_numbers(config, settings), settings)
    if "scale_factor" in tensors:
        scale = tensors["scale_factor"].double().mean().item()
        config = replace(config, vae=replace(config.vae, scale=scale))
    statements = statements_in_header(header) + statements_in_markers(tensors)
    statements += statements_in(settings, in_yaml)
    table = noise_table(tensors)
    zero_snr = replace(config.schedule, zero_terminal_snr=True)
    if table is not None and is_same_table(table, Schedule(zero_snr).alpha_bar):
        statements.append(("zero_terminal_snr", True, "its alphas_cumprod"))
    zero, zero_by = single_value(statements, "zero_terminal_snr", "Delete the wrong setting")
    found, known_by = find_prediction(path, statements, prediction)
    if not found and zero:
        found, known_by = "v", f"{zero_by}: a zero terminal SNR needs v"
    if not found and settings:
        found, known_by = "eps", in_yaml  # the default of a .yaml
    schedule = replace(config.schedule, zero_terminal_snr=bool(zero))
    if table is not None:
        schedule = with_stored_levels(schedule, table, path.name)
    config = with_prediction(replace(config, schedule=schedule), found)
    return replace(config, size=stated_size(header) or config.size), known_by


def with_prediction(config: ModelConfig, prediction: str | None) -> ModelConfig:
    """Set the prediction, and the size of the pictures.

    Published models that predict v make pictures of 768 pixels. All others make 512 pixels.

    prediction: "eps" or "v". None: "eps"
    """
    schedule = replace(config.schedule, prediction=prediction or "eps")
    return replace(config, schedule=schedule, size=768 if prediction == "v" else 512)


def find_prediction(
    path: Path, statements: list[Statement], prediction: str | None
) -> tuple[str | None, str | None]:
    """Find out what the U-Net predicts ("eps" or "v"), and which place states the prediction.

    Returns (None, None) if no place states the prediction.

    minisd knows the predictions of the published files, and recognizes these files by their sha256.
    But computing the sha256 of 5 GB takes about 20 s. So minisd computes it only if neither the
    header nor a marker tensor states the prediction. (Published files do not state it there.)

    prediction: "eps" or "v" if the user states the prediction, otherwise None
    """
    stated = [(value, where) for name, value, where in statements if name == "prediction" and value]
    if prediction:
        for value, where in stated:
            warn_of_argument(path.name, prediction, value, where)
        return prediction, BY_ARGUMENT
    only_yaml = all(where.endswith(IN_YAML) for _, where in stated)
    if only_yaml and (published := PUBLISHED_PREDICTIONS.get(file_sha256(path))):
        return published, "its sha256, which is that of a published file"
    return single_value(statements, "prediction", 'Give prediction="eps" or prediction="v"')


def warn_of_argument(name: str, argument: str, stated: str | None, where: str) -> None:
    """Warn if the file states a prediction that differs from the argument of load().

    name: the name of the file
    argument: the value of the argument prediction=
    stated: the prediction that the file states. None: the file states none
    where: the place that states this prediction
    """
    if stated not in (None, argument):
        used = f"minisd uses {argument}, as {BY_ARGUMENT} says"
        warnings.warn(f"{name} predicts {stated} according to {where}: {used}.", stacklevel=2)


def single_value(statements: list[Statement], setting: str, advice: str) -> tuple:
    """The value that a file states for a setting, and the first place that states this value.

    Returns (None, None) if no place states a value.

    setting: "prediction" or "zero_terminal_snr"
    advice: the end of the error message, which says what the user can do

    Raises ValueError if two places state different values.
    """
    found = [(value, where) for name, value, where in statements if name == setting]
    found = [(value, where) for value, where in found if value is not None]
    for value, where in found[1:]:
        if value != found[0][0]:
            both = f"{' according to '.join(map(str, found[0]))}, but {value} according to {where}"
            contradiction = f"the {setting.replace('_', ' ')} is {both}"
            raise ValueError(f"contradicts itself: {contradiction}. {advice}")
    return found[0] if found else (None, None)


# ---- the places of statements ------------------------------------------------------------------


def statements_in(place: Mapping[str, object], where: str) -> list[Statement]:
    """List the settings that a dictionary, such as a header, states.

    where: a text that describes a place in the dictionary, such as "KEY in its header". KEY is
        replaced by the key that states the setting

    Raises ValueError if a value is unknown.
    """
    return [
        (setting, parse_word(key, place[key], words), where.replace("KEY", key))
        for key, (setting, words) in KEYS.items()
        if key in place
    ]


def statements_in_header(header: Mapping[str, str]) -> list[Statement]:
    endings = PREDICTION_TABLES["v_endings"]
    ends = {key: "v" * header.get(key, "").endswith(end) for key, end in endings.items()}
    return statements_in({**header, **ends}, "KEY in its header")


def parse_word(key: str, value: object, words: str) -> object:
    """Translate a stored value to minisd's value. None: the value means "not stated".

    key: the key that has the value, for the error message
    words: the name of a table in WORDS. The table translates the value

    Raises ValueError if the table does not contain the value.
    """
    text, known = str(value).strip().lower(), WORDS[words]
    if text in PREDICTION_TABLES["unstated"]:
        return None
    if text not in known:
        what = f"{key} = {shorten(value)}, but minisd knows only {', '.join(known)}"
        raise ValueError(f"has {what}: get another copy, or delete that key")
    return known[text]


def statements_in_markers(tensors: Mapping[str, Tensor]) -> list[Statement]:
    """List the settings that marker tensors state. Only the names of these tensors matter.

    Raises ValueError if a tensor shows that the model has EDM's noise levels.
    """
    for key in PREDICTION_TABLES["edm"]:
        if key in tensors:
            what = f"was trained with EDM's noise levels ({key}), which minisd does not have"
            raise ValueError(f"{what}: get another model")
    present = {key: True for key in PREDICTION_TABLES["markers"] if key in tensors}
    return statements_in(present, "the marker tensor KEY")


def yaml_settings(path: Path, config: ModelConfig) -> dict:
    """Read the settings under "model: params:" in a .yaml. {}: the file has no such settings.

    Raises ValueError if the file is not YAML, or if a setting does not fit minisd's networks.
    """
    content = read_yaml(path)
    for name in ("model", "params"):
        content = content.get(name) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        return {}
    settings = YAML_SETTINGS.read(content)
    text = part_params(settings, "cond_stage_config")
    layer = "penultimate" if is_v2(config) else "last"
    for name, value in {"layer": layer, "layer_idx": None, "clip_skip": None}.items():
        if text.get(name, value) not in (value, None):
            what = f"a text transformer with {name} = {shorten(text[name])} (see {path.name})"
            raise ValueError(f"has {what}: minisd knows only {name} = {value!r}")
    return settings


def part_params(settings: Mapping[str, object], name: str) -> dict:
    """The settings under "params:" of one part of the model. {}: the part has no such settings.

    settings: the settings under "model: params:"
    name: the name of the part in "model: params:", such as "unet_config"
    """
    part = settings.get(name)
    params = part.get("params") if isinstance(part, dict) else None
    check_value("params", params, dict | None, where=f" in its .yaml under {name}")
    return params or {}


def with_yaml_numbers(config: ModelConfig, settings: Mapping[str, object]) -> ModelConfig:
    """Put the numbers of a .yaml into the config: the noise schedule and the scale of the latents.

    Raises ValueError if a number is impossible.
    """
    rule = parse_word("beta_schedule", settings.get("beta_schedule"), "beta_schedule")
    rule = rule or config.schedule.beta_schedule
    stated = {name: settings[name] for name in NUMBERS if settings.get(name) is not None}
    found = {NUMBERS[name]: yaml_number(name, value) for name, value in stated.items()}
    scale = found.pop("scale", config.vae.scale)
    schedule = replace(config.schedule, beta_schedule=rule, **found)
    return validate_config(replace(config, schedule=schedule, vae=replace(config.vae, scale=scale)))


def with_yaml_unet(config: ModelConfig, settings: Mapping[str, object]) -> ModelConfig:
    """Set the number of heads in the U-Net, or the width of each head, to the value in a .yaml.

    No tensor shows the number of heads. The tensors show all other sizes of the U-Net.
    """
    stated = part_params(settings, "unet_config")
    stated = {name: value for name, value in stated.items() if value not in (None, -1)}
    names = PREDICTION_TABLES["unet_heads"]
    heads = {ours: stated[name] for name, ours in names.items() if name in stated}
    heads = {"head_width": None, **heads} if heads else {}
    return replace(config, unet=replace(config.unet, **heads))


def yaml_number(name: str, value: Any) -> object:
    """Turn a value in a .yaml into a number. This is necessary because YAML reads 1e-4 as a text.

    Raises ValueError if the value is not a number.
    """
    try:
        return value if name == "timesteps" else float(value)
    except (TypeError, ValueError) as error:
        what = f"{name} = {shorten(value)} in its .yaml, but this is not a number"
        raise ValueError(f"has {what}: correct the .yaml") from error


def stated_size(header: Mapping[str, str]) -> int | None:
    """The size of the model's pictures in pixels, if the header states it (modelspec.resolution).

    None: the header states no size, or the size is not square, or it is not a multiple of 64.
    """
    match = re.fullmatch(r"(\d{1,5})x\1", header.get("modelspec.resolution", ""))
    return int(match[1]) if match and int(match[1]) % 64 == 0 else None


# ---- the table of noise levels that a file may hold --------------------------------------------


def noise_table(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The table of noise levels (alphas_cumprod) in a file.

    If the file holds betas instead, the table is computed from the betas.

    None: the file holds neither alphas_cumprod nor betas.

    Raises ValueError if the shape of the stored tensor is impossible.
    """
    for name in ("alphas_cumprod", "betas"):
        stored = tensors.get(name)
        if stored is not None and (stored.ndim != 1 or not 1 < len(stored) <= MOST_ITEMS):
            what = f"holds {name} in the impossible shape {tuple(stored.shape)}"
            raise ValueError(f"{what}: get another copy")
    if "alphas_cumprod" in tensors or "betas" not in tensors:
        return tensors.get("alphas_cumprod")
    return (1 - tensors["betas"].double()).cumprod(0)


def with_stored_levels(schedule: ScheduleConfig, stored: Tensor, name: str) -> ScheduleConfig:
    """Put the noise levels that a file stores into a schedule. Returns the new schedule.

    If `schedule` already has these noise levels, `schedule` is returned. Otherwise, the user is
    warned. If the stored levels are impossible, or if they contradict a zero terminal SNR, they are
    ignored, and `schedule` is returned.

    stored: the stored noise levels (alphas_cumprod)
    name: the file's name, for the warning
    """
    if is_same_table(stored, Schedule(schedule).alpha_bar):
        return schedule
    zero = schedule.zero_terminal_snr
    table = stored.double().flatten()
    steps = torch.cat([torch.ones(1, dtype=table.dtype), table])
    falls = table.numel() > 1 and bool((steps.diff() < 0).all()) and bool(table[-1] >= 0)
    outcome = "uses them" if falls else "ignores them, because they do not fall from 1 to 0"
    usual = replace(schedule, zero_terminal_snr=False)
    if zero and is_same_table(stored, Schedule(usual).alpha_bar):
        falls, outcome = False, "ignores them, because the file states a zero terminal SNR"
    what = "noise levels (alphas_cumprod) that differ from its other settings"
    warnings.warn(f"{name} holds {what}: minisd {outcome}.", stacklevel=2)
    if not falls:
        return schedule
    # with a beta of 1, alphas_cumprod would be 0, and a division by 0 is impossible
    betas = tuple((1 - steps[1:] / steps[:-1]).clamp(max=1 - 1e-9).tolist())
    zero = zero or bool(table[-1] == 0)
    return replace(schedule, betas=betas, timesteps=len(betas), zero_terminal_snr=zero)


def is_same_table(stored: Tensor, ours: Tensor) -> bool:
    """Whether two tables of noise levels are equal, except for the rounding of half precision."""
    if stored.shape != ours.shape:
        return False
    coarse = torch.equal(stored, stored.to(torch.bfloat16).to(stored.dtype))
    rounding = torch.finfo(torch.bfloat16 if coarse else torch.float16).eps
    return torch.allclose(stored.double(), ours, rtol=rounding, atol=1e-6)
