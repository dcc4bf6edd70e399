"""What the engine's tests share: engines around small policies, gradients by name, and the plainest reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from tests.small_models import QWEN_TYPES
from vgpo_lite.algorithm.objective import Objective, policy_loss
from vgpo_lite.engine import EngineSettings
from vgpo_lite.engine.batched import BatchedEngine
from vgpo_lite.engine.shared import SharedEngine
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.models.checkpointing import allow_recomputation

if TYPE_CHECKING:
    from torch import Tensor

    from vgpo_lite.data_types import RolloutGroup
    from vgpo_lite.models.policy import Policy

LOGPROBS = 1e-5
"""Relative to values of about 5: float32 through three layers in another order of operations."""

GRADIENTS = 1e-5
"""Norm of the difference over the norm, for every adapter: promised."""

FOCUS = 1e-6
"""Absolute, values in [0, 1]: promised."""

PLAIN = Objective(loss="dapo", max_completion_length=64)
"""No KL term; the ratio is 1 unless old log-probabilities differ."""

Gradients = dict[str, torch.Tensor]

KINDS_OF_TOKENS = dict.fromkeys(QWEN_TYPES, "mm_token_type_ids") | {"gemma3": "token_type_ids"}
"""What the processors of some families call the tensor that tells image tokens apart."""


class Outcome(NamedTuple):
    """What an engine makes of a group."""

    logprobs: Tensor
    attention: Tensor | None
    similarity: Tensor | None
    gradients: Gradients


def shared(policy: Policy, **settings: object) -> SharedEngine:
    """A shared engine around a policy made ready for it; without recomputation unless asked for."""
    _prepare(policy)
    return SharedEngine(policy, EngineSettings(**{"recompute": False, **settings}))


def batched(policy: Policy, **settings: object) -> BatchedEngine:
    """The same on copies."""
    _prepare(policy)
    return BatchedEngine(policy, EngineSettings(**{"recompute": False, **settings}))


def _prepare(policy: Policy) -> None:
    use_shared_attention(policy.family.bare(policy.model))
    allow_recomputation(policy.family.language_model(policy.model))
    if policy.family.trains_vision(policy.model):
        allow_recomputation(policy.family.vision_tower(policy.model))


def taken_gradients(policy: Policy) -> Gradients:
    """The gradients of all adapters, which are cleared."""
    gradients = {}
    for name, parameter in policy.adapters().items():
        if parameter.grad is not None:
            gradients[name] = parameter.grad
            parameter.grad = None
    return gradients


def advantages_of(group: RolloutGroup) -> Tensor:
    """Made-up advantages of both signs; what lies under the padding must not matter."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(group.completion_ids.shape, generator=generator)
    return torch.where(group.completion_mask, values, torch.nan)


def outcome(engine_of, policy: Policy, group: RolloutGroup, **settings: object) -> Outcome:
    """Everything one engine says about a group, and the gradient of one update on it."""
    engine = engine_of(policy, **settings)
    seen = engine.look(group, keep_graph=False, reference=False).signals
    similar = engine_of(policy, **{**settings, "focus_signal": "similarity"})
    similarity = similar.look(group, keep_graph=False, reference=False).signals.focus
    look = engine.look(group, keep_graph=True, reference=False)
    assert seen.old_logprobs is not None
    if look.signals.focus is not None:
        torch.testing.assert_close(look.signals.focus, seen.focus, atol=FOCUS, rtol=0)
    engine.update(look, advantages_of(group), PLAIN, denominator=float(group.token_count))
    return Outcome(seen.old_logprobs, seen.focus, similarity, taken_gradients(policy))


def plain_inputs(policy: Policy, group: RolloutGroup, row: int) -> dict[str, Tensor]:
    """What anyone would hand to the model for one completion: ids, pixels, grids, one row, no padding."""
    completion = group.completion_ids[row][group.completion_mask[row]]
    ids = torch.cat([group.prompt.input_ids, completion])[None]
    kinds = torch.nn.functional.pad(group.prompt.image_mask, (0, completion.shape[0]))[None].int()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **group.prompt.vision}
    if group.prompt.has_image:
        name = KINDS_OF_TOKENS.get(policy.family.model_type)
        inputs |= {} if name is None else {name: kinds}
    return inputs


