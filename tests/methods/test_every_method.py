"""What holds for every method, on every family; E4T's own is in test_e4t_tune.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imprint.backbone import Backbone
from imprint.config.methods import (
    PRETRAIN_SPECS,
    DomainAgnosticSpec,
    DomainAgnosticTuneSpec,
    DreamBoothTuneSpec,
    FewStepSpec,
    LoraTuneSpec,
    ObjectEncoderSpec,
    PretrainSpec,
    ProFusionSpec,
    ProFusionTuneSpec,
    SampleSpec,
    TamingSpec,
    TamingTuneSpec,
    TextualInversionTuneSpec,
)
from imprint.errors import CheckpointError, ConfigError, TrainingError
from imprint.features.clip import ClipFeatures
from imprint.methods import METHODS
from imprint.methods.base import Learned, Pictures
from imprint.methods.pretrained import save_encoder
from imprint.methods.taming import TamingObjective, TripletBatch, save_network
from imprint.tuning import Concept, personalize, sample_concept

SpecMaker = Callable[..., FewStepSpec]
EncoderMaker = Callable[[Backbone], Any]
CHANGED = {
    "full": {"unet"},
    "full and text": {"unet", "text_encoder"},
    "lora": {"lora"},
    "dreambooth lora": {"lora"},
    "word": {"word"},
    "domain agnostic": {"word", "lora"},
    "profusion": {"promptnet", "reference", "unet"},
}
PRETRAINED: dict[str, PretrainSpec] = {"domain agnostic": DomainAgnosticSpec(), "profusion": ProFusionSpec()}
"""Those that start from an encoder; here one that has seen nothing yet."""
from_the_backbone_alone = pytest.mark.parametrize("kind", [k for k in CHANGED if k not in PRETRAINED], indirect=True)


@pytest.fixture
def encoder(kind: str, clip: ClipFeatures) -> EncoderMaker:
    """What `personalize` takes as the encoder of a backbone."""

    def build(backbone: Backbone) -> Any:
        if kind not in PRETRAINED:
            return None
        spec = PRETRAINED[kind]
        torch.manual_seed(0)
        return METHODS[spec.method].pretrain(backbone, spec, clip).requires_grad_(False).parts

    return build


@pytest.fixture(params=list(CHANGED))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def spec(kind: str, tmp_path: Path) -> SpecMaker:
    """The spec of two quick steps, with class images small enough for a test."""
    prior = {"images": 3, "cache_dir": str(tmp_path / "class-images"), "sampling": {"steps": 1}}
    identifier = {"rare_share": 1.0}
    rates = {"unet": 1e-3, "text_encoder": 1e-3}
    own: dict[str, tuple[type[FewStepSpec], dict[str, Any]]] = {
        "full": (DreamBoothTuneSpec, {"prior": prior, "learning_rates": rates, "identifier": identifier}),
        "full and text": (
            DreamBoothTuneSpec,
            {"prior": prior, "learning_rates": rates, "identifier": identifier, "text_encoder": True},
        ),
        "lora": (LoraTuneSpec, {"lora": {"learning_rate": 1e-2}, "identifier": identifier, "text_encoder": True}),
        "dreambooth lora": (
            DreamBoothTuneSpec,
            {"prior": prior, "train": "lora", "lora": {"learning_rate": 1e-2}, "identifier": identifier},
        ),
        "word": (TextualInversionTuneSpec, {"learning_rate": 1e-1}),
        "domain agnostic": (DomainAgnosticTuneSpec, {}),
        "profusion": (ProFusionTuneSpec, {"learning_rate": 1e-3, "augmentation": {"images": 2}}),
    }
    section, keys = own[kind]
    return lambda **more: section(**({"steps": 2, "batch_size": 2, "storage": "fp32"} | keys | more))


def pictures(count: int = 2, **more: Any) -> Pictures:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return Pictures(images, **more)


def draw(backbone: Backbone, concept: Concept) -> torch.Tensor:
    return sample_concept(backbone, concept, ["a photo of <concept>"] * 2, SampleSpec(steps=2), seeds=[1, 2])


def test_tuning_and_sampling_on_every_family(
    backbone: Backbone, spec: SpecMaker, encoder: EncoderMaker, kind: str, tmp_path: Path
) -> None:
    """Forward, backward, two steps, saving, loading, sampling; and the backbone as it was."""
    fingerprint = backbone.fingerprint()
    losses: list[float] = []
    concept = personalize(
        backbone, pictures(), spec(), class_noun="cat", encoder=encoder(backbone),
        callback=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    assert backbone.fingerprint() == fingerprint
    assert not any(p.requires_grad or p.grad is not None for m in backbone.modules() for p in m.parameters())
    kinds = {name.partition(".")[0].removesuffix("_2") for name in concept.learned.tensors}
    assert kinds == CHANGED[kind]
    assert any(float(value.abs().max()) > 0 for value in concept.learned.tensors.values())
    loaded = Concept.load(concept.save(tmp_path / "concept"))
    drawn = draw(backbone, loaded)
    assert drawn.shape == (2, 3, 16, 16) and bool(drawn.isfinite().all())
    assert torch.equal(drawn, draw(backbone, concept))
    assert backbone.fingerprint() == fingerprint


def test_an_exception_from_the_callback_changes_nothing(sd15: Backbone, spec: SpecMaker, encoder: EncoderMaker) -> None:
    fingerprint, pretrained = sd15.fingerprint(), encoder(sd15)
    networks = pretrained.networks() if pretrained is not None else {}
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}

    def cancel(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        personalize(sd15, pictures(), spec(), class_noun="cat", encoder=pretrained, callback=cancel)
    for name, network in networks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in network.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert sd15.fingerprint() == fingerprint
    assert not any(p.requires_grad or p.grad is not None for m in sd15.modules() for p in m.parameters())
    assert not any("lora" in type(module).__module__ for m in sd15.modules() for module in m.modules())


def test_the_same_seed_gives_the_same_concept(sd15: Backbone, spec: SpecMaker, encoder: EncoderMaker) -> None:
    pretrained = encoder(sd15)

    def learn(seed: int) -> Learned:
        return personalize(sd15, pictures(), spec(), class_noun="cat", encoder=pretrained, seed=seed).learned

    torch.manual_seed(0)
    first = learn(3)
    torch.manual_seed(1)
    second, other = learn(3), learn(4)
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    assert any(not torch.equal(value, other.tensors[name]) for name, value in first.tensors.items())


@from_the_backbone_alone
@pytest.mark.parametrize("noun", [None, "", "  "])
def test_a_class_noun_is_needed(sd15: Backbone, spec: SpecMaker, noun: str | None) -> None:
    with pytest.raises(ConfigError, match=r"--class-noun: \w+ needs to know what the subject is"):
        personalize(sd15, pictures(), spec(), class_noun=noun)


@from_the_backbone_alone
def test_an_encoder_is_refused(sd15: Backbone, spec: SpecMaker) -> None:
    with pytest.raises(ConfigError, match="has no pretrained encoder and got one"):
        personalize(sd15, pictures(), spec(), class_noun="cat", encoder="runs/e4t-faces")


@pytest.mark.parametrize("kind", list(PRETRAINED), indirect=True)
def test_an_encoder_is_needed(sd15: Backbone, spec: SpecMaker) -> None:
    with pytest.raises(ConfigError, match="starts from a pretrained encoder and got none"):
        personalize(sd15, pictures(), spec(), class_noun="cat")


@pytest.mark.parametrize("kind", list(PRETRAINED), indirect=True)
def test_an_encoder_comes_back_from_its_folder(
    backbone: Backbone, clip: ClipFeatures, encoder: EncoderMaker, kind: str, tmp_path: Path
) -> None:
    """Pretraining for a step, saving and loading; and a preview of both alike. Another method refuses the folder."""
    spec = PRETRAINED[kind]
    method = METHODS[spec.method]
    objective = method.pretrain(backbone, spec, clip)
    images = pictures(4).images
    batch = {"pixel_values": images, "captions": [""] * 4, "keys": list("abcd")}
    optimizer = torch.optim.AdamW(objective.parameter_groups(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        objective(batch, torch.Generator().manual_seed(step)).loss.backward()
        optimizer.step()
    save_encoder(tmp_path / "encoder", objective.state_dict(), spec, backbone, clip)
    loaded = method.load_encoder(tmp_path, backbone, clip=clip)
    assert not any(p.requires_grad for network in loaded.networks().values() for p in network.parameters())
    prompts, sampling = ["a photo of <concept>"] * 2, SampleSpec(steps=1)
    drawn = [method.preview(parts, images[:2], prompts, sampling) for parts in (objective.parts, loaded)]
    assert torch.equal(*drawn) and drawn[0].shape == (2, 3, 16, 16)
    with pytest.raises(CheckpointError, match=f"it was pretrained for the method {spec.method}, and e4t cannot"):
        METHODS["e4t"].load_encoder(tmp_path, backbone, clip=clip)


def test_masks_and_contexts_must_fit(sd15: Backbone, spec: SpecMaker, encoder: EncoderMaker) -> None:
    with pytest.raises(ConfigError, match="1 masks for 2 pictures"):
        wrong = pictures(masks=torch.ones(1, 1, 16, 16))
        personalize(sd15, wrong, spec(), class_noun="cat", encoder=encoder(sd15))


def test_a_loss_that_is_not_finite_stops_tuning(sd15: Backbone, spec: SpecMaker, encoder: EncoderMaker) -> None:
    broken = Pictures(torch.full((1, 3, 16, 16), float("nan")))
    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        personalize(sd15, broken, spec(), class_noun="cat", encoder=encoder(sd15))


def test_a_prompt_without_the_placeholder(sd15: Backbone, spec: SpecMaker, encoder: EncoderMaker) -> None:
    concept = personalize(sd15, pictures(), spec(steps=1), class_noun="cat", encoder=encoder(sd15))
    with pytest.raises(ConfigError, match="write <concept> in it"):
        sample_concept(sd15, concept, ["a photo of a cat"], SampleSpec(steps=1))


def test_a_mask_changes_the_loss_where_it_is_asked_for(sd15: Backbone, spec: SpecMaker, encoder: EncoderMaker) -> None:
    masks = torch.zeros(2, 1, 16, 16)
    masks[..., :4] = 1
    losses: list[float] = []
    for on in (True, False):
        personalize(
            sd15, pictures(masks=masks), spec(steps=1, mask_loss=on), class_noun="cat", encoder=encoder(sd15),
            callback=lambda step, loss: losses.append(loss),
        )  # fmt: skip
    assert losses[0] != losses[1]


def test_the_taming_encoder_on_every_family(
    backbone: Backbone, clip: ClipFeatures, triplets: TripletBatch, tmp_path: Path
) -> None:
    """Two steps of joint finetuning, the network saved, a subject in no step at all, saving, loading, sampling."""
    base = {"path": backbone.path, "fingerprint": backbone.fingerprint()}
    objective = TamingObjective(
        Backbone.load(backbone.path), TamingSpec(object_encoder=ObjectEncoderSpec(clip=clip.name)), clip
    )
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        loss = objective(triplets, torch.Generator().manual_seed(step)).loss
        loss.backward()
        optimizer.step()
        assert 0 < loss.item() < 100
    network = save_network(tmp_path / "run" / "network", objective.state_dict(), objective.parts, base)
    masks = torch.ones(1, 1, 16, 16)
    concept = personalize(
        backbone, pictures(1, masks=masks), TamingTuneSpec(), encoder=network.parent, class_noun="cat"
    )
    loaded = Concept.load(concept.save(tmp_path / "concept"))
    drawn = draw(backbone, loaded)
    assert drawn.shape == (2, 3, 16, 16) and bool(drawn.isfinite().all())
    assert torch.equal(drawn, draw(backbone, concept))
    assert backbone.fingerprint() == base["fingerprint"]
    assert not any(p.requires_grad for m in backbone.modules() for p in m.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_doors(name: str) -> None:
    module = METHODS[name]
    assert callable(module.tune) and callable(module.sample)
    assert set(module.__all__) >= {"sample", "tune"}
    assert hasattr(module, "pretrain") == (name in PRETRAIN_SPECS)
    assert set(module.__all__) >= {"load_encoder", "pretrain", "preview"} or name not in PRETRAIN_SPECS
