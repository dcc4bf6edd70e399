"""What the runs of evidence.py say together: tables, intervals over seeds, and the plots of docs/evidence.md."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from measured import write_result

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
RESAMPLES = 10_000
DRAWN = ("grpo", "dapo", "vgpo-attention", "vgpo-similarity")
"""Arms whose learning curves are drawn; all are in the tables."""
BASELINES = ("grpo", "dapo", "vgpo-attention")
COLOURS = {"grpo": "#7f7f7f", "dapo": "#0072b2", "vgpo-attention": "#d55e00", "vgpo-similarity": "#009e73"}

Run = dict[str, Any]


def with_starts(runs: list[Run]) -> list[Run]:
    """The runs that trained, each curve begun with the first point of its task, which all of them share."""
    starts = {run["task"]: run["curve"] for run in runs if run["arm"] == "start"}
    return [{**run, "curve": [*starts[run["task"]], *run["curve"]]} for run in runs if run["arm"] != "start"]


def area(run: Run) -> float:
    """Area under a learning curve up to the budget of tokens, over the budget: the mean score on the way, in [0, 1].

    The last step ends a little past the budget; the curve is cut there.

    >>> area({"tokens": 10, "curve": [{"tokens": 0, "score": 0.0}, {"tokens": 20, "score": 1.0}]})
    0.25
    """
    budget, total = run["tokens"], 0.0
    for left, right in zip(run["curve"], run["curve"][1:], strict=False):
        end = min(right["tokens"], budget)
        if end <= left["tokens"]:
            break
        share = (end - left["tokens"]) / (right["tokens"] - left["tokens"])
        score = left["score"] + share * (right["score"] - left["score"])
        total += (end - left["tokens"]) * (left["score"] + score) / 2
    return total / budget


def final(run: Run) -> float:
    """Score at the end, in [0, 1]."""
    return run["curve"][-1]["score"]


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median of one value per seed and its 95 % percentile bootstrap interval over seeds.

    With five seeds the interval reaches from near the smallest to near the largest of them: it cannot say more.

    >>> median_interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    drawn = np.random.default_rng(0).choice(np.array(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return statistics.median(values), float(low), float(high)


def paired(runs: list[Run], baseline: list[Run], measure: Any) -> list[float]:
    """The measure of each run minus that of the baseline's run on the same seed."""
    others = {run["seed"]: measure(run) for run in baseline}
    return [measure(run) - others[run["seed"]] for run in runs if run["seed"] in others]


def write(runs: list[Run], *, arms: list[str], rate: float, areas: dict[float, float], seeds: tuple[int, ...]) -> None:
    """Write the results and draw the plots.

    Args:
        runs: The lines of the log.
        arms: The arms, in their order.
        rate: The learning rate that was chosen.
        areas: Mean area by learning rate, from the runs that chose it.
        seeds: The seeds that are compared.
    """
    whole = [run for run in with_starts(runs) if run["seed"] in seeds and run["learning_rate"] == rate]
    tables = {
        task: {arm: [run for run in whole if (run["task"], run["arm"]) == (task, arm)] for arm in arms}
        for task in dict.fromkeys(run["task"] for run in whole)
    }
    starts = {run["task"]: run for run in runs if run["arm"] == "start"}
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    for task, by_arm in tables.items():
        measurements: dict[str, object] = {
            "task": task,
            "learning_rate": rate,
            "area_by_learning_rate": {str(value): round(mean, 5) for value, mean in areas.items()},
            "start": starts[task]["curve"][0]["score"],
            "runs_by_arm": {arm: len(of_arm) for arm, of_arm in by_arm.items()},
            "commits": sorted({run["commit"] for of_arm in by_arm.values() for run in of_arm}),
            "table": scores_table(by_arm),
        }
        print(write_result(f"evidence-{task}", measurements=measurements, claims=[], packages=packages, gpu="none"))
        costs: dict[str, object] = {"table": behaviour_table(by_arm, starts[task])}
        print(write_result(f"evidence-{task}-behaviour", measurements=costs, claims=[], packages=packages, gpu="none"))
    line: dict[str, object] = {"table": short_table(tables)}
    print(write_result("evidence-short", measurements=line, claims=[], packages=packages, gpu="none"))
    draw_curves(tables)
    draw_differences(tables)


def percent(value: float) -> str:
    """A share as people read it."""
    return f"{100 * value:.1f} %"


def points(values: list[float]) -> str:
    """Median difference in points, with its interval.

    >>> points([0.01, 0.01])
    '+1.0 (+1.0 to +1.0)'
    """
    middle, low, high = (100 * value for value in median_interval(values))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def scores_table(by_arm: dict[str, list[Run]]) -> dict[str, Any]:
    """Held-out score and area of each arm, and area against the baselines and against VGPO as it is by default."""
    rows = []
    for arm, runs in by_arm.items():
        at_end, mean = median_interval([final(run) for run in runs]), median_interval([area(run) for run in runs])
        rows.append(
            [
                arm,
                f"{percent(at_end[0])} ({percent(at_end[1])} to {percent(at_end[2])})",
                f"{percent(mean[0])} ({percent(mean[1])} to {percent(mean[2])})",
                *("" if arm == baseline else points(paired(runs, by_arm[baseline], area)) for baseline in BASELINES),
                "" if arm == "grpo" else points(paired(runs, by_arm["grpo"], final)),
                len(runs),
            ]
        )
    return {
        "columns": [
            "arm",
            "score at the end",
            "area",
            "area - GRPO",
            "area - DAPO",
            "area - VGPO",
            "end - GRPO",
            "seeds",
        ],
        "rows": rows,
    }


