"""How an update is cut into parts: the fastest way within a quarter of the memory that copies of the prompt would take.

Completions in micro-batches cost no arithmetic, so memory can be had for nearly nothing; what is left of the quarter
spares layers the second run of gradient checkpointing. Nothing here changes a result.

Memory is counted in tokens times what one decoder layer keeps of a token for the backward pass. The weights' share of a
pass, in time, is counted in tokens too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

MEMORY_SHARE = 0.25
"""Of what the ordinary way takes: the project's aim."""

LAYER_INPUT = 0.03
KEYS_VALUES = 0.03
"""What a checkpointed layer keeps (its input), and what a prompt's keys, values and their gradients take, over what a
layer keeps when nothing is recomputed. Qwen2-VL-2B: 1,536 and 4 x 256 numbers of 4 x 8,960 + 10 x 1,536; the other
sizes of Qwen's three families lie between 0.02 and 0.04."""

GRADIENTS = 0.5
"""What the backward pass of the layer at hand holds besides. With it, the peaks of 52 million parameters come out at
most 14 % above those that were measured, undivided and in parts, with and without recomputation."""

WEIGHT_TOKENS = {"cpu": 16, "cuda": 160}
"""Tokens whose arithmetic takes as long as reading a layer's weights. CPU: 70 GFLOP/s and 10 GB/s measured on one core;
cards: data sheets of T4, RTX 3060 and RTX 4090 give 140 to 200 for 16-bit weights."""


UNDIVIDED_BYTES = 32 * 2**20
"""What an undivided update may always take: below it, calling the layers more often costs more than memory is worth."""


class UpdatePlan(NamedTuple):
    """How an update is cut.

    Attributes:
        rows: Completions per micro-batch.
        kept_layers: Decoder layers, the last ones, that keep the activations of completions.
        kept_prompt_layers: The same for the prompt.
    """

    rows: int
    kept_layers: int
    kept_prompt_layers: int


@dataclass(frozen=True)
class Sizes:
    """What a plan depends on.

    Attributes:
        prompt: Tokens of the prompt.
        completion: Tokens of the longest completion.
        rows: Completions.
        layers: Decoder layers.
        layer_bytes: What one layer keeps of one token.
    """

    prompt: int
    completion: int
    rows: int
    layers: int
    layer_bytes: int


def undivided(sizes: Sizes, *, recompute: bool) -> UpdatePlan:
    """The whole group in one forward: everything kept, or nothing but the last layer, which is needed at once."""
    return UpdatePlan(sizes.rows, *((1, 1) if recompute else (sizes.layers, sizes.layers)))


@lru_cache(maxsize=256)
def update_plan(sizes: Sizes, *, recompute: bool, weight_tokens: int) -> UpdatePlan:
    """The plan of least time within a quarter of the ordinary way's memory; of least memory where none fits.

    Args:
        sizes: Of the group.
        recompute: Whether gradient checkpointing is wanted: the ordinary way is taken with it, too.
        weight_tokens: What a pass over the weights costs.

    >>> sizes = Sizes(prompt=1200, completion=300, rows=8, layers=28, layer_bytes=102_400)
    >>> update_plan(sizes, recompute=False, weight_tokens=160)
    UpdatePlan(rows=4, kept_layers=28, kept_prompt_layers=28)
    >>> update_plan(sizes, recompute=True, weight_tokens=160)
    UpdatePlan(rows=4, kept_layers=2, kept_prompt_layers=1)
    >>> update_plan(sizes, recompute=True, weight_tokens=16)
    UpdatePlan(rows=1, kept_layers=15, kept_prompt_layers=1)
    """
    layers, whole = sizes.layers, undivided(sizes, recompute=recompute)
    if _memory(whole, sizes) * sizes.layer_bytes <= UNDIVIDED_BYTES:
        return whole
    limit = MEMORY_SHARE * sizes.rows * _kept(sizes.prompt + sizes.completion, 1 if recompute else layers, layers)
    plans = [
        UpdatePlan(rows, kept, kept_prompt)
        for rows in range(1, sizes.rows + 1)
        for kept in (range(1, layers + 1) if recompute else [layers])
        for kept_prompt in ((1, layers // 2, layers) if recompute else [layers])
    ]
    fitting = [plan for plan in plans if _memory(plan, sizes) <= limit]
    if not fitting:
        return min(plans, key=lambda plan: _memory(plan, sizes))
    return min(fitting, key=lambda plan: (_time(plan, sizes, weight_tokens), _memory(plan, sizes)))


def _kept(tokens: int, kept_layers: int, layers: int) -> float:
    """The most that a forward and backward over tokens holds: kept layers are done with before others run again."""
    return tokens * (kept_layers + (layers - kept_layers) * LAYER_INPUT + GRADIENTS)


def _memory(plan: UpdatePlan, sizes: Sizes) -> float:
    waiting = plan.kept_prompt_layers - 1  # of the last one, only keys and values are run
    held = sizes.prompt * (waiting + (sizes.layers - waiting) * LAYER_INPUT)
    completions = held + _kept(plan.rows * sizes.completion, plan.kept_layers, sizes.layers)
    prompt = _kept(sizes.prompt, max(waiting, 1), sizes.layers)
    return sizes.prompt * sizes.layers * KEYS_VALUES + max(completions, prompt)


def _time(plan: UpdatePlan, sizes: Sizes, weight_tokens: int) -> float:
    passes = -(-sizes.rows // plan.rows)
    completions = sizes.rows * sizes.completion + passes * weight_tokens
    prompt = sizes.prompt + weight_tokens
    return completions * (3 * sizes.layers - plan.kept_layers) + prompt * (3 * sizes.layers - plan.kept_prompt_layers)
