"""`vgpo-lite plan`: what a run would hold in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.commands.options import (
    DatasetOption,
    GpuMemoryOption,
    GpuOption,
    ModelOption,
    RecipeOption,
    SetOption,
)
from vgpo_lite.errors import ConfigError, HardwareError

if TYPE_CHECKING:
    from vgpo_lite.listening import MemoryPlan


def plan(
    model: ModelOption = None,
    dataset: DatasetOption = None,
    gpu: GpuOption = None,
    gpu_memory: GpuMemoryOption = None,
    recipe: RecipeOption = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            "--pixels",
            metavar="N",
            min=1,
            help="Pixels of the largest image, instead of a data set.",
            show_default=False,
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--prompt-tokens",
            metavar="N",
            min=2,
            help="Tokens of the longest prompt beside its image's.",
            show_default=False,
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the plan as JSON and nothing else.")
    ] = False,
) -> None:
    """Predict what a run holds in memory, phase by phase, without loading a model.

    The data set's largest prompt counts, with every completion at its limit;
    or the prompt that --pixels and --prompt-tokens describe. A card is
    planned for, unless device=cpu is set. Under --gpu-memory, settings that
    are auto are chosen so that the run fits; where nothing does, what would
    fit is named, and the exit code is 4.

    Examples:

      vgpo-lite plan --model qwen2-vl-2b --dataset geo3k --gpu-memory 8

      vgpo-lite plan -m qwen2.5-vl-7b --pixels 401408 --prompt-tokens 200
    """
    from vgpo_lite.commands.planned import described_size, known_model, size_in_data
    from vgpo_lite.config.load import resolve
    from vgpo_lite.planning import Job, check_format, fitted, memory_plan, wanted_limit

    if prompt_tokens is not None and pixels is None:
        raise ConfigError("--prompt-tokens is given without --pixels; give both, or a --dataset.")
    flags = {"model": model, "dataset": dataset, "memory": {"gpu_memory": gpu_memory}}
    config = resolve(recipe=recipe, gpu=gpu, overrides=overrides or (), flags=flags, flag_style="--")
    architecture = known_model(config)
    check_format(architecture.model_type, config.dtype, config.model)
    if pixels is None:
        largest, notes = size_in_data(config, architecture)
    else:
        largest, notes = described_size(architecture, pixels=pixels, text_tokens=prompt_tokens), ()
    job = Job(
        model=architecture,
        config=config,
        largest=largest,
        device="cpu" if config.device == "cpu" else "cuda",
        eval_rows=config.eval.held_out,
    )
    limit = wanted_limit(config)
    try:
        _, chosen = fitted(job, limit_bytes=limit)
    except HardwareError:
        _show(memory_plan(job, limit_bytes=limit), notes, as_json=as_json)
        raise
    _show(chosen, notes, as_json=as_json)


def _show(plan: MemoryPlan, notes: tuple[str, ...], *, as_json: bool) -> None:
    from vgpo_lite.commands.words import columns, memory_lines

    if as_json:
        facts = {
            "peak_bytes": plan.peak_bytes,
            "reserve_bytes": plan.reserve_bytes,
            "limit_bytes": plan.limit_bytes,
            "fits": plan.fits,
            "prompt_tokens": plan.prompt_tokens,
            "image_tokens": plan.image_tokens,
            "phases": {phase.name: dict(phase.parts) for phase in plan.phases},
            "chosen": list(plan.choices),
            "notes": list(notes),
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    for line in columns([*memory_lines(plan), *(("note", note) for note in notes)]):
        typer.echo(line)
