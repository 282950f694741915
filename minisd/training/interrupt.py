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


class Interrupted(KeyboardInterrupt):
    """A signal has asked this process to end. The sentence, if any, says what is saved.

    number: of the signal
    """

    def __init__(self, sentence: str = "", number: int = signal.SIGINT):
        super().__init__(sentence)
        self.number = number


class StopRequest:
    """number: of the signal that asked to stop. None: no signal has come."""

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
    if request.number:  # the signal came after the loop's last check
        signal.raise_signal(request.number)
