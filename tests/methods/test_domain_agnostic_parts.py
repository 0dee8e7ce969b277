"""The dual path of Eq. 5, the hypernetwork of Eq. 2 and what pretraining trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from imprint.backbone import Backbone, TextConditioning
from imprint.backbone.attention import attention_projections
from imprint.config.methods import DomainAgnosticSpec, DomainAgnosticTuneSpec, HyperNetworkSpec, SampleSpec
from imprint.errors import ConfigError, DataError
from imprint.features.clip import ClipFeatures
from imprint.methods.base import Pictures
from imprint.methods.batched_low_rank import BatchedLowRank, as_low_rank
from imprint.methods.domain_agnostic import DomainAgnosticObjective, DomainAgnosticParts, preview, sample, tune
from imprint.methods.domain_agnostic.dual_path import DualPath
from imprint.methods.domain_agnostic.encoder import HyperNetwork
from imprint.methods.domain_agnostic.tune import predict
from imprint.methods.shells import shell
from imprint.objective import Batch

SD15: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
PROMPTS = ["a photo of a cat", "a face on blue", "a person"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_factors(backbone: Backbone, rows: int = 3, scale: float = 0.2) -> dict[str, BatchedLowRank]:
    generator = seeded(9)
    return {
        p.name: BatchedLowRank(
            torch.randn(rows, 2, p.shape[1], generator=generator) * scale,
            torch.randn(rows, p.shape[0], 2, generator=generator) * scale,
        )
        for p in backbone.attention_projections()
        if p.role != "out"
    }


def call(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor, TextConditioning, TextConditioning]:
    latents = torch.randn(3, *backbone.latent_shape, generator=seeded(1))
    with torch.no_grad():
        soft, hard = backbone.encode_text(PROMPTS), backbone.encode_text(PROMPTS[::-1])
    return latents, torch.tensor([10, 500, 990]), soft, hard


def modulated(backbone: Backbone, factors: dict[str, BatchedLowRank], row: int) -> dict[str, torch.Tensor]:
    own = dict(backbone.unet.named_parameters())
    return {name: own[name] + (pair.up[row] @ pair.down[row]) for name, pair in factors.items()}


@torch.no_grad()
def test_dual_path_at_alpha_1_is_the_modulated_model(backbone: Backbone) -> None:
    """Each row against the UNet with its own W + A B, formed as weights."""
    latents, timesteps, soft, hard = call(backbone)
    factors = random_factors(backbone)
    got = DualPath(backbone, 1.0).denoise(latents, timesteps, soft, hard, factors)
    for row in range(3):
        one = slice(row, row + 1)
        weights = modulated(backbone, factors, row)
        expected = backbone.denoise(latents[one], timesteps[one], soft[one], weights)
        torch.testing.assert_close(got[one], expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(got, backbone.denoise(latents, timesteps, soft), atol=1e-2)


@torch.no_grad()
def test_dual_path_at_alpha_0_is_the_base_model_with_the_hard_prompt(backbone: Backbone) -> None:
    latents, timesteps, soft, hard = call(backbone)
    got = DualPath(backbone, 0.0).denoise(latents, timesteps, soft, hard, random_factors(backbone))
    torch.testing.assert_close(got, backbone.denoise(latents, timesteps, hard), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eq_5_block_by_block(backbone: Backbone) -> None:
    """Against copies of every block, run one after the other: alpha B(f, C, W_delta) + (1 - alpha) B(f, C_h, 0)."""
    alpha, row = 0.3, slice(1, 2)
    latents, timesteps, soft, hard = call(backbone)
    factors = random_factors(backbone)
    reference = shell(backbone)
    changed = copy.deepcopy(backbone.unet)
    changed.load_state_dict(dict(changed.state_dict()) | modulated(backbone, factors, 1))
    blocks = dict(changed.named_modules())

    def blend(own: Any, other: Any) -> Any:
        def forward(features: torch.Tensor, encoder_hidden_states: Any, **more: Any) -> tuple[torch.Tensor]:
            personal = other(features, encoder_hidden_states=soft[row].hidden, **more)[0]
            plain = own(features, encoder_hidden_states=hard[row].hidden, **more)[0]
            return (alpha * personal + (1 - alpha) * plain,)

        return forward

    replaced = 0
    for name, module in reference.unet.named_modules():
        if isinstance(module, Transformer2DModel):
            module.forward = blend(module.forward, blocks[name].forward)
            replaced += 1
    assert replaced >= 3
    pooled = None
    if soft.pooled is not None and hard.pooled is not None:
        pooled = alpha * soft[row].pooled + (1 - alpha) * hard[row].pooled
    text = TextConditioning(soft[row].hidden, pooled)
    expected = reference.denoise(latents[row], timesteps[row], text)
    got = DualPath(backbone, alpha).denoise(latents, timesteps, soft, hard, factors)[row]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_both_paths_are_one_call_of_the_unet(sd15: Backbone) -> None:
    path, calls, rows = DualPath(sd15, 0.25), [], set()
    path.backbone.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    for module in path.backbone.unet.modules():
        if isinstance(module, Transformer2DModel):
            module.transformer_blocks[0].register_forward_pre_hook(lambda _, args: rows.add(len(args[0])))
    path.denoise(*call(sd15), random_factors(sd15))
    assert calls == [1] and rows == {6}


@torch.no_grad()
def test_the_dual_path_leaves_the_backbone_without_hooks(sd15: Backbone) -> None:
    latents, timesteps, soft, hard = call(sd15)
    before = sd15.denoise(latents, timesteps, soft)
    DualPath(sd15, 0.5).denoise(latents, timesteps, soft, hard, random_factors(sd15))
    assert torch.equal(sd15.denoise(latents, timesteps, soft), before)


def objective(backbone: Backbone, clip: ClipFeatures, **spec: Any) -> DomainAgnosticObjective:
    torch.manual_seed(0)
    return DomainAgnosticObjective(backbone, DomainAgnosticSpec(**spec), clip)


def test_hypernetwork_is_zero_at_step_0(backbone: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    """dW is exactly zero, the output that of the base model bit for bit, and the first gradient reaches B alone."""
    model = objective(backbone, clip)
    parts: DomainAgnosticParts = model.parts
    with torch.no_grad():
        factors = parts.heads(torch.randn(3, parts.encoder.width, generator=seeded())).factors
    assert len(factors) == sum(p.role != "out" for p in backbone.attention_projections())
    assert all(float((pair.up @ pair.down).abs().max()) == 0 for pair in factors.values())
    assert all(float(pair.down.abs().max()) > 0 for pair in factors.values())
    latents, timesteps, soft, hard = call(backbone)
    for alpha in (None, 0.25):
        path = DualPath(backbone, alpha)
        with_, without = (path.denoise(latents, timesteps, soft, hard, own) for own in (factors, {}))
        assert torch.equal(with_, without)
    model(batch, seeded()).loss.backward()
    own = model.hypernetwork
    assert own is not None
    assert all(float(layer.weight.grad.abs().max()) > 0 for layer in own.to_up)
    assert all(float(layer.weight.grad.abs().max()) == 0 for layer in own.to_down)


def test_eq_2_with_the_constant_scale(sd15: Backbone) -> None:
    """A and B of each row as two linear layers give them, with alpha / rank once."""
    torch.manual_seed(0)
    network = HyperNetwork(sd15.attention_projections(), HyperNetworkSpec(rank=2, alpha=6, width=5), 7)
    for layer in network.to_up:
        torch.nn.init.normal_(layer.weight)
    features = torch.randn(3, 7, generator=seeded())
    factors = network(features)
    for index, projection in enumerate(network.projections):
        narrow = torch.nn.functional.leaky_relu(network.narrow[index](features), 0.01)
        a = network.to_down[index](narrow).view(3, 2, projection.shape[1])
        b = network.to_up[index](narrow).view(3, projection.shape[0], 2)
        expected = 3 * torch.einsum("bor,bri->boi", b, a)
        pair = factors[projection.name]
        torch.testing.assert_close(pair.up @ pair.down, expected)


def test_the_papers_96_matrices_and_a_concept_below_10_mb_on_sd15() -> None:
    """Section 4.1: 96 matrices of 715,946 parameters on average. The concept's size from the real architecture."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        network = HyperNetwork(attention_projections(unet), HyperNetworkSpec(), 1024)
        shapes = [projection.shape for projection in network.projections]
        factors = network(torch.empty(1, 1024))
        tensors = as_low_rank(factors, torch.bfloat16)
    assert len(shapes) == 96
    assert sum(rows * columns for rows, columns in shapes) // 96 == 715_946
    size = sum(half.numel() * half.element_size() for pair in tensors.values() for half in pair) + 768 * 2
    assert size == 2 * (4 * sum(rows + columns for rows, columns in shapes) + 768)
    assert size < 1.3e6


