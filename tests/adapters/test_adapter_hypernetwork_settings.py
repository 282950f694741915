"""What stands in a hypernetwork's file next to the networks: obeyed, ignored or refused by name.

The names are those of the web UI's Hypernetwork.save. The right value is its own formula, written
in torch.nn as the web UI builds it (modules/hypernetworks/hypernetwork.py).
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from minisd.adapters.hypernetwork import HYPERNETWORK_SETTINGS, read_hypernetwork
from tests.helpers.hypernetwork_files import small_network
from tests.helpers.reference_networks import randomise

WIDTH = 64
ACTIVATIONS = {"relu": nn.ReLU, "swish": nn.Hardswish, "linear": None, None: None}


def networks(structure=(1, 2, 1), norm=False):
    return {WIDTH: [small_network(WIDTH, structure, norm, False, seed) for seed in (0, 1)]}


def as_the_web_ui_saves(structure=(1, 2, 1), norm=False, **more):
    """Every name that its save() writes, from several versions."""
    return (
        networks(structure, norm)
        | {
            "step": 100,
            "name": "some",
            "layer_structure": list(structure),
            "activation_func": "relu",
            "is_layer_norm": norm,
            "weight_initialization": "Normal",
            "sd_checkpoint": "0123abcd",
            "sd_checkpoint_name": "v1-5",
            "activate_output": False,
            "use_dropout": False,
            "dropout_structure": None,
            "last_layer_dropout": False,
            "optional_info": None,
        }
        | more
    )


def built_as_the_web_ui(structure, activation, norm, activate_output, dropout, seed):
    """HypernetworkModule.__init__: each linear layer, then activation, norm and dropout."""
    layers, made = [], ACTIVATIONS[activation]
    for i, (a, b) in enumerate(pairwise(structure)):
        layers.append(nn.Linear(int(WIDTH * a), int(WIDTH * b)))
        if made and (i < len(structure) - 2 or activate_output):
            layers.append(made())
        if norm:
            layers.append(nn.LayerNorm(int(WIDTH * b)))
        if dropout and i < len(structure) - 2:
            layers.append(nn.Dropout(0.3))
    network = nn.Sequential(*layers)
    randomise(network, gain=1.0, seed=seed)
    return network.eval()


CASES = [
    ((1, 2, 1), "relu", False, False, False),
    ((1, 2, 1), "relu", False, True, True),
    ((1, 2, 1), "swish", True, True, True),
    ((1, 1.5, 2, 1), "relu", True, False, True),
    ((1, 2, 1), "linear", False, True, False),
    ((1, 2, 1), None, True, True, True),
]


@pytest.mark.parametrize(("structure", "activation", "norm", "activate_output", "dropout"), CASES)
@torch.no_grad()
def test_the_settings_are_obeyed(tmp_path, structure, activation, norm, activate_output, dropout):
    how = (structure, activation, norm, activate_output, dropout)
    theirs = [built_as_the_web_ui(*how, seed) for seed in (0, 1)]
    more = {"activation_func": activation, "activate_output": activate_output}
    content = as_the_web_ui_saves(structure, norm, **more, use_dropout=dropout)
    content[WIDTH] = tuple(
        {f"linear.{key}": tensor for key, tensor in one.state_dict().items()} for one in theirs
    )
    torch.save(content, tmp_path / "some.pt")
    pair = read_hypernetwork(tmp_path / "some.pt")[WIDTH]
    c = torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(2))
    for found, expected in zip(pair, theirs, strict=True):
        assert torch.allclose(found(c), expected(c), atol=1e-5)
    assert (pair[0](c) - pair[1](c)).abs().max() > 1e-2


def test_an_absent_activate_output_is_true_as_in_the_web_ui(tmp_path):
    content = as_the_web_ui_saves()
    del content["activate_output"]
    torch.save(content, tmp_path / "some.pt")
    assert read_hypernetwork(tmp_path / "some.pt")[WIDTH][0].activates_output


@pytest.mark.parametrize(
    "more",
    [
        {"use_dropout": True, "last_layer_dropout": True, "dropout_structure": [0, 0.3, 0]},
        {"optimizer_name": "AdamW", "optimizer_state_dict": {"state": {0: torch.ones(3)}}},
        {"weight_initialization": "KaimingNormal", "hash": "1", "optional_info": "tensors"},
        {"a_setting_of_the_future": None},
        {"notes": "{}"},
    ],
)
def test_what_cannot_matter_is_ignored(tmp_path, more):
    torch.save(as_the_web_ui_saves(**more), tmp_path / "some.pt")
    assert list(read_hypernetwork(tmp_path / "some.pt")) == [WIDTH]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"a_setting_of_the_future": 1}, "a_setting_of_the_future = 1"),
        ({"upsample_linear": "Linear"}, "upsample_linear = 'Linear'"),
        ({"a_tensor": torch.ones(1)}, "a_tensor"),
        ({"activation_func": "snake"}, "activation 'snake'"),
        ({"is_layer_norm": True}, "not a complete hypernetwork"),
        ({"layer_structure": [1, 3, 1]}, "not a complete hypernetwork"),
        ({"layer_structure": [1, 1]}, "not a complete hypernetwork"),
        ({"layer_structure": "1, 2, 1"}, "a setting of the wrong type"),
        ({"layer_structure": [1, "2", 1]}, "a setting of the wrong type"),
        ({"activate_output": "no"}, "a setting of the wrong type"),
        ({"is_layer_norm": "no"}, "a setting of the wrong type"),
        ({128: {"stranger": torch.ones(1)}}, r"holds 128\.stranger"),
        ({128: [{"conv.0.weight": torch.ones(1)}]}, r"holds 128\.0\.conv\.0\.weight"),
        ({128: networks()[WIDTH]}, "not a complete hypernetwork"),
    ],
)
def test_what_changes_the_result_is_refused(tmp_path, more, sentence):
    torch.save(as_the_web_ui_saves() | more, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=rf"bad\.pt .*{sentence}") as told:
        read_hypernetwork(tmp_path / "bad.pt")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("extra", [{"linear.9.running_mean": torch.ones(3)}, {"x": torch.ones(1)}])
def test_a_tensor_next_to_the_layers_is_refused(tmp_path, extra):
    content = as_the_web_ui_saves()
    content[WIDTH] = [state | extra for state in content[WIDTH]]
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=rf"holds 64\.0\.{next(iter(extra))}, which is no layer"):
        read_hypernetwork(tmp_path / "bad.pt")


def test_a_layer_under_its_old_and_its_new_name_is_refused(tmp_path):
    content = as_the_web_ui_saves()
    more = {"linear1.weight": torch.ones_like(content[WIDTH][0]["linear.0.weight"])}
    content[WIDTH] = [state | more for state in content[WIDTH]]
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt holds 64\.0\.linear\.0\.weight twice"):
        read_hypernetwork(tmp_path / "bad.pt")


@pytest.mark.parametrize("shape", [(), (1, WIDTH, WIDTH)])
def test_a_layer_that_is_no_matrix_is_refused(tmp_path, shape):
    content = as_the_web_ui_saves()
    content[WIDTH] = [state | {"linear.0.weight": torch.ones(shape)} for state in content[WIDTH]]
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="not a complete hypernetwork"):
        read_hypernetwork(tmp_path / "bad.pt")


def test_the_table_knows_all_that_the_web_ui_writes():
    names = {name for name in as_the_web_ui_saves() if isinstance(name, str)}
    assert names <= {**HYPERNETWORK_SETTINGS.obeyed, **HYPERNETWORK_SETTINGS.ignored}.keys()


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf])
def test_a_strength_must_be_finite(tmp_path, strength):
    from minisd.adapters.hypernetwork import hypernetwork

    torch.save(as_the_web_ui_saves(), tmp_path / "some.pt")
    with pytest.raises(ValueError, match=r"strength is .*: give a finite number"):
        hypernetwork(None, tmp_path / "some.pt", strength)


def test_a_name_that_is_too_long_is_refused_under_the_files(tmp_path):
    torch.save({768: [{"x" * 600: torch.ones(2)}]}, tmp_path / "h.pt")
    with pytest.raises(ValueError, match=r"^h\.pt holds a tensor whose name is too long"):
        read_hypernetwork(tmp_path / "h.pt")
