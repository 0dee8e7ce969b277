"""The precision that a network computes in, apart from the one its weights are kept in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from imprint.config.training import Precision

ComputePrecision = Literal["fp32", "bf16"]
log = logging.getLogger(__name__)
_BF16_OF_CPUS = ("avx512_bf16", "amx_bf16", "bf16")  # x86, x86, ARM


def resolved(precision: Precision, device: torch.device) -> ComputePrecision:
    """What `auto` is on a device: bf16 where it has arithmetic for it, else fp32."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if precision == "bf16" and not has_bf16(device):
        _warn(device.type)
    return precision


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16, and does not imitate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Not in the oldest torch that we take; fp32 is right everywhere.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in _BF16_OF_CPUS)
    return False


@cache
def _warn(device: str) -> None:
    # E4T's pretraining on two shared cores with AVX2 alone (AMD EPYC, Zen 3): 1.3 pictures/s, where fp32 has 7.
    log.warning("precision: this %s has no arithmetic for bf16 and imitates it, many times slower than fp32; "
                "precision: auto takes what is there", device)  # fmt: skip


def computing(precision: Precision, device: torch.device) -> AbstractContextManager:
    """A context in which products run in `precision`; weights, sums and losses stay in fp32."""
    return _bf16(device) if resolved(precision, device) == "bf16" else nullcontext()


@contextmanager
def _bf16(device: torch.device) -> Iterator[None]:
    # On a CPU, the backward pass of torch's fused attention takes four to six times as long in bf16 as the plain
    # products do (torch 2.15, 16 pictures of 64 positions: 20 ms and 5 ms); its forward pass is the faster one.
    plain = device.type == "cpu" and torch.is_grad_enabled()
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield
