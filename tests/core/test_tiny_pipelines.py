"""The tiny pipelines that diffusers tests itself with, saved by diffusers and drawn by both.

Their settings are those of StableDiffusionPipelineFastTests.get_dummy_components: the first ones
(U-Net and VAE 32/64, text with hidden size 32, MLP 37, 5 layers, 4 heads), which are those of
hf-internal-testing/tiny-random-clip, and today's, which are smaller. Every tensor is random.
"""

import inspect
import json
from dataclasses import asdict
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import minisd
from minisd.checkpoints.folder_scheduler import CLASS_OF, SCHEDULER_FILE
from minisd.checkpoints.folder_tokenizer import write_tokenizer
from minisd.checkpoints.write import convert
from minisd.samplers import SAMPLERS
from minisd.sampling import sampler_levels
from minisd.tasks.depth2img import depth2img_steps
from minisd.tasks.img2img import img2img_steps
from minisd.tasks.inpaint import inpaint_steps
from minisd.tokenizer import Tokenizer
from tests.helpers.diffusers_tiny import SIDE, networks
from tests.helpers.pipeline_pairs import NO_FILTER
from tests.helpers.reference_networks import randomise
from tests.helpers.side_by_side import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

CLOSE = 1e-4  # of the spread, after a whole walk
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WITH_KARRAS = ("lms", "euler", "heun", "dpmpp_2m")


def vocabulary(folder: Path) -> CLIPTokenizer:
    """1000 entries, as tiny-random-clip has: its own is nowhere on this side of the network."""
    texts = [inspect.getsource(diffusers.schedulers.DDIMScheduler)]
    write_tokenizer(folder, Tokenizer.train(texts, 1000))
    return CLIPTokenizer.from_pretrained(folder)


