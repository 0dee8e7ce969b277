"""The Concept and encoder folders: bit for bit there and back, whole or not at all, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import E4TSpec, E4TTuneSpec, SampleSpec
from imprint.errors import CheckpointError, ConceptError, ConfigError, StorageError
from imprint.features.clip import ClipFeatures
from imprint.methods.base import Pictures
from imprint.methods.e4t import E4TObjective, load_encoder, save_encoder
from imprint.tuning import Concept, personalize, sample_concept


@pytest.fixture
def backbone(tiny_sd15: Path) -> Backbone:
    return Backbone.load(tiny_sd15)


@pytest.fixture
def clip(tiny_clip: Path) -> ClipFeatures:
    return ClipFeatures.load(tiny_clip)


@pytest.fixture
def objective(backbone: Backbone, clip: ClipFeatures) -> E4TObjective:
    """Some state that is not the initial one."""
    torch.manual_seed(1)
    objective = E4TObjective(backbone, E4TSpec(encoder={"clip": clip.name}), clip)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return objective


@pytest.fixture
def encoder(objective: E4TObjective, backbone: Backbone, clip: ClipFeatures, tmp_path: Path) -> Path:
    return save_encoder(
        tmp_path / "run" / "encoder", objective.state_dict(), objective.spec, backbone, clip, provenance={"steps": 3}
    )


@pytest.fixture
def concept(backbone: Backbone, encoder: Path) -> Concept:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    spec = E4TTuneSpec(steps=2, batch_size=4)
    return personalize(backbone, Pictures(images), spec, encoder=encoder, seed=1)


def draw(backbone: Backbone, concept: Concept) -> torch.Tensor:
    return sample_concept(backbone, concept, ["a photo of <concept>"] * 2, SampleSpec(steps=2), seeds=[1, 2])


def test_a_concept_draws_the_same_after_a_round_trip(backbone: Backbone, concept: Concept, tmp_path: Path) -> None:
    loaded = Concept.load(concept.save(tmp_path / "concept"))
    assert loaded.learned.class_noun == "person" and loaded.learned.settings == concept.learned.settings
    assert loaded.provenance["versions"]["torch"]
    assert torch.equal(draw(backbone, loaded), draw(backbone, concept))


def test_only_what_was_learned_is_kept(backbone: Backbone, concept: Concept, tmp_path: Path) -> None:
    folder = concept.save(tmp_path / "concept")
    assert sorted(file.name for file in folder.iterdir()) == ["concept.json", "concept.safetensors"]
    kinds = {name.partition(".")[0] for name in concept.learned.tensors}
    assert kinds == {"encoder", "clip", "unet"}
    weights = sum(p.numel() for p in backbone.unet.parameters())
    kept = [v for name, v in concept.learned.tensors.items() if name.startswith("unet.")]
    assert sum(v.numel() for v in kept) == weights and all(v.dtype == torch.bfloat16 for v in kept)


@pytest.mark.parametrize("storage", ["fp16", "fp32"])
def test_precision_of_the_deltas_by_key(backbone: Backbone, encoder: Path, tmp_path: Path, storage: str) -> None:
    spec = E4TTuneSpec(steps=1, batch_size=2, unet="attention", storage=storage)  # type: ignore[arg-type]
    concept = personalize(backbone, Pictures(torch.zeros(1, 3, 16, 16)), spec, encoder=encoder)
    loaded = Concept.load(concept.save(tmp_path / "concept"))
    assert torch.equal(draw(backbone, loaded), draw(backbone, concept))


def test_another_backbone_is_refused(concept: Concept, tiny_sd21: Path, tmp_path: Path) -> None:
    loaded = Concept.load(concept.save(tmp_path / "concept"))
    with pytest.raises(ConceptError, match="has other weights"):
        draw(Backbone.load(tiny_sd21), loaded)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "there is no concept.json"),
        ("not json", "cannot be read"),
        ("foreign", "not the record of an imprint concept"),
        ("version", "format version 99"),
        ("cut", "concept.safetensors is missing, cut or changed"),
        ("flipped", "concept.safetensors is missing, cut or changed"),
        ("no tensors", "concept.safetensors is missing, cut or changed"),
        ("no settings", "lacks 'settings'"),
    ],
)
def test_a_broken_concept_is_a_clear_error(concept: Concept, tmp_path: Path, damage: str, message: str) -> None:
    folder = concept.save(tmp_path / "concept")
    record, tensors = folder / "concept.json", folder / "concept.safetensors"
    data = json.loads(record.read_text())
    if damage == "absent":
        record.unlink()
    if damage == "not json":
        record.write_text("{")
    if damage == "foreign":
        record.write_text("[1]")
    if damage == "version":
        record.write_text(json.dumps(data | {"format_version": 99}))
    if damage == "no settings":
        del data["settings"]
        record.write_text(json.dumps(data))
    raw = bytearray(tensors.read_bytes())
    if damage == "cut":
        tensors.write_bytes(raw[:-10])
    if damage == "flipped":
        raw[-1] ^= 1
        tensors.write_bytes(raw)
    if damage == "no tensors":
        tensors.unlink()
    with pytest.raises(ConceptError, match=message):
        Concept.load(folder)


def test_a_newer_concept_replaces_an_older_one_as_a_whole(concept: Concept, tmp_path: Path) -> None:
    folder = concept.save(tmp_path / "concept")
    concept.save(folder)
    assert [path.name for path in tmp_path.iterdir() if "concept" in path.name] == ["concept"]
    Concept.load(folder)


def test_somebody_elses_files_are_never_replaced(concept: Concept, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"thesis\.tex"):
        concept.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert not list(tmp_path.glob(".mine*"))


@pytest.mark.parametrize("older", [False, True])
def test_a_full_disk_leaves_nothing_half_written(
    concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    if older:
        concept.save(tmp_path / "concept")

    def full(tensors: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        concept.save(tmp_path / "concept")
    assert not list(tmp_path.glob(".concept*"))
    assert (tmp_path / "concept").exists() == older
    if older:
        Concept.load(tmp_path / "concept")


def test_an_encoder_comes_back_bit_for_bit(
    objective: E4TObjective, encoder: Path, backbone: Backbone, clip: ClipFeatures
) -> None:
    """From its own folder and from its run's."""
    for path in (encoder, encoder.parent):
        parts = load_encoder(path, backbone, clip=clip)
        state = objective.state_dict()
        assert all(torch.equal(value, state[f"encoder.{name}"]) for name, value in parts.encoder.state_dict().items())
        assert parts.offsets is not None
        assert all(torch.equal(value, state[f"offsets.{name}"]) for name, value in parts.offsets.state_dict().items())
        assert parts.spec == objective.spec
    assert json.loads((encoder / "encoder.json").read_text())["provenance"] == {"steps": 3}


