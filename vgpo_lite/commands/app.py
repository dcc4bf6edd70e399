"""The program `vgpo-lite`: its commands, and what stands around them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vgpo_lite import __version__
from vgpo_lite.commands import chat, compare, data, doctor, inspect, merge, plan, push, recipe, replay, report, train
from vgpo_lite.commands import eval as evaluation
from vgpo_lite.commands.failures import reported, tell_unexpected

OVERVIEW = """\
Teach a vision-language model to keep looking: reinforcement learning with verifiable rewards on one consumer GPU.

First steps:

[bold]vgpo-lite doctor[/bold]        what this machine can do

[bold]vgpo-lite train[/bold]         a built-in model learns to count, minutes on a CPU

[bold]vgpo-lite recipe list[/bold]   the models, data sets and runs that have names

[bold]vgpo-lite train --model qwen2-vl-2b --dataset geo3k[/bold]   the real thing
"""

EXIT_CODES = (
    "Exit codes: 0 done, 2 usage or configuration, 3 data, model or checkpoint, 4 memory or hardware, "
    "5 numbers that are not finite, 6 storage, 130 Ctrl-C, 143 terminated. VGPO_LITE_DEBUG=1 shows tracebacks."
)

app = typer.Typer(
    name="vgpo-lite",
    help=OVERVIEW,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vgpo-lite {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", help="Show the version and leave.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


app.command("train", rich_help_panel="Learn and measure")(reported(train.train, alone=False))
app.command("eval", rich_help_panel="Learn and measure")(reported(evaluation.evaluate))
app.command("replay", rich_help_panel="Learn and measure")(reported(replay.replay))
app.command("plan", rich_help_panel="Find your way")(reported(plan.plan))
app.command("report", rich_help_panel="Learn and measure")(reported(report.report))
app.command("inspect", rich_help_panel="Learn and measure")(reported(inspect.inspect))
app.command("compare", rich_help_panel="Learn and measure")(reported(compare.compare))
app.command("merge", rich_help_panel="Use what was learned")(reported(merge.merge))
app.command("push", rich_help_panel="Use what was learned")(reported(push.push))
app.command("chat", rich_help_panel="Use what was learned")(reported(chat.chat))
app.add_typer(data.app, name="data", rich_help_panel="Find your way")
app.add_typer(recipe.app, name="recipe", rich_help_panel="Find your way")
app.command("doctor", rich_help_panel="Find your way")(reported(doctor.doctor))


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code.

    Typer's own start is passed by: it would put a hook of its own in the way of unexpected errors.
    """
    sys.excepthook = tell_unexpected
    command = typer.main.get_command(app)
    command.main(args=None if arguments is None else list(arguments), prog_name="vgpo-lite")
