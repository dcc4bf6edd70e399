"""What a run directory tells of its run, read again from the files that the run has written."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from vgpo_lite.data_types import Accuracy
from vgpo_lite.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run, as far as it got.

    Attributes:
        name: The name of its directory.
        settings: Every setting by full key (`focus.beta`); empty where config.yaml is missing.
        config: The text of config.yaml.
        steps: The optimizer steps recorded, ascending.
        metrics: One value per step by name; nan where a step has none, or had one that was not finite.
        accuracies: Held-out accuracy by when it was measured, `before` and `after`.
        status: The content of status.json.
        facts: What the run's first event tells: the device, for one.
        unread: Lines of metrics.jsonl that are no records.
    """

    name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    config: str = ""
    steps: tuple[int, ...] = ()
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)
    status: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    unread: int = 0

    @property
    def state(self) -> str:
        """Where the run stands: `running`, `finished`, `interrupted`, `failed`, or `unknown`."""
        return str(self.status.get("state", "unknown"))

    def fingerprint(self) -> str:
        """Hash of everything a report shows of the run."""
        shown = {name: value for name, value in self.status.items() if name not in ("time", "pid")}
        parts = (self.name, self.config, self.steps, self.metrics, self.accuracies, shown, self.facts, self.unread)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def read_run(folder: Path) -> RunRecord:
    """Read a run directory; files that are missing or cut short tell less, not wrong.

    Raises:
        CheckpointError: The folder holds no run.
    """
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "status.json")):
        raise CheckpointError(
            f"{folder} holds no run: expected a config.yaml, metrics.jsonl and status.json, as `vgpo-lite train` "
            "writes them."
        )
    config = _text(folder / "config.yaml")
    steps, unread = _steps(folder / "metrics.jsonl")
    names = dict.fromkeys(name for values in steps.values() for name in values)
    events, _ = _entries(folder / "events.jsonl")
    return RunRecord(
        name=folder.resolve().name,
        settings=_settings(config),
        config=config,
        steps=tuple(sorted(steps)),
        metrics={name: tuple(steps[step].get(name, math.nan) for step in sorted(steps)) for name in names},
        accuracies=_accuracies(events),
        status=_status(_text(folder / "status.json")),
        facts=next((event for event in reversed(events) if event.get("kind") == "started"), {}),
        unread=unread,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _entries(path: Path) -> tuple[list[dict[str, object]], int]:
    """The JSON objects of a file's lines, and how many lines are none."""
    entries, unread = [], 0
    for line in _text(path).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            unread += 1
            continue
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            unread += 1
    return entries, unread


def _steps(path: Path) -> tuple[dict[int, dict[str, float]], int]:
    """The metrics of each step; of a step that was recorded twice, the later."""
    entries, unread = _entries(path)
    steps: dict[int, dict[str, float]] = {}
    for entry in entries:
        step = entry.pop("step", None)
        if not isinstance(step, int):
            unread += 1
            continue
        steps[step] = {name: _number(value) for name, value in entry.items()}
    return steps, unread


def _number(value: object) -> float:
    """A recorded value; null stands for one that was not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _accuracies(events: list[dict[str, object]]) -> dict[str, Accuracy]:
    measured = {}
    for event in events:
        if event.get("kind") == "evaluated":
            right, total, low, high = (event.get(name) for name in ("right", "total", "low", "high"))
            if isinstance(right, int) and isinstance(total, int) and total > 0:
                measured[str(event.get("name"))] = Accuracy(
                    right=right, total=total, low=_number(low), high=_number(high)
                )
    return measured


def _status(text: str) -> dict[str, object]:
    try:
        status = json.loads(text)
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _settings(config: str) -> dict[str, object]:
    try:
        tree = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    return dict(_leaves(tree)) if isinstance(tree, dict) else {}


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    leaves: list[tuple[str, object]] = []
    for name, value in tree.items():
        if isinstance(value, dict) and not prefix:
            leaves += _leaves(value, f"{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves
