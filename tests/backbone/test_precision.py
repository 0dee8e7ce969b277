"""Computing in bf16 rounds products and leaves weights and losses alone."""

import torch

from imprint.backbone.precision import computing


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
