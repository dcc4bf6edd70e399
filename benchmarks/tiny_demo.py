"""What `vgpo-lite train` without arguments gains on held-out images, over seeds, with GRPO's gain beside it.

    python benchmarks/tiny_demo.py                 three seeds of each, two runs at a time
    python benchmarks/tiny_demo.py --seeds 0 1 2 3 4 --limit 1000

Every run is the default run but for its seed, its `advantage`, and the number of held-out images. A run whose directory
holds a finished one is not repeated, so the script goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measured import claim, write_result

ARMS = ("vgpo", "grpo")
TARGET_GAIN = 0.10  # ten points of held-out accuracy, in the median over seeds


def main() -> None:
    """Run every arm on every seed, and write benchmarks/results/tiny-demo.json."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--limit", type=int, default=1000, help="held-out images measured before and after")
    options.add_argument("--together", type=int, default=2, help="runs at a time")
    options.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "vgpo-lite-tiny-demo")
    chosen = options.parse_args()
    jobs = [(arm, seed) for seed in chosen.seeds for arm in ARMS]
    with ThreadPoolExecutor(chosen.together) as pool:
        runs = list(pool.map(lambda job: finished_run(*job, chosen), jobs))
    medians = {arm: statistics.median(run["gain"] for run in runs if run["advantage"] == arm) for arm in ARMS}
    claims = [
        claim("gain in held-out accuracy, median over seeds", round(medians["vgpo"], 4), ">=", TARGET_GAIN, "share"),
    ]
    measurements = {
        "runs": runs,
        "median_gain": medians,
        "table": {
            "columns": ["advantage", "seed", "before", "after", "gain", "steps", "seconds"],
            "rows": [
                [
                    run["advantage"],
                    run["seed"],
                    f"{run['before']:.1%}",
                    f"{run['after']:.1%}",
                    f"{100 * run['gain']:+.1f} points",
                    run["steps"],
                    round(run["seconds"]),
                ]
                for run in runs
            ],
        },
    }
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    print(write_result("tiny-demo", measurements=measurements, claims=claims, packages=packages, gpu="none"))
    print(json.dumps(medians, indent=2))


def finished_run(advantage: str, seed: int, chosen: argparse.Namespace) -> dict[str, object]:
    """Train one arm on one seed, unless that is done already; what it measured."""
    output = chosen.folder / f"{advantage}-{seed}"
    status = output / "status.json"
    if not (status.exists() and json.loads(status.read_text())["state"] == "finished"):
        settings = [f"advantage={advantage}", f"eval.limit={chosen.limit}"]
        command = [sys.executable, "-m", "vgpo_lite", "train", "--output", str(output), "--seed", str(seed), "--quiet"]
        command += ["--resume", "auto", *(part for setting in settings for part in ("--set", setting))]
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(command, check=True, env={**os.environ, **threads})
    ended = json.loads(status.read_text())
    before, after = (ended[name]["right"] / ended[name]["total"] for name in ("before", "after"))
    return {
        "advantage": advantage,
        "seed": seed,
        "before": before,
        "after": after,
        "gain": after - before,
        "held_out": ended["after"]["total"],
        "steps": ended["steps"],
        "seconds": ended["seconds"],
        "peak_bytes": ended["peak_bytes"],
    }


if __name__ == "__main__":
    main()
