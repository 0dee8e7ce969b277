"""Shells share what is not replaced, and nothing of them reaches the backbone."""

from __future__ import annotations

import pytest
import torch

from imprint.backbone import Backbone
from imprint.errors import ConceptError
from imprint.methods.shells import named_weights, shell, trainable_shell
from imprint.methods.weight_deltas import add_deltas, pack_deltas

NAME = "unet.conv_in.weight"


def test_a_shell_shares_every_tensor_but_the_replaced(backbone: Backbone) -> None:
    own = dict(named_weights(backbone))
    new = torch.zeros_like(own[NAME])
    copy = shell(backbone, {NAME: new})
    theirs = dict(named_weights(copy))
    assert list(own) == list(theirs)
    assert all(theirs[name] is value for name, value in own.items() if name != NAME)
    assert torch.equal(theirs[NAME], new) and not theirs[NAME].requires_grad
    assert copy.unet is not backbone.unet and copy.vae is backbone.vae
    assert copy.unet.config == backbone.unet.config


def test_a_shell_of_nothing_draws_the_same(backbone: Backbone) -> None:
    xt, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        first = backbone.denoise(xt, t, backbone.encode_text(["a cat"]))
        copy = shell(backbone)
        assert torch.equal(copy.denoise(xt, t, copy.encode_text(["a cat"])), first)


def test_training_in_a_shell_leaves_the_backbone(sd15: Backbone) -> None:
    before = sd15.fingerprint()
    own = trainable_shell(sd15, unet=True, text_encoders=False)
    optimizer = torch.optim.SGD([p for _, p in named_weights(own) if p.requires_grad], lr=1.0)
    own.denoise(torch.randn(1, 4, 8, 8), torch.tensor([3]), own.encode_text(["a cat"])).sum().backward()
    optimizer.step()
    assert sd15.fingerprint() == before != own.fingerprint()
    assert all(p.grad is None for _, p in named_weights(sd15))


def test_a_shell_of_half_precision_trains_in_full(sd15: Backbone) -> None:
    for module in sd15.modules():
        module.half()
    own = trainable_shell(sd15, unet=True, text_encoders=False)
    assert own.dtype == torch.float32 and sd15.dtype == torch.float16
    assert {value.dtype for _, value in named_weights(own)} == {torch.float32}


@pytest.mark.parametrize(("name", "message"), [(NAME, "has the shape"), ("unet.nothing", "has no unet.nothing")])
def test_what_does_not_fit(sd15: Backbone, name: str, message: str) -> None:
    with pytest.raises(ConceptError, match=message):
        shell(sd15, {name: torch.zeros(1)})


def test_deltas_give_the_tuned_weights_back(sd15: Backbone) -> None:
    own = dict(named_weights(sd15))
    tuned = {NAME: own[NAME] + 0.125}
    tensors = pack_deltas(sd15, tuned, "bf16") | {"word.0.0": torch.zeros(3)}
    assert tensors[NAME].dtype == torch.bfloat16
    torch.testing.assert_close(add_deltas(sd15, tensors, ["unet"]), {NAME: tuned[NAME]})
    with pytest.raises(ConceptError, match="does not fit the backbone"):
        add_deltas(sd15, {"unet.nothing": torch.zeros(1)}, ["unet"])
