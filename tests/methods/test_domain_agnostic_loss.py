"""Eqs. 3 and 4 of the domain-agnostic encoder against loops in float64; negatives of other ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from imprint.backbone import Backbone
from imprint.config.methods import ContrastiveSpec
from imprint.methods.batched_low_rank import BatchedLowRank, squared_norm
from imprint.methods.domain_agnostic.loss import contrastive_loss, contrastive_over_ranks, noun_distance, word_norm
from imprint.methods.vocabulary import Vocabulary, WordHead


def draws(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def vocabulary(count: int = 30, width: int = 8, seed: int = 1) -> Vocabulary:
    table = draws(count, width, seed=seed) * torch.linspace(0.2, 3, count)[:, None]  # of very different lengths
    return Vocabulary(torch.arange(count), table, torch.nn.functional.normalize(table, dim=-1))


def equation_3(
    words: list[list[float]], table: list[list[float]], spec: ContrastiveSpec, own: range | None = None
) -> float:
    """L_c of each picture in `own`, one after the other, with the standard library in double precision."""

    def dot(a: list[float], b: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    def unit(a: list[float]) -> list[float]:
        return [x / math.sqrt(dot(a, a)) for x in a]

    losses = []
    for index in own or range(len(words)):
        v = words[index]
        nearest = sorted(table, key=lambda token: -dot(unit(v), unit(token)))[: spec.neighbours]
        maybe = unit if spec.normalize else list
        near = math.fsum(math.exp(dot(maybe(v), maybe(token)) / spec.temperature) for token in nearest)
        others = [other for place, other in enumerate(words) if place != index]
        far = math.fsum(math.exp(dot(maybe(v), maybe(other)) / spec.temperature) for other in others)
        losses.append(-math.log(near / (near + far)))
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("neighbours", [1, 5])
def test_eq_3_against_a_loop_in_float64(normalize: bool, neighbours: int) -> None:
    spec = ContrastiveSpec(neighbours=neighbours, temperature=0.5, normalize=normalize)
    known, words = vocabulary(), draws(6, 8, scale=0.7)
    expected = equation_3(words.double().tolist(), known.embeddings.double().tolist(), spec)
    loss = contrastive_loss(words, words, 0, known, spec)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_eq_3_is_in_fp32_also_where_networks_compute_in_bf16() -> None:
    known, words, spec = vocabulary(), draws(6, 8, scale=0.7), ContrastiveSpec(neighbours=3, temperature=0.5)
    expected = contrastive_loss(words, words, 0, known, spec)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(words, words, 0, known, spec), expected)


def test_eq_3_with_one_picture_has_no_negatives() -> None:
    words = draws(1, 8)
    assert float(contrastive_loss(words, words, 0, vocabulary(), ContrastiveSpec())) == pytest.approx(0, abs=1e-6)


def test_eq_3_stays_finite_for_long_words() -> None:
    words = draws(4, 8, scale=100)
    assert math.isfinite(float(contrastive_loss(words, words, 0, vocabulary(), ContrastiveSpec())))


def test_eq_3_descends_towards_the_neighbours() -> None:
    known, spec = vocabulary(), ContrastiveSpec(neighbours=2, temperature=0.5, normalize=True)
    words = draws(4, 8).requires_grad_()
    optimizer = torch.optim.Adam([words], lr=0.05)

    def closest() -> float:
        unit = torch.nn.functional.normalize(words.detach(), dim=-1)
        return float((unit @ known.unit.T).amax(dim=1).mean())

    before = closest()
    for _ in range(50):
        optimizer.zero_grad()
        contrastive_loss(words, words, 0, known, spec).backward()
        optimizer.step()
    assert closest() > before + 0.1


def test_eq_4_is_the_squared_norm() -> None:
    words = (draws(3, 8), draws(3, 5, seed=2))
    expected = sum(float(value) ** 2 for word in words for value in word.flatten()) / 3
    assert float(word_norm(words)) == pytest.approx(expected, rel=1e-6)


def test_the_pull_to_the_class_noun_is_a_squared_distance() -> None:
    words, nouns = (draws(3, 8), draws(3, 5, seed=2)), (draws(3, 8, seed=3), draws(3, 5, seed=4))
    expected = sum(
        (float(a) - float(b)) ** 2
        for word, noun in zip(words, nouns, strict=True)
        for a, b in zip(word.flatten(), noun.flatten(), strict=True)
    )
    assert float(noun_distance(words, nouns)) == pytest.approx(expected / 3, rel=1e-6)


def test_the_norm_of_the_offsets_is_that_of_the_products() -> None:
    pairs = [BatchedLowRank(draws(3, 2, 7), draws(3, 5, 2, seed=4)), BatchedLowRank(draws(3, 2, 4), draws(3, 4, 2))]
    expected = sum(((pair.up.double() @ pair.down.double()) ** 2).sum() for pair in pairs) / 3
    torch.testing.assert_close(squared_norm(pairs).double(), expected, rtol=1e-5, atol=1e-6)


def test_neighbours_are_ordinary_tokens_by_cosine(any_pipeline: Path) -> None:
    """Against a sort in float64; the begin and end tokens are left out even where they are nearest."""
    backbone = Backbone.load(any_pipeline)
    for encoder, tokenizer, known in zip(
        backbone.text_encoders, backbone.tokenizers, Vocabulary.each_of(backbone), strict=True
    ):
        table = encoder.get_input_embeddings().weight.detach().double()
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        assert special.isdisjoint(known.ids.tolist())
        assert len(known.ids) == len(tokenizer) - len(set(tokenizer.all_special_ids))
        wanted = table[tokenizer.eos_token_id] + 0.01 * table[5]
        cosines = {
            index: float(wanted @ row / (wanted.norm() * row.norm()))
            for index, row in enumerate(table) if index not in special and index < len(tokenizer)
        }  # fmt: skip
        expected = sorted(cosines, key=lambda index: -cosines[index])[:3]
        assert known.ids[known.nearest(wanted[None].float(), 3)[0]].tolist() == expected


def _rank(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    words = draws(6, 8, scale=0.7)[rank * 3 : rank * 3 + 3].requires_grad_()
    loss = contrastive_over_ranks([words], [vocabulary()], ContrastiveSpec(neighbours=2, temperature=2.0))
    loss.backward()
    save_file({"loss": loss.detach()[None], "grad": words.grad}, f"{results}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eq_3_has_the_negatives_of_all_ranks(tmp_path: Path) -> None:
    """Two real processes: losses as in the loop over the whole batch, gradients as where only own rows have them."""
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    spec, known, every = ContrastiveSpec(neighbours=2, temperature=2.0), vocabulary(), draws(6, 8, scale=0.7)
    for rank in range(2):
        got = load_file(tmp_path / f"{rank}.safetensors")
        own = range(rank * 3, rank * 3 + 3)
        expected = equation_3(every.double().tolist(), known.embeddings.double().tolist(), spec, own)
        assert float(got["loss"]) == pytest.approx(expected, rel=1e-5)
        words = every[rank * 3 : rank * 3 + 3].clone().requires_grad_()
        together = torch.cat([words, every[3:]] if rank == 0 else [every[:3], words])
        contrastive_loss(words, together, rank * 3, known, spec).backward()
        torch.testing.assert_close(got["grad"], words.grad)


def test_words_start_as_average_ones_and_move_in_the_vocabularys_own_units() -> None:
    """A step of AdamW at rate r moves each number by spread * r * (|x| + 1) at most, whatever the vocabulary's size."""
    table = 0.02 * draws(400, 8)
    known = Vocabulary(torch.arange(400), table, torch.nn.functional.normalize(table, dim=-1))
    head = WordHead(64, known, count=2)
    features = draws(500, 64)
    words = head(features).detach().unflatten(1, (2, 8))
    torch.testing.assert_close(words.mean(0), known.embeddings.mean(0).expand(2, -1), rtol=0, atol=0.005)
    assert 0.8 < float(words.std() / known.embeddings.std()) < 1.2
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.0)
    head(features[:1]).square().sum().backward()
    optimizer.step()
    moved = (head(features[:1]).detach() - words[:1].flatten(1)).abs()
    bound = float(known.embeddings.std()) * 1e-2 * (float(features[0].abs().sum()) + 1)
    # AdamW's epsilon holds back a number whose gradient is all but zero.
    assert float(moved.max()) < 1.001 * bound and float(moved.median()) > 0.999 * bound
