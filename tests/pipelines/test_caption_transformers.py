"""Image-to-text models of transformers, small random weights in a folder: BLIP, BLIP-2, GIT, Florence-2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from imprint.config.data import CaptionerSpec
from imprint.errors import DataError
from imprint.pipelines.caption_models import TransformersCaptioner
from imprint.pipelines.captions import Columns, Written, load_captioner

WORDS = ["a", "photo", "of", "dog", "cat", "on", "grass", "red", "blue", "what", "does", "the", "image", "describe"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def tokenizer(*special: str, wrap: bool = True, **names: str) -> PreTrainedTokenizerFast:
    """One token a word; with `wrap`, every text begins with [CLS] and ends with [SEP], as BERT's."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *special, *WORDS])}
    fast = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    if wrap:
        fast.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[CLS]", eos_token="[SEP]", additional_special_tokens=list(special), **names,
    )  # fmt: skip


def save_with_large_weights(model: torch.nn.Module, folder: Path) -> None:
    """Far from the usual small start, at which every picture and prompt would give the same words."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.6)
    model.save_pretrained(folder)


def blip(folder: Path) -> None:
    words = tokenizer("[DEC]")
    config = BlipConfig(
        text_config={
            **SMALL, "vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 4, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 32,
        },
        vision_config={**SMALL, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    save_with_large_weights(BlipForConditionalGeneration(config), folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), words).save_pretrained(folder)


def blip2(folder: Path) -> None:
    words = tokenizer("<image>", wrap=False)
    config = Blip2Config(
        vision_config={**SMALL, "image_size": 16, "patch_size": 8, "initializer_range": 0.02},
        qformer_config={**SMALL, "vocab_size": len(words), "encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config=OPTConfig(
            vocab_size=len(words), hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=2, eos_token_id=3, pad_token_id=0,
        ).to_dict(),
        num_query_tokens=4, image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    save_with_large_weights(Blip2ForConditionalGeneration(config), folder)
    images = BlipImageProcessor(size={"height": 16, "width": 16})
    Blip2Processor(images, words, num_query_tokens=4).save_pretrained(folder)


def git(folder: Path) -> None:
    words = tokenizer()
    config = GitConfig(
        vision_config={**SMALL, "image_size": 16, "patch_size": 8}, **SMALL, vocab_size=len(words),
        bos_token_id=2, eos_token_id=3, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    save_with_large_weights(GitForCausalLM(config), folder)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    GitProcessor(CLIPImageProcessor(**size), words).save_pretrained(folder)


def florence2(folder: Path) -> None:
    words = tokenizer("<image>", wrap=False, extra_special_tokens={"image_token": "<image>"})
    config = Florence2Config(
        vision_config={
            "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
            "patch_prenorm": (False, True), "embed_dim": (8, 16), "num_heads": (2, 2), "num_groups": (2, 2),
            "window_size": 4, "drop_path_rate": 0.0, "projection_dim": 16,
        },
        text_config=BartConfig(
            vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
            bos_token_id=2, eos_token_id=3, pad_token_id=0, decoder_start_token_id=3, forced_eos_token_id=3,
        ).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    save_with_large_weights(Florence2ForConditionalGeneration(config), folder)
    images = CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    images.image_seq_length = 5  # 2 x 2 patches and their mean
    Florence2Processor(images, words).save_pretrained(folder)


CLASSES: dict[str, tuple[Callable[[Path], None], str]] = {
    "blip": (blip, "a photo of"), "blip2": (blip2, "a photo of"), "git": (git, "a photo of"),
    "florence2": (florence2, "<DETAILED_CAPTION>"),
}  # fmt: skip


SEEDS = {"florence2": 2}  # a random model may answer [SEP] to everything


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (make, _) in CLASSES.items():
        torch.manual_seed(SEEDS.get(name, 0))
        made[name] = tmp_path_factory.mktemp(name) / "model"
        make(made[name])
    return made


def batch(count: int) -> Columns:
    generator = np.random.default_rng(0)
    return {"image": generator.integers(0, 255, (count, 20, 16, 3), np.uint8)}


@pytest.mark.parametrize("prompted", [False, True], ids=["bare", "prompted"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_model_of_each_class_writes_what_its_own_search_finds(
    folders: dict[str, Path], name: str, prompted: bool
) -> None:
    """Greedy search, one token after another by the model's own forward pass, gives the same words."""
    prompt = CLASSES[name][1] if prompted else ""
    spec = CaptionerSpec(kind="transformers", model=str(folders[name]), prompt=prompt, max_new_tokens=5, batch_size=2)
    captioner = load_captioner(spec)
    assert isinstance(captioner, TransformersCaptioner)
    found = captioner(batch(3))
    assert [one.coarse for one in found] == [by_hand(captioner, image) for image in batch(3)["image"]]
    assert all(one == Written(coarse=one.coarse) for one in found)
    assert len({one.coarse for one in found}) > 1, "or the picture would not matter"
    if prompted:
        other = load_captioner(spec.model_copy(update={"prompt": "red cat" if name != "florence2" else "<OCR>"}))
        assert other is not None and other(batch(3)) != found


