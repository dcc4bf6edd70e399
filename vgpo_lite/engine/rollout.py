"""Sampling groups of completions: every image and every prompt is seen once, and its completions share it.

A prompt runs through the model alone and leaves its keys and values behind. Then the completions of several prompts
decode together, one token of each per forward, until all have ended or are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vgpo_lite.algorithm.focus import next_token_attention_focus, similarity_focus
from vgpo_lite.engine.capture import AttentionCapture
from vgpo_lite.engine.completions import Completions
from vgpo_lite.engine.decode import GroupCache
from vgpo_lite.engine.decoder import Decoder
from vgpo_lite.engine.fixed import FixedCache, FixedStep, captured_graph
from vgpo_lite.failpoints import failpoint
from vgpo_lite.models.attention import NO_MASK, use_shared_attention
from vgpo_lite.models.modes import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from vgpo_lite.data_types import Prompt, RolloutGroup, Sampling
    from vgpo_lite.models.families import VisionFeatures
    from vgpo_lite.models.policy import Policy

RETIRE_AT = 0.75
"""Rows that have ended leave the batch once it can shrink to this share. The copies of keys and values this takes form
a geometric series: all together at most 1 / (1 - 0.75) - 1 = 3 times what is held."""


@dataclass(frozen=True, kw_only=True)
class DecodeProgress:
    """Where decoding stands, between two steps.

    Attributes:
        done_tokens: Tokens sampled, and those that completions which ended early no longer need.
        limit_tokens: What `done_tokens` ends at: every completion at its greatest length.
        rows_alive: Completions that are being decoded.
    """

    done_tokens: int
    limit_tokens: int
    rows_alive: int


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """What decoding costs and what it looks at; none of it changes a completion.

    Attributes:
        prompts_per_decode: Groups decoded together, >= 1; None: all.
        focus_signal: Which focus to read while decoding; None: none. The similarity of a completion's last token needs
            its state, so that token is fed once more.
        features: The vision tower's features of a prompt, for who keeps them; None: the tower runs here.
        fixed: Whether steps keep their shapes and addresses, and are captured as graphs where there is a GPU.
    """

    prompts_per_decode: int | None = None
    focus_signal: Literal["attention", "similarity"] | None = None
    features: Callable[[Prompt], VisionFeatures | None] | None = None
    fixed: bool = False


def sample_groups(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    places: Sequence[int],
    plan: DecodePlan | None = None,
    on_step: Callable[[DecodeProgress], None] | None = None,
) -> list[RolloutGroup]:
    """Sample one group of completions per prompt.

    Decoding runs in evaluation mode and without a graph, under gradient checkpointing too; afterwards every module has
    its own mode back, also when `on_step` raises.

    Args:
        policy: The model, its adapter as it stands.
        prompts: What to complete.
        sampling: How tokens are drawn.
        places: Each prompt's place in the run: together with the seed it names the noise its completions are drawn
            with.
        plan: What decodes together and what is looked at; None: everything, nothing.
        on_step: Called after every token; may raise to stop.

    Returns:
        The groups, in the order of their prompts.
    """
    plan = plan or DecodePlan()
    together = plan.prompts_per_decode or max(len(prompts), 1)
    group_tokens = len(sampling.drawn_rows) * sampling.max_completion_length
    use_shared_attention(policy.family.bare(policy.model))
    groups: list[RolloutGroup] = []
    with torch.no_grad(), evaluating(policy.model):
        for start in range(0, len(prompts), together):
            part = slice(start, start + together)
            batch = _Batch(policy, prompts[part], places[part], sampling, plan)
            for alive, left in batch.steps():
                if on_step is not None:
                    waiting = max(len(prompts) - part.stop, 0) * group_tokens
                    limit = len(prompts) * group_tokens
                    on_step(DecodeProgress(done_tokens=limit - waiting - left, limit_tokens=limit, rows_alive=alive))
            groups += batch.completions.groups(with_focus=plan.focus_signal is not None)
    return groups


class _Batch:
    """Groups that decode together, in slots `[prompt, slot]` as `GroupCache` lays them out.

    A slot is needed while its row goes on and, where similarity is read, for one forward more. Slots that are not
    needed decode along, unseen, until the batch can shrink.
    """

    def __init__(
        self, policy: Policy, prompts: Sequence[Prompt], places: Sequence[int], sampling: Sampling, plan: DecodePlan
    ) -> None:
        self._policy = policy
        self._plan = plan
        self._sampling = sampling
        self._decoder = Decoder(policy)
        self._language_model = policy.family.language_model(policy.model)
        self._lm_head = policy.family.lm_head(policy.model)
        device, slots = policy.device, len(sampling.drawn_rows)
        self.completions = Completions(policy, prompts, places, sampling)
        self._rows = torch.arange(len(prompts) * slots, device=device).view(len(prompts), slots)
        self._alive = torch.ones_like(self._rows, dtype=torch.bool)
        self._needed = self._alive
        reads_attention = plan.focus_signal == "attention"
        self._cache = (FixedCache if plan.fixed else GroupCache)(
            [prompt.image_mask.to(device) for prompt in prompts],
            slots=slots,
            max_tokens=sampling.max_completion_length,
            focus_layer=policy.family.capture_layer(policy.model) if reads_attention else None,
            windows=policy.family.windows(policy.model),
        )
        self._step = self._forward
        if isinstance(self._cache, FixedCache):
            self._step = FixedStep(self._forward, self._cache, captured_graph if device.type == "cuda" else None)
        starts = [self._prefill(index, prompt) for index, prompt in enumerate(prompts)]
        states, image_states, positions = zip(*starts, strict=True)
        self._image_states = torch.stack(image_states)
        self._positions = torch.tensor(positions, device=device)[:, None]
        self._logits = self._lm_head(torch.stack(states)).repeat_interleave(slots, dim=0)

    def _prefill(self, index: int, prompt: Prompt) -> tuple[Float[Tensor, " hidden"], Float[Tensor, " hidden"], int]:
        """Run one prompt: its last state, the mean state of its images, the position of the first token to come."""
        family, model = self._policy.family, self._policy.model
        encode = self._plan.features
        features = family.encode_images(model, prompt) if encode is None else encode(prompt)
        inputs = family.prompt_inputs(model, prompt, features)
        watches = self._plan.focus_signal == "attention" and prompt.has_image
        watch = AttentionCapture(family.capture_layer(model), first_query=inputs.length - 1) if watches else None
        states, keys_values = self._decoder.prompt(inputs, watch)
        self._cache.store_prompt(index, keys_values)
        if watch is not None:
            query, key, scale = watch.seen
            no_own_key = key[:, :, :0]
            seen = next_token_attention_focus(query[:, :, 0], key[0], no_own_key, inputs.image_mask, scale=scale)
            self.completions.focus[self._rows[index], 0] = seen
        image_states = states[inputs.image_mask] if prompt.has_image else torch.zeros_like(states[:1])
        return states[-1], image_states.float().mean(dim=0), inputs.next_position

    def steps(self) -> Iterator[tuple[int, int]]:
        """Decode to the end; after each token yields the rows that go on, and the tokens they may still need."""
        limit = self._sampling.max_completion_length
        for token in range(limit):
            ids = self._draw(token)
            alive, needed = torch.stack([self._alive, self._needed]).sum(dim=-1).tolist()
            failpoint("decode.step")
            yield sum(alive), sum(alive) * (limit - token - 1)
            is_last = token + 1 == limit or sum(alive) == 0
            if is_last and self._plan.focus_signal != "similarity":
                return
            states = self._feed(token, self._retire(needed, ids))
            if is_last:
                return
            self._logits = self._lm_head(states)

    def _draw(self, token: int) -> Int[Tensor, "prompt slot"]:
        ids, alive = self.completions.draw(token, self._logits, self._rows.flatten(), self._alive.flatten())
        drawn, self._alive = self._alive, alive.view_as(self._alive)
        self._needed = drawn if self._plan.focus_signal == "similarity" else self._alive
        return ids.view_as(self._rows)

    def _retire(self, needed: Sequence[int], ids: Int[Tensor, "prompt slot"]) -> Int[Tensor, "kept slot"]:
        """Let the batch shrink when enough slots are idle; returns the ids of what stays.

        Args:
            needed: Slots of each prompt that are needed.
            ids: The tokens about to be fed.
        """
        kept, slots = [place for place, count in enumerate(needed) if count > 0], max(needed)
        if len(kept) * slots > RETIRE_AT * ids.numel():
            return ids
        prompts = torch.tensor(kept, device=ids.device)
        chosen = self._needed[prompts].int().argsort(dim=1, descending=True, stable=True)[:, :slots]
        self._cache.keep(prompts, chosen)
        self._positions = self._positions[prompts]
        self._image_states = self._image_states[prompts]
        self._rows = self._rows[prompts].gather(1, chosen)
        self._alive = self._alive[prompts].gather(1, chosen)
        return ids[prompts].gather(1, chosen)

    def _feed(self, token: int, ids: Int[Tensor, "prompt slot"]) -> Float[Tensor, "row hidden"]:
        """Run the tokens just sampled through the model: their states, after the final norm; focus is noted."""
        states = self._step(ids, (self._positions + token).expand_as(ids))
        self._cache.advance()
        if self._plan.focus_signal == "attention" and token + 1 < self._sampling.max_completion_length:
            self.completions.focus[self._rows, token + 1] = self._cache.attention
        if self._plan.focus_signal == "similarity":
            by_prompt = zip(states.view(*ids.shape, -1), self._image_states, strict=True)
            seen = [similarity_focus(own[:, None], image[None])[:, 0] for own, image in by_prompt]
            self.completions.focus[self._rows, token] = torch.stack(seen)
        return states

    def _forward(
        self, ids: Int[Tensor, "prompt slot"], positions: Int[Tensor, "prompt slot"]
    ) -> Float[Tensor, "row hidden"]:
        return self._language_model(
            inputs_embeds=self._policy.family.embed(self._policy.model, ids.reshape(-1, 1)),
            position_ids=self._policy.family.text_positions(positions.reshape(-1, 1)),
            attention_mask=NO_MASK,
            use_cache=False,
            stage=self._cache,
        ).last_hidden_state[:, 0]
