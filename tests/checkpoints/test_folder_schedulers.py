"""A folder's scheduler_config.json is obeyed as diffusers' classes obey it, or refused by name.

The reference of every walk is the scheduler of diffusers that reads the same settings, on a network
that costs nothing. tests/core/test_tiny_pipelines.py holds whole pipelines.
"""

import inspect
import json
import warnings
from dataclasses import asdict

import diffusers
import pytest
import torch

from minisd.checkpoints import folder_scheduler
from minisd.checkpoints.folder_scheduler import (
    CLASS_OF,
    SCHEDULER_FILE,
    SCHEDULER_SETTINGS,
    sampler_and_schedule,
    scheduler_json,
)
from minisd.checkpoints.header import config_from_metadata, config_to_metadata
from minisd.config import ModelConfig, ScheduleConfig
from minisd.guidance import guided_denoiser
from minisd.samplers import SAMPLERS
from minisd.sampling import from_noise, sampler_levels
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from tests.helpers.sampler_references import CONTEXT, Network, generators, scheduler_states

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COUNTS = (1, 2, 3, 7, 20)
CLOSE = 1e-4  # of the spread: diffusers' tables are float32, ours float64
TEXT_TO_IMAGE = {"steps_offset": 1, "clip_sample": False}  # what StableDiffusionPipeline sets
WITH_KARRAS = ("lms", "euler", "heun", "dpmpp_2m")
ZERO_SNR = ("ddim", "ddpm", "lcm", "euler", "euler_ancestral", "dpmpp_2m")
NOISE = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))


def said(name: str, **settings) -> dict[str, object]:
    """A scheduler_config.json for the sampler `name`."""
    whole = {"skip_prk_steps": True} if name == "plms" else {}
    return {"_class_name": CLASS_OF[name], **SD, **whole, **settings}


def last_of_diffusers(stored: dict, sampler: str, steps: int) -> torch.Tensor:
    kind = getattr(diffusers, CLASS_OF[sampler])
    scheduler = kind.from_config({"skip_prk_steps": True, **stored, **TEXT_TO_IMAGE})
    source = generators()
    wants = "generator" in inspect.signature(scheduler.step).parameters

    def options(index: int) -> dict:
        return {"generator": source} if wants else {}

    return scheduler_states(scheduler, steps, Network(torch.float32), NOISE, options)[-1]


def last_of_ours(stored: dict, sampler: str | None, steps: int, **told) -> torch.Tensor:
    own, config = sampler_and_schedule(stored, {}, 4)
    sampler = sampler or own
    levels = sampler_levels(sampler, Schedule(config), steps, **told)
    denoise = guided_denoiser(Network(torch.float32), config.prediction, CONTEXT.float())
    *_, step = from_noise(sampler, denoise, NOISE, levels, generators())
    return step.x


def errors(stored: dict, sampler: str | None = None, counts: tuple = COUNTS) -> dict[int, float]:
    own = sampler_and_schedule(stored, {}, 4)[0]
    pairs = {
        steps: (
            last_of_ours(stored, sampler, steps),
            last_of_diffusers(stored, sampler or own, steps),
        )
        for steps in counts
    }
    return {n: ((a - b).abs().max() / b.std()).item() for n, (a, b) in pairs.items()}


def too_far(found: dict[int, float], close: float = CLOSE) -> dict[int, float]:
    return {steps: off for steps, off in found.items() if not off < close}


@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_class_walks_every_spacing_as_in_diffusers(name, spacing):
    told = {} if spacing is None else {"timestep_spacing": spacing}
    for prediction in ("epsilon", "v_prediction"):
        stored = said(name, prediction_type=prediction, **told)
        assert sampler_and_schedule(stored, {}, 4)[0] == name
        assert too_far(errors(stored)) == {}, prediction


@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", WITH_KARRAS)
def test_karras_levels_are_those_of_the_class(name, spacing):
    told = {} if spacing is None else {"timestep_spacing": spacing}
    assert too_far(errors(said(name, use_karras_sigmas=True, **told))) == {}


