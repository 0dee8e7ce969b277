"""A concept in the formats of other programs.

    diffusers-lora      pytorch_lora_weights.safetensors, for `pipeline.load_lora_weights`
    kohya               lora.safetensors in kohya's names, for ComfyUI and other programs
    textual-inversion   learned_embeds.safetensors, for `pipeline.load_textual_inversion`
    diffusers           a whole pipeline with the concept's weights and words in it

A concept with factors and words of its own gets a second file beside the LoRA. All are safetensors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from imprint.backbone import Backbone
from imprint.errors import ConceptError, ConfigError, StorageError
from imprint.methods import METHODS
from imprint.methods.low_rank import LowRank
from imprint.methods.portable import Portable
from imprint.tuning.concept import Concept
from imprint.tuning.kohya import kohya_metadata, kohya_tensors, text_model_path
from imprint.tuning.merged import save_merged

WORDS_FILE = "learned_embeds.safetensors"
# A1111, ComfyUI and kohya call the embeddings of SDXL's two text encoders so.
_SDXL_WORDS = ("clip_l", "clip_g")


def export_concept(
    backbone: Backbone, concept: Concept, form: str, out: str | Path, *, triggers: Sequence[str] = ()
) -> tuple[list[Path], tuple[str, ...]]:
    """Write a concept into the folder `out`: the files, and what prompts say for its subjects.

    `triggers` name the subjects where their words are the concept's own; those of tuned weights are fixed.

    Raises:
        ConceptError: the concept belongs to another backbone, its method does not export, or the format cannot hold it.
        ConfigError: the format is unknown, or the triggers do not fit.
        StorageError: the disk is full or may not be written, or the files are there already.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format: got {form!r}, expected one of {', '.join(FORMATS)}")
    concept.require(backbone)
    method = METHODS.get(concept.learned.method)
    if method is None or not hasattr(method, "export"):
        able = [name for name, module in METHODS.items() if hasattr(module, "export")]
        raise ConceptError(
            f"exporting: a concept of {concept.learned.method} needs its own sampler, which no file for other programs "
            f"can hold; methods that export: {', '.join(able)}"
        )
    portable: Portable = method.export(concept.learned, triggers or None)
    out = Path(out).expanduser().absolute()
    return FORMATS[form](backbone, portable, out), portable.triggers


def _diffusers_lora(backbone: Backbone, portable: Portable, out: Path) -> list[Path]:
    factors = _only_low_rank(portable, "diffusers-lora")
    metadata = {"format": "pt", "trigger_phrase": ", ".join(portable.triggers)}
    file = _write(diffusers_tensors(factors), out / "pytorch_lora_weights.safetensors", metadata)
    return [file, *_write_words(backbone, portable, out)]


def _kohya(backbone: Backbone, portable: Portable, out: Path) -> list[Path]:
    factors = _only_low_rank(portable, "kohya")
    metadata = kohya_metadata(backbone, factors, title=out.name, triggers=portable.triggers)
    file = _write(kohya_tensors(backbone, factors), out / "lora.safetensors", metadata)
    return [file, *_write_words(backbone, portable, out)]


def _textual_inversion(backbone: Backbone, portable: Portable, out: Path) -> list[Path]:
    if not portable.words or portable.lora or portable.deltas:
        raise ConceptError(
            "exporting as textual-inversion: the concept changes weights, which no embedding can hold; use "
            "--format diffusers, or diffusers-lora where it was tuned with LoRA"
        )
    return _write_words(backbone, portable, out)


def _diffusers(backbone: Backbone, portable: Portable, out: Path) -> list[Path]:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"exporting to {out}: it is there already; choose a new folder")
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        fresh.mkdir(parents=True)
        save_merged(backbone, portable, fresh)
        if out.exists():
            out.rmdir()
        os.replace(fresh, out)
    except OSError as error:
        raise StorageError(f"exporting to {out}: {error}; nothing was written. Free some space") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return [out]


FORMATS: dict[str, Callable[[Backbone, Portable, Path], list[Path]]] = {
    "diffusers-lora": _diffusers_lora,
    "kohya": _kohya,
    "textual-inversion": _textual_inversion,
    "diffusers": _diffusers,
}


def diffusers_tensors(factors: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The factors by the names of `save_lora_weights`; alpha is the rank, which is its default."""
    tensors = {}
    for module, pair in factors.items():
        part, _, path = module.partition(".")
        name = f"{part}.{path if part == 'unet' else text_model_path(path)}"
        tensors[f"{name}.lora_A.weight"] = pair.down.contiguous()
        tensors[f"{name}.lora_B.weight"] = pair.up.contiguous()
    return tensors


def _only_low_rank(portable: Portable, form: str) -> Mapping[str, LowRank]:
    if portable.lora and not portable.deltas:
        return portable.lora
    what = "all weights" if portable.deltas else "a word and no weight"
    mend = "use --format diffusers, or tune with LoRA (train=lora)" if portable.deltas else "use textual-inversion"
    raise ConceptError(f"exporting as {form}: the concept changes {what}, which is no LoRA; {mend}")


def _write_words(backbone: Backbone, portable: Portable, out: Path) -> list[Path]:
    files = []
    for number, (trigger, vectors) in enumerate(portable.words.items(), start=1):
        # Programs take one word a file, and call it by the file's name or by the key.
        name = WORDS_FILE if len(portable.words) == 1 else WORDS_FILE.replace(".", f"-{number}.")
        keys = _SDXL_WORDS if len(vectors) == 2 else (trigger,)
        metadata = {"format": "pt", "trigger_phrase": trigger}
        tensors = {key: vector.contiguous() for key, vector in zip(keys, vectors, strict=True)}
        files.append(_write(tensors, out / name, metadata))
    return files


def _write(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> Path:
    """One safetensors file, whole or not at all."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu() for name, value in tensors.items()}, fresh, metadata=dict(metadata))
        os.replace(fresh, file)
    except Exception as error:
        # safetensors reports a full disk as an error of its own, with the system's text in it.
        if isinstance(error, OSError) or "os error" in str(error).lower() or "No space left" in str(error):
            raise StorageError(f"writing {file}: {error}; free some space, or choose another folder") from error
        raise
    finally:
        fresh.unlink(missing_ok=True)
    return file
