"""Eq. 2 and Eq. 1 of DreamBooth as an objective: by hand, beside tuning in one process, and what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import DreamBoothTuneSpec
from imprint.config.training import EngineSpec, OptimizerSpec
from imprint.errors import CheckpointError
from imprint.methods.augment import spread_evenly
from imprint.methods.base import Pictures
from imprint.methods.diffusion_loss import stratified_timesteps
from imprint.methods.dreambooth import Binding, DreamBoothObjective, class_images, make_trained, tune
from imprint.methods.shells import named_weights
from imprint.objective import Batch
from imprint.training.engines.torch import TorchEngine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHOLE = {"crop_scale": 1.0, "flip": False, "context_probability": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(backbone: Backbone, count: int = 3) -> Tensor:
    size = backbone.image_size
    return torch.randint(256, (count, 3, size, size), generator=seeded(9), dtype=torch.uint8)


def make(backbone: Backbone, images: Tensor | None, **keys: Any) -> DreamBoothObjective:
    spec = DreamBoothTuneSpec(**keys)
    return DreamBoothObjective(make_trained(backbone, spec, 0), spec, Binding("a zzq cat", "cat", images))


def noisy_latents(backbone: Backbone, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """x_t, its target and t of whole pictures, written out."""
    mean, std = backbone.latent_moments(pixels)
    x = mean + std * torch.randn(mean.shape, generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    timesteps = stratified_timesteps(len(x), 1000, generator)
    abar = backbone.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1).float()
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    target = alpha * eps - sigma * x if backbone.prediction_type == "v_prediction" else eps
    return alpha * x + sigma * eps, target, timesteps


def by_hand(objective: DreamBoothObjective, backbone: Backbone, batch: Batch, gamma: float | None) -> tuple[float, ...]:
    """Both terms of Eq. 2, with the draws in the order in which they are made."""
    generator, count = seeded(), len(batch["keys"])
    torch.rand(count, 4, generator=generator)  # of the crops, which are whole here
    xt, target, timesteps = noisy_latents(backbone, batch["pixel_values"], generator)
    torch.rand(count, 3, generator=generator, dtype=torch.float64)  # of the prompts, of which there is one
    prompts = ["a zzq cat"] * count
    images = objective.binding.class_images
    if images is not None:
        order = torch.randperm(len(images), generator=generator).repeat(2)[:count]
        torch.rand(count, 4, generator=generator)
        prior = noisy_latents(backbone, images[order].float() / 127.5 - 1, generator)
        xt, target, timesteps = (torch.cat(pair) for pair in zip((xt, target, timesteps), prior, strict=True))
        prompts += ["a cat"] * count
    output = backbone.denoise(xt, timesteps, backbone.encode_text(prompts))
    each = (output - target).square().mean(dim=(1, 2, 3))
    if gamma is not None:
        abar = backbone.schedule.alphas_cumprod[timesteps].float()
        snr = abar / (1 - abar)
        each = each * snr.clamp(max=gamma) / (snr + 1 if backbone.prediction_type == "v_prediction" else snr)
    return tuple(float(part.mean().detach()) for part in each.split(count))


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_dreambooth_eq_2_from_its_pieces(backbone: Backbone, batch: Batch, gamma: float | None) -> None:
    objective = make(backbone, noise_images(backbone), min_snr_gamma=gamma, prior={"weight": 0.7}, **WHOLE)
    output = objective(batch, seeded())
    subject, prior = by_hand(objective, backbone, batch, gamma)
    assert float(output.loss.detach()) == pytest.approx(subject + 0.7 * prior, rel=1e-4)
    assert float(output.metrics["loss_subject"]) == pytest.approx(subject, rel=1e-4)
    assert float(output.metrics["loss_prior"]) == pytest.approx(prior, rel=1e-4)
    assert output.by_timestep is not None and len(output.by_timestep[0]) == len(batch["keys"])


def test_dreambooth_eq_1_is_left_without_class_images(backbone: Backbone, batch: Batch) -> None:
    objective = make(backbone, None, **WHOLE)
    output = objective(batch, seeded())
    (subject,) = by_hand(objective, backbone, batch, None)
    assert float(output.loss.detach()) == pytest.approx(subject, rel=1e-4)
    assert output.metrics.keys() == {"loss_subject"}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_eq_2_over_two_steps_is_that_of_tuning_in_one_process(
    sd15: Backbone, tmp_path: Path, train: str, masked: bool
) -> None:
    """The same crops and noise, through a trainer's engine: the same losses and, bit for bit, the same change."""
    rate, seed, count = 1e-3, 4, 4
    images = torch.rand(3, 3, 24, 24, generator=seeded(5)) * 2 - 1
    masks = (torch.rand(3, 1, 24, 24, generator=seeded(6)) > 0.5).float() if masked else None
    pictures = Pictures(images, masks, ["on red", "on blue", "smiling"])
    keys = {
        "steps": 2, "batch_size": count, "storage": "fp32", "train": train, "text_encoder": train == "full",
        "learning_rates": {"unet": rate, "text_encoder": rate / 4}, "lora": {"learning_rate": rate},
        "identifier": {"text": "zzq"}, "templates": ("<concept>", "a photo of <concept>"), "mask_loss": masked,
        "prior": {"images": 3, "cache_dir": str(tmp_path), "sampling": {"steps": 1}},
    }  # fmt: skip
    spec = DreamBoothTuneSpec(**keys)
    losses: list[float] = []
    learned = tune(sd15, pictures, spec, class_noun="cat", seed=seed, callback=lambda _, loss: losses.append(loss))

    trained = make_trained(sd15, spec, seed)
    binding = Binding("a zzq cat", "cat", class_images(sd15, spec.prior, "cat"))
    objective = DreamBoothObjective(trained, spec, binding)
    engine = TorchEngine(objective, EngineSpec(), OptimizerSpec(weight_decay=0, clip_norm=None))
    for step, loss in enumerate(losses):
        generator = seeded(seed * 1_000_003 + step)
        order = spread_evenly(3, count, generator)
        batch: Any = {"pixel_values": images[order], "contexts": [pictures.contexts[i] for i in order.tolist()]}
        batch |= {"masks": masks[order]} if masks is not None else {}
        output = engine.forward(batch, generator)
        assert float(output.loss.detach()) == loss
        engine.backward(output.loss, 1)
        engine.step(rate)
    again = make_trained(sd15, spec, seed)
    again.load(engine.parameters())
    for packed in (trained.pack(sd15, "fp32"), again.pack(sd15, "fp32")):
        assert packed.keys() == learned.tensors.keys()
        assert all(torch.equal(value, packed[name]) for name, value in learned.tensors.items())


