"""The job files that compare: every method is in them, and every ablation of the table that can be drawn at 64 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imprint.backbone.loading import embedded_path
from imprint.config.jobs.benchmark import Benchmark
from imprint.config.load import load_job
from imprint.config.methods import TUNE_SPECS

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"E4T": "e4t", "Domain-agnostic": "domain_agnostic", "ProFusion": "profusion", "Taming": "taming",
          "DreamBooth": "dreambooth"}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    spec = load_job(ROOT / "jobs" / f"{name}.yaml").spec
    assert isinstance(spec, Benchmark)
    return spec


def table() -> list[list[str]]:
    section = (ROOT / "docs" / "methods.md").read_text().split("\n## Ablations\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def value_at(settings: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def test_the_benchmark_has_every_method() -> None:
    assert {one.tuning.method for one in benchmark("benchmark").contenders.values()} == set(TUNE_SPECS)


def test_methods_are_asked_the_same_in_both() -> None:
    """The whole methods of the ablations are the benchmark's own, so that one run can stand for the other."""
    first, second, third = benchmark("benchmark"), benchmark("ablations"), benchmark("ablations_pretraining")
    for name in ("e4t", "e4t-untuned", "domain-agnostic", "profusion", "dreambooth"):
        one, other = first.contenders[name], second.contenders[name]
        assert (one.tuning, one.encoder, one.sampling) == (other.tuning, other.encoder, other.sampling), name
    for name, whole in (("e4t", "e4t-whole"), ("domain-agnostic", "domain-agnostic-whole"), ("taming", "taming")):
        assert first.contenders[name].tuning == third.contenders[whole].tuning, name
    steps = benchmark("steps")
    assert {name: steps.contenders[name] for name in ("e4t", "dreambooth")} == {
        name: first.contenders[name] for name in ("e4t", "dreambooth")
    }
    same = ("seed", "source", "subjects", "protocol", "images_per_prompt", "sampling", "attributes", "calibration",
            "class_pictures")  # fmt: skip
    assert all(getattr(first, key) == getattr(other, key) for key in same for other in (second, third, steps))
    assert second.reuse == third.reuse == steps.reuse == ("runs/benchmark-faces",)


def test_every_ablation_of_tuning_and_sampling_is_drawn() -> None:
    contenders = benchmark("ablations").contenders.values()
    for method, without, place, text in table():
        key, _, value = text.partition("=")
        if key.startswith("super_resolution"):
            continue
        own = [one for one in contenders if one.tuning.method == PLACES[method]]
        if place.startswith("jobs/"):
            continue
        part = [(one.sampling if place == "sample" else one.tuning) for one in own]
        found = [value_at(one.model_dump(mode="json"), key) for one in part if one is not None]
        wanted = {"false": False, '""': ""}.get(value, value)
        assert any(str(each) in (str(wanted), f"{wanted}.0") for each in found), f"{method} without {without}"


def test_every_ablation_of_pretraining_is_trained_and_drawn() -> None:
    """`scripts/results.sh` trains what the jobs name, with the table's keys."""
    script = (ROOT / "scripts" / "results.sh").read_text()
    named = {one.encoder for one in benchmark("ablations_pretraining").contenders.values() if one.encoder}
    trained = {f"runs/{line.split()[1]}": line for line in script.splitlines() if line.startswith("pretrain ")}
    assert named == set(trained)
    for _, _, place, key in table():
        if place.startswith("jobs/"):
            (line,) = [line for line in trained.values() if line.endswith(key)]
            assert line.split()[2] == place
    others = [one.encoder for name in ("benchmark", "ablations") for one in benchmark(name).contenders.values()]
    shipped = {name for name in others if name is not None and not name.startswith("runs/")}
    assert {name for name in others if name is not None} - shipped <= set(trained)
    assert shipped == {f"imprint-tiny-{name}" for name in ("e4t-faces", "domain-agnostic", "profusion-faces")}
    assert all((embedded_path(name) / "encoder.json").is_file() for name in shipped)
