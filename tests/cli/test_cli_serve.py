"""`imprint serve` as far as nothing is started, and `imprint verify`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from imprint.cli.app import app
from imprint.errors import ConfigError
from imprint.serve.launch import CONFIG, LOCAL_TENANT, plan, validated
from imprint.serve.provenance import finish
from imprint.serve.settings import ProvenanceSpec
from imprint.serve.tenants import Tenants, key_hash


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_verify_tells_marked_from_unmarked(tmp_path: Path) -> None:
    plain = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    plain.save(tmp_path / "plain.png")
    (tmp_path / "marked.png").write_bytes(finish(plain, ProvenanceSpec()))
    code, said = call("verify", str(tmp_path / "marked.png"))
    assert code == 0 and "a model made it" in said and "watermark: found" in said
    code, said = call("verify", str(tmp_path / "plain.png"))
    assert code == 1 and "says nothing" in said and "not found" in said
    code, said = call("verify", str(tmp_path / "marked.png"), "--key", "another")
    assert code == 0 and "not found" in said
    (tmp_path / "none.png").write_text("no picture")
    code, said = call("verify", str(tmp_path / "none.png"))
    assert code == 1 and "error:" in said


def test_a_new_key_is_the_one_of_its_hash() -> None:
    code, said = call("serve", "--new-key", "acme")
    key = said.split()[1]
    tenant, value = said.rpartition("{")[2].rstrip().rstrip("}").split(": [")
    assert code == 0 and (tenant, value.rstrip("]")) == ("acme", key_hash(key))
    assert call("serve", "--new-key", "../etc")[0] == 2


def test_the_config_that_ships_is_whole() -> None:
    planned = plan(None, ["store.ttl_s=60"], host=None, port=0)
    spec = validated(planned.args, "config")
    assert (planned.name, planned.route, planned.host, planned.port) == ("imprint", "/", "127.0.0.1", 0)
    assert spec.store.ttl_s == 60 and spec.default_method == "e4t"
    assert spec.tuner.cpus + spec.sampler.cpus + spec.ingress.cpus <= 2  # it starts on two cores
    assert planned.made_key is not None
    assert Tenants.of(spec).owner(f"Bearer {planned.made_key}") == LOCAL_TENANT


@pytest.mark.parametrize(
    ("override", "said"),
    [("store.tls=1", "did you mean"), ("tuner.cpus=-1", "greater"), ("keys={a b: [x]}", "small letters")],
)
def test_a_wrong_key_of_the_config_is_said(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(None, [override], host=None, port=None)


def test_a_file_that_is_no_config_of_serve(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("job: pretrain_encoder\n")
    with pytest.raises(ConfigError, match=str(CONFIG)):
        plan(tmp_path / "job.yaml", [], host=None, port=None)
