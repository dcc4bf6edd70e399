r"""Whether a completion has the form that the reasoning prompt asks for, whatever its answer is worth."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vgpo_lite.rewards.answers import closing_brace
from vgpo_lite.rewards.correctness import completion_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vgpo_lite.rewards.correctness import Completion

_TAG = re.compile(r"</?think>")
_BOX = re.compile(r"\\boxed\s*\{")
_CLOSING_MARKS = re.compile(r"(?:[\s.*$]|\\\)|\\\])*")


def format_reward(completions: Sequence[Completion], **columns: object) -> list[float]:
    r"""Reward form, with TRL's signature: 1.0 where a completion has exactly the form asked for, else 0.0.

    The form is `<think>` reasoning `</think>` answer, outer whitespace aside: one opening tag at the very start, one
    closing tag, reasoning that is not blank, and an answer part with exactly one `\boxed{}`, which is closed and not
    blank. After the box nothing follows but whitespace, full stops, asterisks, dollar signs, `\)` and `\]`.

    Args:
        completions: Text, or conversations whose last message is the completion.
        columns: The other columns of the batch, which do not matter here.

    Raises:
        RewardError: A completion is neither text nor a conversation.

    >>> format_reward([r"<think>2 and 2</think> So $\boxed{4}$.", r"<think>2 + 2</think> \boxed{4} or 5", r"\boxed{4}"])
    [1.0, 0.0, 0.0]
    """
    return [float(has_asked_form(completion_text(completion))) for completion in completions]


def has_asked_form(text: str) -> bool:
    """Say whether a text has exactly the form that `format_reward` describes; takes time linear in the text."""
    text = text.strip()
    tags = list(_TAG.finditer(text))
    if [tag[0] for tag in tags] != ["<think>", "</think>"] or tags[0].start() != 0:
        return False
    answer = text[tags[1].end() :]
    boxes = list(_BOX.finditer(answer))
    if not text[tags[0].end() : tags[1].start()].strip() or len(boxes) != 1:
        return False
    end = closing_brace(answer, boxes[0].end() - 1)
    if end is None or not answer[boxes[0].end() : end].strip():
        return False
    return bool(_CLOSING_MARKS.fullmatch(answer, end + 1))
