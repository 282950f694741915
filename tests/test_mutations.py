"""Every mutation of tests.tools.mutate can be made. The tool itself runs them, in minutes."""

import pytest

from tests.tools.mutate import MUTATIONS, problem


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fact)
def test_a_mutation_names_a_line_and_tests_that_exist(mutation):
    assert problem(mutation) == ""


def test_a_line_or_a_test_that_is_gone_is_named():
    first = MUTATIONS[0]
    assert "does not exist" in problem(first._replace(file="gone.py"))
    assert "0 times" in problem(first._replace(line="this line is gone"))
    assert "test_gone.py" in problem(first._replace(tests="test_gone"))
