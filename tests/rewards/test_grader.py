"""The grader of a run: weighted sums, the user's functions as guests, and a poll that is heard."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vgpo_lite.config.schema import RewardConfig
from vgpo_lite.data_types import RolloutGroup
from vgpo_lite.errors import ConfigError, RewardError
from vgpo_lite.rewards import Grader

GUESTS = """
import beside
from dataclasses import dataclass

SCALE = 2
seen = {}

def length(completions, **kwargs):
    return [float(len(completion[0]["content"])) for completion in completions]

def everything(**kwargs):
    seen.update(kwargs)
    return [1] * len(kwargs["completions"])

def narrow(completion_ids):
    return [len(ids) * beside.FACTOR for ids in completion_ids]

def sometimes(completions, solution, answer, **kwargs):
    assert solution == answer
    return [None if "no" in completion[0]["content"] else True for completion in completions]

def never(completions, **kwargs):
    return [None for _ in completions]

def numpy_numbers(completions, **kwargs):
    import numpy, torch
    return [numpy.float32(0.5), torch.tensor(0.25)]

def accuracy(completions, **kwargs):
    return [7.0] * len(completions)

class Callable_:
    def __call__(self, completions, **kwargs):
        return [3.0] * len(completions)

instance = Callable_()

def divides(completions, **kwargs):
    return [1 / 0 for _ in completions]

def leaves(completions, **kwargs):
    raise SystemExit(3)

def short(completions, **kwargs):
    return [1.0]

def long(completions, **kwargs):
    return [1.0] * (len(completions) + 1)

def nan(completions, **kwargs):
    return [1.0, float("nan")]

def infinite(completions, **kwargs):
    return [float("inf"), 1.0]

def words(completions, **kwargs):
    return ["1.0", "2.0"]

def nothing(completions, **kwargs):
    return None

def generator(completions, **kwargs):
    return (1.0 for _ in completions)

def mapping(completions, **kwargs):
    return {index: 1.0 for index, _ in enumerate(completions)}

def demanding(completions, difficulty):
    return [1.0, 1.0]

def hidden_coroutine(completions, **kwargs):
    async def later():
        return [1.0, 1.0]
    return later()

class Rude:
    def __repr__(self):
        raise RuntimeError("rude")
    __float__ = __repr__

def rude(completions, **kwargs):
    return [Rude(), 1.0]

async def awaited(completions, **kwargs):
    return [1.0, 1.0]

class Awaited:
    async def __call__(self, completions, **kwargs):
        return [1.0, 1.0]

