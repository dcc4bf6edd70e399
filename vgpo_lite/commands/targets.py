"""What a path on the command line stands for: a run directory, one of its checkpoints, or an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vgpo_lite.config.problems import nearest
from vgpo_lite.config.recipes import existing_path
from vgpo_lite.errors import CheckpointError, ConfigError

ADAPTER_FILE = "adapter_config.json"
"""What PEFT writes into every adapter folder."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A policy on the command line.

    Attributes:
        recipe: The config.yaml of the run it belongs to, or None where it belongs to none.
        model: The model as named, or None where the recipe names it.
        adapter: The adapter's folder, or None for the bare model.
    """

    recipe: str | None
    model: str | None
    adapter: str | None


def target(model: str | None, adapter: str | None, recipe: str | None = None) -> Target:
    """Sort out which model, adapter and settings are meant.

    A run directory, in the place of a model or of an adapter, stands for its own model, settings and adapter; an
    adapter is asked the way it was trained also where the model is named beside it.

    Args:
        model: Preset, hub id, folder of a model, or run directory; None: the recipe's or the default.
        adapter: Adapter folder or run directory; None: the run's own, if `model` is a run.
        recipe: A recipe named by the user, which then counts instead of the run's.

    Raises:
        ConfigError: A path leads nowhere.
        CheckpointError: A folder holds no adapter.
    """
    place = None if model is None else existing_path(model)
    run = None if place is None else run_of(place)
    if run is not None:
        model, adapter = None, adapter or model
    folder = None if adapter is None else adapter_folder(adapter)
    if run is None and folder is not None:
        run = run_of(Path(folder))
    return Target(recipe=recipe or (None if run is None else str(run / "config.yaml")), model=model, adapter=folder)


def run_of(path: Path) -> Path | None:
    """The run directory that a path is, or lies in as its adapter or checkpoint."""
    path = path.absolute()
    candidates = [path]
    if path.name == "adapter":
        candidates.append(path.parent)
    if path.parent.name == "checkpoints":
        candidates.append(path.parent.parent)
    return next((place for place in candidates if (place / "config.yaml").is_file()), None)


def existing_folder(path: str) -> Path:
    """The folder at a path.

    Raises:
        ConfigError: There is none; the nearest name beside it is told.
    """
    found = existing_path(path)
    if found is not None and found.is_dir():
        return found
    folder = Path(path)
    beside = [str(other) for other in folder.parent.glob("*") if other.is_dir()] if folder.parent.is_dir() else []
    near = nearest(str(folder), beside)
    raise ConfigError(f"there is no folder {path}" + (f"; did you mean {near}?" if near else "."))


def adapter_folder(path: str) -> str:
    """The adapter that a path is, or holds as a run or checkpoint does.

    Raises:
        ConfigError: There is nothing at the path.
        CheckpointError: There is no adapter in it.
    """
    folder = existing_folder(path)
    found = [place for place in (folder, folder / "adapter") if (place / ADAPTER_FILE).is_file()]
    if not found:
        run = run_of(folder)
        advice = (
            "" if run is None else f" A run writes {run / 'adapter'} when it finishes: continue it with --resume auto."
        )
        raise CheckpointError(f"{path} holds no {ADAPTER_FILE}, so it is no adapter.{advice}")
    return str(found[0])
