"""Every way in which a job file can be wrong gets one clear message, and a right one becomes a frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from imprint.config.base import Section
from imprint.config.load import load_job
from imprint.errors import ConfigError


class Encoder(Section):
    name: Literal["e4t"] = "e4t"
    width: int = Field(16, gt=0)


class Lora(Section):
    name: Literal["lora"] = "lora"
    rank: int = Field(4, gt=0)


class Training(Section):
    steps: int = Field(gt=0, description="how many optimizer steps")
    learning_rate: float = 1e-4
    precision: Literal["fp32", "bf16"] = "fp32"
    clip: float | Literal["auto"] = 1.0

    @model_validator(mode="after")
    def _clip_fits(self) -> Training:
        if self.clip == 0:
            raise ValueError("clip 0 stops all learning, expected more than 0")
        return self


class Pretrain(Section):
    job: Literal["pretrain"]
    name: str
    shards: tuple[str, ...] = ()
    training: Training
    method: Annotated[Encoder | Lora, Field(discriminator="name")] = Encoder()
    ema: Training | None = None


SPECS: dict[str, type[Section]] = {"pretrain": Pretrain, "prepare": Lora}

GOOD = """\
#!/usr/bin/env -S imprint run
job: pretrain
name: run-1
shards: [a.tar, b.tar]
training:
  steps: 10
  learning_rate: 1e-3
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(text)
    return file


def message(file: Path, *overrides: str) -> str:
    """What is said about a bad file, with its folder cut off."""
    with pytest.raises(ConfigError) as caught:
        load_job(file, overrides, SPECS)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{file.parent}/", "")


def test_good_file_becomes_a_frozen_model(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD), specs=SPECS)
    assert job.kind == "pretrain"
    assert job.source == GOOD
    assert isinstance(job.spec, Pretrain)
    assert job.spec.shards == ("a.tar", "b.tar")
    assert job.spec.training == Training(steps=10, learning_rate=1e-3)  # YAML 1.1 alone would read 1e-3 as text
    with pytest.raises(ValidationError, match="frozen"):
        job.spec.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  steps: 10", "  stepz: 10", "job.yaml:6: training.stepz: unknown key; did you mean 'steps'?"),
        ("  steps: 10", "  steps: ten", "job.yaml:6: training.steps: got 'ten', expected a valid integer"),
        ("  steps: 10", "  steps: 2.5", "job.yaml:6: training.steps: got 2.5, expected a valid integer"),
        ("  steps: 10", "  steps: 0", "job.yaml:6: training.steps: got 0, expected greater than 0"),
        ("  steps: 10", "  steps:", "job.yaml:6: training.steps: got None, expected a valid integer"),
        ("  steps: 10\n", "", "job.yaml:5: training.steps: the key is missing, expected how many optimizer steps"),
        ("name: run-1\n", "", "job.yaml: name: the key is missing and has no default"),
        ("name: run-1", "name: [1]", "job.yaml:3: name: got a list, expected text (quote it)"),
        ("[a.tar, b.tar]", "[a.tar, {}]", "job.yaml:4: shards.1: got a section, expected text (quote it)"),
        ("[a.tar, b.tar]", "a.tar", "job.yaml:4: shards: got 'a.tar', expected a list"),
        ("name: run-1", "name: x\nprecision: bf16", ":4: precision: unknown key; did you mean 'training.precision'?"),
        ("name: run-1", "name: x\nqqq: 1", "expected one of: ema, job, method, name, shards, training"),
        ("name: run-1", "name: x\nname: y", "job.yaml:4: name: the key is written twice, first in line 3; keep one"),
        ("job: pretrain", "job: pretrian", ":2: job: got 'pretrian', expected prepare or pretrain; did you mean"),
        ("job: pretrain\n", "", "job.yaml: job: the key is missing, expected prepare or pretrain"),
        ("job: pretrain", "job: [pretrain]", "job.yaml:2: job: got ['pretrain'], expected prepare or pretrain"),
        ("name: run-1", "name: {a: [1}", "job.yaml:3:13: not valid YAML: while parsing a flow sequence"),
        ("name: run-1", "name: !!python/object:os.system x", "could not determine a constructor"),
        ("name: run-1", "? [1, 2]\n: x", "job.yaml:3: a key is a list, expected a word"),
    ],
)
def test_bad_file(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    said = message(write(tmp_path, GOOD.replace(old, new)))
    assert expected in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("  precision: fp23", ":8: training.precision: got 'fp23', expected 'fp32' or 'bf16'; did you mean 'fp32'?"),
        ("  clip: soft", "job.yaml:8: training.clip: got 'soft', expected a valid number or 'auto'"),
        ("  clip: 0", "job.yaml:5: training: clip 0 stops all learning, expected more than 0"),
        ("method: {name: lora, rnak: 1}", "job.yaml:8: method.rnak: unknown key; did you mean 'rank'?"),
        ("method: {name: lora, rank: 0}", "job.yaml:8: method.rank: got 0, expected greater than 0"),
        ("method: {name: e5t}", "job.yaml:8: method:"),
        ("ema: {steps: 1, step: 2}", "job.yaml:8: ema.step: unknown key; did you mean 'steps'?"),
    ],
)
def test_bad_section(tmp_path: Path, lines: str, expected: str) -> None:
    said = message(write(tmp_path, GOOD + lines + "\n"))
    assert expected in said
    assert len(said.splitlines()) == 1


