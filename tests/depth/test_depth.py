"""The depth estimator against transformers' DPT and the original MiDaS code, on random weights."""

import math

import pytest
import torch
from safetensors.torch import save_file
from transformers import BitConfig, DPTConfig, DPTForDepthEstimation

from minisd.depth.dpt import DepthEstimator, estimator_size, pad_same
from tests.helpers.references import midas
from tests.helpers.side_by_side import relative_error
from tests.helpers.tiny_models import SMALL_DPT

FLOAT32 = 1e-4  # largest error over the reference's spread


def randomise(network, seed=0):
    """Draw every parameter at random, norms included, so that no layer returns only zeros."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / math.sqrt(parameter[0].numel())
        else:
            parameter.data = 0.3 * noise + float("weight" in name)
    return network.eval().requires_grad_(False)


def of_transformers(config, height, width):
    """transformers' DPT of these sizes, for pictures of height x width (a square number of 16s)."""
    backbone = BitConfig(
        embedding_size=config.stem,
        hidden_sizes=[*config.stages, 8],
        depths=list(config.blocks),
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        num_groups=config.norm_groups,
        out_features=["stage1", "stage2", "stage3"],
    )
    settings = DPTConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        layer_norm_eps=1e-6,
        image_size=(height, width),
        patch_size=16,
        is_hybrid=True,
        qkv_bias=True,
        backbone_out_indices=[0, 1, *config.readout_layers],
        neck_hidden_sizes=[*config.stages[:2], config.width, config.width],
        fusion_hidden_size=config.features,
        backbone_featmap_shape=[1, config.stages[-1], config.grid, config.grid],
        readout_type="project",
        backbone_config=backbone,
    )
    return randomise(DPTForDepthEstimation(settings))


def depth_of_transformers(model, image):
    """Its own forward() takes only square pictures; this walks through its parts."""
    seen = model.dpt(image, output_hidden_states=True)
    taken = model.config.backbone_out_indices[2:]
    maps = [*seen.intermediate_activations[:2], *(seen.hidden_states[1 + i] for i in taken)]
    return model.head(model.neck(maps, image.shape[2] // 16, image.shape[3] // 16))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 128)])
def test_depth_is_that_of_transformers(tmp_path, height, width):
    reference = of_transformers(SMALL_DPT, height, width)
    path = tmp_path / "model.safetensors"
    save_file({name: t.contiguous() for name, t in reference.state_dict().items()}, path)
    ours = DepthEstimator.load(path, SMALL_DPT)
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    expected = depth_of_transformers(reference, image)
    assert expected.std() > 0
    assert relative_error(ours.estimate(image)[:, 0], expected) < FLOAT32


@pytest.fixture(scope="module")
def original():
    """The original's network: at its one size, in its own names."""
    network = randomise(midas.DPTDepthModel(backbone="vitb_rn50_384", non_negative=True))
    network.scratch.output_conv[4].bias += 20  # else the last ReLU might leave nothing
    return network


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "depth_model.model."])
def test_depth_is_that_of_the_original(original, tmp_path, prefix):
    state = {prefix + name: t.contiguous() for name, t in original.state_dict().items()}
    state |= {"model.diffusion_model.out.2.bias": torch.ones(4)} if prefix else {}
    save_file(state, tmp_path / "depth.safetensors")
    ours = DepthEstimator.load(tmp_path / "depth.safetensors")
    image = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    expected = original(image)
    assert expected.std() > 0
    assert relative_error(ours.estimate(image)[:, 0], expected) < FLOAT32


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (512, 512), (333, 1000), (64, 64)])
def test_the_estimator_looks_at_the_originals_size(size):
    resize = midas.Resize(
        384, 384, None, keep_aspect_ratio=True, ensure_multiple_of=32, resize_method="minimal"
    )
    width, height = resize.get_size(size[1], size[0])
    assert estimator_size(size) == (height, width)


def test_any_size_of_picture_gives_a_depth():
    ours = randomise(DepthEstimator(SMALL_DPT))
    image = torch.rand(1, 3, 60, 100) * 2 - 1
    depth = ours(image)
    assert depth.shape == (1, 1, *estimator_size((60, 100)))
    assert depth.isfinite().all()


def test_odd_padding_goes_right_and_below():
    padded = pad_same(torch.ones(1, 1, 4, 5), kernel=3, stride=2)
    assert padded.shape == (1, 1, 5, 7)
    assert padded[0, 0, -1].sum() == 0 and padded[0, 0, 0].sum() == 5


def test_a_file_without_an_estimator_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds no depth estimator"):
        DepthEstimator.load(tmp_path / "a.safetensors")
    state = DepthEstimator(SMALL_DPT).state_dict()
    save_file({"dpt.x": torch.ones(1), **state}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"1 unknown \(dpt\.x\)"):
        DepthEstimator.load(tmp_path / "b.safetensors", SMALL_DPT)
    both = {
        "pretrained.model.cls_token": torch.ones(1, 1, 48),
        "class_token": torch.zeros(1, 1, 48),
    }
    save_file({**state, **both}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"holds class_token twice .*, as class_token and as pre"):
        DepthEstimator.load(tmp_path / "c.safetensors", SMALL_DPT)
