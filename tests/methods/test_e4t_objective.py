"""Eqs. 4 and 5 of E4T against computations of the pieces, and what takes gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from imprint.backbone import Backbone, TokenReplacements
from imprint.config.methods import E4TEncoderSpec, E4TSpec, WeightOffsetsSpec
from imprint.errors import ConfigError, DataError
from imprint.features.clip import ClipFeatures
from imprint.features.unet_taps import UNetTaps
from imprint.methods.diffusion_loss import diffusion_loss, stratified_timesteps
from imprint.methods.e4t import E4TObjective
from imprint.objective import Batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(backbone: Backbone, clip: ClipFeatures, **spec: Any) -> E4TObjective:
    torch.manual_seed(0)
    return E4TObjective(backbone, E4TSpec(**spec), clip)


def test_the_loss_is_equation_5_from_its_pieces(backbone: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    """x_t, embedding, prompt, UNet call and target written out, with the draws in the order they are made."""
    spec = {"templates": ("a photo of <concept>",), "context_probability": 0, "text_dropping": 0, "regularization": 0.5}
    objective = make(backbone, clip, **spec)
    output = objective(batch, seeded())
    generator = seeded()
    x0 = backbone.encode_images(batch["pixel_values"], generator)
    eps = torch.randn(x0.shape, generator=generator)
    timesteps = stratified_timesteps(4, 1000, generator)
    abar = backbone.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1).float()
    xt = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    offsets = objective.encoder(clip.layers(batch["pixel_values"]), UNetTaps(backbone)(xt, timesteps))
    domain = backbone.word_embedding("person")
    vectors = tuple(d[None] + 0.1 * o[:, None] for d, o in zip(domain, offsets, strict=True))
    text = backbone.encode_text(["a photo of <concept>"] * 4, TokenReplacements(vectors))
    prediction = backbone.denoise(xt, timesteps, text)
    target = abar.sqrt() * eps - (1 - abar).sqrt() * x0 if backbone.prediction_type == "v_prediction" else eps
    diffusion = ((prediction - target) ** 2).mean()
    regularization = sum((offset**2).sum() for offset in offsets) / 4
    torch.testing.assert_close(output.loss, diffusion + 0.5 * regularization, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.metrics["loss_diffusion"], diffusion.detach(), rtol=1e-4, atol=1e-6)


def test_pretraining_draws_timesteps_from_the_density_that_is_asked_for(
    sd15: Backbone, clip: ClipFeatures, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    add_noise = type(sd15.schedule).add_noise
    monkeypatch.setattr(
        type(sd15.schedule), "add_noise", lambda self, x0, noise, t: seen.append(t) or add_noise(self, x0, noise, t)
    )
    for logits in ((-3.0, 0.1), None):
        make(sd15, clip, timestep_logits=logits)(batch, seeded())
    assert seen[0].max() < 70
    assert sorted((seen[1] // 250).tolist()) == [0, 1, 2, 3]


def test_only_encoder_and_offsets_train(backbone: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    objective = make(backbone, clip)
    before = backbone.fingerprint()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        objective(batch, seeded(step)).loss.backward()
        assert all(p.grad is None for module in backbone.modules() for p in module.parameters())
        assert all(p.grad is None for p in clip.model.parameters())
        optimizer.step()
    moving = [name for name, p in objective.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0]
    assert sorted(moving) == sorted(name for name, _ in objective.named_parameters())
    assert {name.partition(".")[0] for name in moving} == {"encoder", "offsets"}
    assert backbone.fingerprint() == before
    assert all(not p.requires_grad for module in backbone.modules() for p in module.parameters())


def test_the_unet_keeps_no_gradient_memory(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    """Weight gradients are formed for the offset projections alone: no other parameter has a node in the graph."""
    objective = make(sd15, clip)
    loss = objective(batch, seeded()).loss
    leaves, stack, seen = set(), [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        stack += [parent for parent, _ in node.next_functions]
    assert leaves == {id(p) for p in objective.parameters()}


def test_the_first_loss_is_that_of_the_base_model(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    """Offsets on or off, at step 0: bit for bit."""
    torch.manual_seed(0)
    with_offsets = make(sd15, clip)
    without = make(sd15, clip, offsets=WeightOffsetsSpec(enabled=False))
    without.encoder.load_state_dict(with_offsets.encoder.state_dict())
    assert torch.equal(with_offsets(batch, seeded()).loss, without(batch, seeded()).loss)
    assert without.offsets is None and len(without.parameter_groups()) == 1


def test_the_generator_alone_decides(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    objective = make(sd15, clip)
    assert torch.equal(objective(batch, seeded(3)).loss, objective(batch, seeded(3)).loss)
    assert not torch.equal(objective(batch, seeded(3)).loss, objective(batch, seeded(4)).loss)


def test_refinement_gives_another_embedding_at_another_timestep(backbone: Backbone, clip: ClipFeatures) -> None:
    objective = make(backbone, clip)
    plain = make(backbone, clip, encoder=E4TEncoderSpec(refinement=False))
    features = clip.layers(torch.rand(1, 3, 16, 16, generator=seeded()) * 2 - 1)
    xt = torch.randn(1, 4, 8, 8, generator=seeded())
    prompts = ["a photo of <concept>"]

    def embedding(parts: Any, t: int, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts.condition(features, latents, torch.tensor([t]), prompts)[1], dim=-1)

    assert not torch.allclose(embedding(objective.parts, 900, xt), embedding(objective.parts, 100, xt))
    assert not torch.allclose(embedding(objective.parts, 900, xt), embedding(objective.parts, 900, -xt))
    assert torch.equal(embedding(plain.parts, 900, xt), embedding(plain.parts, 100, -xt))


def test_a_domain_word_of_several_tokens(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    objective = make(sd15, clip, domain_word="smiling cat")
    assert objective.parts.domain[0].shape[0] == 2
    assert torch.isfinite(objective(batch, seeded()).loss)


def test_ablation_without_regularization(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    """The paper's ablation (3): the diffusion loss alone, which the norm of the offsets is no part of."""
    output = make(sd15, clip, regularization=0.0)(batch, seeded())
    assert torch.equal(output.loss.detach(), output.metrics["loss_diffusion"])
    assert float(output.metrics["loss_regularization"]) > 0


