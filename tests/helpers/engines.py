"""What the tests of the engine share."""

from importlib.util import find_spec

import pytest

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed (pip install openvino)"
)
