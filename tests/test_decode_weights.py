"""A run that samples from a copy: weighed, reported, resumed and replayed like any other."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from tests.cheap_runs import small_config
from tests.small_models import small_policy
from tests.test_trainer import StopAfter, assert_same_run
from vgpo_lite.engine import make_engine
from vgpo_lite.errors import ConfigError, InterruptedRunError
from vgpo_lite.replay import replay_step
from vgpo_lite.trainer import train

if TYPE_CHECKING:
    from pathlib import Path

CHANGES = {
    "decode_weights": "copy",
    "quantization": "nf4",
    "dtype": "bfloat16",
    "num_iterations": 2,
    "max_steps": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "copy"
    train(small_config(output, **CHANGES))
    return output


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_weights_and_the_gap_are_reported_and_the_gap_stops_nothing(run: Path) -> None:
    first, second = metrics(run)
    assert first["invariants/sampling_gap"] == pytest.approx(first["policy/sampling_gap"], rel=1e-3)
    assert first["invariants/sampling_gap_max"] >= first["invariants/sampling_gap"] > 0
    for step in (first, second):
        assert 0.5 < step["policy/importance_weight"] < 2
        assert 0 <= step["policy/importance_cut_share"] < 0.5
    # both updates weigh the same tokens by the same rollout, whatever the first has moved
    assert second["policy/importance_weight"] == first["policy/importance_weight"]
    assert second["policy/ratio"] != 1.0


def test_a_run_resumed_between_two_updates_on_the_same_rollouts_goes_on_bit_by_bit(run: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path / "stopped", **CHANGES)
    with pytest.raises(InterruptedRunError):
        train(config, listener=StopAfter(step=1))
    train(config, resume="auto")
    assert_same_run(tmp_path / "stopped", run)


@pytest.mark.parametrize("step", [1, 2])
def test_a_replay_weighs_as_the_run_did(run: Path, step: int) -> None:
    again = replay_step(run, step)
    assert again.replayed.loss == pytest.approx(again.recorded.loss, rel=1e-6, abs=1e-6)
    assert again.replayed.grad_norm == pytest.approx(again.recorded.grad_norm, rel=1e-6)
    assert math.isfinite(again.recorded.grad_norm)


def test_a_replay_cannot_change_what_has_sampled(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot change decode_weights \(copy in the run\)"):
        replay_step(run, 1, overrides=["decode_weights=quantized"])


def test_unsloths_layers_are_not_copied(tmp_path: Path) -> None:
    config = small_config(tmp_path, decode_weights="copy").model_copy(update={"backend": "unsloth"})
    with pytest.raises(ConfigError, match="decode_weights=quantized"):
        make_engine(small_policy("qwen2_vl"), config)
