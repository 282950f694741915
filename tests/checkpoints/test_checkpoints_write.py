"""Written files and folders are opened and run by those who made the layouts; nothing is lost."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from diffusers import (
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minisd.checkpoints.header import read_metadata
from minisd.checkpoints.info import inspect_source
from minisd.checkpoints.load import load, open_checkpoint
from minisd.checkpoints.write import convert, save
from minisd.config import ModelConfig
from minisd.pipeline import StableDiffusion
from tests.helpers.checkpoint_files import V1, V2, original, pipeline, single_file, with_inputs
from tests.helpers.reference_networks import (
    open_clip_text,
    original_unet,
    original_vae,
    run_open_clip_text,
)
from tests.helpers.side_by_side import relative_error

END_TO_END = 1e-4  # float32, largest error over the reference's spread
V2_V = replace(V2, name="v2-v", size=768, schedule=replace(V2.schedule, prediction="v"))
NEEDED = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
NOT_NEEDED = ("position_ids", "attn_mask", "logit_scale", "text_projection", "resblocks.2.")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Original files, with the U-Net in half precision and the rest in single."""
    folder = tmp_path_factory.mktemp("sources")
    for config in (V1, V2):
        tensors = single_file(original(config))
        for key in tensors:
            half = key.startswith("model.diffusion_model.")
            tensors[key] = tensors[key].half() if half else tensors[key].contiguous()
        save_file(tensors, folder / f"{config.name}.safetensors")
    return {config.name: folder / f"{config.name}.safetensors" for config in (V1, V2)}


def needed(path: Path) -> dict[str, Tensor]:
    """The tensors of an original file that the model uses."""
    tensors = load_file(path).items()
    ours = {key: tensor for key, tensor in tensors if key.startswith(NEEDED)}
    return {k: t for k, t in ours.items() if not any(name in k for name in NOT_NEEDED)}


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key


