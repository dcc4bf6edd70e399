"""A tracker that mirrors metrics.jsonl. It is a guest: whatever it does, the run goes on."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from vgpo_lite.errors import ConfigError
from vgpo_lite.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from accelerate.tracking import GeneralTracker

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}

_SCALARS = (bool, int, float, str)  # what every tracker takes as a setting


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed, before anything is loaded.

    Raises:
        ConfigError: Its package is missing.
    """
    if name != "none" and importlib.util.find_spec(_PACKAGES[name]) is None:
        raise ConfigError(f"report_to is {name}, but {name} is not installed. Run: pip install 'vgpo-lite[{name}]'")


class Tracker:
    """Sends a step's metrics to the tracker that `report_to` names, through accelerate.

    A tracker that keeps runs by project has this one by the name of its directory, in the project that WANDB_PROJECT or
    TRACKIO_PROJECT names. A tracker that fails, at its start or later, is told of once and then left alone.
    """

    def __init__(
        self, name: str, *, folder: Path, settings: Mapping[str, object], on_failure: Callable[[str], None]
    ) -> None:
        self._name = name
        self._on_failure = on_failure
        self._tracker: GeneralTracker | None = None
        if name != "none":
            self._guarded(lambda: self._start(folder, settings))

    def _start(self, folder: Path, settings: Mapping[str, object]) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it which process they are on
        make: Callable[..., GeneralTracker] = LOGGER_TYPE_TO_CLASS[self._name]
        in_folder = self._name == "tensorboard"
        project = os.environ.get(f"{self._name.upper()}_PROJECT") or "vgpo-lite"
        tracker = make("tensorboard", logging_dir=str(folder)) if in_folder else make(project, name=folder.name)
        tracker.start()
        plain = {name: value if isinstance(value, _SCALARS) else str(value) for name, value in settings.items()}
        tracker.store_init_configuration(plain)
        self._tracker = tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror one step, or what was measured after it."""
        tracker = self._tracker
        if tracker is not None:
            self._guarded(lambda: self._send(tracker, step, metrics))

    def _send(self, tracker: GeneralTracker, step: int, metrics: Mapping[str, float]) -> None:
        failpoint("tracker.log")
        tracker.log(dict(metrics), step=step)

    def close(self) -> None:
        """Let the tracker finish what it has."""
        tracker = self._tracker
        if tracker is not None:
            self._guarded(tracker.finish)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  a tracker is foreign code and may fail in any way
            self._tracker = None
            self._on_failure(f"{self._name} failed and is left alone from here on: {error}")