def test_dropped_prompts_do_not_hold_the_concept(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    """With every text dropped, the diffusion loss does not depend on the encoder."""
    objective = make(sd15, clip, text_dropping=1.0, regularization=0.0)
    first = objective(batch, seeded()).loss
    with torch.no_grad():
        objective.encoder.heads[0].bias.add_(5.0)
    torch.testing.assert_close(objective(batch, seeded()).loss, first)


def test_masked_loss_ignores_what_is_outside() -> None:
    output, target = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    target[..., :4] = 3.0
    target[..., 4:] = 1.0
    masks = torch.zeros(2, 1, 16, 16)
    masks[..., 8:] = 1
    torch.testing.assert_close(diffusion_loss(output, target, masks), torch.tensor(1.0))
    torch.testing.assert_close(diffusion_loss(output, target), torch.tensor(5.0))
    # each picture counts alike, however small its subject
    masks[1] = 0
    masks[1, :, :2, :2] = 1
    torch.testing.assert_close(diffusion_loss(output, target, masks), torch.tensor((1.0 + 9.0) / 2))


def test_an_empty_mask_is_finite() -> None:
    loss = diffusion_loss(torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8))
    assert torch.isfinite(loss) and float(loss) == 0


def test_mask_loss_and_mask_reference_are_switches(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    plain = make(sd15, clip)(batch, seeded()).metrics["loss_diffusion"]
    masked = make(sd15, clip, mask_loss=True)(batch, seeded()).metrics["loss_diffusion"]
    assert not torch.equal(plain, masked)
    seen: list[torch.Tensor] = []

    class Spy:
        layer_indices, width, device = clip.layer_indices, clip.width, clip.device

        def layers(self, images: torch.Tensor) -> list[torch.Tensor]:
            seen.append(images)
            return clip.layers(images)

    make(sd15, Spy(), mask_reference=True)(batch, seeded())  # type: ignore[arg-type]
    assert float(seen[0][..., :8].abs().max()) == 0
    assert torch.equal(seen[0][..., 8:], batch["pixel_values"][..., 8:])


@pytest.mark.parametrize("key", ["mask_loss", "mask_reference"])
def test_masks_asked_for_but_missing(sd15: Backbone, clip: ClipFeatures, batch: Batch, key: str) -> None:
    bare = copy.copy(batch)
    del bare["masks"]
    with pytest.raises(DataError, match=f"{key}: true, but the samples have no mask"):
        make(sd15, clip, **{key: True})(bare, seeded())


def test_a_template_without_the_placeholder(sd15: Backbone, clip: ClipFeatures) -> None:
    with pytest.raises(ConfigError, match="does not say where the concept goes"):
        make(sd15, clip, templates=("a photo of a person",))


def test_offsets_have_their_own_learning_rate(sd15: Backbone, clip: ClipFeatures) -> None:
    groups = make(sd15, clip, offsets=WeightOffsetsSpec(lr_scale=0.25)).parameter_groups()
    assert [group["lr_scale"] for group in groups] == [1.0, 0.25]


def test_stratified_timesteps_take_one_of_each_slice() -> None:
    for seed in range(20):
        timesteps = stratified_timesteps(16, 1000, seeded(seed))
        assert sorted((timesteps * 16 // 1000).tolist()) == pytest.approx(list(range(16)), abs=1)
        assert timesteps.min() < 63 and timesteps.max() >= 937
    many = torch.cat([stratified_timesteps(16, 1000, seeded(seed)) for seed in range(500)]).double()
    assert abs(float(many.mean()) - 499.5) < 5
