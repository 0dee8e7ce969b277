"""The JSON schema: current on disk, whole, and in agreement with the models."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from imprint.config.jobs import JOB_SPECS
from imprint.config.load import load_job
from imprint.config.schema import job_schema
from imprint.errors import ConfigError
from imprint.jobs import RUNNERS

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def test_schema_on_disk_is_current() -> None:
    on_disk = json.loads((JOBS / "schema.json").read_text())
    assert on_disk == job_schema(), "write it anew: imprint schema > jobs/schema.json"


def test_schema_names_every_kind() -> None:
    schema = job_schema()
    chosen = [schema["$defs"][entry["$ref"].rpartition("/")[2]] for entry in schema["anyOf"]]
    assert sorted(model["properties"]["job"]["const"] for model in chosen) == sorted(JOB_SPECS)
    assert all(model["additionalProperties"] is False for model in chosen)


def test_schema_of_one_kind() -> None:
    assert job_schema("prepare_faces")["properties"]["job"]["const"] == "prepare_faces"
    with pytest.raises(ConfigError, match="did you mean 'prepare_faces'"):
        job_schema("prepare_face")


@pytest.mark.parametrize("kind", sorted(JOB_SPECS))
def test_each_kind_says_its_name_and_has_a_runner(kind: str) -> None:
    annotation = JOB_SPECS[kind].model_fields["job"].annotation
    assert get_origin(annotation) is Literal
    assert get_args(annotation) == (kind,)
    module, _, function = RUNNERS[kind].partition(":")
    spec = find_spec(module)  # read, not imported: a runner imports torch and Ray
    assert spec is not None
    assert spec.origin is not None
    assert function in [node.name for node in ast.parse(Path(spec.origin).read_text()).body if hasattr(node, "name")]


def test_runners_are_of_known_kinds() -> None:
    assert sorted(RUNNERS) == sorted(JOB_SPECS)


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda file: file.name)
def test_each_job_file_is_valid(file: Path) -> None:
    assert load_job(file).spec.model_dump()["job"] in JOB_SPECS
