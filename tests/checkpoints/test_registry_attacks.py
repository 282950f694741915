"""Downloads by name that are killed, disturbed or run twice, and servers that lie."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from huggingface_hub import file_download

from minisd import cli
from minisd.checkpoints import registry as official
from minisd.checkpoints.registry import OFFICIAL, Official, download
from minisd.cli import file_hashes
from tests.helpers.hub_server import serving

CONTENT = random.Random(0).randbytes(102_400)
OTHER = CONTENT[::-1]
PIECE = 4096
# Forked children start in milliseconds, but only Linux can fork while the server's thread runs.
FORKS = sys.platform == "linux"
PROCESSES = multiprocessing.get_context("fork" if FORKS else "spawn")


def sha(content):
    return hashlib.sha256(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Serves `content` under every path, piece by piece. `mood` says how it disturbs a download."""

    content, mood, pause, etag, extra = CONTENT, "", 0.0, '"one"', ()
    asked: ClassVar[list] = []
    sent = 0  # pieces

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        hub = type(self)
        content, start = hub.content, 0
        span = self.headers.get("Range")
        hub.asked.append((self.command, self.path, span))
        if span and self.mood != "ignores the range":
            start = int(span.removeprefix("bytes=").partition("-")[0])
        if isinstance(self.mood, int) and (with_body or self.mood != 416):
            return self.head(self.mood, {"Content-Length": "0"})
        if str(self.mood).startswith("redirects") and self.path != "/elsewhere":
            elsewhere = self.endpoint.replace("127.0.0.1", "localhost") + "/elsewhere"
            address = str(self.mood).partition(" to ")[2] or elsewhere
            about = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha(CONTENT)}"'}
            return self.head(302, {"Location": address, **about})
        about = {"Content-Length": str(len(content) - start), "ETag": hub.etag, **dict(hub.extra)}
        if start:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if with_body:
            body = self.disturb(about, body)
        elif self.mood == "hides the size":
            del about["Content-Length"]
        self.head(206 if start else 200, about)
        if with_body:
            self.send(body)

    def disturb(self, about, body):
        """What this mood changes in the headers of a GET. Returns the body to be sent."""
        whole = len(self.content)
        if self.mood == "sends another range" and "Content-Range" in about:
            about["Content-Range"] = f"bytes 0-{len(body) - 1}/{whole}"
            return self.content[: len(body)]
        if self.mood == "hides the total" and "Content-Range" in about:
            about["Content-Range"] = about["Content-Range"].partition("/")[0] + "/*"
        if self.mood == "sends more":
            body += b"more"
            about["Content-Length"] = str(len(body))
        if self.mood == "sends without end":
            del about["Content-Length"]
            body += b"more" * 10**6
        if self.mood == "sends less":
            body = body[: len(body) // 2]
            about["Content-Length"] = str(len(body))
        if self.mood == "packs it":
            about["Content-Encoding"] = "gzip"
        if self.mood == "says nonsense":
            about["Content-Length"] = "many"
        return body

    def head(self, status, about):
        self.send_response(status)
        for name, value in about.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, body):
        if self.mood == "falls silent":
            body = body[:PIECE]
        with suppress(OSError):  # a client that is gone
            for start in range(0, len(body), PIECE):
                self.wfile.write(body[start : start + PIECE])
                type(self).sent += 1
                time.sleep(self.pause)
            if self.mood == "falls silent":
                time.sleep(0.25)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISD_WEIGHTS", str(tmp_path / "kept"))
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})  # between its tries
    monkeypatch.setattr(file_download, "time", impatient)
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", PIECE)
    file = Official(["a/b"], "some.ckpt", "MIT", len(CONTENT), sha(CONTENT))
    monkeypatch.setitem(OFFICIAL, "some", file)
    handler = type("Own", (Hub,), {"asked": []})
    with serving(handler) as endpoint:
        handler.endpoint = endpoint
        yield handler


@pytest.fixture
def folder(hub, tmp_path):
    return tmp_path / "kept" / "some"


def unknown(monkeypatch):
    """From here on neither the size nor the sha256 of the file is published."""
    monkeypatch.setitem(OFFICIAL, "some", replace(OFFICIAL["some"], sha256=None, size=None))


