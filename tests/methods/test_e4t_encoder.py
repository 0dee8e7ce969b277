"""Eqs. 1 and 2 of E4T, and the encoder's layers, against computations written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imprint.config.methods import E4TEncoderSpec
from imprint.methods.e4t.encoder import E4TEncoder, concept_embedding, embedding_regularization


def make(**spec: object) -> E4TEncoder:
    torch.manual_seed(0)
    return E4TEncoder(
        E4TEncoderSpec(**spec),
        clip_layers=2,
        clip_width=6,
        tap_widths=[3, 5],
        embedding_widths=[8, 4],  # type: ignore[arg-type]
    )


def inputs(batch: int = 3) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    clip = [torch.randn(batch, 6, generator=generator) * 10 for _ in range(2)]
    return clip, [torch.randn(batch, width, generator=generator) for width in (3, 5)]


def test_equation_1() -> None:
    """e_c = e_domain + s E(I), by hand; a word of two tokens moves as a whole."""
    domain = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    offset = torch.tensor([[10.0, 20.0], [-10.0, 0.0]])
    expected = torch.tensor([[[2.0, 4.0], [4.0, 6.0]], [[0.0, 2.0], [2.0, 4.0]]])
    torch.testing.assert_close(concept_embedding(domain, offset, 0.1), expected)


def test_equation_2_is_of_the_offset_and_a_mean_over_the_batch() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 8)), rng.normal(size=(5, 4))
    expected = np.mean([np.linalg.norm(a) ** 2 + np.linalg.norm(b) ** 2 for a, b in zip(first, second, strict=True)])
    got = embedding_regularization([torch.tensor(first), torch.tensor(second)])
    np.testing.assert_allclose(float(got), expected, rtol=1e-6)


def test_regularization_does_not_grow_with_the_batch() -> None:
    one = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    single, many = embedding_regularization([one]), embedding_regularization([one.expand(16, -1)])
    torch.testing.assert_close(single, many)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_encoder_is_the_papers_in_numpy(normalize: bool) -> None:
    """Linear layers, mean over the hierarchy, LeakyReLU, a last linear layer for each text encoder."""
    encoder = make(normalize_features=normalize)
    clip, taps = inputs()

    def prepared(feature: torch.Tensor) -> np.ndarray:
        x = feature.double().numpy()
        if normalize:
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x

    def linear(layer: torch.nn.Module, x: np.ndarray) -> np.ndarray:
        return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()

    layers = [*encoder.clip_projections, *encoder.tap_projections]
    hidden = np.mean([linear(layer, prepared(f)) for layer, f in zip(layers, clip + taps, strict=True)], axis=0)
    hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
    for head, got in zip(encoder.heads, encoder(clip, taps), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), linear(head, hidden), rtol=1e-4, atol=1e-6)


def test_it_starts_small_but_every_layer_gets_a_gradient() -> None:
    encoder = make()
    clip, taps = inputs()
    offsets = encoder(clip, taps)
    assert all(0 < offset.detach().abs().max() < 0.5 for offset in offsets)
    sum(offset.sum() for offset in offsets).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in encoder.parameters())


def test_without_refinement_there_are_no_tap_layers() -> None:
    encoder = make(refinement=False)
    clip, taps = inputs()
    assert len(encoder.tap_projections) == 0
    torch.testing.assert_close(encoder(clip, None), encoder(clip, taps))


def test_width_of_the_hidden_layer_by_key() -> None:
    assert make(hidden_width=32).heads[0].in_features == 32
    assert make().heads[0].in_features == 8
