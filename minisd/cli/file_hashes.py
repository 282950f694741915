"""The sha256 of files and folders of weights.

It takes 20 seconds to compute the sha256 of 5 GB. So the results for large files are cached.
"""

import hashlib
import json
import re
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

from minisd.cli.messages import print_message

LARGE_FILE = 10**9  # bytes: the sha256 of a larger file is cached for the next command
TICK = 0.02  # seconds: two changes within one tick of the system's clock get the same date
CACHED_HASHES = "hashes.json"  # next to the downloads
FOLDERS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler", "depth_estimator")


def hash_of(source: str) -> str:
    """The sha256 of a file or folder, in hexadecimal.

    If the source is one file, the result is what the program sha256sum prints. A folder has many
    files, and a fine-tuned file may need a base file. In these two cases, the sha256 of each file
    is written on a line of its own, and the result is the sha256 of these lines.

    source: a path, or a name that minisd knows

    Raises ValueError if a file changes while it is read.
    """
    from minisd.checkpoints.registry import local_path

    path = local_path(source)
    if path.is_dir():
        files = [file for name in FOLDERS for file in sorted((path / name).rglob("*"))]
        files = [file for file in [*files, path / "model_index.json"] if file.is_file()]
    else:
        files = [path, *base_files(path)]
    digests = [hash_of_file(file.resolve()) for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def base_files(path: Path) -> list[Path]:
    """A list of 0 or 1 paths: the base file of a fine-tuned file.

    The base file holds the weights that the fine-tuned file does not hold.
    """
    from minisd.checkpoints.header import read_metadata

    try:
        base = read_metadata(path).get("base")
    except ValueError:  # a picture or a pickle has no such metadata
        return []
    return [path.with_name(Path(base).name)] if base else []


def hash_of_file(path: Path) -> str:
    """The sha256 of one file. The result for a large file is cached until the file changes."""
    file = path.stat()
    if file.st_size < LARGE_FILE:
        return compute_hash(path, file_state(path))
    age = time.time() - max(file.st_mtime, file.st_ctime)
    if 0 <= age < TICK:
        time.sleep(TICK)
    return cached_hash(path, file_state(path))


def file_state(path: Path) -> str:
    """A text that changes whenever the file changes.

    A program can change a file and then set the old date again in st_mtime. But no program can set
    st_ctime, the date of the last change. On Windows, st_ctime is the date of creation. This date
    is new if another file replaces the file.
    """
    file = path.stat()
    return f"{file.st_size} {file.st_mtime_ns} {file.st_ctime_ns} {file.st_ino}"


def compute_hash(path: Path, state: str) -> str:
    """Compute the sha256 of a file. Raises ValueError if the file changes during the computation.

    state: the result of file_state(path) before this call
    """
    from minisd.files.sha256 import file_sha256

    digest = file_sha256(path)
    if file_state(path) != state:
        raise ValueError(f"{path} changed while it was read: wait until the file is complete.")
    return digest


@cache
def cached_hash(path: Path, state: str) -> str:
    """Read the sha256 of a file from the cache.

    If the cache has no sha256 for this state of the file, compute the sha256 and cache it.

    state: the result of file_state(path) before this call
    """
    from minisd.checkpoints.registry import cache_dir
    from minisd.files.whole_files import written_whole

    notes = cache_dir() / CACHED_HASHES
    if known := known_hashes(notes).get(str(path), {}).get(state):
        return known
    print_message(f"computing the sha256 of {path.name}. This is done once.")
    digest = compute_hash(path, state)
    # If the cache cannot be written, the next command computes the digest again.
    with suppress(OSError, ValueError, NotImplementedError):
        notes.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{notes}.lock", timeout=10)  # another process may be writing
        with lock, written_whole(notes) as unfinished:
            all_known = known_hashes(notes) | {str(path): {state: digest}}
            unfinished.write_text(json.dumps(all_known, indent=1), encoding="utf-8")
    return digest


def known_hashes(notes: Path) -> dict[str, dict[str, str]]:
    """Read the cache. Returns a dictionary: path -> state of the file -> sha256.

    Damaged entries are left out. The state of a file is the text that file_state() returns.
    """
    from minisd.files.json_files import read_json

    try:
        entries = read_json(notes)
    except (ValueError, RecursionError):
        return {}
    return {path: entry for path, entry in entries.items() if is_entry(entry)}


def is_entry(entry: object) -> bool:
    """Whether this is a dictionary whose values are all sha256 digests."""
    digests = entry.values() if isinstance(entry, dict) else [None]
    return all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one) for one in digests)
