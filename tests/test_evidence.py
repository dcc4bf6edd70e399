"""What the evidence compares and how it sums up: the arms, the areas, the pairing by seed, the task's reward."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vgpo_lite.config.load import load_config
from vgpo_lite.config.writing import flat_values
from vgpo_lite.datasets.shapes import DIFFICULTIES, draw, random_scenes

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("evidence")


def run(*points: tuple[int, float], seed: int = 0, budget: int = 100) -> dict[str, Any]:
    return {"seed": seed, "tokens": budget, "curve": [{"tokens": at, "score": score} for at, score in points]}


def test_the_area_is_the_mean_of_the_curve_up_to_the_budget(evidence: ModuleType) -> None:
    curve = ((0, 0.2), (30, 0.5), (80, 0.9), (130, 0.4))
    at = np.linspace(0, 100, 200_001)
    slow = np.interp(at, [token for token, _ in curve], [score for _, score in curve]).mean()
    area = evidence.evidence_summary.area
    assert area(run(*curve)) == pytest.approx(slow, abs=1e-5)
    assert area(run((0, 0.2), (15, 0.35), *curve[1:])) == pytest.approx(area(run(*curve)), abs=1e-12)
    assert area(run(*curve, (150, 0.0))) == area(run(*curve))


def test_differences_are_taken_seed_by_seed(evidence: ModuleType) -> None:
    ours = [run((0, 0.0), (100, 0.9), seed=2), run((0, 0.0), (100, 0.5), seed=1)]
    theirs = [run((0, 0.0), (100, 0.4), seed=1), run((0, 0.0), (100, 0.6), seed=2), run((0, 0.0), (100, 0.1), seed=3)]
    summary = evidence.evidence_summary
    assert summary.paired(ours, theirs, summary.final) == pytest.approx([0.3, 0.1])


def test_the_interval_holds_the_median_and_stays_within_the_seeds(evidence: ModuleType) -> None:
    values = [0.3, 0.1, 0.2, 0.9, 0.25]
    middle, low, high = evidence.evidence_summary.median_interval(values)
    assert middle == 0.25
    assert 0.1 <= low < middle < high <= 0.9


def test_every_arm_changes_what_its_name_says_and_nothing_else(evidence: ModuleType, tmp_path: Path) -> None:
    told = {}
    for arm in evidence.ARMS:
        job = evidence.job_of(("counting", arm, 0, 2e-3), tmp_path)
        told[arm] = flat_values(load_config(job["recipe"], dataset=job["dataset"], overrides=job["settings"]))
        if told[arm]["clip_high"] == "auto":  # what it means for DAPO
            told[arm]["clip_high"] = 0.28

    def changed(arm: str, base: str = "vgpo-attention") -> dict[str, object]:
        return {name: value for name, value in told[arm].items() if told[base].get(name) != value}

    assert changed("vgpo-similarity") == {"focus.signal": "similarity"}
    assert changed("token-weights-only") == {"focus.trajectory_reweighting": False}
    assert changed("trajectory-weights-only") == {"focus.token_reweighting": False}
    assert changed("no-compensation") == {"focus.compensation": False}
    assert changed("full-compensation") == {"focus.gamma": 1.0, "focus.kappa": 1.0}
    assert changed("accumulation-mean") == {"focus.accumulation": "mean"}
    assert changed("sign-positive") == {"focus.sign": "positive"}
    assert changed("dapo") == {"advantage": "grpo"}
    assert changed("grpo", "dapo") == {"loss": "grpo", "clip_high": 0.2, "kl_coefficient": 0.04, "max_resamples": 0}
    assert {values["learning_rate"] for values in told.values()} == {2e-3}


def test_a_finished_run_is_not_repeated(evidence: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log, asked = tmp_path / "runs.jsonl", []

    def measured(_: str, job: dict[str, Any]) -> dict[str, Any]:
        asked.append((job["task"], job["arm"], job["seed"], job["learning_rate"]))
        return {name: job[name] for name in ("task", "arm", "seed", "learning_rate")} | {"curve": []}

    monkeypatch.setattr(evidence, "LOG", log)
    monkeypatch.setattr(evidence, "in_own_process", measured)
    wanted = [("counting", "dapo", 0, 2e-3), ("describing", "dapo", 0, 2e-3)]
    chosen = argparse.Namespace(together=1, data=tmp_path)
    evidence.do(wanted[:1], chosen)
    evidence.do(wanted, chosen)
    assert asked == wanted
    assert [json.loads(line)["task"] for line in log.read_text().splitlines()] == ["counting", "describing"]


def test_a_description_earns_the_share_of_cells_it_names_right(evidence: ModuleType) -> None:
    describing = sys.modules["describing"]
    generator = np.random.default_rng(0)
    scenes = random_scenes(generator, 1, DIFFICULTIES["harder"])
    draw(generator, scenes, DIFFICULTIES["harder"])
    truth = describing.described(scenes)
    assert len(describing.named(truth)) == 16
    words = truth.split(", ")
    wrong = ", ".join([*words[:5], "green elephant", *words[6:]])
    short = ", ".join(words[:-1])
    answers = [truth, [{"role": "assistant", "content": wrong}], short, "", "Well: " + truth]
    assert describing.cells(answers, [truth] * 5) == [1.0, 15 / 16, 0.0, 0.0, 0.0]
