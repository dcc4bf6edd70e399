"""Kill a training sixty times with `kill -9`, and compare what comes out with a training that nobody disturbed.

    python benchmarks/torture.py

The built-in model trains in NF4, two updates per rollout, a checkpoint after every step. Each process goes on with
`--resume auto` where the one before was killed. It is left alone until it has saved a checkpoint of its own, then until
a phase drawn at random begins, then for a random share of that phase's usual length; then it gets SIGKILL. After every
kill all that lies in the run directory is read, as a user or the next process would.

How it works: this process loads the libraries once and forks. Each child opens model, data and grading server anew and
calls `vgpo_lite.train` with `resume="auto"`. SIGKILL ends a forked child as it ends any process: nothing of it runs any
more, and what it had not handed to the system is lost. What the system holds survives, so a power failure is not tried.
The phase at the kill is that of the site (`vgpo_lite/failpoints.py`) which the child passed last; the child notes sites
in memory it shares with this process, which is read once the child is dead. What follows a site belongs to its phase
until the next site: prompts, for instance, are prefilled in the phase `elsewhere`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout's own modules, installed or not

import pyarrow.parquet
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.measured import claim, write_result
from vgpo_lite.checkpoint import checkpoints, load_checkpoint
from vgpo_lite.config.load import load_config
from vgpo_lite.failpoints import SITES, armed
from vgpo_lite.trainer import train

ROOMS = {"decode": "decoding", "grade": "grading", "look": "looking", "update": "update", "optimizer": "update"}
AIMED = ("decoding", "update", "saving")
LEAST = 10
"""Kills that must fall into each phase aimed at."""
PATIENCE_SECONDS = 900.0
"""A process that has not done by then what is waited for hangs."""
VISIBLE = re.compile(r"step-\d{6}")
IN_WORK = re.compile(r"\.(tmp|trash)-.+|\..+\.\d+\.tmp|\.lock")
OF_A_RUN = {"adapter", "checkpoints", "completions", "config.yaml", "events.jsonl", "journal", "metrics.jsonl"} | {
    "README.md", "plots", "report.html", "status.json"
}  # fmt: skip
UNEQUAL = ("time/", "memory/", "invariants/")
"""Metrics that differ between equal runs: times, and what the first step of every process checks."""

SITE_ORDER = ("", *SITES)


def phase_of(site: str) -> str:
    """The phase of a training in which a site lies.

    >>> phase_of("decode.step"), phase_of("optimizer.before_step"), phase_of("folder.before_delete"), phase_of("")
    ('decoding', 'update', 'saving', 'elsewhere')
    """
    if site == "folder.before_delete" or site.startswith("checkpoint."):
        return "saving"
    return ROOMS.get(site.partition(".")[0], "elsewhere")


@dataclass(frozen=True)
class Child:
    """A process that trains.

    Attributes:
        pid: Its number.
        board: One byte of memory shared with it: the site it passed last.
    """

    pid: int
    board: mmap.mmap

    @property
    def phase(self) -> str:
        """Where it stands, or stood when it died."""
        return phase_of(SITE_ORDER[self.board[0]])

    def wait(self) -> int:
        """Wait for its end; returns its exit code, minus the signal's number where one ended it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def start(output: Path, settings: dict[str, object], *, specification: str = "", times: Path | None = None) -> Child:
    """Fork a process that trains in `output`, or goes on there.

    Args:
        output: The run directory.
        settings: Of the run.
        specification: Faults that shall befall it (`vgpo_lite.failpoints`).
        times: Where it shall write how long it was in each phase, as a list of seconds by phase; None: nowhere.
    """
    board = mmap.mmap(-1, 1)
    pid = os.fork()
    if pid:
        return Child(pid=pid, board=board)
    code = 1
    try:
        log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        code = _trained(output, settings, specification=specification, board=board, times=times)
    except BaseException:  # noqa: BLE001  the forked half must end here, whatever happened
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _trained(
    output: Path, settings: dict[str, object], *, specification: str, board: mmap.mmap, times: Path | None
) -> int:
    passings: list[tuple[str, float]] = []

    def passed(site: str) -> None:
        board[0] = SITE_ORDER.index(site)
        if times is not None:
            passings.append((phase_of(site), time.monotonic()))

    with armed(specification, passed=passed):
        train(load_config(**settings, output=str(output)), resume="auto")
    if times is not None:
        times.write_text(json.dumps(_stays(passings)))
    return 0


