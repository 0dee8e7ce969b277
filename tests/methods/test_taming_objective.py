"""Equations 1 and 4 and sections 3.3 and 3.4 of the Taming Encoder, and what trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning
from imprint.config.methods import DroppingSpec, TamingSpec
from imprint.errors import DataError
from imprint.features.clip import ClipFeatures
from imprint.methods.diffusion_loss import stratified_timesteps
from imprint.methods.taming import TamingObjective, TripletBatch
from imprint.methods.taming.objective import dropped, joined_caption
from imprint.objective import Batch

NOTHING_DROPPED = {"object": 0.0, "text": 0.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(backbone: Backbone, clip: ClipFeatures, **spec: Any) -> TamingObjective:
    torch.manual_seed(0)
    return TamingObjective(backbone, TamingSpec(**spec), clip)


def move(objective: TamingObjective) -> None:
    with torch.no_grad():
        for parameter in objective.attentions.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(7))


def test_equation_1_from_its_pieces(backbone: Backbone, clip: ClipFeatures, triplets: TripletBatch) -> None:
    """x_t, object, caption, UNet call and target written out, with the draws in the order they are made."""
    objective = make(backbone, clip, dropping=NOTHING_DROPPED)
    move(objective)
    output = objective(triplets, seeded())
    generator = seeded()
    x0 = backbone.encode_images(triplets["pixel_values"], generator)
    eps = torch.randn(x0.shape, generator=generator)
    timesteps = stratified_timesteps(4, 1000, generator)
    abar = backbone.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1).float()
    xt = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    objects = objective.parts.embed(triplets["object_values"], triplets["object_masks"])
    objects[1] = objects[3] = 0  # Eq. 4
    text = backbone.encode_text(["a photo of a person, smiling, on a blue background"] * 4)
    conditioning = TextConditioning(text.hidden, text.pooled, objects)
    prediction = objective.parts.backbone.denoise(xt, timesteps, conditioning)
    target = abar.sqrt() * eps - (1 - abar).sqrt() * x0 if backbone.prediction_type == "v_prediction" else eps
    errors = (prediction - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(output.loss, errors.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.metrics["loss_domain"], errors[[0, 2]].mean().detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.metrics["loss_general"], errors[[1, 3]].mean().detach(), rtol=1e-4, atol=1e-6)


def test_the_first_loss_is_that_of_the_base_model(
    backbone: Backbone, clip: ClipFeatures, triplets: TripletBatch
) -> None:
    """Bit for bit, whatever the objects and whatever is dropped of them."""
    first = make(backbone, clip)(triplets, seeded())
    others: TripletBatch = {**triplets, "object_values": -triplets["object_values"]}
    assert torch.equal(make(backbone, clip)(others, seeded()).loss, first.loss)
    plain = make(backbone, clip, dropping={"general": True, "object": 1.0})
    assert torch.equal(plain(triplets, seeded()).loss, first.loss)


@pytest.mark.parametrize("whole", [True, False])
def test_whole_network_tuning_and_its_ablation(
    backbone: Backbone, clip: ClipFeatures, triplets: TripletBatch, whole: bool
) -> None:
    """Two steps: every UNet weight and every new attention gets gradients, or the attentions alone; nothing else."""
    objective = make(backbone, clip, whole_network=whole, attention_lr_scale=2.0, dropping=NOTHING_DROPPED)
    frozen = {name: p.clone() for name, p in backbone.unet.named_parameters()}
    groups = objective.parameter_groups()
    assert [group["lr_scale"] for group in groups] == ([2.0, 1.0] if whole else [2.0])
    assert sum(len(group["params"]) for group in groups) == len(list(objective.parameters()))
    optimizer = torch.optim.AdamW([{"params": group["params"]} for group in groups], lr=1e-2, weight_decay=0.0)
    for step in range(2):
        optimizer.zero_grad()
        objective(triplets, seeded(step)).loss.backward()
        optimizer.step()
    without = [name for name, p in objective.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []
    assert {name.partition(".")[0] for name, _ in objective.named_parameters()} == (
        {"attentions", "unet"} if whole else {"attentions"}
    )
    others = [*backbone.vae.parameters(), *clip.model.parameters()]
    others += [p for encoder in backbone.text_encoders for p in encoder.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in others)
    moved = [name for name, p in backbone.unet.named_parameters() if not torch.equal(p, frozen[name])]
    assert moved == (list(frozen) if whole else [])


def test_equation_4_general_pictures_have_the_null_embedding(
    sd15: Backbone, clip: ClipFeatures, triplets: TripletBatch
) -> None:
    """The loss of general pictures does not depend on what their objects show; off, the ablation, it does."""
    other: TripletBatch = {**triplets, "object_values": triplets["object_values"].clone()}
    other["object_values"][1::2] *= -1
    for general, alike in ((True, True), (False, False)):
        objective = make(sd15, clip, dropping={**NOTHING_DROPPED, "general": general})
        move(objective)
        one, two = (objective(batch, seeded()).metrics for batch in (triplets, other))
        assert torch.equal(one["loss_general"], two["loss_general"]) == alike
        assert torch.equal(one["loss_domain"], two["loss_domain"])


def test_equation_4_and_dropping_for_guidance_at_their_shares() -> None:
    count = 4000
    objects, captions = torch.ones(count, 2, 3), ["a cat"] * count
    is_domain = torch.arange(count) % 4 != 0
    kept, texts = dropped(objects, captions, is_domain, DroppingSpec(object=0.2, text=0.3), seeded())
    null = (kept == 0).all(dim=(1, 2))
    assert torch.equal(kept[~null], objects[~null])
    assert bool(null[~is_domain].all())
    assert float(null[is_domain].float().mean()) == pytest.approx(0.2, abs=0.03)
    empty = torch.tensor([text == "" for text in texts])
    assert float(empty.float().mean()) == pytest.approx(0.3, abs=0.03)
    both = (null & empty)[is_domain].float().mean()
    assert float(both) == pytest.approx(0.06, abs=0.02), "independent draws train all branches of guidance"
    kept, _ = dropped(objects, captions, is_domain, DroppingSpec(object=0, general=False), seeded())
    assert torch.equal(kept, objects)


def test_section_3_3_captions_are_coarse_and_fine() -> None:
    coarse = "a photo of a laughing man on a blue background"
    assert joined_caption(coarse, "laughing, with glasses, on a blue background") == f"{coarse}, with glasses"
    assert joined_caption(coarse, "") == coarse
    assert joined_caption("", "laughing, with a hat") == "laughing, with a hat"


def test_fine_captions_are_a_switch(sd15: Backbone, clip: ClipFeatures, triplets: TripletBatch) -> None:
    seen: list[list[str]] = []
    encode = Backbone.encode_text

    class Spied(Backbone):
        def encode_text(self, prompts: Any, replacements: Any = None) -> TextConditioning:
            seen.append(list(prompts))
            return encode(self, prompts, replacements)

    spied = Spied(**vars(sd15))
    for fine in (True, False):
        make(spied, clip, fine_captions=fine, dropping=NOTHING_DROPPED)(triplets, seeded())
    assert seen[0] == ["a photo of a person, smiling, on a blue background"] * 4
    assert seen[1] == ["a photo of a person"] * 4


def test_a_batch_of_one_kind_reports_the_same_metrics(
    sd15: Backbone, clip: ClipFeatures, triplets: TripletBatch
) -> None:
    objective = make(sd15, clip)
    both = objective(triplets, seeded())
    alone = objective({**triplets, "is_domain": torch.ones(4, dtype=torch.bool)}, seeded())
    assert alone.metrics.keys() == both.metrics.keys()
    assert float(alone.metrics["loss_general"]) == 0
    torch.testing.assert_close(alone.metrics["loss_domain"], alone.loss.detach())


def test_the_generator_alone_decides(sd15: Backbone, clip: ClipFeatures, triplets: TripletBatch) -> None:
    objective = make(sd15, clip)
    assert torch.equal(objective(triplets, seeded(3)).loss, objective(triplets, seeded(3)).loss)
    assert not torch.equal(objective(triplets, seeded(3)).loss, objective(triplets, seeded(4)).loss)


def test_pictures_without_objects_are_refused(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    with pytest.raises(DataError, match="the batch has no objects"):
        make(sd15, clip)(batch, seeded())


def test_pooled_embeddings_train_too(sd15: Backbone, clip: ClipFeatures, triplets: TripletBatch) -> None:
    objective = make(sd15, clip, object_encoder={"tokens": "pooled"}, dropping=NOTHING_DROPPED)
    move(objective)
    objective(triplets, seeded()).loss.backward()
    gradients: dict[str, Tensor] = {name: p.grad for name, p in objective.attentions.named_parameters()}
    assert all(bool(g.abs().sum() > 0) for name, g in gradients.items() if name.endswith(("to_v.weight", "0.weight")))


def test_timesteps_of_a_logit_normal_density_change_the_loss(
    sd15: Backbone, clip: ClipFeatures, triplets: TripletBatch
) -> None:
    """With all its weight at the noisiest end, every timestep is there, and the loss is of those."""
    seen: list[Tensor] = []
    denoise = Backbone.denoise

    class Spied(Backbone):
        def denoise(self, latents: Tensor, timesteps: Tensor, *more: Any) -> Tensor:
            seen.append(timesteps)
            return denoise(self, latents, timesteps, *more)

    spied = Spied(**vars(sd15))
    for logits in ((20.0, 0.01), (-20.0, 0.01), None):
        make(spied, clip, timestep_logits=logits)(triplets, seeded())
    assert seen[0].tolist() == [999] * 4 and seen[1].tolist() == [0] * 4
    assert len(set((seen[2] // 250).tolist())) == 4
