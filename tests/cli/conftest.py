"""What several tests of the command line need."""

import pytest

from tests.helpers.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random model as a file."""
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))
