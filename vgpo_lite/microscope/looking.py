"""Completions with everything the method reads of them: focus, gate, weights, and the attention behind them."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from vgpo_lite.algorithm.advantages import group_advantages
from vgpo_lite.algorithm.ranks import rank_correlation
from vgpo_lite.algorithm.weigh import visual_weights, weigh
from vgpo_lite.engine.hiding import image_reliance, late_layers
from vgpo_lite.engine.maps import group_attention_maps
from vgpo_lite.prompts import image_grids
from vgpo_lite.terms import weighting_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import GroupRewards, Prompt, RolloutGroup
    from vgpo_lite.engine import Engine
    from vgpo_lite.models import Policy
    from vgpo_lite.prompts import Grid


@dataclass(frozen=True, kw_only=True)
class SeenImage:
    """An image and the grid that attention on it is drawn on.

    Attributes:
        image: As the data set has it.
        rows: Rows of cells: of image tokens, or of those of all tiles where the image is cut into tiles.
        columns: Columns of them.
    """

    image: Image.Image
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class SeenCompletion:
    """One completion, token by token.

    Attributes:
        tokens: Each token's own text.
        focus: Focus rho, in [0, 1].
        gate: 1 where compensation strengthened the focus, else 0.
        psi: Token weight, in [-1, 1].
        phi: The completion's trajectory weight, in [-1, 1].
        advantage: What each token trains with; without rewards (1 + psi)(1 + phi), the factor alone.
        on_image: Attention on image tokens; what is left of 1 besides the next two is none.
        on_question: Attention on the other tokens of the prompt.
        on_itself: Attention on tokens generated before.
        maps: Attention on each cell of the images' grids, [token, cell].
        reward: What it earned, all reward functions together; None where nobody graded.
        is_right: Whether the answer is right: by `accuracy`, or by a reward of 1 where that does not count; None where
            nobody graded.
        reliance: How much each token hangs on the image, in nats, by the names of `engine.hiding.Reliance`; empty where
            nobody asked.
    """

    tokens: tuple[str, ...]
    focus: Float[Tensor, " token"]
    gate: Float[Tensor, " token"]
    psi: Float[Tensor, " token"]
    phi: float
    advantage: Float[Tensor, " token"]
    on_image: Float[Tensor, " token"]
    on_question: Float[Tensor, " token"]
    on_itself: Float[Tensor, " token"]
    maps: np.ndarray
    reward: float | None
    is_right: bool | None
    reliance: Mapping[str, Float[Tensor, " token"]] = field(default_factory=dict)

    @property
    def agreement(self) -> dict[str, float | None]:
        """Rank correlation of focus with each of `reliance` over the tokens; None where one of the two is constant."""
        found = {name: float(rank_correlation(self.focus, values)) for name, values in self.reliance.items()}
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    @property
    def late_over_early(self) -> float | None:
        """Mean focus of the second half over that of the first; None for fewer than two tokens or no focus."""
        half = (len(self.focus) + 1) // 2
        early, late = self.focus[:half], self.focus[half:]
        return float(late.mean() / early.mean()) if len(late) and float(early.mean()) > 0 else None


@dataclass(frozen=True, kw_only=True)
class SeenPrompt:
    """One prompt and the completions of each policy.

    Attributes:
        sample_id: The row's name.
        question: Its question, with `<image>` marks.
        answer: Its gold, or None.
        images: Its images.
        groups: Completions by policy, such as `before` and `after`.
    """

    sample_id: str
    question: str
    answer: str | None
    images: tuple[SeenImage, ...]
    groups: Mapping[str, tuple[SeenCompletion, ...]]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything a page shows.

    Attributes:
        title: What was inspected, in words.
        facts: Settings worth reading, by name.
        prompts: In order.
        focus_layer: The layer whose attention the heat maps show, in words.
        hidden_from: Which layers the image was hidden from, in words; None where the completions have no `reliance`.
    """

    title: str
    facts: Mapping[str, str]
    prompts: tuple[SeenPrompt, ...]
    focus_layer: str
    hidden_from: str | None = None


def focus_layer(policy: Policy) -> str:
    """The layer that attention is read in, in words and from 1, such as `layer 30 of 34`."""
    return f"layer {policy.family.capture_layer(policy.model) + 1} of {len(policy.family.layers(policy.model))}"


def hidden_from(policy: Policy) -> str:
    """Which layers `inspect_prompts` hides the image from, in words, such as `the last 7 of 28 layers`."""
    late = late_layers(policy)
    return f"the last {f'{late} ' if late > 1 else ''}of {len(policy.family.layers(policy.model))} layers"


