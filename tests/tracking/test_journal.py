"""The journal is followed line by line while it grows, from where it was when following began."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from imprint.tracking.journal import JOURNAL, JournalFollower, write_journal


def test_only_whole_new_lines_are_given_and_none_is_lost(tmp_path: Path) -> None:
    write_journal(tmp_path, {"step": 1})
    seen: list[dict[str, Any]] = []
    follower = JournalFollower(tmp_path, seen.append, interval=0.01).start()
    with open(tmp_path / JOURNAL, "a") as out:
        out.write('{"step": 2}\n{"step"')
        out.flush()
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen == [{"step": 2}]
        out.write(": 3}\n")
    write_journal(tmp_path, {"step": 4, "samples": "samples/a.png"})
    follower.stop()
    assert seen == [{"step": 2}, {"step": 3}, {"step": 4, "samples": "samples/a.png"}]


def test_a_journal_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    follower = JournalFollower(tmp_path, seen.append, interval=0.01).start()
    write_journal(tmp_path, {"step": 1})
    follower.stop()
    assert seen == [{"step": 1}]
