"""Every setting of every file that is read: obeyed, known not to matter, or refused by its name.

The tables themselves are held against the references' classes where their readers are tested.
"""

import json
import re

import pytest
import yaml
from safetensors.torch import save_file

import minisd
from docs.make.formats_page import PAGE, page
from minisd.adapters.controlnet import ControlNet
from minisd.adapters.lora import lora
from minisd.adapters.vae_file import swap_vae
from minisd.checkpoints.known_settings import REQUIRED, settings_tables
from minisd.checkpoints.read import read_tensors
from minisd.checkpoints.write import convert
from minisd.config import WEIGHTS

TABLES = settings_tables()
FIXED = [(name, setting) for name, table in TABLES.items() for setting in table.fixed]
FOLDER = [
    *("model_index.json", "minisd.json", "unet/config.json", "vae/config.json"),
    *("text_encoder/config.json", "scheduler/scheduler_config.json"),
    *("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"),
]


GOOD = {"content": "cat", "control_stage_config": {}, "attention_resolutions": [4, 2, 1]}


def needed(name: str) -> dict:
    """What a file must say at least."""
    table = TABLES[name]
    required = [setting for setting, value in table.obeyed.items() if value is REQUIRED]
    said = {setting: GOOD.get(setting, 1) for setting in required}
    refused = {k: some[0] for k, (some, absent) in table.fixed.items() if absent not in some}
    return said | refused


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "docs/formats.md is old: run python -m docs.make.formats_page"
    )


@pytest.mark.parametrize("name", TABLES)
def test_absent_settings_have_the_stated_values(name):
    said = needed(name)
    table = TABLES[name]
    assert table.read(said) == {k: said.get(k, value) for k, value in table.obeyed.items()}


@pytest.mark.parametrize("name", TABLES)
def test_an_unknown_setting_is_refused_by_its_name(name):
    said = needed(name)
    TABLES[name].read(said | {"_note": "x", "new_setting": None})
    for value in (True, False, 0, "x", [], {}):
        with pytest.raises(ValueError, match="new_setting"):
            TABLES[name].read(said | {"new_setting": value})


@pytest.mark.parametrize(("name", "setting"), FIXED)
def test_an_unknown_value_is_refused_with_the_settings_name(name, setting):
    with pytest.raises(ValueError, match=f"{re.escape(setting)} = 'odd'"):
        TABLES[name].read(needed(name) | {setting: "odd"})
    some, absent = TABLES[name].fixed[setting]
    if not any(type(absent) is type(one) and absent == one for one in some):
        rest = {k: v for k, v in needed(name).items() if k != setting}
        with pytest.raises(ValueError, match=re.escape(setting)):
            TABLES[name].read(rest)


@pytest.mark.parametrize("name", [name for name in TABLES if needed(name)])
def test_a_required_setting_is_missed_by_its_name(name):
    for setting in needed(name):
        said = {k: v for k, v in needed(name).items() if k != setting}
        with pytest.raises(ValueError, match=re.escape(setting)):
            TABLES[name].read(said)


# ---- through the readers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "model"
    convert("mini", path)
    return path


@pytest.mark.parametrize("name", FOLDER)
def test_a_folder_with_an_unknown_setting_does_not_load(folder, name):
    file = folder / name
    before = file.read_text(encoding="utf-8") if file.exists() else None
    stored = json.loads(before) if before else {}
    try:
        file.write_text(json.dumps(stored | {"new_setting": 1}), encoding="utf-8")
        with pytest.raises(ValueError, match="new_setting"):
            minisd.load(folder)
        file.write_text(json.dumps(stored | {"new_setting": None}), encoding="utf-8")
        minisd.load(folder)
    finally:
        file.write_text(before, encoding="utf-8") if before else file.unlink()


def test_a_lora_with_an_unknown_setting_is_refused(tmp_path):
    sd = minisd.load("mini")
    layer = sd.unet.down[0].attn[0].self_attention.to_q
    name = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    file = tmp_path / "adapter_model.safetensors"
    down, up = layer.weight[:2].contiguous(), layer.weight[:, :2].contiguous()
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file)
    settings = {"peft_type": "LORA", "r": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    lora(sd, file).remove()
    settings["new_setting"] = 1
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match="new_setting"):
        lora(sd, file)


def test_a_controlnet_with_an_unknown_setting_is_refused(tmp_path):
    tensors = read_tensors(WEIGHTS / "mini-edges.safetensors")
    config = minisd.load("mini").config.unet
    save_file(tensors, tmp_path / "edges.safetensors")
    ControlNet.load(tmp_path / "edges.safetensors", config)
    params = {"control_stage_config": {"params": {}}, "new_setting": 1}
    text = yaml.safe_dump({"model": {"params": params}})
    (tmp_path / "edges.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="new_setting"):
        ControlNet.load(tmp_path / "edges.safetensors", config)


def test_a_vae_with_an_unknown_setting_is_refused(folder):
    sd = minisd.load("mini")
    swap_vae(sd, folder / "vae").remove()
    file = folder / "vae" / "config.json"
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(json.dumps(json.loads(before) | {"new_setting": 1}), encoding="utf-8")
        with pytest.raises(ValueError, match="new_setting"):
            swap_vae(sd, folder / "vae")
    finally:
        file.write_text(before, encoding="utf-8")
