"""Threads that take turns more often than usual, so that what is not safe shows."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frequent_switches(seconds: float) -> Iterator[None]:
    """Python gives the turn to another thread after this time. The usual is 0.005 s."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
