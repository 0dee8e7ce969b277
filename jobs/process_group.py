"""The process group of a run's workers, set up without torch in the driver and in Ray Train's controller.

`ray.train.torch.TorchConfig` does the same with torch imported in both, some four seconds of processor time each, for
which a run that is started again waits.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

_LEAVING_S = 5


@dataclass
class ProcessGroupConfig(BackendConfig):
    """`backend` is gloo or nccl; a collective that takes longer than `timeout_s` is an error."""

    backend: str = "gloo"
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup


class ProcessGroup(Backend):
    """Ray Train's hooks around a worker group."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroupConfig)
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(
            join, backend=backend_config.backend, address=address, port=port, timeout_s=backend_config.timeout_s
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        leaving = worker_group.execute_async(leave)
        with suppress(GetTimeoutError):  # a rank that hangs is killed with its process
            ray.get(leaving, timeout=_LEAVING_S)


def join(*, backend: str, address: str, port: int, timeout_s: int) -> None:
    """Run by each worker: torchrun's environment variables, its GPU, and the process group."""
    import torch
    from ray.train.torch import get_device

    context = ray.train.get_context()
    device = get_device()
    os.environ |= {
        "MASTER_ADDR": address, "MASTER_PORT": str(port), "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()), "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()), "NODE_RANK": str(context.get_node_rank()),
        "ACCELERATE_TORCH_DEVICE": str(device),
    }  # fmt: skip
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def leave() -> None:
    """Run by each worker at the end."""
    import torch

    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.destroy_process_group()
