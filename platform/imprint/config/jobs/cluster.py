"""What every job that trains on a cluster has: data, training, engine, checkpoints, workers, tracking, a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from imprint.config.base import Section
from imprint.config.data import DataSpec
from imprint.config.kube import Kube, KubeSpec
from imprint.config.methods import SampleSpec
from imprint.config.paths import is_url, resolve_path
from imprint.config.training import CheckpointSpec, ClusterSpec, EngineSpec, TrackingSpec, TrainingSpec


class GridSpec(Section):
    """Pictures of held-out concepts drawn without tuning, the same seeds each time."""

    every: int = Field(200, gt=0, description="steps between two grids")
    shards: tuple[str, ...] = Field(min_length=1, description="as data.shards; concepts that are not trained on")
    split: str | None = "heldout"
    concepts: int = Field(6, gt=0, description="rows of the grid: the first picture of so many identities")
    prompts: tuple[str, ...] = Field(
        ("a photo of <concept>", "a photo of <concept>, on a blue background"), min_length=1, description="columns"
    )
    seed: int = 0
    sampling: SampleSpec = SampleSpec(steps=20)


class ClusterJob(Section):
    """A training run over Ray Data, Ray Train and an engine; jobs add their kind, their method and its keys."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="a run of the same name goes on where it stopped")
    seed: int = Field(0, ge=0)
    runs: str = Field("runs", description="folder of the runs; every worker must see it")
    backbone: str = Field("imprint-tiny", description="embedded name, diffusers folder, safetensors file or hub id")
    data: DataSpec
    training: TrainingSpec
    engine: EngineSpec = EngineSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    cluster: ClusterSpec = ClusterSpec()
    tracking: TrackingSpec = TrackingSpec()
    grid: GridSpec | None = None
    kube: Kube = KubeSpec()

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        self.training.micro_batch_size(self.cluster.max_workers)
        for workers in range(self.cluster.min_workers, self.cluster.max_workers):
            self.training.on_workers(workers, self.cluster.max_workers)
        return self

    def preflight(self) -> list[str]:
        """What this machine can see is missing, one line each."""
        problems = []
        places = [("data.shards" if self.data.shards else "data.sources", place) for place in self.data.places]
        places += [("grid.shards", place) for place in (self.grid.shards if self.grid else ())]
        for key, place in places:
            if is_url(place) or "{" in place:
                continue
            path = Path(resolve_path(place))
            if not path.exists():
                problems.append(f"{key}: nothing at {path}; expected a folder with a manifest.json, or a .tar file")
            elif path.is_dir() and not (path / "manifest.json").is_file():
                problems.append(f"{key}: the folder {path} has no manifest.json; let the job that writes it finish")
        return problems
