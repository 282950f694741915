"""Runs submissions, each in a process of its own, which sees and reaches next to nothing.

The grader starts this file with `python -I`. It imports torch once. For each job it forks a guard,
and the guard forks the process that runs the submission. So no submission has to import torch, and
its memory holds nothing of the grader or of other submissions. Systems other than Linux have no
isolation. There, every submission gets a new process with this file.

This file imports nothing of minisd before the submission's own tree is in sys.path.
"""

import __future__

import ast
import ctypes
import json
import os
import platform
import re
import signal
import struct
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

LINUX = sys.platform == "linux"
MEMORY = 2 * 10**9  # bytes, in addition to what Python and torch need
LARGEST_RESULT = 5 * 10**6  # bytes, for each stage
WRITE_NEW = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)  # Windows needs O_BINARY
OUT_OF_TIME = 124  # an exit status, as that of the command `timeout`
# What torch and Python import late, and what exercises use. No other package is in sight.
PACKAGES = "torch torchgen functorch numpy numpy.libs einops safetensors typing_extensions.py sympy"
PACKAGES += " mpmath networkx jinja2 markupsafe fsspec filelock packaging regex ftfy wcwidth tqdm"
PACKAGES += " PIL pillow.libs"
# The system calls that start or reach other processes, open sockets, mount, change the modes of
# files, or take memory that no limit counts
REFUSED = json.loads(Path(__file__).with_name("refused_calls.json").read_bytes()).get(
    platform.machine()
)


def serve(plan: dict) -> None:
    """Choose a way of isolation, run the jobs, and print the way and the jobs that were too slow.

    plan: the fields of RunLimits, "jobs" (number, name of the tree, number of stages), and
        "packages", the grader's sys.path. The folders of jobs and trees are in the current folder
    """
    sys.path += [path for path in plan["packages"] if path not in sys.path]
    ways = [one for one in plan["ways"] if LINUX and os.waitpid(start_job(None, one, 9), 0)[1] == 0]
    way, slow = [*ways, "none"][0], []
    if way != "none" or plan["trusted"]:
        import einops, numpy, safetensors.torch, torch  # noqa: E401, F401, I001

        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))  # starts oneDNN
        slow = run_jobs(plan, way)
    print(json.dumps([way, slow]))


def run_jobs(plan: dict, way: str) -> list[int]:
    """Run all jobs, some at the same time. Returns the numbers of those that were too slow."""
    running, slow = {}, []
    for job in [*plan["jobs"], *[None] * plan["at_once"]]:
        if running and (job is None or len(running) == plan["at_once"]):
            guard, status = os.wait()
            ended = running.pop(guard)
            slow += [ended] * (os.waitstatus_to_exitcode(status) == OUT_OF_TIME)
        if job and LINUX:
            running[start_job(job, way, plan["seconds"])] = job[0]
        elif job:
            try:
                alone = [sys.executable, "-IB", __file__, json.dumps(job)]
                subprocess.run(alone, timeout=plan["seconds"] + 20)
            except subprocess.TimeoutExpired:
                slow.append(job[0])
    return slow


def start_job(job: list | None, way: str, seconds: float) -> int:
    """Run a job in a process of its own, with a guard that ends it. Returns the guard's number.

    job: None only tries the isolation
    """
    guard = os.fork()
    if guard:
        return guard
    status = 1
    with suppress(BaseException):
        if way == "namespaces":
            enter_namespaces()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        child = os.fork()
        if not child:
            run_job(job, way)
        in_time = signal.sigtimedwait([signal.SIGCHLD], seconds)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1] != 0 if in_time else OUT_OF_TIME
    os._exit(status)


def run_job(job: list | None, way: str) -> NoReturn:
    """Open the files of the job, isolate this process, run the submission, and end."""
    status = 1
    with suppress(BaseException):
        number, tree, stages = job or ["", "", 0]
        folder, tree = os.path.abspath(str(number)), os.path.abspath(tree)
        paths = [os.path.join(folder, str(i)) for i in range(stages)]
        files = [os.open(path, WRITE_NEW, 0o600) for path in paths]
        packed = Path(folder, "job").read_bytes() if job else b""
        isolate(way, folder, [*visible_paths(), tree] if job else visible_paths(), files)
        if job:
            sys.path.insert(0, tree)
            run_submission(packed, files)
        status = 0
    os._exit(status)


# ---- the submission ----------------------------------------------------------------------------


def run_submission(packed: bytes, files: list[int]) -> None:
    """Run the cells, and then every stage. The result of each stage goes to its file."""
    from minisd.exercises.calls import describe_error, run_answer
    from minisd.exercises.plain_data import pack_data, unpack_data

    cells, name, stages = unpack_data(packed)
    space, errors = run_cells(cells)
    for (call, arguments), file in zip(stages, files, strict=True):
        try:
            if name not in space:
                raise NameError(" ".join([f"there is no {name}.", *errors[:3]]))
            reply = pack_data(["result", run_answer(space[name], call, arguments)])
            assert len(reply) <= LARGEST_RESULT, "the result is too large"
        except (Exception, SystemExit) as error:
            reply = pack_data(["failure", describe_error(error)])
        os.write(file, reply)


