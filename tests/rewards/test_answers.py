"""Answers: what the last box holds, and which answer is right for which gold."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgpo_lite.rewards.answers import (
    MAX_ANSWER_CHARACTERS,
    boxed_answer,
    exact_number,
    exact_point,
    gold_answer,
    normalised,
    quick_verdict,
)
from vgpo_lite.rewards.client import GradingServer
from vgpo_lite.rewards.correctness import AnswerGrader
from vgpo_lite.rewards.form import has_asked_form

RIGHT = [
    ("4", "4"),
    ("4", " 4 "),
    ("4", "4.0"),
    ("4", "4."),
    ("4", "04"),
    ("4", "+4"),
    ("4", "$4$"),
    ("4", r"\(4\)"),
    ("4", r"\$4"),
    ("4", "{4}"),
    ("4", "(4)"),
    ("4", r"\text{4}"),
    ("4", r"\textbf{4}"),
    ("4", r"\mathbf{4}"),
    ("4", r"\displaystyle 4"),
    ("4", "2+2"),
    ("4", "2^2"),
    ("4", r"\frac{8}{2}"),
    ("4", "8/2"),
    ("4", "|-4|"),
    ("4", "x=4"),
    ("4", "x = 4"),
    ("4", "AB = 4"),
    ("4", r"x \approx 4"),
    ("4", "2+2=4"),
    ("4", r"\text{Area} = 4"),
    ("4", r"4\text{ cm}"),
    ("4", "4 cm"),
    ("4", r"4\text{ units}"),
    ("40", r"40^\circ"),
    ("40", "40°"),
    ("40", r"m\angle 1 = 40^{\circ}"),
    (r"40^\circ", "40"),
    ("-4", "−4"),
    ("1234", "1,234"),
    ("1,234", "1234"),
    ("1234567", "1,234,567"),
    ("1234", r"1\,234"),
    ("1234", "1{,}234"),
    ("1234", "1 234"),
    ("1,234.5", "1234.50"),
    (".5", "0.5"),
    ("1/2", "0.5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    (r"\frac{1}{2}", r"\tfrac 1 2"),
    ("1/3", "0.333333"),
    (r"1\frac{1}{2}", "1.5"),
    ("3/2", "1 1/2"),
    (r"-1\frac{1}{2}", "-1.5"),
    (r"2 \sqrt { 221 }", r"2\sqrt{221}"),
    (r"$2 \sqrt { 221 }$", r"2\sqrt{221}"),
    (r"2 \sqrt { 221 }", r"\sqrt{884}"),
    (r"2\sqrt{221}", "29.732137494637"),
    (r"10^{-3}", "0.001"),
    (r"\frac{\pi}{2}", r"0.5\pi"),
    ("B", "B"),
    ("B", "(B)"),
    ("B", "B."),
    ("B", r"\text{B}"),
    ("yes", "Yes"),
    ("blue", r"\text{Blue}"),
    ("the red cube", "The red cube"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    ("(1,0.5)", r"(1, \frac{1}{2})"),
    ("[0,1]", "[0, 1.0]"),
    ("1,2", "2, 1"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("x^2+1", "1+x^2"),
    ("(x+1)^2", "x^2+2x+1"),
    ("x=4", "4"),
    ("x>3", "3<x"),
    ("50%", r"50\%"),
    (r"\boxed{4}", "4"),
]

WRONG = [
    ("4", "5"),
    ("4", "-4"),
    ("4", "4.1"),
    ("4", "3=4"),
    ("4", r"3 \approx 4"),
    ("4", "x=3=4"),
    ("4", "3+2=4"),
    ("4", "2x=4"),
    ("4", "x+1=4"),
    ("4", "4,4"),
    ("4", "1,4"),
    ("4", "4, 5"),
    ("4", "4;5"),
    ("4", "4 5"),
    ("4", r"4 \text{ or } 5"),
    ("4", r"4 \text{ or } 4"),
    ("4", r"\pm 4"),
    ("4", "(4,4)"),
    ("4", "[4,4]"),
    ("4", "[4,4)"),
    ("4", "[4]"),
    ("4", r"\{4\}"),
    ("4", r"\left\{4\right\}"),
    ("4", r"x \in \{4\}"),
    ("4", r"\begin{pmatrix}4\end{pmatrix}"),
    ("4", "4%"),
    ("4", r"4\%"),
    ("4", "4 percent"),
    ("4", r"4\text{ percent}"),
    ("0.5", r"50\%"),
    (r"\frac{1}{2}", r"50\%"),
    (r"2\sqrt{221}", "29.73"),
    (r"2\sqrt{221}", r"2\sqrt{221}, 2\sqrt{221}"),
    (r"2\sqrt{221}", r"[2\sqrt{221}, 2\sqrt{221}]"),
    (r"2\sqrt{221}", "2"),
    (r"2\sqrt{221}", "221"),
    ("4", "x<4"),
    ("4", "x"),
    ("4", "4x"),
    ("4", "4!"),
    ("4", "four or five"),
    ("4", r"4\\5"),
    ("4", ""),
    ("4", "   "),
    ("4", "$$"),
    ("1234", "1, 234"),
    ("1,234", "1, 234"),
    ("1234", "(1,234)"),
    ("12", "1 2"),
    ("1.5", "1,5"),
    ("9", "4 5"),
    ("1/3", "0.33"),
    ("3.14", "3.141"),
    ("B", "A"),
    ("B", "AB"),
    ("yes", "no"),
    ("the red cube", "the red sphere"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "(1,2,3)"),
    ("[0,1]", "[0,2]"),
    ("[0,1)", "(0,1]"),
    ("[0,1]", "(0,1)"),
    ("no", "yes"),
    (r"\{1,2\}", r"\{1,3\}"),
    ("x^2+1", "x^2-1"),
    ("x>3", "x<3"),
    ("1/0", "0"),
    ("4", "\x00"),
    ("4", "\ud800"),
    ("4", "٤"),
]


@pytest.fixture(scope="module")
def graded(grader: AnswerGrader) -> dict[tuple[str, str], float | None]:
    """What every pair of the two tables earns, asked for at once."""
    pairs = RIGHT + WRONG
    rewards = grader.correct([rf"So it is \boxed{{{answer}}}." for _, answer in pairs], [gold for gold, _ in pairs])
    return dict(zip(pairs, rewards, strict=True))


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_a_right_answer_earns_one(graded: dict[tuple[str, str], float | None], gold: str, answer: str) -> None:
    assert graded[gold, answer] == 1.0


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_a_wrong_answer_earns_nothing(graded: dict[tuple[str, str], float | None], gold: str, answer: str) -> None:
    assert graded[gold, answer] == 0.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{4}", "4"),
        (r"first \boxed{3}, then \boxed{4}.", "4"),
        (r"\boxed { 4 }", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{a\\}", "a\\\\"),
        (r"\boxed{\boxed{4}}", "4"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"I write \boxed when done: \boxed{4}; that was \boxed", "4"),
        (r"<think>\boxed{4}</think>", "4"),
        ("4", None),
        ("", None),
        (r"\boxed", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{4", None),
        (r"\boxed{4} but then \boxed{5", None),
        (r"\boxed{4} or \boxed{}", None),
        (r"\fbox{4}", None),
        ("boxed{4}", None),
    ],
)
def test_the_last_box_is_the_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("4", "4"),
        (4, "4"),
        (0.5, "0.5"),
        ("$4$", "4"),
        ("$$x$$", "x"),
        (r"Thus \boxed{4}.", "4"),
        (None, None),
        ("", None),
        (" \n", None),
        ("$$", None),
        (True, None),
        (["4"], None),
        ({"answer": 4}, None),
        (b"4", None),
    ],
)
def test_a_gold_is_text_or_a_number(solution: object, gold: str | None) -> None:
    assert gold_answer(solution) == gold


def test_only_numbers_are_read_as_numbers() -> None:
    numbers = {
        "4": Fraction(4),
        "-1,234.5": Fraction(-2469, 2),
        "12,345,678": Fraction(12345678),
        r"-2\frac{1}{3}": Fraction(-7, 3),
        "7/14": Fraction(1, 2),
        r"30^\circ": Fraction(30),
    }
    assert {text: number.value for text in numbers if (number := exact_number(text))} == numbers
    others = ["1,23", "0,123", "1,2345", "(4)", "4%", "4x", "1/0", "1e3", "--4", "", ".", "4 5", "²", "٤", "9" * 201]
    assert [text for text in others if exact_number(text)] == []


def test_a_point_is_no_number_and_a_number_no_point() -> None:
    assert exact_number("(1,234)") is None
    point = exact_point("(1,234)")
    assert point is not None
    assert [number.value for number in point] == [1, 234]
    assert [text for text in ("1,234", "(1)", "(1,x)", r"\{1,2\}", "(1,)", "(,)") if exact_point(text)] == []


def test_an_overlong_answer_is_compared_as_a_string_alone() -> None:
    long = "1+" * MAX_ANSWER_CHARACTERS + "1"
    assert quick_verdict(long, long) is True
    assert quick_verdict(long, long + " + 0") is False
    assert quick_verdict("4", long) is False


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 150_000,
        r"\boxed " * 150_000,
        r"\boxed" + " " * 1_000_000,
        r"\boxed{" + "{" * 1_000_000 + "}" * 1_000_000,
        r"\boxed{" + "\\" * 1_000_000 + "}",
        r"\boxed{" + "9" * 1_000_000 + "}",
        "<think>" * 150_000,
        "\x00" * 1_000_000,
        "\ud800" * 1_000_000,
    ],
    ids=lambda text: f"{text[:8]!r}",
)
def test_a_megabyte_takes_no_time(text: str) -> None:
    started = time.process_time()
    quick_verdict("4", boxed_answer(text))
    has_asked_form(text)
    assert time.process_time() - started < 2.0


SIGNS = [*r"0123456789+-*/^_=<>()[]{},.;:%$&!|~ '", "\\", "\n", "\x00", "\ud800", "−", "°", "π", "x", "B", "and"]
COMMANDS = [
    r"\boxed{",
    r"\frac",
    r"\sqrt",
    r"\left",
    r"\right",
    r"\{",
    r"\}",
    r"\text{",
    r"\,",
    r"\\",
    r"^\circ",
    r"\pi",
]
LATEX = st.lists(st.sampled_from(SIGNS + COMMANDS), max_size=40).map("".join)
ANY_TEXT = LATEX | st.text(st.characters(), max_size=60)


@settings(max_examples=400, deadline=1000)
@given(gold=ANY_TEXT, text=ANY_TEXT)
def test_no_text_breaks_what_is_decided_without_algebra(gold: str, text: str) -> None:
    answer = boxed_answer(rf"\boxed{{{text}}}")
    assert quick_verdict(gold, answer) in (True, False, None)
    assert quick_verdict(gold, gold) is bool(gold.strip())
    assert gold_answer(gold) != ""
    assert has_asked_form(text) in (True, False)


@settings(max_examples=400, deadline=1000)
@given(text=ANY_TEXT)
def test_normalising_twice_changes_nothing_in_a_number(text: str) -> None:
    number = exact_number(normalised(text))
    if number is not None:
        assert exact_number(normalised(normalised(text))) == number


@settings(max_examples=200, deadline=1000)
@given(value=st.integers(-(10**15), 10**15))
def test_every_integer_is_read_with_and_without_separators(value: int) -> None:
    assert quick_verdict(str(value), f"{value:,}") is True
    assert quick_verdict(f"{value:,}", f"${value}$") is True
    assert quick_verdict(str(value), str(value + 1)) is False


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(LATEX, LATEX), min_size=1, max_size=4))
def test_no_text_breaks_or_hangs_the_grader(grader: AnswerGrader, pairs: list[tuple[str, str]]) -> None:
    started = time.monotonic()
    rewards = grader.correct([rf"\boxed{{{answer}}}" for _, answer in pairs], [gold for gold, _ in pairs])
    assert time.monotonic() - started < 2.5 * len(pairs) + 1
    expected = [gold_answer(gold) is None for gold, _ in pairs]
    assert [reward is None for reward in rewards] == expected
    assert {reward for reward in rewards if reward is not None} <= {0.0, 1.0}


TOWERS = [
    *("10**", "^{10", "^{9^{9", "!", r"\sum_{i=1}^{10^9}", r"\int_0^\infty", r"\binom{10^9}{", r"\frac{1}{", "(" * 60),
    *(r"\sqrt{" * 20, "}" * 25, ")", "9" * 60, "x", "+", "=", ",", r"\prod_{k=1}^{", r"\begin{pmatrix}", "&", r"\\"),
]
HOSTILE = st.lists(st.sampled_from(TOWERS), min_size=1, max_size=9).map("".join)


@settings(max_examples=10, deadline=None)
@given(pairs=st.lists(st.tuples(st.sampled_from(["4", r"2\sqrt{3}", "(1, 2)"]), HOSTILE), min_size=1, max_size=6))
def test_no_tower_of_mathematics_breaks_or_hangs_the_grader(
    hasty_server: GradingServer, pairs: list[tuple[str, str]]
) -> None:
    assert set(hasty_server.verdicts(pairs)) <= {"right", "wrong", "late", "dead"}
