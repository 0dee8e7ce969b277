"""Each metric against an answer that is known without it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from imprint.errors import BackboneError, DataError
from imprint.evaluation.metrics import (
    background_correlation,
    copy_threshold,
    detect_copies,
    diversity,
    image_similarity,
    kernel_distance,
    text_similarity,
)
from imprint.evaluation.perceptual import Lpips


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_clip_i_dino_and_pres_are_mean_cosines_of_all_pairs() -> None:
    generated = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    real = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert image_similarity(generated, real).tolist() == pytest.approx([(1 + 0.6) / 2, (0 + 0.8) / 2])


def test_clip_t_is_the_cosine_with_its_own_text() -> None:
    images, texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.0, 5.0]])
    assert text_similarity(images, texts).tolist() == pytest.approx([0.6, 0.0])


def test_kid_by_hand() -> None:
    """k(x, y) = (x y / d + 1)^3 with d = 1: k(0, 0) = 1, k(1, 1) = 8, k(0, 1) = 1, so 1 + 8 - 2."""
    assert kernel_distance(torch.zeros(2, 1), torch.ones(2, 1)) == pytest.approx((7.0, 0.0))


def test_kid_is_the_unbiased_estimate() -> None:
    real, generated = random(9, 5), random(9, 5, seed=1) * 2 + 0.5
    value, deviation = kernel_distance(real, generated)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    x, y = real.double().numpy(), generated.double().numpy()
    pairs = list(itertools.permutations(range(9), 2))
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i, j in pairs) / len(pairs)
    across = sum(kernel(a, b) for a in x for b in y) / 81
    assert value == pytest.approx(within - 2 * across, rel=1e-9) and deviation == 0


def test_kid_of_one_distribution_is_about_nothing_and_of_two_is_not() -> None:
    same = kernel_distance(random(400, 8), random(500, 8, seed=1), subsets=20, subset_size=200)
    other = kernel_distance(random(400, 8), random(500, 8, seed=1) + 1, subsets=20, subset_size=200)
    assert abs(same.mean) < 0.1 < 1 < other.mean and same.deviation > 0
    again = kernel_distance(random(400, 8), random(500, 8, seed=1), subsets=20, subset_size=200)
    assert again == same
    with pytest.raises(DataError, match="expected two of each"):
        kernel_distance(random(1, 8), random(9, 8))


def test_diversity_is_the_mean_over_pairs() -> None:
    """Three pictures at 0, 0.5 and 1: distances 0.5, 1 and 0.5."""
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert diversity(images, lambda one, two: (one - two).abs().mean(dim=(1, 2, 3))) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="expected two or more"):
        diversity(images[:1], lambda one, two: one.sum(dim=(1, 2, 3)))


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained networks of torchvision's classes, in files as users would give them."""
    folder, found = tmp_path_factory.mktemp("trunks"), {}
    for trunk, name in (("alex", "alexnet"), ("squeeze", "squeezenet1_1")):
        torch.manual_seed(0)
        net = getattr(torchvision.models, name)(weights=None)
        found[trunk] = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in net.features.state_dict(prefix="features.").items()},
                  found[trunk])  # fmt: skip
    return found


def test_lpips_is_the_papers_formula(trunks: dict[str, Path]) -> None:
    """Eq. 1 of arXiv:1801.03924 on AlexNet's five layers, written out with torchvision's own network."""
    distance = Lpips("alex", trunks["alex"])
    one, two = pictures(2), pictures(2, seed=1)
    torch.manual_seed(0)
    net = torchvision.models.alexnet(weights=None).features.eval()
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    a, b, expected = (one - shift) / scale, (two - shift) / scale, torch.zeros(2)
    weights = [layer.model[-1].weight for layer in distance._net.lins]
    with torch.no_grad():
        for number, layer in enumerate(net):
            a, b = layer(a), layer(b)
            if number in (1, 4, 7, 9, 11):
                unit = [x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt() for x in (a, b)]
                difference = (unit[0] - unit[1]).square() * weights[(1, 4, 7, 9, 11).index(number)][0]
                expected += difference.sum(1).mean(dim=(1, 2))
    assert float(expected.min()) > 0 and all(float(w.min()) >= 0 for w in weights)
    torch.testing.assert_close(distance(one, two), expected, rtol=1e-4, atol=1e-6)


def test_lpips_of_equal_and_of_small_pictures(trunks: dict[str, Path]) -> None:
    distance = Lpips("squeeze", trunks["squeeze"])
    images = pictures(3, size=32)
    assert distance(images, images).tolist() == [0, 0, 0]
    assert diversity(images, distance) > 0
    with pytest.raises(BackboneError, match="it is not a alexnet"):
        Lpips("alex", trunks["squeeze"])


def test_a_copy_is_found_by_the_whole_picture() -> None:
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    generated = torch.tensor([[0.0, 2.0], [0.6, 0.8], [-1.0, 0.0]])
    found = detect_copies(generated, inputs, threshold=0.9)
    assert found.similarity.tolist() == pytest.approx([1.0, 0.8, 0.0])
    assert found.copied.tolist() == [True, False, False] and bool(found.background.isnan().all())


def test_the_threshold_is_a_share_of_real_pairs() -> None:
    angles = torch.linspace(0, 1, 101)
    one = torch.tensor([[1.0, 0.0]]).expand(101, 2)
    two = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert copy_threshold(one, two, quantile=0.9) == pytest.approx(float(torch.tensor(0.1).cos()), abs=1e-3)


def test_a_copied_background_is_found_behind_another_subject() -> None:
    scene, subject = pictures(1, 32), torch.zeros(1, 1, 32, 32)
    subject[..., 8:24, 8:24] = 1
    repainted = torch.where(subject > 0, pictures(1, 32, seed=3), scene)
    elsewhere, plain = pictures(1, 32, seed=4), torch.full((1, 3, 32, 32), 0.5)
    generated = torch.cat([repainted, elsewhere, plain])
    masks = subject.expand(3, 1, 32, 32)
    found = background_correlation(generated, masks, scene, subject)
    assert float(found[0, 0]) == pytest.approx(1, abs=1e-5)
    assert abs(float(found[1, 0])) < 0.1 and bool(found[2, 0].isnan())
    outside = subject[0, 0].numpy() < 0.5
    one, two = (x[0].numpy()[:, outside].ravel() for x in (elsewhere, scene))
    assert float(found[1, 0]) == pytest.approx(float(np.corrcoef(one, two)[0, 1]), abs=1e-5)
    features = torch.eye(3)
    copies = detect_copies(features, -torch.ones(1, 3), threshold=0.9, backgrounds=found)
    assert copies.copied.tolist() == [True, False, False]
    everything = background_correlation(generated, torch.ones_like(masks), scene, subject)
    assert bool(everything.isnan().all())
