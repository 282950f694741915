"""SIGTERM and SIGHUP end a command like ctrl-C, so that it removes its unfinished files."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minisd.training.interrupt import ALSO_STOP, Interrupted


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Interrupted.

    Signals that are ignored (as under nohup) or handled already stay as they are.
    """

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number=number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number in ALSO_STOP if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
