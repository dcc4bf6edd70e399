"""`vgpo-lite compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vgpo_lite.errors import ConfigError

RunsArgument = Annotated[
    list[str], typer.Argument(metavar="RUN RUN...", help="Two or more run directories.", show_default=False)
]
PageOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The HTML file.")]


def compare(runs: RunsArgument, output: PageOption = Path("compare.html")) -> None:
    """Overlay the curves of several runs, and tell their outcomes in one table.

    Runs that differ in the seed alone count as one, with a 95 % interval over
    the seeds; labels name the settings that differ between the others.

    Examples:

      vgpo-lite compare runs/vgpo runs/grpo

      vgpo-lite compare runs/vgpo-seed* runs/grpo-seed* -o seeds.html
    """
    from vgpo_lite.commands.targets import existing_folder
    from vgpo_lite.commands.words import columns

    folders = [existing_folder(run) for run in runs]
    places = [folder.resolve() for folder in folders]
    twice = [run for place, run in zip(places, runs, strict=True) if places.count(place) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice; a run counts once.")
    if len(folders) < 2:
        raise ConfigError("one run cannot be compared; name two or more, or draw it alone with `vgpo-lite report`.")

    from vgpo_lite.report.comparing import INTERVALS, write_comparison
    from vgpo_lite.report.writing import plots_beside

    for line in columns(write_comparison(folders, output)):
        typer.echo(line)
    typer.echo(f"\n{INTERVALS}\n\n{output} written, pictures in {plots_beside(output)}")