def test_only_encoder_and_hypernetwork_train(backbone: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    model = objective(backbone, clip)
    before = backbone.fingerprint()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        model(batch, seeded(step)).loss.backward()
        optimizer.step()
    moving = [name for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0]
    assert sorted(moving) == sorted(name for name, _ in model.named_parameters())
    assert {name.partition(".")[0] for name in moving} == {"encoder", "hypernetwork"}
    assert backbone.fingerprint() == before
    assert all(not p.requires_grad for module in backbone.modules() for p in module.parameters())


def test_learning_rates_differ_by_ten(sd15: Backbone, clip: ClipFeatures) -> None:
    assert [group["lr_scale"] for group in objective(sd15, clip).parameter_groups()] == [1.0, 0.1]


def test_the_loss_is_the_sum_of_its_terms(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    model = objective(
        sd15, clip, regularization=0.5, contrastive={"weight": 0.25}, hypernetwork={"regularization": 2.0}
    )
    with torch.no_grad():
        for layer in model.hypernetwork.to_up:  # type: ignore[union-attr]
            layer.bias.normal_(std=0.1)
    output = model(batch, seeded())
    terms = {name.removeprefix("loss_"): value for name, value in output.metrics.items()}
    assert set(terms) == {"diffusion", "norm", "contrastive", "offsets"} and all(v > 0 for v in terms.values())
    expected = terms["diffusion"] + 0.5 * terms["norm"] + 0.25 * terms["contrastive"] + 2 * terms["offsets"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_words_are_pulled_to_each_pictures_class_noun(sd15: Backbone, clip: ClipFeatures, batch: Batch) -> None:
    """Steps on that term alone bring every word to its own noun; a noun of two tokens is their mean."""
    model = objective(
        sd15, clip, noun_pull=1.0, contrastive={"enabled": False}, hypernetwork={"enabled": False}, regularization=0.0
    )
    with pytest.raises(DataError, match="no class_noun in their json"):
        model(batch, seeded())
    nouns = ["cat", "person", "blue cat", "face"]
    wanted = torch.stack([sd15.word_embedding(noun)[0].mean(0) for noun in nouns])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        output = model({**batch, "class_nouns": nouns}, seeded())
        output.loss.backward()
        optimizer.step()
    assert float(output.metrics["loss_noun"]) < 0.2 * float(wanted.var(0).sum())


@pytest.mark.parametrize(
    ("switch", "missing"),
    [
        ({"contrastive": {"enabled": False}}, "contrastive"),
        ({"hypernetwork": {"enabled": False}}, "offsets"),
        ({"dual_path": {"enabled": False}}, None),
        ({"encoder": {"refinement": False}}, None),
    ],
)
def test_ablations_are_switches(
    sd15: Backbone, clip: ClipFeatures, batch: Batch, switch: dict[str, Any], missing: str | None
) -> None:
    full, without = objective(sd15, clip), objective(sd15, clip, **switch)
    with torch.no_grad():  # past step 0, where the hypernetwork changes nothing
        for layer in full.hypernetwork.to_up:  # type: ignore[union-attr]
            layer.bias.fill_(0.1)
    first, second = full(batch, seeded()), without(batch, seeded())
    assert not torch.equal(first.loss, second.loss)
    gone = {name.removeprefix("loss_") for name in first.metrics} - {n.removeprefix("loss_") for n in second.metrics}
    assert gone == ({missing} if missing else set())
    second.loss.backward()
    assert all(p.grad is not None for p in without.parameters())


def test_the_prediction_does_not_depend_on_neighbours(sd15: Backbone, clip: ClipFeatures) -> None:
    parts = objective(sd15, clip).parts
    images = torch.rand(3, 3, 16, 16, generator=seeded(4)) * 2 - 1
    together = parts.one_pass(images, seeded())
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], parts.one_pass(images[row : row + 1], seeded()))


def tuning(**more: Any) -> DomainAgnosticTuneSpec:
    return DomainAgnosticTuneSpec(**({"steps": 2, "batch_size": 2, "storage": "fp32"} | more))


def pictures() -> Pictures:
    return Pictures(torch.rand(1, 3, 16, 16, generator=seeded(5)) * 2 - 1)


def trained_parts(backbone: Backbone, clip: ClipFeatures, **spec: Any) -> DomainAgnosticParts:
    parts: DomainAgnosticParts = objective(backbone, clip, **spec).parts
    if parts.hypernetwork is not None:
        with torch.no_grad():
            for layer in parts.hypernetwork.to_up:
                layer.bias.normal_(std=0.3)
    for network in parts.networks().values():
        network.requires_grad_(False)
    return parts


def test_zero_steps_keep_the_prediction(sd15: Backbone, clip: ClipFeatures) -> None:
    """The paper's ablation without tuning: a concept draws what the encoder alone does."""
    parts = trained_parts(sd15, clip)
    learned = tune(parts, pictures(), tuning(steps=0))
    prompts, sampling = ["a photo of <concept>", "<concept> on blue"], SampleSpec(steps=2)
    drawn = sample(sd15, learned, prompts, sampling)
    expected = preview(parts, pictures().images.repeat(2, 1, 1, 1), prompts, sampling)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_tuning_is_pulled_to_the_prediction(sd15: Backbone, clip: ClipFeatures) -> None:
    """A strong pull leaves the concept nearer to what the encoder said."""
    parts = trained_parts(sd15, clip)
    start = tune(parts, pictures(), tuning(steps=0)).tensors

    def distance(**pull: float) -> float:
        tuned = tune(parts, pictures(), tuning(steps=8, **pull)).tensors
        return sum(float((tuned[name] - value).square().sum()) for name, value in start.items())

    free, pulled = distance(word_pull=0, factor_pull=0), distance(word_pull=1e4, factor_pull=1e4)
    assert 0 < pulled < 0.7 * free


def test_at_most_twelve_steps() -> None:
    with pytest.raises(ValueError, match="less than or equal to 12"):
        DomainAgnosticTuneSpec(steps=13)


def test_without_hypernetwork_tuning_starts_from_the_base_model(sd15: Backbone, clip: ClipFeatures) -> None:
    parts = trained_parts(sd15, clip, hypernetwork={"enabled": False})
    first = predict(parts, pictures().images, pictures().images, 0)
    assert all(float(pair.up.abs().max()) == 0 < float(pair.down.abs().max()) for pair in first.factors.values())
    learned = tune(parts, pictures(), tuning())
    assert any(name.endswith(".up") and float(value.abs().max()) > 0 for name, value in learned.tensors.items())


def test_without_a_class_noun_the_concept_is_called_by_its_hard_token(sd15: Backbone, clip: ClipFeatures) -> None:
    learned = tune(trained_parts(sd15, clip), pictures(), tuning(steps=0))
    tokenizer = sd15.tokenizers[0]
    assert learned.class_noun == tokenizer.decode(learned.settings["tokens"][0]).strip() != ""


def test_a_template_without_the_placeholder(sd15: Backbone, clip: ClipFeatures) -> None:
    with pytest.raises(ConfigError, match="does not say where the concept goes"):
        objective(sd15, clip, templates=("a photo of a person",))
