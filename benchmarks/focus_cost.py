"""What focus and VGPO's weighting cost: a step with them against one that reads no focus and weighs nothing.

    python benchmarks/focus_cost.py                writes benchmarks/results/focus-cost.json; some minutes of one core
    python benchmarks/focus_cost.py --repeat 3 --model 3m --dry-run

Both engines stand side by side in one process, on the same weights and question, and take turns; the median of the
differences within a turn counts. The blind one is GRPO on an engine that is told to read nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from measured import claim, write_result
from ours import Steps, cpu_step
from workload import SHAPES, Work, write_model

from vgpo_lite.engine.patient import PatientEngine
from vgpo_lite.engine.protocol import EngineSettings
from vgpo_lite.engine.shared import SharedEngine

MOST = 0.03
"""Share of a step that focus may cost."""
WORK = {"4:1": (256, 64, 80), "1:1": (256, 64, 320)}


class BlindSteps(Steps):
    """Steps that read no focus."""

    def __init__(self, config, work, *, clock) -> None:
        super().__init__(config, work, clock=clock)
        settings = replace(EngineSettings.of(config), focus_signal="nothing", needs_focus=False)
        self._engine = PatientEngine(self.policy, settings, build=partial(SharedEngine, self.policy))


def main() -> None:
    """Measure every signal at every length."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="52m", choices=list(SHAPES), help="shape of the random model")
    options.add_argument("--generations", type=int, default=8)
    options.add_argument("--repeat", type=int, default=9, help="turns, of which the median counts")
    options.add_argument("--ratios", nargs="+", default=list(WORK), choices=list(WORK), help="prompt:completion")
    options.add_argument("--dry-run", action="store_true", help="print and write nothing")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SHAPES[chosen.model])
        rows = [row for ratio in chosen.ratios for row in measured(folder, ratio, chosen)]
    print(json.dumps(rows, indent=2))
    if chosen.dry_run:
        return
    claims = [
        claim(f"focus={row['signal']}, prompt:completion {row['ratio']}", row["cost"], "<=", MOST, "share")
        for row in rows
    ]
    packages = ("torch", "transformers", "peft")
    write_result("focus-cost", measurements={"rows": rows}, claims=claims, packages=packages, gpu="none")


def measured(folder: str, ratio: str, chosen: argparse.Namespace) -> list[dict[str, object]]:
    """Processor seconds of a step at one length, with each signal and without any."""
    work = Work(*WORK[ratio], chosen.generations)
    sides = {
        "nothing": steps(BlindSteps, folder, work, advantage="grpo"),
        "attention": steps(Steps, folder, work, focus={"signal": "attention"}),
        "similarity": steps(Steps, folder, work, focus={"signal": "similarity"}),
    }
    for side in sides.values():
        side.step()
    turns = [{name: side.step() for name, side in sides.items()} for _ in range(chosen.repeat)]
    return [
        {
            "ratio": ratio,
            "signal": name,
            "step_seconds": round(median(turn[name].step for turn in turns), 4),
            "without_seconds": round(median(turn["nothing"].step for turn in turns), 4),
            "cost": round(median(turn[name].step / turn["nothing"].step - 1 for turn in turns), 4),
            "costs": [round(turn[name].step / turn["nothing"].step - 1, 4) for turn in turns],
        }
        for name in ("attention", "similarity")
    ]


def steps(kind: type[Steps], folder: str, work: Work, **settings: object) -> Steps:
    """A stand-by training step."""
    return kind(cpu_step(folder, work, **settings), work, clock=time.process_time)


if __name__ == "__main__":
    main()
