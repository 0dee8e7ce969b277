"""Computing in bf16 rounds products and leaves weights and losses alone; `auto` takes what the device has."""

import logging

import pytest
import torch

from imprint.backbone import precision
from imprint.backbone.precision import computing, has_bf16, resolved
from imprint.config.training import EngineSpec
from imprint.training.engines.base import on_device

CPU = torch.device("cpu")


def test_bf16_rounds_products_only() -> None:
    layer = torch.nn.Linear(64, 64)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    exact = layer(x)
    with computing("fp32", x.device):
        assert torch.equal(layer(x), exact)
    with computing("bf16", x.device):
        rounded = layer(x)
    assert rounded.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    expected = x.bfloat16() @ layer.weight.bfloat16().T + layer.bias.bfloat16()
    torch.testing.assert_close(rounded, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_auto_is_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolved("auto", CPU) == expected
    assert on_device(EngineSpec(name="deepspeed", zero_stage=2, precision="auto"), CPU).precision == expected
    with computing("auto", CPU):
        assert torch.is_autocast_enabled("cpu") == (expected == "bf16")


def test_this_processor_is_asked_itself() -> None:
    assert has_bf16(CPU) == any(torch.cpu.get_capabilities().get(f"{name}_bf16", False) for name in ("avx512", "amx"))


def test_imitated_bf16_is_done_as_told_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    precision._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [resolved("bf16", CPU), resolved("bf16", CPU)] == ["bf16", "bf16"]
    assert [record.message for record in caplog.records if "imitates" in record.message] == [caplog.records[0].message]
