"""Does looking help? Ten ways to weigh advantages, on two tasks, over seeds, at the same number of generated tokens.

    python benchmarks/evidence.py              choose the learning rate, do every run, write the result and its plots
    python benchmarks/evidence.py --summary    write result and plots of the runs that are there

What is compared is fixed here, before the first run: arms, tasks, seeds, budgets and measures. The learning rate is one
for all arms and both tasks: the one with the largest area under GRPO's learning curves, on seeds of its own. Every run
is reported. A finished run is a line of results/evidence-runs.jsonl and is not repeated, so the script goes on where it
was stopped; it runs two at a time, each on one thread, each in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import evidence_summary
from describing import write_rows
from measured import RESULTS, in_own_process, lines_of

HERE = Path(__file__).resolve().parent
LOG = RESULTS / "evidence-runs.jsonl"

ARMS: dict[str, tuple[str, list[str]]] = {
    "grpo": ("grpo-baseline", ["max_resamples=0"]),
    "dapo": ("dapo-baseline", []),
    "vgpo-attention": ("vgpo-attention", []),
    "vgpo-similarity": ("vgpo", []),
    "token-weights-only": ("vgpo-attention", ["focus.trajectory_reweighting=false"]),
    "trajectory-weights-only": ("vgpo-attention", ["focus.token_reweighting=false"]),
    "no-compensation": ("vgpo-attention", ["focus.compensation=false"]),
    "full-compensation": ("vgpo-attention", ["focus.gamma=1.0", "focus.kappa=1.0"]),
    "accumulation-mean": ("vgpo-attention", ["focus.accumulation=mean"]),
    "sign-positive": ("vgpo-attention", ["focus.sign=positive"]),
}
"""Recipe and settings of each arm. GRPO as first published: with its KL term, and without DAPO's dynamic sampling. All
others build on DAPO; the last six change one thing of `vgpo-attention`."""

SEEDS = (0, 1, 2, 3, 4)
RATES = (1e-3, 2e-3, 4e-3)
RATE_SEEDS = (100, 101)
HELD_OUT = 1000
TRAIN_ROWS = 800  # of the describing task; no run draws as many

COMMON = [
    "lr_scheduler_type=constant",
    "warmup_ratio=0.01",
    "max_steps=400",  # never reached: the tokens end a run; with warmup_ratio, four steps of warm-up
    "journal.steps=0",
    "checkpoint.every=1000",
    "save_completions_every=100000",
    "reward.workers=1",
    f"eval.limit={HELD_OUT}",
]


def tasks(data: Path) -> dict[str, dict[str, Any]]:
    """Data set, settings, tokens to generate and points of the curve of each task."""
    reward = f"{HERE / 'describing.py'}:cells"
    return {
        "counting": {"dataset": "shapes", "settings": [], "tokens": 16_000, "points": 4},
        "describing": {
            "dataset": str(data),
            "settings": [
                "data.eval_split=eval",
                "data.prompt_template='{{ question }}'",
                "max_completion_length=80",
                f"reward.functions={{'{reward}': 1.0}}",
            ],
            "tokens": 30_000,
            "points": 5,
        },
    }


def main() -> None:
    """Do what is missing, and write benchmarks/results/evidence.json and the plots of docs/evidence.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--together", type=int, default=2, help="runs at a time")
    options.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "vgpo-lite-describing")
    options.add_argument("--summary", action="store_true", help="run nothing")
    chosen = options.parse_args()
    if not chosen.summary:
        write_rows(chosen.data, train=TRAIN_ROWS, held_out=HELD_OUT)
        names = list(tasks(chosen.data))
        do([(task, "start", 0, 1e-3) for task in names], chosen)
        do([(task, "grpo", seed, rate) for seed in RATE_SEEDS for rate in RATES for task in names], chosen)
        rate = chosen_rate(lines_of(LOG))
        do([(task, arm, seed, rate) for seed in SEEDS for task in names for arm in ARMS], chosen)
    runs = lines_of(LOG)
    evidence_summary.write(runs, rate=chosen_rate(runs), areas=rate_areas(runs))


def do(wanted: list[tuple[str, str, int, float]], chosen: argparse.Namespace) -> None:
    """Do the runs that are not in the log yet, and add each to it as it ends."""
    done = {(run["task"], run["arm"], run["seed"], run["learning_rate"]) for run in lines_of(LOG)}
    missing = [run for run in wanted if run not in done]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    writing = threading.Lock()

    def one(run: tuple[str, str, int, float]) -> None:
        measured = in_own_process(str(HERE / "evidence_run.py"), job_of(run, chosen.data))
        with writing, LOG.open("a") as log:
            log.write(json.dumps({**measured, "commit": commit.stdout.strip()}) + "\n")
            log.flush()
            os.fsync(log.fileno())
        print(f"{len(lines_of(LOG))}: {run}: {measured['curve']}", flush=True)

    with ThreadPoolExecutor(chosen.together) as pool:
        list(pool.map(one, missing))


def job_of(run: tuple[str, str, int, float], data: Path) -> dict[str, Any]:
    """What evidence_run.py is told."""
    task, arm, seed, rate = run
    details = tasks(data)[task]
    recipe, settings = ARMS["dapo" if arm == "start" else arm]
    return {
        **details,
        "task": task,
        "arm": arm,
        "seed": seed,
        "learning_rate": rate,
        "recipe": recipe,
        "settings": [*COMMON, *details["settings"], *settings, f"learning_rate={rate}"],
        "points": 0 if arm == "start" else details["points"],
        "held_out": HELD_OUT,
    }


def rate_areas(runs: list[dict[str, Any]]) -> dict[float, float]:
    """Mean area under GRPO's curves, over both tasks and the seeds of the choice, by learning rate."""
    whole = evidence_summary.with_starts(runs)
    return {
        rate: statistics.fmean(
            evidence_summary.area(run)
            for run in whole
            if run["seed"] in RATE_SEEDS and run["learning_rate"] == rate and run["arm"] == "grpo"
        )
        for rate in RATES
    }


def chosen_rate(runs: list[dict[str, Any]]) -> float:
    """The learning rate with the largest area."""
    areas = rate_areas(runs)
    return max(areas, key=lambda rate: areas[rate])


if __name__ == "__main__":
    main()