def start(config: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(1, config.unet.in_channels, 8, 8, generator=generator)


# ---- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["diffusers", "ours", "original"])
@pytest.mark.parametrize("family", ["v1", "v2"])
def test_every_weight_survives_a_round_trip_bit_for_bit(sources, tmp_path, family, between):
    middle = tmp_path / ("folder" if between == "diffusers" else "file.safetensors")
    convert(sources[family], middle, between, prediction="eps")
    convert(middle, tmp_path / "back.safetensors")
    assert_same_bits(needed(tmp_path / "back.safetensors"), needed(sources[family]))


def test_keep_unused_copies_everything(sources, tmp_path):
    for family, source in sources.items():
        convert(source, tmp_path / f"{family}.safetensors", keep_unused=True, prediction="eps")
        assert_same_bits(load_file(tmp_path / f"{family}.safetensors"), load_file(source))


def test_without_keep_unused_only_the_model_is_copied(sources, tmp_path):
    convert(sources["v1"], tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == set(needed(sources["v1"]))


def test_dtype_changes_every_weight(sources, tmp_path):
    convert(sources["v1"], tmp_path / "half.safetensors", dtype=torch.float16)
    half = load_file(tmp_path / "half.safetensors")
    whole = needed(sources["v1"])
    assert_same_bits(half, {key: tensor.half() for key, tensor in whole.items()})
    convert(sources["v1"], tmp_path / "half", dtype=torch.float16)
    files = list((tmp_path / "half").glob("*/*.safetensors"))
    assert len(files) == 3
    assert all(t.dtype == torch.float16 for file in files for t in load_file(file).values())


def test_settings_that_no_tensor_tells_survive(tmp_path):
    """eps or v, the size, the latent's scale: through all layouts, without guessing."""
    config = replace(V2_V, vae=replace(V2_V.vae, scale=0.2), size=320)
    pipe = pipeline(config, tmp_path / "tokenizer")
    pipe.vae.register_to_config(scaling_factor=0.2)
    pipe.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "ours")
    convert(tmp_path / "b.safetensors", tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.safetensors", "b.safetensors", "c"):
            found = open_checkpoint(tmp_path / name).config
            assert replace(found, name=config.name) == config


# ---- the makers of the layouts open them ------------------------------------------------------


@pytest.mark.parametrize("family", ["v1", "v2"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_diffusers_opens_a_converted_folder_and_draws_our_picture(
    sources, tmp_path, family, prediction
):
    convert(sources[family], tmp_path / "folder", dtype=torch.float32, prediction=prediction)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    parts = load(sources[family], prediction=prediction)
    ours = StableDiffusion(*[getattr(parts, field) for field in parts.__dataclass_fields__])
    latent = start(parts.config)
    prompt = {"prompt": "a cat", "negative_prompt": "a dog"}
    theirs = pipe(
        **prompt, num_inference_steps=3, guidance_scale=3.0, latents=latent, output_type="latent"
    ).images
    side = 8 * parts.config.vae.factor
    *_, last = ours.txt2img_steps(
        **prompt, steps=3, cfg_scale=3.0, latent=latent, width=side, height=side
    )
    assert relative_error(last.x, theirs) < END_TO_END
    assert (
        relative_error(ours.decode(theirs), pipe.vae.decode(theirs / 0.18215).sample) < END_TO_END
    )


@pytest.mark.parametrize(
    ("channels", "opens"),
    [(9, StableDiffusionInpaintPipeline), (5, StableDiffusionDepth2ImgPipeline)],
)
def test_diffusers_opens_a_converted_folder_for_other_inputs(tmp_path, channels, opens):
    config = with_inputs(V2, channels)
    save_file(
        {key: tensor.contiguous() for key, tensor in single_file(original(config)).items()},
        tmp_path / "a.safetensors",
    )
    convert(tmp_path / "a.safetensors", tmp_path / "folder")
    depth = {"depth_estimator": None, "feature_extractor": None}  # a model of its own: not ours
    pipe = opens.from_pretrained(tmp_path / "folder", **(depth if channels == 5 else {}))
    assert pipe.unet.config.in_channels == channels
    parts = load(tmp_path / "a.safetensors")
    x, t, context = start(config), torch.tensor([500]), torch.randn(1, 77, 64)
    with torch.no_grad():
        assert (
            relative_error(parts.unet(x, t, context), pipe.unet(x, t, context).sample) < END_TO_END
        )


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory) -> Path:
    """What diffusers saved, converted to an original v2 file."""
    folder = tmp_path_factory.mktemp("converted")
    pipeline(V2_V, folder / "tokenizer").save_pretrained(folder / "v2")
    convert(folder / "v2", folder / "v2.safetensors")
    return folder / "v2.safetensors"


def part(path: Path, prefix: str) -> dict[str, Tensor]:
    tensors = load_file(path).items()
    return {key.removeprefix(prefix): t.float() for key, t in tensors if key.startswith(prefix)}


@torch.no_grad()
def test_the_original_classes_open_a_converted_file(from_folder):
    unet, vae = original_unet(V2_V.unet).eval(), original_vae(V2_V.vae).eval()
    unet.load_state_dict(part(from_folder, "model.diffusion_model."), strict=True)
    vae.load_state_dict(part(from_folder, "first_stage_model."), strict=True)
    parts = load(from_folder)
    x, t, context = start(V2_V), torch.tensor([500]), torch.randn(1, 77, 64)
    assert relative_error(parts.unet(x, t, context), unet(x, t, context)) < END_TO_END
    assert relative_error(parts.vae.decode(x), vae.decode(x)) < END_TO_END


def all_layers(tower: nn.Module, tokens: Tensor) -> Tensor:
    """A tower that ends where SD v2 stops: every layer it has, then the final norm."""
    x = tower.token_embedding(tokens) + tower.positional_embedding
    for block in tower.transformer.resblocks:
        x = block(x, attn_mask=tower.attn_mask)
    return tower.ln_final(x)


@torch.no_grad()
def test_open_clip_opens_the_text_of_a_converted_file(from_folder):
    tower = open_clip_text(replace(V2.text, layers=V2.text.layers - 1)).eval()
    tower.text_projection = None  # for comparing with pictures: no folder has it
    tower.load_state_dict(part(from_folder, "cond_stage_model.model."), strict=True)
    parts = load(from_folder)
    tokens = parts.tokenizer(["a cat", "two dogs on a hill"])
    assert relative_error(parts.text_encoder(tokens), all_layers(tower, tokens)) < END_TO_END


@torch.no_grad()
def test_open_clip_opens_the_whole_tower_that_keep_unused_kept(sources, tmp_path):
    convert(sources["v2"], tmp_path / "a.safetensors", keep_unused=True, prediction="eps")
    kept = part(tmp_path / "a.safetensors", "cond_stage_model.model.")
    tower = open_clip_text(V2.text).eval()
    tower.load_state_dict({k: t for k, t in kept.items() if k not in ("attn_mask", "logit_scale")})
    parts = load(tmp_path / "a.safetensors")
    tokens = parts.tokenizer(["a cat", "two dogs on a hill"])
    assert (
        relative_error(parts.text_encoder(tokens), run_open_clip_text(tower, tokens)[0])
        < END_TO_END
    )


# ---- all or nothing --------------------------------------------------------------------------


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that may be looked into but not written to, also where the tests run as root."""
    with TemporaryDirectory() as name:
        user = os.geteuid()
        os.chmod(name, 0o555)
        if user == 0:
            os.seteuid(65534)  # nobody; that pytest's own folders are closed to
        yield Path(name)
        os.seteuid(user)
        os.chmod(name, 0o755)


def never(*arguments, **options):
    raise AssertionError("work has begun before the check")


def test_a_folder_without_write_permission_is_refused_before_the_work(locked, monkeypatch):
    monkeypatch.setattr("minisd.checkpoints.write.open_checkpoint", never)
    for name in ("a.safetensors", "folder"):
        with pytest.raises(ValueError, match=r"cannot be written \(Permission denied\): choose"):
            convert(locked, locked / name)
    assert not list(locked.iterdir())


@pytest.mark.parametrize("name", ["nowhere/a.safetensors", "a.txt/b.safetensors", "nowhere/a"])
def test_a_place_that_does_not_exist_is_refused_before_the_work(tmp_path, monkeypatch, name):
    monkeypatch.setattr("minisd.checkpoints.write.open_checkpoint", never)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"cannot be written .*: choose a folder that exists"):
        convert(tmp_path, tmp_path / name)


def test_what_is_there_already_is_never_overwritten(sources, tmp_path):
    for name in ("a.safetensors", "folder"):
        destination = tmp_path / name
        destination.mkdir()
        with pytest.raises(ValueError, match="already exists"):
            convert(sources["v1"], destination)


def test_unknown_layouts_and_endings_are_refused(sources, tmp_path):
    with pytest.raises(ValueError, match="the layouts are original, diffusers, ours"):
        convert(sources["v1"], tmp_path / "a.safetensors", "onnx")
    with pytest.raises(ValueError, match=r"a.ckpt must end in \.safetensors"):
        convert(sources["v1"], tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="leave keep_unused out"):
        convert(sources["v1"], tmp_path / "a", keep_unused=True)
    assert not list(tmp_path.iterdir())


def test_an_error_on_the_way_leaves_nothing_behind(sources, tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("minisd.checkpoints.write.save_file", fails)
    for name in ("a.safetensors", "folder"):
        with pytest.raises(OSError, match="no space"):
            convert(sources["v1"], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_saving_again_replaces_the_file_only_when_the_new_one_is_whole(
    sources, tmp_path, monkeypatch
):
    parts, path = load(sources["v1"]), tmp_path / "a.safetensors"
    save(path, parts, notes={"step": "1"})
    whole = path.read_bytes()

    def breaks_off(tensors, unfinished, settings):
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("minisd.checkpoints.write.save_file", breaks_off)
        save(path, parts, notes={"step": "2"})
    assert path.read_bytes() == whole
    save(path, parts, notes={"step": "2"})
    assert read_metadata(path)["step"] == "2"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="is a folder"):
        save(tmp_path, parts)


NORM = "cond_stage_model.model.ln_final.bias"
MASK = "cond_stage_model.model.attn_mask"


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (1e5, torch.float16, "numbers that are too large for torch.float16: keep the stored dtype"),
        (float("inf"), None, "NaN or infinity: .* Get another copy"),
        (float("nan"), torch.float16, "NaN or infinity: .* Get another copy"),
    ],
)
def test_weights_that_are_no_finite_numbers_are_not_written(sources, tmp_path, value, dtype, says):
    tensors = load_file(sources["v2"])
    tensors[NORM][3] = value
    save_file(tensors, tmp_path / "a.safetensors")
    before = list(tmp_path.iterdir())
    for name in ("b.safetensors", "b"):
        with pytest.raises(ValueError, match=rf"ln?(_final|ayer_norm)\S* holds {says}"):
            convert(tmp_path / "a.safetensors", tmp_path / name, dtype=dtype, prediction="eps")
    assert list(tmp_path.iterdir()) == before


def test_the_causal_mask_is_kept_with_its_infinities(sources, tmp_path):
    tensors = load_file(sources["v2"])
    tensors[MASK] = torch.full((77, 77), float("-inf")).triu(1)
    save_file(tensors, tmp_path / "a.safetensors")
    half = {"dtype": torch.float16, "prediction": "eps", "keep_unused": True}
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **half)
    assert torch.equal(load_file(tmp_path / "b.safetensors")[MASK], tensors[MASK].half())


def test_names_that_share_one_tensor_are_each_written(sources, tmp_path):
    tensors = load_file(sources["v1"])
    first, second = sorted(key for key in tensors if key.endswith("layer_norm1.weight"))[:2]
    tensors[second] = tensors[first]
    torch.save(tensors, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    written = load_file(tmp_path / "b.safetensors")
    assert torch.equal(written[first], tensors[first])
    assert torch.equal(written[second], tensors[first])


def test_written_files_have_the_permissions_that_the_user_has_set(sources, tmp_path):
    before = os.umask(0o027)
    try:
        convert(sources["v1"], tmp_path / "a.safetensors")
        convert(sources["v1"], tmp_path / "a")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert {file.stat().st_mode & 0o777 for file in files} == {0o640}


# ---- what is in a file -----------------------------------------------------------------------


def test_info_lists_the_parts_and_what_is_not_needed(sources):
    found = inspect_source(sources["v2"])
    assert (found.kind, found.layout) == ("Stable Diffusion model", "original")
    numbers = {name: sum(t.numel() for t in n.parameters()) for name, n in original(V2).items()}
    assert found.numbers["unet"] == numbers["unet"]
    assert found.numbers["vae"] == numbers["vae"]
    assert found.numbers["text_encoder"] < numbers["text_encoder"]
    assert found.known_by is None
    assert found.not_needed == {
        "averaged U-Net weights, read with ema=True": 209,
        "the last text layer, which v2 does not use": 12,
        "weights that compare text with pictures": 2,
        "the causal mask": 1,
    }
    assert "load() will test the U-Net on noise" in str(found)


def test_info_says_what_is_predicted_and_how_that_is_known(sources, tmp_path):
    assert "predicts      eps or v: the file does not say which. load() will test" in str(
        inspect_source(sources["v1"])
    )
    convert(sources["v2"], tmp_path / "a", prediction="v")
    assert "predicts      v, by its scheduler's settings" in str(inspect_source(tmp_path / "a"))
    assert "made for      768 x 768 pixels" in str(inspect_source(tmp_path / "a"))
    assert "stored as     float16: 208 tensors" in str(inspect_source(tmp_path / "a"))
