"""How much each token hangs on the image: its log-probability again, without the image or with it hidden.

Focus says where a token looked. This says what it would have lost: the same completion is scored with the image
replaced by its mean colour, and with the image's keys and values taken away from its last layers only. A completion
reads its prompt through keys and values alone, so leaving some out is a mask over them: the rest of the softmax adds up
to 1 again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from vgpo_lite.engine.decoder import Decoder
from vgpo_lite.engine.features import FeatureStore
from vgpo_lite.engine.layout import Layout, fed_ids
from vgpo_lite.engine.logprobs import token_entropies, token_logprobs
from vgpo_lite.errors import ModelError
from vgpo_lite.models.modes import evaluating

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

    from vgpo_lite.data_types import Prompt, RolloutGroup
    from vgpo_lite.engine.stages import KeysAndValues
    from vgpo_lite.models.families import PromptInputs
    from vgpo_lite.models.policy import Policy

HIDDEN_SHARE = 4
"""One layer in so many, rounded up, is late unless the caller says how many are."""


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """How much each token of a group hangs on the image: nats, float32, on the CPU, 0 under the padding.

    Attributes:
        painted_over: log p with the image, minus log p with the image replaced by its mean colour; above 0 where the
            image made the token more likely.
        hidden_late: log p with the image, minus log p where the last layers cannot read it. What earlier layers, or the
            prompt's own words, took from the image stays.
        entropy: Of the distribution the token was drawn from, with the image.
    """

    painted_over: Float[Tensor, "group token"]
    hidden_late: Float[Tensor, "group token"]
    entropy: Float[Tensor, "group token"]


def late_layers(policy: Policy) -> int:
    """How many layers the image is hidden from by default: the last quarter, at least one.

    >>> [-(-layers // HIDDEN_SHARE) for layers in (1, 4, 28, 30)]
    [1, 1, 7, 8]
    """
    return -(-len(policy.family.layers(policy.model)) // HIDDEN_SHARE)


@torch.no_grad()
def image_reliance(
    policy: Policy, group: RolloutGroup, *, temperature: float = 1.0, hidden_layers: int | None = None
) -> Reliance:
    """Score a group's completions with the image, without it, and with it hidden from the last layers.

    Completions run one after the other, on two runs of the prompt.

    Args:
        policy: The model; its language model takes a stage (`models.attention.use_shared_attention`).
        group: Completions of a prompt that shows an image.
        temperature: Of the log-probabilities, > 0.
        hidden_layers: How many of the last layers cannot read the image; None: `late_layers`.

    Raises:
        ModelError: What a layer sees of its prompt is neither everything nor a window.
        ValueError: There is no image, or the model has fewer layers.
    """
    count = len(policy.family.layers(policy.model))
    hidden_layers = late_layers(policy) if hidden_layers is None else hidden_layers
    if not group.prompt.has_image:
        raise ValueError(f"{group.prompt.sample.sample_id} shows no image; there is nothing to take away")
    if not 0 <= hidden_layers <= count:
        raise ValueError(f"hidden_layers is {hidden_layers}; expected 0 to {count}, the layers of the model")
    if not policy.family.shares_prompts(policy.model):
        raise ModelError(
            f"{policy.model_id} has layers that see neither everything nor a window; no image can be hidden from those"
        )
    with evaluating(policy.model):
        shown = _Reading.of(policy, group.prompt)
        painted = _Reading.of(policy, policy.family.painted_over(group.prompt))
        late = range(count - hidden_layers, count)
        parts = [
            [reading.scores(policy, group, row, temperature) for reading in (shown, painted, shown.hiding_image(late))]
            for row in range(len(group.texts))
        ]
    layout = Layout.of(group)
    width = group.completion_ids.shape[1]

    def joined(values: list[Tensor]) -> Tensor:
        return layout.padded(torch.cat(values), width).cpu()

    return Reliance(
        painted_over=joined([with_image.logprobs - without.logprobs for with_image, without, _ in parts]),
        hidden_late=joined([with_image.logprobs - hidden.logprobs for with_image, _, hidden in parts]),
        entropy=joined([with_image.entropies for with_image, _, _ in parts]),
    )


class _Scores(NamedTuple):
    logprobs: Float[Tensor, " token"]
    entropies: Float[Tensor, " token"]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What completions read: a prompt that has been run, and where its keys stand in layers that lack some."""

    inputs: PromptInputs
    keys_values: Mapping[int, KeysAndValues]
    places: Mapping[int, Int[Tensor, " shared"]]

    @classmethod
    def of(cls, policy: Policy, prompt: Prompt) -> _Reading:
        inputs = policy.family.prompt_inputs(policy.model, prompt, FeatureStore(policy).of(prompt))
        keys_values = Decoder(policy).keys_values(inputs.without_last_token())
        return cls(inputs=inputs, keys_values=keys_values, places={})

    def hiding_image(self, layers: range) -> _Reading:
        """The same without the image's keys and values in some layers."""
        kept = ~self.inputs.image_mask[:-1]
        hidden = {
            layer: (key[:, :, kept], value[:, :, kept]) if layer in layers else (key, value)
            for layer, (key, value) in self.keys_values.items()
        }
        return replace(self, keys_values=hidden, places={layer: kept.nonzero().squeeze(1) for layer in layers})

    def scores(self, policy: Policy, group: RolloutGroup, row: int, temperature: float) -> _Scores:
        """One completion on top of the prompt."""
        rows = slice(row, row + 1)
        states = Decoder(policy).completions(
            self.keys_values,
            Layout.of(group, rows),
            fed_ids(group, rows),
            first_position=self.inputs.next_position - 1,
            watch=None,
            places=self.places,
        )
        head = policy.family.lm_head(policy.model).weight
        ids = group.completion_ids[row][group.completion_mask[row]].to(states.device)
        return _Scores(
            token_logprobs(states, head, ids, temperature=temperature),
            token_entropies(states, head, temperature=temperature),
        )
