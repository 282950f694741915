"""eps or v, and the noise levels of single files: every place that says it, and what none says."""

import hashlib
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

import minisd
from minisd.checkpoints import single_file_settings
from minisd.checkpoints.checkpoint import Parts
from minisd.checkpoints.guess_prediction import likeness_to_noise, try_prediction
from minisd.checkpoints.info import inspect_source
from minisd.checkpoints.load import load, open_checkpoint
from minisd.checkpoints.write import convert
from minisd.schedule import Schedule
from minisd.tokenizer import Tokenizer
from tests.helpers.checkpoint_files import V1, V2, original, single_file, with_inputs

EMPTY = torch.tensor([])
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(autouse=True, scope="module")
def one_vocabulary():
    """CLIP's, read once: it takes longer than the rest."""
    clip = cache(Tokenizer.clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "clip", clip)
        yield


@pytest.fixture(scope="module")
def tensors() -> dict[str, dict[str, Tensor]]:
    """Of single files that say nothing, by family."""
    named = {config.name: single_file(original(config)) for config in (V1, V2)}
    tables = ("betas", "alphas_cumprod")
    return {
        family: {key: tensor for key, tensor in found.items() if key not in tables}
        for family, found in named.items()
    }


@pytest.fixture
def write(tensors, tmp_path):
    def written(header=None, more=None, yaml=None, family="v1", name="a.safetensors") -> Path:
        content = tensors[family] | (more or {})
        path = tmp_path / name
        save_file({key: tensor.contiguous() for key, tensor in content.items()}, path, header)
        if yaml is not None:
            path.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
        return path

    return written


def said(path: Path, **options) -> tuple[str, str | None]:
    opened = open_checkpoint(path, **options)
    return opened.config.schedule.prediction, opened.known_by


def refusal(path: Path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        open_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def table(**settings) -> Tensor:
    """diffusers' alphas_cumprod."""
    return DDIMScheduler(**SD | settings).alphas_cumprod


# ---- the header ------------------------------------------------------------------------------

HEADERS = [
    ("modelspec.prediction_type", "epsilon", "eps"),
    ("modelspec.prediction_type", "v", "v"),
    ("modelspec.prediction_type", "v_prediction", "v"),
    ("modelspec.predict_key", "epsilon", "eps"),
    ("modelspec.predict_key", "v", "v"),
    ("prediction_type", "EPS", "eps"),
    ("ss_v_parameterization", "True", "v"),
    ("ss_v_parameterization", "False", "eps"),
    ("modelspec.architecture", "stable-diffusion-v2-768-v", "v"),
    ("ss_base_model_version", "sd_v2_v", "v"),
]


@pytest.mark.parametrize(("key", "value", "prediction"), HEADERS)
def test_each_key_of_the_header_tells(write, key, value, prediction):
    assert said(write({key: value})) == (prediction, f"{key} in its header")


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
@pytest.mark.parametrize("value", ["sample", "x0", "vee"])
def test_an_unknown_value_in_a_known_place_is_named(write, key, value):
    assert f"has {key} = '{value}', but minisd knows only" in refusal(write({key: value}))


def test_a_flag_that_is_neither_true_nor_false_is_named(write):
    assert "ss_zero_terminal_snr = 'maybe'" in refusal(write({"ss_zero_terminal_snr": "maybe"}))


@pytest.mark.parametrize("nothing", ["", "None"])
def test_an_empty_value_says_nothing(write, nothing):
    assert said(write({"modelspec.predict_key": nothing})) == ("eps", None)


def test_two_places_that_contradict_are_both_named(write):
    path = write({"modelspec.predict_key": "epsilon"}, {"v_pred": EMPTY})
    message = refusal(path)
    assert "eps according to modelspec.predict_key in its header" in message
    assert "v according to the marker tensor v_pred" in message
    assert 'Give prediction="eps" or prediction="v"' in message
    with pytest.warns(UserWarning, match=r"predicts v according to the marker .* minisd uses eps"):
        assert said(path, prediction="eps") == ("eps", "the argument prediction=")


def test_an_argument_against_the_file_warns(write, tmp_path):
    with pytest.warns(
        UserWarning, match=r"v according to modelspec.predict_key .* minisd uses eps"
    ):
        assert said(write({"modelspec.predict_key": "v"}), prediction="eps")[0] == "eps"
    convert(write({"modelspec.predict_key": "v"}), tmp_path / "folder")
    with pytest.warns(
        UserWarning, match=r"predicts v according to its scheduler's settings: minisd uses eps"
    ):
        assert said(tmp_path / "folder", prediction="eps")[0] == "eps"


def test_the_header_states_the_size(write):
    for stated, size in {"768x768": 768, "512x768": 512, "100x100": 512}.items():
        header = {"modelspec.predict_key": "epsilon", "modelspec.resolution": stated}
        assert open_checkpoint(write(header)).config.size == size


# ---- marker tensors --------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model."])
def test_marker_tensors_tell(write, prefix):
    assert said(write(more={f"{prefix}v_pred": EMPTY})) == (
        "v",
        f"the marker tensor {prefix}v_pred",
    )
    both = open_checkpoint(write(more={f"{prefix}v_pred": EMPTY, f"{prefix}ztsnr": EMPTY}))
    assert both.config.schedule.zero_terminal_snr
    theirs = table(rescale_betas_zero_snr=True)
    assert Schedule(both.config.schedule).alpha_bar.numpy() == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("header", "more"),
    [({"ss_zero_terminal_snr": "True"}, {}), ({}, {"ztsnr": EMPTY})],
)
def test_zero_terminal_snr_means_v(write, header, more):
    opened = open_checkpoint(write(header, more))
    assert opened.config.schedule.prediction == "v"
    assert opened.config.schedule.zero_terminal_snr
    assert "it must predict v" in refusal(
        write(header | {"modelspec.predict_key": "epsilon"}, more)
    )
    assert "it must predict v" in refusal(write(header, more), prediction="eps")


