"""The ordinary way to sample a group, kept as the reference: as many copies of image and prompt as completions.

The model runs as transformers wrote it, with its own cache. The noise is that of `rollout`, so both ways draw the same
completions up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from vgpo_lite.engine.completions import Completions
from vgpo_lite.engine.rollout import DecodeProgress
from vgpo_lite.failpoints import failpoint
from vgpo_lite.models.modes import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vgpo_lite.data_types import Prompt, RolloutGroup, Sampling
    from vgpo_lite.models.policy import Policy


def sample_groups_from_copies(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    places: Sequence[int],
    on_step: Callable[[DecodeProgress], None] | None = None,
) -> list[RolloutGroup]:
    """Sample one group of completions per prompt, prompt after prompt; arguments as in `rollout.sample_groups`."""
    group_tokens = len(sampling.drawn_rows) * sampling.max_completion_length
    groups: list[RolloutGroup] = []
    with torch.no_grad(), evaluating(policy.model):
        for prompt, place in zip(prompts, places, strict=True):
            completions = Completions(policy, [prompt], [place], sampling)
            for alive, left in _steps(policy, prompt, sampling, completions):
                if on_step is not None:
                    limit, waiting = len(prompts) * group_tokens, (len(prompts) - len(groups) - 1) * group_tokens
                    on_step(DecodeProgress(done_tokens=limit - waiting - left, limit_tokens=limit, rows_alive=alive))
            groups += completions.groups(with_focus=False)
    return groups


def _steps(policy: Policy, prompt: Prompt, sampling: Sampling, completions: Completions) -> Iterator[tuple[int, int]]:
    """Decode to the end; after each token yields the rows that go on, and the tokens they may still need."""
    copies, limit = len(sampling.drawn_rows), sampling.max_completion_length
    inputs = policy.family.prompt_inputs(policy.model, prompt, None)
    cache = DynamicCache(config=policy.family.language_model(policy.model).config)
    rows = torch.arange(copies, device=policy.device)
    alive = torch.ones_like(rows, dtype=torch.bool)
    logits = policy.model(
        input_ids=prompt.input_ids.to(policy.device).expand(copies, -1),
        position_ids=inputs.row_positions(0, rows=copies),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **{name: value.to(policy.device) for name, value in policy.family.whole_inputs(prompt, rows=copies).items()},
    ).logits[:, -1]
    for token in range(limit):
        ids, alive = completions.draw(token, logits, rows, alive)
        rows_alive = int(alive.sum())
        failpoint("decode.step")
        yield rows_alive, rows_alive * (limit - token - 1)
        if token + 1 == limit or rows_alive == 0:
            return
        logits = policy.model(
            input_ids=ids[:, None],
            position_ids=policy.family.text_positions(rows.new_full((copies, 1), inputs.next_position + token)),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
