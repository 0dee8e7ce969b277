"""`imprint personalize`: from pictures of a subject to a Concept, in a few steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imprint.cli.errors import TracebackOption, configure_logging, errors_as_messages
from imprint.config.load import load_document, validate
from imprint.config.methods import TUNE_SPECS
from imprint.config.overrides import apply_overrides
from imprint.config.problems import nearest
from imprint.config.source import Document
from imprint.errors import ConfigError

DEFAULT_METHOD = "e4t"
LARGEST = 4
"""What the second stages known here make of a side of the first; their tuning sees the subject that large."""


def personalize(
    images: Annotated[Path, typer.Option(help="A picture of the subject, or a folder of pictures.")],
    out: Annotated[Path, typer.Option(help="Folder to write the Concept to.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="A pretrained encoder, for methods that have one: its folder, or the folder of its run."),
    ] = None,
    class_noun: Annotated[
        str | None,
        typer.Option(help="What the subject is, such as person; by default the domain word of the encoder, if any."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(TUNE_SPECS)}; by default what the config says, or {DEFAULT_METHOD}."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with keys of the method.")] = None,
    backbone: Annotated[
        str, typer.Option(help="Diffusers folder, safetensors file, hub id or embedded name.")
    ] = "imprint-tiny",
    context: Annotated[
        str, typer.Option(help="What the pictures show beside the subject, such as 'on a blue background'.")
    ] = "",
    steps: Annotated[int | None, typer.Option(help="Tuning steps; with an encoder 0 keeps its own guess.")] = None,
    super_resolution: Annotated[
        str | None,
        typer.Option(
            help="dreambooth: a second stage to tune as well, such as imprint-tiny-x4 (super_resolution.model)."
        ),
    ] = None,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the method, such as learning_rates.unet=1e-5."),
    ] = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Teach a model a subject from one picture, in seconds, and save it as a Concept."""
    configure_logging()
    with errors_as_messages(traceback):
        given = {"steps": steps, "super_resolution.model": super_resolution}
        options = [f"{key}={value}" for key, value in given.items() if value is not None]
        spec = tune_spec(method, config, options, overrides or [])
        console = Console(stderr=True)
        with console.status("loading the backbone"):
            from imprint.backbone import Backbone
            from imprint.tuning import check_encoder
            from imprint.tuning import personalize as tune_concept
            from imprint.tuning.pictures import find_pictures, load_pictures

            check_encoder(spec.method, given=encoder is not None)
            count = len(find_pictures(images))
            model = Backbone.load(backbone, device=device)
            contexts = [context] * count if context else None
            largest = None if getattr(spec, "super_resolution", None) is None else LARGEST * model.image_size
            pictures = load_pictures(images, image_size=model.image_size, contexts=contexts, largest=largest)
        began = time.perf_counter()
        with _progress(console) as progress:
            task = progress.add_task("tuning", total=spec.steps, loss=float("nan"))
            concept = tune_concept(
                model,
                pictures,
                spec,
                encoder=encoder,
                class_noun=class_noun,
                seed=seed,
                callback=lambda step, loss: progress.update(task, completed=step, loss=loss),
            )
        folder = concept.save(out)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        took = time.perf_counter() - began
        Console(soft_wrap=True, highlight=False).print(
            f"[green]ok[/]: {folder} ({size:.1f} MB, {spec.steps} steps, {took:.1f} s); draw it with\n"
            f'imprint sample --concept {out} --prompt "a photo of <concept>" --out samples',
        )


def tune_spec(method: str | None, config: Path | None, *overrides: Sequence[str]) -> Any:
    """The tuning spec of a method: the keys of a YAML file, if any, with dotted overrides, validated.

    Raises:
        ConfigError: the method or a key is unknown, a value does not fit, or the file says another method.
    """
    document = load_document(config) if config else Document(name="options", data={}, origins={})
    said = document.data.get("method")
    if method is not None and said not in (None, method):
        raise ConfigError(f"{document.origin(('method',))}: method: got {said!r}, and --method says {method!r}")
    name = str(method or said or DEFAULT_METHOD)
    if name not in TUNE_SPECS:
        hint = nearest(name, TUNE_SPECS)
        end = f"; did you mean {hint!r}?" if hint else ""
        raise ConfigError(f"--method: got {name!r}, expected one of {', '.join(TUNE_SPECS)}{end}")
    for more in overrides:
        document = apply_overrides(document, more)
    return validate(document, TUNE_SPECS[name])


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
