"""The reward room's front door: what the completions of a group earn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vgpo_lite.data_types import GroupRewards
from vgpo_lite.failpoints import failpoint
from vgpo_lite.rewards.composition import judged, load_rewards
from vgpo_lite.rewards.correctness import AnswerGrader, completion_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vgpo_lite.config.schema import RewardConfig
    from vgpo_lite.data_types import RolloutGroup
    from vgpo_lite.rewards.correctness import Completion


class Grader:
    """Grades groups of completions; a context manager that owns the grading server.

    Making one loads the user's reward files, so that their faults show before anything expensive starts.

    Args:
        reward: The configured rewards, their weights, the time an answer has and the number of workers.
        poll: Called at least every 0.1 s while answers are graded, and after each of the user's functions; whatever it
            raises ends the wait.

    Raises:
        ConfigError: A reward cannot be found, loaded or used.
    """

    def __init__(self, reward: RewardConfig, *, poll: Callable[[], None] | None = None) -> None:
        workers = None if reward.workers == "auto" else reward.workers
        self._answers = AnswerGrader(workers=workers, timeout_seconds=reward.timeout_seconds, poll=poll)
        self._rewards = load_rewards(reward.functions, self._accuracy)
        self._poll = poll

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the grading server; it starts again when it is needed."""
        self._answers.close()

    def warm_up(self) -> None:
        """Start the grading server and wait until it is ready (about a second)."""
        self._answers.warm_up()

    def grade(self, group: RolloutGroup) -> GroupRewards:
        """Return what each completion of a group earned.

        The rewards are the weighted sum over the functions that gave one; where a function abstained (None) its
        component is nan and adds nothing, and where all did the reward is 0.

        Raises:
            RewardError: A user's function raised, or returned something that is no reward.
            HardwareError: The grading server cannot be kept alive.
        """
        import torch

        failpoint("grade.before")
        components = {}
        total = torch.zeros(len(group.texts), dtype=torch.float32)
        for reward in self._rewards:
            values = judged(reward, group)
            if self._poll is not None:
                self._poll()
            component = torch.tensor(
                [float("nan") if value is None else value for value in values], dtype=torch.float32
            )
            components[reward.name] = component
            total = total + torch.nan_to_num(component, nan=0.0) * reward.weight
        return GroupRewards(rewards=total, components=components)

    def correct(self, texts: Sequence[str], golds: Sequence[object]) -> list[float | None]:
        """Grade completions against golds alone: 1.0 right, 0.0 wrong or no answer in time, None without a gold."""
        return self._answers.correct(texts, golds)

    def self_check(self, golds: Sequence[object]) -> list[bool]:
        """Say which golds grade themselves and can be graded against in the time an answer has."""
        return self._answers.self_check(golds)

    def _accuracy(
        self, completions: Sequence[Completion], solution: Sequence[object], **_: object
    ) -> list[float | None]:
        """Grade with this grader's own server, in TRL's signature."""
        return self._answers.correct([completion_text(completion) for completion in completions], solution)
