"""The actor pool of a preprocessing stage, as Ray Data takes it."""

from __future__ import annotations

from typing import Any

from ray.data import ActorPoolStrategy

from imprint.config.data import StagePool


def pool_options(spec: StagePool) -> dict[str, Any]:
    """Keywords of `Dataset.map_batches`: a pool of fixed size, or one that grows up to a bound, and its share."""
    if spec.max_actors is None:
        pool = ActorPoolStrategy(size=spec.actors)
    else:
        pool = ActorPoolStrategy(min_size=spec.actors, max_size=spec.max_actors)
    return {"compute": pool, "num_cpus": spec.cpus, "num_gpus": spec.gpus or None}