def _stays(passings: list[tuple[str, float]]) -> dict[str, list[float]]:
    """How long each stay in each phase took, seconds.

    >>> _stays([("decoding", 1.0), ("decoding", 1.5), ("update", 2.0), ("decoding", 5.0)])
    {'decoding': [1.0], 'update': [3.0]}
    """
    stays: dict[str, list[float]] = {}
    begun = 0
    for place in range(1, len(passings)):
        if passings[place][0] != passings[begun][0]:
            stays.setdefault(passings[begun][0], []).append(passings[place][1] - passings[begun][1])
            begun = place
    return stays


def killed(child: Child, checkpoint_folder: Path, *, aim: str, delay_seconds: float) -> str | None:
    """Kill a child once it has saved, in a phase aimed at.

    Returns:
        The phase it died in; None where it ended by itself.

    Raises:
        RuntimeError: It ended with an error, or hangs.
    """
    before, deadline = newest_step(checkpoint_folder), time.monotonic() + PATIENCE_SECONDS
    has_saved: Callable[[], bool] = lambda: newest_step(checkpoint_folder) > before  # noqa: E731
    for reached in (has_saved, lambda: child.phase != aim, lambda: child.phase == aim):
        while not reached():
            ended, status = os.waitpid(child.pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                if code:
                    raise RuntimeError(f"a process that nobody killed ended with exit code {code}")
                return None
            if time.monotonic() > deadline:
                os.kill(child.pid, signal.SIGKILL)
                raise RuntimeError(f"a process hung in the phase {child.phase}")
            time.sleep(0.001)
    time.sleep(delay_seconds)
    os.kill(child.pid, signal.SIGKILL)
    code = child.wait()
    return child.phase if code == -signal.SIGKILL else None


def newest_step(checkpoint_folder: Path) -> int:
    """The newest checkpoint that is visible, -1 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in checkpoints(checkpoint_folder)), default=-1)


def faults_in(output: Path, *, keep: int) -> list[str]:
    """What is wrong in a run directory after a kill: nothing that is visible may be half-written.

    Every visible checkpoint must match its manifest, every line be JSON, every file be readable, and as many
    checkpoints as are kept must have survived, or all that were made.
    """
    faults = [
        f"unexpected {p.name}" for p in output.iterdir() if p.name not in OF_A_RUN and not IN_WORK.fullmatch(p.name)
    ]
    root = output / "checkpoints"
    for path in root.iterdir():
        if VISIBLE.fullmatch(path.name):
            faults += _problem(path, load_checkpoint)
        elif not IN_WORK.fullmatch(path.name):
            faults.append(f"unexpected checkpoints/{path.name}")
    if len(checkpoints(root)) < min(keep, newest_step(root) + 1):
        faults.append(f"only {len(checkpoints(root))} checkpoints survived")
    faults += _problem(output / "status.json", lambda path: json.loads(path.read_bytes()))
    faults += _problem(output / "config.yaml", lambda path: yaml.safe_load(path.read_bytes())["model"])
    for name in ("metrics.jsonl", "events.jsonl"):
        faults += _problem(output / name, lambda path: [json.loads(line) for line in path.read_bytes().splitlines()])
    for path in output.glob("completions/[!.]*"):
        faults += _problem(path, pyarrow.parquet.read_table)
    for path in output.glob("journal/**/[!.]*.safetensors"):
        faults += _problem(path, load_file)
    if (output / "adapter").exists():
        faults += _problem(output / "adapter" / "adapter_model.safetensors", load_file)
    return faults


def _problem(path: Path, read: Callable[[Path], object]) -> list[str]:
    try:
        read(path)
    except Exception as error:  # noqa: BLE001  whatever a reader says is a finding
        return [f"{path.name}: {type(error).__name__}: {error}"]
    return []


def differences(left: Path, right: Path) -> list[str]:
    """In what two finished runs differ: adapters bit by bit, metrics but for times, completions byte by byte."""
    found = []
    first, second = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (left, right))
    same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    if not same or not any(tensor.any() for name, tensor in first.items() if "lora_B" in name):
        found.append("adapter")
    if _metrics(left) != _metrics(right):
        found.append("metrics")
    first, second = (
        {path.name: path.read_bytes() for path in (run / "completions").glob("*.parquet")} for run in (left, right)
    )
    return found + ["completions"] * (first != second)


def _metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(UNEQUAL)} for line in lines]


REWARD = "def letters(completions, **columns):\n    return [sum(map(ord, c[0]['content'])) % 7 for c in completions]\n"
"""Tells almost any two completions apart, so that every step has something to learn and none samples twice."""


def settings_of(steps: int, folder: Path) -> dict[str, object]:
    """A small training of the built-in model; its reward function is written into the folder."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARD)
    return {
        "reward": {"functions": {"accuracy": 1.0, f"{rewards}:letters": 0.1}},
        "max_steps": steps,
        "num_generations": 4,
        "num_iterations": 2,
        "prompts_per_step": 1,
        "max_completion_length": 16,
        "learning_rate": 1e-3,
        "save_completions_every": 1,
        "checkpoint": {"every": 1, "keep": 2},
        "eval": {"limit": 0},
        "data": {"limit": 40},
    }


def tortured(folder: Path, *, kills: int, steps: int, seed: int) -> tuple[dict[str, object], list[str], list[str]]:
    """Train twice, once undisturbed: what happened, the faults seen after kills, and what differs at the end."""
    settings, draw = settings_of(steps, folder), random.Random(seed)
    undisturbed, output, times = folder / "undisturbed", folder / "killed", folder / "times.json"
    if start(undisturbed, settings, times=times).wait() != 0:
        raise RuntimeError(f"the undisturbed run failed; see {undisturbed}.log")
    usual = {phase: statistics.median(stays) for phase, stays in json.loads(times.read_text()).items()}
    aims: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    faults: list[str] = []
    at_steps: list[int] = []
    while sum(phases.values()) < kills:
        aim = draw.choice([phase for phase in AIMED if phases[phase] < kills // 4] or AIMED)
        aims[aim] += 1
        child = start(output, settings)
        phase = killed(child, output / "checkpoints", aim=aim, delay_seconds=draw.random() * usual[aim])
        if phase is None:
            raise RuntimeError(f"the run ended after {sum(phases.values())} kills; give it more --steps")
        phases[phase] += 1
        at_steps.append(newest_step(output / "checkpoints"))
        faults += [f"after kill {len(at_steps)}: {fault}" for fault in faults_in(output, keep=2)]
        print(f"kill {len(at_steps)} of {kills}: {phase} (aimed at {aim}), after step {at_steps[-1]}", flush=True)
    if start(output, settings).wait() != 0:
        raise RuntimeError(f"the run could not be ended; see {output}.log")
    measurements: dict[str, object] = {
        "kills": sum(phases.values()),
        "aimed": dict(aims.most_common()),
        "phases": dict(phases.most_common()),
        "killed_after_step": at_steps,
        "steps": steps,
        "seed": seed,
        "usual_seconds": {phase: round(seconds, 4) for phase, seconds in usual.items()},
        "faults": faults,
        "differences": differences(undisturbed, output),
        "settings": {**settings, "reward": "accuracy, and a function that tells any two completions apart"},
        "table": {
            "columns": ["killed while", "times"],
            "rows": [[phase, count] for phase, count in phases.most_common()],
        },
    }
    return measurements, faults, differences(undisturbed, output)


def main() -> int:
    """Torture and write the result; exit 1 where anything was half-written or differs."""
    parser = argparse.ArgumentParser(description="Kill a training again and again, and compare what comes out.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--steps", type=int, default=160, help="of the training; a process takes one to three")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", type=Path, help="write what happened to this file instead of to benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vgpo-lite-torture-") as folder:
        try:
            measurements, faults, differs = tortured(
                Path(folder), kills=options.kills, steps=options.steps, seed=options.seed
            )
        except BaseException:
            for log in sorted(Path(folder).glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise
    if options.trial is not None:
        options.trial.write_text(json.dumps(measurements, indent=2) + "\n")
        return int(bool(faults or differs))
    phases: dict[str, int] = measurements["phases"]  # pyright: ignore[reportAssignmentType]
    claims = [
        claim("processes killed with kill -9", options.kills, ">=", 60, ""),
        *(claim(f"of them in {phase}", phases.get(phase, 0), ">=", LEAST, "") for phase in AIMED),
        claim("half-written files or lost checkpoints seen after kills", len(faults), "==", 0, ""),
        claim("differences from the undisturbed run (adapter, metrics, completions)", len(differs), "==", 0, ""),
    ]
    packages = ("torch", "transformers", "peft", "bitsandbytes", "safetensors")
    write_result("torture", measurements=measurements, claims=claims, packages=packages, gpu="none")
    return int(not all(c["met"] for c in claims))


if __name__ == "__main__":
    sys.exit(main())
