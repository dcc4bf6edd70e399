"""The same training step by TRL's GRPOTrainer and by vgpo-lite: time of a step, of rollout and of update, peak memory.

    python benchmarks/peers.py                     everything: hours of one core; writes benchmarks/results/peers.json
    python benchmarks/peers.py --smoke             a small model and short texts, to see that it runs; writes nothing
    python benchmarks/peers.py --write             what is measured so far, as benchmarks/results/peers.json

Same weights, prompt, group, completion length (no completion ends early), LoRA, loss (DAPO), precision and threads.
Each measurement is a process of its own: a step to warm up, in which operations are counted, and a timed one; in the
first round also one with the allocator recorded, since that number does not vary. The sides alternate; medians count.
Measurements are appended to a log, and those that it holds are not repeated. Three peers:

    trl         GRPOTrainer as it comes. With gradient checkpointing it differentiates the frozen vision tower.
    trl-frozen  the same with the tower kept out of the backward pass: the fair one, which headlines use
    batched     vgpo-lite's own ordinary way (`engine=batched`)

vgpo-lite runs VGPO, focus and weighting included. `floor` is the time that the counted operations of its step would
take at the speed of a large matrix product on the same machine: no implementation of the same operations is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measured import claim, in_own_process, lines_of, write_result

SIDES = ("ours", "trl-frozen", "batched", "trl")
ROUNDS = {"ours": 3, "trl-frozen": 3, "batched": 3, "trl": 1}
"""Measurements of each side. The unfair peer is measured once; nothing is claimed from it."""
WORK = {"4:1": (256, 64, 80), "16:1": (1024, 64, 68), "1:1": (256, 64, 320)}
"""Image tokens, text tokens and completion tokens at each ratio of prompt to completion."""
SMOKE = {"4:1": (16, 16, 8)}
# Floors of the peer against vgpo-lite, by checkpointing: step, update and memory, and the ratios they are asked for at.
FLOORS = {True: {"step": 3.0, "update": 5.0}, False: {"step": 2.5, "update": 4.0}}
FLOOR_RATIOS = ("4:1", "16:1")
MEMORY_FLOOR = 3.0
LOG = Path(tempfile.gettempdir()) / "vgpo-lite-peers.jsonl"
MATRIX = 1024
"""Side of the square matrices whose product tells the machine's speed."""


def main() -> None:
    """Run what is missing of the table, or one measurement of it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ratios", nargs="+", default=list(WORK), help="prompt:completion")
    options.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    options.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    options.add_argument("--model", default="52m", help="shape of the random model")
    options.add_argument("--generations", type=int, default=8)
    options.add_argument("--log", type=Path, default=LOG, help="finished measurements, one a line")
    options.add_argument(
        "--cpu-time", action="store_true", help="count processor seconds: for a machine that others use"
    )
    options.add_argument("--smoke", action="store_true")
    options.add_argument("--write", action="store_true", help="only write what the log holds")
    options.add_argument("--one", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(measured(json.loads(chosen.one))))
        return
    if chosen.smoke:
        chosen.model, chosen.ratios, chosen.rounds, chosen.log = "3m", ["4:1"], 1, Path(os.devnull)
    log = lines_of(chosen.log)
    for job in [] if chosen.write else jobs(chosen):
        if not any(seen["job"] == job for seen in log):
            log.append({"job": job, "result": in_own_process(__file__, job)})
            with chosen.log.open("a") as file:
                file.write(json.dumps(log[-1]) + "\n")
            print(json.dumps(log[-1]), flush=True)
    if not chosen.smoke:
        write(log)


def jobs(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Every measurement, the sides taking turns within a round."""
    table = SMOKE if chosen.smoke else WORK
    return [
        {
            "round": number,
            "ratio": ratio,
            "checkpointing": checkpointing,
            "side": side,
            "sizes": list(table[ratio]),
            "model": chosen.model,
            "generations": chosen.generations,
            "cpu_time": chosen.cpu_time,
        }
        for number in range(chosen.rounds)
        for ratio in chosen.ratios
        for checkpointing in (True, False)
        for side in chosen.sides
        if number < ROUNDS[side]
    ]


def measured(job: dict[str, Any]) -> dict[str, float]:
    """Count the operations of a step, time the next one, and in the first round record the allocations of a third."""
    from workload import SHAPES, Work, write_model

    work = Work(*job["sizes"], job["generations"])
    clock = time.process_time if job["cpu_time"] else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SHAPES[job["model"]])
        side = of_trl if job["side"].startswith("trl") else of_ours
        return {**side(job, Path(folder), work, clock), "operations_per_second": matrix_speed(clock)}


