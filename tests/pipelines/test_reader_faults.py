"""Broken shards and samples, made for real: what is an error, what is quarantined, and that nothing else is lost."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reading_shards import keys, read

from imprint.errors import DataError, ShardError
from imprint.pipelines.quarantine import summary
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import check_present, counted, find_shards
from imprint.pipelines.writer import Sample

MakeShards = Callable[..., Path]


def test_rows_carry_what_the_shard_says(make_shards: MakeShards) -> None:
    rows = read(make_shards([3, 2]), ReadOptions())
    assert keys(rows) == [f"s-{i:04d}" for i in range(5)]
    assert [row["__index__"] for row in rows] == [0, 1, 2, 3, 4]
    assert [int(row["image"][0, 0, 0]) for row in rows] == [0, 1, 2, 3, 4]
    assert rows[3]["caption"] == "caption 3"
    assert json.loads(rows[3]["json"])["identity"] == "id-1"
    assert rows[0]["has_mask"]
    assert rows[0]["mask"][:8].min() == 255
    assert rows[0]["mask"][8:].max() == 0


def test_a_position_inside_a_shuffled_window_goes_on_there(make_shards: MakeShards) -> None:
    folder = make_shards([4, 5, 3])
    options = ReadOptions(seed=5, shuffle_buffer=7)
    whole = keys(read(folder, options, 0, 30))
    assert keys(read(folder, options, 8, 30)) == whole[8:]


# -- shards -------------------------------------------------------------------------------------------------


def test_a_missing_shard_is_named_before_anything_starts(make_shards: MakeShards) -> None:
    folder = make_shards([2, 2])
    (folder / "train-000001.tar").unlink()
    shards = find_shards([str(folder)])
    with pytest.raises(ShardError, match=r"nothing is there.*train-000001"):
        check_present(shards)
    with pytest.raises(ShardError, match=r"nothing is there.*train-000001"):
        read(folder, ReadOptions())


def member_ends(tar: Path) -> list[int]:
    with tarfile.open(tar) as opened:
        return [member.offset_data + -(-member.size // 512) * 512 for member in opened.getmembers()]


PLACES = ("in a header", "in a member", "between members", "between samples", "at the end mark")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("manifest", [True, False])
def test_a_cut_shard_is_an_error_wherever_it_was_cut(make_shards: MakeShards, place: str, manifest: bool) -> None:
    folder = make_shards([3])
    tar = folder / "train-000000.tar"
    ends = member_ends(tar)
    cut = {
        "in a header": ends[3] + 200, "in a member": ends[4] + 512 + 3, "between members": ends[4],
        "between samples": ends[7], "at the end mark": ends[-1],
    }[place]  # fmt: skip
    tar.write_bytes(tar.read_bytes()[:cut])
    if not manifest:
        (folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match="cut"):
        read(find_shards([str(tar)]), ReadOptions())
    if manifest:
        with pytest.raises(ShardError, match="cut or replaced"):
            check_present(find_shards([str(folder)]))


def test_a_shard_of_another_count_of_the_same_size_is_an_error(make_shards: MakeShards) -> None:
    folder = make_shards([3])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["samples"] = 4
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="holds 3 samples and its manifest says 4"):
        read(folder, ReadOptions())


def test_a_flipped_bit_in_a_header_is_an_error(make_shards: MakeShards) -> None:
    folder = make_shards([2])
    tar = folder / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[3] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ShardError, match="damaged"):
        read(folder, ReadOptions())


def test_without_a_manifest_samples_are_counted_and_the_log_says_so(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_shards([3, 2])
    (folder / "manifest.json").unlink()
    found = find_shards([str(folder / "train-{000000..000001}.tar")])
    assert [shard.samples for shard in counted(found)] == [3, 2]
    assert "no manifest" in caplog.text
    with pytest.raises(DataError, match="not a folder with a manifest"):
        find_shards([str(folder)])


def test_a_split_that_is_not_there_names_those_that_are(make_shards: MakeShards) -> None:
    with pytest.raises(DataError, match=r"no shards of split 'heldout'; it has \['train'\]"):
        find_shards([str(make_shards([1]))], "heldout")


# -- samples ------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises more pixels than it has bytes."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    chunk = (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + (0).to_bytes(4, "big") + b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big")


def jpeg(cut: int | None = None) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[:cut]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(file, "PNG")
    return file.getvalue()


def without(one: Sample, *extensions: str) -> dict[str, bytes]:
    return {name: data for name, data in one.members.items() if name not in extensions}


BROKEN: dict[str, Callable[[Sample], dict[str, bytes]]] = {
    "corrupt-picture": lambda one: {**one.members, "png": one.members["png"][:40]},
    "corrupt-picture ": lambda one: {**without(one, "png"), "jpg": jpeg(cut=-100)},
    "corrupt-picture  ": lambda one: {**one.members, "png": b"not a picture"},
    "too-many-pixels": lambda one: {**one.members, "png": bomb(9000, 9000)},
    "too-many-pixels ": lambda one: {**one.members, "png": bomb(60000, 60000)},
    "oversized-member": lambda one: {**one.members, "txt": b"x" * 5000},
    "no-picture": lambda one: without(one, "png"),
    "corrupt-mask": lambda one: {**one.members, "mask.png": b"\x89PNG"},
    "bad-text": lambda one: {**one.members, "txt": b"\xff\xfe\xff"},
    "bad-json": lambda one: {**one.members, "json": b"[1, 2"},
    "bad-json ": lambda one: {**one.members, "json": b"[1, 2]"},
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("on_bad", ["drop", "substitute"])
def test_a_bad_sample_is_quarantined_alone(make_shards: MakeShards, tmp_path: Path, fault: str, on_bad: str) -> None:
    folder = make_shards([4, 3], lambda n, one: Sample(one.key, BROKEN[fault](one)) if n == 2 else one)
    quarantine = tmp_path / "quarantine"
    options = ReadOptions(
        on_bad=on_bad,
        max_member_bytes=4000,
        max_bad_share=0.2,
        quarantine=str(quarantine),  # type: ignore[arg-type]
    )
    rows = read(folder, options)
    good = [f"s-{i:04d}" for i in range(7)]
    if on_bad == "drop":
        assert keys(rows) == [key for key in good if key != "s-0002"]
    else:
        assert keys(rows) == [*good[:2], "s-0001", *good[3:]]
    assert dict(summary(quarantine)) == {fault.strip(): 1}
    (line,) = next(quarantine.glob("*.jsonl")).read_text().splitlines()
    record = json.loads(line)
    assert record["key"] == "s-0002"
    assert record["shard"].endswith("train-000000.tar")
    assert record["offset"] == member_ends(folder / "train-000000.tar")[7] + 512
    read(folder, options)
    assert summary(quarantine).total() == 1, "another epoch must not count it twice"


def test_past_the_share_the_run_stops_and_says_where_to_look(make_shards: MakeShards, tmp_path: Path) -> None:
    folder = make_shards([10], lambda n, one: Sample(one.key, without(one, "png")) if n < 3 else one)
    options = ReadOptions(max_bad_share=0.2, quarantine=str(tmp_path / "q"))
    with pytest.raises(DataError, match=r"3 of 10 are bad \(no-picture: 3\).*max_bad_share=0.2"):
        read(folder, options)


def test_a_window_of_nothing_good_is_an_error(make_shards: MakeShards) -> None:
    folder = make_shards([2], lambda n, one: Sample(one.key, {"txt": b"alone"}))
    with pytest.raises(DataError, match="all 2 samples"):
        read(folder, ReadOptions(on_bad="substitute", max_bad_share=1.0))


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info, data


def test_links_devices_and_sparse_members_are_never_read(tmp_path: Path) -> None:
    sparse, data = member("c.png", png(3))
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "300000000"}
    link = member("a.png", kind=tarfile.SYMTYPE)
    link[0].linkname = "/etc/passwd"
    write_tar(
        tmp_path / "x.tar", [link, member("b.png", kind=tarfile.CHRTYPE), (sparse, data), member("d.png", png(4))]
    )
    rows = read(find_shards([str(tmp_path / "x.tar")]), ReadOptions(max_bad_share=1, quarantine=str(tmp_path / "q")))
    assert keys(rows) == ["d"]
    assert dict(summary(tmp_path / "q")) == {"not-a-file": 2, "sparse-member": 1}


def test_names_follow_the_webdataset_format(tmp_path: Path) -> None:
    long_name = "folder/" + "n" * 180
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        write_tar(
            tmp_path / "x.tar",
            [
                member("in/v1.2/a.PNG", png(1)), member("in/v1.2/a.txt", b"first"), member("in/v1.2/a.pkl", b"unread"),
                member(f"{long_name}.png", png(2)), member("é.png", png(3)), member("README"), member(".hidden", b"x"),
                member("in/v1.2", kind=tarfile.DIRTYPE),
            ],
            form,
        )  # fmt: skip
        rows = read(find_shards([str(tmp_path / "x.tar")]), ReadOptions())
        assert keys(rows) == ["in/v1.2/a", long_name, "é"]
        assert [row["caption"] for row in rows] == ["first", "", ""]
        assert not rows[0]["has_mask"]
