"""`prepare_shards` on Ray: what comes out, the same as without Ray, and again over what is there."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from some_pictures import content, drawn, encoded, write_folder

from imprint.config.jobs.shards import PrepareShards
from imprint.errors import DataError
from imprint.pipelines.inspection import verify_shards
from imprint.pipelines.preparation.run import Report, prepare_shards
from imprint.pipelines.quarantine import summary
from imprint.pipelines.reader import read_webdataset

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()


def spec_of(folder: Path, out: Path, **sections: Any) -> PrepareShards:
    given = {
        "job": "prepare_shards", "name": "small", "out_dir": str(out), "samples_per_shard": 8,
        "input": {"folder": {"path": str(folder), "identity": "folder"}}, **sections,
    }  # fmt: skip
    return PrepareShards.model_validate(given)


def test_pictures_become_shards_that_the_reader_reads(tmp_path: Path, cluster: None) -> None:
    folder = write_folder(tmp_path / "in", 20)
    (folder / "bad.jpg").write_bytes(encoded(drawn(30), "JPEG")[:200])
    (folder / "small.png").write_bytes(encoded(drawn(31, 9, 9)))
    sections: dict[str, Any] = {
        "pictures": {"mode": "square", "size": 32}, "masks": {"kind": "embedded"}, "captions": {"kind": "keep"},
        "filters": {"min_side": 20}, "reader": {"cpus": 0.5, "max_bad_share": 0.1},
    }  # fmt: skip
    out = tmp_path / "out"
    steps: list[tuple[str, int, int]] = []
    report = prepare_shards(spec_of(folder, out, **sections), lambda *step: steps.append(step))
    assert report == Report(
        inputs=22, written=20, shards=3, quarantined={"corrupt-picture": 1}, filtered={"too-small": 1},
        buckets={"32x32": 20}, left_out_files={},
    )  # fmt: skip
    assert summary(out / "quarantine") == {"corrupt-picture": 1}
    (line,) = (out / "filtered.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "small.png"
    assert verify_shards([str(out)]) == (3, [])
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    assert steps[-1] == ("writing", 20, 20) and ("reading", 22, 22) in steps

    rows = read_webdataset(str(out)).take_all()
    assert len({row["__key__"] for row in rows}) == 20 and all(row["has_mask"] for row in rows)
    for row in rows:
        document, number = json.loads(row["json"]), int(row["__key__"].rpartition("-")[2])
        assert row["caption"] == f"picture {number}" and row["image"].shape == (32, 32, 3)
        assert document["identity"] == ("cats" if number % 2 else "dogs")
        assert document["size_conditioning"]["original_size"] == [48, 48]

    prepare_shards(spec_of(folder, tmp_path / "here", run_on="process", **sections))
    assert content(tmp_path / "here") == content(out)

    before = content(out)
    assert prepare_shards(spec_of(folder, out, **sections)) == report  # there already: nothing is done
    assert content(out) == before
    with pytest.raises(DataError, match=r"other settings or input:\n  pictures.size: 32 there, 24 asked for"):
        prepare_shards(spec_of(folder, out, **{**sections, "pictures": {"mode": "square", "size": 24}}))
    (folder / "new.png").write_bytes(encoded(drawn(40)))
    with pytest.raises(DataError, match="the input: files were added, removed or changed"):
        prepare_shards(spec_of(folder, out, **sections))
    assert content(out) == before


def test_other_shards_are_prepared_again(tmp_path: Path, cluster: None) -> None:
    first = spec_of(write_folder(tmp_path / "in", 10), tmp_path / "kept", samples_per_shard=4)
    prepare_shards(first)
    again = spec_of(
        tmp_path, tmp_path / "again", samples_per_shard=100, shuffle=False,
        input={"shards": {"places": [str(tmp_path / "kept")]}}, pictures={"mode": "buckets", "size": 32, "step": 16},
    )  # fmt: skip
    report = prepare_shards(again)
    assert (report.written, report.shards, report.buckets) == (10, 1, {"32x32": 10})
    rows = read_webdataset(str(tmp_path / "again")).take_all()
    assert {row["caption"] for row in rows} == {f"picture {number}" for number in range(10)}


def test_files_of_many_sizes_are_kept_and_masked(tmp_path: Path, cluster: None) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(9):
        picture = np.full((40 + number, 60, 3), 200, np.uint8)
        picture[15:30, 20:40] = (200, 30, 30)
        (folder / f"{number}.jpg").write_bytes(encoded(picture, "JPEG", quality=95))
    prepare_shards(spec_of(folder, tmp_path / "out", masks={"kind": "embedded"}))
    rows = read_webdataset(str(tmp_path / "out")).take_all()
    assert sorted(row["image"].shape[0] for row in rows) == list(range(40, 49))
    for row in rows:
        wanted = np.zeros(row["mask"].shape, bool)
        wanted[15:30, 20:40] = True
        found = row["mask"] > 127
        assert (found & wanted).sum() / (found | wanted).sum() > 0.8
    files = {path.read_bytes() for path in folder.iterdir()}
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        kept = [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]
    assert len(kept) == 8 and set(kept) < files
