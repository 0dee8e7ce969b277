"""An MLflow run in a SQLite store: what is in it, what is kept out of it, and that a resumed job goes on in it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from imprint.config.training import TrackingSpec
from imprint.errors import TrainingError
from imprint.tracking.run import TrackedRun, flatten, git_commit, without_credentials


def test_nested_values_become_flat_text() -> None:
    values = {"a": {"b": 1, "c": {"d": None}}, "e": [1, "x"], "f": "text"}
    assert flatten(values) == {"a.b": "1", "a.c.d": "null", "e": '[1, "x"]', "f": "text"}


def test_credentials_are_taken_out_of_urls() -> None:
    text = "uri: https://user:hunter2f9c@host:80/x\nplain: http://host/a@b"
    assert without_credentials(text) == "uri: https://host:80/x\nplain: http://host/a@b"


def test_the_commit_is_a_commit() -> None:
    commit = git_commit().removesuffix("-dirty")
    assert commit == "unknown" or (len(commit) == 40 and set(commit) <= set("0123456789abcdef"))


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_run_keeps_what_is_logged_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    spec = TrackingSpec(experiment="tests")
    tracked = TrackedRun.open(spec, folder, "one")
    values = {"seed": 3, "tracking": {"uri": "http://user:hunter2f9c@host"}, "long": "x" * 9000}
    tracked.describe({**values, **{f"key{i}": i for i in range(250)}}, "tracking: {uri: http://user:hunter2f9c@host}\n")
    tracked.log_metrics(10, {"loss": 0.5, "bad": math.nan})
    (folder / "grid.png").write_bytes(b"png")
    tracked.log_file(folder / "grid.png", "samples")

    again = TrackedRun.open(spec, folder, "one")
    assert again.run_id == tracked.run_id
    again.describe({**values, "new": 1}, "job: x\n")
    again.log_metrics(20, {"loss": 0.25})
    again.finish("FINISHED")

    run = tracked.client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "3"
    assert run.data.params["key249"] == "249"
    assert run.data.params["new"] == "1"
    assert "tracking.uri" not in run.data.params
    assert len(run.data.tags["git.commit"]) >= 7
    assert "version.torch" in run.data.tags
    history = tracked.client.get_metric_history(tracked.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 0.5), (20, 0.25)]
    assert "bad" not in run.data.metrics
    assert (tmp_path / "runs" / "mlflow.db").exists()
    stored = [path for path in (tmp_path / "runs" / "mlartifacts").rglob("*") if path.is_file()]
    assert {path.name for path in stored} == {"grid.png", "job.yaml"}
    assert not any(b"hunter2f9c" in path.read_bytes() for path in [*stored, tmp_path / "runs" / "mlflow.db"])


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_store_that_cannot_be_opened_says_which_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"opening the MLflow run 'x' at nonsense://host.*tracking\.enabled"):
        TrackedRun.open(TrackingSpec(uri="nonsense://user:hunter2f9c@host/db"), tmp_path, "x")
