from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

from vgpo_lite.checkpoint import checkpoints
from vgpo_lite.config.load import load_config
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.data_types import StepReport
from vgpo_lite.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InterruptedRunError,
    NonFiniteError,
    NothingLearnedError,
    RewardError,
)
from vgpo_lite.listening import RunSummary, SilentListener
from vgpo_lite.tracking import Tracker
from vgpo_lite.trainer import train

TIMED = ("time/", "memory/")


def config_of(output: Path, **changes: object) -> RunConfig:
    small: dict[str, object] = {
        "output": str(output),
        "max_steps": 4,
        "num_generations": 4,
        "prompts_per_step": 2,
        "max_resamples": 8,
        "learning_rate": 1e-3,
        "checkpoint": {"every": 2},
        "eval": {"limit": 0},
        "data": {"limit": 40},
        "save_completions_every": 1,
    }
    return load_config(**(small | changes))


class StopAfter(SilentListener):
    """Sends this process a signal at a chosen moment."""

    def __init__(self, *, step: int, phase: str | None = None, number: int = signal.SIGINT) -> None:
        self.step, self.phase, self.number = step, phase, number
        self.done = 0

    def stepped(self, report: StepReport, seconds_left: float) -> None:
        self.done = report.step
        if self.phase is None and report.step == self.step:
            os.kill(os.getpid(), self.number)

    def progressed(self, phase: str, done: int, total: int) -> None:
        if self.phase == phase and self.done + 1 == self.step:
            self.phase = "over"
            os.kill(os.getpid(), self.number)


def records(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith((*TIMED, "invariants/"))} for line in lines]


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def assert_same_run(left: Path, right: Path) -> None:
    assert records(left) == records(right)
    first, second = adapter(left), adapter(right)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for file in (left / "completions").iterdir():
        assert file.read_bytes() == (right / "completions" / file.name).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(config_of(output))
    return output