def smallest(channels: int, v2: bool) -> dict[str, torch.nn.Module]:
    """As StableDiffusionPipelineFastTests has them since 2023: one channel for each head."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=32,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=2,
    )
    vae = AutoencoderKL(
        block_out_channels=[4, 8],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=2,
    )
    text = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        hidden_size=8,
        intermediate_size=16,
        layer_norm_eps=1e-05,
        num_attention_heads=2,
        num_hidden_layers=2,
        pad_token_id=1,
        vocab_size=1000,
    )
    return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(text)}


def saved(
    folder: Path, pipeline: type, channels: int = 4, v2: bool = False, made_by=networks
) -> Path:
    parts = made_by(channels, v2)
    for seed, network in enumerate(parts.values()):
        randomise(network.eval(), gain=1.0, seed=seed)
    scheduler = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    depth = pipeline is StableDiffusionDepth2ImgPipeline
    others = {"depth_estimator": None, "feature_extractor": None} if depth else NO_FILTER
    tokenizer = vocabulary(folder / "tokenizer")
    pipe = pipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, **others)
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"


class Both:
    """A folder whose scheduler can be told otherwise, and what each side draws with it."""

    def __init__(self, folder: Path, pipeline: type):
        self.folder, self.pipeline = folder, pipeline
        depth = pipeline is StableDiffusionDepth2ImgPipeline
        self.others = {"depth_estimator": None, "feature_extractor": None} if depth else NO_FILTER
        pipe = pipeline.from_pretrained(folder, **self.others)
        names = ("unet", "vae", "text_encoder", "tokenizer")
        self.parts = {name: pipe.components[name] for name in names}

    def tell(self, name: str, **settings) -> None:
        """The sampler's class and settings, as a folder with them has them."""
        whole = {"skip_prk_steps": True} if name == "plms" else {}
        stored = {"_class_name": CLASS_OF[name], **SD, **whole, **settings}
        stored = {key: value for key, value in stored.items() if value is not ...}
        (self.folder / SCHEDULER_FILE).write_text(json.dumps(stored), encoding="utf-8")
        index = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        index["scheduler"] = ["diffusers", stored["_class_name"]]
        (self.folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")

    def theirs(self) -> object:
        name = json.loads((self.folder / SCHEDULER_FILE).read_text(encoding="utf-8"))["_class_name"]
        scheduler = getattr(diffusers, name).from_pretrained(self.folder, subfolder="scheduler")
        pipe = self.pipeline(**self.parts, scheduler=scheduler, **self.others)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def with_defaults(name: str, pipeline: type, **kind):
    @pytest.fixture(scope="module", name=name)
    def both(tmp_path_factory) -> Both:
        return Both(saved(tmp_path_factory.mktemp(name), pipeline, **kind), pipeline)

    return both


tiny = with_defaults("tiny", StableDiffusionPipeline)
tiny_v2 = with_defaults("tiny_v2", StableDiffusionPipeline, v2=True)
smallest_both = with_defaults("smallest_both", StableDiffusionPipeline, made_by=smallest)
img2img_both = with_defaults("img2img_both", StableDiffusionImg2ImgPipeline)
inpaint_both = with_defaults("inpaint_both", StableDiffusionInpaintPipeline, channels=9)
depth_both = with_defaults("depth_both", StableDiffusionDepth2ImgPipeline, channels=5)


def of_seed(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def apart(both: Both, counts: tuple[int, ...], cfg_scale: float = 7.5) -> dict[int, float]:
    """How far the two are apart after walks of so many steps, where they are too far.

    Both draw their noise from one seed: the start's, then that of the steps.
    """
    pipe, sd = both.theirs(), minisd.load(both.folder)
    size, found = {"height": SIDE, "width": SIDE}, {}
    for steps in counts:
        theirs = pipe(
            "a cat",
            negative_prompt="blurry",
            num_inference_steps=steps,
            guidance_scale=cfg_scale,
            generator=of_seed(),
            output_type="latent",
            **size,
        ).images
        settings = {"steps": steps, "cfg_scale": cfg_scale or 1.0, "seed": 3}
        *_, step = sd.txt2img_steps("a cat", "blurry", **settings, **size)
        found[steps] = relative_error(step.x, theirs)
    return {steps: far for steps, far in found.items() if not far < CLOSE}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_tiny_pipeline_draws_what_diffusers_draws(tiny, name):
    """With the folder's own class and nothing else said, after several counts of steps."""
    tiny.tell(name)
    assert minisd.load(tiny.folder).config.sampler == name
    assert apart(tiny, (1, 2, 3, 5, 10)) == {}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_smallest_pipeline_draws_what_diffusers_draws(smallest_both, name):
    smallest_both.tell(name)
    assert apart(smallest_both, (2,)) == {}


@pytest.mark.parametrize("name", WITH_KARRAS)
def test_the_tiny_pipeline_draws_with_karras_sigmas(tiny, name):
    tiny.tell(name, use_karras_sigmas=True)
    assert apart(tiny, (1, 2, 5)) == {}


@pytest.mark.parametrize("name", SAMPLERS)
def test_trailing_draws_what_diffusers_draws(tiny_v2, name):
    """On SD2's layout, with a network that predicts v. Every spacing: test_folder_schedulers."""
    tiny_v2.tell(name, timestep_spacing="trailing", prediction_type="v_prediction")
    assert apart(tiny_v2, (3,)) == {}


@pytest.mark.parametrize("told", [{}, {"clip_sample": True, "steps_offset": 0}])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun"])
def test_the_pipeline_turns_clipping_off_and_offsets_by_1(tiny, name, told):
    tiny.tell(name, timestep_spacing="leading", **told)
    assert apart(tiny, (3,)) == {}


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["tiny", "tiny_v2"])
def test_sd_turbos_settings_draw_what_diffusers_draws(request, kind, guidance_scale):
    """One step from t = 999, without guidance: diffusers' 0 and 1 are both the prompt alone."""
    both = request.getfixturevalue(kind)
    both.tell(
        "euler",
        clip_sample=False,
        interpolation_type="linear",
        sample_max_value=1.0,
        set_alpha_to_one=False,
        sigma_max=None,
        sigma_min=None,
        skip_prk_steps=True,
        steps_offset=1,
        timestep_spacing="trailing",
        timestep_type="discrete",
        trained_betas=None,
        use_karras_sigmas=False,
    )
    sd = minisd.load(both.folder)
    assert [level.t for level in sampler_levels(sd.config.sampler, sd.schedule, 1)] == [999, -1]
    assert apart(both, (1, 4), guidance_scale) == {}


# ---- other tasks -----------------------------------------------------------------------------

PICTURE = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["ddim", "lcm", "euler", "euler_ancestral", "heun", "dpmpp_2m"])
def test_strength_cuts_the_folders_walk(img2img_both, name, spacing):
    """Not PLMS: after a cut, diffusers takes its first step twice in another place."""
    last = {"final_sigmas_type": "sigma_min"} if name == "dpmpp_2m" else {}
    img2img_both.tell(name, timestep_spacing=spacing, **last)
    # DPM++ may end early: it tells a short walk by its steps before the cut
    steps, common = (16 if last else 5), {"strength": 0.6}
    theirs = img2img_both.theirs()(
        "a cat",
        image=(PICTURE + 1) / 2,
        num_inference_steps=steps,
        guidance_scale=7.5,
        generator=of_seed(),
        output_type="latent",
        **common,
    ).images
    sd = minisd.load(img2img_both.folder)
    *_, step = img2img_steps(sd, "a cat", PICTURE, steps=steps, seed=3, **common)
    assert relative_error(step.x, theirs) < CLOSE


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["plms", "lcm", "euler"])
def test_inpainting_walks_as_the_folder_says(inpaint_both, name, spacing):
    """Its pipeline skips the Runge-Kutta steps by itself, and leaves clip_sample as it is."""
    inpaint_both.tell(name, timestep_spacing=spacing, clip_sample=False, skip_prk_steps=...)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[:, :, 8:24, 4:20] = 1
    theirs = inpaint_both.theirs()(
        "a cat",
        image=(PICTURE + 1) / 2,
        mask_image=mask,
        num_inference_steps=3,
        strength=1.0,
        guidance_scale=7.5,
        generator=of_seed(),
        output_type="latent",
        height=SIDE,
        width=SIDE,
    ).images
    sd = minisd.load(inpaint_both.folder)
    *_, step = inpaint_steps(sd, "a cat", PICTURE, mask, 1.0, steps=3, seed=3)
    assert relative_error(step.x, theirs) < CLOSE


