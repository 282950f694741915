"""The comparison of picture sizes, on a model so small that it takes seconds."""

import pytest
import torch

from docs.make import size_report as sizes
from minisd.mini.job import train_vocabulary
from minisd.training.loop import Hyperparameters
from minisd.training.vae import psnr
from tests.helpers.tiny_models import SMALL

RECIPE = Hyperparameters(steps=4, warmup=1, log_every=1)

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_every_size_gets_a_row(emoji, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "MINI", SMALL)
    monkeypatch.setattr(sizes, "SIZES", (32, 64))
    page = tmp_path / "mini.md"
    page.write_text("before\n\n<!-- sizes -->\n<!-- end -->\n\nafter\n", encoding="utf-8")
    tokenizer = train_vocabulary(emoji)
    rows = sizes.write_sizes(page, tokenizer, 0.01, tmp_path / "runs", RECIPE)
    assert [row[:2] for row in rows] == [["32", "4 x 4 x 4"], ["64", "4 x 8 x 8"]]
    assert rows[0][3] == rows[0][4]  # its own size is the thumbnail's
    assert all(float(seconds) > 0 for row in rows for seconds in row[5:])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before") and text.endswith("after\n") and "| 64 | 4 x 8 x 8 |" in text


def test_round_trips_at_their_own_size_are_the_psnr(small_sd):
    real = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own, thumbnail = sizes.round_trips(small_sd.vae, real)
    assert own == pytest.approx(psnr(small_sd.vae, real))
    assert thumbnail != own
