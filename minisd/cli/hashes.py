"""The sha256 of files and folders of weights, computed once: 5 GB take about 20 s."""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path

LARGE = 10**9  # bytes: from here on a digest is kept for the next command
KEPT = "hashes.json"  # beside the downloads
FOLDERS = ("text_encoder", "tokenizer", "unet", "vae", "scheduler", "depth_estimator")


@cache
def hash_of(source: str) -> str:
    """Of a file its sha256, as sha256sum and the web UI say it (there its first ten digits).

    Of a folder, and of a file that needs another to be whole, the sha256 of theirs, one a line.
    source: a path, or a name that minisd knows
    """
    from minisd.checkpoints.official import local
    from minisd.checkpoints.read import metadata

    path = local(source)
    if path.is_dir():
        files = [file for name in FOLDERS for file in sorted((path / name).rglob("*"))]
        files = [file for file in [*files, path / "model_index.json"] if file.is_file()]
    else:
        with open(path, "rb") as file:
            is_weights = file.read(9)[8:] == b"{"
        base = metadata(path).get("base") if is_weights else None
        files = [path, path.with_name(base)] if base else [path]
    digests = [kept_hash(file) for file in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    )


def kept_hash(path: Path) -> str:
    """Of one file; a large one's is looked up, so long as its size and date stay as they were."""
    from minisd.checkpoints.contents import sha256
    from minisd.checkpoints.official import kept

    state = path.stat()
    if state.st_size < LARGE:
        return sha256(path)
    key, notes = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}", kept() / KEPT
    try:
        known = json.loads(notes.read_text(encoding="utf-8"))
        return known[key]
    except (OSError, ValueError, KeyError, TypeError):
        print(f"minisd: computing the sha256 of {path.name}, once.", file=sys.stderr)
    digest = sha256(path)
    try:
        known = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(known | {key: digest}, indent=1), encoding="utf-8")
    except (OSError, ValueError, TypeError):
        pass  # a convenience: without it the next command computes it again
    return digest
