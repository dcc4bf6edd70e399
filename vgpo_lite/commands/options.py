"""Options that several commands share, worded once."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Preset (qwen2-vl-2b), hub id (owner/name) or folder. \\[default: tiny]",
        show_default=False,
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        help="Preset (geo3k), hub id, file or folder. \\[default: shapes]",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        help="Name (vgpo), YAML file, or run directory to repeat.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as focus.beta=0.2. Repeatable.",
        show_default=False,
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", metavar="PATH", help="Adapter folder, or the run that made it.", show_default=False),
]
GpuOption = Annotated[
    str | None,
    typer.Option(
        "--gpu", metavar="CARD", help="Settings for a card: 8gb, 12gb, 16gb, 24gb or a YAML file.", show_default=False
    ),
]
GpuMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--gpu-memory",
        metavar="GB",
        help="Memory of the card the run may use, 10^9 bytes each. \\[default: all it has]",
        show_default=False,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", metavar="", help="Only errors and the last line.")]
