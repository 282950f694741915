"""Hypernetworks, which diffusers does not know: the formula is written out here again."""

import pytest
import torch
import torch.nn.functional as F

from minisd.adapters.hypernetwork import hypernetwork
from minisd.attention import Attention
from tests.helpers.hypernetwork_files import small_network
from tests.helpers.pipeline_pairs import all_equal, drawn, states
from tests.helpers.side_by_side import relative_error

END_TO_END = 1e-4  # float32, largest error over the reference's spread
NORM_ALONE = {"linear.0.weight": torch.ones(64), "linear.0.bias": torch.zeros(64)}


def cut_network(lacks, seed):
    """A network of three layers as wide as its input, without one tensor."""
    state = small_network(64, [1, 1, 1], False, False, seed)
    del state[lacks]
    return state


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize(("function", "name"), [(F.relu, "relu"), (F.hardswish, "swish")])
def test_a_hypernetwork_rewrites_keys_and_values(sd, tmp_path, norm, function, name):
    structure, strength = [1, 2, 1], 0.7
    widths = (64, 128)
    content = {
        width: [small_network(width, structure, norm, True, seed) for seed in (0, 1)]
        for width in widths
    }
    about = {"layer_structure": structure, "activation_func": name, "is_layer_norm": norm}
    about |= {"activate_output": False, "step": 10, "name": "some", "use_dropout": True}
    torch.save(content | about, tmp_path / "some.pt")

    def formula(c, state):
        numbers = sorted({int(key.split(".")[1]) for key in state})
        x, linears = c, 0
        for n in numbers:
            weight, bias = state[f"linear.{n}.weight"], state[f"linear.{n}.bias"]
            if weight.ndim == 1:
                mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
                x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
            else:
                x = x @ weight.T + bias
                linears += 1
                x = function(x) if linears < len(structure) - 1 else x
        return c + strength * x

    def by_hand(layer):
        def forward(x, context):
            net = content.get(context.shape[-1])
            to_key, to_value = (formula(context, one) for one in net)
            q, k, v = layer.to_q(x), layer.to_k(to_key), layer.to_v(to_value)
            q, k, v = (one.unflatten(2, (layer.heads, -1)).transpose(1, 2) for one in (q, k, v))
            weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
            return layer.to_out((weights @ v).transpose(1, 2).flatten(2))

        return forward

    before, plain = states(sd), drawn(sd)
    with hypernetwork(sd, tmp_path / "some.pt", strength):
        found = drawn(sd)
    with pytest.MonkeyPatch.context() as patch:
        for layer in sd.unet.modules():
            if isinstance(layer, Attention):
                patch.setattr(layer, "forward", by_hand(layer))
        expected = drawn(sd)
    assert relative_error(found, expected) < END_TO_END
    assert relative_error(found, plain) > 100 * END_TO_END
    assert all_equal(states(sd), before)
    with hypernetwork(sd, tmp_path / "some.pt", 0.0):
        assert torch.equal(drawn(sd), plain)


def test_widths_that_only_other_models_have_are_left_alone(sd, tmp_path):
    """The web UI trains for several models at once, if asked: 768 and 1024 in one file."""
    content = {w: [small_network(w, [1, 1], False, False, i) for i in (0, 1)] for w in (64, 96)}
    torch.save(content, tmp_path / "both.pt")
    torch.save({64: content[64]}, tmp_path / "one.pt")
    found = []
    for name in ("both", "one"):
        with hypernetwork(sd, tmp_path / f"{name}.pt"):
            found.append(drawn(sd, ["a cat"]))
    assert torch.equal(*found)


def test_old_hypernetworks_have_other_names_and_activate_nothing(sd, tmp_path):
    new = {64: [small_network(64, [1, 2, 1], False, False, seed) for seed in (0, 1)]}
    new = {64: [{k.replace("linear.2", "linear.1"): t for k, t in net.items()} for net in new[64]]}
    spell = {"linear.0": "linear1", "linear.1": "linear2"}
    old = {64: [{spell[k[:8]] + k[8:]: tensor for k, tensor in net.items()} for net in new[64]]}
    found = []
    for name, content in (("new", new), ("old", old)):
        torch.save(content, tmp_path / f"{name}.pt")
        with hypernetwork(sd, tmp_path / f"{name}.pt"):
            found.append(drawn(sd, ["a cat"]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {32: [small_network(32, [1, 1], False, False, i) for i in (0, 1)]},
            "contexts of width 32",
        ),
        ({64: [small_network(64, [1, 2], False, False, i) for i in (0, 1)]}, "not a complete"),
        ({64: [small_network(64, [1, 1], False, False, 0)]}, "not a complete hypernetwork"),
        ({"activation_func": "snake"} | {64: [{}, {}]}, "activation 'snake', which minisd"),
        (
            {w: [small_network(w, [1, 1], False, False, i) for i in (0, 1)] for w in (96, 128)},
            "contexts of width 96, 128, but the model's widths are 64, 128",
        ),
        ({64: [cut_network("linear.2.bias", i) for i in (0, 1)]}, "not a complete hypernetwork"),
        ({64: [cut_network("linear.0.weight", i) for i in (0, 1)]}, "not a complete hypernetwork"),
        ({64: [NORM_ALONE, NORM_ALONE]}, "not a complete hypernetwork"),
        (
            {64: [small_network(64, [1, 1], False, False, i) for i in (0, 1)]}
            | {"layer_structure": [1, 1, 1]},
            "not a complete hypernetwork",
        ),
        ({"step": 1}, "not a complete hypernetwork"),
    ],
)
def test_a_file_that_is_no_hypernetwork_of_this_model_is_refused(sd, tmp_path, content, sentence):
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=sentence):
        hypernetwork(sd, tmp_path / "bad.pt")
