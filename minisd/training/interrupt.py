"""Ctrl-C and SIGTERM during a training: they are noted, and the loop obeys between two steps.

Amid a step some weights are new and others old. Such a mixture is no state to go on from.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A training has saved its state and stopped, as it was asked to.

    number: of the signal that asked
    """

    def __init__(self, sentence: str, number: int = signal.SIGINT):
        super().__init__(sentence)
        self.number = number


class StopRequest:
    """number: of the signal that asked to stop; None while nobody has."""

    number: int | None = None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note ctrl-C and SIGTERM. A second ctrl-C breaks off at once, without another save.

    Signals that are ignored (as under nohup) stay ignored. Python lets only the main thread handle
    signals: in another one nothing is noted.
    """
    request, before = StopRequest(), {}

    def note(number: int, frame: object) -> None:
        if number == request.number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = request.number or number

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
