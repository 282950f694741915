"""The signals that ask a process to stop: ctrl-C, SIGTERM and SIGHUP.

A training stops only at the end of a step. In the middle of a step, some weights are new and others
are old, so the training could not be resumed. Other commands stop at once, and remove their
unfinished files.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ALSO_STOP = [signal.SIGTERM]
if hasattr(signal, "SIGHUP"):  # the terminal was closed. Windows has no such signal
    ALSO_STOP.append(signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Raised if a signal has asked this process to end.

    sentence: the message for the user. It says what has been saved, or is empty
    number: the number of the signal
    """

    def __init__(self, sentence: str = "", number: int = signal.SIGINT):
        super().__init__(sentence)
        self.number = number


class StopRequest:
    """Records whether a signal has asked the process to stop.

    number: the number of the signal. None: no signal has come
    """

    number: int | None = None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record ctrl-C, SIGTERM and SIGHUP in a StopRequest during the `with` block.

    After a second ctrl-C, the process stops at once and saves nothing more.

    If a signal is already ignored (as under nohup), it stays ignored. In Python, only the main
    thread can handle signals. So in any other thread, no signal is recorded.
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
    if request.number:  # the signal may have come after the caller's last check
        signal.raise_signal(request.number)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise Interrupted if SIGTERM or SIGHUP comes during the `with` block.

    If a signal is already ignored (as under nohup) or already has a handler, nothing changes for
    this signal.
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
