"""`prepare_shards` in one process: killed with SIGKILL in both passes, on a full disk, over another job's output."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from some_pictures import content, drawn, encoded, write_folder

from imprint.config.jobs.shards import PrepareShards
from imprint.errors import DataError, StorageError
from imprint.pipelines import writer
from imprint.pipelines.inspection import verify_shards
from imprint.pipelines.preparation.run import prepare_shards

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own, when it makes a block
BIN = Path(sys.executable).parent


def spec_of(folder: Path, out: Path, **sections: Any) -> PrepareShards:
    given = {
        "job": "prepare_shards", "name": "small", "out_dir": str(out), "samples_per_shard": 8, "run_on": "process",
        "input": {"folder": {"path": str(folder), "identity": "folder"}}, **sections,
    }  # fmt: skip
    return PrepareShards.model_validate(given)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "in", 2), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is not a folder that prepare_shards finished"):
        prepare_shards(spec_of(folder, out))
    assert content(out) == {"thesis.txt": b"mine"}


def test_a_full_disk_leaves_nothing_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = write_folder(tmp_path / "in", 20), tmp_path / "out"
    really, tars = os.fsync, []

    def full_at_the_second_shard(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if ".tar." in path:
            tars.append(path)
            if len(tars) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(writer.os, "fsync", full_at_the_second_shard)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            prepare_shards(spec_of(folder, out))
    assert not out.exists()
    (finished,) = (tmp_path / ".out.preparing" / "shards").glob("*.tar")
    before = finished.stat().st_mtime_ns
    prepare_shards(spec_of(folder, out))
    assert verify_shards([str(out)]) == (3, []) and (out / finished.name).stat().st_mtime_ns == before


def test_a_second_run_at_the_same_time_is_refused(tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "in", 4), tmp_path / "out"

    def another(doing: str, done: int, total: int) -> None:
        if doing == "writing" and done == 0:
            with pytest.raises(StorageError, match="another run writes in"):
                prepare_shards(spec_of(folder, out))

    assert prepare_shards(spec_of(folder, out), another).written == 4


def test_pictures_of_many_sizes_are_captioned_and_masked_as_they_are(tmp_path: Path, tiny_clip: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encoded(drawn(number, 30 + number, 40)))
    captions = {"kind": "clip", "model": str(tiny_clip)}
    prepare_shards(spec_of(folder, out, captions=captions, masks={"kind": "embedded"}))
    with tarfile.open(out / "train-000000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    pictures = {name: files[name] for name in files if name.endswith(".png") and ".mask." not in name}
    assert sorted(pictures.values()) == sorted(path.read_bytes() for path in folder.iterdir())
    for name, content_ in pictures.items():
        stem = name.removesuffix(".png")
        assert files[f"{stem}.txt"].startswith(b"a ")
        with Image.open(io.BytesIO(content_)) as picture, Image.open(io.BytesIO(files[f"{stem}.mask.png"])) as mask:
            assert picture.size == mask.size


def start(file: Path, *overrides: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [BIN / "imprint", "run", file, *overrides], env=env, cwd=file.parent, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-6000:]
    return output


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not ready():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1][-6000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 600, height=96, width=80)
    spec = {
        "job": "prepare_shards", "name": "small", "out_dir": str(tmp_path / "killed"), "samples_per_shard": 100,
        "run_on": "process", "input": {"folder": {"path": str(folder)}}, "masks": {"kind": "embedded"},
        "pictures": {"mode": "square", "size": 64, "crop": "random"}, "filters": {"duplicate_distance": 4},
    }  # fmt: skip
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    out, work = tmp_path / "killed", tmp_path / ".killed.preparing"

    kill_when(start(file), lambda: any(work.glob("survey-*.parquet")))
    assert not out.exists()
    surveyed = {path.name: path.stat().st_mtime_ns for path in work.glob("survey-*.parquet")}
    kill_when(start(file), lambda: len(list((work / "shards").glob("train-*.tar"))) >= 2)
    assert not out.exists()
    assert surveyed.items() <= {path.name: path.stat().st_mtime_ns for path in work.glob("survey-*.parquet")}.items()
    written = {path.name: path.stat().st_mtime_ns for path in (work / "shards").glob("train-*.tar")}
    assert 2 <= len(written) < 6  # it was killed in the midst of writing
    assert "600 of 600 pictures in 6 shards" in finish(start(file))
    recorded = sum((out / name).stat().st_mtime_ns == when for name, when in written.items())
    assert recorded >= len(written) - 1  # the last one may have been written and not yet noted

    finish(start(file, f"out_dir={tmp_path / 'whole'}"))
    assert content(out) == content(tmp_path / "whole")
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
