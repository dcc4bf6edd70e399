"""How a step grows with the group and with the image: seconds, peak memory, fitted exponents and a plot.

    python benchmarks/growth.py                    writes benchmarks/results/growth.json and docs/images/growth.png
    python benchmarks/growth.py --model 3m --most 16 --dry-run
    python benchmarks/growth.py --plot             draws the plot again from the result

Groups of 4 to 64 completions on an image of 256 tokens, and images of 64 to 4,096 tokens under groups of 8; the
question has 64 tokens, a completion 80. Each measurement is a process of its own: a step with the allocator recorded,
then a timed one, in processor seconds of one thread. An exponent is the slope of a straight line through all points,
both axes logarithmic: 1 where cost is proportional, 0 where it stands still.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import in_own_process, lines_of, write_result

GROUPS = (4, 8, 16, 32, 64)
IMAGES = (64, 256, 1024, 4096)
TEXT, COMPLETION, GROUP, IMAGE = 64, 80, 8, 256
LIMITS = {"shared": (64, 4096), "batched": (32, 1024)}
"""Largest group and image of each engine; the ordinary way would take a quarter of an hour beyond."""
PLOT = Path(__file__).resolve().parents[1] / "docs" / "images" / "growth.png"
RESULT = Path(__file__).parent / "results" / "growth.json"
LOG = Path(tempfile.gettempdir()) / "vgpo-lite-growth.jsonl"


def main() -> None:
    """Run what is missing, or one measurement."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="52m", help="shape of the random model")
    options.add_argument("--most", type=int, default=4096, help="largest group or image")
    options.add_argument("--log", type=Path, default=LOG, help="finished measurements, one a line")
    options.add_argument("--dry-run", action="store_true", help="print and write nothing")
    options.add_argument("--plot", action="store_true", help="only draw the plot of the committed result")
    options.add_argument("--one", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(measured(json.loads(chosen.one))))
        return
    if chosen.plot:
        draw(json.loads(RESULT.read_text())["measurements"]["rows"])
        return
    log = Path(os.devnull) if chosen.dry_run else chosen.log
    rows = lines_of(log)
    for job in jobs(chosen):
        if not any(all(row[name] == value for name, value in job.items()) for row in rows):
            rows.append({**job, **in_own_process(__file__, job)})
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    if not chosen.dry_run:
        write(rows)


def jobs(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Every measurement; the point that both series share is measured once."""
    sizes = dict.fromkeys([(group, IMAGE) for group in GROUPS] + [(GROUP, image) for image in IMAGES])
    return [
        {"engine": engine, "group": group, "image_tokens": image, "model": chosen.model}
        for group, image in sizes
        for engine, (largest_group, largest_image) in LIMITS.items()
        if group <= min(largest_group, chosen.most)
        and image <= largest_image
        and (image == IMAGE or image <= chosen.most)
    ]


def measured(job: dict[str, Any]) -> dict[str, float]:
    """Record the allocations of a step, time the next."""
    from ours import Steps, cpu_step
    from workload import SHAPES, Work, peak_allocation, write_model

    work = Work(job["image_tokens"], TEXT, COMPLETION, job["group"])
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SHAPES[job["model"]])
        config = cpu_step(folder, work, engine=job["engine"])
        steps = Steps(config, work, clock=time.process_time)
        memory = peak_allocation(steps.step)
        seconds = steps.step()
    return {
        "step_seconds": round(seconds.step, 3),
        "rollout_seconds": round(seconds.rollout, 3),
        "update_seconds": round(seconds.update + seconds.score, 3),
        "peak_bytes": memory,
    }


def series(rows: list[dict[str, Any]], axis: str, engine: str) -> list[dict[str, Any]]:
    """One engine's points along one axis, smallest first."""
    other, fixed = ("image_tokens", IMAGE) if axis == "group" else ("group", GROUP)
    points = [row for row in rows if row["engine"] == engine and row[other] == fixed]
    return sorted(points, key=lambda row: row[axis])


def exponent(points: list[dict[str, Any]], axis: str, value: str) -> float:
    """Slope of the least-squares line of log value over log axis."""
    x = [math.log(point[axis]) for point in points]
    y = [math.log(point[value]) for point in points]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return round(above / sum((a - x_mean) ** 2 for a in x), 3)


def write(rows: list[dict[str, Any]]) -> None:
    """Leave the result, the table of exponents and the plot."""
    exponents = [
        {
            "axis": axis,
            "engine": engine,
            "from": points[0][axis],
            "to": points[-1][axis],
            **{value: exponent(points, axis, value) for value in ("step_seconds", "update_seconds", "peak_bytes")},
        }
        for axis in ("group", "image_tokens")
        for engine in LIMITS
        if len(points := series(rows, axis, engine)) > 1
    ]
    columns = ["what grows", "engine", "exponent of a step's time", "of the update's", "of peak memory"]
    cells = [
        [
            f"{'completions' if fit['axis'] == 'group' else 'image tokens'}, {fit['from']} to {fit['to']}",
            fit["engine"],
            *(f"{fit[value]:.2f}" for value in ("step_seconds", "update_seconds", "peak_bytes")),
        ]
        for fit in exponents
    ]
    measurements = {"table": {"columns": columns, "rows": cells}, "exponents": exponents, "rows": rows}
    packages = ("torch", "transformers", "peft", "matplotlib")
    write_result("growth", measurements=measurements, claims=[], packages=packages, gpu="none")
    draw(rows)


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw seconds and memory of both engines along both axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    figure, panels = pyplot.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    labels = {
        "group": f"completions per prompt ({IMAGE} image tokens)",
        "image_tokens": f"image tokens ({GROUP} completions)",
    }
    colours = {"shared": "#0b6e4f", "batched": "#b3541e"}
    for column, (axis, label) in enumerate(labels.items()):
        for row, (value, unit, what) in enumerate(
            (("step_seconds", 1, "seconds per step"), ("peak_bytes", 1e6, "peak MB above the model"))
        ):
            panel = panels[row][column]
            for engine, colour in colours.items():
                points = series(rows, axis, engine)
                if len(points) < 2:
                    continue
                slope = exponent(points, axis, value)
                x, y = [point[axis] for point in points], [point[value] / unit for point in points]
                panel.plot(x, y, "o-", color=colour, label=f"engine={engine}, exponent {slope:.2f}")
            panel.set(xscale="log", yscale="log", xlabel=label, ylabel=what)
            ticks = GROUPS if axis == "group" else IMAGES
            panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:,.0f}")
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle("Cost of one training step, 52 M parameters, one CPU thread")
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
