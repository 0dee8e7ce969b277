"""What GPUs can do at most: the denominators of MFU."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """Dense bf16 peak in TFLOP/s, from the makers' data sheets, and GiB that a program can have; `marks` is what its
    name at run time holds."""

    name: str
    teraflops: float
    gib: float
    marks: tuple[str, ...] = ()


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("B200", 2250, 167, ("B200",)),
        Gpu("H200", 989, 131, ("H200",)),
        Gpu("H100", 989, 75, ("H100",)),
        Gpu("A100-80", 312, 75, ("A100", "80GB")),
        Gpu("A100-40", 312, 37, ("A100",)),
        Gpu("L40S", 362, 45, ("L40S",)),
        Gpu("A10G", 70, 22, ("A10G",)),
        Gpu("RTX4090", 165, 22, ("4090",)),
    )
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of the GPU at hand; None for one that is not known, and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for gpu in GPUS.values():
        if all(mark in name for mark in gpu.marks):
            return gpu.teraflops * 1e12
    return None
