"""`vgpo-lite eval`: measure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.commands.options import (
    AdapterOption,
    DatasetOption,
    ModelOption,
    QuietOption,
    RecipeOption,
    SetOption,
)

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Accuracy


def evaluate(
    model: ModelOption = None,
    dataset: DatasetOption = None,
    adapter: AdapterOption = None,
    recipe: RecipeOption = None,
    limit: Annotated[
        str | None, typer.Option("--limit", metavar="N", help="Held-out rows to measure on.", show_default=False)
    ] = None,
    overrides: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the result as JSON and nothing else.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Measure accuracy on held-out rows, with its 95 % interval.

    With an adapter, the model is measured twice: without it and with it. A
    run directory, as MODEL or as adapter, brings its own model, data set and
    settings.

    Examples:

      vgpo-lite eval --model qwen2-vl-2b --dataset mathvista --limit 300

      vgpo-lite eval --adapter runs/qwen2-vl-2b-geo3k

      vgpo-lite eval --adapter runs/tiny-shapes --limit 50 --json
    """
    from vgpo_lite.commands.targets import target
    from vgpo_lite.config.load import resolve
    from vgpo_lite.models.backends import import_backend

    named = target(model, adapter, recipe)
    flags = {"model": named.model, "dataset": dataset, "eval": {"limit": limit}}
    config = resolve(recipe=named.recipe, overrides=overrides or (), flags=flags, flag_style="--")
    import_backend(config.backend, device=config.device)
    bare = config.model_copy(update={"adapter": None})
    wanted = {"before": bare}
    if named.adapter is not None:
        wanted["after"] = config.model_copy(update={"adapter": named.adapter})
    measured = {name: _measured(each, quiet=quiet or as_json) for name, each in wanted.items()}
    _show(config, measured, as_json=as_json)


def _measured(config: RunConfig, *, quiet: bool) -> Accuracy:
    from vgpo_lite.commands.display import watching
    from vgpo_lite.evaluation import evaluate as run

    with watching(quiet=quiet) as listener:
        return run(config, listener=listener)


def _show(config: RunConfig, measured: dict[str, Accuracy], *, as_json: bool) -> None:
    from vgpo_lite.commands.words import ACCURACY_TITLES, accuracy_rows, columns

    if as_json:
        named = {
            name: {"right": each.right, "total": each.total, "accuracy": each.share, "low": each.low, "high": each.high}
            for name, each in measured.items()
        }
        typer.echo(json.dumps({"model": config.model, "dataset": config.dataset, **named}, indent=2))
        return
    names = {"before": "without adapter", "after": "with adapter"} if "after" in measured else {"before": config.model}
    rows = accuracy_rows(measured["before"], measured.get("after"))
    for line in columns([ACCURACY_TITLES, *((names.get(row[0], row[0]), *row[1:]) for row in rows)]):
        typer.echo(line)
