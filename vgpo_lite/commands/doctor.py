"""`vgpo-lite doctor`: what this machine can do, what is wrong with it, and what to do about that."""

from __future__ import annotations

from typing import Annotated

import typer

from vgpo_lite.errors import HardwareError


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the findings as JSON, to paste into a report.")
    ] = False,
) -> None:
    """Check this machine, and say what stands in the way of training.

    Ends with 0 where training can run and with 4 where something stands in
    its way; each line that is not fine says what to do.
    """
    import json

    from vgpo_lite.commands.checkup import Verdict, findings

    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            typer.echo(f"{finding.verdict.value:<5} {finding.subject:<18} {finding.found}")
            if finding.advice:
                typer.echo(f"{'':<24} -> {finding.advice}")
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in found], indent=2))
    wrong = [finding.subject for finding in found if finding.verdict is Verdict.WRONG]
    if wrong:
        raise HardwareError(f"training cannot run here before this is mended: {', '.join(wrong)}.")
    if not as_json:
        typer.echo("\nTraining can run here. Begin with: vgpo-lite train")