def test_every_problem_is_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "job: pretrain\nqqq: x\ntraining:\n  steps: no way\n  clip: {}\n"
    lines = message(write(tmp_path, text)).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["job.yaml:", "job.yaml:2:", "job.yaml:4:", "job.yaml:5:"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "job.yaml: the file is empty"),
        (b"# only a comment\n", "job.yaml: the file is empty"),
        (b"- a\n- b\n", "job.yaml:1: got a list at the top"),
        (b"hello", "job.yaml:1: got the single value 'hello' at the top"),
        (b"\xff\xfe\x00", "job.yaml: not text (byte 0 is not UTF-8)"),
        (b"a: 1\n---\nb: 2\n", "job.yaml:2:1: not valid YAML: expected a single document"),
        (b"job: &a [*a]\n", "is an alias inside its own anchor?"),
        (b"job: x\n" + b"#" * (1 << 20), "job.yaml: larger than 1 MiB"),
    ],
)
def test_not_a_job_file(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    assert expected in message(file)


def test_aliases_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    levels = "\n".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 10)}]" for n in range(1, 9))
    assert "more than 10000 values" in message(write(tmp_path, f"k0: &k0 x\n{levels}\n"))


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = "job: pretrain\nname: x\ntraining: &t {steps: 3, learning_rate: 0.5}\nema:\n  <<: *t\n  steps: 4\n"
    spec = load_job(write(tmp_path, text), ["training.steps=9"], SPECS).spec
    assert isinstance(spec, Pretrain)
    assert spec.training.steps == 9
    assert spec.ema == Training(steps=4, learning_rate=0.5)


def test_no_such_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert message(tmp_path / "jbo.yaml") == "jbo.yaml: no such file; did you mean job.yaml?"
    assert message(tmp_path / "qq.yaml") == "qq.yaml: no such file; expected the path of a YAML job file"


def test_a_folder_is_not_a_job_file(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in message(tmp_path)


def test_overrides_change_what_the_file_says_and_are_noted(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD.rstrip("\n"))
    overrides = ["training.steps=20", "shards.1=c.tar", "ema.steps=5", "name='007'", "method={name: lora}"]
    job = load_job(file, overrides, SPECS)
    assert isinstance(job.spec, Pretrain)
    assert job.spec.training.steps == 20
    assert job.spec.shards == ("a.tar", "c.tar")
    assert job.spec.ema == Training(steps=5)
    assert job.spec.name == "007"
    assert job.spec.method == Lora()
    assert job.source.startswith(GOOD)
    assert "\n# override: 'training.steps=20'\n" in job.source


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.stepz=1", "override 'training.stepz=1': training.stepz: unknown key; did you mean 'steps'?"),
        ("trainign.steps=1", "override 'trainign.steps=1': trainign: unknown key; did you mean 'training'?"),
        ("training.steps=x", "override 'training.steps=x': training.steps: got 'x', expected a valid integer"),
        ("training.steps", "expected dotted.key=value"),
        ("training..steps=1", "expected dotted.key=value"),
        ("=1", "expected dotted.key=value"),
        ("name.first=x", "name is the single value 'run-1', it has no 'first'"),
        ("shards.2=x", "shards is a list of 2; got '2', expected a position from 0 to 1"),
        ("shards.x.y=x", "shards is a list of 2; got 'x', expected a position from 0 to 1"),
        ("name=[1", "the value '[1' is not valid YAML; quote it"),
        ("name={a: 1, a: 2}", "the value '{a: 1, a: 2}' is not valid YAML; quote it"),
        ("training={steps: 0}", "override 'training={steps: 0}': training.steps: got 0, expected greater than 0"),
    ],
)
def test_bad_override(tmp_path: Path, override: str, expected: str) -> None:
    said = message(write(tmp_path, GOOD), override)
    assert expected in said
    assert len(said.splitlines()) == 1
