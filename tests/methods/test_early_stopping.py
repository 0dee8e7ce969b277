"""A tune ends when the loss on held-out noise no longer falls, and not before."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import EarlyStoppingSpec, LoraTuneSpec
from imprint.methods import lora
from imprint.methods.base import Pictures
from imprint.methods.few_steps import EarlyStopper, adamw, run_steps

CPU = torch.device("cpu")


def spec(steps: int, **early: object) -> LoraTuneSpec:
    return LoraTuneSpec(steps=steps, early_stopping=EarlyStoppingSpec.model_validate(early) if early else None)


def steps_until_the_end(loss: object, spec: LoraTuneSpec, optimizer: torch.optim.Optimizer | None = None) -> int:
    done = []
    run_steps(loss, optimizer, spec, seed=3, device=CPU, callback=lambda step, _: done.append(step))  # type: ignore[arg-type]
    assert done == list(range(1, len(done) + 1))
    return len(done)


def test_what_is_learned_ends_and_what_still_improves_does_not() -> None:
    """A parabola that AdamW reaches the bottom of in about 20 steps of 0.1 from a distance of 2."""
    weight = torch.tensor([2.0], requires_grad=True)

    def loss(generator: torch.Generator) -> Tensor:
        return weight.square().sum() + 1

    early = {"every": 5, "patience": 2, "least": 0.01, "batches": 1}
    short = steps_until_the_end(loss, spec(200, **early), adamw([([weight], 0.1)]))
    assert 20 <= short <= 60 and abs(weight.item()) < 0.5
    with torch.no_grad():
        weight.fill_(2.0)
    assert steps_until_the_end(loss, spec(15, **early), adamw([([weight], 0.1)])) == 15  # on its way down
    assert steps_until_the_end(loss, spec(30), None) == 30  # none asked for


def test_patience_counts_looks_in_a_row() -> None:
    scores = iter([1.0, 0.5, 0.5, 0.4, 0.399, 0.39799, 9.9])
    early = EarlyStoppingSpec(every=2, batches=1, patience=2)
    stopper = EarlyStopper(lambda _: torch.tensor(next(scores)), early, 0, CPU)
    asked = next(step for step in itertools.count(1) if stopper.done(step) or step > 20)
    assert asked == 12  # looks at 2, 4, ..., 12; the third did not improve, the fourth did, two more did not
    assert stopper.best == pytest.approx(0.4)


def test_the_score_is_of_draws_that_no_step_has() -> None:
    seen: list[int] = []

    def loss(generator: torch.Generator) -> Tensor:
        seen.append(generator.initial_seed())
        return torch.ones((), requires_grad=True)

    run_steps(loss, None, spec(6, every=3, batches=2, patience=9), seed=5, device=CPU)
    looks, steps = [seen[3:5], seen[8:10]], [*seen[:3], *seen[5:8]]
    assert looks[0] == looks[1] and len(set(steps)) == 6 and not set(looks[0]) & set(steps)


def test_a_method_stops(tiny_sd15: Path) -> None:
    """A learning rate at which nothing moves: two looks after the first are enough."""
    pictures = Pictures(torch.rand(1, 3, 16, 16) * 2 - 1)
    still = LoraTuneSpec(
        steps=20, batch_size=2, lora={"learning_rate": 1e-12}, early_stopping={"every": 2, "patience": 2, "batches": 1}
    )
    done: list[int] = []
    lora.tune(Backbone.load(tiny_sd15), pictures, still, class_noun="cat", callback=lambda step, _: done.append(step))
    assert done == list(range(1, 7))
