"""The table of names covers our networks, and the references', to the last tensor."""

from dataclasses import replace

import pytest
import torch

from docs.make.map_page import PAGE, page
from minisd.checkpoints import names
from minisd.config import (
    MINI,
    SD15,
    SD15_INPAINT,
    SD20_BASE,
    SD20_DEPTH,
    SD20_INPAINT,
    SD21,
    ModelConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from tests.helpers.reference_networks import THEIRS, beyond, ours, randomise, spelling

PARTS = ["unet", "vae", "text_encoder"]
NAMED = [SD15, SD15_INPAINT, SD20_BASE, SD21, SD20_INPAINT, SD20_DEPTH]
ODD_V1 = ModelConfig(
    name="odd-v1",
    text=TextConfig(vocab_size=50, width=32, layers=1, heads=2),
    unet=UNetConfig(
        channels=(32, 96, 64), attention=(False, True, False), res_blocks=3, context_dim=8, heads=2
    ),
    vae=VAEConfig(channels=(32, 96, 32), latent_channels=3, res_blocks=1),
)
ODD_V2 = replace(
    ODD_V1,
    name="odd-v2",
    unet=UNetConfig(
        channels=(32,), attention=(True,), res_blocks=1, head_width=16, linear_projection=True
    ),
    vae=VAEConfig(channels=(64,)),
)
CONFIGS = [*NAMED, MINI, ODD_V1, ODD_V2]


def by_name(value) -> str | None:
    return value.name if isinstance(value, ModelConfig) else None


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("config", CONFIGS, ids=by_name)
def test_the_table_covers_every_parameter_and_nothing_else(config: ModelConfig, part: str):
    network, rows = ours(part, config), names.model_rows(config)[part]
    parameters = network.state_dict()
    known = {name for name, _ in network.named_modules()} | set(parameters)
    assert [row.ours for row in rows if row.ours not in known] == []
    assert len({row.ours for row in rows}) == len(rows)
    for layout in ("original", "diffusers"):
        official = names.to_official(parameters, rows, layout)
        back = names.from_official(official, rows, layout)
        assert shapes(back) == shapes(parameters)


def has_original(config: ModelConfig, part: str) -> bool:
    """The original's widths are whole multiples of the first, unlike the mini's; and v1's original
    text transformer is Hugging Face's."""
    return names.is_v2(config) if part == "text_encoder" else config is not MINI


REFERENCES = [
    (config, part, layout)
    for config in CONFIGS
    for part in PARTS
    for layout in ("original", "diffusers")
    if layout == "diffusers" or has_original(config, part)
]


@pytest.mark.parametrize("config, part, layout", REFERENCES, ids=by_name)
def test_official_names_and_shapes_are_the_references(config: ModelConfig, part: str, layout: str):
    network = ours(part, config)
    build, _ = THEIRS[part, layout]
    with torch.device("meta"):
        theirs = build(network.config)
    rows = names.model_rows(config)[part]
    official = names.to_official(network.state_dict(), rows, layout)
    expected = {spelling(theirs, key): shape for key, shape in shapes(official).items()}
    needed = {key: it for key, it in shapes(theirs.state_dict()).items() if not beyond(key, config)}
    assert expected == needed


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("config", [ODD_V1, ODD_V2], ids=by_name)
def test_there_and_back_changes_no_bit(config: ModelConfig, part: str, layout: str):
    network, rows = ours(part, config), names.model_rows(config)[part]
    randomise(network, 1.0, seed=0)
    parameters = network.state_dict()
    official = names.to_official(parameters, rows, layout)
    back = names.from_official(official, rows, layout)
    assert back.keys() == parameters.keys()
    assert all(torch.equal(back[key], parameters[key]) for key in parameters)
    again = names.to_official(back, rows, layout)
    assert again.keys() == official.keys()
    assert all(torch.equal(again[key], official[key]) for key in official)


def test_v1_files_store_projections_as_convolutions_and_v2_files_as_matrices():
    place = "input_blocks.1.1.proj_in.weight"
    for config, shape in [(SD15, (320, 320, 1, 1)), (SD20_BASE, (320, 320))]:
        rows = names.model_rows(config)["unet"]
        official = names.to_official(ours("unet", config).state_dict(), rows, "original")
        assert official[place].shape == shape


def test_open_clips_one_matrix_holds_q_then_k_then_v():
    config = replace(ODD_V2, text=TextConfig(vocab_size=50, width=32, layers=1, heads=2))
    rows = names.model_rows(config)["text_encoder"]
    parts = {f"layers.0.attn.to_{x}.weight": torch.full((2, 2), i) for i, x in enumerate("qkv")}
    fused = names.to_official(parts, rows, "original")
    (matrix,) = fused.values()
    assert list(fused) == ["transformer.resblocks.0.attn.in_proj_weight"]
    assert matrix[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_original_counts_the_vaes_decoder_levels_from_the_largest():
    rows = {row.ours: row for row in names.model_rows(SD15)["vae"]}
    first = rows["decoder.up.0.res.0.conv1"]
    assert first.original == "decoder.up.3.block.0.conv1"
    assert first.diffusers == "decoder.up_blocks.0.resnets.0.conv1"


@pytest.mark.parametrize(
    "part, written, usual",
    [
        ("vae", "encoder.mid_block.attentions.0.query.weight", "to_q.weight"),
        ("vae", "encoder.mid_block.attentions.0.key.weight", "to_k.weight"),
        ("vae", "encoder.mid_block.attentions.0.value.bias", "to_v.bias"),
        ("vae", "encoder.mid_block.attentions.0.proj_attn.bias", "to_out.0.bias"),
        ("vae", "encoder.mid_block.attentions.0.to_out.0.bias", "to_out.0.bias"),
        (
            "text_encoder",
            "encoder.layers.0.mlp.fc1.bias",
            "text_model.encoder.layers.0.mlp.fc1.bias",
        ),
        ("text_encoder", "text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
    ],
)
def test_folders_of_other_versions_are_spelt_as_usual(part: str, written: str, usual: str):
    name = names.usual_name(written, part)
    assert name.endswith(usual)
    config = replace(SD15, vae=VAEConfig(channels=(32,)), text=TextConfig(layers=1))
    rows = names.model_rows(config)[part]
    assert any(row.key("diffusers", leaf) == name for row in rows for leaf in names.LEAVES)


def test_the_page_of_names_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "docs/map.md is old: run python -m docs.make.map_page"
    )


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
