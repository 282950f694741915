"""docs/steering.md: its commands are commands, its figures measure what they say."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from docs.make.mini_report import fill_parts
from docs.make.steering_figures import correlation, fine_detail
from docs.make.steering_report import ROWS, enlarge, tables
from minisd.cli import build_parser
from minisd.mini.agreement import edge_agreement
from minisd.mini.examples import hat_mask

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ROWS)
def test_every_command_is_one_that_minisd_knows(name):
    for command, _ in ROWS[name].commands:
        words = shlex.split(f"{command} -o a.png")
        assert words[0] == "minisd"
        options = build_parser().parse_args(words[1:])
        assert options.output == Path("a.png")


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
        "outside": {"mini": {"most": 2.0, "mean": 1.0}},
        "detail": {"the mini's": {"dB": 28, "dB of the fine detail": 30, "spread": 0.84}},
    }
    page = (ROOT / "docs" / "steering.md").read_text(encoding="utf-8")
    computed = {name: "X" for name in [*ROWS, "classifier things"]} | tables(figures)
    filled = fill_parts(page, computed)
    assert "| without | 0.50 |" in filled
    assert len(re.findall(r"<!-- (?!end)", page)) == len(computed)


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
    assert found["outside"]["mini, pasted"]["most"] < 1
    assert found["classifier"]["32"] > found["classifier"]["0"] + 0.3
    own, tuned = found["detail"]["the mini's"], found["detail"]["fine-tuned"]
    assert all(tuned[measure] > own[measure] for measure in own)
