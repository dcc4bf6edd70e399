"""`vgpo-lite report`: a run in pictures and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
PageOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The HTML file. \\[default: report.html in the run]",
        show_default=False,
    ),
]


def report(run: RunArgument, output: PageOption = None) -> None:
    """Draw the curves of a run: reward, accuracy, length, focus, gradients, memory, time.

    A run draws its own report.html and plots/ at each checkpoint and at its
    end; this draws them anew, also while it runs, or elsewhere. The HTML file
    holds everything it shows; the pictures lie beside it as PNG.

    Examples:

      vgpo-lite report runs/qwen2-vl-2b-geo3k

      vgpo-lite report runs/tiny-shapes -o counting.html
    """
    from vgpo_lite.commands.targets import existing_folder
    from vgpo_lite.report.writing import plots_beside, write_report

    folder = existing_folder(run)
    page = folder / "report.html" if output is None else output
    write_report(folder, page=page)
    typer.echo(f"{page} written, pictures in {plots_beside(page)}")
