"""Run directories made up for tests: the files that a run writes, without a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vgpo_lite.config.load import load_config
from vgpo_lite.config.writing import write_config

BEFORE = {"right": 8, "total": 20, "low": 0.2188, "high": 0.6134}
AFTER = {"right": 15, "total": 20, "low": 0.5313, "high": 0.8881}


def metrics_of(step: int) -> dict[str, float | None]:
    """The metrics of a step as the trainer names them, each with its own value."""
    return {
        "reward/mean": 0.4 + step / 100,
        "reward/accuracy": 0.5 + step / 100,
        "groups/useful_share": 0.75,
        "completions/mean_length": 18.0 + step,
        "completions/truncated_share": 0.125,
        "focus/early": 0.7,
        "focus/late": 0.5,
        "policy/clip_low_share": 0.0,
        "policy/clip_high_share": 0.01,
        "policy/grad_norm": 0.02 * step,
        "time/sampling_seconds": 2.75,
        "time/grading_seconds": 0.25,
        "time/looking_seconds": 0.5,
        "time/updating_seconds": 1.5,
        "time/step_seconds": 5.0,
        "memory/sampling_peak_bytes": 900_000_000.0 + step,
        "memory/grading_peak_bytes": 600_000_000.0,
        "memory/looking_peak_bytes": 800_000_000.0,
        "memory/updating_peak_bytes": 1_000_000_000.0,
        "memory/peak_bytes": 1_000_000_000.0 + step,
    }


def make_run(
    folder: Path,
    *,
    steps: int = 6,
    state: str = "finished",
    accuracies: dict[str, dict[str, Any]] | None = None,
    changes: dict[int, dict[str, float | None]] | None = None,
    reason: str | None = None,
    **settings: Any,
) -> Path:
    """Write a run directory.

    Args:
        folder: Where.
        steps: Steps recorded.
        state: What status.json says.
        accuracies: Held-out measurements by name; None: one before and one after.
        changes: Metrics that differ from `metrics_of`, by step.
        reason: Why it ended.
        settings: Settings of the run.
    """
    folder.mkdir(parents=True)
    write_config(load_config(output=str(folder), max_steps=6, **settings), folder / "config.yaml")
    lines = [{"step": step} | metrics_of(step) | (changes or {}).get(step, {}) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = {"before": BEFORE, "after": AFTER} if accuracies is None else accuracies
    events = [{"time": 1.0, "kind": "started", "device": "CPU, 1 thread", "first_step": 1}]
    events += [{"time": 2.0, "kind": "evaluated", "name": name} | each for name, each in measured.items()]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    status = {"state": state, "time": 3.0, "steps": steps, "updated_steps": steps, "reason": reason}
    (folder / "status.json").write_text(
        json.dumps({name: value for name, value in status.items() if value is not None})
    )
    return folder


def recorded(folder: Path, name: str) -> list[float]:
    """The values of a metric as metrics.jsonl has them, without those that are null."""
    values = [json.loads(line).get(name) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [value for value in values if value is not None and math.isfinite(value)]
