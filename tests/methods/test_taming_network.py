"""The Taming Encoder's network: where its attentions stand, what they do at first, and what it is saved as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import ObjectEncoderSpec, TamingSpec
from imprint.errors import BackboneError, CheckpointError, StorageError
from imprint.features.clip import ClipFeatures
from imprint.methods.taming import TamingParts, find_network, load_encoder, save_network
from imprint.methods.taming.attention import ObjectAttention, null_objects
from imprint.methods.taming.encoder import object_embedding
from imprint.methods.taming.objective import TamingObjective

Network = Callable[..., Path]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts_of(backbone: Backbone, clip: ClipFeatures, **spec: object) -> TamingParts:
    torch.manual_seed(0)
    return TamingParts.build(backbone, TamingSpec(**spec), clip)


def move(parts: TamingParts) -> None:
    with torch.no_grad():
        for parameter in parts.attentions.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(7))


def call(parts: TamingParts, objects: Tensor | None) -> Tensor:
    """The network's raw output for two noisy pictures; without objects, as the base model is called."""
    xt = torch.randn(2, *parts.backbone.latent_shape, generator=seeded(3))
    prompts, timesteps = ["a photo of a cat", "a red face"], torch.tensor([20, 700])
    with torch.no_grad():
        if objects is None:
            return parts.backbone.denoise(xt, timesteps, parts.backbone.encode_text(prompts))
        return parts.backbone.denoise(xt, timesteps, parts.condition(prompts, objects))


def objects_of(parts: TamingParts) -> Tensor:
    images = torch.rand(2, 3, 16, 16, generator=seeded(4)) * 2 - 1
    return parts.embed(images, None)


def test_step_0_is_the_base_model_bit_for_bit(backbone: Backbone, clip: ClipFeatures) -> None:
    """Whatever the object, on every family: the output projections are zero."""
    parts = parts_of(backbone, clip)
    base = call(TamingParts(backbone, parts.spec, parts.attentions, clip), None)
    assert torch.equal(call(parts, objects_of(parts)), base)
    assert torch.equal(call(parts, 100 * objects_of(parts)), base)
    move(parts)
    assert not torch.allclose(call(parts, objects_of(parts)), base)


def test_the_null_object_leaves_the_plain_unet_bit_for_bit_at_any_time(backbone: Backbone, clip: ClipFeatures) -> None:
    """So a trained network, saved without its attentions, is an ordinary model that draws what phi draws."""
    parts = parts_of(backbone, clip)
    move(parts)
    assert torch.equal(call(parts, null_objects(objects_of(parts))), call(parts, None))


def test_every_transformer_block_has_one_and_the_caller_s_unet_none(backbone: Backbone, clip: ClipFeatures) -> None:
    parts = parts_of(backbone, clip)
    blocks = [m for m in parts.backbone.unet.modules() if isinstance(m, BasicTransformerBlock)]
    own = [m for m in parts.attentions.modules() if isinstance(m, ObjectAttention)]
    assert [block.fuser for block in blocks] == own and len(own) > 0
    theirs = [m for m in backbone.unet.modules() if isinstance(m, BasicTransformerBlock)]
    assert not any(hasattr(block, "fuser") for block in theirs)
    assert parts.backbone.unet.state_dict().keys() == backbone.unet.state_dict().keys()
    mine = dict(parts.backbone.unet.named_parameters())
    assert all(mine[name] is parameter for name, parameter in backbone.unet.named_parameters())
    called: list[ObjectAttention] = []
    for module in own:
        module.register_forward_hook(lambda module, *_: called.append(module))
    call(parts, objects_of(parts))
    assert {id(m) for m in called} == {id(m) for m in own} and len(called) == len(own)


