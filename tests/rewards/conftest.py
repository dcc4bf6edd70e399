"""What the tests of the reward room share: a grader with its server, and groups made of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from vgpo_lite.data_types import Prompt, RolloutGroup, Sample
from vgpo_lite.rewards.client import GradingServer
from vgpo_lite.rewards.correctness import AnswerGrader


@pytest.fixture(scope="session")
def grader() -> Iterator[AnswerGrader]:
    """An answer grader with one worker and the ordinary time."""
    grader = AnswerGrader(workers=1)
    grader.warm_up()
    yield grader
    grader.close()


@pytest.fixture(scope="session")
def hasty_server() -> Iterator[GradingServer]:
    """Two workers with little time, for answers that hang."""
    server = GradingServer(workers=2, timeout_seconds=0.3)
    server.warm_up()
    yield server
    server.close()


@pytest.fixture
def group_of() -> Callable[..., RolloutGroup]:
    """Makes a group out of texts; completion i has i + 1 tokens, numbered from 1, and -1 under the padding."""

    def make(*texts: str, answer: str | None = "4", **columns: object) -> RolloutGroup:
        sample = Sample(sample_id="shapes/train/7", question="How many?", images=(), answer=answer, columns=columns)
        prompt = Prompt(
            sample=sample,
            text="How many?",
            input_ids=torch.zeros(3, dtype=torch.int64),
            image_mask=torch.zeros(3, dtype=torch.bool),
        )
        count = len(texts)
        mask = torch.arange(count)[None] <= torch.arange(count)[:, None]
        ids = torch.where(mask, torch.arange(1, count + 1)[None], -1)
        return RolloutGroup(
            prompt=prompt,
            completion_ids=ids,
            completion_mask=mask,
            sampling_logprobs=torch.zeros(count, count),
            decode_focus=None,
            finished=torch.ones(count, dtype=torch.bool),
            texts=texts,
        )

    return make