@pytest.mark.parametrize("spacing", [None, "leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_terminal_snr_is_that_of_diffusers(name, spacing):
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    told |= {} if spacing is None else {"timestep_spacing": spacing}
    # on Euler's scale x begins 4096 loud, which leaves float32 no more
    close = 2e-3 if name.startswith("euler") else CLOSE
    assert too_far(errors(said(name, **told)), close) == {}


BETAS = {
    "beta_schedule is absent: linear": {"beta_schedule": ...},
    "all are absent: linear from .0001 to .02": dict.fromkeys(SD, ...),
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "a table": {"trained_betas": torch.linspace(0.001, 0.03, 1000).tolist(), "beta_start": ...},
    "a short table": {
        "trained_betas": torch.linspace(0.01, 0.2, 100).tolist(),
        "num_train_timesteps": 100,
    },
}


@pytest.mark.parametrize("case", BETAS)
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "plms"])
def test_betas_are_those_that_the_file_says(name, case):
    stored = {k: v for k, v in (said(name) | BETAS[case]).items() if v is not ...}
    assert too_far(errors(stored, counts=(2, 5))) == {}


@pytest.mark.parametrize("case", BETAS)
@pytest.mark.parametrize("name", WITH_KARRAS)
@pytest.mark.parametrize("karras", [False, True])
def test_levels_are_those_of_the_class_for_any_betas(name, case, karras):
    """Level by level, as some of these tables are too loud for float32 to walk on."""
    told = BETAS[case] | {"use_karras_sigmas": karras}
    stored = {k: v for k, v in (said(name) | told).items() if v is not ...}
    scheduler = getattr(diffusers, CLASS_OF[name]).from_config({**stored, **TEXT_TO_IMAGE})
    schedule = Schedule(sampler_and_schedule(stored, {}, 4)[1])
    for steps in (1, 2, 7, 20):
        scheduler.set_timesteps(steps)
        levels = sampler_levels(name, schedule, steps)
        sigmas = scheduler.sigmas.unique_consecutive().tolist()  # Heun says all but two twice
        ts = scheduler.timesteps.tolist()
        ts = [ts[0], *ts[1::2]] if name == "heun" else ts
        assert [level.sigma for level in levels] == pytest.approx(sigmas, rel=CLOSE)
        cut = karras and (name, case) == ("dpmpp_2m", "cosine")  # to whole t, also 998.9999999
        assert [level.t for level in levels[:-1]] == pytest.approx(ts, abs=1 if cut else 0.02)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_final_sigmas_type_ends_the_walk(name, final):
    assert too_far(errors(said(name, final_sigmas_type=final), counts=(1, 3, 14, 15, 20))) == {}


@pytest.mark.parametrize("name", ["ddim", "plms"])
@pytest.mark.parametrize("to_one", [True, False, None])
def test_set_alpha_to_one_ends_the_walk(name, to_one):
    told = {} if to_one is None else {"set_alpha_to_one": to_one}
    assert too_far(errors(said(name, **told))) == {}
    level = sampler_levels(name, Schedule(sampler_and_schedule(said(name, **told), {}, 4)[1]), 3)[
        -1
    ]
    clean = name == "ddim" if to_one is None else to_one  # the defaults of the two classes
    assert (level.sigma == 0) == clean


