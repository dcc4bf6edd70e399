"""`vgpo-lite replay`: take a recorded step anew."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vgpo_lite.commands.options import QuietOption, SetOption

if TYPE_CHECKING:
    from vgpo_lite.replay import Replay

TOLERANCE = 1e-6
"""A step replayed with its own settings on the same kind of machine agrees better than this."""


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")],
    step: Annotated[
        int | None,
        typer.Option(
            "--step", metavar="N", min=1, help="The step. \\[default: list those that are kept]", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print the result as JSON and nothing else.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Compute a step's loss and gradient again, without sampling.

    A run keeps its last steps in RUN/journal (journal.steps, and
    journal.max_bytes for their adapters). --set changes what is made of the
    recorded rollouts: advantage, loss, clipping, KL, focus, or the engine,
    device and precision that compute it.

    Examples:

      vgpo-lite replay runs/tiny-shapes

      vgpo-lite replay runs/tiny-shapes --step 12

      vgpo-lite replay runs/tiny-shapes --step 12 --set advantage=grpo
    """
    from vgpo_lite.commands.targets import existing_folder
    from vgpo_lite.config.load import resolve
    from vgpo_lite.models.backends import import_backend

    folder = existing_folder(run)
    if step is None:
        _list(folder, as_json=as_json)
        return
    if (folder / "config.yaml").is_file():
        config = resolve(recipe=folder, flags={})
        import_backend(config.backend, device=config.device)
    from vgpo_lite.commands.display import watching
    from vgpo_lite.replay import replay_step

    with watching(quiet=quiet or as_json) as listener:
        report = replay_step(folder, step, overrides=overrides or (), listener=listener)
    _show(report, as_json=as_json)


def _list(run: Path, *, as_json: bool) -> None:
    from vgpo_lite.commands.words import columns
    from vgpo_lite.journal import kept_steps

    kept = kept_steps(run)
    if as_json:
        steps = [
            {
                "step": entry.step,
                "groups": entry.groups,
                "tokens": entry.tokens,
                "loss": entry.loss,
                "grad_norm": entry.grad_norm,
                "replayable": reason is None,
            }
            for entry, reason in kept
        ]
        typer.echo(json.dumps({"run": str(run), "steps": steps}, indent=2))
        return
    rows = []
    for entry, reason in kept:
        numbers = (_number(entry.loss), _number(entry.grad_norm)) if entry.groups else ("", "")
        rows.append((str(entry.step), str(entry.groups), f"{entry.tokens:,}", *numbers, reason or "yes"))
    for line in columns([("step", "groups", "tokens", "loss", "grad norm", "can be replayed"), *rows]):
        typer.echo(line)


def _show(report: Replay, *, as_json: bool) -> None:
    from vgpo_lite.commands.words import columns

    pairs = {
        "loss": (report.recorded.loss, report.replayed.loss),
        "grad norm": (report.recorded.grad_norm, report.replayed.grad_norm),
    }
    if as_json:
        numbers = {
            name.replace(" ", "_"): {"recorded": _finite(recorded), "replayed": _finite(replayed)}
            for name, (recorded, replayed) in pairs.items()
        }
        changed = {key: {"recorded": old, "replayed": new} for key, (old, new) in report.changed.items()}
        typer.echo(json.dumps({"step": report.step, "changed": changed, **numbers}, indent=2))
        return
    typer.echo(f"step {report.step}: {report.groups} groups, {report.tokens:,} tokens")
    for key, (old, new) in report.changed.items():
        typer.echo(f"{key}: {old} in the run, {new} in the replay")
    rows = [
        (name, _number(recorded), _number(replayed), _difference(recorded, replayed))
        for name, (recorded, replayed) in pairs.items()
    ]
    for line in columns([("", "recorded", "replayed", "difference"), *rows]):
        typer.echo(line)
    if not report.changed and not all(_agree(*pair) for pair in pairs.values()):
        typer.echo(
            f"note: they differ by more than {TOLERANCE:g}, as another machine or another version of torch may do to "
            "them; on the run's own they should not."
        )


def _agree(recorded: float, replayed: float) -> bool:
    both_broken = not math.isfinite(recorded) and not math.isfinite(replayed)
    return both_broken or abs(recorded - replayed) <= TOLERANCE * max(1.0, abs(recorded))


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.9g}"


def _difference(recorded: float, replayed: float) -> str:
    return f"{replayed - recorded:.3g}" if math.isfinite(recorded) and math.isfinite(replayed) else "-"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
