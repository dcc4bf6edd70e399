"""Each prompt's image features, computed once and shared by rollout, look and update."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgpo_lite.data_types import Prompt
    from vgpo_lite.models.families import VisionFeatures
    from vgpo_lite.models.policy import Policy


class FeatureStore:
    """What the vision tower made of prompts, until `forget`.

    A tower that learns changes with every step and belongs to the graph: then nothing is kept.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._tower_learns = policy.family.trains_vision(policy.model)
        self._kept: dict[int, tuple[Prompt, VisionFeatures | None]] = {}

    def of(self, prompt: Prompt) -> VisionFeatures | None:
        """Features of this very prompt object; None for a prompt without an image."""
        if self._tower_learns:
            return self._policy.family.encode_images(self._policy.model, prompt)
        if id(prompt) not in self._kept:
            # The prompt is kept beside them, so that its id stays its own.
            self._kept[id(prompt)] = (prompt, self._policy.family.encode_images(self._policy.model, prompt))
        return self._kept[id(prompt)][1]

    def forget(self) -> None:
        """Let go of all features."""
        self._kept.clear()
