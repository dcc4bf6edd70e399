"""`vgpo-lite train`: learn."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from vgpo_lite.commands.options import (
    DatasetOption,
    GpuMemoryOption,
    GpuOption,
    ModelOption,
    QuietOption,
    RecipeOption,
    SetOption,
)
from vgpo_lite.errors import ConfigError


def train(
    model: ModelOption = None,
    dataset: DatasetOption = None,
    recipe: RecipeOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Run directory. \\[default: runs/MODEL-DATASET]",
            show_default=False,
        ),
    ] = None,
    overrides: SetOption = None,
    gpu: GpuOption = None,
    gpu_memory: GpuMemoryOption = None,
    max_steps: Annotated[
        str | None, typer.Option("--max-steps", metavar="N", help="Optimizer steps of the run.", show_default=False)
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option("--seed", metavar="N", help="Decides order, sampling and first weights.", show_default=False),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="PATH", help="Continue from this adapter or run.", show_default=False),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|PATH",
            help="Continue an existing run at its newest checkpoint, or at PATH.",
        ),
    ] = "never",
    report_to: Annotated[
        str | None,
        typer.Option(
            "--report-to",
            metavar="TRACKER",
            help="Mirror metrics to tensorboard, wandb, trackio or none.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Show every setting and its source, then leave.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Train adapters on a 4-bit model with VGPO, or GRPO, DAPO, Dr. GRPO, GSPO, CISPO.

    Without arguments, the built-in tiny model learns to count the built-in
    shapes, on any CPU, in a few minutes.

    Examples:

      vgpo-lite train --model qwen2-vl-2b --dataset geo3k

      vgpo-lite train -m qwen3-vl-4b -d my.jsonl --set num_generations=4

      vgpo-lite train -m qwen2-vl-2b -d clevr-count -r dapo-baseline --gpu 8gb

      vgpo-lite train -r runs/qwen2-vl-2b-geo3k -o runs/again

    Later settings win: defaults < model < data set < card < run recipe <
    --set < other flags. `vgpo-lite recipe show defaults` lists every setting.
    """
    from vgpo_lite.commands.targets import adapter_folder
    from vgpo_lite.config.load import resolve

    if resume not in ("auto", "never") and not Path(resume).is_dir():
        raise ConfigError(f"--resume is {resume!r}; expected auto, never or the folder of a checkpoint.")
    flags = {
        "model": model,
        "dataset": dataset,
        "output": output,
        "max_steps": max_steps,
        "seed": seed,
        "adapter": None if adapter is None else adapter_folder(adapter),
        "report_to": report_to,
        "memory": {"gpu_memory": gpu_memory},
    }
    config = resolve(recipe=recipe, gpu=gpu, overrides=overrides or (), flags=flags, flag_style="--")
    if dry_run:
        from vgpo_lite.commands.dry_run import show_settings

        show_settings(config)
        return

    from vgpo_lite.commands.display import watching
    from vgpo_lite.errors import InterruptedRunError
    from vgpo_lite.launch import launched
    from vgpo_lite.listening import SilentListener
    from vgpo_lite.models.backends import import_backend
    from vgpo_lite.recording import refuse_existing_run

    if resume == "never":
        refuse_existing_run(Path(config.output_folder))  # before seconds are spent on loading torch
    import_backend(config.backend, device=config.device)

    is_first = launched().rank == 0
    with watching(quiet=quiet) if is_first else nullcontext(SilentListener()) as listener:
        listener.noted(f"model {config.model}, data set {config.dataset}, run directory {config.output_folder}")
        from vgpo_lite.trainer import train as run

        try:
            run(config, listener=listener, resume=resume)
        except InterruptedRunError as error:
            error.args = (f"{error}. Continue with:\n  {_continuation()}",)
            raise


def _continuation() -> str:
    """The command that goes on with this run: the one that was typed, with `--resume auto`."""
    from vgpo_lite.commands.words import program
    from vgpo_lite.launch import relaunched

    typed = sys.argv[1:]
    kept = [
        word
        for place, word in enumerate(typed)
        if not (word == "--resume" or word.startswith("--resume=") or (place and typed[place - 1] == "--resume"))
    ]
    return f"{relaunched(program())} {shlex.join(kept)} --resume auto"
