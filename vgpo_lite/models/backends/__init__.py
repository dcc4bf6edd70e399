"""The libraries that can load a model, each in one file, imported when it is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vgpo_lite.models.backends.base import Backend


def import_backend(name: Literal["transformers", "unsloth"], *, device: Literal["auto", "cpu", "cuda"]) -> None:
    """Import a library that must come before transformers, because it patches it.

    Whoever loads a model calls this before anything else of the model stack is imported.

    Raises:
        ConfigError: It is too late: transformers is imported already.
        HardwareError: The library is not installed, or cannot run on this machine.
    """
    if name == "unsloth":
        from vgpo_lite.models.backends.unsloth import import_unsloth

        import_unsloth(device)


def backend_named(name: Literal["transformers", "unsloth"]) -> Backend:
    """The backend of that name."""
    if name == "unsloth":
        from vgpo_lite.models.backends.unsloth import UnslothBackend

        return UnslothBackend()
    from vgpo_lite.models.backends.transformers import TransformersBackend

    return TransformersBackend()
