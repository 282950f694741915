"""What a case takes and does: seconds, memory, and what it asks the interpreter to do."""

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

try:
    import resource
except ImportError:  # Windows: memory is not measured there
    resource = None

# Events of sys.addaudithook that no file may cause.
RUNNING = (
    *(
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "os.startfile",
    ),
    *("os.kill", "os.putenv", "os.unsetenv", "pty.spawn", "subprocess.Popen", "socket.connect"),
    *(
        "socket.bind",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "urllib.Request",
        "code.__new__",
    ),
    *("ctypes.dlopen", "ctypes.dlsym", "webbrowser.open", "http.client.connect", "sys.setprofile"),
    *("builtins.input", "cpython.run_command", "cpython.run_file", "function.__new__", "exec"),
    *("sqlite3.connect", "ftplib.connect", "smtplib.connect", "signal.pthread_kill", "os.setxattr"),
    *("marshal.loads", "marshal.load", "pickle.find_class"),
)
CHANGING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link")
CHANGING += (
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "shutil.move",
    "shutil.copyfile",
    "os.utime",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


@dataclass
class Watch:
    """What happened while a case ran.

    asked: what it may not do    seconds: how long    bytes: by how much memory grew at most
    """

    asked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    bytes: int = 0


class TooSlow(BaseException):
    """The time is over. Not an Exception, so that no reader takes it for a broken file."""


class Refused(RuntimeError):
    """Raised in place of what a case asked for."""


# The hook stays for as long as the process lives; it looks only while a case runs.
_running: dict[str, object] = {"thread": None, "looking": False, "modules": set()}


def by_import() -> bool:
    """Whether the interpreter is importing a module, which runs that module's code."""
    frame = sys._getframe(2)
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def inside(path: object, folder: Path) -> bool:
    """Whether a path is the case's own to write. Numbers are files that are open already."""
    if isinstance(path, int) or path == os.devnull:
        return True
    with suppress(TypeError, ValueError, OSError):
        path = Path(os.fsdecode(path)).resolve()
        return path.is_relative_to(folder) or is_temporary(path)
    return False


def is_temporary(path: Path) -> bool:
    """Whether it is the temporary folder, for a file without a name, or tempfile's name in it."""
    temporary = Path(tempfile.gettempdir()).resolve()
    return path == temporary or (path.parent == temporary and path.name.startswith("tmp"))


def offence(event: str, arguments: tuple) -> str | None:
    """What is wrong with an event, in words; None: nothing."""
    folder = _running["folder"]
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode or "") & set("wax+") if mode else (flags or 0) & WRITING
        return f"writes {path}" if writes and not inside(path, folder) else None
    if event == "import":
        root = str(arguments[0]).partition(".")[0]
        known = root in _running["modules"] or root.startswith("_")
        return None if known or by_import() else f"imports {arguments[0]}"
    if event in CHANGING:
        changed = arguments[1] if event in ("shutil.copyfile", "os.symlink") else arguments[0]
        return None if inside(changed, folder) else f"{event} {changed}"
    if event in RUNNING and not by_import():
        return f"{event} {arguments!r:.80}"
    return None


def hook(event: str, arguments: tuple) -> None:
    if _running.get("thread") != threading.get_ident() or _running["looking"]:
        return
    _running["looking"] = True
    try:
        wrong = offence(event, arguments)
    finally:
        _running["looking"] = False
    if wrong:
        _running["asked"].append(wrong)
        raise Refused(wrong)


def install() -> None:
    """Once in a process."""
    if "installed" not in _running:
        _running.update(installed=True, stderr=os.dup(2))  # for faulthandler, whoever takes 2
        sys.addaudithook(hook)


def learn_modules() -> None:
    """What is imported by now is no surprise. Called after the good cases were read."""
    _running["modules"] = {name.partition(".")[0] for name in sys.modules}
    _running["modules"] |= set(sys.stdlib_module_names) & {"encodings", "gettext", "linecache"}


# ---- memory ----------------------------------------------------------------------------------


def highest_memory() -> int:
    """Bytes that were in use at once, at most, since the process began or forget_highest()."""
    if resource is None:
        return 0
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_in_use() -> int:
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096
    return highest_memory()


def forget_highest() -> None:
    """Begin to measure again. Only Linux can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


@contextmanager
def address_space(more: int | None) -> Iterator[None]:
    """Let nobody take more than this on top of what is in use: a MemoryError is a clear answer."""
    try:
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * 4096
    except OSError:
        used = None
    if resource is None or used is None or more is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---- time ------------------------------------------------------------------------------------


def busy() -> float:
    """How many programs want each processor now; 1 where it is free."""
    if not hasattr(os, "getloadavg"):
        return 1.0
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@contextmanager
def deadline(seconds: float, hard: bool) -> Iterator[None]:
    """Raise TooSlow after so many seconds of work, or of waiting (more on a busy machine).

    hard: a case that does not even stop then ends the process, with a traceback
    """

    def ring(number: int, frame: object) -> None:
        raise TooSlow(f"longer than {seconds:g} s")

    alarms = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    waiting = seconds * busy()
    if hard:
        faulthandler.dump_traceback_later(2 * waiting, exit=True, file=_running["stderr"])
    if alarms:
        before = [signal.signal(number, ring) for number in (signal.SIGALRM, signal.SIGPROF)]
        signal.setitimer(signal.ITIMER_REAL, waiting, 1)  # again: a callback may swallow it
        signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    try:
        yield
    finally:
        if alarms:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGALRM, before[0])
            signal.signal(signal.SIGPROF, before[1])
        if hard:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def watched(folder: Path, seconds: float, room: int | None, hard: bool) -> Iterator[Watch]:
    """Watch a case that may write into its folder alone.

    room: bytes that it may take
    """
    install()
    watch, used, highest = Watch(), memory_in_use(), highest_memory()
    depth = len(list(stack()))
    recursion = sys.getrecursionlimit()
    _running.update(folder=folder.resolve(), asked=watch.asked, looking=False)
    started, worked = time.perf_counter(), time.process_time()
    try:
        sys.setrecursionlimit(depth + 1000)  # as in a program: hypothesis allows itself more
        with address_space(room), deadline(seconds, hard):
            _running["thread"] = threading.get_ident()
            try:
                yield watch
            finally:
                _running["thread"] = None
    finally:
        sys.setrecursionlimit(recursion)
        waited = (time.perf_counter() - started) / busy()
        watch.seconds = max(waited, time.process_time() - worked)
        now = highest_memory()
        watch.bytes = now - used if now > highest else 0


def stack() -> Iterator[object]:
    frame = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back