def test_an_encoder_of_another_backbone_or_clip_is_refused(
    encoder: Path, backbone: Backbone, clip: ClipFeatures, tiny_sd21: Path
) -> None:
    with pytest.raises(CheckpointError, match="was pretrained on the backbone"):
        load_encoder(encoder, Backbone.load(tiny_sd21), clip=clip)
    with torch.no_grad():
        clip.model.visual.proj.mul_(2)
    with pytest.raises(CheckpointError, match="was pretrained with the CLIP"):
        load_encoder(encoder, backbone, clip=clip)


def test_no_encoder_there(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found neither encoder\.json"):
        load_encoder(tmp_path, backbone)


def test_an_encoder_with_tensors_missing(
    objective: E4TObjective, backbone: Backbone, clip: ClipFeatures, tmp_path: Path
) -> None:
    state = {name: value for name, value in objective.state_dict().items() if "heads" not in name}
    save_encoder(tmp_path / "encoder", state, objective.spec, backbone, clip)
    with pytest.raises(CheckpointError, match="Missing key"):
        load_encoder(tmp_path, backbone, clip=clip)


def test_an_unknown_method(backbone: Backbone, concept: Concept) -> None:
    import dataclasses

    other = dataclasses.replace(concept, learned=dataclasses.replace(concept.learned, method="e5t"))
    with pytest.raises(ConfigError, match="got 'e5t', expected one of e4t"):
        draw(backbone, other)


def test_a_class_noun_of_ones_own(backbone: Backbone, encoder: Path) -> None:
    spec = E4TTuneSpec(steps=0)
    images = Pictures(torch.zeros(1, 3, 16, 16))
    cat = personalize(backbone, images, spec, encoder=encoder, class_noun="cat")
    person = personalize(backbone, images, spec, encoder=encoder)
    assert (cat.learned.class_noun, person.learned.class_noun) == ("cat", "person")
    assert not torch.equal(draw(backbone, cat), draw(backbone, person))
