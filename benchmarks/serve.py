"""How long uploads, pictures and concepts take on the service, what batches bring, and what it does under overload.

Command, on two cores with nothing else running (eighteen minutes on slow ones):

    python benchmarks/serve.py [--json FILE]

`imprint serve` runs as a user starts it: the tiny default, one tuner, one sampler, and real HTTP on loopback. Its store
holds concepts of two methods from the start: 1,000 of lora, which are drawn together in one batch, and 64 of e4t, the
default, which change whole weights and have 30 MB each. They are copies of one that was tuned, each under an id of its
own, and four times and more of what the sampler keeps in memory. A second service draws without batches. `--small` is
a smoke test.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from serve_load import NO_ANSWER, Load, Order, at_once, at_rate, client, in_turn, percentile
from serve_process import NOUN, Service, Shelf, picture, swaps

from imprint.serve.tuner import TunerEngine

METHODS = {"e4t": 15, "lora": 10}
"""Tuning steps of the concepts in the store."""
ACCEPTABLE = {200, 429, 503}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    concepts: tuple[int, int] = (64, 1000)
    uploads: int = 6
    tune_steps: int | None = None
    pictures: int = 20
    sampling_steps: int | None = None
    swaps: int = 30
    clients: int = 8
    seconds: float = 10
    load_seconds: float = 20
    normal: float = 0.7
    overload: float = 10.0


SMALL = Sizes(
    concepts=(3, 4),
    uploads=2,
    tune_steps=1,
    pictures=2,
    sampling_steps=2,
    swaps=2,
    clients=8,
    seconds=1,
    load_seconds=2,
)


def main() -> None:
    """Fill the store, measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a smoke test: few concepts, few steps, few seconds")
    parser.add_argument("--json", type=Path, default=Path("serve-benchmark.json"), help="where the numbers go")
    options = parser.parse_args()
    sizes = SMALL if options.small else Sizes()
    with tempfile.TemporaryDirectory(prefix="imprint-benchmark-") as folder:
        found = {"machine": machine(), "small": options.small, **measure(Path(folder), sizes)}
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(report(found))


