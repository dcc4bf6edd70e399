"""The libraries that can load a model, each in one file, imported when it is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vgpo_lite.models.backends.base import Backend


def backend_named(name: Literal["transformers", "unsloth"]) -> Backend:
    """The backend of that name."""
    if name == "unsloth":
        from vgpo_lite.models.backends.unsloth import UnslothBackend

        return UnslothBackend()
    from vgpo_lite.models.backends.transformers import TransformersBackend

    return TransformersBackend()
