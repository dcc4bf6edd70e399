"""Passes over a group: log-probabilities and focus of its completions, from the whole row or from its parts.

Whether a pass leaves a graph is the caller's gradient mode; whether the graph keeps activations is
`settings.recompute`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from vgpo_lite.engine.capture import AttentionCapture, Seen, row_attention_focus, row_similarity_focus
from vgpo_lite.engine.decoder import Decoder
from vgpo_lite.engine.layout import Layout
from vgpo_lite.engine.logprobs import token_logprobs
from vgpo_lite.engine.stages import PromptStage
from vgpo_lite.models.checkpointing import recomputing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int
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
        inputs: What went in.
        keys_values: Of each layer.
        last_state: The state that emits every completion's first token.
        image_states: States at the image tokens, without a graph.
        seen: The last query, and the keys, of the layer where focus is read; None where attention is not watched.
    """

    inputs: PromptInputs
    keys_values: Mapping[int, KeysAndValues]
    last_state: Float[Tensor, "1 hidden"]
    image_states: Float[Tensor, "image hidden"]
    seen: Seen | None

    def with_leaves(self) -> PromptPass:
        """The same as leaves of new graphs: gradients of all completions gather in them."""
        leaves = {
            layer: (key.detach().requires_grad_(), value.detach().requires_grad_())
            for layer, (key, value) in self.keys_values.items()
        }
        return replace(self, keys_values=leaves, last_state=self.last_state.detach().requires_grad_())

    def backward_from(self, leaves: PromptPass) -> None:
        """Go backward through the prompt, once, with the gradients that gathered in `leaves`."""
        pairs = [(self.last_state, leaves.last_state)]
        for layer, own in self.keys_values.items():
            pairs += zip(own, leaves.keys_values[layer], strict=True)
        # The first layer's values without adapters, for one, have no graph.
        pairs = [(own, leaf) for own, leaf in pairs if own.requires_grad and leaf.grad is not None]
        torch.autograd.backward([own for own, _ in pairs], [leaf.grad for _, leaf in pairs])


class GroupPasses:
    """A policy's passes over groups whose completions share their prompt."""

    def __init__(self, policy: Policy, settings: EngineSettings, features: FeatureStore) -> None:
        self._policy = policy
        self._settings = settings
        self._features = features
        self._decoder = Decoder(policy)
        self._layers = policy.family.layers(policy.model)

    def packed(self, group: RolloutGroup, *, with_focus: bool) -> RowsPass:
        """All completions and their prompt in one row."""
        layout, inputs = Layout.of(group), self.inputs(group.prompt)
        token_ids, first_state = _flat_ids(group).to(inputs.inputs_embeds.device), layout.prompt_length - 1
        watch = self._watch(group.prompt, first_query=first_state, wanted=with_focus)
        # The last layer's activations are needed again before any other memory is: running it twice saves nothing.
        with self._recomputing(keep_last=True):
            hidden = self._decoder.packed(inputs, layout, token_ids, watch)
        states, seen = hidden[first_state:], None if watch is None else watch.seen
        image_states = hidden.detach()[: layout.prompt_length][inputs.image_mask]
        focus = self._focus(states, image_states, seen, layout, inputs) if with_focus else None
        return self._padded(group, layout, self._logprobs(states, layout, token_ids), focus)

    def prompt(self, prompt: Prompt, *, with_focus: bool) -> PromptPass:
        """The prompt alone."""
        inputs, stage = self.inputs(prompt), PromptStage()
        watch = self._watch(prompt, first_query=inputs.length - 1, wanted=with_focus)
        with self._recomputing(keep_last=False):
            hidden = self._decoder.prompt(inputs, stage, watch)
        return PromptPass(
            inputs=inputs,
            keys_values=stage.keys_values,
            last_state=hidden[-1:],
            image_states=hidden.detach()[inputs.image_mask],
            seen=None if watch is None else watch.seen,
        )

    def completions(self, group: RolloutGroup, rows: slice, prompt: PromptPass, *, with_focus: bool) -> RowsPass:
        """Some completions on top of their prompt."""
        layout, inputs = Layout.of(group, rows), prompt.inputs
        token_ids = _flat_ids(group, rows).to(inputs.inputs_embeds.device)
        watch = self._watch(group.prompt, first_query=0, wanted=with_focus)
        with self._recomputing(keep_last=True):
            hidden = self._decoder.completions(inputs, prompt.keys_values, layout, token_ids, watch)
        states, seen = torch.cat([prompt.last_state, hidden]), None
        if watch is not None and prompt.seen is not None:
            seen = watch.seen.behind(prompt.seen)
        focus = self._focus(states, prompt.image_states, seen, layout, inputs) if with_focus else None
        return self._padded(group, layout, self._logprobs(states, layout, token_ids), focus)

    def inputs(self, prompt: Prompt) -> PromptInputs:
        """The prompt's embeddings with its image features in place."""
        family, model = self._policy.family, self._policy.model
        with recomputing(family.vision_layers(model) if self._recomputes else ()):
            features = self._features.of(prompt)
        return family.prompt_inputs(model, prompt, features)

    @property
    def _recomputes(self) -> bool:
        return self._settings.recompute and torch.is_grad_enabled()

    def _recomputing(self, *, keep_last: bool):
        layers = self._layers[:-1] if keep_last else self._layers
        return recomputing(layers if self._recomputes else ())

    def _watch(self, prompt: Prompt, *, first_query: int, wanted: bool) -> AttentionCapture | None:
        if not (wanted and prompt.has_image and self._settings.focus_signal == "attention"):
            return None
        return AttentionCapture(self._policy.family.capture_layer(self._policy.model), first_query=first_query)

    def _logprobs(self, states: Tensor, layout: Layout, token_ids: Int[Tensor, " flat"]) -> Float[Tensor, " flat"]:
        return token_logprobs(
            states[layout.emitting_states().to(states.device)],
            self._policy.family.lm_head(self._policy.model).weight,
            token_ids,
            temperature=self._settings.temperature,
            chunk_size=self._settings.logprob_chunk,
        )

    def _focus(
        self, states: Tensor, image_states: Tensor, seen: Seen | None, layout: Layout, inputs: PromptInputs
    ) -> Float[Tensor, "row token"] | None:
        if seen is not None:
            return row_attention_focus(seen, layout, inputs.image_mask, chunk_size=self._settings.focus_chunk)
        if self._settings.focus_signal == "similarity" and image_states.shape[0] > 0:
            return row_similarity_focus(states, image_states, layout)
        return None

    def _padded(self, group: RolloutGroup, layout: Layout, logprobs: Tensor, focus: Tensor | None) -> RowsPass:
        width = group.completion_ids.shape[1]
        if focus is not None:
            focus = focus.masked_fill(~layout.mask().to(focus.device), 0.0)
            focus = pad(focus, (0, width - focus.shape[1]))
        return RowsPass(logprobs=layout.padded(logprobs, width), focus=focus)


def _flat_ids(group: RolloutGroup, rows: slice = slice(None)) -> Int[Tensor, " flat"]:
    return group.completion_ids[rows][group.completion_mask[rows]]
