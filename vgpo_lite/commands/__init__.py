"""The command line: one file per command, which parses and then makes one call. Help loads none of the model stack."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    Args:
        arguments: What stands after the program's name; None: what this process was started with.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of other libraries would fill a log with pieces of lines
    from vgpo_lite.commands.app import run

    run(arguments)