@torch.no_grad()
def by_hand(captioner: TransformersCaptioner, image: np.ndarray) -> str:
    """Five greedy tokens for one picture, from the logits of whole forward passes."""
    model, processor, kind = captioner.model, captioner.processor, captioner.model.config.model_type
    words = processor.tokenizer
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    prompt = words(captioner.prompt, add_special_tokens=False)["input_ids"] if captioner.prompt else []
    if kind == "florence2":
        asked = processor(images=[image], text=[captioner.prompt], return_tensors="pt")
    start = {"blip": [4], "git": [2], "blip-2": [2] if not prompt else [], "florence2": [3]}[kind]
    tokens = start + ([] if kind == "florence2" else prompt)
    given = len(tokens)
    for step in range(5):
        ids = torch.tensor([tokens])
        if kind == "blip":
            seen = model.vision_model(pixel_values=pixels).last_hidden_state
            logits = model.text_decoder(input_ids=ids, encoder_hidden_states=seen).logits
        elif kind == "git":
            logits = model(input_ids=ids, pixel_values=pixels).logits
        elif kind == "blip-2":
            whole = torch.tensor([[model.config.image_token_id] * 4 + tokens])
            logits = model(input_ids=whole, pixel_values=pixels, attention_mask=torch.ones_like(whole)).logits
        else:
            logits = model(**asked, decoder_input_ids=ids).logits
        token = int(logits[0, -1].argmax())
        if kind == "florence2" and step == 4:
            token = 3  # BART ends at the last place, whatever it thinks
        tokens.append(token)
        if token == 3:
            break
    return words.decode(tokens[given:], skip_special_tokens=True).strip()


def test_florence2_is_told_its_task(folders: dict[str, Path]) -> None:
    spec = CaptionerSpec(kind="transformers", model=str(folders["florence2"]))
    assert TransformersCaptioner(spec).prompt == "<CAPTION>"


def test_beams_and_precision_are_the_models(folders: dict[str, Path]) -> None:
    spec = CaptionerSpec(kind="transformers", model=str(folders["blip"]), max_new_tokens=4, precision="bf16")
    greedy, wide = TransformersCaptioner(spec), TransformersCaptioner(spec.model_copy(update={"beams": 4}))
    assert greedy.model.dtype == torch.bfloat16
    assert greedy(batch(3)) != wide(batch(3))


@pytest.mark.parametrize("broken", ["empty", "no weights", "not a captioner"])
def test_a_folder_without_a_captioner_is_a_clear_error(tmp_path: Path, folders: dict[str, Path], broken: str) -> None:
    if broken == "no weights":
        for file in folders["blip"].iterdir():
            if file.suffix != ".safetensors":
                (tmp_path / file.name).write_bytes(file.read_bytes())
    if broken == "not a captioner":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="loading the captioner"):
        load_captioner(CaptionerSpec(kind="transformers", model=str(tmp_path)))
