"""`imprint sample`: pictures of a Concept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from imprint.cli.errors import TracebackOption, configure_logging, errors_as_messages
from imprint.config.load import validate
from imprint.config.methods import SampleSpec
from imprint.config.overrides import apply_overrides
from imprint.config.source import Document


def sample(
    concept: Annotated[Path, typer.Option(help="Folder of a Concept, as `imprint personalize` writes it.")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; <concept> is the subject. May be given again.")],
    out: Annotated[Path, typer.Option(help="Folder to write the PNGs and the contact sheet to.")],
    num_images: Annotated[int, typer.Option(min=1, help="Pictures for each prompt.")] = 4,
    backbone: Annotated[
        str | None, typer.Option(help="By default the backbone that the Concept was learned on.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    super_resolution: Annotated[
        str | None,
        typer.Option(
            help="Enlarge with this model, such as imprint-tiny-x4; by default what the Concept was tuned on."
        ),
    ] = None,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the sampler, such as sampler=euler_ancestral."),
    ] = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Draw a Concept in new scenes."""
    configure_logging()
    with errors_as_messages(traceback):
        options = {"steps": steps, "guidance_scale": guidance_scale}
        given = {key: value for key, value in options.items() if value is not None}
        document = Document(name="options", data=given, origins={})
        named = [] if super_resolution is None else [f"super_resolution.model={super_resolution}"]
        spec = validate(apply_overrides(document, [*named, *(overrides or [])]), SampleSpec)
        console = Console(stderr=True)
        with console.status("loading the backbone"):
            from imprint.backbone import PLACEHOLDER, Backbone
            from imprint.methods.prompts import require_placeholder
            from imprint.sampling.sheet import write_pictures
            from imprint.tuning import Concept, sample_concept

            for text in prompt:
                if PLACEHOLDER[:-1] not in text:  # several subjects are <concept-1>, <concept-2>, ...
                    require_placeholder(text, "--prompt")
            loaded = Concept.load(concept)
            for text in prompt:
                require_placeholder(text, "--prompt", loaded.learned.placeholders)
            model = Backbone.load(backbone or loaded.backbone_path, device=device)
        prompts = [text for text in prompt for _ in range(num_images)]
        seeds = [seed + number for _ in prompt for number in range(num_images)]
        began = time.perf_counter()
        columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("drawing", total=None)
            images = sample_concept(
                model,
                loaded,
                prompts,
                spec,
                seeds=seeds,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        sheet = write_pictures(out, images, columns=num_images)
        took = time.perf_counter() - began
        Console(soft_wrap=True, highlight=False).print(
            f"[green]ok[/]: {len(images)} pictures in {out}, all on {sheet} ({took:.1f} s)"
        )