@pytest.mark.parametrize(("name", "offset"), [("ddim", 0), ("ddim", 1), ("lcm", 1)])
def test_the_depth_pipeline_leaves_the_files_steps_offset(depth_both, name, offset, monkeypatch):
    depth_both.tell(name, clip_sample=False, steps_offset=offset)
    depth = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    theirs = depth_both.theirs()(
        "a cat",
        image=(PICTURE + 1) / 2,
        depth_map=depth,
        strength=0.75,
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=of_seed(),
        output_type="latent",
    ).images
    monkeypatch.setattr("minisd.tasks.depth2img.FLAT", 0.0)  # diffusers has none
    sd = minisd.load(depth_both.folder)
    settings = {"strength": 0.75, "steps": 4, "seed": 3}
    *_, step = depth2img_steps(sd, "a cat", PICTURE, depth[None], **settings)
    assert relative_error(step.x, theirs) < CLOSE


# ---- there and back --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plms", "lcm", "dpmpp_2m"])
def test_a_folder_converted_and_back_is_the_same_folder(tiny, tmp_path, name):
    told = {"timestep_spacing": "trailing", "use_karras_sigmas": True, "set_alpha_to_one": True}
    for settings in ({}, told):
        tiny.tell(name, **settings)
        place = tmp_path / f"{len(settings)}"
        place.mkdir()
        convert(tiny.folder, place / "a.safetensors")
        convert(place / "a.safetensors", place / "b")
        convert(place / "b", place / "c")
        assert (place / "b" / SCHEDULER_FILE).read_bytes() == (
            place / "c" / SCHEDULER_FILE
        ).read_bytes()
        configs = [minisd.load(path).config for path in (tiny.folder, place / "a.safetensors")]
        configs.append(minisd.load(place / "c").config)
        assert len({str(asdict(config) | {"name": ""}) for config in configs}) == 1


@pytest.mark.parametrize("sampler", [None, "euler"])
def test_the_mini_draws_the_same_from_a_folder(tmp_path, sampler):
    convert("mini", tmp_path / "folder")
    settings = {"steps": 4, "seed": 1, "cfg_scale": 3.0, "sampler": sampler}
    latents = []
    for source in ("mini", tmp_path / "folder"):
        *_, step = minisd.load(source).txt2img_steps("a red car", **settings)
        latents.append(step.x)
    if sampler is None:
        assert torch.equal(*latents)
    else:  # sigma between two t: diffusers' mean and k-diffusion's
        assert relative_error(*latents) < 1e-3


# ---- what no walk can be computed with -------------------------------------------------------

WRONG = [
    {"beta_start": 0},
    {"beta_end": 1.5},
    {"trained_betas": [0.1, 0.2]},
    {"trained_betas": [0.1] * 999 + [1.0]},
    {"trained_betas": [0.1] * 999 + ["x"]},
    {"trained_betas": "none"},
    {"num_train_timesteps": 0},
    {"num_train_timesteps": 12.5},
    {"beta_start": None},
    {"trained_betas": 3},
    {"num_train_timesteps": "1000"},
    {"rescale_betas_zero_snr": True},  # of an eps network: nothing can be said at the last t
    {"_class_name": ["a", "b"]},
    {"_class_name": 5},
]


@pytest.mark.parametrize("told", WRONG, ids=str)
def test_values_that_are_none_are_refused_when_a_folder_is_opened(tiny, told):
    tiny.tell("ddim", **told)
    with pytest.raises(ValueError, match=r"^pipe .*\.$"):
        minisd.load(tiny.folder)