def test_models_with_edms_noise_levels_are_named(write):
    assert "EDM's noise levels (edm_mean)" in refusal(write(more={"edm_mean": torch.zeros(1)}))


# ---- the .yaml next to it --------------------------------------------------------------------


def yaml(*lines: str) -> str:
    return "model:\n  params:\n" + "".join(f"    {line}\n" for line in lines)


def test_a_comment_says_nothing_and_any_quotes_are_read(write):
    for line, prediction in {
        'parameterization: "v"': "v",
        "parameterization: 'v'": "v",
        "{parameterization: v}": "v",
        "parameterization: eps  # not v": "eps",
        '# parameterization: "v"\n    linear_start: 0.00085': "eps",
    }.items():
        assert said(write(yaml=yaml(line))) == (prediction, "a.yaml next to it")


@pytest.mark.parametrize("text", ["", "# nothing\n", "other: 1\n", "model: 3\n", "words"])
def test_a_yaml_of_something_else_says_nothing(write, text):
    assert said(write(yaml=text)) == ("eps", None)


def test_a_broken_yaml_says_so(write):
    assert "lies next to a.yaml, which is not valid YAML" in refusal(
        write(yaml="model: [\n  params")
    )


def test_a_yaml_against_the_header_is_an_error(write):
    message = refusal(write({"modelspec.predict_key": "epsilon"}, yaml=yaml("parameterization: v")))
    assert "modelspec.predict_key in its header" in message
    assert "a.yaml next to it" in message


@pytest.mark.parametrize(
    ("lines", "theirs"),
    [
        (("linear_start: 1e-4", "linear_end: 0.02"), {"beta_start": 1e-4, "beta_end": 0.02}),
        (("timesteps: 500",), {"num_train_timesteps": 500}),
        (("beta_schedule: sqrt_linear",), {"beta_schedule": "linear"}),
        (("parameterization: v", "zero_terminal_snr: true"), {"rescale_betas_zero_snr": True}),
    ],
)
def test_a_yamls_noise_levels_are_obeyed(write, lines, theirs):
    ours = Schedule(open_checkpoint(write(yaml=yaml(*lines))).config.schedule)
    assert ours.alpha_bar.numpy() == pytest.approx(table(**theirs), abs=1e-6)


