"""Which engine a run gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.engine.batched import BatchedEngine
from vgpo_lite.engine.protocol import EngineSettings
from vgpo_lite.engine.shared import SharedEngine
from vgpo_lite.errors import ConfigError
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.models.checkpointing import allow_recomputation

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.engine.protocol import Engine
    from vgpo_lite.models.policy import Policy


def make_engine(policy: Policy, config: RunConfig) -> Engine:
    """The engine that the configuration names, around a policy whose model is made ready for it.

    Raises:
        ConfigError: The model's completions cannot share a prompt.
    """
    family, model = policy.family, policy.model
    use_shared_attention(family.bare(model))
    if config.gradient_checkpointing:
        allow_recomputation(family.language_model(model))
        if family.trains_vision(model):
            allow_recomputation(family.vision_tower(model))
    settings = EngineSettings.of(config)
    if config.engine == "batched":
        return BatchedEngine(policy, settings)
    if not family.shares_prompts(model):
        raise ConfigError(
            f"engine=shared needs full attention in every layer, but {policy.model_id} has layers that see only a "
            "window; use --set engine=batched"
        )
    return SharedEngine(policy, settings)
