"""Shards and manifests: whole or not at all, the same bytes every time, and kept where they are finished."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imprint.errors import DataError, StorageError
from imprint.pipelines import writer
from imprint.pipelines.writer import Sample, ShardFolder, ShardInfo, shard_name, write_shard

SAMPLES = [Sample(f"face-{n:06d}-0", {"jpg": bytes([n]) * 700, "mask.png": b"m", "txt": b"a person"}) for n in range(3)]
HEADER = {"dataset": "test", "seed": 0, "sizes": (64, 128)}


def write_all(folder: ShardFolder, count: int = 2) -> list[str]:
    names = [shard_name("train", index) for index in range(count)]
    for name in names:
        if not folder.is_finished(name):
            folder.record(write_shard(folder.path / name, "train", SAMPLES))
    return names


def files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_shard_is_an_ordinary_webdataset_tar(tmp_path: Path) -> None:
    info = write_shard(tmp_path / "train-000000.tar", "train", SAMPLES)
    content = (tmp_path / "train-000000.tar").read_bytes()
    assert info == ShardInfo("train-000000.tar", "train", 3, len(content), hashlib.sha256(content).hexdigest())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:3]] == ["face-000000-0.jpg", "face-000000-0.mask.png", "face-000000-0.txt"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        assert tar.extractfile(members[0]).read() == SAMPLES[0].members["jpg"]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "train-000000.tar", "train", SAMPLES)
    os.umask(os.umask(0o077))
    assert write_shard(tmp_path / "train-000001.tar", "train", SAMPLES).sha256 == first.sha256


def test_the_manifest_comes_last_and_lists_every_shard(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "set", HEADER)
    names = write_all(folder)
    assert "manifest.json" not in files(folder.path)
    folder.finish(names)
    assert files(folder.path) == ["manifest.json", *names]
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["header"] == {"dataset": "test", "seed": 0, "sizes": [64, 128]}
    assert [shard["name"] for shard in manifest["shards"]] == names
    for shard in manifest["shards"]:
        content = (folder.path / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_missing_shard_keeps_the_manifest_from_being_written(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, HEADER)
    names = write_all(folder, 1)
    with pytest.raises(DataError, match="1 of 2 shards"):
        folder.finish([*names, "train-000001.tar"])
    assert "manifest.json" not in files(tmp_path)


@pytest.mark.parametrize("finished", [True, False], ids=["after the manifest", "after being killed"])
def test_finished_shards_are_kept(tmp_path: Path, finished: bool) -> None:
    folder = ShardFolder(tmp_path, HEADER)
    names = write_all(folder)
    if finished:
        folder.finish(names)
    before = (tmp_path / names[0]).stat().st_mtime_ns
    again = ShardFolder(tmp_path, HEADER)
    assert all(again.is_finished(name) for name in names)
    write_all(again)
    again.finish(names)
    assert (tmp_path / names[0]).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_shard_is_written_again(tmp_path: Path, damage: str) -> None:
    folder = ShardFolder(tmp_path, HEADER)
    names = write_all(folder)
    manifest = folder.finish(names)
    path = tmp_path / names[0]
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-512] if damage == "cut" else b"x" + whole[1:])
    again = ShardFolder(tmp_path, HEADER)
    assert [again.is_finished(name) for name in names] == [False, True]
    write_all(again)
    assert again.finish(names) == manifest
    assert path.read_bytes() == whole


def test_another_header_removes_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, HEADER)
    folder.finish(write_all(folder, 3))
    (tmp_path / "train-999999.tar").write_bytes(b"not ours")
    other = ShardFolder(tmp_path, {**HEADER, "seed": 1})
    assert files(tmp_path) == ["train-999999.tar"]
    assert not other.is_finished("train-000000.tar")


def test_a_half_written_file_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".train-000000.tar.partial").write_bytes(b"half")
    ShardFolder(tmp_path, HEADER)
    assert files(tmp_path) == []


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        write_shard(tmp_path / "train-000000.tar", "train", SAMPLES)
    assert files(tmp_path) == []
    assert "train-000000.tar" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux' /dev/full")
def test_a_really_full_device_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / ".train-000000.tar.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="free some space"):
        write_shard(tmp_path / "train-000000.tar", "train", SAMPLES)
    assert files(tmp_path) == []


def test_a_folder_that_may_not_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="making the folder of shards"):
        ShardFolder(tmp_path / "file" / "set", HEADER)


def test_an_error_while_samples_are_made_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Sample]:
        yield SAMPLES[0]
        raise DataError("drawing failed")

    with pytest.raises(DataError, match="drawing failed"):
        write_shard(tmp_path / "train-000000.tar", "train", broken())
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": 99, "header": {}, "shards": []}',
        '{"format": 1, "header": {}, "shards": [{"name": "train-000000.tar"}]}',
        '{"format": 1, "header": {}, "shards": '
        '[{"name": "../precious.tar", "split": "train", "samples": 1, "bytes": 1, "sha256": ""}]}',
    ],
)
def test_a_foreign_manifest_is_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "precious.tar").write_text("keep me")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="not a manifest of this writer"):
        ShardFolder(folder, HEADER)
    assert (folder / "manifest.json").read_text() == text
    assert (tmp_path / "precious.tar").read_text() == "keep me"