def test_a_yamls_scale_is_obeyed(write):
    assert open_checkpoint(write(yaml=yaml("scale_factor: 0.5"))).config.vae.scale == 0.5
    assert (
        open_checkpoint(write(more={"scale_factor": torch.tensor(0.25)})).config.vae.scale == 0.25
    )


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("parameterization: x0",), "parameterization = 'x0'"),
        (("beta_schedule: cosine",), "beta_schedule = 'cosine'"),
        (("linear_start: much",), "linear_start = 'much'"),
        (("timesteps: 0",), "timesteps = 0"),
        (("timesteps: -5",), "timesteps = -5"),
        (("timesteps: 999.5",), "timesteps = 999.5"),
        (("given_betas: [0.1]",), "given_betas = [0.1]"),
        (("shape_of_water: 3",), "shape_of_water = 3"),
        (("clip_skip: 2",), "clip_skip = 2"),
        (("cond_stage_config: {params: {layer: hidden}}",), "layer = 'hidden'"),
        (("cond_stage_config: {params: {layer_idx: 10}}",), "layer_idx = 10"),
    ],
)
def test_what_no_network_here_has_is_refused(write, lines, says):
    assert says in refusal(write(yaml=yaml(*lines)))
    assert says in refusal(write(yaml=yaml(*lines), more={"alphas_cumprod": table()}))


PUBLISHED_YAML = """
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: "jpg"
    cond_stage_key: "txt"
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: False # we set this to false because this is an inference only config
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {use_checkpoint: True, use_fp16: True, model_channels: 320}
    first_stage_config: {target: ldm.models.autoencoder.AutoencoderKL}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params: {freeze: True, layer: "penultimate"}
"""


def test_the_published_v2_yaml_is_read_whole(write):
    config = open_checkpoint(write(yaml=PUBLISHED_YAML, family="v2")).config
    v = replace(V2, name="a", size=768, schedule=replace(V2.schedule, prediction="v"))
    assert config == v


def test_a_published_sha256_comes_before_the_yaml(write, monkeypatch):
    path = write(yaml=yaml("parameterization: eps"), family="v2")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(single_file_settings.PUBLISHED_PREDICTIONS, digest, "v")
    assert said(path) == ("v", "its sha256, which is that of a published file")


