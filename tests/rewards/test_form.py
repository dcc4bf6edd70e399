"""Form: exactly the one that the reasoning prompt asks for."""

from __future__ import annotations

import pytest

from vgpo_lite.rewards import format_reward

GOOD = [
    r"<think>two and two</think>\boxed{4}",
    "<think>\ntwo and two\n</think>\n\nThe answer is $\\boxed{4}$.",
    "  <think>so</think> **\\boxed{\\frac{1}{2}}**\n",
    r"<think>so</think> \(\boxed{4}\)",
    r"<think>maybe \boxed{3}?</think> \[ \boxed{4} \].",
    r"<think>a < b</think> \boxed {x}",
]

BAD = [
    "",
    r"\boxed{4}",
    r"<think></think>\boxed{4}",
    "<think> \n </think>\\boxed{4}",
    r"Well, <think>so</think>\boxed{4}",
    r"<think>so \boxed{4}",
    r"<think>so</think> 4",
    r"<think>so \boxed{4}</think>",
    r"<think>so</think>\boxed{}",
    r"<think>so</think>\boxed{4",
    r"<think>so</think>\boxed{3} \boxed{4}",
    r"<think>so</think>\boxed{4} is the answer",
    r"<think>so</think>\boxed{4}, 5",
    r"<think>so</think><think>again</think>\boxed{4}",
    r"<think><think>so</think></think>\boxed{4}",
    r"<think>so</think></think>\boxed{4}",
    r"</think>so<think>\boxed{4}",
    r"<THINK>so</THINK>\boxed{4}",
    r"<think>so</think>\boxed{\boxed{4}}",
]


@pytest.mark.parametrize("text", GOOD)
def test_the_form_asked_for_earns_one(text: str) -> None:
    assert format_reward([text, [{"role": "assistant", "content": text}]], prompts=["?"] * 2) == [1.0, 1.0]


@pytest.mark.parametrize("text", BAD)
def test_any_other_form_earns_nothing(text: str) -> None:
    assert format_reward([text]) == [0.0]