def plain_logprobs(policy: Policy, group: RolloutGroup, temperature: float = 1.0) -> Tensor:
    """`model(...)` with full logits and `log_softmax`, a row at a time; with a graph where gradients are on."""
    rows = []
    for row, length in enumerate(group.completion_mask.sum(dim=1).tolist()):
        policy.family.bare(policy.model).model.rope_deltas = None
        inputs = plain_inputs(policy, group, row)
        logits = policy.model(**inputs, use_cache=False).logits[0, -length - 1 : -1].float()
        chosen = (logits / temperature).log_softmax(dim=-1).gather(1, inputs["input_ids"][0, -length:, None])[:, 0]
        rows.append(torch.nn.functional.pad(chosen, (0, group.completion_ids.shape[1] - length)))
    return torch.stack(rows)


def plain_outcome(policy: Policy, group: RolloutGroup) -> Outcome:
    """The reference that uses nothing of the engine: the model's own forward, autograd, eager attention weights."""
    bare = policy.family.bare(policy.model)
    bare.set_attn_implementation({"text_config": "sdpa"})
    policy.model.eval()
    logprobs = plain_logprobs(policy, group)
    part = policy_loss(
        logprobs,
        None,
        advantages_of(group),
        group.completion_mask,
        objective=PLAIN,
        denominator=float(group.token_count),
    )
    part.loss.backward()
    gradients = taken_gradients(policy)
    attention, similarity = plain_focus(policy, group) if group.prompt.has_image else (None, None)
    policy.model.train()
    return Outcome(logprobs.detach(), attention, similarity, gradients)


@torch.no_grad()
def plain_focus(policy: Policy, group: RolloutGroup) -> tuple[Tensor, Tensor]:
    """Both signals from the model's own outputs: eager attention weights of the focus layer, states after the norm."""
    bare, prompt = policy.family.bare(policy.model), group.prompt
    bare.set_attn_implementation({"text_config": "eager"})
    attention, similarity = torch.zeros(2, *group.completion_ids.shape)
    first = prompt.input_ids.shape[0]
    for row, length in enumerate(group.completion_mask.sum(dim=1).tolist()):
        bare.model.rope_deltas = None
        output = bare(
            **plain_inputs(policy, group, row), output_attentions=True, output_hidden_states=True, use_cache=False
        )
        weights = output.attentions[policy.family.capture_layer(policy.model)]
        emitting = weights[0, :, first - 1 : first - 1 + length, :first]
        attention[row, :length] = emitting[..., prompt.image_mask].sum(dim=-1).mean(dim=0)
        states = output.hidden_states[-1][0]
        image = states[:first][prompt.image_mask].mean(dim=0)
        similarity[row, :length] = (torch.cosine_similarity(states[first:], image, dim=-1) + 1) / 2
    bare.set_attn_implementation({"text_config": "sdpa"})
    return attention, similarity


def assert_same(found: Outcome, expected: Outcome, *, floor: float = 0.0) -> None:
    """Within the table's tolerances; padding is zero on both sides."""
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=LOGPROBS, atol=LOGPROBS)
    for name in ("attention", "similarity"):
        left, right = getattr(found, name), getattr(expected, name)
        if right is None:
            assert left is None, name
        else:
            torch.testing.assert_close(left, right, rtol=0, atol=FOCUS)
    assert_same_gradients(found.gradients, expected.gradients, floor=floor)


def assert_same_gradients(found: Gradients, expected: Gradients, *, floor: float = 0.0) -> None:
    """Every adapter has the same gradient.

    Args:
        found: What was computed.
        expected: What it should be.
        floor: Norms count as at least this share of the largest one: where nearly nothing reaches an adapter (a prompt
            of two tokens, completions of one), rounding is all there is to compare.
    """
    assert found.keys() == expected.keys()
    least = floor * max(float(right.norm()) for right in expected.values())
    errors = {
        name: float((found[name] - right).norm()) / max(float(right.norm()), least) for name, right in expected.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= GRADIENTS, f"{worst}: {errors[worst]:.1e}"