def attention_by_hand(layer: torch.nn.Module, queries: Tensor, keys: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, head by head, in float64, and the output projection."""
    heads = layer.heads
    q, k, v = (getattr(layer, f"to_{r}").weight.double() @ x.double().mT for r, x in
               (("q", queries), ("k", keys), ("v", keys)))  # fmt: skip
    outputs = []
    for h in range(heads):
        rows = slice(h * q.shape[1] // heads, (h + 1) * q.shape[1] // heads)
        scores = (q[:, rows].mT @ k[:, rows]) / (q.shape[1] // heads) ** 0.5
        outputs.append(scores.softmax(-1) @ v[:, rows].mT)
    out = layer.to_out[0]
    bias = 0 if out.bias is None else out.bias.double()
    return torch.cat(outputs, -1) @ out.weight.double().mT + bias


def norm_by_hand(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)


def test_figure_11_between_self_attention_and_text_cross_attention(backbone: Backbone, clip: ClipFeatures) -> None:
    """A block of the UNet, each layer written out in float64: self, object, text, feed-forward."""
    parts = parts_of(backbone, clip)
    move(parts)
    block = next(m for m in parts.backbone.unet.modules() if isinstance(m, BasicTransformerBlock))
    hidden = torch.randn(2, 9, block.dim, generator=seeded(5))
    text = torch.randn(2, 6, block.attn2.to_k.weight.shape[1], generator=seeded(6))
    objects = objects_of(parts)
    with torch.no_grad():
        got = block(hidden, encoder_hidden_states=text, cross_attention_kwargs={"gligen": {"objs": objects}})
        x = hidden.double()
        normed = norm_by_hand(block.norm1, x)
        x = x + attention_by_hand(block.attn1, normed, normed)
        x = x + attention_by_hand(block.fuser.attention, norm_by_hand(block.fuser.norm, x), objects)
        x = x + attention_by_hand(block.attn2, norm_by_hand(block.norm2, x), text)
        x = x + block.ff(norm_by_hand(block.norm3, x).float()).double()
    torch.testing.assert_close(got.double(), x, rtol=1e-4, atol=1e-5)


def test_section_3_3_the_embedding_is_clip_of_the_picture_times_a_binary_mask(clip: ClipFeatures) -> None:
    images = torch.rand(2, 3, 16, 16, generator=seeded()) * 2 - 1
    masks = torch.zeros(2, 1, 16, 16)
    masks[0, :, 4:12, 4:12] = 0.9  # softer than one, and yet the object
    masks[1, :, :, :6] = 1
    masks[1, :, :, 6] = 0.3
    other = images.clone()
    other[:, :, :2] = 1.0  # other backgrounds
    other[1, :, :, 10:] = -1.0
    masks[1, :, :2] = 0
    for tokens in ("patches", "pooled"):
        spec = ObjectEncoderSpec(tokens=tokens)
        got = object_embedding(clip, spec, images, masks)
        assert torch.equal(got, object_embedding(clip, spec, other, masks))
        binary = torch.where(masks > 0.5, images, torch.zeros(()))
        found = clip.tokens(binary) if tokens == "patches" else clip.encode_image(binary)[:, None]
        centred = found - found.mean(-1, keepdim=True)
        expected = centred / centred.square().mean(-1, keepdim=True).add(1e-5).sqrt()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert got.shape[1] == (1 if tokens == "pooled" else 1 + 4)
        whole = object_embedding(clip, ObjectEncoderSpec(tokens=tokens, masked=False), images, masks)
        assert torch.equal(whole, object_embedding(clip, spec, images, None))
        assert not torch.allclose(whole, got)


def test_clip_tokens_are_those_that_its_own_embedding_is_pooled_from(clip: ClipFeatures) -> None:
    images = torch.rand(3, 3, 20, 16, generator=seeded()) * 2 - 1
    tokens = clip.tokens(images)
    assert tokens.shape == (3, 5, clip.width)
    joint = F.normalize(tokens[:, 0] @ clip.model.visual.proj, dim=-1)
    torch.testing.assert_close(joint, clip.encode_image(images), rtol=1e-4, atol=1e-5)
    assert joint.shape[-1] == clip.joint_width


def test_a_unet_with_gligen_s_modules_is_refused(sd15: Backbone, clip: ClipFeatures) -> None:
    block = next(m for m in sd15.unet.modules() if isinstance(m, BasicTransformerBlock))
    block.fuser = torch.nn.Identity()
    with pytest.raises(BackboneError, match="has GLIGEN's module"):
        parts_of(sd15, clip)


# -- the saved network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_a_saved_network_draws_the_same(
    backbone: Backbone, clip: ClipFeatures, trained_network: Network, whole: bool
) -> None:
    folder = trained_network(backbone, whole_network=whole)
    before = backbone.fingerprint()
    parts = load_encoder(folder.parent, backbone, clip=clip)
    assert parts.source == (str(folder), parts.fingerprint())
    assert not any(p.requires_grad for m in (parts.attentions, parts.backbone.unet) for p in m.parameters())
    again = load_encoder(folder, Backbone.load(backbone.path))  # and CLIP by its name
    objects = objects_of(parts)
    assert torch.equal(call(parts, objects), call(again, objects))
    assert not torch.allclose(call(parts, objects), call(parts, null_objects(objects)))
    assert backbone.fingerprint() == before
    assert (folder / "model").is_dir() == whole


def test_the_model_folder_is_an_ordinary_pipeline(
    backbone: Backbone, clip: ClipFeatures, trained_network: Network
) -> None:
    """Read by diffusers and by this package as any backbone: it does what the network does with the null object."""
    folder = trained_network(backbone)
    DiffusionPipeline.from_pretrained(folder / "model", use_safetensors=True)
    plain = Backbone.load(folder / "model")
    parts = load_encoder(folder, backbone, clip=clip)
    mine = call(parts, null_objects(objects_of(parts)))
    assert torch.equal(call(TamingParts(plain, parts.spec, parts.attentions, clip), None), mine)


def test_networks_that_do_not_fit(
    sd15: Backbone, tiny_sd21: Path, clip: ClipFeatures, trained_network: Network, tmp_path: Path
) -> None:
    folder = trained_network(sd15)
    with pytest.raises(CheckpointError, match=r"finetuned on the backbone .* has other weights"):
        load_encoder(folder, Backbone.load(tiny_sd21), clip=clip)
    with pytest.raises(CheckpointError, match=r"finetuned with the CLIP .* has other weights"):
        load_encoder(folder, sd15, clip=ClipFeatures.load("imprint-tiny-clip"))
    with pytest.raises(CheckpointError, match=r"jobs/finetune_joint\.yaml"):
        find_network(tmp_path / "nowhere")
    other = trained_network(sd15, "other", domain_word="cat")
    shutil.copytree(other / "model", folder / "model", dirs_exist_ok=True)
    load_encoder(folder, sd15, clip=clip)  # the same weights: trained alike
    file = folder / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(Path(sd15.path) / "unet" / file.name, file)
    with pytest.raises(CheckpointError, match="weights were changed since"):
        load_encoder(folder, sd15, clip=clip)
    shutil.rmtree(folder / "model")
    with pytest.raises(CheckpointError, match="model/unet cannot be read"):
        load_encoder(folder, sd15, clip=clip)


def test_a_network_replaces_its_older_self_and_nothing_else(
    sd15: Backbone, clip: ClipFeatures, trained_network: Network
) -> None:
    folder = trained_network(sd15)
    trained_network(sd15, whole_network=False)
    assert sorted(path.name for path in folder.iterdir()) == ["parts"]
    record = json.loads((folder / "parts" / "taming.json").read_text())
    assert record["provenance"] == {"steps": 2} and record["backbone"]["path"] == sd15.path
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"holds diary\.txt"):
        trained_network(sd15)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["network"]


def test_a_state_of_another_shape_is_refused(sd15: Backbone, clip: ClipFeatures, tmp_path: Path) -> None:
    objective = TamingObjective(sd15, TamingSpec(), clip)
    state = {name: value for name, value in objective.state_dict().items() if not name.endswith("to_k.weight")}
    with pytest.raises(CheckpointError, match=r"loading attentions from the training state: .*Missing key"):
        save_network(tmp_path / "network", state, objective.parts, {})
    assert not (tmp_path / "network").exists()
