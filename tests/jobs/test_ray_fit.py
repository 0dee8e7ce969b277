"""The driver's side of a training run: what it does without, and errors that come back as they were."""

from __future__ import annotations

import subprocess
import sys

import pytest

from imprint.errors import DataError, ImprintError
from imprint.jobs.ray_fit import our_error


def test_driver_and_controller_of_a_run_import_no_model() -> None:
    code = (
        "import sys; import imprint.jobs.cluster_jobs; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'open_clip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("link", ["__cause__", "__context__", "cause", "_base_exc", "controller_failure"])
def test_our_error_is_found_inside_those_of_ray(link: str) -> None:
    class Both(RuntimeError, DataError):
        """As Ray makes them: its own error and the one that it wraps, in one class that does not pickle."""

    ours = Both("reading shards: cut")
    ours.message, ours.where = "reading shards: cut", {"shard": "a.tar"}
    outer = RuntimeError("ray")
    setattr(outer, link, ours)
    found = our_error(outer)
    assert type(found) is DataError and isinstance(found, ImprintError)
    assert found.message == "reading shards: cut" and found.where == {"shard": "a.tar"}
    assert our_error(RuntimeError("another")) is None
