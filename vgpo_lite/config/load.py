"""Text -> one frozen RunConfig: defaults < model < dataset < card < run recipe < `--set` < flags.

Everything that is wrong is told in one message. The config remembers where each of its values came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from pydantic import ValidationError

from vgpo_lite.config.layers import Entries, Layer, read_flags, read_overrides, read_recipe
from vgpo_lite.config.problems import Problem, from_validation, nearest, raise_if_any
from vgpo_lite.config.recipes import KINDS, existing_path, find_recipe, paths_beside, recipe_names, recipe_path
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.config.settings import settings
from vgpo_lite.config.writing import flat_values, write_config
from vgpo_lite.errors import ConfigError

__all__ = ["check_recipe", "load_config", "resolve", "with_overrides", "write_config"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name, as the hub writes it."""

TRUST = "trust_remote_code"

LONGEST_NAME = 200
"""Characters of a name that a message shows."""

IDENTITY: Mapping[str, frozenset[str]] = {
    "model": frozenset({"model_id", "revision"}),
    "dataset": frozenset(
        {
            "data.id",
            "data.revision",
            "data.subset",
            "data.split",
            "data.eval_split",
            "data.question_column",
            "data.image_column",
            "data.answer_column",
            "data.choices_column",
            "data.evaluation_only",
            "data.columns_verified",
        }
    ),
}
"""The settings that say which model or data set a name stands for: they belong to that name alone."""


def load_config(
    recipe: str | PurePath | None = None,
    *,
    model: str | PurePath | None = None,
    dataset: str | PurePath | None = None,
    gpu: str | None = None,
    overrides: Sequence[str] = (),
    **flags: object,
) -> RunConfig:
    """Build the configuration of a run.

    Later layers win: defaults, model recipe, dataset recipe, card recipe, run recipe, `overrides`, `flags`. Sections
    are merged key by key; the table `reward.functions` is replaced as a whole, except by an override of one entry.

    Args:
        recipe: A run recipe: the name of a shipped one, a YAML file, or a run directory, whose config.yaml repeats
            that run.
        model: Preset, hub id (`owner/name`) or local folder; None: what the recipe says, or the built-in `tiny`.
        dataset: Preset, hub id, file or folder; None: what the recipe says, or the built-in `shapes`.
        gpu: Name or file of a recipe for a card.
        overrides: Settings as `"focus.beta=0.2"`, the way `--set` takes them.
        flags: Settings by name, a section as a mapping: `max_steps=20, focus={"beta": 0.2}`. None says nothing.

    Returns:
        The configuration; its `sources` tell where each value came from.

    Raises:
        ConfigError: Anything is wrong; the message names all of it.

    >>> config = load_config(overrides=["focus.beta=0.2", "learning_rate=1e-5"], max_steps=20)
    >>> config.focus.beta, config.learning_rate, config.max_steps
    (0.2, 1e-05, 20)
    >>> config.sources["focus.beta"]
    '--set focus.beta=0.2'
    """
    named = {"model": model, "dataset": dataset, **flags}
    return resolve(recipe=recipe, gpu=gpu, overrides=overrides, flags=named)


