"""minisd bench: both sides do the same work, and a row counts only if their results agree."""

import re

import pytest

from minisd.cli import bench, main
from tests.helpers.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("bench"))


def test_both_sides_agree_in_every_row(folder, capsys):
    assert main(["bench", str(folder), "--rounds", "1", "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("|") and " s |" in line]
    assert len(rows) == 6 and "void" not in "".join(lines)
    assert all(re.search(r"\d\.\d\d \(\d+\.\d\d to \d+\.\d\d\)", row) for row in rows)
    assert sum("the U-Net |" in line or "the decoder |" in line for line in lines) == 8


def test_results_that_differ_void_their_row():
    import torch

    result = torch.randn(10)
    row = bench.SideBySide("a row", lambda: result, lambda: result + 1e-3)
    assert "void: the results differ" in bench.table_line(bench.take_turns(row, 1), 100.0)


def test_the_share_of_the_peak_is_operations_over_time():
    row = bench.SideBySide("a row", lambda: None, lambda: None, 10**9)
    line = bench.table_line(bench.Times(row, [0.5, 0.1, 0.2], [0.4, 0.1, 0.4], 0.0), 20.0)
    assert line == "| a row | 0.200 s | 0.400 s | 1.00 (0.80 to 2.00) | 0e+00 | 50% |"


def test_zero_rounds_are_refused(capsys):
    assert main(["bench", "--rounds", "0"]) == 2
    assert "--rounds must be 1 or more" in capsys.readouterr().err
