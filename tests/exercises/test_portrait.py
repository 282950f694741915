"""portrait(): the picture of a wrong answer, and what it says if there is none."""

import pytest
from torch import nn

from minisd.exercises import portrait


def test_outside_a_notebook_it_says_where_the_pictures_can_be_seen(capsys):
    portrait("add_noise", lambda x0, noise, alpha_bar: x0)
    assert "Call portrait() in a notebook to see them." in capsys.readouterr().out


def test_an_error_in_the_answer_is_shown_in_one_line(capsys):
    portrait("add_noise", lambda x0, noise, alpha_bar: x0.men())
    said = capsys.readouterr().out
    assert said.startswith("With your answer, the mini cannot draw: AttributeError(")
    assert "no attribute 'men'" in " ".join(said.split()).replace("\\", "")


def test_other_parameters_are_not_blamed_on_the_checkpoint(capsys):
    class ResBlock(nn.Module):
        def __init__(self, c_in, c_out, time_dim, norm_groups):
            super().__init__()
            self.norm = nn.GroupNorm(norm_groups, c_in)

    portrait("unet_res_block", ResBlock)
    said = capsys.readouterr().out
    assert "its parameters have other names or shapes" in " ".join(said.split())
    assert "safetensors" not in said


def test_an_exercise_without_a_picture_is_refused():
    with pytest.raises(ValueError, match="has no picture"):
        portrait("longest_match", lambda word, vocabulary: [])
