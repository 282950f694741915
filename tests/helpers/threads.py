"""Let threads switch more often than usual, so that unsafe code fails in the tests."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frequent_switches(seconds: float) -> Iterator[None]:
    """Python switches to another thread after this time. The default is 0.005 s."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
