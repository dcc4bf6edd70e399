"""`train --dry-run`: every setting, its value, and where that value comes from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vgpo_lite.config.writing import flat_values, scalar, table

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig


def show_settings(config: RunConfig) -> None:
    """Print all settings, chosen ones first, to stdout."""
    from rich.console import Console
    from rich.table import Table

    values = flat_values(config)
    chosen = [key for key in values if key in config.sources]
    console = Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
    for title, keys in (("Settings of this run", chosen), ("Defaults", [key for key in values if key not in chosen])):
        shown = Table("setting", "value", "from", title=title, title_justify="left", box=None, pad_edge=False)
        for key in keys:
            value = values[key]
            text = table(value) if isinstance(value, Mapping) else scalar(value)
            shown.add_row(key, text, config.sources.get(key, "default"))
        if keys:
            console.print(shown)
            console.print()
    console.print(f"Nothing was loaded or written. The run directory would be {config.output_folder}.")
