"""`vgpo-lite inspect`: what the model looked at, as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.commands.options import AdapterOption, DatasetOption, SetOption
from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.microscope import Inspection
    from vgpo_lite.models import Policy


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of the user's own.

    Attributes:
        text: The question.
        images: Its pictures.
    """

    text: str
    images: tuple[Path, ...]


def inspect(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="Run directory, preset, hub id or folder of a model.")
    ],
    adapter: AdapterOption = None,
    dataset: DatasetOption = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Held-out rows to look at.")] = 5,
    completions: Annotated[
        int, typer.Option("--completions", metavar="G", min=2, help="Answers to each question, sampled as in training.")
    ] = 2,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", metavar="FILE", help="A picture of your own. Repeatable.", show_default=False),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", metavar="TEXT", help="What to ask about it.", show_default=False)
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.", show_default=True)
    ] = Path("inspection.html"),
    causal: Annotated[
        bool,
        typer.Option("--causal", help="Also what each token loses without the image, or with it hidden late."),
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Show what a model looks at while it answers, token by token.

    Writes one HTML file that opens from the disk and needs no network. With
    an adapter or a run, the model answers without and with it, side by side.
    --causal scores every answer again, once with the image replaced by its
    mean colour and once with it hidden from the last quarter of the layers.

    Examples:

      vgpo-lite inspect runs/tiny-shapes --limit 5 -o inspection.html

      vgpo-lite inspect qwen2-vl-2b --image shelf.jpg --question 'How many books?'
    """
    from vgpo_lite.commands.targets import target
    from vgpo_lite.config.load import resolve
    from vgpo_lite.models.backends import import_backend

    if (question is None) != (not images):
        raise ConfigError("--image and --question go together: what to look at, and what to ask about it.")
    missing = [path for path in images or [] if not path.is_file()]
    if missing:
        raise ConfigError(f"there is no picture {missing[0]}.")
    named = target(source, adapter)
    flags = {
        "model": named.model,
        "adapter": named.adapter,
        "dataset": dataset,
        "num_generations": completions,
        "eval": {"limit": limit},
    }
    config = resolve(recipe=named.recipe, overrides=overrides or (), flags=flags, flag_style="--")
    import_backend(config.backend, device=config.device)
    if question is None:
        inspection = _of_rows(config, causal=causal)
    else:
        inspection = _of_question(config, Question(text=question, images=tuple(images or ())), causal=causal)
    _write(inspection, output)


def _of_rows(config: RunConfig, *, causal: bool) -> Inspection:
    from vgpo_lite.commands.display import watching
    from vgpo_lite.errors import DataError
    from vgpo_lite.microscope import inspect_prompts
    from vgpo_lite.preparation import open_workbench

    with watching() as listener, open_workbench(config, purpose="measure", listener=listener) as bench:
        rows = range(min(config.eval.limit, len(bench.held_out)))
        prompts = [prompt for row in rows if (prompt := bench.prompt(bench.held_out, row)).has_image]
        if not prompts:
            raise DataError(f"{config.dataset} has no held-out row with an image to look at")
        seen = inspect_prompts(
            bench.policy,
            bench.engine,
            prompts,
            config,
            grade=bench.grader.grade,
            compare=config.adapter is not None,
            causal=causal,
            told=lambda done, total: listener.progressed("inspect", done, total),
        )
    return _inspection(config, bench.policy, seen, data={"data set": config.dataset}, causal=causal)


def _of_question(config: RunConfig, asked: Question, *, causal: bool) -> Inspection:
    from vgpo_lite.commands.chat import own_sample
    from vgpo_lite.engine import make_engine
    from vgpo_lite.microscope import inspect_prompts
    from vgpo_lite.models import load_policy
    from vgpo_lite.prompts import encode_prompt

    sample = own_sample(asked.text, list(asked.images))
    policy = load_policy(config)
    prompt = encode_prompt(sample, policy.processor, config.data)
    seen = inspect_prompts(
        policy,
        make_engine(policy, config),
        [prompt],
        config,
        grade=None,
        compare=config.adapter is not None,
        causal=causal,
    )
    return _inspection(config, policy, seen, data={"asked as the rows of": config.dataset}, causal=causal)


def _inspection(config: RunConfig, policy: Policy, seen: tuple, *, data: dict[str, str], causal: bool) -> Inspection:
    from vgpo_lite.microscope import Inspection, focus_layer, hidden_from

    facts = {
        "model": config.model,
        "adapter": config.adapter or "none",
        **data,
        "focus": config.focus.signal,
        "temperature": str(config.temperature),
        "seed": str(config.seed),
    }
    return Inspection(
        title=f"What {config.model} looks at",
        facts=facts,
        prompts=seen,
        focus_layer=focus_layer(policy),
        hidden_from=hidden_from(policy) if causal else None,
    )


def _write(inspection: Inspection, output: Path) -> None:
    from vgpo_lite.microscope import inspection_page
    from vgpo_lite.storage import replace_file

    page = inspection_page(inspection).encode()
    replace_file(output, page)
    count = sum(len(group) for prompt in inspection.prompts for group in prompt.groups.values())
    typer.echo(f"{output}: {count} completions, {len(page) / 1e6:.1f} MB; open it in any browser")