def begin(hub, folder):
    """Break a download off in the middle. Returns the part."""
    mood, hub.mood = hub.mood, "sends less"
    with pytest.raises(ValueError, match="broke off"):
        download("some", hub.endpoint)
    hub.mood = mood
    part = folder / "some.ckpt.from-a-b.part"
    assert part.read_bytes() == CONTENT[: part.stat().st_size] and part.stat().st_size > 0
    return part


def refusal(hub):
    """The sentence that a download ends in."""
    with pytest.raises(ValueError) as told:
        download("some", hub.endpoint)
    assert "\n" not in str(told.value) and len(str(told.value)) < 800
    assert not os.path.exists(Path(os.environ["MINISD_WEIGHTS"]) / "some" / "some.ckpt")
    return str(told.value)


def check_whole(hub, folder, content=CONTENT):
    """The next download of a server that behaves gives the file, and leaves nothing else."""
    hub.mood = ""
    assert download("some", hub.endpoint).read_bytes() == content
    assert sorted(os.listdir(folder)) == ["some.ckpt", "source.json"]
    assert sorted(os.listdir(folder.parent)) in (["some"], ["some", "some.lock"])


# ---- several at once, and kills ----------------------------------------------------------------


def fetch(file, weights, endpoint):
    """What another process does."""
    os.environ["MINISD_WEIGHTS"] = weights
    OFFICIAL["some"] = file
    file_download.constants.DOWNLOAD_CHUNK_SIZE = PIECE
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        sys.stderr = nothing
        download("some", endpoint)


def start_process(hub, folder):
    given = (OFFICIAL["some"], str(folder.parent), hub.endpoint)
    process = PROCESSES.Process(target=fetch, args=given, daemon=True)
    process.start()
    return process


def test_processes_and_threads_at_once_end_in_one_good_file(hub, folder):
    hub.pause = 0.005
    processes = [start_process(hub, folder) for _ in range(3)]
    failures = []

    def in_a_thread():
        try:
            download("some", hub.endpoint)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=in_a_thread) for _ in range(3)]
    for thread in threads:
        thread.start()
    for one in [*threads, *processes]:
        one.join(60)
    assert not failures and [process.exitcode for process in processes] == [0, 0, 0]
    check_whole(hub, folder)
    assert len([one for one in hub.asked if one[0] == "GET"]) == 1


def test_the_second_says_that_it_waits(hub, folder):
    hub.pause = 0.02
    first = threading.Thread(target=download, args=("some", hub.endpoint))
    first.start()
    while not hub.sent:
        time.sleep(0.01)
    with pytest.warns(UserWarning, match=r"another download of some is running: waiting"):
        assert download("some", hub.endpoint).read_bytes() == CONTENT
    first.join()


def test_a_download_that_is_killed_again_and_again_ends_whole(hub, folder):
    hub.pause = 0.02
    chance = random.Random(0)
    path, part = folder / "some.ckpt", folder / "some.ckpt.from-a-b.part"
    for pieces in [3] + [chance.randrange(4) for _ in range(11 if FORKS else 1)]:
        enough = size_of(part) + pieces * PIECE
        process = start_process(hub, folder)
        while process.is_alive() and size_of(part) < enough:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        process.kill()
        process.join()
        assert not path.exists() or path.read_bytes() == CONTENT
    check_whole(hub, folder)
    assert any(span for _, _, span in hub.asked)


def size_of(part):
    try:
        return part.stat().st_size
    except OSError:
        return 0


class Killed(BaseException):
    """In the place of a kill."""


@pytest.mark.parametrize("known", [True, False])
def test_a_kill_at_any_step_leaves_nothing_that_misleads(hub, folder, monkeypatch, known):
    if not known:
        unknown(monkeypatch)
    steps, last = 0, False
    while not last:
        steps, countdown = steps + 1, [steps]

        def stop_at(real, after, countdown=countdown):
            def call(*given, **more):
                countdown[0] -= 1
                if countdown[0] == 0 and not after:
                    raise Killed
                result = real(*given, **more)
                if countdown[0] == 0:
                    raise Killed
                return result

            return call

        for after in (False, True):
            countdown[0] = steps
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "replace", stop_at(os.replace, after))
                for name in ("write_text", "write_bytes", "unlink"):
                    patch.setattr(Path, name, stop_at(getattr(Path, name), after))
                try:
                    download("some", hub.endpoint)
                    last = True
                except Killed:
                    pass
            path = folder / "some.ckpt"
            if not path.exists() and not known:  # then the file may change there: nothing was kept
                hub.content, hub.etag = OTHER, '"two"'
            assert download("some", hub.endpoint).read_bytes() in (CONTENT, OTHER)
            assert set(os.listdir(folder)) <= {"some.ckpt", "source.json"}
            for file in folder.iterdir():
                file.unlink()
            hub.content, hub.etag = CONTENT, '"one"'
    assert steps > 4


