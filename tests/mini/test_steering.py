"""docs/steering.md: its pictures come from its commands, its figures measure what they say."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from docs.make.mini_report import fill_parts
from docs.make.steering_figures import CLASSIFIER_SCALES, correlation, fine_detail
from docs.make.steering_report import Strip, enlarge, read_strips, tables
from minisd.cli import build_parser
from minisd.mini.agreement import edge_agreement
from minisd.mini.examples import hat_mask

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "steering.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("strip", read_strips(TEXT), ids=lambda strip: strip.file)
def test_every_picture_comes_from_the_commands_above_it(strip):
    """Each command writes a file of its own, named after the picture, and reads known pictures."""
    name = strip.file.removeprefix("steering-").removesuffix(".png")
    for number, command in enumerate(strip.commands):
        words = shlex.split(command)
        assert words[0] == "minisd"
        assert build_parser().parse_args(words[1:]).output == Path(f"{name}-{number}.png")
    read = set(re.findall(r"examples/[\w-]+\.png", "\n".join(strip.commands)))
    assert read <= {path for _, path in strip.given}


def test_every_block_of_commands_and_every_picture_of_the_page_is_in_a_strip():
    strips = read_strips(TEXT)
    assert len(strips) == TEXT.count("```bash\n")
    shown = re.findall(r"\]\(images/([\w-]+\.png)\)", TEXT)
    assert sorted(shown) == sorted(
        [*(strip.file for strip in strips), "steering-classifier-things.png"]
    )
    assert f"for each of the scales {', '.join(map(str, CLASSIFIER_SCALES))}" in TEXT


def test_a_strip_is_read_from_the_page():
    page = "```bash\nminisd a -o a.png\nminisd b -o b.png\n```\n\n"
    page += "![given: x/c.png; one, seed 1; a \\<two>](images/d.png)\n"
    commands = ["minisd a -o a.png", "minisd b -o b.png"]
    expected = Strip("d.png", [("given", "x/c.png")], commands, ["one, seed 1", "a <two>"])
    assert read_strips(page) == [expected]
    with pytest.raises(ValueError, match=r"d\.png has 2 commands and 1 labels"):
        read_strips(page.replace("one, seed 1; ", ""))


def test_edges_that_lie_a_pixel_apart_agree():
    edges = torch.zeros(1, 3, 16, 16)
    edges[..., 5] = 1
    assert edge_agreement(edges, edges) == pytest.approx(1)
    assert edge_agreement(edges.roll(1, dims=3), edges) == pytest.approx(1)
    assert edge_agreement(edges.roll(3, dims=3), edges) == 0
    more = edges + edges.roll(6, dims=3)  # half of it is right, nothing is missed
    assert edge_agreement(more, edges) == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_correlation_is_of_each_picture_by_itself():
    a = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert correlation(a, 3 * a + 1) == pytest.approx(1, abs=1e-5)
    opposite = torch.stack([a[0], -a[1]])
    assert correlation(a, opposite) == pytest.approx(0, abs=1e-5)


def test_fine_detail_is_what_shrinking_takes_away():
    flat, dots = torch.full((1, 3, 16, 16), 0.3), torch.zeros(1, 3, 16, 16)
    dots[..., ::2, ::2] = 1
    assert fine_detail(flat).abs().max() < 1e-6
    assert fine_detail(dots).std() == pytest.approx(dots.std().item(), abs=1e-3)
    assert torch.allclose(fine_detail(dots + 0.3), fine_detail(dots), atol=1e-6)
    part = enlarge(dots[0], (0, 0, 4, 4))
    assert part.shape == dots[0].shape and torch.equal(part[:, :4, :4], torch.ones(3, 4, 4))


def test_the_page_has_a_place_for_all_that_is_computed():
    figures = {
        "edges": {"without": 0.5},
        "depth": {"without": 0.5},
        "classifier": {"0": 0.5},
        "word": {"without": 0.5},
        "lcm": {"LCM, 4 steps": 0.5},
        "outside": {"mini": {"most": 2.0, "mean": 1.0}},
        "detail": {"the mini's": {"dB": 28, "dB of the fine detail": 30, "spread": 0.84}},
    }
    computed = tables(figures)
    filled = fill_parts(TEXT, computed)
    assert "| without | 0.50 |" in filled
    assert len(re.findall(r"<!-- (?!end)", TEXT)) == len(computed)


def test_the_hat_mask_covers_a_part():
    covered = torch.tensor(list(hat_mask().tobytes())).eq(255).float().mean()
    assert 0.2 < covered < 0.5


def test_what_was_measured_is_what_was_promised():
    path = ROOT / "docs" / "steering.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    edges, most = found["edges"], found["edges"]["the autoencoder alone"]
    assert edges["with"] - edges["without"] > 0.5 * (most - edges["without"])
    assert found["depth"]["with"] > found["depth"]["without"] + 0.1
    assert 1 - found["depth"]["with"] < 0.6 * (1 - found["depth"]["without"])
    assert found["word"]["with"] > found["word"]["without"] + 0.5
    few = found["lcm"]["LCM, 4 steps"]
    assert few > found["lcm"]["DDIM, 30 steps"] - 0.05
    assert few > found["lcm"]["DDIM, 4 steps"]  # which runs the U-Net twice per step
    assert found["outside"]["mini, pasted"]["most"] < 1
    assert found["classifier"]["32"] > found["classifier"]["0"] + 0.3
    own, tuned = found["detail"]["the mini's"], found["detail"]["fine-tuned"]
    assert all(tuned[measure] > own[measure] for measure in own)