@pytest.mark.parametrize(
    "keys", [{}, {"text_encoder": True}, {"train": "lora"}, {"train": "lora", "text_encoder": True}]
)
def test_only_what_trains_is_registered_and_by_its_own_name(
    backbone: Backbone, batch: Batch, keys: dict[str, Any]
) -> None:
    objective = make(backbone, noise_images(backbone), **keys)
    own = dict(objective.named_parameters())
    expected = {name: value for name, value in named_weights(objective.backbone) if value.requires_grad}
    assert own.keys() == expected.keys() and all(own[name] is value for name, value in expected.items())
    assert {name.partition(".")[0].removesuffix("_2") for name in own} == (
        {"unet", "text_encoder"} if "text_encoder" in keys else {"unet"}
    )
    assert any("lora" in name for name in own) == ("train" in keys)
    assert not any("embedding" in name and name.startswith("text") for name in own)
    assert not list(objective.buffers())
    grouped = [parameter for group in objective.parameter_groups() for parameter in group["params"]]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in own.values()}
    objective(batch, seeded()).loss.backward()
    assert all(parameter.grad is not None for name, parameter in own.items() if name.startswith("unet."))
    assert not any(parameter.requires_grad for module in backbone.modules() for parameter in module.parameters())


def test_text_encoders_train_at_their_ratio(sd15: Backbone) -> None:
    objective = make(sd15, None, text_encoder=True, learning_rates={"unet": 2e-4, "text_encoder": 5e-5})
    assert [group["lr_scale"] for group in objective.parameter_groups()] == [1.0, 0.25]
    only_text = make(sd15, None, text_encoder=True, learning_rates={"unet": 0, "text_encoder": 5e-5})
    (group,) = only_text.parameter_groups()
    assert group["lr_scale"] == 1.0
    assert all(name.startswith("text_encoder.") for name, _ in only_text.named_parameters())


def test_a_state_of_another_model_is_refused(sd15: Backbone) -> None:
    spec = DreamBoothTuneSpec()
    trained = make_trained(sd15, spec, 0)
    state = dict(DreamBoothObjective(trained, spec, Binding("a zzq cat", "cat")).named_parameters())
    name = next(iter(state))
    for wrong in (
        {key: value for key, value in state.items() if key != name},
        state | {"unet.more": state[name]},
        state | {name: state[name].flatten()[:1]},
    ):
        with pytest.raises(CheckpointError, match="does not fit"):
            trained.load(wrong)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_weights_in_bf16_stand_beside_frozen_ones_in_fp32(backbone: Backbone, batch: Batch, train: str) -> None:
    """As engines keep them; the word embeddings before the text encoders' layers, for one, are frozen and in fp32."""
    losses = {}
    for weights, precision in (("fp32", "fp32"), ("bf16", "bf16")):
        objective = make(backbone, noise_images(backbone), train=train, text_encoder=True)
        engine = TorchEngine(objective, EngineSpec(weights=weights, precision=precision), OptimizerSpec())
        assert {p.dtype for p in objective.parameters()} == {DTYPES[weights]}
        output = engine.forward(batch, seeded())
        engine.backward(output.loss, 1)
        assert bool(engine.step(1e-4).isfinite())
        losses[weights] = float(output.loss.detach())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03) and losses["bf16"] != losses["fp32"]
