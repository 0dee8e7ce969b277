"""Survey and plan: bad pictures by reason, an order from the seed, shards of one shape; the second pass's rows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray.data.block import BlockAccessor
from small_shards import mask
from some_pictures import drawn, encoded, write_folder

from imprint.config.jobs.shards import FilterSpec, FolderInput, InputSpec, PictureSpec, PrepareShards, ShardsInput
from imprint.errors import DataError
from imprint.pipelines.preparation.inputs import find_inputs
from imprint.pipelines.preparation.planning import plan_shards, sample_key
from imprint.pipelines.preparation.stages import Encode, copy_rows, members, read_rows
from imprint.pipelines.preparation.survey import load_surveys, read_spans, survey_chunk, survey_path
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.writer import Sample, ShardFolder, write_shard

OPTIONS = ReadOptions(max_pixels=1_000_000)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own, when it makes a block


def spec_of(**sections: object) -> PrepareShards:
    given = {"job": "prepare_shards", "name": "t", "out_dir": "out", "input": {"folder": {"path": "p"}}, **sections}
    return PrepareShards.model_validate(given)


def test_where_and_with_what_a_job_runs_changes_no_shard() -> None:
    here = spec_of().content()
    assert (
        here == spec_of(run_on="process", kube={"queue": "other"}, reader={"cpus": 2.0}, out_dir="elsewhere").content()
    )
    assert here != spec_of(seed=1).content()


def survey(source: InputSpec, work: Path) -> pa.Table:
    inputs = find_inputs(source, OPTIONS)
    work.mkdir(exist_ok=True)
    for number, chunk in enumerate(inputs.chunks):
        list(survey_chunk(chunk, number, work, OPTIONS))
    return load_surveys(work, inputs.chunks)


def survey_folder(path: Path) -> pa.Table:
    return survey(InputSpec(folder=FolderInput(path=str(path), identity="folder")), path.with_name("work"))


def test_the_survey_says_size_hash_and_what_is_bad(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 2, height=40, width=60)
    (folder / "a.jpg").write_bytes(encoded(drawn(5), "JPEG")[:300])
    (folder / "b.png").write_bytes(encoded(drawn(6)))
    (folder / "b.mask.png").write_bytes(mask(16))
    (folder / "c.png").write_bytes(encoded(np.zeros((1001, 1001, 3), np.uint8)))
    (folder / "d.png").write_bytes(encoded(drawn(7)))
    (folder / "d.txt").write_bytes(b"\xff\xfe")
    found = survey_folder(folder)
    assert found["source"].to_pylist() == ["a.jpg", "b.png", "c.png", "cats/0001.png", "d.png", "dogs/0000.png"]
    assert found["reason"].to_pylist() == ["corrupt-picture", "corrupt-mask", "too-many-pixels", "", "bad-text", ""]
    assert found["height"].to_pylist() == [0, 0, 0, 40, 0, 40] and found["width"].to_pylist()[3] == 60
    assert len(set(found["hash"].to_pylist())) == 3  # 0 for the bad, and two
    assert read_spans(found["spans"][3].as_py())["txt"] == b"picture 1"


def test_a_picture_on_its_side_is_measured_as_it_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "a.jpg").write_bytes(encoded(drawn(1, 40, 80), "JPEG", exif=exif))
    found = survey_folder(folder)
    assert (found["height"][0].as_py(), found["width"][0].as_py()) == (80, 40)


def test_a_survey_that_was_cut_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 2)
    survey_folder(folder)
    inputs = find_inputs(InputSpec(folder=FolderInput(path=str(folder))), OPTIONS)
    path = survey_path(tmp_path / "work", 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"survey-000000.parquet.*remove it and run again"):
        load_surveys(tmp_path / "work", inputs.chunks)


def test_the_order_is_a_pure_function_of_the_seed(tmp_path: Path) -> None:
    found = survey_folder(write_folder(tmp_path / "in", 23))
    plan = plan_shards(found, spec_of(samples_per_shard=10))
    again = plan_shards(found, spec_of(samples_per_shard=10))
    assert plan == again != plan_shards(found, spec_of(samples_per_shard=10, seed=1))
    assert [len(shard.positions) for shard in plan.shards] == [10, 10, 3]
    assert [shard.name for shard in plan.shards] == [f"train-{number:06d}.tar" for number in range(3)]
    positions = [position for shard in plan.shards for position in shard.positions]
    assert sorted(positions) == list(range(23)) != positions
    (straight,) = plan_shards(found, spec_of(shuffle=False)).shards
    assert straight.positions == tuple(range(23))


def test_every_picture_is_written_filtered_or_bad(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 6)
    (folder / "small.png").write_bytes(encoded(drawn(8, 10, 10)))
    (folder / "twin.jpg").write_bytes(encoded(drawn(0), "JPEG", quality=95))
    (folder / "bad.png").write_bytes(b"")
    found = survey_folder(folder)
    filters = FilterSpec(min_side=20, duplicate_distance=4)
    plan = plan_shards(found, spec_of(filters=filters, reader={"max_bad_share": 0.2}))
    names = found["source"].to_pylist()
    assert [names[position] for position in plan.bad] == ["bad.png"]
    assert {(names[one.position], one.reason) for one in plan.filtered} == {
        ("small.png", "too-small"), ("twin.jpg", "near-duplicate"),
    }  # fmt: skip
    assert sum(len(shard.positions) for shard in plan.shards) == 6


def test_too_many_bad_pictures_and_none_left_are_errors(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 3)
    (folder / "bad.png").write_bytes(b"")
    found = survey_folder(folder)
    with pytest.raises(DataError, match=r"1 of 4 are bad \(corrupt-picture: 1\).*max_bad_share=0.01.*bad.png"):
        plan_shards(found, spec_of())
    with pytest.raises(DataError, match=r"no picture is left of 4; 1 are bad, filters left out \{'too-small': 3\}"):
        plan_shards(found, spec_of(filters={"min_side": 100}, reader={"max_bad_share": 0.5}))


def test_a_shard_holds_pictures_of_one_bucket(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, (height, width) in enumerate([(48, 48), (32, 64), (64, 32), (30, 66), (50, 46)]):
        (folder / f"{number}.png").write_bytes(encoded(drawn(number, height, width)))
    plan = plan_shards(survey_folder(folder), spec_of(pictures={"mode": "buckets", "size": 64, "step": 16}))
    found = {shard.shape: sorted(shard.positions) for shard in plan.shards}
    assert found == {(48, 80): [1, 3], (64, 64): [0, 4], (80, 48): [2]}
    assert plan.buckets() == {
        "48x80": ["train-000000.tar"], "64x64": ["train-000001.tar"], "80x48": ["train-000002.tar"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key"),
    [("dog/00", "00000003-dog-00"), ("Ein Bild (1).x", "00000003-ein-bild-1-x"), ("日本", "00000003")],
)
def test_keys_are_plain(name: str, key: str) -> None:
    assert sample_key(3, name) == key
    assert len(sample_key(3, "x" * 300)) < 60


def test_rows_are_cropped_with_their_masks_and_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = drawn(1, 80, 40)
    half = np.zeros((80, 40), np.uint8)
    half[:40] = 255
    (folder / "a.png").write_bytes(encoded(image))
    (folder / "a.mask.png").write_bytes(encoded(half))
    (folder / "a.json").write_text('{"class_noun": "cat"}')
    found = survey_folder(folder)
    pictures = PictureSpec(mode="square", size=20)
    (block,) = read_rows(found, (0,), (20, 20), pictures, seed=0, block_bytes=1 << 20)
    batch = BlockAccessor.for_block(block).to_batch_format("numpy")
    assert batch["image"].shape == (1, 20, 20, 3)
    (row,) = Encode(95)(batch).to_pylist()
    parts = members(row)
    assert list(parts) == ["jpg", "mask.png", "json"]  # no caption, so no txt
    with Image.open(io.BytesIO(parts["mask.png"])) as written:
        cut = np.asarray(written)
    assert cut.shape == (20, 20) and cut[0].min() > 200 and cut[-1].max() < 50  # the middle of the edge at half height
    document = json.loads(parts["json"])
    assert document["class_noun"] == "cat" and document["identity"] == "in" and document["source"] == "a.png"
    assert document["size_conditioning"] == {
        "original_size": [80, 40], "crop_top_left": [10, 0], "target_size": [20, 20]
    }  # fmt: skip


def test_random_crops_are_drawn_from_the_seed_and_the_position(tmp_path: Path) -> None:
    found = survey_folder(write_folder(tmp_path / "in", 8, height=90, width=30))

    def corners(seed: int) -> list[list[int]]:
        spec = PictureSpec(mode="square", size=16, crop="random")
        (block,) = read_rows(found, tuple(range(8)), (16, 16), spec, seed, 1 << 20)
        return [json.loads(text)["size_conditioning"]["crop_top_left"] for text in block["json"].to_pylist()]

    assert corners(0) == corners(0) != corners(1)
    assert len({tuple(corner) for corner in corners(0)}) > 4
    assert all(0 <= top <= 32 and left == 0 for top, left in corners(0))


def test_kept_files_go_into_the_shard_as_they_are(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 2)
    found = survey_folder(folder)
    (table,) = copy_rows(found, (0, 1))
    first = members(table.to_pylist()[0])
    assert first["png"] == (folder / "cats" / "0001.png").read_bytes() and first["txt"] == b"picture 1"


def test_preparing_again_keeps_the_first_size(tmp_path: Path) -> None:
    record = {"size_conditioning": {"original_size": [900, 800], "crop_top_left": [1, 2], "target_size": [48, 48]}}
    members_ = {"png": encoded(drawn(1)), "json": json.dumps(record).encode()}
    shards = ShardFolder(tmp_path / "shards", {})
    shards.record(write_shard(shards.path / "train-000000.tar", "train", [Sample("a", members_)]))
    shards.finish(["train-000000.tar"])
    found = survey(InputSpec(shards=ShardsInput(places=(str(shards.path),))), tmp_path / "work")
    (kept,) = copy_rows(found, (0,))
    assert json.loads(kept["json"][0].as_py())["size_conditioning"] == record["size_conditioning"]
    (block,) = read_rows(found, (0,), (16, 16), PictureSpec(mode="square", size=16), 0, 1 << 20)
    assert json.loads(block["json"][0].as_py())["size_conditioning"] == {
        "original_size": [900, 800], "crop_top_left": [0, 0], "target_size": [16, 16]
    }  # fmt: skip
