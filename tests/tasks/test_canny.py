"""Edges: one pixel thin, where shades change, and nowhere else."""

import numpy as np
import pytest
import torch

from minisd.tasks.canny import canny, hysteresis


def square(size=40, side=20, shade=1.0):
    image = torch.full((1, 3, size, size), -1.0)
    first = (size - side) // 2
    image[:, :, first : first + side, first : first + side] = shade
    return image


def test_a_square_has_a_thin_closed_outline():
    edges = canny(square())[0, 0]
    assert set(edges.unique().tolist()) == {0, 1}
    for row in edges[14:26]:  # through the middle: one pixel at either side
        assert row.sum() == 2
    rows, _ = np.nonzero(edges.numpy())
    assert 9 <= rows.min() <= 10 and 29 <= rows.max() <= 30
    assert edges.sum().item() == pytest.approx(4 * 20, abs=8)


def test_a_circle_has_one_too():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    inside = ((x - 31.5) ** 2 + (y - 31.5) ** 2).sqrt() < 20
    edges = canny((2.0 * inside - 1).expand(1, 3, 64, 64))[0, 0] > 0
    radius = ((x - 31.5) ** 2 + (y - 31.5) ** 2).sqrt()[edges]
    assert (radius - 20).abs().max() < 1.5
    angles = torch.atan2(y - 31.5, x - 31.5)[edges].sort().values
    assert angles.diff().max() < 0.15  # no gap wider than three pixels
    assert edges.sum() < 1.2 * 2 * np.pi * 20  # a line, not a band


def test_a_flat_picture_has_none_and_all_channels_are_alike():
    assert canny(torch.zeros(1, 3, 16, 16)).sum() == 0
    assert canny(square(), blur=0).sum() > 0
    edges = canny(torch.cat([square(), -square()]))
    assert edges.shape == (2, 3, 40, 40)
    assert torch.equal(edges[:, 0], edges[:, 2])
    assert edges[0].sum().item() == pytest.approx(edges[1].sum().item(), rel=0.1)


def test_a_weak_edge_counts_only_where_it_meets_a_strong_one():
    """A step from dark to light that grows from top to bottom: strong only in its lower half."""
    light = torch.linspace(-0.7, 1, 40).view(1, 1, 40, 1)
    image = torch.cat([torch.full((1, 1, 40, 20), -1.0), light.expand(1, 1, 40, 20)], dim=3)
    image = image.expand(1, 3, 40, 40)
    whole = canny(image, low=0.02, high=0.3)[0, 0, :, 18:22].sum(dim=1)
    assert (whole == 1).all()
    lower = canny(image, low=0.3, high=0.3)[0, 0, :, 18:22].sum(dim=1)
    assert lower[:10].sum() == 0 and (lower[-10:] == 1).all()
    assert canny(image, low=0.02, high=0.9).sum() == 0


def test_connection_goes_as_far_as_it_goes():
    line = torch.zeros(1, 1, 1, 9, dtype=torch.bool)
    line[..., :7] = True
    start = torch.zeros_like(line)
    start[..., 0] = True
    assert hysteresis(line, start).flatten().tolist() == [True] * 7 + [False] * 2
    assert not hysteresis(line, torch.zeros_like(line)).any()
