"""Which engine a run gets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vgpo_lite.engine.batched import BatchedEngine
from vgpo_lite.engine.patient import PatientEngine
from vgpo_lite.engine.protocol import EngineSettings
from vgpo_lite.engine.shared import SharedEngine
from vgpo_lite.errors import ConfigError
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.models.checkpointing import allow_recomputation
from vgpo_lite.planning import CHOSEN, ways_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.engine.backoff import Backoff
    from vgpo_lite.engine.protocol import Engine
    from vgpo_lite.models.policy import Policy
    from vgpo_lite.planning import Job

WAYS = 3
"""Ways out that are promised to who runs out of memory."""


def make_engine(
    policy: Policy,
    config: RunConfig,
    *,
    job: Job | None = None,
    on_backoff: Callable[[Backoff], None] | None = None,
) -> PatientEngine:
    """The engine that the configuration names, around a policy whose model is made ready for it.

    Args:
        policy: The model and its adapters.
        config: The resolved settings.
        job: The run as the plan of memory sees it, for what to tell where no size fits; None: nobody made a plan.
        on_backoff: Told of every size that shrinks because memory ran out; None: nobody is.

    Raises:
        ConfigError: The model's completions cannot share a prompt, or the backend's layers cannot be copied.
    """
    family, model = policy.family, policy.model
    use_shared_attention(family.bare(model))
    if config.engine == "shared" and not family.shares_prompts(model):
        raise ConfigError(
            f"engine=shared needs layers that see everything or a window, but {policy.model_id} has layers of another "
            "kind; use --set engine=batched"
        )

    if config.backend == "unsloth" and config.decodes_from_copy:
        raise ConfigError(
            "decode_weights=copy puts plain layers in the place of those that unsloth has patched, which nobody has "
            "tried; use --set decode_weights=quantized"
        )

    def build(settings: EngineSettings) -> Engine:
        if settings.recompute:
            allow_recomputation(family.language_model(model))
            if family.trains_vision(model):
                allow_recomputation(family.vision_tower(model))
        return (BatchedEngine if config.engine == "batched" else SharedEngine)(policy, settings)

    settings = EngineSettings.of(config, device=policy.device.type)
    if config.engine == "batched":
        settings = replace(settings, prompts_per_decode=1)  # its copies decode prompt after prompt
    return PatientEngine(
        policy,
        settings,
        build=build,
        advice=partial(advice, config, job),
        written={key: source for key, source in config.sources.items() if source != CHOSEN},
        on_backoff=on_backoff,
    )


def advice(config: RunConfig, job: Job | None) -> str:
    """What to do where no size fits: at least three ways out, those first that the plan of memory says would fit."""
    ways = [] if job is None else ways_out(job)
    told = f"By the plan of memory each of these would fit: {'; '.join(ways)}." if ways else ""
    if len(ways) < WAYS:
        scales_images = job is None or not job.model.vision.is_one_tile
        others = [f"--set {entry}" for entry in settings_that_need_less(config, scales_images=scales_images)]
        told += f" Each of these needs less: {'; '.join(way for way in others if way not in ways)}."
    return told.strip()


def settings_that_need_less(config: RunConfig, *, scales_images: bool = True) -> list[str]:
    """Three settings, as `key=value`, each of which needs less memory for one completion than `config` does.

    Args:
        config: The settings of the run.
        scales_images: Whether the pixel budget bounds the model's images.

    >>> from vgpo_lite.config.schema import RunConfig
    >>> settings_that_need_less(RunConfig(engine="batched"))
    ['engine=shared', 'data.max_pixels=200704', 'max_completion_length=512']
    """
    data = config.data
    choices = [
        ("engine=shared", config.engine == "batched"),
        ("quantization=nf4", config.quantization == "none"),
        (f"data.max_pixels={data.pixel_budget // 2}", scales_images and data.pixel_budget // 2 >= data.min_pixels),
        (f"max_completion_length={config.max_completion_length // 2}", config.max_completion_length > 1),
        ("lora.vision=false", config.lora.vision),
        (f"data.max_prompt_length={data.max_prompt_length // 2}", data.max_prompt_length >= 32),
        (f"lora.r={config.lora.r // 2}", config.lora.r > 1),
    ]
    return [entry for entry, helps in choices if helps][:WAYS]