def measure(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """All numbers, as they go into the JSON file; times are in seconds."""
    shelf = Shelf(folder)
    engine = TunerEngine(shelf.spec())
    ids, found = {}, {"sizes": vars(sizes), "concepts": {}}
    for (method, steps), count in zip(METHODS.items(), sizes.concepts, strict=True):
        steps = sizes.tune_steps or steps
        weights = shelf.learn(engine, method, steps)
        ids[method] = asyncio.run(shelf.fill(method, steps, weights, count))
        found["concepts"][method] = {"steps": steps, "bytes": len(weights), "count": len(ids[method])}
        say(f"{len(ids[method])} concepts of {method} with {len(weights):,} bytes each are in the store")
    del engine  # from here on this process only asks
    found["swap"] = swaps(shelf, {method: each[: max(2, sizes.swaps)] for method, each in ids.items()}, sizes.swaps)
    say("concepts were swapped")
    with Service(shelf) as service:
        found["start_s"] = service.start_s
        say(f"the service was ready after {service.start_s:.0f} s")
        found |= asyncio.run(_batching(service, ids, sizes))
    with Service(shelf, "sampler.batch_size=1") as service:
        found["throughput"]["without"] = asyncio.run(_throughput(service, ids, sizes))
    return found


async def _batching(service: Service, ids: dict[str, list[str]], sizes: Sizes) -> dict[str, Any]:
    async with client(service.address, service.key) as http:
        uploads = [await _upload(http, number, sizes) for number in range(sizes.uploads)]
        say("pictures were uploaded")
        one_by_one = {}
        for method, each in ids.items():
            for name, some in (("one", each[:1]), ("all", each)):
                load = await in_turn(http, _order(some, sizes), sizes.pictures)
                one_by_one[f"{method}, {name}"] = _told(load)
        say("pictures were drawn one after another")
    throughput = await _throughput(service, ids, sizes)
    order = _order(ids["e4t"][:1], sizes)
    capacity = throughput["e4t, one"]["per_second"]
    loads = {}
    for name, share in (("normal", sizes.normal), ("overload", sizes.overload)):
        async with client(service.address, service.key) as http:
            load = await at_rate(http, order, share * capacity, sizes.load_seconds)
        loads[name] = {"rate": share * capacity, **_told(load)}
        say(f"{share:g} times of what it can do")
    return {"upload": uploads, "one_by_one": one_by_one, "throughput": {"with": throughput}, "loads": loads}


async def _upload(http: httpx2.AsyncClient, number: int, sizes: Sizes) -> float:
    """From pictures to the first picture of the subject, as events tell it; then the concept is deleted."""
    data = {"class_noun": NOUN, "prompts": "a photo of <concept>", "seed": str(number)}
    if sizes.tune_steps is not None:
        data["steps"] = str(sizes.tune_steps)
    began = time.perf_counter()
    answer = await http.post("/v1/concepts", files={"images": picture(number)}, data=data)
    if answer.status_code != 202:
        raise SystemExit(f"an upload was answered with {answer.status_code}: {answer.text[:500]}")
    links = answer.json()["links"]
    async with http.stream("GET", links["events"]) as events:
        async for line in events.aiter_lines():
            if line == "event: image":
                took = time.perf_counter() - began
            elif line in ("event: failed", "event: canceled"):
                raise SystemExit(
                    f"an upload {line.removeprefix('event: ')}: {(await http.get(links['self'])).text[:500]}"
                )
    await http.delete(links["self"])
    return took


def _order(ids: Sequence[str], sizes: Sizes) -> Order:
    """Of one of the concepts, by chance, a picture with a seed of its own."""
    chosen = random.Random(1)

    def order(number: int) -> dict[str, Any]:
        steps = {} if sizes.sampling_steps is None else {"steps": sizes.sampling_steps}
        return {"prompt": "a photo of <concept>", "concepts": [chosen.choice(ids)], "seed": number, **steps}

    return order


async def _throughput(service: Service, ids: dict[str, list[str]], sizes: Sizes) -> dict[str, Any]:
    """Pictures a second of many clients, of one concept and of all."""
    found = {}
    for method, each in ids.items():
        for name, some in (("one", each[:1]), ("all", each)):
            async with client(service.address, service.key) as http:
                await in_turn(http, _order(some, sizes), 2)
                load = await at_once(http, _order(some, sizes), sizes.clients, sizes.seconds)
            found[f"{method}, {name}"] = {"per_second": len(load.of(200)) / load.seconds, **_told(load)}
            say(f"{sizes.clients} clients at once: {method}, {name}")
    return found


def _told(load: Load) -> dict[str, Any]:
    statuses = [answer.status for answer in load.answers]
    return {
        "seconds": load.seconds, "accepted": load.of(200),
        "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
        "longest": max((answer.seconds for answer in load.answers), default=0.0),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("ray", "torch", "diffusers", "fastapi", "httpx2")
    return {
        "cores": os.cpu_count(), "processor": _processor(), "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }  # fmt: skip


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


# -- the report --------------------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    told = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    parts = [_times(found), _throughputs(found), _loads(found)]
    parts.append(f"{told['cores']} cores ({told['processor']}), Python {told['python']}, {versions}; "
                 f"the service was ready after {found['start_s']:.0f} s.")  # fmt: skip
    return "\n\n".join(parts)


def _name(method: str, which: str, found: dict[str, Any]) -> str:
    count = found["concepts"][method]["count"]
    return f"{method}, {'one concept' if which == 'one' else f'{count:,} concepts'}"


def _times(found: dict[str, Any]) -> str:
    steps = found["concepts"]["e4t"]["steps"]
    rows = [_row(f"upload to first picture: e4t, {steps} steps, then one picture", found["upload"], 1)]
    for key, load in found["one_by_one"].items():
        method, which = key.split(", ")
        rows.append(_row(f"a picture: {_name(method, which, found)}", load["accepted"], 1))
    for method, each in found["swap"].items():
        rows.append(_row(f"one step of the model alone ({method}'s turns)", each["model"], 1000))
        rows.append(_row(f"one step of the same {method} concept again", each["same"], 1000))
        rows.append(_row(f"one step of another {method} concept in memory", each["other"], 1000))
        size = found["concepts"][method]["bytes"] / 1e6
        rows.append(_row(f"a concept of {method} ({size:.1f} MB) from the store into memory", each["store"], 1000))
    return "\n".join(["| What | times | p50 | p99 |", "|---|---|---|---|", *rows])


def _row(name: str, seconds: Sequence[float], scale: int) -> str:
    unit = "s" if scale == 1 else "ms"
    middle, high = ((percentile(seconds, share) or 0) * scale for share in (0.5, 0.99))
    form = ".2f" if scale == 1 else ".1f"
    return f"| {name} | {len(seconds)} | {middle:{form}} {unit} | {high:{form}} {unit} |"


def _throughputs(found: dict[str, Any]) -> str:
    rows = [f"| Pictures a second, {found['sizes']['clients']} clients | in batches | one by one | ratio |",
            "|---|---|---|---|"]  # fmt: skip
    both = found["throughput"]
    for key, batched in both["with"].items():
        method, which = key.split(", ")
        fast, slow = batched["per_second"], both["without"][key]["per_second"]
        ratio = f"{fast / slow:.2f}" if slow else "-"
        rows.append(f"| {_name(method, which, found)} | {fast:.2f} | {slow:.2f} | {ratio} |")
    return "\n".join(rows)


def _loads(found: dict[str, Any]) -> str:
    rows = ["| Requests a second | 2xx | 429 | 503 | others | p50 of 2xx | p99 of 2xx | longest of all |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    highs = {}
    for name, load in found["loads"].items():
        counts = {int(status): count for status, count in load["statuses"].items()}
        others = sum(count for status, count in counts.items() if status not in ACCEPTABLE)
        middle, highs[name] = (percentile(load["accepted"], share) or 0 for share in (0.5, 0.99))
        share = found["sizes"][name]
        rows.append(
            f"| {load['rate']:.1f}, {share:g} times of what it can do | {counts.get(200, 0)} | {counts.get(429, 0)} | "
            f"{counts.get(503, 0)} | {others} | {middle:.2f} s | {highs[name]:.2f} s | {load['longest']:.2f} s |"
        )
    ratio = highs["overload"] / highs["normal"] if highs["normal"] else float("nan")
    hung = sum(int(load["statuses"].get(str(NO_ANSWER), 0)) for load in found["loads"].values())
    return "\n".join(rows) + f"\n\np99 of what was accepted: ratio {ratio:.2f}. Without an answer: {hung}."


if __name__ == "__main__":
    main()
