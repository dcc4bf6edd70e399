"""The model families a policy can come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.errors import ModelError
from vgpo_lite.models.families.base import Family, PromptInputs, VisionFeatures
from vgpo_lite.models.families.gemma3 import GEMMA3
from vgpo_lite.models.families.internvl import INTERNVL
from vgpo_lite.models.families.llava_onevision import LLAVA_ONEVISION
from vgpo_lite.models.families.qwen2_5_vl import QWEN2_5_VL
from vgpo_lite.models.families.qwen2_vl import QWEN2_VL
from vgpo_lite.models.families.qwen3_vl import QWEN3_VL
from vgpo_lite.models.families.smolvlm import SMOLVLM

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        QWEN2_VL,
        QWEN2_5_VL,
        QWEN3_VL,
        SMOLVLM,
        INTERNVL,
        LLAVA_ONEVISION,
        GEMMA3,
    )
}

__all__ = ["FAMILIES", "Family", "PromptInputs", "VisionFeatures", "family_of"]


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model, by its configuration's `model_type`.

    Raises:
        ModelError: No family answers for that type.
    """
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"models of type {config.model_type!r} are not supported; expected one of {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[config.model_type]
