"""Loads a reward function of the user's from `file.py:function`."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

BUILT_IN = ("accuracy", "format")
"""Rewards that are named without a file."""

GUEST_FAULTS = (Exception, SystemExit)
"""What a guest's code may raise without taking the run along; a KeyboardInterrupt is the user's own."""


def load_guest(source: str, modules: dict[Path, ModuleType]) -> tuple[str, Callable[..., object]]:
    """Return the name and the function of `file.py:function`.

    Args:
        source: As the configuration names it; a relative path starts at the working folder.
        modules: Files loaded so far, by path; a file is loaded once.

    Raises:
        ConfigError: The file or the function is missing (with the nearest name), the file does not load, or what it
            names is no function or an asynchronous one.
    """
    file, _, name = source.rpartition(":")
    if not file.endswith(".py") or not name:
        raise ConfigError(
            f"the reward {source!r} is unknown; expected file.py:function or a built-in one"
            + _nearest(source, BUILT_IN)
        )
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        beside = [str(Path(file).parent / other.name) for other in path.parent.glob("*.py")]
        raise ConfigError(f"the reward file {file} does not exist (looked for {path})" + _nearest(file, beside))
    if path not in modules:
        modules[path] = _module(path)
    members = vars(modules[path])
    if name not in members:
        functions = [member for member, value in members.items() if callable(value) and not member.startswith("_")]
        raise ConfigError(f"the reward file {file} has no function {name!r}" + _nearest(name, functions))
    call = members[name]
    if not callable(call):
        raise ConfigError(f"{name!r} in the reward file {file} is {type(call).__name__}; expected a function")
    if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__):
        raise ConfigError(f"the reward {source} is asynchronous, which is not supported; write it with `def`")
    return name, call


def _module(path: Path) -> ModuleType:
    """Load a user's file, with its folder importable meanwhile."""
    name = f"vgpo_lite_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"the reward file {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except GUEST_FAULTS as error:
        del sys.modules[name]
        raise ConfigError(f"the reward file {path} does not load: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder last on the import path for a while, so that a user's file finds the files beside it."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _nearest(name: str, choices: Sequence[str]) -> str:
    """Return the end of a message that offers the nearest name, and all of them."""
    if not choices:
        return ""
    nearest = difflib.get_close_matches(name, choices, n=1)
    return (f"; did you mean {nearest[0]}?" if nearest else "") + f" (there are: {', '.join(sorted(choices)[:20])})"
