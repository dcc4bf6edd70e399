"""A recorded step taken anew gives what the run recorded, and with other settings what a run with those would have."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch

from tests.test_journal import Trained
from tests.test_trainer import StopAfter, config_of
from vgpo_lite import replay
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.engine.shared import SharedEngine
from vgpo_lite.errors import CheckpointError, ConfigError, DataError, InterruptedRunError
from vgpo_lite.journal import FOLDER, adapter_place, read_index, read_page
from vgpo_lite.listening import SilentListener
from vgpo_lite.replay import Replay, replay_step
from vgpo_lite.trainer import train

PLAIN = {"quantization": "none", "max_steps": 1, "prompts_per_step": 1}
NEAR = 1e-6  # the recorded loss is to come again as near as this


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_as_recorded(again: Replay, metrics: dict[str, float]) -> None:
    assert again.recorded.loss == metrics["policy/loss"]
    assert again.recorded.grad_norm == metrics["policy/grad_norm"]
    assert again.replayed.loss == pytest.approx(again.recorded.loss, rel=NEAR, abs=NEAR)
    assert again.replayed.grad_norm == pytest.approx(again.recorded.grad_norm, rel=NEAR)
    assert again.recorded.grad_norm > 0


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates per rollout in NF4, with a KL term, stopped inside the second window and resumed."""
    output = tmp_path_factory.mktemp("runs") / "windowed"
    config = config_of(output, num_iterations=2, max_steps=4, kl_coefficient=0.1, prompts_per_step=1)
    with pytest.raises(InterruptedRunError):
        train(config, listener=StopAfter(step=3, number=signal.SIGTERM))
    train(config, resume="auto")
    return output


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "plain"
    train(config_of(output, **PLAIN))
    return output


def test_every_step_comes_again_with_its_loss_and_gradient_and_nothing_is_sampled(
    windowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampled(*_: object, **__: object) -> None:
        raise AssertionError("a replay sampled")

    monkeypatch.setattr(SharedEngine, "sample", sampled)
    metrics = metrics_of(windowed)
    assert [entry.step for entry in read_index(windowed / FOLDER)] == [1, 2, 3, 4]
    assert "0.old_logprobs" in read_page(windowed, 4).window
    for step in (1, 2, 4):  # before and after the resumption, first and second update on their rollouts
        assert_as_recorded(replay_step(windowed, step), metrics[step - 1])
    assert metrics[1]["policy/kl"] > 0


def test_a_step_of_one_update_comes_again_and_its_loss_is_the_mean_advantage(plain: Path) -> None:
    again = replay_step(plain, 1)
    assert_as_recorded(again, metrics_of(plain)[0])
    page = read_page(plain, 1)
    # At a ratio of one, DAPO's loss is minus the mean weighted advantage over the tokens of the step.
    total = sum(float(advantages.double().sum()) for advantages in page.advantages)
    assert again.replayed.loss == pytest.approx(-total / page.entry.tokens, abs=NEAR)
    assert page.denominator == page.entry.tokens


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({"advantage": "grpo"}, ["advantage=grpo"]),
        ({"loss": "dr_grpo", "scale_rewards": "none"}, ["loss=dr_grpo", "scale_rewards=none"]),
        ({"focus": {"signal": "similarity", "beta": 1.0}}, ["focus.signal=similarity", "focus.beta=1"]),
    ],
    ids=["weights of one", "other objective", "other focus"],
)
def test_with_other_settings_a_step_gives_what_a_run_with_those_settings_records(
    plain: Path, tmp_path: Path, changes: dict[str, object], overrides: list[str]
) -> None:
    train(config_of(tmp_path / "other", **PLAIN, **changes))  # the first rollouts depend on none of these
    other = metrics_of(tmp_path / "other")[0]
    again = replay_step(plain, 1, overrides=overrides)
    assert set(again.changed) == {override.partition("=")[0] for override in overrides}
    assert again.replayed.loss == pytest.approx(other["policy/loss"], rel=NEAR, abs=NEAR)
    assert again.replayed.grad_norm == pytest.approx(other["policy/grad_norm"], rel=1e-5)
    assert again.recorded.grad_norm != pytest.approx(again.replayed.grad_norm, rel=1e-3)


def test_the_kl_term_is_linear_in_its_coefficient_and_one_that_was_not_asked_for_can_be_added(windowed: Path) -> None:
    none, recorded, twice = (
        replay_step(windowed, 4, overrides=overrides).replayed.loss
        for overrides in (["kl_coefficient=0"], [], ["kl_coefficient=0.2"])
    )
    assert recorded != none
    assert twice - none == pytest.approx(2 * (recorded - none), abs=1e-7)


def test_the_other_engine_agrees(windowed: Path) -> None:
    again = replay_step(windowed, 2, overrides=["engine=batched", "memory.rows_per_micro_batch=3"])
    assert again.replayed.loss == pytest.approx(again.recorded.loss, abs=1e-5)
    assert again.replayed.grad_norm == pytest.approx(again.recorded.grad_norm, rel=1e-3)


