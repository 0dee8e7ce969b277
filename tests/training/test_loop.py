"""The loop on a small regression: the same arithmetic as plain torch, and resume bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from imprint.config.training import CheckpointSpec, EmaSpec, EngineSpec, OptimizerSpec, TrainingSpec
from imprint.errors import CheckpointError, DataError, TrainingError
from imprint.objective import Batch, Objective, StepOutput
from imprint.training.checkpoint import latest_checkpoint
from imprint.training.ema import Ema
from imprint.training.engines.torch import TorchEngine
from imprint.training.loop import Hooks, step_generator, train
from imprint.training.schedule import learning_rate


class Regression(Objective):
    """Noise is drawn from the generator, so that a wrong resume of randomness shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        inputs = batch["pixel_values"].flatten(1)
        noise = torch.randn(inputs.shape, generator=generator)
        loss = (self.layers(inputs + 0.1 * noise) - inputs.sum(1, keepdim=True)).square().mean()
        return StepOutput(loss, {"size": inputs.abs().mean()})


def data(first_step: int, size: int = 6, accumulation: int = 1) -> Iterator[Batch]:
    for number in range(first_step * accumulation, 1000):
        values = torch.randn(size, 1, 2, 2, generator=torch.Generator().manual_seed(number))
        yield {"pixel_values": values, "captions": [""] * size, "keys": [str(number)] * size}


def spec(steps: int, **changes: object) -> TrainingSpec:
    fields = {
        "steps": steps, "batch_size": 6, "log_every": 1, "ema": EmaSpec(decay=0.9),
        "optimizer": OptimizerSpec(learning_rate=0.01, schedule="cosine", warmup_steps=2, clip_norm=0.5),
    }  # fmt: skip
    return TrainingSpec(**(fields | changes))


def engine(objective: Regression, training: TrainingSpec) -> TorchEngine:
    return TorchEngine(objective, EngineSpec(), training.optimizer)


class Recorder(Hooks):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_log(self, step: int, record: dict[str, float]) -> None:
        self.losses[step] = record["loss"]


def test_resume_is_bit_for_bit(tmp_path: Path) -> None:
    training = spec(12)
    whole, parts = Recorder(), Recorder()
    quiet = train(data(0), engine(Regression(), training), training, hooks=whole)

    class Stop(Recorder):
        def should_stop(self) -> bool:
            return len(self.losses) == 5

    stopped = Stop()
    checkpoints = (tmp_path, CheckpointSpec(every=3, keep=2))
    first = train(data(0), engine(Regression(), training), training, hooks=stopped, checkpoints=checkpoints)
    assert first.step == 5
    resume = latest_checkpoint(tmp_path)
    assert resume is not None and resume.step == 5
    final = train(data(5), engine(Regression(), training), training, hooks=parts, resume=resume)
    assert stopped.losses | parts.losses == whole.losses
    assert final.samples == quiet.samples == 72
    for name, value in quiet.parameters.items():
        assert torch.equal(value, final.parameters[name])
    assert quiet.ema is not None and final.ema is not None
    for name, value in quiet.ema.items():
        assert torch.equal(value, final.ema[name])


def test_one_step_is_adamw_by_hand() -> None:
    training = spec(1, optimizer=OptimizerSpec(learning_rate=0.01, weight_decay=0.1, clip_norm=None), ema=None)
    ours = Regression()
    train(data(0), engine(ours, training), training, seed=5)
    other = Regression()
    other.forward(next(data(0)), step_generator(5, 0, 0)).loss.backward()
    for mine, theirs in zip(ours.parameters(), other.parameters(), strict=True):
        gradient = theirs.grad
        assert gradient is not None
        # AdamW's first step: both bias-corrected moments equal the gradient (arXiv:1711.05101, Algorithm 2).
        expected = theirs * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(mine, expected)


def test_accumulated_batches_equal_one_large_batch() -> None:
    class Plain(Regression):
        def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
            inputs = batch["pixel_values"].flatten(1)
            return StepOutput((self.layers(inputs) - 1).square().mean())

    joined, split = Plain(), Plain()
    stream = data(0)
    two = [next(stream), next(stream)]
    large: Batch = {
        "pixel_values": torch.cat([b["pixel_values"] for b in two]), "captions": [""] * 12, "keys": ["k"] * 12,
    }  # fmt: skip
    one, half = spec(1, ema=None), spec(1, ema=None, gradient_accumulation=2)
    train(iter([large]), engine(joined, one), one)
    train(iter(two), engine(split, half), half)
    for a, b in zip(joined.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    class Broken(Regression):
        def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
            return StepOutput(super().forward(batch, generator).loss * float("nan"))

    with pytest.raises(TrainingError, match="the loss is nan"):
        train(data(0), engine(Broken(), spec(3)), spec(3, max_skipped_steps=2))


def test_data_that_ends_early_is_an_error() -> None:
    stream = data(0)
    with pytest.raises(DataError, match="the data ended before step 5"):
        train(iter([next(stream), next(stream)]), engine(Regression(), spec(5)), spec(5))


def test_another_model_is_refused() -> None:
    one = engine(Regression(), spec(1))
    with pytest.raises(CheckpointError, match=r"expected shape \(8, 4\)"):
        one.load({"layers.0.weight": torch.zeros(2, 2)}, {})


def test_ema_follows_its_formula() -> None:
    ema = Ema(EmaSpec(decay=0.5), {"w": torch.tensor([0.0])})
    ema.update({"w": torch.tensor([1.0])}, 1)  # decay min(0.5, 2/11)
    assert ema.shadow["w"].item() == pytest.approx(1 - 2 / 11)
    ema.update({"w": torch.tensor([1.0])}, 100)  # decay 0.5
    assert ema.shadow["w"].item() == pytest.approx(1 - 1 / 11)


def test_learning_rate_at_its_corners() -> None:
    optimizer = OptimizerSpec(learning_rate=1.0, schedule="cosine", warmup_steps=10, final_ratio=0.1)
    assert learning_rate(optimizer, 0, 110) == pytest.approx(0.1)
    assert learning_rate(optimizer, 9, 110) == pytest.approx(1.0)
    assert learning_rate(optimizer, 60, 110) == pytest.approx(0.55)
    assert learning_rate(optimizer, 110, 110) == pytest.approx(0.1)
    linear = OptimizerSpec(learning_rate=1.0, schedule="linear")
    assert learning_rate(linear, 25, 100) == pytest.approx(0.75)


def test_generators_differ_by_seed_step_and_place_in_the_batch() -> None:
    draws = {
        torch.rand(1, generator=step_generator(*key)).item()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2)]
    }
    assert len(draws) == 5
    assert torch.rand(1, generator=step_generator(4, 3, 2)) == torch.rand(1, generator=step_generator(4, 3, 2))