awaited_instance = Awaited()
"""


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's file of reward functions, with a file beside it that it imports."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "beside.py").write_text("FACTOR = 10\n")
    (folder / "rewards.py").write_text(GUESTS)
    return folder / "rewards.py"


def graded(group: RolloutGroup, weights: dict[str, float]) -> dict[str, list[float]]:
    """What a group earns: the sum as `total`, and each component."""
    with Grader(RewardConfig(functions=weights, workers=1)) as grader:
        earned = grader.grade(group)
    assert earned.rewards.dtype == torch.float32
    return {"total": earned.rewards.tolist(), **{name: part.tolist() for name, part in earned.components.items()}}


def test_rewards_are_the_weighted_sum_of_their_components(group_of: Callable[..., RolloutGroup]) -> None:
    group = group_of(r"<think>so</think>\boxed{4}", r"\boxed{4}", r"<think>so</think>\boxed{5}", "4")
    # accuracy 1 1 0 0, format 1 0 1 0; 1.0 * accuracy + 0.25 * format
    assert graded(group, {"accuracy": 1.0, "format": 0.25}) == {
        "total": [1.25, 1.0, 0.25, 0.0],
        "accuracy": [1.0, 1.0, 0.0, 0.0],
        "format": [1.0, 0.0, 1.0, 0.0],
    }


def test_a_users_function_gets_what_trl_would_give_it(guests: Path, group_of: Callable[..., RolloutGroup]) -> None:
    group = group_of("one", "two!", answer="4", difficulty="hard", solution="<answer> 4 </answer>")
    assert graded(group, {f"{guests}:everything": 1.0})["total"] == [1.0, 1.0]
    loaded = [module for name, module in sys.modules.items() if name.startswith("vgpo_lite_reward_rewards")]
    (module,) = [module for module in loaded if module.__file__ == str(guests)]
    assert vars(module)["seen"] == {
        "prompts": [[{"role": "user", "content": "How many?"}]] * 2,
        "completions": [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "two!"}]],
        "completion_ids": [[1], [1, 2]],
        "solution": ["4", "4"],
        "answer": ["4", "4"],
        "images": [[], []],
        "difficulty": ["hard", "hard"],
    }


def test_users_functions_add_to_the_sum_under_their_names(guests: Path, group_of: Callable[..., RolloutGroup]) -> None:
    weights = {"accuracy": 1.0, f"{guests}:length": 0.5, f"{guests}:narrow": 0.1, f"{guests}:accuracy": 1.0}
    earned = graded(group_of("one", r"\boxed{4}"), weights)
    assert earned["length"] == [3.0, 9.0]
    assert earned["narrow"] == [10.0, 20.0]
    assert earned["accuracy"] == [0.0, 1.0]
    assert earned["rewards.accuracy"] == [7.0, 7.0]
    # 0 + 1.5 + 1 + 7 and 1 + 4.5 + 2 + 7
    assert earned["total"] == pytest.approx([9.5, 14.5])


def test_who_abstains_adds_nothing(guests: Path, group_of: Callable[..., RolloutGroup]) -> None:
    earned = graded(group_of("no", "yes"), {f"{guests}:sometimes": 2.0, f"{guests}:never": 1.0})
    assert earned["total"] == [0.0, 2.0]
    assert math.isnan(earned["sometimes"][0])
    assert earned["sometimes"][1] == 1.0
    assert all(map(math.isnan, earned["never"]))


def test_a_row_without_gold_earns_nothing(group_of: Callable[..., RolloutGroup]) -> None:
    earned = graded(group_of(r"\boxed{4}", "4", answer=None), {"accuracy": 1.0})
    assert earned["total"] == [0.0, 0.0]
    assert all(map(math.isnan, earned["accuracy"]))


def test_numbers_of_other_libraries_and_callable_objects_count(
    guests: Path, group_of: Callable[..., RolloutGroup]
) -> None:
    earned = graded(group_of("a", "b"), {f"{guests}:numpy_numbers": 1.0, f"{guests}:instance": 1.0})
    assert earned["total"] == [3.5, 3.25]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("divides", r"raised ZeroDivisionError: division by zero \(rewards.py, line \d+\)"),
        ("leaves", r"raised SystemExit: 3"),
        ("short", r"returned 1 values; expected 2"),
        ("long", r"returned 3 values; expected 2"),
        ("nan", r"returned nan for completion 1; expected a finite number or None"),
        ("infinite", r"returned inf for completion 0; expected a finite number or None"),
        ("words", r"returned '1.0' for completion 0; expected a finite number"),
        ("nothing", r"returned NoneType; expected a list of 2 numbers"),
        ("generator", r"returned generator; expected a list of 2 numbers"),
        ("mapping", r"returned dict; expected a list of 2 numbers"),
        ("demanding", r"raised TypeError: .*missing 1 required positional argument: 'difficulty'"),
        ("hidden_coroutine", r"returned coroutine; expected a list"),
        ("rude", r"returned <Rude instance at .*> for completion 0; expected a finite number"),
    ],
)
def test_a_guest_that_misbehaves_stops_the_run(
    guests: Path, group_of: Callable[..., RolloutGroup], name: str, fault: str
) -> None:
    group = group_of("the first text", "the second text")
    grader = Grader(RewardConfig(functions={f"{guests}:{name}": 1.0}, workers=1))
    with pytest.raises(RewardError, match=fault) as caught:
        grader.grade(group)
    row = int(name == "nan")
    assert f"reward function {guests}:{name} " in str(caught.value)
    assert "Sample shapes/train/7" in str(caught.value)
    assert group.texts[row] in str(caught.value)
    assert caught.value.exit_code == 3
    evidence = json.loads(json.dumps(caught.value.evidence))
    assert evidence["sample_id"] == "shapes/train/7"
    assert evidence["completions"] == ["the first text", "the second text"]
    assert evidence["function"] == f"{guests}:{name}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("acuracy:", r"'acuracy:' is unknown; expected file.py:function.*did you mean accuracy\?"),
        ("rewards.py:", "is unknown; expected file.py:function"),
        ("rewards.txt:length", "is unknown; expected file.py:function"),
        ("{folder}/reward.py:length", r"reward.py does not exist.*did you mean .*rewards.py\?"),
        ("{folder}/absent/file.py:length", r"file.py does not exist"),
        ("{folder}/rewards.py:lenght", r"has no function 'lenght'; did you mean length\?"),
        ("{folder}/rewards.py:SCALE", r"'SCALE' in the reward file .* is int; expected a function"),
        ("{folder}/rewards.py:awaited", "is asynchronous, which is not supported"),
        ("{folder}/rewards.py:awaited_instance", "is asynchronous, which is not supported"),
        ("{folder}/syntax.py:f", "does not load: SyntaxError"),
        ("{folder}/raises.py:f", "does not load: ValueError: at import"),
        ("{folder}/leaves.py:f", "does not load: SystemExit: 1"),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused_before_anything_starts(
    guests: Path, source: str, message: str
) -> None:
    (guests.parent / "syntax.py").write_text("def f(:\n")
    (guests.parent / "raises.py").write_text("raise ValueError('at import')\n")
    (guests.parent / "leaves.py").write_text("raise SystemExit(1)\n")
    path = list(sys.path)
    with pytest.raises(ConfigError, match=message) as caught:
        Grader(RewardConfig(functions={source.format(folder=guests.parent): 1.0}))
    assert caught.value.exit_code == 2
    assert sys.path == path


def test_a_relative_path_starts_at_the_working_folder(
    guests: Path, monkeypatch: pytest.MonkeyPatch, group_of: Callable[..., RolloutGroup]
) -> None:
    monkeypatch.chdir(guests.parent)
    assert graded(group_of("a", "bc"), {"rewards.py:length": 1.0})["total"] == [1.0, 2.0]


def test_the_poll_ends_grading_and_the_grader_can_be_used_again(group_of: Callable[..., RolloutGroup]) -> None:
    calls = []

    def poll() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError("stop")

    group = group_of(r"\boxed{9^{9^{9^9}}}", r"\boxed{2+2}")
    with Grader(RewardConfig(timeout_seconds=1.0, workers=1), poll=poll) as grader:
        with pytest.raises(InterruptedError, match="stop"):
            grader.grade(group)
        assert grader.grade(group).rewards.tolist() == [0.0, 1.0]


def test_the_grader_checks_golds_and_grades_texts_by_itself() -> None:
    with Grader(RewardConfig(workers=1)) as grader:
        grader.warm_up()
        assert grader.self_check(["4", "{", None]) == [True, False, False]
        assert grader.correct([r"\boxed{4}", "4", r"\boxed{4}"], ["4", "4", None]) == [1.0, 0.0, None]