def resolve(
    *,
    recipe: str | PurePath | None = None,
    gpu: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object],
    flag_style: str = "argument ",
) -> RunConfig:
    """What `load_config` and the commands share.

    Args:
        recipe: As in `load_config`.
        gpu: As in `load_config`.
        overrides: As in `load_config`.
        flags: Settings by name, `model` and `dataset` among them.
        flag_style: How messages call a flag: `--` for flags of a command, else the words before its name.

    Raises:
        ConfigError: Anything is wrong; the message names all of it.
    """
    run = _named_layer(recipe, "runs")
    set_layer = read_overrides([overrides] if isinstance(overrides, str) else overrides)
    flag_layer = read_flags(flags, flag_style)
    above = [run, set_layer, flag_layer]
    presets = [_preset(key, above) for key in IDENTITY]
    for key, identity in IDENTITY.items():
        if run.values.get(key, _chosen(key, above)) != _chosen(key, above):
            run = run.without(identity)
    recipes, typed = [*presets, _named_layer(gpu, "gpus"), run], [set_layer, flag_layer]
    layers = [*recipes, *typed]
    values, sources = _merged(layers)
    problems = [*(problem for layer in layers for problem in layer.problems), *_untyped_trust(recipes, typed)]
    config = _validated(values, sources, problems)
    return config.with_sources(sources)


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same configuration with some settings changed, as `--set` changes them.

    Raises:
        ConfigError: Anything is wrong; the message names all of it.
    """
    changes = read_overrides([overrides] if isinstance(overrides, str) else overrides)
    values, sources = _merged([Layer(values=flat_values(config), sources=config.sources), changes])
    return _validated(values, sources, changes.problems).with_sources(sources)


def check_recipe(path: Path, name: str) -> None:
    """Read one recipe of any kind on top of the defaults.

    Args:
        path: The file.
        name: How messages call it.

    Raises:
        ConfigError: Anything in it is wrong; the message names all of it.
    """
    layer = read_recipe(path, name)
    layers = [*(_preset(key, [layer]) for key in IDENTITY), layer]
    values, sources = _merged(layers)
    problems = [*(problem for each in layers for problem in each.problems), *_untyped_trust(layers, [])]
    _validated(values, sources, problems)


def _untyped_trust(recipes: Sequence[Layer], typed: Sequence[Layer]) -> list[Problem]:
    """A recipe, which may come from anybody, does not let a repository's code run here: whoever runs it must."""
    if any(TRUST in layer.values for layer in typed):
        return []
    expected = f"it typed, as --set {TRUST}=true: no recipe lets the code of a model's repository run"
    return [
        Problem(text=f"{TRUST} is true", source=layer.sources[TRUST], expected=expected)
        for layer in recipes
        if layer.values.get(TRUST) is True
    ]


def _named_layer(name: str | PurePath | None, kind: str) -> Layer:
    if name is None:
        return Layer()
    found = find_recipe(str(name), kind)
    return Layer(problems=(found,)) if isinstance(found, Problem) else read_recipe(*found)


def _chosen(key: str, layers: Sequence[Layer]) -> object:
    """What the highest layer that speaks of `key` says, or its default."""
    return next((layer.values[key] for layer in reversed(layers) if key in layer.values), settings()[key].default)


def _preset(key: str, layers: Sequence[Layer]) -> Layer:
    """The recipe that the chosen model or data set names, silent where it is no preset."""
    name = _chosen(key, layers)
    if not isinstance(name, str):  # the schema will complain
        return Layer()
    kind = f"{key}s"
    path = recipe_path(kind, name)
    if path is not None:
        return read_recipe(path, f"{KINDS[kind]} recipe {name}")
    if name == settings()[key].default or existing_path(name) or HUB_ID.fullmatch(name):
        return Layer()
    source = next((layer.sources[key] for layer in reversed(layers) if key in layer.sources), "default")
    noun = "model" if key == "model" else "data set"
    expected = (
        f"{', '.join(recipe_names(kind))}, a hub id (owner/name) or a local {'folder' if key == 'model' else 'path'}"
    )
    near = nearest(name, recipe_names(kind)) or nearest(PurePath(name).as_posix(), paths_beside(name))
    told = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}... ({len(name):,} characters)"
    problem = Problem(text=f"there is no {noun} {told}", source=source, expected=expected, near=near)
    return Layer(problems=(problem,))


def _merged(layers: Sequence[Layer]) -> tuple[dict[str, object], dict[str, str]]:
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            below = values.get(key, settings()[key].default)
            if isinstance(value, Entries) and isinstance(below, dict):
                value = {**below, **value}
            values[key] = value
        sources.update(layer.sources)
    return values, sources


def _validated(values: Mapping[str, object], sources: Mapping[str, str], problems: Sequence[Problem]) -> RunConfig:
    nested: dict[str, object] = {}
    for key, value in values.items():
        section, dot, name = key.rpartition(".")
        place = nested.setdefault(section, {}) if dot else nested
        if isinstance(place, dict):
            place[name] = value
    try:
        config = RunConfig.model_validate(nested, strict=True)
    except ValidationError as error:
        raise_if_any([*problems, *from_validation(error, values, sources)])
        raise ConfigError(str(error)) from error
    raise_if_any(problems)
    return config
