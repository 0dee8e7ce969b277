"""The scheduling loop of Ray Data is held to a set rate, and only by our data sets."""

from __future__ import annotations

import time

import pytest
from ray.data.context import DataContext

from imprint.pipelines import reader
from imprint.pipelines.blocks import RAYS_TARGET
from imprint.pipelines.pacing import PacedScheduling


def test_turns_that_take_no_time_come_twenty_milliseconds_apart() -> None:
    paced = PacedScheduling()
    paced.on_execution_step(None)
    began = time.monotonic()
    for _ in range(5):
        paced.on_execution_step(None)
    assert time.monotonic() - began >= 0.09


def test_a_turn_that_took_long_is_not_made_longer() -> None:
    paced = PacedScheduling()
    paced.on_execution_step(None)
    time.sleep(0.05)
    began = time.monotonic()
    paced.on_execution_step(None)
    assert time.monotonic() - began < 0.01


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # Ray warns of what its own copy() sets
def test_the_context_of_the_process_stays_as_it_was() -> None:
    before = DataContext.get_current()
    classes, size = list(before.custom_execution_callback_classes), before.target_max_block_size
    ours = reader.reading_context(1000)
    assert PacedScheduling in ours.custom_execution_callback_classes
    assert ours.target_max_block_size == int(RAYS_TARGET * 1000)
    assert list(before.custom_execution_callback_classes) == classes
    assert before.target_max_block_size == size
