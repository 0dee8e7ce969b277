"""Kills in one run of a tiny job at random moments, and whether its weights end as those of a run left in peace.

    python benchmarks/chaos.py --kills 30 --folder /tmp/chaos [--minutes 14] --json chaos.json

A Ray head of its own outlives the job. Killed, with SIGKILL: the worker; the driver with the whole job; the worker
while it writes a checkpoint. Recovery is the time from the kill to the first step after it. `--minutes` stops in
between, and the same command with the same folder goes on. After the last kill the job runs to its end; then a run of
the same seed is left in peace, and parameters, moments and averages of both are compared bit for bit.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

BIN = Path(sys.executable).parent
KINDS = ("worker", "driver", "checkpoint")
PATIENCE_S = 240


def main() -> None:
    """Kill, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--between", type=int, default=12, help="most steps between two kills")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", default="{name: torch}", help="the job's engine, YAML")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--json", type=Path)
    how = parser.parse_args()
    run = Chaos(how)
    with run.head():
        finished = run.kill_until_done()
        if finished:
            run.to_the_end("chaos")
            run.to_the_end("peace")
    if not finished:
        print(f"{len(run.kills)} of {how.kills} kills so far; the same command goes on")
        return
    result = {"kills": run.kills, "different": run.differences(), "workers": how.workers, "engine": how.engine}
    print(report(result))
    if how.json:
        how.json.write_text(json.dumps(result, indent=1) + "\n")
    if result["different"]:
        raise SystemExit(1)


