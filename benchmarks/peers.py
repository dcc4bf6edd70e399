"""The same training step by TRL's GRPOTrainer and by vgpo-lite: time of a step, of rollout and of update, peak memory.

    python benchmarks/peers.py --write             everything: hours on two cores; writes benchmarks/results/peers.json
    python benchmarks/peers.py --smoke             a small model and short texts, to see that it runs
    python benchmarks/peers.py --ratios 4:1 --checkpointing on --repeat 1

Same weights, prompt, group, completion length (no completion ends early), LoRA, loss (DAPO), precision and threads.
Each measurement is a process of its own: it makes a step to warm up, times one, and repeats it once more with the
allocator recorded. The sides alternate; medians count. Three peers:

    trl         GRPOTrainer as it comes. With gradient checkpointing it differentiates the frozen vision tower.
    trl-frozen  the same with the tower kept out of the backward pass: the fair one, which headlines use
    batched     vgpo-lite's own ordinary way (`engine=batched`)

vgpo-lite runs VGPO, focus and weighting included; `ours-grpo` runs the same without weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

SIDES = ("ours", "trl-frozen", "trl", "batched", "ours-grpo")
WORK = {"4:1": (256, 64, 80), "1:1": (256, 64, 320), "16:1": (1024, 64, 68)}
"""Image tokens, text tokens and completion tokens at each ratio of prompt to completion."""
SMOKE = {"4:1": (16, 16, 8)}
# Floors of the peer against vgpo-lite, by checkpointing: step, update and memory, and the ratios they are asked for at.
FLOORS = {True: {"step": 3.0, "update": 5.0}, False: {"step": 2.5, "update": 4.0}}
FLOOR_RATIOS = ("4:1", "16:1")
MEMORY_FLOOR = 3.0


def main() -> None:
    """Run the table, or one measurement of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ratios", nargs="+", default=list(WORK), help="prompt:completion")
    options.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    options.add_argument("--checkpointing", nargs="+", default=["on", "off"], choices=["on", "off"])
    options.add_argument("--repeat", type=int, default=3, help="measurements of each kind")
    options.add_argument("--model", default="52m", help="shape of the random model")
    options.add_argument("--generations", type=int, default=8)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument(
        "--cpu-time", action="store_true", help="count processor seconds: for a machine that others use"
    )
    options.add_argument("--smoke", action="store_true")
    options.add_argument("--write", action="store_true", help="leave the result in benchmarks/results")
    options.add_argument("--one", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(measured(json.loads(chosen.one))))
        return
    table = WORK
    if chosen.smoke:
        table, chosen.model, chosen.ratios, chosen.repeat = SMOKE, "3m", ["4:1"], 1
    measurements = [
        measurement
        for ratio in chosen.ratios
        for checkpointing in chosen.checkpointing
        for measurement in alternated(chosen, ratio, table[ratio], checkpointing == "on")
    ]
    print(json.dumps(measurements, indent=2))
    if chosen.write:
        write(measurements)


def alternated(chosen: argparse.Namespace, ratio: str, sizes: tuple[int, int, int], recompute: bool) -> list[dict]:
    """Medians of every side at one ratio, the sides taking turns."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in chosen.sides}
    kind = {"ratio": ratio, "checkpointing": recompute, "generations": chosen.generations}
    for _ in range(chosen.repeat):
        for side in chosen.sides:
            job = {**kind, "side": side, "sizes": sizes, "model": chosen.model, "cpu_time": chosen.cpu_time}
            runs[side].append(in_own_process(job, threads=chosen.threads))
            print(json.dumps({**kind, "side": side, **runs[side][-1]}), file=sys.stderr, flush=True)
    middle = {side: {name: median(run[name] for run in seen) for name in seen[0]} for side, seen in runs.items()}
    ours = middle.get("ours")
    return [
        {**kind, "side": side, **values, **({f"{n}_ratio": v / ours[n] for n, v in values.items()} if ours else {})}
        for side, values in middle.items()
    ]


def in_own_process(job: dict[str, Any], *, threads: int) -> dict[str, float]:
    """One measurement; what it prints last is its result."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
    command = [sys.executable, __file__, "--one", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job}: failed\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(job: dict[str, Any]) -> dict[str, float]:
    """Warm up, time a step, record the allocations of another."""
    from workload import SHAPES, Work, write_model

    work = Work(*job["sizes"], job["generations"])
    clock = time.process_time if job["cpu_time"] else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SHAPES[job["model"]])
        side = of_trl if job["side"].startswith("trl") else of_ours
        return side(job, Path(folder), work, clock)


def of_ours(job: dict[str, Any], folder: Path, work: Any, clock: Any) -> dict[str, float]:
    """A step of vgpo-lite."""
    from ours import Steps
    from workload import DATA, peak_allocation

    from vgpo_lite.config.load import load_config

    config = load_config(
        model=folder,
        quantization="none",
        dtype="float32",
        device="cpu",
        engine="batched" if job["side"] == "batched" else "shared",
        advantage="grpo" if job["side"] == "ours-grpo" else "vgpo",
        gradient_checkpointing=job["checkpointing"],
        num_generations=work.generations,
        max_completion_length=work.completion,
        prompts_per_step=1,
        optim="adamw",
        data={"max_pixels": DATA.max_pixels, "max_prompt_length": DATA.max_prompt_length},
    )
    steps = Steps(config, work, clock=clock)
    steps.step()
    seconds = steps.step()
    return {
        "step": seconds.step,
        "rollout": seconds.rollout,
        "update": seconds.update + seconds.score,
        "memory": float(peak_allocation(steps.step)),
    }


def of_trl(job: dict[str, Any], folder: Path, work: Any, clock: Any) -> dict[str, float]:
    """A step of GRPOTrainer."""
    from trl_peer import trainer_of, watched_steps

    trainer = trainer_of(
        folder, work, checkpointing=job["checkpointing"], tower_in_backward=job["side"] == "trl", clock=clock
    )
    return watched_steps(trainer)


def write(measurements: list[dict[str, Any]]) -> None:
    """Leave the result, with the claims it is measured against."""
    from measured import claim, write_result

    claims = []
    for row in measurements:
        if row["side"] != "trl-frozen" or row["ratio"] not in FLOOR_RATIOS:
            continue
        how = f"{row['ratio']}, {'with' if row['checkpointing'] else 'without'} checkpointing"
        claims += [
            claim(f"{name}, {how}", row[f"{name}_ratio"], ">=", floor, "times faster than TRL, tower kept out")
            for name, floor in FLOORS[row["checkpointing"]].items()
        ]
        claims.append(claim(f"memory, {how}", row["memory_ratio"], ">=", MEMORY_FLOOR, "times less than TRL"))
    packages = ("torch", "transformers", "peft", "trl")
    write_result("peers", measurements={"rows": measurements}, claims=claims, packages=packages, gpu="none")


if __name__ == "__main__":
    main()
