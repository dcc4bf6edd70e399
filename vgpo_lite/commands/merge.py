"""`vgpo-lite merge`: one folder that every program loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from vgpo_lite.export import MergeReport


def merge(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_ADAPTER", help="Run directory or adapter folder.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Where to write. \\[default: RUN/merged]", show_default=False
        ),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            "--base", metavar="BASE", help="dequantized: the weights that were trained; original: the 16-bit ones."
        ),
    ] = "dequantized",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", metavar="", help="Compare the result with the adapter.")
    ] = True,
) -> None:
    """Merge an adapter into its model, for any program to load.

    Writes a folder that transformers, vLLM and the hub take as it is. Fails
    where it is further from the adapter than a tenth of what the adapter
    changed.

    Examples:

      vgpo-lite merge runs/qwen2-vl-2b-geo3k --output merged

      vgpo-lite merge runs/qwen2-vl-2b-geo3k -o merged --base original
    """
    from vgpo_lite.commands.targets import existing_folder

    folder = existing_folder(source)
    place = folder / "merged" if output is None else Path(output)
    if base == "dequantized" or base == "original":
        from vgpo_lite.export import merge as run

        _show(run(folder, place, base=base, verify=verify))
    else:
        raise ConfigError(f"--base is {base!r}; expected dequantized or original.")


def _show(report: MergeReport) -> None:
    from vgpo_lite.commands.words import program

    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{report.layers} layers of {report.model_id} changed, stored as {report.dtype}")
    typer.echo(f"rounding changed the update by {100 * report.rounding_error:.2g} % of its norm")
    compared = report.agreement
    if compared is None:
        typer.echo("not compared with the adapter (--no-verify)")
    else:
        typer.echo(f"largest logit gap, merged and adapter: {compared.merged_gap:.3g}")
        typer.echo(f"largest logit gap, adapter and base:   {compared.adapter_gap:.3g}")
        share = f"{100 * compared.greedy:.1f} % of {compared.positions} positions"
        typer.echo(f"same likeliest token, merged and adapter: {share}")
    typer.echo(f"{report.output} is ready: from_pretrained({report.output!r}), or")
    typer.echo(f"  {program()} chat {report.output} --image PICTURE --question 'How many ...?'")
