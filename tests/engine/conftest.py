"""The engine keeps compiled networks. The tests keep them in a folder of their own."""

import pytest

from minisd.engine import openvino_engine


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_engine, "FOLDER", tmp_path_factory.mktemp("compiled"))
        yield
