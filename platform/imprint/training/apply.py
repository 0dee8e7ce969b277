"""What is applied to a backbone to make it train faster or in less memory, and changes no number but by rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from imprint.backbone import Backbone
from imprint.config.training import EngineSpec


def apply_engine_options(backbone: Backbone, engine: EngineSpec) -> None:
    """What the job's engine asks for, on the backbone's UNet."""
    if engine.channels_last:
        apply_channels_last(backbone.unet)
    if engine.activation_checkpointing:
        apply_activation_checkpointing(backbone.unet)
    if engine.compile != "none":
        apply_compile(backbone.unet, engine.compile)


def apply_channels_last(module: nn.Module) -> None:
    """Keep the weights of convolutions with channels innermost, as tensor cores and vector units read them."""
    module.to(memory_format=torch.channels_last)


def apply_activation_checkpointing(unet: nn.Module) -> None:
    """Keep the inputs of the UNet's blocks only, and compute the blocks again for the backward pass."""
    unet.enable_gradient_checkpointing(checkpointed)


_CHECKPOINTING: ContextVar[bool] = ContextVar("checkpointing", default=True)


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Forward passes inside keep everything, as where FLOPs are counted: what is computed again is no progress."""
    token = _CHECKPOINTING.set(False)
    try:
        yield
    finally:
        _CHECKPOINTING.reset(token)


def checkpointed(module: Callable, *args: Any) -> Any:
    """`module(*args)`, computed again backward with the very weights that it has now.

    A method may have replaced weights for this one call (`Backbone.denoise`); by the time of the backward pass they
    are back to what they were, and computing with those would give other gradients and none for the method's own.
    """
    if not _CHECKPOINTING.get():
        return module(*args)
    kernels = _attention_kernels()

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), sdpa_kernel(kernels)

    run = module
    if isinstance(module, nn.Module):
        weights = dict(module.named_parameters())
        if not all(isinstance(weight, nn.Parameter) for weight in weights.values()):

            def run(*inputs: Any) -> Any:
                return torch.func.functional_call(module, weights, inputs)

    return checkpoint(run, *args, use_reentrant=False, context_fn=contexts)


def _attention_kernels() -> list[SDPBackend]:
    """The kernels of attention that may be used now; another one backward would keep other tensors."""
    allowed = {
        SDPBackend.MATH: torch.backends.cuda.math_sdp_enabled(),
        SDPBackend.FLASH_ATTENTION: torch.backends.cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: torch.backends.cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: torch.backends.cuda.cudnn_sdp_enabled(),
    }
    return [kernel for kernel, on in allowed.items() if on]


def apply_compile(unet: nn.Module, what: str) -> None:
    """Compile the UNet: its transformer blocks, which are all alike ("blocks"), or all of it ("whole")."""
    if what == "blocks":
        unet.compile_repeated_blocks()
    else:
        unet.compile()
