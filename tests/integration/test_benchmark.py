"""`benchmark` and `search` from end to end: faces, two small random backbones, two actors of a real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from imprint.config.jobs.evaluate import AttributeModel
from imprint.config.jobs.prepare import PrepareFaces
from imprint.evaluation.attributes import AttributeNet, save_reader
from imprint.pipelines.datasets.faces import prepare_faces

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
SUBJECTS = 3
HEADS = {
    "background": ("blue", "red"), "glasses": ("none", "round glasses"), "expression": ("sad", "smiling"),
    "skin": ("light skin", "pale skin"),
}  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, tiny_sd21_v: Path) -> Path:
    """A job file with all that it names: two contenders on one backbone, one of them on another as well."""
    root = tmp_path_factory.mktemp("benchmark")
    faces = PrepareFaces(
        job="prepare_faces", name="faces", out_dir=str(root / "data"), sizes=(64,), workers=1,
        train_identities=5, train_variants=3, heldout_identities=SUBJECTS + 3, heldout_variants=4, hat_share=0.0,
    )  # fmt: skip
    prepare_faces(faces)
    model = AttributeModel(widths=(4, 4, 4), flat=2, mask_width=4)
    save_reader(root / "reader", AttributeNet(model, HEADS), model, HEADS, {"heldout_accuracy": {"glasses": 0.5}})
    shards = [str(root / "data" / "faces-64")]
    lora = {"method": "lora", "steps": 2, "batch_size": 2}
    spec = {
        "job": "benchmark", "name": "small", "runs": str(root / "runs"), "backbone": str(tiny_sd15),
        "source": {"shards": shards}, "calibration": shards, "calibration_pictures": 15, "image_size": 16,
        "subjects": SUBJECTS, "protocol": "faces", "images_per_prompt": 2, "sampling": {"steps": 1},
        "attributes": str(root / "reader"), "class_pictures": 2, "pairs": 1, "grid_cell": 32,
        "cluster": {"cpus_per_actor": 0.5},
        "contenders": {
            "lora": {"tuning": lora},
            "lora-elsewhere": {"backbone": str(tiny_sd21_v), "tuning": lora},
            "word": {"label": "one word", "tuning": {"method": "textual_inversion", "steps": 1, "batch_size": 2}},
        },
    }  # fmt: skip
    (root / "job.yaml").write_text(yaml.safe_dump(spec))
    others = ("contenders", "class_pictures", "pairs", "grid_cell")
    search = {name: value for name, value in spec.items() if name not in others}
    search |= {
        "job": "search", "name": "looking", "skip": SUBJECTS, "images_per_prompt": 1, "trials": 3, "first_rung": 1,
        "contender": {"tuning": lora}, "space": {"tuning.lora.learning_rate": {"loguniform": [1e-4, 1e-2]}},
    }  # fmt: skip
    (root / "search.yaml").write_text(yaml.safe_dump(search))
    return root / "job.yaml"


def start(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [BIN / "imprint", *words], env=env, cwd=cwd, capture_output=True, text=True, timeout=800,
    )  # fmt: skip


def test_contenders_beside_one_another(job: Path) -> None:
    done = start("run", job, cwd=job.parent)
    assert done.returncode == 0, done.stderr[-6000:]
    run = job.parent / "runs" / "small"
    record = json.loads((run / "results.json").read_text())
    entries = {entry["name"]: entry for entry in record["entries"]}
    assert list(entries) == ["lora", "lora-elsewhere", "word", "class_noun"]
    assert all(len(entry["subjects"]) == SUBJECTS for entry in entries.values())
    metrics = "identity", "identity_plain", "elsewhere", "prompt", "kept", "copies", "diversity", "seconds", "steps"
    for name in metrics:
        assert len(entries["lora"]["scores"][name]) == SUBJECTS, name
    assert entries["lora"]["scores"]["steps"] == [2.0] * SUBJECTS
    assert "PRES" in entries["lora"]["scores"] and "PRES" not in entries["word"]["scores"]
    assert "seconds" not in entries["class_noun"]["scores"]
    assert set(entries["word"]["kinds"]) == {"plain", "recontextualise", "accessorise", "express", "restyle",
                                             "all at once"}  # fmt: skip
    assert [value is None for value in entries["word"]["scores"]["pair"]] == [False, True, True]
    # Equal seeds and prompts, but not equal backbones.
    assert entries["lora"]["scores"]["identity"] != entries["lora-elsewhere"]["scores"]["identity"]
    with Image.open(run / "drawn" / "lora" / "0000.png") as sheet:
        assert sheet.size == (2 * 16, 6 * 16)
    text = (run / "report.md").read_text()
    assert "| 3 one word" in text and "**What a concept costs**" in text
    assert "MLflow" in (run / "report.html").read_text()
    with Image.open(run / "grid.png") as grid:
        assert grid.width == 4 + 5 * 36


def test_what_was_drawn_is_not_drawn_again(job: Path) -> None:
    """One contender more, and another's key changed: the third keeps its pictures."""
    drawn = job.parent / "runs" / "small" / "drawn"
    before = {file: file.stat().st_mtime_ns for file in drawn.rglob("*.json")}
    assert len(before) == 4 * SUBJECTS
    done = start("run", job, "contenders.lora.tuning.steps=1", "contenders.lora-elsewhere=null",
                 "contenders.more={tuning: {method: lora, steps: 1, batch_size: 1}}", cwd=job.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    changed = {file.parent.name for file in drawn.rglob("*.json") if file.stat().st_mtime_ns != before.get(file)}
    assert changed == {"lora", "more"}
    record = json.loads((job.parent / "runs" / "small" / "results.json").read_text())
    assert [entry["name"] for entry in record["entries"]] == ["lora", "word", "more", "class_noun"]


def test_a_search_finds_values_and_says_which(job: Path) -> None:
    done = start("run", job.parent / "search.yaml", cwd=job.parent)
    assert done.returncode == 0, done.stderr[-6000:]
    run = job.parent / "runs" / "looking"
    best = yaml.safe_load((run / "best.yaml").read_text())["contenders"]["best"]
    assert 1e-4 <= best["tuning"]["lora"]["learning_rate"] <= 1e-2
    record = json.loads((run / "results.json").read_text())
    assert len(record["entries"]) == 3
    # Subjects that the benchmark is not of.
    others = json.loads((job.parent / "runs" / "small" / "results.json").read_text())["entries"][0]["subjects"]
    assert not set(others) & set(record["entries"][0]["subjects"])
    first = record["entries"][0]
    assert len(first["subjects"]) == SUBJECTS and first["facts"]["score"] == max(
        one["facts"]["score"] for one in record["entries"] if len(one["subjects"]) == SUBJECTS
    )


def test_both_are_compared_by_one_command(job: Path) -> None:
    done = start("compare", "runs/small", "runs/looking", "--out", "page.html", cwd=job.parent)
    assert done.returncode == 0, done.stderr[-6000:]
    text = (job.parent / "page.md").read_text()
    assert "small/one word" in text and "looking/" in text
    wrong = start("compare", "runs/small", "--against", "nobody", cwd=job.parent)
    assert wrong.returncode == 1 and "no such entry" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_tuning_that_fails_leaves_a_report_of_the_others(job: Path) -> None:
    done = start("run", job, "name=failing", "contenders.lora.tuning.lora.learning_rate=1.0e+30",
                 "contenders.lora.tuning.steps=3", "reuse=[runs/small]", cwd=job.parent)  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-6000:]
    assert f"{SUBJECTS} of {4 * SUBJECTS} were not drawn" in done.stderr and "the loss is nan" in done.stderr
    record = json.loads((job.parent / "runs" / "failing" / "results.json").read_text())
    assert [entry["name"] for entry in record["entries"]] == ["lora-elsewhere", "word", "class_noun"]
    assert "Not drawn: lora of " in (job.parent / "runs" / "failing" / "report.md").read_text()


def test_an_error_in_an_actor_is_one_message(job: Path) -> None:
    done = start("run", job, "name=broken", "contenders.lora.backbone=/nowhere/at-all", cwd=job.parent)
    assert done.returncode == 1 and "/nowhere/at-all" in done.stderr and "Traceback" not in done.stderr