# ---- servers -----------------------------------------------------------------------------------

MOODS = ["ignores the range", "sends another range", "hides the total", "sends more"]
MOODS += ["sends without end", "sends less", "packs it", "says nonsense", "hides the size"]
MOODS += ["falls silent", "redirects to file:///etc/passwd", "redirects to ftp://here/some"]
MOODS += ["redirects to file://here/etc/passwd"]
MOODS += ["redirects", 400, 401, 403, 404, 410, 416, 429, 500, 503]


GIVES_THE_FILE = ("ignores the range", "redirects")
THEN_STARTS_OVER = ("sends another range", "hides the total")


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("mood", MOODS)
def test_a_server_gives_the_file_or_one_sentence(hub, folder, monkeypatch, mood, begun):
    monkeypatch.setattr(file_download.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    if begun:
        begin(hub, folder)
    hub.mood, told = mood, []
    for _ in range(2):
        try:
            assert download("some", hub.endpoint).read_bytes() == CONTENT
        except ValueError as error:
            told.append(str(error))
            assert "\n" not in told[-1] and len(told[-1]) < 500
            assert not (folder / "some.ckpt").exists()
            assert all(part.stat().st_size <= len(CONTENT) for part in folder.glob("*.part"))
    if mood in GIVES_THE_FILE:
        assert told == []
    if mood in THEN_STARTS_OVER:
        assert len(told) == begun
    if "://here" in str(mood):
        assert "not safe" in told[0]
    if isinstance(mood, int):
        gone, unfit = "is no longer at a/b", "sent data that does not continue"
        says = {401: "wants a login", 404: gone, 410: gone, 416: unfit}
        assert says.get(mood, f"a/b cannot give some.ckpt (it answers {mood})") in told[0]
    check_whole(hub, folder)


def test_a_page_in_the_place_of_the_file_is_refused(hub, folder, monkeypatch):
    hub.content = b"<!DOCTYPE html><title>Log in</title>"
    assert "no longer at a/b" in refusal(hub)  # another size than the published one
    unknown(monkeypatch)
    assert "is only a text. minisd deleted it" in refusal(hub)
    hub.content = CONTENT
    check_whole(hub, folder)


def test_where_nobody_says_the_size_nothing_is_fetched(hub, folder, monkeypatch):
    unknown(monkeypatch)
    hub.mood = "hides the size"
    assert "does not state the size of some.ckpt" in refusal(hub)
    check_whole(hub, folder)


def test_the_hubs_own_sha256_is_compared_where_none_is_published(hub, folder, monkeypatch):
    unknown(monkeypatch)
    hub.content, hub.mood = OTHER, "redirects"  # whose X-Linked-ETag is CONTENT's
    assert "instead of the one that its server states. minisd deleted it" in refusal(hub)
    hub.content = CONTENT
    assert download("some", hub.endpoint).read_bytes() == CONTENT


def test_another_file_under_the_same_name_is_not_fetched(hub, monkeypatch):
    monkeypatch.setitem(OFFICIAL, "some", replace(OFFICIAL["some"], sha256=sha(OTHER)))
    hub.mood = "redirects"
    assert "no longer at a/b" in refusal(hub)
    assert all(command == "HEAD" for command, _, _ in hub.asked)


def test_what_the_server_calls_the_file_decides_nothing(hub, folder, tmp_path, monkeypatch):
    shown, real = [], file_download.http_get

    def watched(*given, **more):
        shown.append(more.get("displayed_filename"))
        return real(*given, **more)

    monkeypatch.setattr(file_download, "http_get", watched)
    evil = 'attachment; filename="../../evil\x1b[2J";'
    hub.extra = {"Content-Disposition": evil, "X-Repo-Commit": "../../evil"}.items()
    check_whole(hub, folder)
    assert not list(tmp_path.rglob("*evil*"))
    assert shown == ["some.ckpt"]  # else the bar shows the server's name, control characters too


# ---- parts and notes ---------------------------------------------------------------------------


def test_a_file_that_changed_there_starts_again(hub, folder, monkeypatch):
    unknown(monkeypatch)
    begin(hub, folder)
    hub.content, hub.etag = OTHER, '"two"'
    hub.asked.clear()
    check_whole(hub, folder, OTHER)
    assert not any(span for _, _, span in hub.asked)


def make_longer(part):
    part.write_bytes(CONTENT + b"more")


def damage(part):
    part.write_bytes(bytes(part.stat().st_size))


def make_a_folder(part):
    part.unlink()
    part.mkdir()


def make_a_link(part):
    part.unlink()
    part.symlink_to(part.parents[2] / "target")


def make_a_pipe(part):
    part.unlink()
    if hasattr(os, "mkfifo"):  # not on Windows, which has none in folders
        os.mkfifo(part)


def lose_the_mark(part):
    part.with_suffix(".mark").unlink()
    damage(part)


def damage_the_mark(part):
    part.with_suffix(".mark").write_bytes(b"\xff\x00")
    damage(part)


PARTS = [
    make_longer,
    damage,
    make_a_folder,
    make_a_link,
    make_a_pipe,
    lose_the_mark,
    damage_the_mark,
]


@pytest.mark.parametrize("change", PARTS, ids=lambda change: change.__name__)
def test_a_part_that_is_not_what_was_left_does_no_harm(hub, folder, tmp_path, change):
    part = begin(hub, folder)
    target = tmp_path / "target"
    target.write_bytes(b"a file of somebody")
    try:
        change(part)
    except OSError as error:  # Windows lets only some users make links
        pytest.skip(str(error))
    if change is damage:
        assert "instead of the published one. minisd deleted it" in refusal(hub)
    if change is make_a_folder:
        assert "cannot be written" in refusal(hub)
        part.rmdir()
    check_whole(hub, folder)
    assert target.read_bytes() == b"a file of somebody"


@pytest.mark.parametrize(
    "note", [b"", b"{", b"[1]", b'"a"', b'{"sha256": 3}', b'{"sha256": "a"}', b"\xff" * 9, b"{}"]
)
def test_a_damaged_note_is_one_sentence_or_does_no_harm(hub, folder, monkeypatch, note):
    folder.mkdir(parents=True)
    (folder / "source.json").write_bytes(note)
    with pytest.MonkeyPatch.context() as patch:
        unknown(patch)
        if note != b"{}":  # which says nothing, and so nothing against the file
            assert "source.json" in refusal(hub)
    check_whole(hub, folder)  # a published sha256 needs no note


# ---- the folder --------------------------------------------------------------------------------


def test_a_folder_in_the_place_of_the_file_is_refused(hub, folder):
    (folder / "some.ckpt").mkdir(parents=True)
    for ask in (lambda: official.local_path("some"), lambda: download("some", hub.endpoint)):
        with pytest.raises(ValueError, match=r"some\.ckpt is not a file: delete it, then run"):
            ask()
    assert hub.asked == []


def test_a_folder_that_cannot_be_written_is_one_sentence(hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "in", tmp_path / ("long" * 70)):
        monkeypatch.setenv("MINISD_WEIGHTS", str(place))
        with pytest.raises(ValueError, match="is not on this machine"):
            official.local_path("some")
        assert "cannot be written" in refusal(hub) and "set MINISD_WEIGHTS" in refusal(hub)
        assert cli.main(["download", "some"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_folder_may_start_with_a_tilde_or_be_relative(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for place, where in (("~/w", "home/w"), ("w", "w"), ("", "home/.cache/minisd")):
        monkeypatch.setenv("MINISD_WEIGHTS", place)
        assert download("some", hub.endpoint).samefile(tmp_path / where / "some" / "some.ckpt")


def test_without_a_home_one_sentence(hub, monkeypatch):
    def no_home(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("MINISD_WEIGHTS", "")
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(ValueError, match="you have no home folder: set MINISD_WEIGHTS"):
        official.local_path("some")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_disk_that_is_full_in_the_middle_keeps_what_it_has(hub, folder, monkeypatch, number):
    begin(hub, folder)
    real = file_download.http_get

    def fill(url, file, **more):
        file.write(CONTENT[file.tell() :][:PIECE])
        raise OSError(number, "no")

    monkeypatch.setattr(file_download, "http_get", fill)
    assert "has no room left for some.ckpt" in refusal(hub)
    monkeypatch.setattr(file_download, "http_get", real)
    check_whole(hub, folder)
    assert hub.asked[-1][2]


# ---- the sha256 of large files -----------------------------------------------------------------


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Every file counts as large."""
    monkeypatch.setenv("MINISD_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.setattr(file_hashes, "LARGE_FILE", 0)
    file_hashes.cached_hash.cache_clear()
    return tmp_path / "large.bin"


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_file_that_changed_under_its_old_date_is_hashed_again(large, monkeypatch, limit):
    monkeypatch.setattr(file_hashes, "LARGE_FILE", limit)
    for content in (b"one", b"two", b"six"):
        large.unlink(missing_ok=True) if os.name == "nt" else None  # keeps no date of changes
        large.write_bytes(content)
        os.utime(large, (10**9, 10**9))
        assert file_hashes.hash_of(str(large)) == sha(content)


@pytest.mark.parametrize(
    "notes",
    [b"", b"[" * 10**5, b"[]", b'{"a": 1}', b'{"%s": {"%s": 5}}', b'{"%s": {"%s": "wrong"}}'],
)
def test_a_damaged_list_of_hashes_is_ignored(large, notes):
    large.write_bytes(b"one")
    known = large.parent / "kept" / "hashes.json"
    known.parent.mkdir()
    if b"%s" in notes:
        path = json.dumps(str(large.resolve())).strip('"').encode()
        notes = notes % (path, file_hashes.file_state(large).encode())
    known.write_bytes(notes)
    assert file_hashes.hash_of(str(large)) == sha(b"one")
    assert list(json.loads(known.read_text(encoding="utf-8"))) == [str(large.resolve())]


def test_writers_at_once_leave_a_good_list_of_hashes(large):
    files = [large.with_name(f"large{number}.bin") for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(b"%d" % number)
    threads = [threading.Thread(target=file_hashes.hash_of, args=(str(file),)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = file_hashes.known_hashes(large.parent / "kept" / "hashes.json")
    digests = {path: next(iter(entry.values())) for path, entry in known.items()}
    assert digests == {str(file.resolve()): sha(file.read_bytes()) for file in files}
    assert set(os.listdir(large.parent / "kept")) <= {"hashes.json", "hashes.json.lock"}


def test_a_disk_that_is_full_keeps_the_list_of_hashes(large, monkeypatch):
    def write_half(path, text, **_):
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError(errno.ENOSPC, "no")

    large.write_bytes(b"one")
    file_hashes.hash_of(str(large))
    known = (large.parent / "kept" / "hashes.json").read_bytes()
    monkeypatch.setattr(Path, "write_text", write_half)
    large.with_name("second.bin").write_bytes(b"two")
    assert file_hashes.hash_of(str(large.with_name("second.bin"))) == sha(b"two")
    assert (large.parent / "kept" / "hashes.json").read_bytes() == known


def test_a_file_that_was_just_changed_is_hashed_a_tick_later(large, monkeypatch):
    slept = []
    monkeypatch.setattr(file_hashes, "time", SimpleNamespace(time=time.time, sleep=slept.append))
    monkeypatch.setattr(file_hashes, "TICK", 60)
    large.write_bytes(b"one")
    file_hashes.hash_of(str(large))
    monkeypatch.setattr(file_hashes, "TICK", 0)
    file_hashes.hash_of(str(large))
    assert slept == [60]


def test_a_file_that_changes_while_it_is_read_is_refused(large, monkeypatch):
    def slow(path):
        path.write_bytes(b"another length")
        return sha(b"one")

    large.write_bytes(b"one")
    monkeypatch.setattr("minisd.files.sha256.file_sha256", slow)
    with pytest.raises(ValueError, match="changed while it was read"):
        file_hashes.hash_of(str(large))