class Chaos:
    """One run that is killed, and its twin."""

    def __init__(self, how: argparse.Namespace) -> None:
        self.how, self.folder = how, how.folder
        self.record = self.folder / "kills.json"
        self.kills: list[dict[str, Any]] = json.loads(self.record.read_text()) if self.record.exists() else []
        self.deadline = time.monotonic() + 60 * how.minutes
        self.steps = how.kills * how.between + 20
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMPRINT_"))}
        self.env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.env |= {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300", "RAY_worker_register_timeout_seconds": "300"}
        self.env["RAY_worker_niceness"] = "0"  # of 15, Ray's default, workers starve beside whatever else is busy
        if not (self.folder / "shards").is_dir():
            make_inputs(self.folder)

    # -- processes ------------------------------------------------------------------------------------------

    @contextmanager
    def head(self) -> Iterator[None]:
        """A Ray head that outlives the drivers."""
        temporary = Path(tempfile.mkdtemp(prefix="imprint-ray-", dir="/tmp"))  # short: Ray's sockets lie in it
        command = [
            BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0", "--num-cpus=2",
            "--include-dashboard=false", f"--temp-dir={temporary}", "--object-store-memory=200000000",
        ]  # fmt: skip
        with (temporary / "head.log").open("wb") as log:
            head = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        address = temporary / "ray_current_cluster"
        try:
            wait_for(address.exists, lambda: head.poll() is None)
            self.env["RAY_ADDRESS"] = address.read_text().strip()
            yield
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
            shutil.rmtree(temporary, ignore_errors=True)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Submit the job, which goes on where a run of this name stopped."""
        spec = {
            "job": "pretrain_encoder", "name": name, "seed": 3, "runs": str(self.folder / "runs"),
            "backbone": str(self.folder / "backbone"),
            "method": {"domain_word": "face", "offsets": {"vector_width": 4}},
            "data": {"shards": [str(self.folder / "shards")], "image_size": 64, "shuffle_buffer": 15},
            "training": {
                "steps": self.steps, "batch_size": 4, "log_every": 1, "ema": {"decay": 0.9},
                "optimizer": {"learning_rate": 1.0e-3, "warmup_steps": 3},
            },
            "engine": yaml.safe_load(self.how.engine),
            "checkpoint": {"every": 3, "keep": 2}, "tracking": {"enabled": False},
            "cluster": {"workers": self.how.workers, "cpus_per_worker": 0.5, "max_failures": -1},
        }  # fmt: skip
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(spec))
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [BIN / "imprint", "run", file], env=self.env, cwd=self.folder, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    # -- kills ----------------------------------------------------------------------------------------------

    def kill_until_done(self) -> bool:
        """All kills that are still to come; False where the time was over before."""
        driver: subprocess.Popen[bytes] | None = None
        while len(self.kills) < self.how.kills:
            if time.monotonic() > self.deadline:
                if driver is not None:
                    driver.terminate()
                    driver.wait(PATIENCE_S)
                return False
            driver = self._kill(len(self.kills), driver)
        if driver is not None:
            driver.terminate()
            driver.wait(PATIENCE_S)
        return True

    def _kill(self, number: int, driver: subprocess.Popen[bytes] | None) -> subprocess.Popen[bytes]:
        """One kill some steps further on, and the wait until a step is done after it."""
        draw = random.Random(number)
        kind = KINDS[number % len(KINDS)] if number < 6 else draw.choice(KINDS)
        wanted = self.step("chaos") + draw.randint(1, self.how.between)
        current = driver if driver is not None and driver.poll() is None else self.start("chaos")
        wait_for(lambda: self.after_last_start("chaos") >= wanted, lambda: current.poll() is None)
        time.sleep(draw.random() * 0.3)
        worker, starts = int(self.starts("chaos")[-1]["pid"]), len(self.starts("chaos"))
        if kind == "checkpoint":
            folder = self.folder / "runs" / "chaos" / "checkpoints"
            wait_for(lambda: any(folder.glob(".step-*")), lambda: current.poll() is None, pause=0.0005)
        if kind == "driver":
            os.killpg(current.pid, signal.SIGKILL)
        else:
            os.kill(worker, signal.SIGKILL)
        at, began = self.step("chaos"), time.monotonic()
        if kind == "driver":
            current.wait()
            current = self.start("chaos")
        again = lambda: len(self.starts("chaos")) > starts and self.after_last_start("chaos") > 0  # noqa: E731
        wait_for(again, lambda: current.poll() is None)
        seconds, back = time.monotonic() - began, int(self.starts("chaos")[-1]["step"])
        self.kills.append({"kind": kind, "at": at, "from": back, "lost": at - back, "seconds": round(seconds, 2)})
        self.record.write_text(json.dumps(self.kills))
        print(f"kill {number + 1}: {self.kills[-1]}", flush=True)
        return current

    def to_the_end(self, name: str) -> None:
        """Run the job until it is done."""
        code = self.start(name).wait(3600)
        if code:
            raise SystemExit(f"{name} ended with {code}:\n" + (self.folder / f"{name}.log").read_text()[-3000:])

    # -- what the run says of itself ------------------------------------------------------------------------

    def journal(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "runs" / name / "log.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def starts(self, name: str) -> list[dict[str, Any]]:
        return [record for record in self.journal(name) if "pid" in record]

    def step(self, name: str) -> int:
        """The last step that was reported."""
        return max((int(r["step"]) for r in self.journal(name) if "loss" in r), default=0)

    def after_last_start(self, name: str) -> int:
        """The last step reported since the workers started last; 0 where there is none."""
        journal = self.journal(name)
        first = max((place for place, record in enumerate(journal) if "pid" in record), default=len(journal))
        return max((int(record["step"]) for record in journal[first:] if "loss" in record), default=0)

    def differences(self) -> list[str]:
        """Tensors that differ between the two final checkpoints."""
        from safetensors.torch import load_file

        found = []
        for file in ("parameters", "optimizer", "ema"):
            place = Path("checkpoints") / f"step-{self.steps:08d}" / f"{file}.safetensors"
            one, other = (load_file(self.folder / "runs" / name / place) for name in ("chaos", "peace"))
            if one.keys() != other.keys():
                found.append(f"{file}: other names")
            found += [f"{file}: {key}" for key in one if not (one[key] == other[key]).all()]
        return found


def wait_for(ready: Callable[[], bool], alive: Callable[[], bool], pause: float = 0.05) -> None:
    """Wait until `ready`.

    Raises:
        SystemExit: what it waits for died, or took too long.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        if not alive():
            raise SystemExit("the job ended by itself; see the log beside its file")
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing happened for {PATIENCE_S} s")
        time.sleep(pause)


def make_inputs(folder: Path) -> None:
    """A random backbone a few channels wide and a few plain pictures."""
    from imprint.backbone.published import build_published
    from imprint.backbone.saving import save_pipeline
    from imprint.pipelines.writer import Sample, ShardFolder, shard_name, write_shard

    folder.mkdir(parents=True, exist_ok=True)
    save_pipeline(build_published("sd15", reduced=True), folder / "backbone")
    shards, infos = ShardFolder(folder / "shards.partial", {"made": "by benchmarks/chaos.py"}), []
    for index in range(3):
        samples = []
        for number in range(12 * index, 12 * index + 12):
            file = io.BytesIO()
            Image.fromarray(np.full((64, 64, 3), (number * 7 % 256, number, 7), np.uint8)).save(file, "PNG")
            record = json.dumps({"identity": f"id-{number}", "class_noun": "face"}).encode()
            samples.append(Sample(f"s-{number:04d}", {"png": file.getvalue(), "txt": b"a face", "json": record}))
        info = write_shard(folder / "shards.partial" / shard_name("train", index), "train", samples)
        shards.record(info)
        infos.append(info)
    shards.finish([info.name for info in infos])
    (folder / "shards.partial").rename(folder / "shards")


def report(result: dict[str, Any]) -> str:
    """Markdown: recovery by kind, and the comparison."""
    lines = ["| killed | times | recovery, s: median | p95 | longest | steps lost, most |", "|---|---|---|---|---|---|"]
    for kind in (*KINDS, "all"):
        chosen = [kill for kill in result["kills"] if kind in (kill["kind"], "all")]
        if chosen:
            seconds = sorted(kill["seconds"] for kill in chosen)
            p95 = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
            lost = max(kill["lost"] for kill in chosen)
            times = f"{statistics.median(seconds):.1f} | {p95:.1f} | {seconds[-1]:.1f}"
            lines.append(f"| {kind} | {len(chosen)} | {times} | {lost} |")
    same = "bit for bit as without kills" if not result["different"] else f"differ in {result['different'][:5]}"
    lines.append(f"\nFinal parameters, moments and averages: {same}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