def test_a_run_writes_what_its_directory_promises(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "events.jsonl",
        "status.json",
        "completions",
        "checkpoints",
        "adapter",
    }
    assert [line["step"] for line in records(undisturbed)] == [1, 2, 3, 4]
    status = json.loads((undisturbed / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["steps"], status["updated_steps"]) == ("finished", 0, 4, 4)
    assert [folder.name for folder in checkpoints(undisturbed / "checkpoints")] == ["step-000002", "step-000004"]


def test_the_first_update_moves_the_policy_from_a_ratio_of_one(undisturbed: Path) -> None:
    first = records(undisturbed)[0]
    assert first["policy/ratio"] == 1.0
    assert first["policy/clip_share"] == 0.0
    assert first["policy/grad_norm"] > 0
    assert 0 < first["focus/mean"] < 1
    moved = [tensor.abs().max() > 0 for name, tensor in adapter(undisturbed).items() if "lora_B" in name]
    assert moved
    assert all(moved)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(undisturbed: Path, tmp_path: Path) -> None:
    train(config_of(tmp_path / "again"))
    assert_same_run(undisturbed, tmp_path / "again")
    train(config_of(tmp_path / "other", seed=1, max_steps=1))
    assert records(undisturbed)[0] != records(tmp_path / "other")[0]


@pytest.mark.parametrize(
    ("step", "phase"), [(1, None), (3, None), (2, "rollout"), (3, "update")], ids=["1", "3", "decoding", "updating"]
)
def test_a_run_that_is_stopped_and_resumed_equals_one_that_never_stopped(
    undisturbed: Path, tmp_path: Path, step: int, phase: str | None
) -> None:
    output = tmp_path / "run"
    with pytest.raises(InterruptedRunError) as caught:
        train(config_of(output), listener=StopAfter(step=step, phase=phase))
    assert caught.value.exit_code == 130
    status = json.loads((output / "status.json").read_text())
    done = step if phase is None else step - 1
    assert (status["state"], status["exit_code"]) == ("interrupted", 130)
    assert status["checkpoint"] == f"checkpoints/step-{done:06d}"
    assert "--resume auto" in status["continue_with"]
    train(config_of(output), resume="auto")
    assert_same_run(undisturbed, output)


def test_a_window_of_several_updates_can_be_stopped_inside_and_resumed(tmp_path: Path) -> None:
    several = {"num_iterations": 3, "max_steps": 5, "kl_coefficient": 0.1}
    train(config_of(tmp_path / "whole", **several))
    with pytest.raises(InterruptedRunError) as caught:
        train(config_of(tmp_path / "run", **several), listener=StopAfter(step=4, number=signal.SIGTERM))
    assert caught.value.exit_code == 143
    train(config_of(tmp_path / "run", **several), resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    later = records(tmp_path / "whole")[1]
    assert later["policy/ratio"] != 1.0
    assert later["policy/kl"] > 0


def test_a_finished_run_goes_on_with_more_steps(undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    constant = {"lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    train(config_of(output, max_steps=2, **constant))
    train(config_of(output, max_steps=4, **constant), resume="auto")
    train(config_of(tmp_path / "whole", max_steps=4, **constant))
    assert_same_run(tmp_path / "whole", output)


def test_a_longer_run_follows_the_schedule_of_its_new_length_from_where_it_goes_on(tmp_path: Path) -> None:
    cosine = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.0, "quantization": "none"}
    train(config_of(tmp_path, max_steps=2, **cosine))
    shorter = adapter(tmp_path)
    summary = train(config_of(tmp_path, max_steps=3, **cosine), resume="auto")
    assert (summary.steps, summary.updated_steps) == (3, 3)
    # steps 1 and 2 as in a run of 2: 1/2 (1 + cos 0), 1/2 (1 + cos pi/2); step 3 as in one of 3: 1/2 (1 + cos 2/3 pi)
    rates = [line["policy/learning_rate"] for line in records(tmp_path)]
    assert rates == pytest.approx([1e-3, 0.5e-3, 0.25e-3])
    assert any(not torch.equal(tensor, shorter[name]) for name, tensor in adapter(tmp_path).items())
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["steps"]) == ("finished", 0, 3)


def test_memory_that_runs_out_while_the_adapters_move_leaves_the_last_whole_checkpoint_and_code_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vgpo_lite.trainer as trainer

    real = trainer.apply_gradients

    def exhausted(*args: Any, step: int, **named: Any) -> object:
        gradient = real(*args, step=step, **named)
        if step == 2:
            raise torch.OutOfMemoryError("no room for the optimizer's state")
        return gradient

    monkeypatch.setattr(trainer, "apply_gradients", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        train(config_of(tmp_path, max_steps=3, quantization="none", checkpoint={"every": 5}))
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    assert "the device is out of memory" in status["reason"]
    assert status["checkpoint"] == "checkpoints/step-000000"
    assert [line["step"] for line in records(tmp_path)] == [1]


def test_an_existing_run_is_not_overwritten(undisturbed: Path) -> None:
    with pytest.raises(ConfigError, match="--resume auto"):
        train(config_of(undisturbed))


def test_a_run_cannot_continue_with_other_settings(undisturbed: Path) -> None:
    with pytest.raises(CheckpointError, match=r"num_generations was 4 and is now 8") as caught:
        train(config_of(undisturbed, num_generations=8, max_steps=6), resume="auto")
    assert caught.value.exit_code == 3


def test_a_run_in_which_no_group_is_useful_says_so_and_leaves_no_adapter(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def same(completions, **columns):\n    return [0.5] * len(completions)\n")
    output = tmp_path / "run"
    with pytest.raises(NothingLearnedError, match="nothing was learned") as caught:
        train(config_of(output, max_steps=1, reward={"functions": {f"{rewards}:same": 1.0}}, max_resamples=1))
    assert caught.value.exit_code == 3
    assert not (output / "adapter").exists()
    only = records(output)[0]
    assert (only["groups/useful_share"], only["groups/sampled"], only["reward/mean"]) == (0.0, 4.0, 0.5)
    assert json.loads((output / "status.json").read_text())["exit_code"] == 3


def test_a_reward_function_that_fails_stops_the_run_before_the_optimizer_step(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def broken(completions, **columns):\n    return [float('nan')] * len(completions)\n")
    with pytest.raises(RewardError, match="broken"):
        train(config_of(tmp_path / "run", max_steps=1, reward={"functions": {f"{rewards}:broken": 1.0}}))
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_gradients_that_are_not_finite_move_nothing_and_three_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vgpo_lite.trainer as trainer

    monkeypatch.setattr(trainer, "step_denominator", lambda *args, **kwargs: float("nan"))
    with pytest.raises(NonFiniteError, match="3 steps in a row") as caught:
        train(config_of(tmp_path / "run", max_steps=5))
    assert caught.value.exit_code == 5
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    saved = load_file(tmp_path / "run" / status["checkpoint"] / "adapter.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert all(not tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert kinds.count("step_skipped") == 3


@pytest.mark.parametrize("changes", [{"engine": "batched"}, {"memory": {"rows_per_micro_batch": 3}}], ids=str)
def test_the_engine_and_its_sizes_decide_no_result(
    undisturbed: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    train(config_of(tmp_path / "run", **changes))
    for ours, theirs in zip(records(tmp_path / "run"), records(undisturbed), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "gspo", "cispo"])
def test_every_objective_trains(tmp_path: Path, loss: str) -> None:
    summary: RunSummary = train(config_of(tmp_path / "run", loss=loss, max_steps=1, quantization="none"))
    assert summary.updated_steps == 1
    assert records(tmp_path / "run")[0]["policy/grad_norm"] > 0


def test_completions_cut_at_the_limit_can_be_left_out_of_the_loss(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def ones(completions, **columns):\n    return [float(c[0]['content'].count('1')) for c in completions]\n"
    )
    cut = {
        "max_completion_length": 19,
        "max_steps": 1,
        "mask_truncated_completions": True,
        "temperature": 2.0,
        "num_generations": 8,
    }
    train(config_of(tmp_path / "run", **cut, reward={"functions": {f"{rewards}:ones": 0.1}}))
    only = records(tmp_path / "run")[0]
    assert 0 < only["completions/truncated_share"] < 1
    assert only["policy/grad_norm"] > 0


def test_accuracy_is_measured_before_and_after_with_its_interval(tmp_path: Path) -> None:
    summary = train(config_of(tmp_path / "run", max_steps=1, eval={"limit": 20}))
    assert summary.before is not None
    assert summary.after is not None
    assert summary.before.total == summary.after.total == 20
    assert summary.before.low < summary.before.share < summary.before.high


def test_a_row_that_is_damaged_behind_its_headers_is_passed_over_and_told(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "data").mkdir()
    rows = []
    for row in range(20):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "data" / f"{row}.png")
        rows.append({"file_name": f"{row}.png", "problem": "How many?", "answer": str(row % 2)})
    for row in (0, 1, 2):
        whole = bytearray((tmp_path / "data" / f"{row}.png").read_bytes())
        whole[200:600] = bytes(400)
        (tmp_path / "data" / f"{row}.png").write_bytes(whole)
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def ones(completions, **c):\n    return [float(c[0]['content'].count('1')) for c in completions]\n"
    )
    changes = {"dataset": str(tmp_path / "data"), "reward": {"functions": {f"{rewards}:ones": 1.0}}, "max_steps": 5}
    data = {"max_bad_rows": 0.2, "prompt_template": "{{ question }}"}
    train(config_of(tmp_path / "run", **changes, data=data, max_resamples=0, eval={"limit": 0, "held_out": 0}))
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    passed = {event["reason"].split(" ")[0] for event in events if event["kind"] == "row_passed_over"}
    assert passed
    assert all(name.rsplit("/", 1)[1] in ("0", "1", "2") for name in passed)
    with pytest.raises(DataError):
        train(
            config_of(
                tmp_path / "strict", **changes, data=data | {"max_bad_rows": 0.0}, eval={"limit": 0, "held_out": 0}
            )
        )


def test_a_tracker_mirrors_the_metrics_and_the_card_tells_what_was_trained(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    summary = train(config_of(output, max_steps=2, report_to="tensorboard", eval={"limit": 10}))
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    mirrored = [event.value for event in events.Scalars("reward/mean")]
    assert mirrored == pytest.approx([line["reward/mean"] for line in records(output)])
    assert summary.before is not None
    assert summary.after is not None
    measured = [(event.step, event.value) for event in events.Scalars("eval/accuracy")]
    assert measured == [(0, pytest.approx(summary.before.share)), (2, pytest.approx(summary.after.share))]
    card = (output / "README.md").read_text()
    assert f"| after | {summary.after.right} of 10 | {100 * summary.after.share:.1f} % |" in card
    assert "https://arxiv.org/abs/2604.09349" in card


@pytest.mark.parametrize(("name", "said"), [("wandb", None), ("trackio", "mine")])
def test_runs_stand_side_by_side_in_one_project_of_a_tracker(
    name: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    made, failed = MagicMock(), []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, made)
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    if said is not None:
        monkeypatch.setenv(f"{name.upper()}_PROJECT", said)
    Tracker(name, folder=tmp_path / "run-3", settings={"seed": 3, "adapter": None}, on_failure=failed.append)
    made.assert_called_once_with(said or "vgpo-lite", name="run-3")
    made.return_value.store_init_configuration.assert_called_once_with({"seed": 3, "adapter": "None"})
    assert failed == []


def test_a_tracker_that_fails_is_told_of_and_never_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import TensorBoardTracker

    class Heard(SilentListener):
        notes: tuple[str, ...] = ()

        def noted(self, message: str) -> None:
            self.notes = (*self.notes, message)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the tracker")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    heard = Heard()
    summary = train(config_of(tmp_path / "run", max_steps=2, report_to="tensorboard"), listener=heard)
    assert summary.updated_steps == 2
    assert [note for note in heard.notes if "no route to the tracker" in note] == [
        "tensorboard failed and is left alone from here on: no route to the tracker"
    ]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vgpo-lite\[wandb\]'"):
        train(config_of(tmp_path / "run", report_to="wandb"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_stopped_while_it_measures_the_end_has_lost_no_step(tmp_path: Path) -> None:
    class StopAtTheEnd(SilentListener):
        def progressed(self, phase: str, done: int, total: int) -> None:
            if phase == "measuring accuracy after":
                os.kill(os.getpid(), signal.SIGINT)

    changes = {"max_steps": 1, "eval": {"limit": 32}, "checkpoint": {"every": 5}}
    with pytest.raises(InterruptedRunError):
        train(config_of(tmp_path / "run", **changes), listener=StopAtTheEnd())
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["checkpoint"] == "checkpoints/step-000001"
    summary = train(config_of(tmp_path / "run", **changes), resume="auto")
    assert summary.steps == summary.updated_steps == 1
    assert summary.after is not None
    assert len(records(tmp_path / "run")) == 1


def test_going_back_to_an_earlier_checkpoint_leaves_the_later_ones_behind(tmp_path: Path) -> None:
    output = tmp_path / "run"
    every = {"checkpoint": {"every": 1, "keep": 5}}
    train(config_of(output, **every))
    assert [folder.name[-1] for folder in checkpoints(output / "checkpoints")] == ["0", "1", "2", "3", "4"]
    with pytest.raises(InterruptedRunError):
        train(
            config_of(output, **every), listener=StopAfter(step=3), resume=str(output / "checkpoints" / "step-000002")
        )
    assert [folder.name[-1] for folder in checkpoints(output / "checkpoints")] == ["0", "1", "2", "3"]
    assert not (output / "adapter").exists()
    assert json.loads((output / "status.json").read_text())["checkpoint"] == "checkpoints/step-000003"


def test_rows_without_golds_train_with_a_reward_that_needs_none(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "data").mkdir()
    for row in range(8):
        Image.new("RGB", (64, 64), (30 * row, 0, 0)).save(tmp_path / "data" / f"{row}.png")
    rows = [json.dumps({"file_name": f"{row}.png", "problem": "How many?"}) for row in range(8)]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(rows))
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def sums(completions, **c):\n    return [sum(map(ord, c[0]['content'])) % 7 for c in completions]\n"
    )
    changes = {"dataset": str(tmp_path / "data"), "reward": {"functions": {f"{rewards}:sums": 1.0}}, "max_steps": 1}
    summary = train(
        config_of(tmp_path / "run", **changes, data={"prompt_template": "{{ question }}"}, eval={"limit": 5})
    )
    assert summary.updated_steps == 1
    assert summary.before is None


def test_a_disk_that_fails_while_a_run_is_stopped_is_told_in_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vgpo_lite.run as run_module
    from vgpo_lite.errors import StorageError

    real = run_module.save_checkpoint

    def full(root: Path, checkpoint: object, *, keep: int) -> Path:
        if checkpoint.step > 0:  # pyright: ignore[reportAttributeAccessIssue]
            raise StorageError("no space left on device")
        return real(root, checkpoint, keep=keep)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(run_module, "save_checkpoint", full)
    with pytest.raises(InterruptedRunError):
        train(config_of(tmp_path / "run"), listener=StopAfter(step=1))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["checkpoint"]) == ("interrupted", "checkpoints/step-000000")
    assert "no space left on device" in status["reason"]


def test_what_a_failing_reward_was_asked_to_judge_is_kept(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def broken(completions, **columns):\n    raise KeyError('gone')\n")
    with pytest.raises(RewardError):
        train(config_of(tmp_path / "run", max_steps=1, reward={"functions": {f"{rewards}:broken": 1.0}}))
    evidence = json.loads((tmp_path / "run" / "reward_error.json").read_text())
    assert len(evidence["completions"]) == 4
    assert evidence["sample_id"].startswith("shapes")
