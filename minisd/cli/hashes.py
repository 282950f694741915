"""The sha256 of files and folders of weights, computed once: 5 GB take about 20 s."""

import hashlib
import json
import re
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

from minisd.cli.messages import print_message

LARGE_FILE = 10**9  # bytes: from here on a digest is kept for the next command
TICK = 0.02  # seconds: two changes of a file within one tick of the system's clock look alike
CACHED_HASHES = "hashes.json"  # next to the downloads
FOLDERS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler", "depth_estimator")


def hash_of(source: str) -> str:
    """Of a file its sha256, as sha256sum and the web UI say it (there its first ten digits).

    Of a folder, and of a file that needs another to be whole, the sha256 of theirs, one a line.
    source: a path, or a name that minisd knows. ValueError: a file changes while it is read.
    """
    from minisd.checkpoints.registry import local_path

    path = local_path(source)
    if path.is_dir():
        files = [file for name in FOLDERS for file in sorted((path / name).rglob("*"))]
        files = [file for file in [*files, path / "model_index.json"] if file.is_file()]
    else:
        files = [path, *base_of(path)]
    digests = [hash_of_file(file.resolve()) for file in files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def base_of(path: Path) -> list[Path]:
    """The file that a fine-tuned one of ours needs next to it."""
    from minisd.checkpoints.header import read_metadata

    try:
        base = read_metadata(path).get("base")
    except ValueError:  # a picture, a pickle
        return []
    return [path.with_name(Path(base).name)] if base else []


def hash_of_file(path: Path) -> str:
    """A small file's is computed each time, a large one's only when the file has changed."""
    file = path.stat()
    if file.st_size < LARGE_FILE:
        return compute_hash(path, file_state(path))
    age = time.time() - max(file.st_mtime, file.st_ctime)
    if 0 <= age < TICK:
        time.sleep(TICK)
    return kept_hash(path, file_state(path))


def file_state(path: Path) -> str:
    """Changes with the file: its date can be set back, but not the date of its last change.

    On Windows st_ctime is when the file was made: it changes when another takes its place.
    """
    file = path.stat()
    return f"{file.st_size} {file.st_mtime_ns} {file.st_ctime_ns} {file.st_ino}"


def compute_hash(path: Path, state: str) -> str:
    from minisd.files.sha256 import file_sha256

    digest = file_sha256(path)
    if file_state(path) != state:
        raise ValueError(f"{path} changed while it was read: wait until it is written.")
    return digest


@cache
def kept_hash(path: Path, state: str) -> str:
    """The sha256 of a file in this state: looked up, or computed and kept."""
    from minisd.checkpoints.registry import cache_dir
    from minisd.files.whole_files import written_whole

    notes = cache_dir() / CACHED_HASHES
    if known := known_hashes(notes).get(str(path), {}).get(state):
        return known
    print_message(f"computing the sha256 of {path.name}, once.")
    digest = compute_hash(path, state)
    # a convenience: where it cannot be kept, the next command computes it again
    with suppress(OSError, ValueError, NotImplementedError):
        notes.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{notes}.lock", timeout=10)  # of others that add to the list now
        with lock, written_whole(notes) as unfinished:
            all_known = known_hashes(notes) | {str(path): {state: digest}}
            unfinished.write_text(json.dumps(all_known, indent=1), encoding="utf-8")
    return digest


def known_hashes(notes: Path) -> dict[str, dict[str, str]]:
    """path -> state -> sha256. Whatever else a damaged file holds is left out."""
    from minisd.files.json_files import read_json

    try:
        entries = read_json(notes)
    except (ValueError, RecursionError):
        return {}
    return {path: entry for path, entry in entries.items() if is_entry(entry)}


def is_entry(entry: object) -> bool:
    digests = entry.values() if isinstance(entry, dict) else [None]
    return all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one) for one in digests)
