"""Real `kill -9`, told as JSON: `python tests/kills.py FOLDER`.

A process of its own, since it forks: a process in which torch has gone backward cannot be forked for training.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.torture import differences, faults_in, killed, start
from tests.cheap_runs import lent, small_settings

AT_SITES = (
    "checkpoint.before_rename=kill@3",
    "folder.before_delete=kill@1",
    "file.before_rename=kill@9",
    "optimizer.after_step=kill@3",
)
AIMS = ("decoding", "update", "saving")


def main(folder: Path) -> dict[str, object]:
    """Kill runs at named sites, and one run three times at random; what each of them was like after."""
    seed = int.from_bytes(random.randbytes(4), "big")
    draw, told = random.Random(seed), {}
    with lent(folder / "opened"):
        settings = small_settings(folder) | {"num_iterations": 2, "max_steps": 4}
        long = settings | {"max_steps": 12}
        codes = [start(folder / "short", settings).wait(), start(folder / "long", long).wait()]
        for site in AT_SITES:
            output = folder / site.partition("=")[0]
            code = start(output, settings, specification=site).wait()
            faults = faults_in(output, keep=2)
            codes.append(start(output, settings).wait())
            told[site] = {"code": code, "faults": faults, "differences": differences(folder / "short", output)}
        output, faults, phases = folder / "random", [], []
        for aim in AIMS:
            child = start(output, long)
            phases.append(killed(child, output / "checkpoints", aim=aim, delay_seconds=draw.uniform(0.0, 0.05)))
            faults += faults_in(output, keep=2)
        codes.append(start(output, long).wait())
        at_random = {"phases": phases, "faults": faults, "differences": differences(folder / "long", output)}
    return {"seed": seed, "codes": codes, "at_sites": told, "at_random": at_random}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
