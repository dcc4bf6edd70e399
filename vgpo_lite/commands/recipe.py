"""`vgpo-lite recipe`: find, read, copy and check recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vgpo_lite.commands.failures import reported
from vgpo_lite.errors import ConfigError

app = typer.Typer(
    help="Models, data sets and runs that ship as recipes, and recipes of your own.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

DEFAULTS = "defaults"
"""The recipe that is made from the schema: every setting, commented out."""

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name from `recipe list`, or `defaults` for every setting there is.")
]


def list_recipes() -> None:
    """List what ships: names for --model, --dataset and --recipe."""
    from vgpo_lite.commands.words import columns
    from vgpo_lite.config.recipes import FLAGS, KINDS, description, recipe_names, recipe_root

    for kind in KINDS:
        names = recipe_names(kind)
        if names:
            typer.echo(f"{kind}  ({FLAGS[kind]} NAME)" if kind in FLAGS else kind)
            rows = [("  " + name, description(recipe_root() / kind / f"{name}.yaml")) for name in names]
            typer.echo("\n".join(columns(rows)) + "\n")
    typer.echo("`vgpo-lite recipe show NAME` prints one, `vgpo-lite recipe copy NAME` makes it yours.")


def show(name: NameArgument) -> None:
    """Print a recipe."""
    typer.echo(_text_of(name), nl=False)


def copy(
    name: NameArgument,
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The copy. \\[default: NAME.yaml]", show_default=False)
    ] = None,
) -> None:
    """Copy a recipe, to change it and train with --recipe FILE."""
    place = Path(f"{name}.yaml") if path is None else path
    place = place / f"{name}.yaml" if place.is_dir() else place
    if place.exists():
        raise ConfigError(f"{place} exists already; choose another name for the copy.")
    text = _text_of(name)
    try:
        place.write_text(text, encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no folder {place.parent} to copy into.") from error
    typer.echo(f"{place} written. Edit it, then: vgpo-lite train --recipe {place}")


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]...", help="Files or names. \\[default: all that ship]", show_default=False),
    ] = None,
) -> None:
    """Check recipes: every key and value, the model and the data set."""
    from vgpo_lite.config.load import check_recipe

    failures = []
    for name in names or _shipped():
        path = _path_of(name)
        try:
            check_recipe(path, name)
        except ConfigError as error:
            failures.append(f"{name}: {error}")
        else:
            typer.echo(f"{name}: fine")
    if failures:
        raise ConfigError("\n".join(failures))


def _shipped() -> list[str]:
    from vgpo_lite.config.recipes import KINDS, recipe_names

    return [f"{kind}/{name}" for kind in KINDS for name in recipe_names(kind)]


def _text_of(name: str) -> str:
    from vgpo_lite.config.reference import default_recipe

    return default_recipe() if name == DEFAULTS else _path_of(name).read_text(encoding="utf-8")


def _path_of(name: str) -> Path:
    """The file of a recipe: shipped under its name or `kind/name`, or a path.

    Raises:
        ConfigError: There is none; the nearest name is told.
    """
    from vgpo_lite.config.problems import nearest
    from vgpo_lite.config.recipes import KINDS, recipe_names, recipe_path

    for kind in KINDS:
        path = recipe_path(kind, name.removeprefix(f"{kind}/"))
        if path is not None:
            return path
    if Path(name).is_file():
        return Path(name)
    near = nearest(name, [DEFAULTS, *(each for kind in KINDS for each in recipe_names(kind))])
    rather = f"did you mean {near}?" if near else "`vgpo-lite recipe list` names all."
    raise ConfigError(f"there is no recipe {name}; {rather}")


app.command("list")(reported(list_recipes))
app.command("show")(reported(show))
app.command("copy")(reported(copy))
app.command("check")(reported(check))
