"""Downloads by name, from a small server that answers as the hub does, or fails as asked."""

import json
import os
import re
from dataclasses import replace

import pytest
from huggingface_hub import file_download

import minisd
from minisd import cli
from minisd.checkpoints import registry as official
from minisd.checkpoints.registry import OFFICIAL, Official, download
from tests.helpers.hub_server import CONTENT, SHA256, Hub, serving


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, and one published file known to us: ("first/gone" or "second/here")."""
    monkeypatch.setenv("MINISD_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between its tries
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # 10 MB: of models
    file = Official(("first/gone", "second/here"), "some.ckpt", "MIT", len(CONTENT), SHA256)
    monkeypatch.setitem(OFFICIAL, "some", file)
    handler = type("Own", (Hub,), {"asked": []})
    handler.files = {"/second/here/resolve/main/some.ckpt": CONTENT}
    with serving(handler) as endpoint:
        handler.endpoint = endpoint
        yield handler


def test_the_first_repository_that_has_the_file_gives_it(hub, tmp_path):
    path = download("some", hub.endpoint)
    assert path == tmp_path / "kept" / "some" / "some.ckpt"
    assert path.read_bytes() == CONTENT
    note = json.loads((path.parent / "source.json").read_text(encoding="utf-8"))
    assert note == {
        "repository": "second/here",
        "revision": "c0ffee" * 6 + "cafe",
        "sha256": SHA256,
    }
    assert sorted(file.name for file in path.parent.iterdir()) == ["some.ckpt", "source.json"]


def test_what_is_there_is_not_asked_for_again(hub, monkeypatch):
    path = download("some", hub.endpoint)
    hub.asked.clear()
    assert download("some", hub.endpoint) == path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download("some") == path == official.local_path("some")
    assert hub.asked == []


def test_a_connection_that_breaks_once_is_taken_up_again(hub):
    hub.cut_after, hub.cuts = 30_000, 1
    assert download("some", hub.endpoint).read_bytes() == CONTENT
    assert any(span for _, _, span in hub.asked)


def test_a_download_that_broke_off_goes_on_with_the_next_command(hub, tmp_path):
    hub.cut_after, hub.cuts = 30_000, 1000
    with pytest.raises(ValueError, match=r"broke off .* kept .*the same command again"):
        download("some", hub.endpoint)
    part = tmp_path / "kept" / "some" / "some.ckpt.from-second-here.part"
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    assert not (tmp_path / "kept" / "some" / "some.ckpt").exists()
    hub.cuts = 0
    hub.asked.clear()
    assert download("some", hub.endpoint).read_bytes() == CONTENT
    assert ("GET", "/second/here/resolve/main/some.ckpt", f"bytes={kept}-") in hub.asked
    assert not part.exists()


def test_a_wrong_file_is_deleted(hub, tmp_path):
    hub.files = {path: CONTENT[::-1] for path in hub.files}
    with pytest.raises(ValueError, match=r"instead of the published one\. minisd deleted it"):
        download("some", hub.endpoint)
    assert list((tmp_path / "kept" / "some").iterdir()) == []


def test_where_no_sha256_is_published_the_first_is_noted(hub, monkeypatch):
    monkeypatch.setitem(OFFICIAL, "some", replace(OFFICIAL["some"], sha256=None))
    assert "unknown (later downloads must equal" in official.describe_official("some")
    path = download("some", hub.endpoint)
    note = path.parent / "source.json"
    assert json.loads(note.read_text(encoding="utf-8"))["sha256"] == SHA256
    path.unlink()
    hub.files = {there: CONTENT[::-1] for there in hub.files}
    with pytest.raises(
        ValueError, match=r"instead of the one of the first download.*delete .*source\.json"
    ):
        download("some", hub.endpoint)
    assert [file.name for file in path.parent.iterdir()] == ["source.json"]
    hub.files = {there: CONTENT for there in hub.files}
    assert download("some", hub.endpoint) == path
    path.unlink()
    note.unlink()
    hub.files = {there: CONTENT[::-1] for there in hub.files}
    assert download("some", hub.endpoint).read_bytes() == CONTENT[::-1]


def test_the_commit_that_is_known_is_asked_for(hub, monkeypatch):
    pinned = replace(OFFICIAL["some"], revisions={"first/gone": "0ff1ce", "second/here": "c0ffee"})
    monkeypatch.setitem(OFFICIAL, "some", pinned)
    assert "first/gone at 0ff1ce or second/here at c0ffee" in official.describe_official("some")
    hub.files = {"/second/here/resolve/c0ffee/some.ckpt": CONTENT}
    assert download("some", hub.endpoint).read_bytes() == CONTENT
    asked = [path for _, path, _ in hub.asked]
    assert asked[0] == "/first/gone/resolve/0ff1ce/some.ckpt"
    assert not any("/main/" in path for path in asked)


@pytest.mark.parametrize("code", ["RepoNotFound", "RevisionNotFound", "EntryNotFound"])
def test_whatever_is_gone_the_next_mirror_is_asked(hub, code):
    hub.gone = code
    assert download("some", hub.endpoint).read_bytes() == CONTENT


def test_mirrors_that_are_gone_are_named(hub):
    hub.files = {}
    with pytest.raises(ValueError, match="no longer at first/gone or second/here"):
        download("some", hub.endpoint)


def test_a_full_disk_is_told(hub, monkeypatch):
    def full(url, file, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(ValueError, match=r"has no room left for some\.ckpt"):
        download("some", hub.endpoint)


def test_offline_mode_is_told(hub, monkeypatch):
    monkeypatch.setattr(file_download.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(ValueError, match="offline mode is on"):
        download("some", hub.endpoint)


def test_a_server_in_trouble_is_one_sentence(hub):
    hub.trouble = True
    with pytest.raises(ValueError, match=r"cannot give some\.ckpt .* try again later") as told:
        download("some", hub.endpoint)
    assert "\n" not in str(told.value)


def test_no_server_is_told(hub):
    with pytest.raises(ValueError, match=r"broke off .*minisd kept nothing"):
        download("some", "http://127.0.0.1:9")


def test_a_name_that_is_not_here_yet_says_how_to_fetch_it(hub):
    with pytest.raises(ValueError, match="download it with `minisd download some`"):
        minisd.load("some")
    with pytest.raises(ValueError, match="choose one of sd14, sd14-full"):
        download("sd99")


def test_the_command_shows_size_and_licence_before_it_fetches(hub, capsys, monkeypatch):
    monkeypatch.setattr(official, "download", lambda name: print("fetched"))
    assert cli.main(["download", "sd15"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "4.27 GB" in first and "OpenRAIL" in first and "6ce01616" in first
    assert second == "fetched"
    assert cli.main(["download"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(OFFICIAL)
    assert cli.main(["download", "sd99"]) == 2


def test_every_published_file_is_described_in_full():
    for name, file in OFFICIAL.items():
        assert file.licence and file.repositories, name
        assert file.sha256 is None or len(file.sha256) == 64
        assert all(repository.count("/") == 1 for repository in file.repositories)
        assert set(file.revisions) <= set(file.repositories)
        assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in file.revisions.values())


def test_a_kill_between_the_file_and_its_note_loses_neither(hub, monkeypatch):
    moved, replace_file = [], os.replace

    def die_at_the_second(source, target):
        moved.append(target)
        if len(moved) == 2:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(official.os, "replace", die_at_the_second)
        download("some", hub.endpoint)
    path = official.local_path("some")
    assert not path.with_name("source.json").exists()
    assert download("some", hub.endpoint) == path
    assert json.loads(path.with_name("source.json").read_text(encoding="utf-8"))["sha256"] == SHA256
    assert sorted(one.name for one in path.parent.iterdir()) == ["some.ckpt", "source.json"]