def matrix_speed(clock: Any) -> float:
    """Floating-point operations per second of a large float32 matrix product, the fastest of ten."""
    import torch

    left, right = torch.randn(2, MATRIX, MATRIX)
    seconds = []
    for _ in range(10):
        started = clock()
        left @ right
        seconds.append(clock() - started)
    return 2 * MATRIX**3 / min(seconds)


def of_ours(job: dict[str, Any], folder: Path, work: Any, clock: Any) -> dict[str, float]:
    """A step of vgpo-lite."""
    from ours import Steps, cpu_step
    from workload import operation_counter, peak_allocation

    engine = "batched" if job["side"] == "batched" else "shared"
    config = cpu_step(folder, work, engine=engine, gradient_checkpointing=job["checkpointing"])
    steps = Steps(config, work, clock=clock)
    with operation_counter() as counted:
        steps.step()
    seconds = steps.step()
    result = {
        "step": seconds.step,
        "rollout": seconds.rollout,
        "update": seconds.update + seconds.score,
        "operations": float(counted.get_total_flops()),
    }
    return result if job["round"] else {**result, "memory": float(peak_allocation(steps.step))}


def of_trl(job: dict[str, Any], folder: Path, work: Any, clock: Any) -> dict[str, float]:
    """A step of GRPOTrainer."""
    from trl_peer import trainer_of, watched_steps

    trainer = trainer_of(
        folder,
        work,
        checkpointing=job["checkpointing"],
        tower_in_backward=job["side"] == "trl",
        clock=clock,
        records_memory=job["round"] == 0,
    )
    return watched_steps(trainer)


def write(log: list[dict[str, Any]]) -> None:
    """Leave medians and ratios, with the claims they are measured against."""
    rows = summaries(log)
    claims = []
    for row in rows:
        if row["side"] != "trl-frozen" or row["ratio"] not in FLOOR_RATIOS:
            continue
        how = f"{row['ratio']}, {'with' if row['checkpointing'] else 'without'} checkpointing"
        floors = {**FLOORS[row["checkpointing"]], "memory": MEMORY_FLOOR}
        claims += [
            claim(f"{name}, {how}", round(row["ratios"][name], 2), ">=", floor, unit_of(name))
            for name, floor in floors.items()
        ]
    packages = ("torch", "transformers", "peft", "trl")
    measurements = {"table": table_of(rows), "rows": rows, "log": log}
    write_result("peers", measurements=measurements, claims=claims, packages=packages, gpu="none")


def unit_of(name: str) -> str:
    """In words, what a ratio says."""
    return "times less than TRL" if name == "memory" else "times faster than TRL, tower kept out"


def summaries(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of each side at each ratio, and how many times ours they are."""
    kinds: dict[tuple[str, bool], dict[str, list[dict[str, float]]]] = {}
    for seen in log:
        job = seen["job"]
        sides = kinds.setdefault((job["ratio"], job["checkpointing"]), {})
        sides.setdefault(job["side"], []).append(seen["result"])
    rows = []
    for (ratio, checkpointing), sides in kinds.items():
        middle = {side: medians(results) for side, results in sides.items()}
        ours = middle.get("ours")
        for side, values in middle.items():
            names = ("step", "rollout", "update", "memory", "operations")
            rows.append(
                {
                    "ratio": ratio,
                    "checkpointing": checkpointing,
                    "side": side,
                    "measurements": len(sides[side]),
                    **values,
                    "ratios": {name: values[name] / ours[name] for name in names} if ours else {},
                    "times_its_floor": values["step"] * values["operations_per_second"] / values["operations"],
                }
            )
    return rows


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    """The median of each value over the measurements that hold it."""
    names = dict.fromkeys(name for result in results for name in result)
    return {name: median(result[name] for result in results if name in result) for name in names}


def table_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Every measured row as a reader wants it: times, memory, and how many times ours."""
    columns = ["prompt : completion", "checkpointing", "side", "step", "update", "peak memory", "operations", "x floor"]
    cells = [
        [
            row["ratio"],
            "on" if row["checkpointing"] else "off",
            row["side"],
            *(
                f"{three_digits(row[name] / unit)} {word} ({row['ratios'][name]:.2f}x)" if row["ratios"] else "-"
                for name, unit, word in (("step", 1, "s"), ("update", 1, "s"), ("memory", 1e6, "MB"))
            ),
            f"{row['operations'] / 1e12:.3g} T ({row['ratios']['operations']:.2f}x)" if row["ratios"] else "-",
            f"{row['times_its_floor']:.2f}",
        ]
        for row in rows
    ]
    return {"columns": columns, "rows": cells}


def three_digits(value: float) -> str:
    """Three significant digits, or all of the whole part.

    >>> three_digits(5.678), three_digits(1107.4)
    ('5.68', '1,107')
    """
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
