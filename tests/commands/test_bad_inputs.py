"""Every bad input ends in its exit code, with a message that shows the value; none in a traceback, none hangs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from tests.commands.bad_inputs import ANSWERS, CASES, Case
from tests.commands.conftest import Outcome
from vgpo_lite.commands.failures import failures_told
from vgpo_lite.config.load import load_config
from vgpo_lite.rewards import Grader
from vgpo_lite.rewards.correctness import AnswerGrader

LONGEST_MESSAGE = 2500
"""Characters: what is said of a megabyte must fit a screen."""


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(load_config().reward) as grader:
        yield grader


@pytest.fixture
def opened(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, grader: Grader
) -> Callable[[str], Outcome]:
    """Open and check a data set as every command does, up to the model; tells what the command would leave behind."""
    monkeypatch.chdir(tmp_path)

    def call(dataset: str) -> Outcome:
        from vgpo_lite.datasets import open_rows, refuse_if_too_bad
        from vgpo_lite.preparation import gradable_rows

        with pytest.raises(typer.Exit) as left, failures_told():  # noqa: PT012
            config = load_config(dataset=dataset)
            split = open_rows(config)
            _, report = gradable_rows(split.train, grader, split.report, config)
            refuse_if_too_bad(report, max_bad_rows=1.0)
        printed = capsys.readouterr()
        return Outcome(code=left.value.exit_code, out=printed.out, err=printed.err)

    return call


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_a_bad_input_ends_in_its_exit_code_and_is_told_with_its_value(
    case: Case, cli: Callable[..., Outcome], opened: Callable[[str], Outcome], tmp_path: Path
) -> None:
    words = case.words(tmp_path)
    shown = opened(words[0]) if len(words) == 1 and case.kind in ("row", "gold", "image") else cli(*words)
    assert shown.code == case.code, shown.err
    for piece in case.told:
        assert piece in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err) < LONGEST_MESSAGE
    assert not list(tmp_path.rglob("pwned"))
    assert not (tmp_path / "merged").exists()


def test_no_hostile_answer_is_right_hangs_or_leaves_anything_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hasty = AnswerGrader(workers=2, timeout_seconds=0.5)
    try:
        golds, completions = zip(*ANSWERS.values(), strict=True)
        verdicts = dict(zip(ANSWERS, hasty.correct(completions, golds), strict=True))
        again = hasty.correct([r"\boxed{2+2}"], ["4"]) if sum(map(len, completions)) else []
    finally:
        hasty.close()
    assert {name: verdict for name, verdict in verdicts.items() if verdict != 0.0} == {}
    assert len(again) == 1
    assert not list(tmp_path.iterdir())


def test_there_are_inputs_of_every_kind() -> None:
    counts = Counter(case.kind for case in CASES) | Counter(answer=len(ANSWERS))
    kinds = {"answer", "gold", "image", "row", "recipe", "adapter", "model folder", "command line"}
    assert counts.keys() == kinds
    assert min(counts.values()) >= 10
    assert sum(counts.values()) >= 100