# ---- alphas_cumprod in the file --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_our_own_table_is_no_news_in_any_precision(write, dtype):
    v1 = {"modelspec.predict_key": "epsilon"}
    for stored in (table().to(dtype), table().to(dtype).float()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            opened = open_checkpoint(write(v1, {"alphas_cumprod": stored}))
        assert opened.config.schedule == V1.schedule


def test_a_table_with_zero_terminal_snr_is_obeyed(write):
    more = {"alphas_cumprod": table(rescale_betas_zero_snr=True)}
    opened = open_checkpoint(write(more=more))
    assert opened.config.schedule.zero_terminal_snr
    assert opened.config.schedule.prediction == "v"
    assert "it must predict v" in refusal(write(more=more), prediction="eps")
    message = refusal(write({"ss_zero_terminal_snr": "False"}, more))
    assert "its alphas_cumprod" in message
    assert "ss_zero_terminal_snr" in message


@pytest.mark.parametrize("settings", [{"beta_end": 0.0122}, {"beta_schedule": "linear"}])
def test_another_table_is_obeyed_and_reported(write, tmp_path, settings):
    theirs = table(**settings)
    path = write({"modelspec.predict_key": "epsilon"}, {"alphas_cumprod": theirs})
    with pytest.warns(UserWarning, match="noise levels .* that differ .*: minisd uses them"):
        opened = open_checkpoint(path)
    assert Schedule(opened.config.schedule).alpha_bar.numpy() == pytest.approx(theirs, rel=1e-5)
    with pytest.warns(UserWarning):
        convert(path, tmp_path / "b.safetensors")
    assert open_checkpoint(tmp_path / "b.safetensors").config.schedule == opened.config.schedule


def test_a_table_that_ends_without_signal_is_for_v_alone(write):
    theirs = DDIMScheduler(beta_schedule="linear", rescale_betas_zero_snr=True).alphas_cumprod
    path = write({"modelspec.predict_key": "v"}, {"alphas_cumprod": theirs})
    with pytest.warns(UserWarning, match="minisd uses them"):
        schedule = Schedule(open_checkpoint(path).config.schedule)
    assert schedule.alpha_bar[-1] == 0
    assert schedule.alpha_bar.numpy() == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("stored", [torch.rand(1000), table().flip(0), torch.full((9,), 2.0)])
def test_a_table_that_does_not_fall_is_reported(write, stored):
    path = write({"modelspec.predict_key": "epsilon"}, {"alphas_cumprod": stored})
    with pytest.warns(UserWarning, match="ignores them, because they do not fall from 1 to 0"):
        assert open_checkpoint(path).config.schedule == V1.schedule


# ---- the trial on noise ----------------------------------------------------------------------


class AsV(nn.Module):
    """An eps network that answers v = (eps - noise rate * x) / signal rate (Salimans & Ho 2022)."""

    def __init__(self, unet: nn.Module, alpha_bar: Tensor):
        super().__init__()
        self.unet, self.conv_in, self.alpha_bar = unet, unet.conv_in, alpha_bar

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        alpha_bar = self.alpha_bar[t].float().reshape(-1, 1, 1, 1)
        return (self.unet(x, t, context) - (1 - alpha_bar).sqrt() * x[:, :4]) / alpha_bar.sqrt()


@pytest.mark.parametrize("name", ["mini", "mini-inpaint", "mini-depth"])
@pytest.mark.parametrize("open_clip", [True, False])
def test_a_trained_network_is_told_in_either_family(name, open_clip):
    sd = minisd.load(name)
    config = replace(sd.config, open_clip_text=open_clip)
    rest = (config, sd.tokenizer, sd.text_encoder)
    for unet, prediction in ((sd.unet, "eps"), (AsV(sd.unet, sd.schedule.alpha_bar), "v")):
        with pytest.warns(
            UserWarning,
            match=rf"tested it on noise.* minisd assumes that the model predicts {prediction}",
        ):
            parts = try_prediction(Parts(*rest, unet, sd.vae), name)
        assert parts.config.schedule.prediction == prediction
        assert (likeness_to_noise(parts) > 0.7) == (prediction == "eps")


@pytest.mark.parametrize("channels", [4, 5, 9])
def test_an_untrained_v1_network_is_not_taken_for_v(tmp_path, channels):
    content = single_file(original(with_inputs(V1, channels)))
    save_file({key: t.contiguous() for key, t in content.items()}, tmp_path / "a.safetensors")
    assert "eps or v: the file does not say" in str(inspect_source(tmp_path / "a.safetensors"))
    with pytest.warns(
        UserWarning, match="no clear result. minisd assumes that the model predicts eps"
    ):
        assert load(tmp_path / "a.safetensors").config.schedule.prediction == "eps"


# ---- what nothing but the settings shows -------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "stated", "heads", "head_width"),
    [
        ("v1", "num_heads: 4", 4, None),
        ("v1", "num_heads: -1, num_head_channels: 16", 8, 16),
        ("v2", "num_head_channels: 32", 8, 32),
        ("v2", "num_heads: 2", 2, None),
        ("v1", "image_size: 32", 8, None),
    ],
)
def test_the_heads_that_a_yaml_states_are_obeyed(write, family, stated, heads, head_width):
    text = yaml(f"unet_config: {{params: {{{stated}}}}}")
    unet = open_checkpoint(write(yaml=text, family=family)).config.unet
    assert (unet.heads, unet.head_width) == (heads, head_width)


@pytest.mark.parametrize("prediction", [None, "eps", "v"])
def test_a_stated_size_holds_whoever_says_eps_or_v(write, prediction):
    path = write({"modelspec.resolution": "640x640"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load(path, prediction=prediction).config.size == 640


def test_betas_alone_are_the_noise_levels(write):
    betas = torch.linspace(0.0001, 0.02, 1000)
    with pytest.warns(UserWarning, match="minisd uses them"):
        config = open_checkpoint(write(more={"betas": betas})).config
    theirs = DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    assert torch.allclose(
        Schedule(config.schedule).alpha_bar.float(), theirs.alphas_cumprod, rtol=1e-4
    )


def test_a_tensor_by_our_name_does_not_make_the_file_ours(write):
    message = refusal(write(more={"unet.conv_in.weight": torch.zeros(1)}))
    assert "1 unknown (unet.conv_in.weight)" in message
    assert "missing" not in message
