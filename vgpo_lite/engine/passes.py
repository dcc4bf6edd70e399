"""Passes over a group: log-probabilities and focus of its completions, from the prompt's keys and values.

Whether a pass leaves a graph is the caller's gradient mode; how many layers keep their activations, its `kept_layers`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from vgpo_lite.engine.capture import AttentionCapture, row_attention_focus, row_similarity_focus
from vgpo_lite.engine.decoder import Decoder
from vgpo_lite.engine.layout import Layout, fed_ids
from vgpo_lite.engine.logprobs import token_logprobs
from vgpo_lite.models.checkpointing import recomputing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.data_types import Prompt, RolloutGroup
    from vgpo_lite.engine.features import FeatureStore
    from vgpo_lite.engine.protocol import EngineSettings
    from vgpo_lite.engine.stages import KeysAndValues
    from vgpo_lite.models.families import PromptInputs
    from vgpo_lite.models.policy import Policy


@dataclass(frozen=True, kw_only=True)
class RowsPass:
    """What a pass over some completions gave, padded to the group's width, on the model's device.

    Attributes:
        logprobs: log p of each token, float32, 0 under the padding; with a graph where the pass had one.
        focus: Focus of each token, 0 under the padding; None where it was not asked for or there is no image.
    """

    logprobs: Float[Tensor, "row token"]
    focus: Float[Tensor, "row token"] | None


@dataclass(frozen=True, kw_only=True)
class PromptPass:
    """What completions need of a prompt that has been run.

    Attributes:
        inputs: The whole prompt's.
        keys_values: Of each layer, for all of the prompt but its last token.
        image_states: States at the image tokens, without a graph; None where similarity is not read.
    """

    inputs: PromptInputs
    keys_values: Mapping[int, KeysAndValues]
    image_states: Float[Tensor, "image hidden"] | None

    def with_leaves(self) -> PromptPass:
        """The same as leaves of new graphs: gradients of all completions gather in them."""
        leaves = {
            layer: (key.detach().requires_grad_(), value.detach().requires_grad_())
            for layer, (key, value) in self.keys_values.items()
        }
        return replace(self, keys_values=leaves)

    def backward_from(self, leaves: PromptPass) -> None:
        """Go backward through the prompt, once, with the gradients that gathered in `leaves`."""
        pairs = [
            (own, leaf)
            for layer, own_pair in self.keys_values.items()
            for own, leaf in zip(own_pair, leaves.keys_values[layer], strict=True)
            if own.requires_grad  # without adapters on keys and values, the first layer's have no graph
        ]
        torch.autograd.backward([own for own, _ in pairs], [leaf.grad for _, leaf in pairs])


class GroupPasses:
    """A policy's passes over groups whose completions share their prompt."""

    def __init__(self, policy: Policy, settings: EngineSettings, features: FeatureStore) -> None:
        self._policy = policy
        self._settings = settings
        self._features = features
        self._decoder = Decoder(policy)
        self._layers = policy.family.layers(policy.model)

    def prompt(self, prompt: Prompt, *, with_focus: bool, kept_layers: int) -> PromptPass:
        """The prompt, up to what its completions need."""
        inputs = self._inputs(prompt)
        shared, image_states = inputs.without_last_token(), None
        with self._recomputing(kept_layers):
            if self._reads(prompt, "similarity", with_focus):
                states, keys_values = self._decoder.prompt(shared)
                image_states = states.detach()[shared.image_mask]
            else:
                keys_values = self._decoder.keys_values(shared)
        return PromptPass(inputs=inputs, keys_values=keys_values, image_states=image_states)

    def completions(
        self, group: RolloutGroup, rows: slice, prompt: PromptPass, *, with_focus: bool, kept_layers: int
    ) -> RowsPass:
        """Some completions on top of their prompt."""
        layout = Layout.of(group, rows, feeds_last=prompt.image_states is not None)
        layer = self._policy.family.capture_layer(self._policy.model)
        watch = AttentionCapture(layer) if self._reads(group.prompt, "attention", with_focus) else None
        with self._recomputing(kept_layers):
            states = self._decoder.completions(
                prompt.keys_values,
                layout,
                fed_ids(group, rows, feeds_last=layout.feeds_last),
                first_position=prompt.inputs.next_position - 1,
                watch=watch,
            )
        focus = None
        if watch is not None:
            focus = row_attention_focus(
                watch.seen,
                prompt.keys_values[layer][0],
                layout,
                prompt.inputs.image_mask,
                chunk_size=self._settings.focus_chunk,
            )
        elif prompt.image_states is not None:
            focus = row_similarity_focus(states, prompt.image_states, layout)
        return self._padded(group, rows, layout, states, focus)

    def _reads(self, prompt: Prompt, signal: str, with_focus: bool) -> bool:
        return with_focus and prompt.has_image and self._settings.focus_signal == signal

    def _inputs(self, prompt: Prompt) -> PromptInputs:
        family, model = self._policy.family, self._policy.model
        wanted = self._settings.recompute and torch.is_grad_enabled()
        with recomputing(family.vision_layers(model) if wanted else ()):
            features = self._features.of(prompt)
        return family.prompt_inputs(model, prompt, features)

    def _recomputing(self, kept_layers: int) -> AbstractContextManager[None]:
        """All layers but the last ones; the very last is always kept: it is needed before any other memory is."""
        count = len(self._layers) - max(kept_layers, 1) if torch.is_grad_enabled() else 0
        return recomputing(self._layers[:count])

    def _padded(
        self, group: RolloutGroup, rows: slice, layout: Layout, states: Tensor, focus: Tensor | None
    ) -> RowsPass:
        width = group.completion_ids.shape[1]
        emitting = states[layout.emitting().to(states.device)] if layout.feeds_last else states
        logprobs = token_logprobs(
            emitting,
            self._policy.family.lm_head(self._policy.model).weight,
            group.completion_ids[rows][group.completion_mask[rows]].to(states.device),
            temperature=self._settings.temperature,
            chunk_size=self._settings.logprob_chunk,
        )
        if focus is not None:
            focus = focus.masked_fill(~layout.mask().to(focus.device), 0.0)
            focus = pad(focus, (0, width - focus.shape[1]))
        return RowsPass(logprobs=layout.padded(logprobs, width), focus=focus)