def test_focus_of_another_adapter_cannot_be_read_anew(windowed: Path) -> None:
    with pytest.raises(ConfigError, match="its focus was read 1 updates before, with another adapter"):
        replay_step(windowed, 2, overrides=["focus.signal=similarity"])


def test_a_replay_draws_from_the_steps_generators_and_leaves_the_callers_alone(plain: Path) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    replay_step(plain, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_was_no_number_is_none_again(tmp_path: Path) -> None:
    exploding = {"num_iterations": 2, "learning_rate": 1e30, "warmup_ratio": 0.0}
    train(config_of(tmp_path / "run", **(PLAIN | exploding | {"max_steps": 2})))
    entry = read_index(tmp_path / "run" / FOLDER)[-1]
    assert (entry.step, entry.loss, entry.grad_norm) == (2, None, None)
    again = replay_step(tmp_path / "run", 2)
    assert math.isnan(again.recorded.loss)
    assert math.isnan(again.replayed.loss)
    assert not math.isfinite(again.replayed.grad_norm)


def test_rows_that_are_not_what_they_were_are_refused_and_named(tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for row in range(4):
        Image.effect_noise((64, 64), 90).convert("RGB").save(data / f"{row}.png")

    def describe(question: str, rows: range) -> None:
        lines = [json.dumps({"file_name": f"{row}.png", "problem": question, "answer": "1"}) for row in rows]
        (data / "metadata.jsonl").write_text("\n".join(lines))

    describe("How many?", range(4))
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def sums(completions, **c):\n    return [sum(map(ord, c[0]['content'])) % 7 for c in completions]\n"
    )
    run = tmp_path / "run"
    settings = {"dataset": str(data), "reward": {"functions": {f"{rewards}:sums": 1.0}}}
    train(config_of(run, **PLAIN, **settings, eval={"limit": 0, "held_out": 0}))
    [name] = read_page(run, 1).sample_ids
    image = data / f"{name.rsplit('/', 1)[1]}.png"
    seen = image.read_bytes()
    assert_as_recorded(replay_step(run, 1), metrics_of(run)[0])

    Image.effect_noise((64, 64), 90).convert("RGB").save(image)
    with pytest.raises(DataError, match=f"the images of {name} are not what step 1 saw") as caught:
        replay_step(run, 1)
    assert caught.value.exit_code == 3
    image.write_bytes(seen)
    describe("How many are there?", range(4))
    with pytest.raises(DataError, match=f"the text of {name} is not what step 1 saw .*prompt of"):
        replay_step(run, 1)
    describe("How many?", range(0))
    with pytest.raises(DataError):
        replay_step(run, 1)


def test_a_step_that_trained_on_nothing_says_so(tmp_path: Path) -> None:
    Trained(tmp_path).step(3, groups=0)
    with pytest.raises(CheckpointError, match=r"step 3 of .* trained on no group.* there is nothing to replay"):
        replay_step(tmp_path, 3)


def test_settings_that_decided_the_rollouts_are_refused_with_those_that_can_be_changed(tmp_path: Path) -> None:
    Trained(tmp_path).step(1)
    with pytest.raises(
        ConfigError, match=r"cannot change num_generations \(8 in the run\), temperature .*advantage, loss.*focus\.\*"
    ) as caught:
        replay_step(tmp_path, 1, overrides=["num_generations=4", "temperature=0.7", "focus.beta=0.1"])
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="advantag"):
        replay_step(tmp_path, 1, overrides=["advantag=grpo"])


@pytest.mark.parametrize(("overrides", "trusted"), [([], False), (["trust_remote_code=true"], True)], ids=str)
def test_a_run_directory_lets_no_remote_code_run_unless_it_is_asked_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], trusted: bool
) -> None:
    class LoadedError(Exception):
        pass

    def load(config: RunConfig) -> None:
        raise LoadedError(config.trust_remote_code)

    monkeypatch.setattr(replay, "loaded_policy", load)
    monkeypatch.setattr(replay, "_samples", lambda *_: [])
    Trained(tmp_path, trust_remote_code=True).step(1)
    with pytest.raises(LoadedError) as caught:
        replay_step(tmp_path, 1, overrides=overrides)
    assert caught.value.args == (trusted,)


def test_an_adapter_that_was_tampered_with_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    Trained(tmp_path).step(1)
    place = adapter_place(tmp_path, read_index(tmp_path / FOLDER)[0])
    assert place is not None
    data = place.read_bytes()
    place.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    class Heard(SilentListener):
        def noted(self, message: str) -> None:
            raise AssertionError(message)

    with pytest.raises(CheckpointError, match="the adapter of step 1 is damaged") as caught:
        replay_step(tmp_path, 1, listener=Heard())
    assert caught.value.exit_code == 3
