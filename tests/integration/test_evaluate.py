"""`evaluate` from end to end: faces, a random encoder on a small random backbone, two actors of a real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from imprint.backbone import Backbone
from imprint.config.jobs.evaluate import AttributeModel
from imprint.config.jobs.prepare import PrepareFaces
from imprint.config.methods import E4TEncoderSpec, E4TSpec
from imprint.evaluation.attributes import AttributeNet, save_reader
from imprint.features.clip import ClipFeatures
from imprint.methods.e4t import E4TObjective, save_encoder
from imprint.pipelines.datasets.faces import prepare_faces

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
SUBJECTS = 4
HEADS = {
    "background": ("blue", "red"), "glasses": ("none", "round glasses"), "expression": ("sad", "smiling"),
    "skin": ("light skin", "pale skin"),
}  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, tiny_clip: Path) -> Path:
    """A job file with all that it names."""
    root = tmp_path_factory.mktemp("evaluate")
    faces = PrepareFaces(
        job="prepare_faces", name="faces", out_dir=str(root / "data"), sizes=(64,), workers=1,
        train_identities=5, train_variants=3, heldout_identities=SUBJECTS, heldout_variants=5, hat_share=0.0,
    )  # fmt: skip
    prepare_faces(faces)
    torch.manual_seed(0)
    backbone, clip = Backbone.load(tiny_sd15), ClipFeatures.load(tiny_clip)
    objective = E4TObjective(backbone, E4TSpec(encoder=E4TEncoderSpec(clip=str(tiny_clip))), clip)
    save_encoder(root / "encoder", objective.state_dict(), objective.spec, backbone, clip)
    model = AttributeModel(widths=(4, 4, 4), flat=2, mask_width=4)
    save_reader(root / "reader", AttributeNet(model, HEADS), model, HEADS, {"heldout_accuracy": {"glasses": 0.5}})
    shards = [str(root / "data" / "faces-64")]
    spec = {
        "job": "evaluate", "name": "small", "runs": str(root / "runs"), "backbone": str(tiny_sd15),
        "encoder": str(root / "encoder"), "shards": shards, "calibration": shards, "calibration_pictures": 15,
        "image_size": 16, "subjects": SUBJECTS, "tuning": {"steps": 2, "batch_size": 2},
        "sampling": {"steps": 2}, "attributes": str(root / "reader"), "grid_subjects": 3, "grid_cell": 40,
        "cluster": {"cpus_per_actor": 0.5, "subjects_per_task": 3},
    }  # fmt: skip
    (root / "job.yaml").write_text(yaml.safe_dump(spec))
    return root / "job.yaml"


def start(file: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
    env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [BIN / "imprint", "run", file, *overrides],
        env=env, cwd=file.parent, capture_output=True, text=True, timeout=800,
    )  # fmt: skip


def test_a_report_with_a_grid_and_a_table(job: Path) -> None:
    done = start(job)
    assert done.returncode == 0, done.stderr[-6000:]
    run = job.parent / "runs" / "small"
    assert str(run / "grid.png") in done.stdout and "encoder alone minus wrong reference" in done.stdout
    record = json.loads((run / "results.json").read_text())
    rows = ["another_person", "class_noun", "wrong_reference", "encoder", "tuned", "new_scene"]
    assert list(record["identity"])[:6] == rows and record["identity"]["real"]["count"] == SUBJECTS
    assert set(record["obeyed"]["new_scene"]) == {"background", "glasses", "expression"}
    assert record["tuning_seconds"]["mean"] > 0 and len(record["subjects"]) == SUBJECTS
    assert "| after 2 steps |" in (run / "table.md").read_text()
    with Image.open(run / "grid.png") as grid:
        assert grid.width == 4 + 6 * 44 and grid.height > 3 * 44
    assert len(list((run / "pictures" / "tuned").glob("*.png"))) == SUBJECTS
    assert (run / "mlflow.json").is_file() and (run / "job.yaml").is_file()


def test_a_method_without_an_encoder_beside_a_baseline(job: Path) -> None:
    done = start(
        job, "name=lora", "encoder=null", "tuning={method: lora, steps: 2, batch_size: 2}",
        "baseline={method: textual_inversion, steps: 1, batch_size: 2}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    run = job.parent / "runs" / "lora"
    record = json.loads((run / "results.json").read_text())
    rows = ["another_person", "class_noun", "wrong_reference", "tuned", "new_scene", "class_noun_scene", "baseline"]
    assert list(record["identity"])[:7] == rows
    assert "| after 2 steps minus textual inversion, 1 steps |" in (run / "table.md").read_text()
    assert len(list((run / "pictures" / "wrong_reference").glob("*.png"))) == SUBJECTS


def test_an_error_in_an_actor_is_one_message(job: Path) -> None:
    """An encoder that was pretrained on another backbone: found when an actor loads it."""
    broken = job.parent / "encoder" / "encoder.json"
    kept = broken.read_text()
    record = json.loads(kept)
    record["backbone"]["fingerprint"] = "0" * 64
    try:
        broken.write_text(json.dumps(record))
        done = start(job, "name=broken")
    finally:
        broken.write_text(kept)
    assert done.returncode == 1 and "has other weights" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (job.parent / "runs" / "broken" / "results.json").exists()


def test_what_is_missing_is_said_before_anything_starts(job: Path) -> None:
    done = start(job, "name=missing", "encoder=nowhere", "shards=[neither]")
    assert done.returncode == 2
    assert "encoder: nothing at" in done.stderr and "shards: nothing at" in done.stderr
    assert not (job.parent / "runs" / "missing").exists()
