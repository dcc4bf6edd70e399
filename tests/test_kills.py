"""Processes that are killed for good; `test_faults` tries more places without a process for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kills import AIMS, AT_SITES

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kills.py"), str(folder)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + logs
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("site", AT_SITES)
def test_a_process_killed_at_a_site_leaves_nothing_half_written_and_its_run_ends_as_if_undisturbed(
    told: dict[str, Any], site: str
) -> None:
    assert told["at_sites"][site] == {"code": -9, "faults": [], "differences": []}


def test_a_run_killed_at_random_again_and_again_ends_as_if_undisturbed(told: dict[str, Any]) -> None:
    assert len(told["at_random"]["phases"]) == len(AIMS)
    assert told["at_random"]["faults"] == told["at_random"]["differences"] == [], f"seed {told['seed']}"
    assert set(told["codes"]) == {0}
