"""Steps that are not finite, hangs, checkpoints in the background, the best one, and what a run reports."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_loop import Recorder, Regression, data, engine, spec

from imprint.config.training import CheckpointSpec, ClusterSpec, TrainingSpec
from imprint.errors import StorageError, TrainingError
from imprint.objective import Batch, StepOutput
from imprint.training import checkpoint_writer
from imprint.training.checkpoint import TrainingState, best_checkpoint, latest_checkpoint, save_checkpoint
from imprint.training.checkpoint_writer import CheckpointWriter
from imprint.training.loop import Guard, train
from imprint.training.meters import Meter
from imprint.training.watchdog import EXIT_CODE, Watchdog


def spoilt(at: set[int]) -> Iterator[Batch]:
    for number, batch in enumerate(data(0)):
        if number in at:
            batch["pixel_values"] = batch["pixel_values"] * float("inf")
        yield batch


def test_a_step_that_is_not_finite_is_left_out_and_the_run_goes_on() -> None:
    training = spec(8, max_skipped_steps=2, ema=None)
    objective, recorder = Regression(), Recorder()
    made = engine(objective, training)
    train(spoilt({3, 5}), made, training, hooks=recorder)
    assert all(bool(p.isfinite().all()) for p in objective.parameters())
    steps = {float(state["step"]) for state in made.optimizer.state.values()}
    assert steps == {6.0}, "AdamW counts the steps that it took"
    plain = Regression()
    kept = [batch for number, batch in enumerate(data(0)) if number < 3]
    train(iter(kept), engine(plain, training), spec(3, ema=None))
    first = Regression()
    train(spoilt({3}), engine(first, training), spec(4, ema=None, max_skipped_steps=1))
    for mine, theirs in zip(first.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)  # rates differ a little by length


def test_too_many_such_steps_stop_the_run_and_leave_no_broken_checkpoint(tmp_path: Path) -> None:
    training = spec(8, max_skipped_steps=1)
    with pytest.raises(TrainingError, match=r"2 steps up to 6 had no finite gradient"):
        train(spoilt({3, 5}), engine(Regression(), training), training, checkpoints=(tmp_path, CheckpointSpec(every=1)))
    state = latest_checkpoint(tmp_path)
    assert state is not None and state.step == 5
    assert all(bool(value.isfinite().all()) for value in state.parameters.values())


def test_a_checkpoint_in_the_background_is_of_its_own_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk: training goes on and changes the weights while they are written."""
    real = save_checkpoint

    def slowly(*args: object, **kwargs: object) -> Path:
        time.sleep(0.3)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slowly)
    training = spec(6)
    began = time.perf_counter()
    recorder = Recorder()
    train(data(0), engine(Regression(), training), training, hooks=recorder,
          checkpoints=(tmp_path, CheckpointSpec(every=5, keep=5)))  # fmt: skip
    assert time.perf_counter() - began > 0.3, "the end waits until all is written"
    expected = Regression()
    whole = spec(6)
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 6
    five = [path for path in tmp_path.iterdir() if path.name == "step-00000005"]
    assert len(five) == 1
    from imprint.training.checkpoint import load_checkpoint

    class Five(Recorder):
        def should_stop(self) -> bool:
            return len(self.losses) == 5

    state = train(data(0), engine(expected, whole), whole, hooks=Five())
    saved = load_checkpoint(five[0])
    assert all(torch.equal(saved.parameters[name], value) for name, value in state.parameters.items())
    assert all(torch.equal(saved.optimizer[name], value) for name, value in state.optimizer.items())


def test_a_full_disk_stops_the_run_where_it_comes_by_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> Path:
        raise StorageError("writing checkpoint: No space left on device; free some space")

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", full)
    training = spec(6)
    recorder = Recorder()
    with pytest.raises(StorageError, match="free some space"):
        train(data(0), engine(Regression(), training), training, hooks=recorder,
              checkpoints=(tmp_path, CheckpointSpec(every=2)))  # fmt: skip
    assert max(recorder.losses) == 4