def inspect_prompts(
    policy: Policy,
    engine: Engine,
    prompts: Sequence[Prompt],
    config: RunConfig,
    *,
    grade: Callable[[RolloutGroup], GroupRewards] | None,
    compare: bool,
    causal: bool = False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[SeenPrompt, ...]:
    """Sample a group for each prompt and look at it closely.

    Args:
        policy: The model.
        engine: It at work.
        prompts: What to ask; each shows an image.
        config: Sampling and weighting.
        grade: Rewards of a group; None: nobody grades.
        compare: Whether the model without its adapter answers too, as `before`, and the one with it is `after`.
        causal: Whether completions are scored again without their image, for `reliance`.
        told: Called with prompts done and prompts in all.
    """
    seen = []
    for place, prompt in enumerate(prompts):
        told(place, len(prompts))
        groups: dict[str, tuple[SeenCompletion, ...]] = {}
        for name in ("before", "after") if compare else ("answers",):
            with policy.reference() if name == "before" else contextlib.nullcontext():
                [group] = engine.sample([prompt], config.sampling, places=[place], on_step=None)
                rewards = None if grade is None else grade(group)
                groups[name] = _completions(policy, engine, group, config, rewards=rewards, causal=causal)
        engine.forget()
        seen.append(
            SeenPrompt(
                sample_id=prompt.sample.sample_id,
                question=prompt.sample.question,
                answer=prompt.sample.answer,
                images=tuple(
                    SeenImage(image=image, rows=grid.rows, columns=grid.columns)
                    for image, grid in zip(prompt.sample.images, _grids(prompt, policy, config), strict=True)
                ),
                groups=groups,
            )
        )
    told(len(prompts), len(prompts))
    return tuple(seen)


def _completions(
    policy: Policy,
    engine: Engine,
    group: RolloutGroup,
    config: RunConfig,
    *,
    rewards: GroupRewards | None,
    causal: bool,
) -> tuple[SeenCompletion, ...]:
    mask = group.completion_mask
    focus = engine.look(group, keep_graph=False, reference=False).signals.focus
    if focus is None:
        focus = torch.zeros(mask.shape)
    weighting = weighting_of(config)
    weights = visual_weights(focus, mask, weighting)
    advantages, right = torch.ones(len(mask)), None
    if rewards is not None:
        right = rewards.components.get("accuracy", rewards.rewards) >= 1
        advantages = group_advantages(rewards.rewards, scale=config.scale_rewards)
    shown = {
        "focus": focus,
        "gate": (weights.compensated > focus).float(),
        "psi": weights.psi,
        "advantage": weigh(advantages, focus, mask, weighting=weighting),
    }
    reliance = vars(image_reliance(policy, group, temperature=engine.settings.temperature)) if causal else {}
    on_image, grids = group.prompt.image_mask, _grids(group.prompt, policy, config)
    completions = []
    for row, (maps, kept) in enumerate(zip(group_attention_maps(policy, group), mask, strict=True)):
        image = maps.on_prompt[:, on_image]
        completions.append(
            SeenCompletion(
                tokens=token_texts(policy, group.completion_ids[row][kept].tolist()),
                **{name: values[row][kept] for name, values in shown.items()},
                phi=float(weights.phi[row]),
                on_image=image.sum(dim=-1),
                on_question=maps.on_prompt[:, ~on_image].sum(dim=-1),
                on_itself=maps.on_itself,
                maps=on_cells(image.numpy(), grids),
                reward=None if rewards is None else float(rewards.rewards[row]),
                is_right=None if right is None else bool(right[row]),
                reliance={name: values[row][kept] for name, values in reliance.items()},
            )
        )
    return tuple(completions)


def token_texts(policy: Policy, ids: Sequence[int]) -> tuple[str, ...]:
    """What each token adds to the text; tokens that hold a part of a character leave it to the one that ends it."""
    decode = policy.processor.tokenizer.decode
    texts, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text.rstrip("\ufffd") if end < len(ids) else text
        texts.append(whole[len(shown) :])
        shown = whole
    return tuple(texts)


def on_cells(maps: np.ndarray, grids: Sequence[Grid]) -> np.ndarray:
    """Attention on image tokens as attention on the cells of their images' grids.

    A token that shows several cells gives each its share; what several tokens show adds up. What is on tokens that show
    no cell is left out: the brightest cell is one of the image.

    Args:
        maps: [token, image token].
        grids: Of the images, in order.
    """
    cells, start = [], 0
    for grid in grids:
        drawn = np.zeros((len(maps), grid.rows, grid.columns), dtype=maps.dtype)
        for place, (top, bottom, left, right) in enumerate(grid.areas, start):
            if top == bottom:
                continue
            share = maps[:, place] / ((bottom - top) * (right - left))
            drawn[:, top:bottom, left:right] += share[:, None, None]
        start += len(grid.areas)
        cells.append(drawn.reshape(len(maps), -1))
    return np.concatenate(cells, axis=1) if cells else maps


def _grids(prompt: Prompt, policy: Policy, config: RunConfig) -> list[Grid]:
    sizes = [(image.height, image.width) for image in prompt.sample.images]
    return image_grids(sizes, policy.processor, config.data)
