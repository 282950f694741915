"""The sha256 of files and folders of weights, computed once: 5 GB take about 20 s."""

import hashlib
import json
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

LARGE = 10**9  # bytes: from here on a digest is kept for the next command
KEPT = "hashes.json"  # next to the downloads
FOLDERS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler", "depth_estimator")


def hash_of(source: str) -> str:
    """Of a file its sha256, as sha256sum and the web UI say it (there its first ten digits).

    Of a folder, and of a file that needs another to be whole, the sha256 of theirs, one a line.
    source: a path, or a name that minisd knows
    """
    from minisd.checkpoints.official import local

    path = local(source)
    if path.is_dir():
        files = [file for name in FOLDERS for file in sorted((path / name).rglob("*"))]
        files = [file for file in [*files, path / "model_index.json"] if file.is_file()]
    else:
        files = [path, *base_of(path)]
    states = [(file.resolve(), file.stat()) for file in files]
    digests = [kept_hash(file, state.st_size, state.st_mtime_ns) for file, state in states]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def base_of(path: Path) -> list[Path]:
    """The file that a fine-tuned one of ours needs next to it."""
    from minisd.checkpoints.read import metadata

    try:
        base = metadata(path).get("base")
    except ValueError:  # a picture, a pickle
        return []
    return [path.with_name(Path(base).name)] if base else []


@cache
def kept_hash(path: Path, size: int, changed: int) -> str:
    """Of one file; a large one's is looked up, as long as its size and date stay as they were."""
    from minisd.checkpoints.official import kept, sha256

    if size < LARGE:
        return sha256(path)
    key, notes = f"{path} {size} {changed}", kept() / KEPT
    known = known_hashes(notes)
    if key in known:
        return known[key]
    print(f"minisd: computing the sha256 of {path.name}, once.", file=sys.stderr)
    digest = sha256(path)
    with suppress(OSError):  # a convenience: without it the next command computes it again
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(known | {key: digest}, indent=1), encoding="utf-8")
    return digest


def known_hashes(notes: Path) -> dict[str, str]:
    try:
        known = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
