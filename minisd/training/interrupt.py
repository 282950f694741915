"""Ctrl-C, SIGTERM and SIGHUP during a training: the loop stops between two steps.

In the middle of a step some weights are new and others old. A training cannot go on from that.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ALSO_STOP = [signal.SIGTERM]
if hasattr(signal, "SIGHUP"):  # the terminal was closed; Windows has no such signal
    ALSO_STOP.append(signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """Somebody asked this process to end. number: of that signal"""

    def __init__(self, sentence: str = "", number: int = signal.SIGINT):
        super().__init__(sentence)
        self.number = number


class Interrupted(Stopped):
    """A training has saved its state and stopped, as it was asked to."""


@contextmanager
def ends_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Stopped, so that a command removes its unfinished files.

    Signals that are ignored (as under nohup) or handled already stay as they are.
    """

    def stop(number: int, frame: object) -> None:
        raise Stopped(number=number)

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


class StopRequest:
    """number: of the signal that asked to stop. None: nobody has asked."""

    number: int | None = None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record ctrl-C, SIGTERM and SIGHUP. A second ctrl-C stops at once, without another save.

    Signals that are ignored (as under nohup) stay ignored. Python lets only the main thread handle
    signals: another thread records nothing.
    """
    request, before = StopRequest(), {}

    def note(number: int, frame: object) -> None:
        if number == request.number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = request.number or number

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ALSO_STOP)}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if request.number:  # it came after the loop had looked for the last time
        signal.raise_signal(request.number)