def test_written_in_place_where_the_job_says_so(tmp_path: Path) -> None:
    state = TrainingState(1, 8, {"w": torch.ones(2)}, {}, loss=0.5)
    writer = CheckpointWriter(tmp_path, CheckpointSpec(asynchronous=False))
    writer.save(state)
    assert (tmp_path / "step-00000001").is_dir() and writer._thread is None


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    for step, loss in ((1, 0.5), (2, 0.2), (3, 0.4), (4, 0.3), (5, 0.6)):
        save_checkpoint(tmp_path, TrainingState(step, 8, {"w": torch.ones(1)}, {}, loss=loss), keep=2, keep_best=True)
    assert [path.name[-1] for path in sorted(tmp_path.iterdir())] == ["2", "4", "5"]
    best = best_checkpoint(tmp_path)
    assert best is not None and best.name.endswith("2")


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.99").mkdir()
    save_checkpoint(tmp_path, TrainingState(2, 8, {"w": torch.ones(1)}, {}), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_hang_is_seen_and_its_place_named() -> None:
    messages: list[str] = []
    with Watchdog(0.2, rank=3, on_hang=messages.append) as dog:
        for _ in range(3):
            dog.beat("waiting for data")
            time.sleep(0.1)
        assert not messages
        dog.beat("in a forward or backward pass")
        time.sleep(0.6)
    assert len(messages) == 1 and "rank 3 hangs: in a forward or backward pass" in messages[0]


def test_a_hanging_process_ends_itself_and_says_where(tmp_path: Path) -> None:
    code = """
        import time
        from imprint.training.watchdog import Watchdog
        with Watchdog(0.2, rank=0) as dog:
            dog.beat("waiting for data")
            time.sleep(60)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == EXIT_CODE
    assert "rank 0 hangs: waiting for data" in done.stderr and "line 6" in done.stderr


def test_the_loop_gives_signs_of_life_and_is_not_taken_for_hanging() -> None:
    training = spec(5)
    state = train(data(0), engine(Regression(), training), training, guard=Guard(hang_timeout_s=30))
    assert state.step == 5


def test_a_report_has_mfu_and_losses_by_timestep_from_numbers_known() -> None:
    meter = Meter(10, workers=2, flops_per_image=1e9, peak_flops=1e12)
    places, errors = torch.tensor([0.0, 0.1, 0.3, 0.99]), torch.tensor([1.0, 3.0, 5.0, float("nan")])
    meter.add_by_timestep(places, errors)
    meter.add({"loss": torch.tensor(2.0)})
    meter.add({"loss": torch.tensor(float("nan"))})
    meter.blocked(0.25)
    time.sleep(0.05)
    meter.stepped(100)
    meter.stepped(100)
    record = meter.report(2)
    assert record["loss"] == 2.0
    assert record["loss_by_timestep/0-25"] == 2.0 and record["loss_by_timestep/25-50"] == 5.0
    assert torch.tensor(record["loss_by_timestep/75-100"]).isnan()
    assert record["images_per_second_per_worker"] == pytest.approx(record["images_per_second"] / 2)
    assert record["mfu"] == pytest.approx(1e9 * record["images_per_second_per_worker"] / 1e12)
    assert record["checkpoint_blocked_seconds"] == 0.25
    assert record["memory_gb"] > 0.01


def test_objectives_report_errors_by_timestep() -> None:
    class Timed(Regression):
        def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
            out = super().forward(batch, generator)
            return StepOutput(out.loss, out.metrics, (torch.full((6,), 0.6), torch.full((6,), 4.0)))

    seen: list[dict[str, float]] = []

    class Keep(Recorder):
        def on_log(self, step: int, record: dict[str, float]) -> None:
            seen.append(record)

    train(data(0), engine(Timed(), spec(2)), spec(2), hooks=Keep())
    assert seen[0]["loss_by_timestep/50-75"] == 4.0
    assert torch.tensor(seen[0]["loss_by_timestep/0-25"]).isnan()


def test_fewer_workers_take_more_passes_of_the_same_size() -> None:
    training = TrainingSpec(steps=1, batch_size=24, gradient_accumulation=1)
    found = {}
    for workers in (4, 3, 2, 1):
        own = training.on_workers(workers, 4)
        found[workers] = (own.gradient_accumulation, own.micro_batch_size(workers))
    assert found == {4: (1, 6), 3: (2, 4), 2: (2, 6), 1: (4, 6)}
    with pytest.raises(ValueError, match="does not divide by 5 workers"):
        training.on_workers(5, 5)
    assert (ClusterSpec(workers=(1, 4)).min_workers, ClusterSpec(workers=3).max_workers) == (1, 3)
    with pytest.raises(ValueError, match="least, most"):
        ClusterSpec(workers=(4, 1))
