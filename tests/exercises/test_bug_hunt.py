"""Ten bug hunts: the id decides the bug, the module must be named, then repaired."""

from random import Random

import pytest
import torch

from minisd.exercises import bug_hunt
from minisd.exercises.bug_hunt import HUNTS, choose_bug, place_bug
from minisd.exercises.bugs import BUGS_BY_LEVEL
from minisd.trace import named_modules


def right_forward(hunt):
    """The forward() that the class of the module has without the bug."""
    module = hunt.module
    return lambda *inputs: type(module).forward(module, *inputs)


@pytest.mark.parametrize("number", [1, 5, 10])
def test_a_hunt_from_start_to_end(number, capsys):
    hunt = bug_hunt("ada", number)
    with pytest.raises(ValueError, match="name the module first"):
        hunt.compare()
    with pytest.raises(ValueError, match="name the module first"):
        hunt.repair(lambda x: x)
    with pytest.raises(ValueError, match="name the module first"):
        hunt.show_code()
    with hunt.trace("unet.mid") as t:
        hunt.sd.txt2img("a cat", steps=1)
    assert t["unet.mid"][0].isfinite().all()
    assert hunt.points == 0
    hunt.name(hunt._path)
    assert hunt.points == 2
    hunt.show_code()
    assert "def forward" in capsys.readouterr().out
    hunt.compare()
    assert hunt._path.partition(".")[2].removeprefix("decoder.") in capsys.readouterr().out
    hunt.repair(vars(hunt.module)["forward"])
    assert "not right yet" in capsys.readouterr().out
    assert hunt.points == 2
    hunt.repair(right_forward(hunt))
    assert hunt.points == 4


def test_the_id_decides_the_bug_and_the_module():
    assert len({choose_bug(f"student {i}", 1).what for i in range(20)}) >= 4
    hunt, again, other = (bug_hunt(student, 5) for student in ("ada", "ada", "alan"))
    assert (again._bug.what, again._path) == (hunt._bug.what, hunt._path)
    assert (other._bug.what, other._path) != (hunt._bug.what, hunt._path)


def test_one_student_gets_ten_different_bugs():
    found = [choose_bug("grace", number).what for number in HUNTS]
    assert len(set(found)) == 10
    for number, level in HUNTS.items():
        assert found[number - 1] in {bug.what for bug in BUGS_BY_LEVEL[level]}


def test_every_bug_is_visible_somewhere():
    import minisd

    sd, right = minisd.load("mini"), minisd.load("mini")
    for bugs in BUGS_BY_LEVEL.values():
        for bug in bugs:
            path = place_bug(sd, right, bug, Random(0))
            del named_modules(sd)[path].forward


def test_a_name_that_comes_after_three_guesses_gives_no_points(capsys):
    hunt = bug_hunt("ada", 1)
    network, *_ = hunt._path.split(".")
    hunt.name(network)
    assert "inside it" in capsys.readouterr().out
    hunt.name("unet.conv_in" if hunt._path != "unet.conv_in" else "unet.conv_out")
    hunt.name("vae.decoder.conv_out")
    assert "is not it" in capsys.readouterr().out
    hunt.name(hunt._path)
    assert hunt.points == 0
    hunt.repair(right_forward(hunt))
    assert hunt.points == 2


def test_only_one_module_has_a_bug():
    """All parameters are the mini's own, and only one module computes in its own way."""
    import minisd

    hunt, right = bug_hunt("ada", 5), minisd.load("mini")
    for part in ("unet", "text_encoder", "vae"):
        pairs = zip(
            getattr(hunt.sd, part).parameters(), getattr(right, part).parameters(), strict=True
        )
        assert all(torch.equal(one, other) for one, other in pairs)
        changed = [
            name for name, m in getattr(hunt.sd, part).named_modules() if "forward" in vars(m)
        ]
        assert len(changed) == (hunt._path.split(".")[0] == part)


def test_a_hunt_that_does_not_exist_and_a_wrong_name_are_refused():
    with pytest.raises(ValueError, match="a number from 1 to 10"):
        bug_hunt("ada", 11)
    with pytest.raises(ValueError, match="Did you mean"):
        bug_hunt("ada", 1).name("unet.midd")
