"""The solutions of lessons 03, 05 and 06 compute what the package computes."""

from minisd.exercises.install import install_parts
from minisd.sampling import SPACINGS
from minisd.schedule import Schedule


def test_a_method_is_replaced_in_tables_too():
    def leading(self, steps):
        return []

    before = Schedule.leading
    with install_parts({"minisd.schedule.Schedule.leading": leading}):
        assert SPACINGS["leading"] is leading
        assert Schedule.leading is leading
    assert SPACINGS["leading"] is before
    assert Schedule.leading is before