def behaviour_table(by_arm: dict[str, list[Run]], start: Run) -> dict[str, Any]:
    """Medians over seeds of how each arm went about it."""
    rows = [["before training", "", "", "", *ratios([start]), "", ""]]
    for arm, runs in by_arm.items():
        middle = {
            name: statistics.median(run[name] for run in runs)
            for name in ("useful_share", "length", "processor_seconds_per_step", "peak_bytes_of_process")
        }
        rows.append(
            [
                arm,
                statistics.median(run["curve"][-1]["steps"] for run in runs),
                percent(middle["useful_share"]),
                f"{middle['length']:.1f}",
                *ratios(runs),
                f"{middle['processor_seconds_per_step']:.2f}",
                f"{middle['peak_bytes_of_process'] / 1e9:.2f}",
            ]
        )
    columns = ["arm", "steps", "useful groups", "tokens", "late/early, right", "late/early, wrong", "s/step", "GB"]
    return {"columns": columns, "rows": rows}


def ratios(runs: list[Run]) -> list[str]:
    """Median late/early focus of right and of wrong answers."""
    found = []
    for part in ("right", "wrong"):
        values = [run["focus"][part]["late_over_early"] for run in runs]
        known = [value for value in values if value is not None]
        found.append(f"{statistics.median(known):.3f}" if known else "none")
    return found


def short_table(tables: dict[str, dict[str, list[Run]]]) -> dict[str, Any]:
    """VGPO against DAPO, a line for each task."""
    rows = [
        [
            task,
            percent(statistics.median(area(run) for run in by_arm["dapo"])),
            percent(statistics.median(area(run) for run in by_arm["vgpo-attention"])),
            points(paired(by_arm["vgpo-attention"], by_arm["dapo"], area)),
            points(paired(by_arm["vgpo-similarity"], by_arm["dapo"], area)),
        ]
        for task, by_arm in tables.items()
    ]
    columns = ["task", "DAPO, area", "VGPO, area", "VGPO - DAPO, points", "with similarity, points"]
    return {"columns": columns, "rows": rows}


def draw_curves(tables: dict[str, dict[str, list[Run]]]) -> None:
    """Held-out score over generated tokens: the median over seeds and the range from the lowest to the highest."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(tables), figsize=(4.8 * len(tables), 3.8), layout="constrained")
    for panel, (task, by_arm) in zip(np.atleast_1d(panels), tables.items(), strict=True):
        for arm in DRAWN:
            runs = by_arm[arm]
            tokens = np.median([[point["tokens"] for point in run["curve"]] for run in runs], axis=0)
            scores = 100 * np.array([[point["score"] for point in run["curve"]] for run in runs])
            panel.plot(tokens, np.median(scores, axis=0), marker="o", ms=3.5, color=COLOURS[arm], label=arm)
            panel.fill_between(tokens, scores.min(0), scores.max(0), color=COLOURS[arm], alpha=0.12, lw=0)
        panel.set_title(task)
        panel.set_xlabel("generated tokens")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    np.atleast_1d(panels)[0].set_ylabel("held-out score, %")
    np.atleast_1d(panels)[-1].legend(frameon=False, loc="lower right")
    figure.savefig(IMAGES / "evidence-curves.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def draw_differences(tables: dict[str, dict[str, list[Run]]]) -> None:
    """Area of every arm minus DAPO's on the same seed: each seed a dot, the median and its interval a bar."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(tables), figsize=(4.8 * len(tables), 4.2), layout="constrained", sharey=True
    )
    for panel, (task, by_arm) in zip(np.atleast_1d(panels), tables.items(), strict=True):
        arms = [arm for arm in by_arm if arm != "dapo"]
        for place, arm in enumerate(reversed(arms)):
            values = [100 * value for value in paired(by_arm[arm], by_arm["dapo"], area)]
            middle, low, high = median_interval(values)
            colour = COLOURS.get(arm, "#56606b")
            panel.plot([low, high], [place, place], color=colour, lw=2)
            panel.plot(values, [place] * len(values), "o", ms=3.5, color=colour, alpha=0.45)
            panel.plot([middle], [place], "D", ms=6, color=colour)
        panel.set_yticks(range(len(arms)), list(reversed(arms)))
        panel.axvline(0, color="#202124", lw=0.8)
        panel.set_title(task)
        panel.set_xlabel("area under the curve, points against DAPO")
        panel.grid(alpha=0.3, axis="x")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "evidence-differences.png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
