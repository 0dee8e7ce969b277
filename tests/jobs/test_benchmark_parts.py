"""What a benchmark makes of the values that actors send, and what it takes as drawn already."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from imprint.config.jobs.benchmark import Benchmark
from imprint.errors import DataError
from imprint.evaluation.judge import Gallery
from imprint.evaluation.protocols import Prompt
from imprint.evaluation.sitters import Sitter
from imprint.evaluation.subjects import Picture
from imprint.jobs.benchmark import (
    compare,
    digest_of,
    draw_grid,
    kept_file,
    kept_values,
    make_judge,
    notes,
    partner,
    together,
    weights_sha256,
)
from imprint.jobs.search import compare as compare_trials
from imprint.jobs.search import score_of

PROMPTS = (
    Prompt("{}", "plain"), Prompt("{} on blue", "place", {"background": "blue"}), Prompt("{} in red", "clothes"),
)  # fmt: skip


def sitter(number: int) -> Sitter:
    shown = Picture(np.full((8, 8, 3), 40 * number, np.uint8), np.full((8, 8), 255, np.uint8), {}, "", "cat")
    return Sitter(number, f"s{number}", "cat", (shown,), (shown, shown), PROMPTS)


SITTERS = [sitter(number) for number in range(3)]


def spec(**changed: object) -> Benchmark:
    values = {
        "job": "benchmark", "name": "test", "source": {"folder": "nowhere"}, "images_per_prompt": 2,
        "contenders": {"one": {"label": "the one", "tuning": {"method": "lora", "steps": 7}},
                       "two": {"tuning": {"method": "textual_inversion"}}},
    }  # fmt: skip
    return Benchmark.model_validate({**values, **changed})


def values(identity: float) -> dict[str, list[float]]:
    return {"identity": [0.9, identity, identity + 0.2], "prompt": [float("nan"), 1.0, float("nan")],
            "seconds": [3.0], "PRES": [0.5]}  # fmt: skip


@pytest.fixture
def gallery() -> Gallery:
    rows = np.eye(3)
    return Gallery([rows[:2], rows[1:], rows[[0, 2]]], 0.9)


def keep(folder: Path, chosen: Benchmark, one: Sitter, **more: list[float]) -> None:
    """What the contender called one drew, as an actor leaves it."""
    file = kept_file(folder, "one", one, ".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"digest": digest_of(chosen, "one", one), "values": values(0.2) | more}))


def test_means_are_of_the_prompts_that_ask_and_the_plain_one_stands_alone(tmp_path: Path, gallery: Gallery) -> None:
    found = compare(spec(), tmp_path, SITTERS, {"one": {0: values(0.2), 1: values(0.4), 2: values(0.6)}}, gallery)
    (one,) = found.entries
    assert (one.label, one.subjects, one.facts) == ("the one", ("s0", "s1", "s2"), {"method": "lora", "steps": 7})
    np.testing.assert_allclose(one.scores["identity"], [0.3, 0.5, 0.7])
    np.testing.assert_allclose(one.scores["identity_plain"], [0.9] * 3)
    np.testing.assert_allclose(one.scores["prompt"], [1.0] * 3)
    np.testing.assert_allclose(one.scores["seconds"], [3.0] * 3)
    np.testing.assert_allclose(one.kinds["clothes"]["identity"], [0.4, 0.6, 0.8])
    assert np.isnan(one.kinds["plain"]["prompt"]).all()
    assert found.ceiling == pytest.approx(0.0) and found.floor is not None


def test_what_the_deadline_left_out_is_not_in_the_report(tmp_path: Path, gallery: Gallery) -> None:
    drawn = {"one": {0: values(0.2), 2: values(0.6)}, "two": {}, "class_noun": {2: values(0.1)}}
    found = compare(spec(), tmp_path, SITTERS, drawn, gallery)
    assert [entry.name for entry in found.entries] == ["one", "class_noun"]
    assert found.entries[0].subjects == ("s0", "s2")
    (difference,) = found.differences("identity")
    assert difference.estimate.count == 1 and difference.estimate.mean == pytest.approx(0.5)


def test_only_what_was_drawn_under_the_same_settings_is_taken_over(tmp_path: Path) -> None:
    def taken(chosen: Benchmark, one: Sitter = SITTERS[0], other: Sitter | None = None) -> bool:
        return kept_values(chosen, tmp_path, "one", one, other) is not None

    keep(tmp_path, spec(), SITTERS[0])
    assert taken(spec()) and taken(spec(grid_cell=10, against="two"))
    renamed = spec(contenders={"one": {"label": "another", "tuning": {"method": "lora", "steps": 7}}})
    assert taken(renamed)  # neither labels nor other contenders change a picture
    assert not taken(spec(contenders={"one": {"tuning": {"method": "lora", "steps": 8}}}))
    assert not taken(spec(seed=1)) and not taken(spec(sampling={"steps": 3})) and not taken(spec(), other=SITTERS[1])
    assert not taken(spec(), dataclasses.replace(SITTERS[0], prompts=PROMPTS[:2]))
    assert not taken(spec(), dataclasses.replace(SITTERS[0], noun="dog"))
    assert taken(spec(limit=1))
    kept_file(tmp_path, "one", SITTERS[0], ".json").write_text("{")
    assert not taken(spec())


def test_what_an_encoder_drew_is_not_taken_over_once_it_was_trained_anew(tmp_path: Path) -> None:
    folder = tmp_path / "trained" / "encoder"
    folder.mkdir(parents=True)
    (folder / "encoder.safetensors").write_bytes(b"one")
    contender = {"encoder": str(tmp_path / "trained"), "tuning": {"method": "e4t", "steps": 1}}
    chosen = spec(contenders={"one": contender})
    keep(tmp_path, chosen, SITTERS[0])
    (tmp_path / "trained" / "log.jsonl").write_text("a run's log is none of its weights")
    assert kept_values(chosen, tmp_path, "one", SITTERS[0], None) is not None
    (folder / "encoder.safetensors").write_bytes(b"another")
    assert kept_values(chosen, tmp_path, "one", SITTERS[0], None) is None


def test_weights_are_found_by_path_by_run_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "unet.safetensors").write_bytes(b"weights")
    assert weights_sha256(str(tmp_path)) == weights_sha256(str(tmp_path / "network")) is not None
    assert weights_sha256("face-attributes") is not None and weights_sha256("stabilityai/of-the-hub") is None


def test_likenesses_of_pairs_are_only_of_a_run_that_draws_them(tmp_path: Path) -> None:
    keep(tmp_path, spec(pairs=1), SITTERS[0], pair=[0.3])
    assert kept_values(spec(pairs=1), tmp_path, "one", SITTERS[0], SITTERS[1]) is None  # drawn beside nobody
    alone = kept_values(spec(), tmp_path, "one", SITTERS[0], None)
    assert alone is not None and "pair" not in alone


def test_nobody_who_sits_calibrates(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = SITTERS[0].references[0]
    monkeypatch.setattr("imprint.jobs.benchmark._pictures", lambda *_: [("another", shown), ("s1", shown)])
    with pytest.raises(DataError, match=r"1 of the subjects themselves, such as s1"):
        make_judge(spec(calibration=["shards"]), SITTERS)


def test_others_are_compared_with_somebody_who_is_drawn() -> None:
    assert spec(against="class_noun").against == "class_noun"
    with pytest.raises(ValidationError, match="expected one of one, two"):
        spec(against="class_noun", class_noun=False)


def test_what_another_run_keeps_is_taken_over_where_it_is_equal(tmp_path: Path) -> None:
    earlier, folder = tmp_path / "earlier", tmp_path / "run"
    file = kept_file(earlier, "one", SITTERS[0], ".json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"digest": digest_of(spec(), "one", SITTERS[0]), "values": values(0.2)}))
    Image.fromarray(np.full((3 * 8, 2 * 8, 3), (255, 0, 0), np.uint8)).save(file.with_suffix(".png"))
    both = spec(reuse=[str(earlier)], limit=2, grid_subjects=1, grid_cell=20)
    found = kept_values(both, folder, "one", SITTERS[0], None)
    assert found is not None and found["identity"] == values(0.2)["identity"]
    assert kept_values(both, folder, "one", SITTERS[1], None) is None
    assert kept_values(spec(reuse=[str(earlier)], seed=1), folder, "one", SITTERS[0], None) is None
    assert (np.asarray(draw_grid(both, folder, SITTERS)) == (255, 0, 0)).all(2).sum() == 2 * 400


def test_contenders_that_differ_in_sampling_are_tuned_together() -> None:
    one = {"tuning": {"method": "lora", "steps": 7}}
    chosen = spec(contenders={
        "one": one, "another": {"tuning": {"method": "lora", "steps": 8}},
        "fewer": {**one, "label": "fewer steps", "sampling": {"steps": 3}},
    })  # fmt: skip
    missing = [(name, place) for name in ("one", "another", "fewer", "class_noun") for place in (0, 1)]
    assert together(chosen, missing[1:]) == [
        (["one", "fewer"], 1), (["fewer"], 0), (["another"], 0), (["another"], 1),
        (["class_noun"], 0), (["class_noun"], 1),
    ]  # fmt: skip


def test_pairs_are_neighbours() -> None:
    assert [partner(spec(pairs=1), SITTERS, place) for place in range(3)] == [SITTERS[1], None, None]
    assert [partner(spec(pairs=9), SITTERS, place) for place in range(3)] == [SITTERS[1], SITTERS[2], None]


def test_the_grid_shows_the_first_copy_of_the_first_and_the_last_prompt(tmp_path: Path) -> None:
    sheet = np.zeros((3 * 8, 2 * 8, 3), np.uint8)
    sheet[:8, :8], sheet[16:, :8] = (255, 0, 0), (0, 0, 255)
    for number in range(2):
        keep(tmp_path, spec(), SITTERS[number])
        Image.fromarray(sheet).save(kept_file(tmp_path, "one", SITTERS[number], ".png"))
    drawn = draw_grid(spec(grid_subjects=1, grid_cell=20), tmp_path, SITTERS)
    assert drawn.width == 4 + 4 * 24  # input, two contenders, class noun
    pixels = np.asarray(drawn)
    assert (pixels == (255, 0, 0)).all(2).sum() == (pixels == (0, 0, 255)).all(2).sum() == 400
    rows = ((pixels == (255, 0, 0)) | (pixels == (0, 0, 255))).all(2).any(1)  # of cells; letters have such a gray too
    assert (pixels[rows] == (225, 225, 225)).all(2).sum() == 4 * 400  # two contenders that have drawn nothing yet
    few = draw_grid(spec(grid_subjects=2, limit=1, grid_cell=20), tmp_path, SITTERS)
    assert few.height == drawn.height  # the second sitter is not of this report
    anew = {"one": {"tuning": {"method": "lora", "steps": 8}}, "two": {"tuning": {"method": "textual_inversion"}}}
    changed = np.asarray(draw_grid(spec(grid_subjects=1, grid_cell=20, contenders=anew), tmp_path, SITTERS))
    assert not (changed == (255, 0, 0)).all(2).any()  # what another key drew is not what the scores are of


def test_the_notes_say_how_far_scores_can_be_trusted(gallery: Gallery) -> None:
    from imprint.evaluation.judge import Judge

    said = " ".join(notes(spec(), SITTERS, Judge(lambda inputs: inputs.reshape(len(inputs), -1)), gallery))
    assert "area under the ROC curve" in said and "there is no prompt score" in said


def test_trials_are_ordered_by_how_far_they_came_and_how_good_they_were() -> None:
    from imprint.config.jobs.benchmark import Search

    search = Search.model_validate({
        "job": "search", "name": "test", "source": {"folder": "nowhere"}, "contender": {"tuning": {"method": "lora"}},
        "space": {"tuning.steps": {"choice": [1, 2]}}, "score": {"identity": 1.0, "prompt": 0.5, "seconds": -0.01},
    })  # fmt: skip
    records = [
        {"name": name, "values": {"tuning.steps": 1}, "subjects": list("abc"[:count]),
         "scores": {"identity": [identity] * count, "seconds": [10.0] * count}}
        for name, count, identity in (("short", 1, 0.9), ("poor", 3, 0.1), ("good", 3, 0.3))
    ]  # fmt: skip
    assert score_of(search, records[0]["scores"]) == pytest.approx(0.8)
    found = compare_trials(search, Path("nowhere"), records)
    assert [entry.name for entry in found.entries] == ["good", "poor", "short"]
    assert found.entries[0].label == "steps 1" and found.entries[2].subjects == ("a",)
