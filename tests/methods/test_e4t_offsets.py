"""Eq. 3 of E4T and the network behind it."""

from __future__ import annotations

import numpy as np
import torch

from imprint.backbone import Backbone
from imprint.config.methods import WeightOffsetsSpec
from imprint.methods.e4t.offsets import ShapeOffsets, WeightOffsets


def base_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return dict(backbone.unet.named_parameters())


def perturbed(offsets: WeightOffsets) -> WeightOffsets:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in offsets.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return offsets


def test_the_network_is_the_papers_in_numpy() -> None:
    """v_0 to v_y and v_x, outer product, a linear layer over each row, then over each column."""
    torch.manual_seed(0)
    stack = ShapeOffsets(count=2, rows=3, columns=5, vector_width=4)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_()
    got = stack().detach().numpy()
    p = {name: value.detach().double().numpy() for name, value in stack.named_parameters()}
    for k in range(2):
        v_y = p["to_y"][k] @ p["v0"][k] + p["to_y_bias"][k]
        v_x = p["to_x"][k] @ p["v0"][k] + p["to_x_bias"][k]
        rows = np.stack([p["row_weight"][k] @ row + p["row_bias"][k] for row in np.outer(v_y, v_x)])
        expected = np.stack([p["column_weight"][k] @ column + p["column_bias"][k] for column in rows.T]).T
        np.testing.assert_allclose(got[k], expected, rtol=1e-4, atol=1e-5)


def test_exactly_zero_at_step_0_so_that_denoising_is_unchanged_bit_for_bit(backbone: Backbone) -> None:
    offsets = WeightOffsets.of(backbone, WeightOffsetsSpec())
    base = base_of(backbone)
    weights = offsets(base)
    assert all(torch.equal(weights[name], base[name]) for name in weights)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps, text = torch.tensor([900, 100]), backbone.encode_text(["a cat", "a face"])
    with torch.no_grad():
        plain = backbone.denoise(latents, timesteps, text)
        offset = backbone.denoise(latents, timesteps, text, weights)
    assert torch.equal(plain, offset)


def test_q_k_and_v_of_every_attention_and_nothing_else(backbone: Backbone) -> None:
    names = WeightOffsets.of(backbone, WeightOffsetsSpec()).names
    expected = [
        name
        for name, _ in backbone.unet.named_parameters()
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight")) and (".attn1." in name or ".attn2." in name)
    ]
    assert sorted(names) == sorted(expected) and expected


def test_equation_3(sd15: Backbone) -> None:
    """W' = W_0 (1 + dW), elementwise, by name."""
    offsets = perturbed(WeightOffsets.of(sd15, WeightOffsetsSpec(vector_width=4)))
    base = base_of(sd15)
    weights = offsets(base)
    for shape, names in offsets.names_by_shape.items():
        deltas = offsets.shapes[shape]().detach().numpy()
        for name, delta in zip(names, deltas, strict=True):
            expected = base[name].numpy() * (1 + delta)
            np.testing.assert_allclose(weights[name].detach().numpy(), expected, rtol=1e-6)
            assert np.abs(delta).max() > 1e-3


def test_the_first_step_moves_them(sd15: Backbone) -> None:
    """Zero at the start must not be a dead start."""
    offsets = WeightOffsets.of(sd15, WeightOffsetsSpec())
    optimizer = torch.optim.SGD(offsets.parameters(), lr=0.1)
    target = {name: 1.1 * value for name, value in base_of(sd15).items() if name in offsets.names}
    losses = []
    for _ in range(3):
        weights = offsets(base_of(sd15))
        loss = sum((weights[name] - target[name]).square().sum() for name in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_baked_weights_are_those_of_training_without_a_gradient(sd15: Backbone) -> None:
    offsets = perturbed(WeightOffsets.of(sd15, WeightOffsetsSpec()))
    trained, baked = offsets(base_of(sd15)), offsets.bake(base_of(sd15))
    assert all(torch.equal(trained[name], baked[name]) for name in trained)
    assert not any(value.requires_grad for value in baked.values())


def test_weights_keep_the_precision_of_the_backbone(sd15: Backbone) -> None:
    offsets = WeightOffsets.of(sd15, WeightOffsetsSpec())
    half = {name: value.bfloat16() for name, value in base_of(sd15).items()}
    weights = offsets(half)
    assert all(torch.equal(weights[name], half[name]) for name in weights)
