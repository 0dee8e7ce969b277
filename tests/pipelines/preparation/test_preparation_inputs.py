"""What there is to prepare: folders, tables and shards, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from loopback_storage import LoopbackStorage, serve
from small_shards import mask, picture, write_shards
from some_pictures import drawn, encoded, write_folder

from imprint.config.jobs.shards import FolderInput, InputSpec, ShardsInput, TableInput
from imprint.errors import DataError
from imprint.pipelines.preparation.inputs import Candidate, Inputs, Span, find_inputs
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.storage import Retry

OPTIONS = ReadOptions(max_member_bytes=100_000, retry=Retry(tries=2, first_wait=0.01))


def folder(path: Path, **options: object) -> Inputs:
    return find_inputs(InputSpec(folder=FolderInput(path=str(path), **options)), OPTIONS)


def table(path: Path, **options: object) -> Inputs:
    return find_inputs(InputSpec(table=TableInput(path=str(path), **options)), OPTIONS)


def read(inputs: Inputs, options: ReadOptions = OPTIONS) -> list[Candidate]:
    return [candidate for chunk in inputs.chunks for candidate in chunk.candidates(options)]


def test_a_folder_is_listed_in_order_with_what_belongs_to_each_picture(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/a.dotted.name.JPEG", "a/1.png", "a/1.mask.png", "a/1.txt", "a/1.json", ".hidden/x.png",
                 "a/.x.png", "c/film.mov", "README"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    inputs = folder(tmp_path, identity="folder")
    found = read(inputs)
    assert [one.source for one in found] == ["a/1.png", "b/2.jpg", "b/a.dotted.name.JPEG"]
    assert len(inputs) == 3 and inputs.left_out == {".mov": 1, "README": 1}
    assert found[0].parts == {name: f"a/1.{name}".encode() for name in ("png", "mask.png", "txt", "json")}
    assert found[0].spans and found[0].spans["txt"] == Span(str(tmp_path / "a" / "1.txt"), 0, 7)
    assert list(found[2].parts) == ["jpeg"] and found[2].name == "b/a.dotted.name"
    assert [one.fields for one in found] == [{"identity": "a"}, {"identity": "b"}, {"identity": "b"}]


def test_the_digest_of_a_folder_follows_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    before = folder(tmp_path)
    (tmp_path / "cats" / "0001.txt").touch()
    touched = folder(tmp_path)
    assert touched.digest == before.digest and touched.stamp != before.stamp
    (tmp_path / "cats" / "0001.txt").write_text("another caption")
    assert folder(tmp_path).digest != before.digest


def test_a_folder_without_pictures_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "film.mov").touch()
    with pytest.raises(DataError, match=r"none in .*jpg, jpeg, png, webp.*'\.mov': 1"):
        folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        folder(tmp_path / "film.mov")


def test_a_file_that_is_gone_or_too_large_is_a_problem_of_its_own(tmp_path: Path) -> None:
    write_folder(tmp_path, 4)
    inputs = folder(tmp_path)
    (tmp_path / "cats" / "0001.png").unlink()
    (tmp_path / "dogs" / "0000.png").write_bytes(bytes(100_001))
    problems = [one.problem and one.problem.where["reason"] for one in read(inputs)]
    assert problems == ["missing-file", None, "oversized-member", None]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_gives_paths_captions_masks_and_fields(tmp_path: Path, kind: str) -> None:
    (tmp_path / "one.bin").write_bytes(picture(1, "JPEG"))
    (tmp_path / "m.png").write_bytes(mask())
    columns = {
        "path": ["one.bin", str(tmp_path / "one.bin"), "gone.jpg", ""],
        "text": ["first,\n second line", "", "x", "y"], "mask": ["m.png", "", "", ""], "identity": ["a", "b", "", "d"],
    }  # fmt: skip
    place = tmp_path / f"pictures.{kind}"
    if kind == "csv":
        rows = "".join(f'{p},"{t}",{m},{i}\n' for p, t, m, i in zip(*columns.values(), strict=True))
        place.write_text("path,text,mask,identity\n" + rows)
    else:
        pa.parquet.write_table(pa.table(columns), place)
    found = read(table(place, caption="text", mask="mask", fields=("identity",)))
    assert found[0].parts == {"jpg": picture(1, "JPEG"), "mask.png": mask(), "txt": b"first,\n second line"}
    assert found[1].spans == {"jpg": Span(str(tmp_path / "one.bin"), 0, len(picture(1, "JPEG")))}
    assert [one.problem and one.problem.where["reason"] for one in found] == [None, None, "missing-file", "no-picture"]
    assert [one.fields for one in found] == [{"identity": "a"}, {"identity": "b"}, {}, {"identity": "d"}]
    assert [one.offset for one in found] == [0, 1, 2, 3]  # the row, for the quarantine


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    place = tmp_path / "pictures.csv"
    place.write_text("path,captions\na.jpg,x\n")
    with pytest.raises(DataError, match=r"input.table.caption names the column 'caption'.*did you mean 'captions'"):
        table(place)
    with pytest.raises(DataError, match=r"input.table.fields names the column 'identity'"):
        table(place, caption=None, fields=("identity",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "not a CSV"),
        ("a.csv", b"path,caption\n", "no rows"),
        ("a.csv", b"path,caption\na.jpg\n", "not a CSV"),
        ("a.parquet", b"path,caption\n", "not a Parquet file"),
        ("gone.csv", None, "check input.table.path"),
    ],
)
def test_a_table_that_is_none_is_one_clear_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        table(tmp_path / name)


def test_pictures_behind_urls_are_fetched_and_retried(tmp_path: Path) -> None:
    with serve(LoopbackStorage({"a.png": picture(1), "big": bytes(200_000)})) as storage:
        storage.faults += [503]
        place = tmp_path / "urls.csv"
        place.write_text("path\n" + "".join(f"{storage.url}/{name}\n" for name in ("a.png", "none.png", "big")))
        found = read(table(place, caption=None))
    assert found[0].parts == {"png": picture(1)} and found[0].spans is None
    assert [one.problem and one.problem.where["reason"] for one in found] == [None, "unreachable", "oversized-member"]


def test_shards_give_their_samples_where_they_lie(tmp_path: Path) -> None:
    where = write_shards(tmp_path / "shards", [2, 3])
    inputs = find_inputs(InputSpec(shards=ShardsInput(places=(str(where),))), OPTIONS)
    found = read(inputs)
    assert [one.name for one in found] == [f"s-{number:04d}" for number in range(5)]
    assert [len(chunk) for chunk in inputs.chunks] == [2, 3]
    for one in found:
        assert one.spans is not None
        for name, span in one.spans.items():
            assert Path(span.path).read_bytes()[span.offset : span.offset + span.size] == one.parts[name]


def test_a_webp_and_a_jpeg_are_known_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded(drawn(1), "WEBP", lossless=True))
    (tmp_path / "t.csv").write_text("path\na\n")
    (one,) = read(table(tmp_path / "t.csv", caption=None))
    assert list(one.parts) == ["webp"]