def run_cells(cells: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Run the statements of all cells. A statement that fails does not stop the others.

    Returns the names that they define, and the errors.
    """
    module = sys.modules["submission"] = ModuleType("submission")
    errors, flags = [], __future__.annotations.compiler_flag
    for number, cell in enumerate(cells, start=1):
        for statement in split_statements(cell):
            try:
                exec(compile(statement, f"cell {number}", "exec", flags), vars(module))
            except (Exception, SystemExit) as error:
                errors.append(f"Cell {number} has the {type(error).__name__}: {error}.")
    return vars(module), errors


def split_statements(cell: str) -> list[Any]:
    """The statements of a cell, ready for compile(), without lines for Jupyter (%time, !ls)."""
    for source in (cell, re.sub(r"(?m)^([ \t]*)(\w+ *= *)?[%!?].*", r"\1pass", cell)):
        with suppress(Exception):
            return [ast.Module([one], []) for one in ast.parse(source).body]
    return [cell]  # compile() will say what is wrong


# ---- isolation ---------------------------------------------------------------------------------


def isolate(way: str, folder: str, paths: list[str], files: list[int]) -> None:
    """Leave this process only the paths, to read, and the open files. There is no way back.

    folder: where the new root is mounted
    """
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for other in {*range(3, 256)} - {*files}:
        with suppress(OSError):
            os.close(other)
    set_limits()
    if way == "namespaces":
        show_only(paths, os.fsencode(folder))
    if LINUX:
        call_c("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if way == "landlock":
            allow_reading(paths)
        call_c("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))  # no capability is left
        if REFUSED or way == "landlock":
            refuse_calls()


def visible_paths() -> list[str]:
    """Python's own library and PACKAGES: all that a submission can read, besides its tree."""
    library = sysconfig.get_path("stdlib")
    paths = [os.path.join(library, name) for name in os.listdir(library)]
    paths = [path for path in paths if not path.endswith("-packages")]
    paths += [os.path.join(place, name) for place in sys.path for name in PACKAGES.split()]
    return [path for path in paths if os.path.exists(path)]


def set_limits() -> None:
    """Limit memory, the size of files, open files and processes, where the system can."""
    with suppress(ImportError, OSError):  # Windows has no such module
        import resource as r

        limits = {r.RLIMIT_FSIZE: LARGEST_RESULT, r.RLIMIT_NOFILE: 64, r.RLIMIT_CORE: 0}
        if LINUX:
            own = int(Path("/proc/self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            limits |= {r.RLIMIT_NPROC: 64, r.RLIMIT_AS: own + MEMORY}
        for name, most in limits.items():
            r.setrlimit(name, (most, most))
        Path("/proc/self/oom_score_adj").write_bytes(b"1000")  # if memory runs out, it ends first


def call_c(name: str, *arguments: Any) -> int:
    """Call a function of the C library. Raises OSError if it fails."""
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def enter_namespaces() -> None:
    """Let the next fork be in new namespaces: user, mounts, processes, network and IPC."""
    own = {"uid_map": os.getuid(), "gid_map": os.getgid()}
    call_c("unshare", 0x78020000)
    Path("/proc/self/setgroups").write_bytes(b"deny")
    for name, number in own.items():
        Path("/proc/self", name).write_bytes(b"%d %d 1" % (number, number))


def show_only(paths: list[str], root: bytes) -> None:
    """Make a new root with these paths, read-only, and a little space in memory."""
    call_c("mount", None, b"/", None, 0x44000, None)  # private: the system sees no change
    call_c("mount", b"tmpfs", root, b"tmpfs", 6, b"size=16m,nr_inodes=4k,mode=755")
    for path in map(os.fsencode, paths):
        target = root + path
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT))
        call_c("mount", path, target, None, 0x1000, None)  # the same files, bound to a second place
        flags = 0x1027 | os.statvfs(path).f_flag & 8  # read-only, no devices, and as before
        call_c("mount", None, target, None, flags, None)
    os.chdir(root)
    call_c("pivot_root", b".", b".")
    call_c("umount2", b".", 2)  # the old root is gone


def allow_reading(paths: list[str]) -> None:
    """Refuse this process all files but these, with Landlock. Raises OSError if there is none."""
    version = call_c("syscall", 444, None, 0, 1)
    rights = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1  # all that this kernel knows
    rules = call_c("syscall", 444, struct.pack("Q", rights), 8, 0)
    for path in paths:
        file = os.open(path, os.O_PATH)
        allowed = 12 if os.path.isdir(path) else 4  # to read files, and to list folders
        call_c("syscall", 445, rules, 1, struct.pack("=Qi", allowed, file), 0)
        os.close(file)
    call_c("syscall", 446, rules, 0)
    os.close(rules)


def refuse_calls() -> None:
    """Refuse REFUSED with a filter of seccomp: a small program that the kernel runs at each call.

    Calls from number 440 on are new, and are refused too.
    """
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    tests = [(at_least, 440), *((equal, number) for number in REFUSED["refused"].values())]
    last = len(tests) + 8  # the instruction that refuses
    code = [(load, 0, 0, 4), (equal, 0, last - 2, REFUSED["audit_arch"]), (load, 0, 0, 0)]
    code += [(test, last - at, 0, number) for at, (test, number) in enumerate(tests, start=4)]
    # fcntl with F_SETOWN or F_SETOWN_EX would send signals to another process
    code += [(equal, 0, 3, REFUSED["fcntl"]), (load, 0, 0, 24), (equal, 2, 0, 8), (equal, 1, 0, 15)]
    code += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x50001)]  # allow, or the error EPERM
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    filter_ = struct.pack("HP", len(code), ctypes.addressof(program))
    call_c("prctl", 22, 2, filter_, 0, 0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_job(json.loads(sys.argv[1]), "none")
    serve(json.load(sys.stdin))
