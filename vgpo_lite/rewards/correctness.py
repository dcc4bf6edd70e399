r"""Whether an answer is right: the last `\boxed{}` of a completion against the row's gold, in both prompt styles.

A direct answer (the prompt style without reasoning) is boxed as well, so it is graded the same.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vgpo_lite.errors import RewardError
from vgpo_lite.rewards.answers import (
    MAX_ANSWER_CHARACTERS,
    boxed_answer,
    exact_number,
    gold_answer,
    normalised,
    quick_verdict,
)
from vgpo_lite.rewards.client import ANSWER_SECONDS, GradingServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgpo_lite.rewards.client import Verdict

Completion = str | Sequence[Mapping[str, object]]


class AnswerGrader:
    """Grades answers: by string and number in this process, by algebra in the grading server.

    Args:
        workers: Grading processes; None: one per core, at most 8.
        timeout_seconds: Time one answer may take; then it is wrong.
        poll: Called at least every 0.1 s while waiting; what it raises ends the wait.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        timeout_seconds: float = ANSWER_SECONDS,
        poll: Callable[[], None] | None = None,
    ) -> None:
        self._server = GradingServer(workers=workers, timeout_seconds=timeout_seconds)
        self._poll = poll

    def warm_up(self) -> None:
        """Start the grading server and wait until it is ready."""
        self._server.warm_up(self._poll)

    def close(self) -> None:
        """End the grading server."""
        self._server.close()

    def correct(self, texts: Sequence[str], golds: Sequence[object]) -> list[float | None]:
        r"""Grade completions: 1.0 right, 0.0 wrong, without a box or out of time, None without a gold, in their order.

        Args:
            texts: Completions, each with its answer in its last `\boxed{}`.
            golds: The gold of each, as the row holds it; None or blank: there is none.

        Raises:
            ValueError: There are more of the one than of the other.
            HardwareError: The grading server cannot be kept alive.
        """
        rewards: list[float | None] = []
        open_rows: dict[tuple[str, str], list[int]] = {}
        for row, (text, solution) in enumerate(zip(texts, golds, strict=True)):
            gold, answer = gold_answer(solution), boxed_answer(text)
            quick = None if gold is None else quick_verdict(gold, answer)
            rewards.append(None if quick is None else float(quick))
            if gold is not None and answer is not None and quick is None:
                open_rows.setdefault((gold, answer), []).append(row)
        for rows, verdict in zip(open_rows.values(), self._decide(list(open_rows)), strict=True):
            for row in rows:
                rewards[row] = float(verdict == "right")
        return rewards

    def self_check(self, golds: Sequence[object]) -> list[bool]:
        r"""Say which golds grade themselves: boxed as an answer, the gold earns 1.

        A gold fails that is missing or blank, that cannot stand in a box (unbalanced braces), or on which math-verify
        hangs or crashes, so that every answer to it would cost its whole time.
        """
        texts = [gold_answer(solution) for solution in golds]
        passed = [reward == 1.0 for reward in self.correct([f"\\boxed{{{text}}}" for text in texts], golds)]
        algebraic = [text for text, fine in zip(texts, passed, strict=True) if fine and text and _needs_algebra(text)]
        unique = list(dict.fromkeys(algebraic))
        verdicts = dict(zip(unique, self._decide([(text, text) for text in unique]), strict=True))
        return [
            fine and verdicts.get(text or "") not in ("late", "dead") for text, fine in zip(texts, passed, strict=True)
        ]

    def _decide(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Ask the server, or nobody where nothing is asked."""
        return self._server.verdicts(pairs, poll=self._poll) if pairs else []


_shared = AnswerGrader()
"""The grader behind `accuracy`; its server starts when it is first needed and ends with the process."""
atexit.register(_shared.close)


def accuracy(completions: Sequence[Completion], solution: Sequence[object], **columns: object) -> list[float | None]:
    r"""Reward right answers, with TRL's signature: 1.0 right, 0.0 wrong, None where the row has no gold.

    The last `\boxed{}` of a completion is its answer. The first call that needs algebra starts a grading server (about
    a second), which all callers share and which ends with this process. No answer takes longer than 2 s.

    Args:
        completions: Text, or conversations whose last message is the completion.
        solution: The gold of each completion: text (also in dollar signs, or a solution with its box) or number.
        columns: The other columns of the batch, which do not matter here.

    Raises:
        RewardError: A completion is neither text nor a conversation.
        ValueError: There are more completions than golds, or the other way round.

    >>> accuracy([r"Thus \boxed{1,234}", "1234"], solution=["1234", "1234"])
    [1.0, 0.0]
    """
    return _shared.correct([completion_text(completion) for completion in completions], solution)


def completion_text(completion: Completion) -> str:
    """Return the text of a completion, which may be a conversation (TRL's form): the content of its last message.

    Raises:
        RewardError: It is neither.

    >>> completion_text([{"role": "assistant", "content": "4"}])
    '4'
    """
    if isinstance(completion, str):
        return completion
    message = completion[-1] if isinstance(completion, Sequence) and completion else None
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str):
        raise RewardError(
            f"a completion is {completion!r:.200}; expected text, or a conversation such as "
            '[{"role": "assistant", "content": "..."}]'
        )
    return content


def _needs_algebra(gold: str) -> bool:
    """Say whether wrong answers to a gold go to math-verify: all but numbers, words and the overlong."""
    if len(gold) > MAX_ANSWER_CHARACTERS:
        return False
    text = normalised(gold)
    return exact_number(text) is None and not text.replace(" ", "").isalpha()