# What people really have: SD's first folders, those of today, sd-turbo's, a fine-tune's.
FOLDERS = {
    "old PNDM": said("plms", set_alpha_to_one=False, steps_offset=1, clip_sample=False),
    "DDIM": said("ddim", set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"),
    "sd-turbo": said(
        "euler",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        clip_sample=False,
        interpolation_type="linear",
        sample_max_value=1.0,
        sigma_max=None,
        sigma_min=None,
        steps_offset=1,
        timestep_spacing="trailing",
        timestep_type="discrete",
        trained_betas=None,
        use_karras_sigmas=False,
    ),
    "Karras": said("dpmpp_2m", use_karras_sigmas=True, solver_order=2, lower_order_final=True),
    "LCM": said("lcm", original_inference_steps=50, timestep_scaling=10.0, set_alpha_to_one=True),
    "ends early": said("euler", final_sigmas_type="sigma_min", timestep_spacing="linspace"),
}


@pytest.mark.parametrize("chosen", SAMPLERS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_another_sampler_is_x_from_config(folder, chosen):
    """Its own defaults where the folder says nothing, and what the folder says and it knows."""
    assert too_far(errors(FOLDERS[folder], chosen, counts=(1, 3, 10))) == {}


def test_an_explicit_spacing_wins_over_the_folders():
    config = sampler_and_schedule(FOLDERS["sd-turbo"], {}, 4)[1]
    schedule, plain = Schedule(config), Schedule(ScheduleConfig())
    for name in SAMPLERS:
        levels = sampler_levels(name, schedule, 7, "karras")
        assert levels[:-1] == sampler_levels(name, plain, 7, "karras")[:-1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_count_of_steps_is_that_count_and_finite(name):
    """Also where diffusers leaves its table (1000 steps), stands still or makes one too many."""
    for spacing in ("leading", "linspace", "trailing"):
        config = sampler_and_schedule(said(name, timestep_spacing=spacing), {}, 4)[1]
        for steps in (1, 2, 50) if name == "lcm" else (1, 2, 61, 500, 501, 999, 1000):
            levels = sampler_levels(name, Schedule(config), steps)
            ts = [level.t for level in levels[:-1]]
            assert len(ts) == steps and sorted(set(ts), reverse=True) == ts
            assert ts[0] <= 999 and ts[-1] >= 0
    with pytest.raises(ValueError, match="steps must be 1 to 1000, got 1001"):
        sampler_levels(name, Schedule(config), 1001)


# ---- the settings, one by one ----------------------------------------------------------------


def defaults_of(name: str) -> dict[str, object]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: one.default for key, one in parameters.items() if key != "self"}


@pytest.mark.parametrize("name", SCHEDULER_SETTINGS)
def test_an_absent_setting_has_the_default_of_the_class(name):
    table = SCHEDULER_SETTINGS[name]
    absent = dict(table.obeyed) | {key: value for key, (_, value) in table.fixed.items()}
    for key, default in defaults_of(name).items():
        if key not in table.ignored:
            assert absent[key] == default, key


@pytest.mark.parametrize("name", SCHEDULER_SETTINGS)
def test_no_setting_that_the_class_knows_is_ignored_but_those_of_what_is_off(name):
    of_what_is_off = {
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "flow_shift",
        "sample_max_value",
        "time_shift_type",
    }
    assert set(SCHEDULER_SETTINGS[name].ignored) & set(defaults_of(name)) <= of_what_is_off
    assert all(len(why) > 10 for why in SCHEDULER_SETTINGS[name].ignored.values())


def test_every_class_of_a_stable_diffusion_pipeline_is_known_or_refused_by_name():
    compatible = [kind.name for kind in diffusers.schedulers.KarrasDiffusionSchedulers]
    assert set(SCHEDULER_SETTINGS) <= {*compatible, "LCMScheduler"}
    for name in [*compatible, "LCMScheduler", "TCDScheduler", "FlowMatchEulerDiscreteScheduler"]:
        stored = said("plms", _class_name=name)
        if name in SCHEDULER_SETTINGS:
            assert sampler_and_schedule(stored, {}, 4)[0] == folder_scheduler.SAMPLER_OF[name]
        else:
            lacks = f"the scheduler {name}, which minisd does not have: set"
            assert lacks in refusal(stored)


def refusal(stored: dict, index: dict | None = None, channels: int = 4) -> str:
    with pytest.raises(ValueError) as caught:
        sampler_and_schedule(stored, index or {}, channels)
    return str(caught.value)


def test_without_a_class_the_index_says_it():
    stored = {key: value for key, value in said("plms").items() if key != "_class_name"}
    index = {"scheduler": ["diffusers", "PNDMScheduler"]}
    assert sampler_and_schedule(stored, index, 4)[0] == "plms"
    assert (
        "names no scheduler: set _class_name in the folder's scheduler/scheduler_config.json to"
        in refusal(stored)
    )
    for odd in (None, "PNDMScheduler", [None, None], []):
        assert "names no scheduler" in refusal(stored, {"scheduler": odd})


def test_two_classes_are_reported():
    index = {"scheduler": ["diffusers", "PNDMScheduler"]}
    with pytest.warns(
        UserWarning, match="two schedulers: EulerDiscreteScheduler in its scheduler/"
    ):
        assert sampler_and_schedule(said("euler"), index, 4)[0] == "euler"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler_and_schedule(said("plms"), index, 4)


# a setting of a class -> what the refusal names
REFUSED = [
    ("ddim", {"prediction_type": "sample"}, "prediction_type = 'sample'"),
    ("euler", {"prediction_type": None}, "prediction_type = None"),
    ("ddim", {"beta_schedule": "laplace"}, "beta_schedule = 'laplace'"),
    ("heun", {"beta_schedule": "exp"}, "beta_schedule = 'exp'"),
    ("ddim", {"beta_schedule": None}, "beta_schedule = None"),
    ("ddim", {"timestep_spacing": "even"}, "timestep_spacing = 'even'"),
    ("euler", {"timestep_spacing": None}, "timestep_spacing = None"),
    ("ddim", {"thresholding": True}, "thresholding = True"),
    ("dpmpp_2m", {"thresholding": True}, "thresholding = True"),
    ("ddim", {"set_alpha_to_one": 1}, "set_alpha_to_one = 1"),
    ("euler", {"final_sigmas_type": "one"}, "final_sigmas_type = 'one'"),
    ("euler", {"use_karras_sigmas": "yes"}, "use_karras_sigmas = 'yes'"),
    ("euler", {"use_exponential_sigmas": True}, "use_exponential_sigmas = True"),
    ("lms", {"use_beta_sigmas": True}, "use_beta_sigmas = True"),
    ("dpmpp_2m", {"use_lu_lambdas": True}, "use_lu_lambdas = True"),
    ("dpmpp_2m", {"use_flow_sigmas": True}, "use_flow_sigmas = True"),
    ("dpmpp_2m", {"use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
    ("dpmpp_2m", {"solver_order": 3}, "solver_order = 3"),
    ("dpmpp_2m", {"solver_type": "heun"}, "solver_type = 'heun'"),
    ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type = 'sde-dpmsolver++'"),
    ("dpmpp_2m", {"lambda_min_clipped": -5.1}, "lambda_min_clipped = -5.1"),
    ("dpmpp_2m", {"variance_type": "learned_range"}, "variance_type = 'learned_range'"),
    (
        "dpmpp_2m",
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        "lower_order_final = False with final_sigmas_type = 'sigma_min'",
    ),
    (
        "dpmpp_2m",
        {"final_sigmas_type": "sigma_min", "euler_at_final": True},
        "euler_at_final = True with final_sigmas_type = 'sigma_min'",
    ),
    ("ddpm", {"variance_type": "fixed_large"}, "variance_type = 'fixed_large'"),
    ("lcm", {"original_inference_steps": 100}, "original_inference_steps = 100"),
    ("ddim", {"original_inference_steps": 100}, "original_inference_steps = 100"),
    ("lcm", {"timestep_scaling": 5.0}, "timestep_scaling = 5.0"),
    ("euler", {"interpolation_type": "log_linear"}, "interpolation_type = 'log_linear'"),
    ("euler", {"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
    ("euler", {"sigma_min": 0.1}, "sigma_min = 0.1"),
    ("euler", {"sigma_max": 10}, "sigma_max = 10"),
    ("plms", {"skip_prk_steps": False}, "skip_prk_steps = False"),
    ("plms", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
    ("lms", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
    ("heun", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True"),
    ("ddpm", {"predict_epsilon": False}, "predict_epsilon = False"),
    ("ddim", {"a_setting_of_tomorrow": 1}, "a_setting_of_tomorrow = 1"),
]


@pytest.mark.parametrize(("name", "told", "named"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_minisd_lacks_is_refused_by_name(name, told, named):
    message = refusal(said(name, **told))
    assert f"{named} " in message or f"{named}:" in message
    assert SCHEDULER_FILE in message


def test_skip_prk_steps_is_false_where_it_is_absent():
    stored = said("plms")
    stored.pop("skip_prk_steps")
    assert "skip_prk_steps = False (the default)" in refusal(stored)
    assert sampler_and_schedule(stored, {}, 9)[0] == "plms"  # the inpainting pipeline sets it


@pytest.mark.parametrize("channels", [5, 9])
def test_the_other_pipelines_clip_where_the_file_says_so(channels):
    """StableDiffusionPipeline turns clip_sample off; those for depth and inpainting do not."""
    for told in ({}, {"clip_sample": True}):  # the class's default is true
        assert "clip_sample = True" in refusal(said("ddim", **told), channels=channels)
        assert sampler_and_schedule(said("ddim", **told), {}, 4)
    assert sampler_and_schedule(said("ddim", clip_sample=False), {}, channels)
    assert sampler_and_schedule(said("euler", clip_sample=True), {}, channels)  # has none


def test_only_the_depth_pipeline_keeps_the_files_steps_offset():
    ts = {}
    for channels in (4, 5, 9):
        stored = said("ddim", clip_sample=False, timestep_spacing="leading")
        schedule = Schedule(sampler_and_schedule(stored, {}, channels)[1])
        ts[channels] = [level.t for level in sampler_levels("ddim", schedule, 4)[:-1]]
    assert ts == {4: [751, 501, 251, 1], 5: [750, 500, 250, 0], 9: [751, 501, 251, 1]}


# ---- there and back --------------------------------------------------------------------------

WALKS = [
    {},
    {"spacing": "default"},
    {"spacing": "leading", "set_alpha_to_one": False},
    {"spacing": "linspace", "set_alpha_to_one": True, "final": "sigma_min"},
    {"spacing": "trailing", "karras": True, "final": "zero"},
    {"spacing": "default", "beta_schedule": "linear", "beta_end": 0.02},
    {"spacing": "leading", "beta_schedule": "squaredcos_cap_v2", "prediction": "v"},
    {"spacing": "trailing", "zero_terminal_snr": True, "prediction": "v"},
    {"spacing": "default", "betas": (0.1, 0.25, 0.5), "timesteps": 3},
]


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_written_file_reads_back_as_the_same_walk(sampler, walk):
    schedule = ScheduleConfig(**walk)
    if schedule.zero_terminal_snr and sampler not in ZERO_SNR:
        sampler = "ddim"  # the classes of the others cannot say it: DDIM's is written
    written = scheduler_json(ModelConfig(schedule=schedule, sampler=sampler))
    stored = json.loads(json.dumps(written))
    name, again = sampler_and_schedule(stored, {}, 4)
    assert name == sampler and again == schedule
    if walk:
        assert asdict(again) == asdict(schedule)
    assert (
        json.loads(json.dumps(scheduler_json(ModelConfig(schedule=again, sampler=name)))) == stored
    )


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "plms"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_original_walk_is_written_as_what_diffusers_calls_the_same(sampler, zero_snr):
    if zero_snr and sampler == "plms":
        return  # as above
    schedule = ScheduleConfig(zero_terminal_snr=zero_snr, prediction="v" if zero_snr else "eps")
    written = scheduler_json(ModelConfig(schedule=schedule, sampler=sampler))
    again = Schedule(sampler_and_schedule(written, {}, 4)[1])
    for steps in (1, 4, 10, 50, 1000):
        ours = sampler_levels(sampler, Schedule(schedule), steps)
        read = sampler_levels(sampler, again, steps)
        assert [level[:2] for level in read] == [level[:2] for level in ours]
    assert too_far(errors(written)) == {}


def test_a_classs_settings_survive_in_the_header_of_our_own_files():
    schedule = ScheduleConfig(spacing="trailing", karras=True, betas=(0.1, 0.2), timesteps=2)
    config = ModelConfig(schedule=schedule, sampler="heun")
    again, _ = config_from_metadata(config_to_metadata(config, Tokenizer.clip()))
    assert again == config and asdict(again) == asdict(config)


def test_configs_are_equal_whatever_their_walk_and_unlike_by_their_betas():
    assert ScheduleConfig(spacing="leading", set_alpha_to_one=False) == ScheduleConfig()
    assert ScheduleConfig(beta_schedule="linear") != ScheduleConfig()
    assert ScheduleConfig(betas=(0.1,)) != ScheduleConfig()
