"""Compare finds the first wrong module and says why; it is silent where nothing is wrong."""

import copy
import json

import pytest
import torch
from torch import nn

from minisd.compare import compare
from minisd.compare.report import Report
from minisd.compare.run import compare_part
from tests.compare.bench import bench_inputs, hunt, judged, networks
from tests.compare.bugs import read_bugs
from tests.compare.false_alarms import compare_pair
from tests.helpers.reference_networks import pair
from tests.helpers.tiny_models import V1, V2

BUGS = {f"{bug.host} {bug.part} {bug.name}": bug for bug in read_bugs()}
SOME = [
    "shuffled unet no scale",
    "shuffled vae VAE pads left and top",
    "shuffled text_encoder mask turned round",
    "diffusers unet eps of a transformer",
    "diffusers unet to_q transposed",
    "diffusers text_encoder eps of the final norm",
    "nhwc unet values before keys",
    "nhwc unet no residual",
    "numpy text_encoder gelu",
    "numpy vae eps 1e-5",
]


@pytest.mark.parametrize("name", SOME)
def test_the_first_wrong_module_and_the_cause_are_named(name):
    bug = BUGS[name]
    right, cause, _ = judged(bug, hunt(bug))
    assert right
    assert cause


REFERENCES = [
    (part, layout, config)
    for part in ("unet", "vae", "text_encoder")
    for layout in ("diffusers", "original")
    for config in (V1, V2)
    if (part, layout, config) != ("text_encoder", "original", V1)  # open_clip has v2's only
]


@pytest.mark.parametrize("draw", ["unit", "small"])
@pytest.mark.parametrize("part, layout, config", REFERENCES)
def test_references_are_no_divergence_and_align_without_the_table(part, layout, config, draw):
    both, report = compare_pair(part, config, layout, draw, torch.float32)
    assert report.is_equal, report.verdict()
    matched = {(row.theirs, row.name) for row in report.rows}
    known = {
        (both.their_name(row), f"{part}.{row.ours}")
        for row in both.rows
        if f"{part}.{row.ours}" in {name for _, name in matched}
    }
    assert len(matched & known) >= 0.9 * len(matched)
    assert not report.only_reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_precisions_are_no_divergence(part, dtype):
    _, report = compare_pair(part, V1, "diffusers", "small", dtype)
    assert report.is_equal, report.verdict()


@pytest.mark.parametrize("part, layout, config", REFERENCES)
def test_constant_weights_are_matched_by_their_neighbours(part, layout, config):
    """Fresh networks have biases at 0 and norms at 1, which all look alike."""
    both = pair(part, config, layout, "small", torch.float32)
    ours, theirs = copy.deepcopy(both.ours), copy.deepcopy(both.theirs)
    for network in (ours, theirs):
        for module in network.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.ndim == 1:
                    weight.data.fill_(float(name == "weight"))
    inputs, report = bench_inputs(part), Report()
    runs = [lambda one, run=run: run(one, *inputs) for run in (both.run_ours, both.run_theirs)]
    compare_part(report, "", ours, theirs, *runs)
    assert report.is_equal, report.verdict()
    assert report.matched >= 0.995 * len(list(ours.parameters()))


def test_other_values_are_the_first_finding():
    both = networks("unet")
    port = copy.deepcopy(both.theirs)
    port.conv_in.weight.data[0, 0, 0, 0] += 0.01
    inputs = bench_inputs("unet")
    report = compare(both.ours, port, inputs, call=lambda network, *given: network(*given).sample)
    assert report.values == {"conv_in.weight": pytest.approx(0.01, abs=1e-6)}
    assert report.first.name == "conv_in"
    assert "conv_in.weight has other values" in report.verdict()[0]


def test_the_report_is_text_json_and_a_page():
    report = hunt(BUGS["diffusers unet eps of a transformer"])
    text = str(report)
    assert "mid.attn.norm (mid_block.attentions.0.norm in port)" in text
    assert "eps = 1e-05" in text
    assert "SpatialTransformer" in text
    content = json.loads(report.to_json())
    assert content["first_divergence"] == "mid.attn.norm"
    page = report.to_html()
    assert page.startswith("<!doctype html>")
    assert "eps = 1e-05" in page
    assert "http" not in page  # nothing is loaded from elsewhere


def test_nan_names_the_first_module():
    both = networks("text_encoder")
    port = copy.deepcopy(both.theirs)
    port.encoder.layers[1].mlp.fc1.weight.data[0, 0] = float("nan")
    report = compare(both.ours, port, bench_inputs("text_encoder"))
    assert report.nan == "encoder.layers.1.mlp.fc1"
    assert not report.is_equal


class Breaks(nn.Module):
    def forward(self, x):
        raise RuntimeError("no kernel for this")


def test_a_port_that_breaks_says_where():
    both = networks("text_encoder")
    port = copy.deepcopy(both.theirs)
    port.encoder.layers[1].mlp.activation_fn = Breaks()
    with pytest.raises(ValueError, match=r"broke after encoder\.layers\.1\.mlp\.fc1: RuntimeError"):
        compare(both.ours, port, bench_inputs("text_encoder"))


def test_other_weights_cannot_be_compared():
    other = networks("text_encoder").theirs
    with pytest.raises(ValueError, match="shares no weights"):
        compare(networks("unet").ours, other, bench_inputs("unet"))


@pytest.mark.parametrize("bad", ["missing.py:make", "port.py:other", "port.py:number"])
def test_a_bad_function_is_one_sentence(bad, tmp_path, monkeypatch):
    from minisd.compare.sides import open_side

    monkeypatch.chdir(tmp_path)
    (tmp_path / "port.py").write_text("def number():\n    return 3\n")
    with pytest.raises(ValueError, match=r"no file|no function|should return"):
        open_side(bad)
