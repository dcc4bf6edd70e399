"""Where recipes live and how one is found by name, from a checkout as from an installed wheel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from vgpo_lite.config.problems import Problem, nearest
from vgpo_lite.errors import ConfigError

KINDS: Mapping[str, str] = {"models": "model", "datasets": "dataset", "gpus": "card", "runs": "run"}
"""The folders of recipes, and what one recipe of each is called."""

FLAGS: Mapping[str, str] = {"models": "--model", "datasets": "--dataset", "gpus": "--gpu", "runs": "--recipe"}
"""The flag that takes a recipe of each kind."""

SUFFIXES = (".yaml", ".yml")


@cache
def recipe_root() -> Path:
    """The folder of the shipped recipes.

    Raises:
        ConfigError: There is none: the installation is damaged.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):  # in a wheel; in a checkout
        if (folder / "models").is_dir():
            return folder
    raise ConfigError(
        f"no recipes beside {package}: the installation is damaged; install again with `pip install vgpo-lite`"
    )


@cache
def recipe_names(kind: str) -> tuple[str, ...]:
    """The names of the shipped recipes of a kind, in alphabetical order; empty where the kind has none."""
    return tuple(sorted(path.stem for path in (recipe_root() / kind).glob("*.yaml")))


def recipe_path(kind: str, name: str) -> Path | None:
    """The file of a shipped recipe, or None where the kind has none of that name."""
    return recipe_root() / kind / f"{name}.yaml" if name in recipe_names(kind) else None


def description(path: Path) -> str:
    """What a recipe says it is for: the comment in its first line, or nothing."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def existing_path(name: str) -> Path | None:
    """The file or folder that a name stands for; None where there is none, or where no path is written like that."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long; a null byte; the home of nobody
        return None


def paths_beside(name: str) -> list[str]:
    """What lies in the folder of a path that leads nowhere: one of them was perhaps meant."""
    try:
        return [str(other) for other in Path(name).expanduser().parent.iterdir()]
    except (OSError, ValueError, RuntimeError):
        return []


def find_recipe(name: str, kind: str) -> tuple[Path, str] | Problem:
    """Find what `--recipe` names: a shipped recipe, a file, or a run directory with its config.yaml.

    Args:
        name: As the user wrote it.
        kind: The folder of shipped recipes to look in.

    Returns:
        The file and how messages call it, or the problem with the name.
    """
    shipped = recipe_path(kind, name)
    if shipped is not None:
        return shipped, f"{KINDS[kind]} recipe {name}"
    found = existing_path(name)
    if found is not None and found.is_dir():
        if (found / "config.yaml").is_file():
            return found / "config.yaml", str(Path(name) / "config.yaml")
        return Problem(text=f"{name} is a folder without a config.yaml", expected="a recipe or a run directory")
    if found is not None:
        return found, name
    path = Path(name)
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        beside = [str(other) for end in SUFFIXES for other in path.parent.glob(f"*{end}")] if "\0" not in name else []
        return Problem(text=f"there is no recipe file {name}", near=nearest(name, beside))
    return unknown_recipe(name, kind)


def unknown_recipe(name: str, kind: str) -> Problem:
    """A name that no shipped recipe of a kind has, with the nearest and the list."""
    for other, flag in FLAGS.items():
        if other != kind and name in recipe_names(other):
            return Problem(text=f"{name} is a {KINDS[other]} recipe, not a {KINDS[kind]} recipe", near=f"{flag} {name}")
    names = recipe_names(kind)
    return Problem(
        text=f"there is no {KINDS[kind]} recipe {name}",
        expected=f"{', '.join(names) or 'none is shipped'}, or the path of a YAML file",
        near=nearest(name, names),
    )
