"""Accuracy: which completions earn, in TRL's signature, and which golds can be graded against."""

from __future__ import annotations

import inspect
import threading

import pytest

from vgpo_lite.errors import RewardError
from vgpo_lite.rewards import accuracy
from vgpo_lite.rewards.client import GradingServer
from vgpo_lite.rewards.correctness import AnswerGrader, completion_text


def test_accuracy_takes_text_and_conversations_and_ignores_other_columns() -> None:
    completions = [
        r"\boxed{4}",
        [{"role": "assistant", "content": r"\boxed{2+2}"}],
        [{"role": "user", "content": r"\boxed{4}"}, {"role": "assistant", "content": r"\boxed{5}"}],
        "4",
    ]
    rewards = accuracy(completions, solution=["4"] * 4, prompts=["?"] * 4, completion_ids=[[1]] * 4, trainer_state=None)
    assert rewards == [1.0, 1.0, 0.0, 0.0]


def test_accuracy_abstains_only_where_there_is_no_gold() -> None:
    solutions = [None, "", "  ", "$$", "4", r"9^{9^{"]
    assert accuracy([r"\boxed{4}"] * 6, solution=solutions) == [None, None, None, None, 1.0, 0.0]


def test_accuracy_has_the_signature_trl_calls() -> None:
    parameters = inspect.signature(accuracy).parameters
    assert list(parameters)[:2] == ["completions", "solution"]
    assert parameters["columns"].kind is inspect.Parameter.VAR_KEYWORD
    assert accuracy.__name__ == "accuracy"
    assert not inspect.iscoroutinefunction(accuracy)


def test_accuracy_works_from_any_thread() -> None:
    results: dict[int, list[float | None]] = {}

    def grade(number: int) -> None:
        results[number] = accuracy([rf"\boxed{{{number}+1}}"] * 3, solution=[str(number), str(number + 1), None])

    threads = [threading.Thread(target=grade, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [0.0, 1.0, None] for number in range(4)}


NO_TEXTS = [4, None, [], ["4"], [{"role": "assistant"}], [{"content": 4}], {"content": "4"}]


def test_completions_and_golds_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        accuracy([r"\boxed{4}"], solution=["4", "4"])


@pytest.mark.parametrize("completion", NO_TEXTS)
def test_a_completion_that_is_no_text_is_refused(completion: object) -> None:
    with pytest.raises(RewardError, match="expected text, or a conversation"):
        completion_text(completion)  # pyright: ignore[reportArgumentType]


def test_equal_pairs_are_asked_once_and_decided_pairs_never(
    monkeypatch: pytest.MonkeyPatch, grader: AnswerGrader
) -> None:
    asked = []
    original = GradingServer.verdicts

    def listen(server: GradingServer, pairs: list[tuple[str, str]], **options: object) -> object:
        asked.extend(pairs)
        return original(server, pairs, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(GradingServer, "verdicts", listen)
    texts = [r"\boxed{2+2}", r"\boxed{4}", r"\boxed{5}", r"\boxed{2+2}", r"\boxed{x}", "nothing"]
    assert grader.correct(texts, ["4"] * 6) == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    assert asked == [("4", "2+2"), ("4", "x")]


def test_golds_that_do_not_grade_themselves_are_named(grader: AnswerGrader) -> None:
    fine = ["4", 4, "1,234", r"2 \sqrt { 221 }", r"$\frac{1}{2}$", "B", "the red cube", "(1, 2)", r"50\%", "x^2 + 1"]
    fine += [r"Thus \boxed{3}.", r"\{1,2\}", "12 cm", r"\text{east}", "5 apples", "1" * 3000]
    bad = [None, "", "  ", "$$", "a}", r"\frac{1}{2", r"\boxed{}", "9^{9^{9^9}}", ["4"], True, "{"]
    assert grader.self_check(fine) == [True] * len(fine)
    assert dict(zip(map(str, bad), grader.self_check(bad), strict=True)) == dict.fromkeys(map(str, bad), False)
