"""Images/s and worker memory of three webdataset readers in one run, and the overlap of the data plane's stages.

Command, on two cores with nothing else running (about eight minutes with --stages):

    python benchmarks/data.py [--stages] [--json FILE]

`--small` is a smoke test of a few seconds' work. Compared: `imprint.pipelines.read_webdataset`, Ray Data's own
`read_webdataset` with its default decoder, and webdataset's DataLoader with two workers (`decode("rgb8")`), all with
captions, in batches of 64 and of 8 large pictures. They take turns, each in a process of its own; the table has the
median over all passes but the first of each process, in which the workers start and import what they need.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_pictures import write_jpegs

READERS = {
    "ours": "`imprint.pipelines.read_webdataset`",
    "ray": "Ray Data's `read_webdataset`",
    "webdataset": "webdataset, DataLoader with 2 workers",
}
HERE = Path(__file__).parent
PATIENCE_S = 1200  # for one process; a busy machine is slow, and a reader that hangs should not hold up the others


def main() -> None:
    """Make the shards, run every reader, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a smoke test: 192 pictures of 64 px, one pass")
    parser.add_argument("--stages", action="store_true", help="also run caption and mask stages, and a trainer")
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--rounds", type=int, default=2, help="turns of each reader, two passes each")
    parser.add_argument("--json", type=Path, default=Path("data-benchmark.json"), help="where the numbers go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imprint-benchmark-") as folder:
        result = run(options, Path(folder))
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result))


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements, as they go into the JSON file."""
    small = options.small
    count, size, shards = (192, 64, 3) if small else (6000, 256, 12)
    large_count, large_size = (24, 256) if small else (400, 1024)
    batch, large_batch = 64, 8  # of some 12 and 25 MB
    rounds, passes = (1, 1) if small else (options.rounds, 2)
    result: dict[str, Any] = {
        "machine": machine(),
        "small": small,
        "pictures": write_jpegs(folder / "pictures", count, size, shards),
        "large": write_jpegs(folder / "large", large_count, large_size, 1),
        "speed": {name: [] for name in options.readers},
        "large_reads": {},
    }
    for _ in range(rounds):
        for name in options.readers:
            result["speed"][name].append(read(name, folder / "pictures", count, passes=passes, batch_size=batch))
    for name in options.readers:
        result["large_reads"][name] = [read(name, folder / "large", large_count, passes=1, batch_size=large_batch)]
    if options.stages:
        result["stages"] = call("data_stages.py", {"small": small, "folder": str(folder)})
    return result


def read(reader: str, folder: Path, images: int, **how: Any) -> dict[str, Any]:
    """One reader over a folder, in a process of its own."""
    return call("data_readers.py", {"reader": reader, "folder": str(folder), "images": images, **how})


def call(script: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The last line that a script of this folder prints, as JSON."""
    command = [sys.executable, str(HERE / script), json.dumps(arguments)]
    print(f"{script} {arguments.get('reader', '')} ...", file=sys.stderr, flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            printed, _ = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its workers and Ray's daemons as well
            raise
    if process.returncode != 0:
        raise SystemExit(f"{script} ended with code {process.returncode}; its messages are above")
    return json.loads(printed.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("ray", "webdataset", "simplejpeg", "pillow", "numpy", "pyarrow", "torch")
    load = os.getloadavg()[0]
    return {
        "cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version(),
        "load_before": round(load, 2), "versions": {name: importlib.metadata.version(name) for name in packages},
    }  # fmt: skip


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def report(result: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    pictures, large, told = result["pictures"], result["large"], result["machine"]
    speeds = {name: _speed(runs) for name, runs in result["speed"].items()}
    base = speeds.get("webdataset", {}).get("images_per_second")
    large_speeds = {name: _speed(runs) for name, runs in result["large_reads"].items()}
    lines = [
        f"{pictures['pictures']} JPEGs of {pictures['size']} px ({pictures['mean_jpeg_bytes'] / 1000:.1f} kB each) in "
        f"{pictures['shards']} shards; memory, and the last column, on one shard of {large['pictures']} JPEGs of "
        f"{large['size']} px, which one worker reads. "
        f"{told['cores']} cores ({told['processor']}), load before {told['load_before']}; "
        + ", ".join(f"{name} {version}" for name, version in told["versions"].items()),
        "",
        "| Reader | images/s, median (range) | ratio | CPU ms per image | of it consumer | peak worker MB, private | "
        f"with shared pages | images/s of {large['size']} px |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, speed in speeds.items():
        (memory,) = result["large_reads"][name]
        ratio = f"{speed['images_per_second'] / base:.2f}" if base else "-"
        lines.append(
            f"| {READERS[name]} | {speed['images_per_second']:.0f} ({speed['slowest']:.0f}-{speed['fastest']:.0f}) | "
            f"{ratio} | {speed['cpu_ms']:.2f} | {speed['consumer_ms']:.2f} | {memory['peak_private_mb']:.0f} | "
            f"{memory['peak_resident_mb']:.0f} | {large_speeds[name]['images_per_second']:.0f} |"
        )
    if "stages" in result:
        lines += ["", *_stage_lines(result["stages"])]
    return "\n".join(lines)


def _speed(runs: list[dict[str, Any]]) -> dict[str, float]:
    rates = [run["images"] / seconds for run in runs for seconds in run["seconds"]]
    each = 1000 / runs[0]["images"]
    return {
        "images_per_second": statistics.median(rates), "slowest": min(rates), "fastest": max(rates),
        "cpu_ms": each * statistics.median(seconds for run in runs for seconds in run["cpu_seconds"]),
        "consumer_ms": each * statistics.median(seconds for run in runs for seconds in run["consumer_cpu_seconds"]),
    }  # fmt: skip


def _stage_lines(stages: dict[str, Any]) -> list[str]:
    wall, cpu, trainer = stages["wall"], stages["cpu"], stages["trainer"]
    rows = [f"| {name} | {busy:.1f} | {busy / wall:.2f} | {cpu[name]:.1f} |" for name, busy in stages["busy"].items()]
    return [
        f"Stages over {stages['pictures']} pictures of {stages['size']} px, from the first that came out "
        f"({stages['start_seconds']:.1f} s after the start, models loaded) to the last: {wall:.1f} s, at least "
        f"two stages at work {100 * stages['together']:.0f} % of it; their CPU time makes "
        f"{sum(cpu.values()) / wall:.2f} cores.",
        "",
        "| Stage | busy s | of the wall time | CPU s |",
        "|---|---|---|---|",
        *rows,
        "",
        f"A trainer on prepared shards ({trainer['steps']} steps of {trainer['batch']} pictures, "
        f"{1000 * trainer['step_seconds']:.0f} ms each, after the first batch, which came in "
        f"{trainer['start_seconds']:.1f} s): waiting for data {100 * trainer['data_wait_share']:.1f} % of the time, at "
        f"most {1000 * trainer['longest_wait']:.0f} ms.",
    ]


if __name__ == "__main__":
    main()
