"""The form in which every benchmark leaves its result: `benchmarks/results/<name>.json`."""

from __future__ import annotations

import datetime
import json
import operator
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from vgpo_lite.memory import processor_name

RESULTS = Path(__file__).parent / "results"
RELATIONS = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


def claim(name: str, value: float, relation: str, target: float, unit: str) -> dict[str, object]:
    """A measured value beside its target; `met` says whether the one keeps the relation to the other."""
    met = RELATIONS[relation](value, target)
    return {"name": name, "value": value, "unit": unit, "target": target, "relation": relation, "met": met}


def in_own_process(script: str, job: dict[str, Any]) -> dict[str, float]:
    """What `python SCRIPT --one JOB` prints last, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
    command = [sys.executable, script, "--one", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job}: failed\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def lines_of(log: Path) -> list[dict[str, Any]]:
    """The finished measurements of a log, one JSON a line; none where there is no log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def write_result(
    name: str, *, measurements: dict[str, object], claims: list[dict[str, object]], packages: tuple[str, ...], gpu: str
) -> Path:
    """Write a result with the command, commit, date, machine and versions that it was measured with."""
    folder = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    result = {
        "command": shlex.join(["python", str(Path(sys.argv[0]).resolve().relative_to(folder)), *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": psutil.virtual_memory().total,
            "gpu": gpu,
        },
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "measurements": measurements,
        "claims": claims,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
