"""`train --dry-run`: every setting, its value, and where that value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from vgpo_lite.commands.words import columns
from vgpo_lite.config.writing import flat_values, scalar, table

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig


def show_settings(config: RunConfig) -> None:
    """Print all settings, chosen ones first, to stdout."""
    values = flat_values(config)
    chosen = [key for key in values if key in config.sources]
    others = [key for key in values if key not in config.sources]
    for title, keys in (("Settings of this run", chosen), ("Defaults", others)):
        if keys:
            typer.echo(f"{title}\n")
            rows = [(f"  {key}", _shown(values[key]), config.sources.get(key, "default")) for key in keys]
            typer.echo("\n".join(columns(rows)) + "\n")
    typer.echo(f"Nothing was loaded or written. The run directory would be {config.output_folder}.")


def _shown(value: object) -> str:
    return table(value) if isinstance(value, Mapping) else scalar(value)
