"""`vgpo-lite data`: look at a data set before training on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.commands.failures import reported
from vgpo_lite.commands.options import ModelOption, RecipeOption, SetOption
from vgpo_lite.errors import DataError

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_check import DataCheck

app = typer.Typer(
    help="Data sets: what a run would keep, leave out and show the model.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

NAMED_GOLDS = 20
"""Golds that a terminal lists; `--json` has all."""


@app.callback()
def _program() -> None:
    pass


def check(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Preset (geo3k), hub id, file or folder.", show_default=False)
    ],
    model: ModelOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the result as JSON and nothing else.")
    ] = False,
) -> None:
    """Check every row of a data set, as `train` would, and show three prompts.

    Tells which columns serve as what, which rows a run leaves out and why,
    which golds its own grading would call wrong, and how many tokens images
    and prompts take. Of the model, only the processor is loaded.

    Examples:

      vgpo-lite data check geo3k --model qwen2-vl-2b

      vgpo-lite data check my.jsonl --set data.answer_column=label

      vgpo-lite data check shapes --json

    Exits with 3 where `train` would refuse the data set.
    """
    from vgpo_lite.config.load import resolve

    flags = {"model": model, "dataset": dataset}
    config = resolve(recipe=recipe, overrides=overrides or (), flags=flags, flag_style="--")

    from vgpo_lite.commands.display import watching
    from vgpo_lite.data_check import check_data

    with watching(quiet=as_json) as listener:
        found = check_data(config, listener=listener)
    typer.echo(json.dumps(_as_json(found, config), indent=2) if as_json else "\n".join(_lines(found, config)))
    if found.problem is not None:
        raise DataError(found.problem)


def _as_json(found: DataCheck, config: RunConfig) -> dict[str, object]:
    return {
        "dataset": config.dataset,
        "model": config.model,
        "notes": list(found.notes),
        "columns": dict(found.columns),
        "rows": {"train": found.train, "held_out": found.held_out, "left_out": _left_out(found)},
        "left_out": {reason: list(names) for reason, names in found.report.dropped.items()},
        "examples": dict(found.report.examples),
        "ungradable": [{"sample_id": name, "answer": answer} for name, answer in found.ungradable],
        "statistics": {
            name: {"min": each.least, "median": each.median, "p95": each.high, "max": each.most}
            for name, each in found.spreads.items()
        },
        "images": {"total": found.images, "scaled_down": found.scaled_down},
        "prompts": [
            {"sample_id": each.sample_id, "tokens": each.tokens, "answer": each.answer, "text": each.text}
            for each in found.prompts
        ],
        "problem": found.problem,
    }


def _left_out(found: DataCheck) -> int:
    """Rows left out, for whatever reason."""
    return sum(found.report.counts.values())


def _lines(found: DataCheck, config: RunConfig) -> list[str]:
    """The whole check as a person reads it."""
    from vgpo_lite.commands.words import columns

    lines = [f"{config.dataset}, as {config.model} would read it", *(f"  {note}" for note in found.notes), ""]
    if found.columns:
        lines += ["Columns", *columns([(f"  {name}", role) for name, role in found.columns.items()]), ""]
    counts = [
        ("  train", f"{found.train:,}"),
        ("  held out", f"{found.held_out:,}"),
        ("  left out", f"{_left_out(found):,}"),
    ]
    lines += ["Rows", *columns(counts)]
    lines += [f"  {line}" for line in found.report.in_words().splitlines()]
    if found.ungradable:
        named = [(f"  {name}", repr(answer)) for name, answer in found.ungradable[:NAMED_GOLDS]]
        lines += ["", "Golds that do not grade themselves", *columns(named)]
        if len(found.ungradable) > NAMED_GOLDS:
            lines.append(f"  and {len(found.ungradable) - NAMED_GOLDS:,} more; --json names all")
    spreads = [
        (f"  {name}", f"{each.least:,}", f"{each.median:,.6g}", f"{each.high:,}", f"{each.most:,}")
        for name, each in found.spreads.items()
    ]
    lines += ["", "Statistics", *columns([("", "min", "median", "95 %", "max"), *spreads])]
    if found.scaled_down:
        lines.append(
            f"  {found.scaled_down:,} of {found.images:,} images do not fit data.max_pixels "
            f"({config.data.pixel_budget:,}) and are shown smaller"
        )
    for each in found.prompts:
        lines += ["", f"--- {each.sample_id}: {each.tokens:,} tokens, gold {each.answer!r}", each.text.rstrip()]
    return lines


app.command("check")(reported(check))
